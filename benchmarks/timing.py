"""What every benchmark shares: one thread, contenders in turn, medians, and ratios with their spread.

Time is the processor time of this process (``clock`` may count a contender's own processes too): a neighbour on the
same core costs little here, and a contender that spins on many threads pays for all of them. What still drifts (clock
rate, caches) hits all contenders of a round alike, which is why a ratio is taken within each round and only then across
rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

RESULTS = Path("docs/results")
Row = dict[str, str | float | None]


class Spread(NamedTuple):
    """The median of some rounds, between the first and third quartile."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        low, median, high = np.percentile(values, [25, 50, 75])
        return Spread(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


class Rates:
    """What each contender did per second of processor time, round by round."""

    def __init__(self, rounds: Mapping[str, list[float]]) -> None:
        self.rounds = rounds

    def of(self, name: str) -> Spread:
        return Spread.of(self.rounds[name])

    def ratio(self, name: str, other: str) -> Spread:
        return Spread.of([a / b for a, b in zip(self.rounds[name], self.rounds[other], strict=True)])


def one_thread() -> None:
    """As every party runs: one BLAS and one torch thread."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def interleaved(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int = 9,
    least: float = 0.3,
    clock: Callable[[], float] = time.process_time,
) -> Rates:
    """Run the contenders in turn; each call does some work and returns how much. A slice lasts ``least`` seconds."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # compiles, allocates, warms the caches
    for index in range(rounds):
        names = list(contenders)
        for name in names if index % 2 == 0 else reversed(names):
            gc.collect()
            done, begin = 0.0, clock()
            while (spent := clock() - begin) < least:
                done += contenders[name]()
            found[name].append(done / spent)
    return Rates(found)


def short(value: str | float | None) -> str:
    """A number as a person reads it: three digits, thousands apart."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(name: str, title: str, rows: list[Row]) -> None:
    """Print a table as the docs show it; with --json also leave it under docs/results/."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *[[short(row.get(column)) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title} ({processor()}, one thread)\n", flush=True)
    for index, line in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |", flush=True)
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true")
    if parser.parse_known_args()[0].json:
        RESULTS.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"title": title, "processor": processor(), "rows": rows}, indent=1)
        (RESULTS / f"speed_{name}.json").write_text(text + "\n")


def processor() -> str:
    """What kind of processor, in the words that decide: maker and vector units."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
