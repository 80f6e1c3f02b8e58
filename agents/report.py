"""What a stretch of training reports: steps, updates, finished episodes, metrics, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.rows import Rows

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Episode(NamedTuple):
    """A finished training episode of one agent: its return, its length, and the agent's step count at its end."""

    agent: int
    total: float
    length: int
    at: int


class Bounds(NamedTuple):
    """Limits of the work of one agent: the fewest and the most environment steps, and the most updates."""

    fewest: int
    most: int
    updates: int


@dataclass
class Report:
    """The work of a stretch of training. Arrays have one entry per agent, (K,)."""

    steps: NDArray[np.int64]
    updates: NDArray[np.int64]
    episodes: list[Episode] = field(default_factory=list)
    metrics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    acting_s: float = 0.0
    learning_s: float = 0.0

    @contextmanager
    def acting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.acting_s += time.perf_counter() - begin

    @contextmanager
    def learning(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.learning_s += time.perf_counter() - begin


class Meter(Rows):
    """Adds up the returns of the episodes in progress."""

    ROWS = ("total", "length")

    def __init__(self, agents: int, copies: int) -> None:
        self.total = np.zeros((agents, copies))
        self.length = np.zeros((agents, copies), np.int64)

    def add(self, reward: F32, ended: Bools, at: NDArray[np.int64], report: Report) -> None:
        """Count T steps of every copy, (T, K, n), at whose end the agents are ``at``; report episodes that ended."""
        T, _, n = reward.shape
        for t, k, total, length in _ended(reward, ended, self.total, self.length):
            report.episodes.append(Episode(int(k), total, int(length), int(at[k]) - (T - 1 - int(t)) * n))

    def clear(self) -> None:
        self.total[...] = 0.0
        self.length[...] = 0


@njit(cache=True)
def _ended(reward, ended, total, length):  # type: ignore[no-untyped-def]
    found = [(0, 0, 0.0, 0) for _ in range(0)]
    for t in range(reward.shape[0]):
        for k in range(reward.shape[1]):
            for i in range(reward.shape[2]):
                total[k, i] += reward[t, k, i]
                length[k, i] += 1
                if ended[t, k, i]:
                    found.append((t, k, total[k, i], length[k, i]))
                    total[k, i], length[k, i] = 0.0, 0
    return found


def merge(whole: Report, rows: NDArray[np.int64], part: Report, agents: int) -> None:
    """Merge the report of some agents into that of all. Metrics that the others did not measure are nan."""
    whole.steps[rows], whole.updates[rows] = part.steps, part.updates
    whole.episodes += [episode._replace(agent=int(rows[episode.agent])) for episode in part.episodes]
    for name, values in part.metrics.items():
        whole.metrics.setdefault(name, np.full(agents, np.nan))[rows] = values
    whole.acting_s += part.acting_s
    whole.learning_s += part.learning_s
