"""What a run comes to, in figures: over its agents, which are its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake

F64 = NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]


def interquartile_mean(values: F64) -> F64:
    """The mean of the middle half over axis 0 (all of it when there are fewer than four)."""
    ordered = np.sort(values, axis=0)
    cut = len(ordered) // 4
    middle: F64 = ordered[cut : len(ordered) - cut].mean(axis=0)
    return middle


def bootstrap_band(values: F64, level: float = 0.95, draws: int = 1000) -> tuple[F64, F64]:
    """The band that holds ``level`` of the interquartile means of resampled rows."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(values), size=(draws, len(values)))
    means = np.stack([interquartile_mean(values[pick]) for pick in picks])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def series(records: Records, metric: str) -> F64:
    """(agents, rounds) of a metric; nan where it was not measured."""
    if any(metric not in record for record in records):
        known = sorted(name for name, value in records[0].items() if isinstance(value, list))
        raise Mistake(f"the run measured no '{metric}' (it has: {', '.join(known)})")
    return np.array([[np.nan if v is None else v for v in record[metric]] for record in records], dtype=float).T


def final(records: Records) -> dict[str, Any]:
    """The last judged returns of a run: of every agent, and how they spread."""
    last = series(records, "return")[:, -1]
    return {
        "agents": len(last),
        "steps": int(np.mean(records[-1]["steps"])),
        "mean": round(float(np.mean(last)), 1),
        "std": round(float(np.std(last)), 1),
        "worst": round(float(np.min(last)), 1),
        "best": round(float(np.max(last)), 1),
        "returns": [round(float(value), 1) for value in last],
        "wall_s": records[-1]["wall_s"],
    }
