"""The keeper saves a run while it goes on: checkpoints, the last and the best weights, and extra weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from core.rows import Array
from runs import checkpoints, figures
from runs.directory import RunDirectory


class Kept(Protocol):
    """A run, as the keeper uses it."""

    def learned(self) -> dict[str, Array]:
        """Return the weights: one row for all agents, or a row per agent where each has its own; nothing where agents
        do not send theirs."""

    def extra_weights(self) -> Mapping[str, Mapping[str, Array]]:
        """Return extra weights to save, each in a file of its name."""

    def snapshot(self) -> tuple[Mapping[str, Array], Mapping[str, Any]]:
        """Return everything that a resume needs, except the round and the seconds."""


class Keeper:
    """Saves a run after the rounds in which a checkpoint is due, and on request."""

    def __init__(self, directory: RunDirectory, run: Kept, keep: int, about: Mapping[str, Any]) -> None:
        """``keep`` is the number of checkpoints that stay, ``about`` a description that is saved with weights."""
        self.directory, self.run, self.keep, self.about = directory, run, keep, about
        self.returns = {record["round"]: figures.score(record) for record in directory.read_metrics()}
        self._best: dict[str, Array] | None = None
        self._last: Mapping[str, Any] | None = None
        self._saved = False

    def after(self, record: Mapping[str, Any], due: bool) -> None:
        """Record the end of a round; ``due``: save a checkpoint as well."""
        value = figures.score(record)
        if value > max(self.returns.values(), default=-np.inf) and (learned := self.run.learned()):
            self._best = {name: array.copy() for name, array in learned.items()}
        self.returns[record["round"]] = value
        self._last, self._saved = record, False
        if due:
            self.save()

    def save(self, changed: bool = False) -> None:
        """Save a checkpoint of the last round, unless it is saved; ``changed``: the weights have changed since then."""
        if self._last is None or (self._saved and not changed):
            return
        arrays, facts = self.run.snapshot()
        meta = {"round": self._last["round"], "wall_s": self._last["wall_s"], **facts}
        self.directory.save_checkpoint(arrays, meta, self.returns, self.keep)
        if learned := self.run.learned():
            self.directory.save_weights(learned, self.about, self._best)
        for name, weights in self.run.extra_weights().items():
            checkpoints.save(self.directory.path / f"{name}.npz", weights, self.about)
        self._best, self._saved = None, True
