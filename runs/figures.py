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
    ordered = np.sort(values, axis=0)  # what was not measured sorts behind all that was
    cut = len(ordered) // 4
    measured = ordered[cut : len(ordered) - cut]
    some = np.isfinite(measured).any(axis=0)
    middle = np.full(measured.shape[1:], np.nan)
    middle[some] = np.nanmean(measured[:, some], axis=0)
    return middle


def bootstrap_band(values: F64, level: float = 0.95, draws: int = 1000) -> tuple[F64, F64]:
    """The band that holds ``level`` of the interquartile means of resampled rows."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(values), size=(draws, len(values)))
    means = np.stack([interquartile_mean(values[pick]) for pick in picks])
    band = np.full((2, *means.shape[1:]), np.nan)
    some = np.isfinite(means).any(axis=0)
    band[:, some] = np.nanquantile(means[:, some], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return band[0], band[1]


def series(records: Records, metric: str) -> F64:
    """(agents, rounds) of a metric; nan where it was not measured."""
    known = sorted({name for record in records for name, value in record.items() if isinstance(value, list)})
    if metric not in known:
        raise Mistake(f"the run measured no '{metric}' (it has: {', '.join(known)})")
    agents = max(len(record.get(metric, ())) for record in records)
    values = np.full((agents, len(records)), np.nan)
    for at, record in enumerate(records):
        found = record.get(metric, ())
        values[: len(found), at] = [np.nan if value is None else value for value in found]
    return values


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


def mean_return(record: Mapping[str, Any]) -> float:
    """The mean over the agents that were judged; minus infinity where nobody was."""
    judged = [value for value in record["return"] if value is not None and np.isfinite(value)]
    return float(np.mean(judged)) if judged else -np.inf


def summary(records: Records) -> dict[str, Any]:
    """What a run comes to."""
    if not records:
        return {"rounds": 0, "env_steps": 0, "final_return": None, "best_return": None, "wall_s": 0.0}
    returns = [value for value in map(mean_return, records) if np.isfinite(value)]
    return {
        "rounds": records[-1]["round"],
        "env_steps": sum(records[-1]["steps"]),
        "final_return": returns[-1] if returns else None,
        "best_return": max(returns, default=None),
        "bytes_up": sum(sum(record["bytes_up"]) for record in records),
        "bytes_down": sum(sum(record["bytes_down"]) for record in records),
        "missed": sum(sum(record["missed"]) for record in records),
        "refused": sum(sum(record["refused"]) for record in records),
        "wall_s": records[-1]["wall_s"],
    }
