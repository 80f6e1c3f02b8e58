"""The directory of a run: the resolved conf, a line of metrics per round, checkpoints, weights, the picture."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import tomli_w

from core.errors import Failure, Mistake
from core.rows import Array
from runs import checkpoints

LOG = "run.log"  # what a run of a sweep prints; it exists before the run begins
_ROUND = re.compile(r"[0-9]{1,12}")  # the round in the name of a checkpoint


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conf, self.metrics, self.checkpoints = path / "conf.toml", path / "metrics.jsonl", path / "checkpoints"
        self.weights, self.best, self.curve = path / "weights.npz", path / "best.npz", path / "curve.png"
        self.summary = path / "summary.json"
        self._name, self._stop, self._notes = path / "name", path / "stop", path / "events.log"
        self._error, self._lock, self._folders = path / "last-words.json", path / "lock", path / "worlds"

    @classmethod
    def create(cls, path: Path, conf: Mapping[str, Any]) -> RunDirectory:
        """Create the directory of a new run. Refuses a folder that holds files, so that none is lost."""
        run = cls(path)
        if run.metrics.exists():
            raise Mistake(f"{path} already holds a run; continue it with --resume {path}, or choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if others := sorted(file.name for file in path.iterdir() if file.name != LOG):
                raise Mistake(
                    f"{path} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}): a run "
                    "needs a new or an empty folder, so choose another --out"
                )
            run.write_conf(conf)
            run.metrics.write_text("")
            # The name never changes: the directory may move, and nodes that hold the agents do not know it.
            run._name.write_text(f"{path.name.replace(' ', '-')}-{secrets.token_hex(4)}\n")
        except OSError as error:
            raise Failure(f"the run directory {path} could not be created: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of a run; refuses one that holds no run, or a link."""
        run = cls(path)
        if not run.conf.exists():
            raise Mistake(f"{path} holds no run (no {run.conf.name} in it)")
        if link := _link_in(path):
            raise Mistake(
                f"{link} is a link, and a run writes only into its own directory: replace the link by the file"
            )
        return run

    def write_conf(self, conf: Mapping[str, Any]) -> None:
        _replace(self.conf, tomli_w.dumps(dict(conf)))

    def read_conf(self) -> dict[str, Any]:
        return read_toml(self.conf)

    @property
    def name(self) -> str:
        """The name of the run on every machine."""
        return _text(self._name).strip() if self._name.exists() else self.path.name

    def keep_folders(self, folders: Sequence[str]) -> None:
        """Save the folders in which the modules of the run were found, for later uses of the run."""
        self._folders.write_text("".join(f"{folder}\n" for folder in folders))

    def folders(self) -> list[Path]:
        """Return where to look for the modules of the run: the folders of its start, and the working directory.

        No folder within the run is returned, so that a run from another person cannot bring code.
        """
        saved = _text(self._folders).splitlines() if self._folders.exists() else []
        places = [Path(folder) for folder in saved if Path(folder).is_absolute()] + [Path.cwd()]
        return [place for place in places if not place.resolve().is_relative_to(self.path.resolve())]

    def ask_to_stop(self) -> None:
        """Ask the process that runs the rounds, which may be another one, to end after the round in progress."""
        self._stop.touch()

    def stop_asked(self) -> bool:
        """Return whether the run was asked to stop."""
        return self._stop.exists()

    def go_on(self) -> None:
        """Clear the request to stop and the error of the previous start."""
        for path in (self._stop, self._error):
            path.unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether a process has ever worked in this directory."""
        return self._lock.exists()

    @contextmanager
    def held(self, seconds: float = 0.0) -> Iterator[None]:
        """Lock the run for this process; waits ``seconds`` for another process, and then refuses."""
        deadline = time.monotonic() + seconds
        with _own(self._lock, "w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Mistake(f"another process is at work in {self.path}: wait until it has ended") from None
                    time.sleep(0.1)
            yield

    def note(self, text: str) -> None:
        """Log an event with its time: an agent that joined or was refused, a wait."""
        with _own(self._notes, "a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {' '.join(text.split())}\n")

    def notes(self) -> list[str]:
        """Return the logged events."""
        return _text(self._notes).splitlines() if self._notes.exists() else []

    def leave_word(self, error: Exception) -> None:
        """Save the error that ended the run, for the process that started it."""
        kind = "mistake" if isinstance(error, Mistake) else "failure"
        self._error.write_text(json.dumps({"kind": kind, "words": str(error)}))

    def raise_word(self) -> None:
        """Raise the error that ended the run's process, if there was one."""
        if self._error.exists():
            error = json.loads(_text(self._error))
            raise (Mistake if error["kind"] == "mistake" else Failure)(error["words"])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary of the run."""
        _replace(self.summary, json.dumps(_clean(summary), indent=2) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to the metrics."""
        try:
            with _own(self.metrics, "a") as file:
                file.write(json.dumps(_clean(record)) + "\n")
        except OSError as error:
            raise Failure(f"{self.metrics} could not be written: {error.strerror or error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records so far. A line that a crash cut short ends them."""
        records: list[dict[str, Any]] = []
        if not self.metrics.exists():
            raise Mistake(f"{self.path} has no {self.metrics.name}: it is not a run, or was never started")
        for number, line in enumerate(_text(self.metrics).splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                break
            except RecursionError:
                record = None
            if not isinstance(record, dict) or type(record.get("round")) is not int:
                raise Mistake(f"{self.metrics} is not the metrics of a run: line {number} is not a record of a round")
            records.append(record)
        return records

    def rewind(self, rounds: int) -> None:
        """Remove the records after the checkpoint: a resumed run plays those rounds again."""
        kept = [json.dumps(record) for record in self.read_metrics() if record["round"] <= rounds]
        _replace(self.metrics, "".join(line + "\n" for line in kept))

    def saved_rounds(self) -> dict[int, Path]:
        """Return the checkpoints by their round, the oldest first."""
        paths = {path.stem.removeprefix("round-"): path for path in self.checkpoints.glob("round-*.npz")}
        return dict(sorted((int(number), path) for number, path in paths.items() if _ROUND.fullmatch(number)))

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the description of the last checkpoint; both are empty if there is none yet."""
        saved = self.saved_rounds()
        return checkpoints.load(saved[max(saved)]) if saved else ({}, {})

    def save_weights(
        self, learned: Mapping[str, Array], about: Mapping[str, Any], best: Mapping[str, Array] | None = None
    ) -> None:
        """Save the last weights, and the best ones if given: a matrix per part, with a row per agent or one shared row.

        They are plain npz files, readable without fedrl.
        """
        checkpoints.save(self.weights, learned, about)
        if best is not None:
            checkpoints.save(self.best, best, about)

    def save_checkpoint(
        self, arrays: Mapping[str, Array], meta: Mapping[str, Any], returns: Mapping[int, float], keep: int
    ) -> None:
        """Save a checkpoint; the last ``keep`` stay, and the one after the round with the best return."""
        self.checkpoints.mkdir(exist_ok=True)
        checkpoints.save(self.checkpoints / f"round-{meta['round']:06d}.npz", arrays, meta)
        saved = self.saved_rounds()
        best = max(saved, key=lambda number: (returns.get(number, -math.inf), number))
        for number in list(saved)[:-keep]:
            if number != best:
                saved[number].unlink()


def _clean(value: Any) -> Any:
    """Return a value for JSON, which has no NaN: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(path: Path) -> str:
    """Return the text of a file; a file that cannot be read is a ``Mistake``."""
    try:
        if not path.is_file():  # a device never ends, and a pipe waits
            raise OSError("it is not a regular file")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from None


def _own(path: Path, mode: str) -> IO[str]:
    """Open a file of a run for writing; never follows a link."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def _link_in(path: Path) -> Path | None:
    """Return a link in a run's directory, if there is one; links of Weights & Biases are ignored."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (path_in := Path(folder, name)).is_symlink():
                return path_in
        if "wandb" in folders:
            folders.remove("wandb")
    return None


def _replace(path: Path, text: str) -> None:
    """Write a file beside and move it into place: a crash leaves either the old or the new one, complete."""
    beside = path.with_name(f".{path.name}.new")
    with _own(beside, "w") as file:
        file.write(text)
    beside.replace(path)


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file as a table; a file that cannot be read is a ``Mistake``."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise Mistake(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise Mistake(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise Mistake(f"{path} is nested too deeply") from None
