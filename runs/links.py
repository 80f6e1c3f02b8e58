"""Pictures of the relations between agents: the communication matrix, KL over time, returns in each other's worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.errors import Mistake
from core.outputs import check_file
from runs.figures import F64, Records, positions, series
from runs.plots import PICTURES

# The metric of an agent's KL to agent 3 is kl.3, that to the average of a star kl.average.
KL = "kl."


def matrix(path: Path, C: F64, title: str = "") -> None:
    """Draw the communication matrix: a row per agent, with the agents that pull it."""
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


def crossing(path: Path, returns: Mapping[str, Sequence[float]], title: str = "") -> None:
    """Draw the return of each policy in each world: a row per policy."""
    plt = _pyplot(path)
    values = np.array(list(returns.values()))
    policies, worlds = values.shape
    figure, axes = plt.subplots(figsize=(1.5 + 0.9 * worlds, 1.5 + 0.5 * policies), layout="constrained")
    shown = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_yticks(range(policies), list(returns))
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
    """Return the pairs (agent, other) whose KL was measured, the steps, and the KLs (pairs, steps)."""
    names = sorted({name for record in records for name in record if name.startswith(KL)}, key=_order)
    if not names:
        raise Mistake(f"the run measured no KL between agents (no '{KL}...' among its metrics)")
    by_name = {name: series(records, name) for name in names}
    pairs = [(k, name) for name in names for k in np.flatnonzero(np.isfinite(by_name[name]).any(axis=1)).tolist()]
    rows = np.stack([by_name[name][k] for k, name in pairs])
    measured = np.isfinite(rows).any(axis=0)
    return [(k, name.removeprefix(KL)) for k, name in pairs], positions(records, "steps")[measured], rows[:, measured]


def heat(path: Path, records: Records, C: F64 | None = None, title: str = "") -> None:
    """Draw the KL of every measured pair over time, a row each. Pairs with an edge come first, above the line."""
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
    names = [f"{pairs[i][0]} to {pairs[i][1]}" for i in order]
    step = max(1, len(rows) // 40)
    axes.set_yticks(np.arange(len(rows))[::step] + 0.5, names[::step])
    axes.invert_yaxis()
    axes.set(xlabel="environment steps per agent", title=title)
    figure.colorbar(shown, label="KL at the exchange")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _order(name: str) -> tuple[int, str]:
    """Return a sort key: numbers by value, then names."""
    number = name.removeprefix(KL)
    return (int(number), "") if number.isdigit() else (10**9, number)


def _pyplot(path: Path):  # type: ignore[no-untyped-def]
    """Return pyplot without a display, after checking that the picture can be written."""
    check_file(path, PICTURES, "the picture")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
