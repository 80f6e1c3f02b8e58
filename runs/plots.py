"""Pictures of runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from core.outputs import check_file
from runs.figures import Curve, Records, bootstrap_band, curve, interquartile_mean, plain_mean, plain_median

LONG = 45  # letters of a name; a legend of longer names would hide the curves
WIDE = 80  # letters of a line that fits below the curves
PICTURES = (".png", ".pdf", ".svg")
AXES = {
    "steps": "environment steps per agent",
    "trajectories": "trajectories per agent",
    "bytes": "bytes sent and received by all agents",
    "wall": "seconds",
}


def curves(path: Path, runs: Mapping[str, Records], title: str = "") -> None:
    """Draw the returns of single runs as the median over agents, which one dishonest report cannot move."""
    draw(path, {name: curve([records]) for name, records in runs.items()}, title, median=True)


def draw(
    path: Path,
    curves_by_name: Mapping[str, Curve],
    title: str = "",
    metric: str = "return",
    x: str = "steps",
    each: bool = False,
    mean: bool = False,
    median: bool = False,
) -> None:
    """Draw an interquartile mean per curve with its 95% bootstrap band, and agents as thin lines behind it.

    ``each``: seeds as thin lines, too. ``mean``: the mean with its 90% bootstrap band. ``median``: the median with its
    95% band.
    """
    check_file(path, PICTURES, "the picture")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    beneath = max(map(len, curves_by_name)) > LONG
    lines = 1
    many = plt.get_cmap("turbo")
    kind = "mean" if mean else "median" if median else "interquartile mean"
    middle = {"mean": plain_mean, "median": plain_median}.get(kind, interquartile_mean)
    level = 0.9 if mean else 0.95
    for index, (name, one) in enumerate(curves_by_name.items()):
        colour = f"C{index}" if len(curves_by_name) <= 10 else many(index / (len(curves_by_name) - 1))
        for row in one.rows if each or one.of == "agents" else ():
            axes.plot(one.at, row, color=colour, alpha=0.25, linewidth=0.8)
        # A single point needs a marker, as a line through it is invisible.
        marker, label = "o" if len(one.at) == 1 else "", f"{name} ({len(one.rows)} {one.of})"
        label = textwrap.fill(label, WIDE) if beneath else label
        lines += label.count("\n") + 1
        axes.plot(one.at, middle(one.rows), color=colour, linewidth=2, marker=marker, label=label)
        if len(one.rows) > 1:
            low, high = bootstrap_band(one.rows, level, middle=middle)
            axes.fill_between(one.at, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel=AXES[x], ylabel=metric)
    axes.grid(alpha=0.3)
    caption = f"{kind}, {level:.0%} bootstrap"
    size = None if len(curves_by_name) <= 5 else "x-small"
    if beneath:
        figure.set_figheight(4.5 + 0.25 * lines)
        figure.legend(loc="outside lower center", title=caption, fontsize=size or "small")
    else:
        axes.legend(loc="best", title=caption, fontsize=size)
    figure.savefig(path, dpi=120)
    plt.close(figure)
