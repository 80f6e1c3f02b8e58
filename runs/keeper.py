"""What a run leaves while it goes on: checkpoints, the last weights and the best, and other weights worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from core.rows import Array
from runs import checkpoints, figures
from runs.directory import RunDirectory


class Kept(Protocol):
    """A run as its keeper sees it."""

    def learned(self) -> dict[str, Array]:
        """One row for everybody, or a row per agent where agents keep weights of their own; nothing where they keep
        them to themselves."""

    def extra_weights(self) -> Mapping[str, Mapping[str, Array]]:
        """Other weights that a run leaves, each as a file of its name."""

    def snapshot(self) -> tuple[Mapping[str, Array], Mapping[str, Any]]:
        """Everything that a resume needs, besides the round and the seconds."""


class Keeper:
    """Saves a run after the rounds for which it is due, and whenever asked to."""

    def __init__(self, directory: RunDirectory, run: Kept, keep: int, about: Mapping[str, Any]) -> None:
        """``keep`` checkpoints stay; ``about`` is what weights say of themselves."""
        self.directory, self.run, self.keep, self.about = directory, run, keep, about
        self.returns = {record["round"]: figures.score(record) for record in directory.read_metrics()}
        self._best: dict[str, Array] | None = None
        self._last: Mapping[str, Any] | None = None
        self._saved = False

    def after(self, record: Mapping[str, Any], due: bool) -> None:
        """A round is over; ``due``: with a checkpoint."""
        value = figures.score(record)
        if value > max(self.returns.values(), default=-np.inf) and (learned := self.run.learned()):
            self._best = {name: array.copy() for name, array in learned.items()}
        self.returns[record["round"]] = value
        self._last, self._saved = record, False
        if due:
            self.save()

    def save(self, changed: bool = False) -> None:
        """A checkpoint of the last round, unless there is one; ``changed``: what is kept is another since then."""
        if self._last is None or (self._saved and not changed):
            return
        arrays, known = self.run.snapshot()
        meta = {"round": self._last["round"], "wall_s": self._last["wall_s"], **known}
        self.directory.save_checkpoint(arrays, meta, self.returns, self.keep)
        if learned := self.run.learned():
            self.directory.save_weights(learned, self.about, self._best)
        for name, kept in self.run.extra_weights().items():
            checkpoints.save(self.directory.path / f"{name}.npz", kept, self.about)
        self._best, self._saved = None, True
