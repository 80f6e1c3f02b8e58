"""Why one thread per party: two TD3 parties on one machine, with one thread each and with two. Wall time, two cores."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks import td3
from benchmarks.timing import Row, Spread, report

SECONDS, TURNS = 2.0, 3
_gate: Any = None


def _start(gate: Barrier) -> None:
    global _gate
    _gate = gate


def party(threads: int, theirs: bool) -> float:
    """Updates per second of one of the parties, both starting together."""
    td3.UPDATES = 2  # at a time: threads that wait for each other take a second for one
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        run = td3.theirs() if theirs else td3.ours("float32")
        run()
        _gate.wait()
        done, begin = 0.0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < SECONDS:
            done += run()
    return done / spent


def main() -> None:
    context = multiprocessing.get_context("spawn")
    found: dict[tuple[bool, int], list[float]] = {(theirs, t): [] for theirs in (False, True) for t in (1, 2)}
    with context.Pool(2, _start, (context.Barrier(2),)) as pool:
        for _ in range(TURNS):
            for (theirs, threads), rates in found.items():
                rates.append(sum(pool.starmap(party, [(threads, theirs)] * 2, chunksize=1)))
    rows: list[Row] = [
        {
            "two parties of": "Stable-Baselines3" if theirs else "ours",
            "threads each": threads,
            "updates/s, both": str(Spread.of(rates)),
            "ratio to one thread": str(Spread.of([a / b for a, b in zip(rates, found[theirs, 1], strict=True)])),
        }
        for (theirs, threads), rates in found.items()
    ]
    report("threads", "TD3 256-256, two parties on two cores, wall time", rows)


if __name__ == "__main__":
    main()
