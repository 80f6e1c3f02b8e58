"""Pictures of runs: curves with an interquartile mean and a bootstrap band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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


def curves(path: Path, runs: Mapping[str, Records], title: str = "", metric: str = "return", x: str = "steps") -> None:
    """A metric of several runs: every agent thin, their interquartile mean thick with its 95% bootstrap band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for index, (name, records) in enumerate(runs.items()):
        along = np.array([np.mean(record[x]) for record in records])
        values, colour = series(records, metric), f"C{index}"
        for row in values:
            axes.plot(along, row, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(along, interquartile_mean(values), color=colour, linewidth=2, label=f"{name} ({len(values)} agents)")
        if len(values) > 1:
            low, high = bootstrap_band(values)
            axes.fill_between(along, low, high, color=colour, alpha=0.2, linewidth=0)
    label = {"steps": "environment steps per agent", "wall_s": "seconds", "trajectories": "trajectories per agent"}
    axes.set(title=title, xlabel=label[x], ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", title="interquartile mean, 95% bootstrap")
    figure.savefig(path, dpi=120)
    plt.close(figure)
