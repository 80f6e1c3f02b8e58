"""A run's directory: the resolved conf, one line of metrics per round, the checkpoint, the weights, the picture."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from core.errors import Failure, Mistake
from core.rows import Array
from runs import checkpoints


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conf, self.metrics = path / "conf.toml", path / "metrics.jsonl"
        self.checkpoint, self.weights, self.curve = path / "checkpoint.npz", path / "weights.npz", path / "curve.png"

    @classmethod
    def create(cls, path: Path, conf: Mapping[str, Any]) -> RunDirectory:
        """A new directory; one that already holds a run is refused, so that nothing is lost."""
        run = cls(path)
        if run.metrics.exists():
            raise Mistake(f"{path} already holds a run; continue it with --resume {path}, or choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.write_conf(conf)
            run.metrics.write_text("")
        except OSError as error:
            raise Failure(f"the run directory {path} could not be made: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        run = cls(path)
        if not run.conf.exists():
            raise Mistake(f"{path} holds no run (no {run.conf.name} in it)")
        return run

    def write_conf(self, conf: Mapping[str, Any]) -> None:
        _replace(self.conf, tomli_w.dumps(dict(conf)))

    def read_conf(self) -> dict[str, Any]:
        return read_toml(self.conf)

    def log(self, record: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise Failure(f"{self.metrics} could not be written: {error.strerror or error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records so far; a line cut short by a crash ends them."""
        found: list[dict[str, Any]] = []
        if not self.metrics.exists():
            raise Mistake(f"{self.path} has no {self.metrics.name}: it is not a run, or was never begun")
        for line in self.metrics.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def rewind(self, rounds: int) -> None:
        """Forget what came after the checkpoint: a resumed run writes those rounds again."""
        kept = [json.dumps(record) for record in self.read_metrics() if record["round"] <= rounds]
        _replace(self.metrics, "".join(line + "\n" for line in kept))

    def save(self, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        checkpoints.save(self.checkpoint, arrays, meta)

    def save_weights(self, learned: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """What was learned, a matrix per part with a row per agent: plain npz, readable without our code."""
        checkpoints.save(self.weights, learned, meta)


def _replace(path: Path, text: str) -> None:
    """Write beside and move into place: whatever happens meanwhile, one of the two is whole."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table, or one clear sentence."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise Mistake(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise Mistake(f"{path} is not valid TOML: {error}") from None
