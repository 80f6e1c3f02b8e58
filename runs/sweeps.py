"""A sweep: a conf for every combination of some values and every seed.

DIR/sweep.toml is the conf as it was when the sweep began, so that editing the file changes no run that still waits.
DIR/sweep.json holds grid, seeds and results. DIR/COMBINATION/seed-S is a run, and its run.log what the run printed.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from core.errors import Failure, Mistake
from core.options import override
from runs import figures, plots
from runs.config import RunConfig, from_user
from runs.directory import RunDirectory, read_toml
from runs.groups import dotted

PICTURE = "sweep.png"
Grid = dict[str, list[str]]


@dataclass(frozen=True)
class Combination:
    """Values of the grid's keys: their name, the folder of their runs, and the configuration of such a run."""

    name: str
    folder: str
    settings: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Run:
    """One seed of a combination."""

    combination: Combination
    seed: int
    path: Path

    @property
    def name(self) -> str:
        return str(Path(self.combination.folder) / f"seed-{self.seed}")

    def records(self) -> list[dict[str, Any]]:
        return RunDirectory(self.path).read_metrics() if self.has_begun() else []

    def has_begun(self) -> bool:
        return RunDirectory(self.path).metrics.exists()

    def has_finished(self) -> bool:
        """Return whether the run has reached its end and saved its last round."""
        records, saved = self.records(), RunDirectory(self.path).saved_rounds()
        if not records or records[-1]["round"] not in saved:
            return False
        return self.combination.config.over(records[-1]["round"], records[-1]["steps"])


# Grids and seeds ------------------------------------------------------------------------------------------------------


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as 0:10 (0 to 9), 3, or several of these with commas between."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        end = int(match[2]) if match and match[2] else first + 1
        if match is None or end <= first:
            raise Mistake(f"--seeds must be like 0:10 (0 to 9), 3, or 0:5,8, not '{text}'")
        seeds.update(range(first, end))
    return sorted(seeds)


def parse_grid(options: Sequence[str]) -> Grid:
    """Return the values of every key, as they are written."""
    grid: Grid = {}
    for option in options:
        key, _, text = option.partition("=")
        key, values = key.strip(), split_values(text)
        if not key or not all(values):
            raise Mistake(f"--grid must be key=value,value such as ppo.learning-rate=0.001,0.0003, not '{option}'")
        if key in grid:
            raise Mistake(f"--grid gives '{key}' twice: put all its values into one --grid")
        grid[key] = values
    return grid


def split_values(text: str) -> list[str]:
    """Return the parts between commas; commas within brackets or quotes do not split."""
    parts, depth, in_quotes = [""], 0, False
    for letter in text:
        in_quotes ^= letter == '"'
        if not in_quotes:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not in_quotes:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def combine(table: Mapping[str, Any], grid: Grid, stem: str) -> list[Combination]:
    """Return every combination with its configuration; refuses a mistake in any of them."""
    combinations: list[Combination] = []
    for values in itertools.product(*grid.values()):
        settings = tuple(f"{key}={value}" for key, value in zip(grid, values, strict=True))
        config, name = from_user(override(table, list(settings))), ", ".join(settings)
        if any(other.config == config for other in combinations):
            raise Mistake(f"--grid asks twice for the same run: {name}")
        # Not every file system takes every letter and length. A number separates folders that became equal.
        folder = re.sub(r"[^\w.,=+-]+", "_", ",".join(settings))[:120]
        if any(other.folder == folder for other in combinations):
            folder = f"{folder}-{len(combinations)}"
        combinations.append(Combination(name or stem, folder, settings, config))
    return combinations


def runs_of(combinations: Sequence[Combination], seeds: Sequence[int], directory: Path) -> list[Run]:
    """Return a run for every combination and seed."""
    return [Run(one, seed, directory / one.folder / f"seed-{seed}") for one in combinations for seed in seeds]


# The directory --------------------------------------------------------------------------------------------------------


def merge_with_saved(directory: Path, table: Mapping[str, Any], grid: Grid, seeds: list[int]) -> dict[str, Any]:
    """Return grid and seeds of the sweep, with the seeds that it had before.

    Refuses a directory that holds another sweep, or something else.
    """
    path = directory / "sweep.json"
    if not path.exists():
        if directory.is_dir() and any(directory.iterdir()):
            raise Mistake(f"{directory} holds files but no sweep (no {path.name} in it): choose another --out")
        return {"grid": grid, "seeds": seeds}
    try:
        saved = json.loads(path.read_text())
        seeds, saved_grid = sorted({*seeds, *saved["seeds"]}), saved["grid"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} cannot be read: {error}") from None
    now = {"--grid": json.dumps(grid, sort_keys=True), **dict(dotted(table))}
    then = {"--grid": json.dumps(saved_grid, sort_keys=True), **dict(dotted(read_toml(directory / "sweep.toml")))}
    for key in [*now, *then]:
        if now.get(key) != then.get(key):
            before, after = (values.get(key, "not there") for values in (then, now))
            raise Mistake(f"{directory} holds another sweep ({key} was {before}, is {after}): choose another --out")
    return {"grid": saved_grid, "seeds": seeds}  # folders are named in the saved order of keys


def save(directory: Path, table: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the conf and the state of a sweep, each beside its file and then moved into place."""
    for name, text in (("sweep.toml", tomli_w.dumps(dict(table))), ("sweep.json", json.dumps(state, indent=1) + "\n")):
        beside = directory / f".{name}.new"
        beside.write_text(text)
        beside.replace(directory / name)


@contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold a lock on the directory, and yield its descriptor.

    Runs inherit the lock. If they outlive a sweep that was killed, no other sweep starts beside them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(
                f"another sweep, or a run that it left behind, is at work in {directory}: wait until it has ended"
            ) from None
        yield lock
    finally:
        os.close(lock)


def results(directory: Path, runs: Sequence[Run], draw: bool) -> dict[str, Any]:
    """Return the figures of the finished runs by combination; ``draw`` also draws a curve of each."""
    finished = [run for run in runs if run.has_finished()]
    combinations: dict[str, dict[str, Any]] = {}
    curves = {}
    for name in dict.fromkeys(run.combination.name for run in runs):
        records = {str(run.seed): run.records() for run in finished if run.combination.name == name}
        combinations[name] = figures.over_seeds(records)
        if evaluated := [one for one in records.values() if figures.final_return(one) is not None]:
            curves[name] = figures.curve(evaluated)
    picture = directory / PICTURE
    if draw and curves:
        plots.draw(picture, curves, directory.name)
    return {
        "runs": len(runs),
        "finished": len(finished),
        "combinations": combinations,
        "picture": str(picture) if draw and curves else None,
        "sweep_dir": str(directory),
    }
