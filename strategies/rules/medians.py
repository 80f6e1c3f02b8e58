"""Rules by the order of the entries of a column, and the geometric median."""

from __future__ import annotations

import numpy as np

from strategies.rules.geometry import F32, Cloud
from strategies.rules.rule import Verdict, enough


def median(rows: F32, f: int = 0) -> Verdict:
    """The median of every column (Yin 2018); of an even number, the mean of the middle two."""
    enough("median", len(rows), f)
    return Verdict(Cloud(rows).centre, np.arange(len(rows)), {})


def trimmed_mean(rows: F32, f: int) -> Verdict:
    """Of every column, the mean of what is left without the f smallest and the f largest (Yin 2018)."""
    enough("trimmed-mean", len(rows), f)
    return Verdict(Cloud(rows).sorted_mean(f, len(rows) - f), np.arange(len(rows)), {"trimmed": f})


def geometric_median(rows: F32, f: int = 0, steps: int = 100, smoothing: float = 1e-6) -> Verdict:
    """The point with the smallest sum of distances, by Weiszfeld's iteration, smoothed (Pillutla 2019).

    The point is z = sum_i a_i x_i all the way, and with the products around a centre, |x_i - z|² = g_ii - 2 (G a)_i +
    a G a: a step costs n² and not n d. It begins at the median of every column, which no attacker
    can move far. Distances below nu count as nu, a share of their median, so that the rule works alike in any unit.
    """
    enough("geometric-median", len(rows), f)
    cloud = Cloud(rows)
    G = cloud.gram()
    squared = lengths = np.diag(G)
    nu = smoothing * float(np.median(np.sqrt(lengths)))
    if nu == 0:  # more than half of the rows are the same, and that is the geometric median
        return Verdict(cloud.centre, np.arange(len(rows)), {"steps": 0})
    a, moved = np.zeros(len(rows)), 0.0
    for _ in range(steps):
        before = a
        a = 1 / np.maximum(nu, np.sqrt(np.maximum(squared, 0)))
        a /= a.sum()
        Ga = G @ a
        squared = lengths - 2 * Ga + a @ Ga
        moved = float(np.abs(a - before).max())
    return Verdict(cloud.mix(a), np.arange(len(rows)), {"steps": steps, "moved": moved, "nu": nu})
