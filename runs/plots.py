"""Pictures of runs: curves with an interquartile mean and a bootstrap band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


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


def curve(path: Path, records: Sequence[dict[str, Any]], title: str, metric: str = "return") -> None:
    """Return against environment steps per agent: every agent thin, their interquartile mean thick, with its band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x = np.array([np.mean(record["steps"]) for record in records])
    y = np.array([[np.nan if v is None else v for v in record[metric]] for record in records], dtype=float).T
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for row in y:
        axes.plot(x, row, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(x, interquartile_mean(y), color="tab:blue", linewidth=2, label=f"interquartile mean of {len(y)}")
    if len(y) > 1:
        low, high = bootstrap_band(y)
        axes.fill_between(x, low, high, color="tab:blue", alpha=0.2, linewidth=0, label="95% bootstrap")
    axes.set(title=title, xlabel="environment steps per agent", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=120)
    plt.close(figure)
