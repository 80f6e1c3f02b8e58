"""A run's directory: the resolved conf, a line of metrics per round, checkpoints, weights, the picture."""

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
_ROUND = re.compile(r"[0-9]{1,12}")  # as a checkpoint names it


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conf, self.metrics, self.checkpoints = path / "conf.toml", path / "metrics.jsonl", path / "checkpoints"
        self.weights, self.best, self.curve = path / "weights.npz", path / "best.npz", path / "curve.png"
        self.summary = path / "summary.json"
        self._name, self._stop, self._notes = path / "name", path / "stop", path / "events.log"
        self._word, self._lock, self._folders = path / "last-words.json", path / "lock", path / "worlds"

    @classmethod
    def create(cls, path: Path, conf: Mapping[str, Any]) -> RunDirectory:
        """Make the directory of a new run. A folder that holds anything is refused, so that nothing is lost."""
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
            # A name for life: directories move, and machines that hold its agents do not know them.
            run._name.write_text(f"{path.name.replace(' ', '-')}-{secrets.token_hex(4)}\n")
        except OSError as error:
            raise Failure(f"the run directory {path} could not be made: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        run = cls(path)
        if not run.conf.exists():
            raise Mistake(f"{path} holds no run (no {run.conf.name} in it)")
        if link := _link_in(path):
            raise Mistake(f"{link} is a link, and a run writes nowhere but into its own directory: put the file there")
        return run

    def write_conf(self, conf: Mapping[str, Any]) -> None:
        _replace(self.conf, tomli_w.dumps(dict(conf)))

    def read_conf(self) -> dict[str, Any]:
        return read_toml(self.conf)

    @property
    def name(self) -> str:
        """What the run is called on every machine."""
        return _text(self._name).strip() if self._name.exists() else self.path.name

    def keep_folders(self, folders: Sequence[str]) -> None:
        """Write down where the modules of the run's worlds were looked for, for whoever opens the run later."""
        self._folders.write_text("".join(f"{folder}\n" for folder in folders))

    def folders(self) -> list[Path]:
        """Where to look for the modules of the run's worlds: where they were when it began, and the working directory.

        None within the run itself: a run that somebody sent imports nothing that came with it.
        """
        kept = _text(self._folders).splitlines() if self._folders.exists() else []
        places = [Path(folder) for folder in kept if Path(folder).is_absolute()] + [Path.cwd()]
        return [place for place in places if not place.resolve().is_relative_to(self.path.resolve())]

    def ask_to_stop(self) -> None:
        """Whoever runs the rounds ends after the one in progress; it may be another process."""
        self._stop.touch()

    def stop_asked(self) -> bool:
        return self._stop.exists()

    def go_on(self) -> None:
        """Forget that the run was asked to stop, and why it ended."""
        for path in (self._stop, self._word):
            path.unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether a process was ever at work here."""
        return self._lock.exists()

    @contextmanager
    def held(self, seconds: float = 0.0) -> Iterator[None]:
        """Only one process at a time writes into a run; another is waited for so long, and then left alone."""
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

    def note(self, words: str) -> None:
        """Write down what happened: who joined, who was refused, for whom it waits."""
        with _own(self._notes, "a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {' '.join(words.split())}\n")

    def notes(self) -> list[str]:
        return _text(self._notes).splitlines() if self._notes.exists() else []

    def leave_word(self, error: Exception) -> None:
        """Say why the run ended, for the process that started it."""
        kind = "mistake" if isinstance(error, Mistake) else "failure"
        self._word.write_text(json.dumps({"kind": kind, "words": str(error)}))

    def raise_word(self) -> None:
        """Raise what the run's process said when it ended, if it said anything."""
        if self._word.exists():
            said = json.loads(_text(self._word))
            raise (Mistake if said["kind"] == "mistake" else Failure)(said["words"])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what the run came to."""
        _replace(self.summary, json.dumps(_clean(summary), indent=2) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        try:
            with _own(self.metrics, "a") as file:
                file.write(json.dumps(_clean(record)) + "\n")
        except OSError as error:
            raise Failure(f"{self.metrics} could not be written: {error.strerror or error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records so far; a line cut short by a crash ends them."""
        found: list[dict[str, Any]] = []
        if not self.metrics.exists():
            raise Mistake(f"{self.path} has no {self.metrics.name}: it is not a run, or was never begun")
        for number, line in enumerate(_text(self.metrics).splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                break
            except RecursionError:
                record = None
            if not isinstance(record, dict) or type(record.get("round")) is not int:
                raise Mistake(f"{self.metrics} is not of a run: line {number} is no record of a round")
            found.append(record)
        return found

    def rewind(self, rounds: int) -> None:
        """Forget what came after the checkpoint: a resumed run writes those rounds again."""
        kept = [json.dumps(record) for record in self.read_metrics() if record["round"] <= rounds]
        _replace(self.metrics, "".join(line + "\n" for line in kept))

    def saved_rounds(self) -> dict[int, Path]:
        """The checkpoints by the round after which they were made, the oldest first."""
        found = {path.stem.removeprefix("round-"): path for path in self.checkpoints.glob("round-*.npz")}
        return dict(sorted((int(number), path) for number, path in found.items() if _ROUND.fullmatch(number)))

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The last checkpoint's arrays and what is known about it; nothing where there is none yet."""
        saved = self.saved_rounds()
        return checkpoints.load(saved[max(saved)]) if saved else ({}, {})

    def save_weights(
        self, learned: Mapping[str, Array], about: Mapping[str, Any], best: Mapping[str, Array] | None = None
    ) -> None:
        """What was learned, and the best of it so far: a matrix per part with a row per agent, or one for everybody.

        Plain npz, readable without our code.
        """
        checkpoints.save(self.weights, learned, about)
        if best is not None:
            checkpoints.save(self.best, best, about)

    def save_checkpoint(
        self, arrays: Mapping[str, Array], meta: Mapping[str, Any], returns: Mapping[int, float], keep: int
    ) -> None:
        """One more checkpoint; the last ``keep`` stay, and the one after the round with the best return."""
        self.checkpoints.mkdir(exist_ok=True)
        checkpoints.save(self.checkpoints / f"round-{meta['round']:06d}.npz", arrays, meta)
        saved = self.saved_rounds()
        best = max(saved, key=lambda number: (returns.get(number, -math.inf), number))
        for number in list(saved)[:-keep]:
            if number != best:
                saved[number].unlink()


def _clean(value: Any) -> Any:
    """JSON has no nan: what was not measured is null."""
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(path: Path) -> str:
    """What one of our files says, or one clear sentence."""
    try:
        if not path.is_file():  # a device never ends, and a pipe waits
            raise OSError("it is no file")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from None


def _own(path: Path, mode: str) -> IO[str]:
    """A file of a run, to write into; never another that a link leads to."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def _link_in(path: Path) -> Path | None:
    """A link within a run's directory, if there is one; none is of our making (Weights & Biases makes some)."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (found := Path(folder, name)).is_symlink():
                return found
        if "wandb" in folders:
            folders.remove("wandb")
    return None


def _replace(path: Path, text: str) -> None:
    """Write beside and move into place: whatever happens meanwhile, one of the two is whole."""
    beside = path.with_name(f".{path.name}.new")
    with _own(beside, "w") as file:
        file.write(text)
    beside.replace(path)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table, or one clear sentence."""
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
