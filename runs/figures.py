"""Figures of runs: over the agents of one run, and over the seeds of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake

F64 = NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]


def interquartile_mean(values: F64) -> F64:
    """Return the mean of the middle half over axis 0; the mean of all if there are fewer than four."""
    ordered = np.sort(values, axis=0)  # NaN (not measured) sorts last
    cut = len(ordered) // 4
    measured = ordered[cut : len(ordered) - cut]
    any_measured = np.isfinite(measured).any(axis=0)
    middle = np.full(measured.shape[1:], np.nan)
    middle[any_measured] = np.nanmean(measured[:, any_measured], axis=0)
    return middle


def plain_mean(values: F64) -> F64:
    """Return the mean over axis 0 of the values that were measured."""
    measured, means = np.isfinite(values).any(axis=0), np.full(values.shape[1:], np.nan)
    means[measured] = np.nanmean(values[:, measured], axis=0)
    return means


def plain_median(values: F64) -> F64:
    """Return the median over axis 0 of the values that were measured."""
    measured, medians = np.isfinite(values).any(axis=0), np.full(values.shape[1:], np.nan)
    medians[measured] = np.nanmedian(values[:, measured], axis=0)
    return medians


def bootstrap_band(
    values: F64, level: float = 0.95, draws: int = 1000, middle: Callable[[F64], F64] = interquartile_mean
) -> tuple[F64, F64]:
    """Return the bootstrap band that holds ``level`` of the middles (interquartile means) of resampled rows."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(values), size=(draws, len(values)))
    means = np.stack([middle(values[pick]) for pick in picks])
    band = np.full((2, *means.shape[1:]), np.nan)
    measured = np.isfinite(means).any(axis=0)
    band[:, measured] = np.nanquantile(means[:, measured], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return band[0], band[1]


def series(records: Records, metric: str) -> F64:
    """Return a metric as (agents, rounds); NaN where it was not measured."""
    known = sorted({name for record in records for name, value in record.items() if isinstance(value, list)})
    if metric not in known:
        raise Mistake(f"the run has no metric '{metric}': choose one of {', '.join(known)}")
    agents = max(len(record.get(metric, ())) for record in records)
    values = np.full((agents, len(records)), np.nan)
    for at, record in enumerate(records):
        row = record.get(metric, ())
        values[: len(row), at] = [np.nan if value is None else value for value in row]
    return values


@dataclass(frozen=True)
class Curve:
    """A line of a picture: values (agents or seeds, points) of a metric, and their positions."""

    at: F64
    rows: F64
    of: str  # what a row is: agents or seeds
    furthest: float  # where the longest run ends; the rows end where the shortest run does


def curve(runs: Sequence[Records], metric: str = "return", x: str = "steps") -> Curve:
    """Return the curve of one run, with a row per agent, or of several, with a row per run (its mean over agents).

    Runs are compared at common positions: all positions of any run between the last begin and the first end, or evenly
    spaced ones if these are many. A run is interpolated linearly between its own positions.
    """
    lines = [_measured(records, metric, x) for records in runs]
    furthest = max(float(at[-1]) for at, _ in lines)
    if len(lines) == 1:
        return Curve(*lines[0], "agents", furthest)
    at = _common([at for at, _ in lines])
    means = [np.interp(at, own, np.nanmean(values, axis=0)) for own, values in lines]
    return Curve(at, np.stack(means), "seeds", furthest)


def _measured(records: Records, metric: str, x: str) -> tuple[F64, F64]:
    """Return positions and values (agents, points) of the rounds in which any agent measured the metric."""
    values = series(records, metric)
    measured = np.isfinite(values).any(axis=0)
    if not measured.any():
        raise Mistake(f"the run has no '{metric}' yet: no agent measured it in {len(records)} rounds")
    return positions(records, x)[measured], values[:, measured]


def _common(own: Sequence[F64], most: int = 200) -> F64:
    """Return the positions at which runs are compared."""
    low, high = max(at[0] for at in own), min(at[-1] for at in own)
    if low > high:  # no overlap: compare at one point between them, where each has its nearest value
        return np.array([(low + high) / 2])
    every = np.unique(np.concatenate(own))
    inside = every[(every >= low) & (every <= high)]
    return inside if len(inside) <= most else np.linspace(low, high, most)


def positions(records: Records, x: str) -> F64:
    """Return the position of every record: mean steps or trajectories of an agent, bytes of all agents, or seconds."""
    if x == "wall":
        return np.array([record["wall_s"] for record in records])
    if x == "bytes":
        sent: F64 = np.nansum(series(records, "bytes_up") + series(records, "bytes_down"), axis=0)
        return np.cumsum(sent)
    counts = series(records, x)
    counts[:, 0] = np.nan_to_num(counts[:, 0])
    # Counts only grow, so an agent that did not report keeps its last count.
    last: F64 = np.fmax.accumulate(counts, axis=1)
    return np.asarray(np.mean(last, axis=0))


def spread(values: F64) -> dict[str, float]:
    """Return mean, standard deviation (of these values, not of their population), worst and best."""
    figures = {"mean": values.mean(), "std": values.std(), "worst": values.min(), "best": values.max()}
    return {name: float(figure) for name, figure in figures.items()}


def final(records: Records) -> dict[str, Any]:
    """Return the last evaluation of a run: the return of every agent, and the spread of those that were evaluated."""
    returns = series(records, "return")
    evaluated = np.flatnonzero(np.isfinite(returns).any(axis=0))
    if not len(evaluated):
        raise Mistake("the run has not evaluated its agents yet")
    last = returns[:, evaluated[-1]]
    return {
        "agents": len(last),
        "steps": int(np.mean(records[-1]["steps"])),
        **{name: round(value, 1) for name, value in spread(last[np.isfinite(last)]).items()},
        "returns": [round(float(value), 1) if np.isfinite(value) else None for value in last],
        "wall_s": records[-1]["wall_s"],
    }


def over_seeds(runs: Mapping[str, Records]) -> dict[str, Any]:
    """Return the spread of the final returns of runs that differ only in their seed, and the steps and seconds of all.

    A run without an evaluation counts only for steps and seconds. ``low`` and ``high`` are the 95% band of the
    interquartile mean, ``mean_low`` and ``mean_high`` the 90% band of the mean.
    """
    finals = {seed: final_return(records) for seed, records in runs.items()}
    known = {seed: value for seed, value in finals.items() if value is not None}
    found: dict[str, Any] = {"seeds": len(known)}
    if known:
        values = np.array(list(known.values()))
        low, high = bootstrap_band(values[:, None])
        middle = {"iqm": interquartile_mean(values[:, None])[0], "low": low[0], "high": high[0]}
        low, high = bootstrap_band(values[:, None], 0.9, middle=plain_mean)
        middle |= {"mean_low": low[0], "mean_high": high[0]}
        found |= {name: round(float(value), 4) for name, value in (spread(values) | middle).items()}
        found["worst_seed"] = min(known, key=lambda seed: known[seed])
        lowest = np.array([worst for worst in map(worst_agent, runs.values()) if worst is not None])
        found |= {"worst_agent": round(float(lowest.mean()), 4), "worst_agent_std": round(float(lowest.std()), 4)}
    return found | {
        "env_steps": sum(sum(records[-1]["steps"]) for records in runs.values()),
        "wall_s": round(sum(records[-1]["wall_s"] for records in runs.values()), 3),
        "returns": {seed: None if value is None else round(value, 4) for seed, value in finals.items()},
    }


def reach(runs: Sequence[Records], value: float, x: str) -> dict[str, Any]:
    """Return where on ``x`` the mean of the runs, and each run, first reaches this return; None if never."""
    lines = [_measured(records, "return", x) for records in runs]
    each = [_first(at, np.nanmean(values, axis=0), value) for at, values in lines]
    joint = curve(runs, x=x)
    mean = each[0] if len(runs) == 1 else _first(joint.at, plain_mean(joint.rows), value)
    return {"value": value, "x": x, "mean": mean, "each": each}


def _first(at: F64, values: F64, value: float) -> float | None:
    reached = np.flatnonzero(values >= value)
    return round(float(at[reached[0]]), 1) if len(reached) else None


def mean_return(record: Mapping[str, Any]) -> float:
    """Return the mean over the agents that were evaluated; minus infinity if none was."""
    returns = [value for value in record["return"] if value is not None and np.isfinite(value)]
    return float(np.mean(returns)) if returns else -np.inf


def median_return(record: Mapping[str, Any], metric: str = "return") -> float:
    """Return the median over the agents that were evaluated, which a minority cannot move; NaN if none was."""
    known = [value for value in record[metric] if value is not None and np.isfinite(value)]
    return float(np.median(known)) if known else math.nan


def score(record: Mapping[str, Any]) -> float:
    """Return the figure by which the best round is chosen; minus infinity if no agent was evaluated.

    It is the server's own evaluation where it has one, and the median of the agents' reports elsewhere.
    """
    value = record["score"] if "score" in record else median_return(record)
    return -np.inf if value is None or not np.isfinite(value) else float(value)


def final_return(records: Records) -> float | None:
    """Return the mean return of the last evaluation; None if there was none."""
    returns = [value for value in map(mean_return, records) if np.isfinite(value)]
    return returns[-1] if returns else None


def worst_agent(records: Records) -> float | None:
    """Return the lowest return of any agent at the last evaluation; None if there was none."""
    evaluated = [record["return"] for record in records if np.isfinite(mean_return(record))]
    return min(value for value in evaluated[-1] if value is not None) if evaluated else None


def summary(records: Records) -> dict[str, Any]:
    """Return the summary of a run: rounds, steps, returns, bytes, refusals, seconds."""
    if not records:
        return {"rounds": 0, "env_steps": 0, "final_return": None, "best_return": None, "wall_s": 0.0}
    medians = [value for value in map(median_return, records) if np.isfinite(value)]
    scores = [value for value in map(score, records) if np.isfinite(value)]
    return {
        "rounds": records[-1]["round"],
        "env_steps": sum(records[-1]["steps"]),
        "final_return": final_return(records),
        "median_return": medians[-1] if medians else None,
        "worst_agent": worst_agent(records),
        "best_return": max(scores, default=None),
        "bytes_up": sum(sum(record["bytes_up"]) for record in records),
        "bytes_down": sum(sum(record["bytes_down"]) for record in records),
        "missed": sum(sum(record["missed"]) for record in records),
        "refused": sum(sum(record["refused"]) for record in records),
        "wall_s": records[-1]["wall_s"],
    }
