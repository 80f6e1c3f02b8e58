"""Pictures of agents beside each other: who learns from whom, how far apart they are, who does well in whose world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.errors import Mistake
from core.outputs import check_file
from runs.figures import F64, Records, positions, series
from runs.plots import PICTURES

# What an agent is told of agent 3's policy is the metric kl.3, of the star's average kl.average.
KL = "kl."


def matrix(path: Path, C: F64, title: str = "") -> None:
    """The communication matrix: a row per agent, and in it whom it listens to."""
    plt = _pyplot(path)
    size = min(max(3.5, 0.45 * len(C) + 1.5), 12)
    figure, axes = plt.subplots(figsize=(size + 1, size), layout="constrained")
    shown = axes.imshow(np.where(C > 0, C, np.nan), cmap="Blues", vmin=0, vmax=max(C.max(initial=0.0), 1e-9))
    ticks = range(0, len(C), max(1, len(C) // 20))
    axes.set(xticks=ticks, yticks=ticks, xlabel="towards agent", ylabel="agent is pulled", title=title)
    if len(C) <= 12:
        for k, j in np.argwhere(C > 0):
            dark = C[k, j] > 0.6 * C.max()
            axes.text(j, k, f"{C[k, j]:.3g}", ha="center", va="center", color="white" if dark else "black")
    figure.colorbar(shown, label="weight")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def crossing(path: Path, found: Mapping[str, Sequence[float]], title: str = "") -> None:
    """How each policy does in each world: a row per policy."""
    plt = _pyplot(path)
    values = np.array(list(found.values()))
    policies, worlds = values.shape
    figure, axes = plt.subplots(figsize=(1.5 + 0.9 * worlds, 1.5 + 0.5 * policies), layout="constrained")
    shown = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_yticks(range(policies), list(found))
    axes.set(xticks=range(worlds), xlabel="in the world of agent", ylabel="policy of", title=title)
    dark = (values.max() + values.min()) / 2
    if worlds <= 12:
        for i, j in np.ndindex(policies, worlds):
            colour = "white" if values[i, j] < dark else "black"
            axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", color=colour)
    figure.colorbar(shown, label="return")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def distances(records: Records) -> tuple[list[tuple[int, str]], F64, F64]:
    """The pairs (agent, towards whom) whose KL was measured, the steps at which it was, and the KLs (pairs, steps)."""
    names = sorted({name for record in records for name in record if name.startswith(KL)}, key=_order)
    if not names:
        raise Mistake(f"the run measured no KL between agents (no '{KL}...' among its metrics)")
    every = {name: series(records, name) for name in names}
    pairs = [(k, name) for name in names for k in np.flatnonzero(np.isfinite(every[name]).any(axis=1)).tolist()]
    rows = np.stack([every[name][k] for k, name in pairs])
    some = np.isfinite(rows).any(axis=0)
    return [(k, name.removeprefix(KL)) for k, name in pairs], positions(records, "steps")[some], rows[:, some]


def heat(path: Path, records: Records, C: F64 | None = None, title: str = "") -> None:
    """KL of every measured pair over time, a row each; those that are linked come first, above the line."""
    from matplotlib.colors import LogNorm

    plt = _pyplot(path)
    pairs, at, rows = distances(records)
    linked = [C is None or not j.isdigit() or C[k, int(j)] > 0 for k, j in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (not linked[i], pairs[i][0], _order(pairs[i][1])))
    rows = np.maximum(rows[order], 1e-5)
    figure, axes = plt.subplots(figsize=(8, min(max(2.5, 0.28 * len(pairs) + 1.2), 14)), layout="constrained")
    edges = np.concatenate([at, at[-1:] + (at[-1] - at[-2] if len(at) > 1 else 1)])
    norm = LogNorm(float(np.nanmin(rows)), max(float(np.nanmax(rows)), 1.1e-5))
    shown = axes.pcolormesh(edges, np.arange(len(rows) + 1), rows, norm=norm, cmap="viridis")
    if 0 < sum(linked) < len(rows):
        axes.axhline(sum(linked), color="red", linewidth=2)
    words = [f"{pairs[i][0]} to {pairs[i][1]}" for i in order]
    step = max(1, len(rows) // 40)
    axes.set_yticks(np.arange(len(rows))[::step] + 0.5, words[::step])
    axes.invert_yaxis()
    axes.set(xlabel="environment steps per agent", title=title)
    figure.colorbar(shown, label="KL at the exchange")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _order(name: str) -> tuple[int, str]:
    """10 comes after 9, and a name after all numbers."""
    number = name.removeprefix(KL)
    return (int(number), "") if number.isdigit() else (10**9, number)


def _pyplot(path: Path):  # type: ignore[no-untyped-def]
    check_file(path, PICTURES, "the picture")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
