"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from core.errors import Mistake
from runs.figures import Records, bootstrap_band, interquartile_mean, series

PICTURES = (".png", ".pdf", ".svg")


def curves(path: Path, runs: Mapping[str, Records], title: str = "", metric: str = "return", x: str = "steps") -> None:
    """A metric of several runs: every agent thin, their interquartile mean thick with its 95% bootstrap band."""
    if path.suffix not in PICTURES:
        raise Mistake(f"a picture ends in {', '.join(PICTURES)}, not '{path.name}'")
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
