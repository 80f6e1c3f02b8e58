"""Krum and the rules made from it."""

from __future__ import annotations

import numpy as np

from strategies.rules.geometry import F32, F64, Cloud
from strategies.rules.kernels import krum_rounds
from strategies.rules.means import mean_of
from strategies.rules.rule import Verdict, enough


def krum(rows: F32, f: int) -> Verdict:
    """The row with the smallest sum of squared distances to the n - f - 2 nearest others (Blanchard 2017)."""
    return _krum("krum", rows, f, 1)


def multi_krum(rows: F32, f: int, keep: int = 0) -> Verdict:
    """The mean of the ``keep`` rows (n - f for 0) that Krum finds best (Blanchard 2017)."""
    enough("multi-krum", len(rows), f)
    return _krum("multi-krum", rows, f, min(keep or len(rows) - f, len(rows) - f))


def _krum(name: str, rows: F32, f: int, keep: int) -> Verdict:
    enough(name, len(rows), f)
    cloud = Cloud(rows)
    squared = cloud.squared()
    np.fill_diagonal(squared, np.inf)  # of others, so never of itself
    scores: F64 = np.sort(squared, axis=1)[:, : len(rows) - f - 2].sum(axis=1)
    best = np.argsort(scores, kind="stable")[:keep]
    return mean_of(cloud, best, {"score": float(scores[best[0]])})


def bulyan(rows: F32, f: int) -> Verdict:
    """Krum chooses n - 2f rows, one after the other; then of every column the mean of the n - 4f nearest to its median
    (El Mhamdi 2018).

    Krum's sum over the r - f - 2 nearest of r runs out of rows before the last choices, which then go by the nearest.
    """
    enough("bulyan", len(rows), f)
    n, cloud = len(rows), Cloud(rows)
    squared = cloud.squared()
    chosen = np.sort(krum_rounds(squared, np.argsort(squared, axis=1, kind="stable"), n - 2 * f, f))
    return Verdict(cloud.middle_mean(chosen, n - 4 * f), cloud.names(chosen), {"chosen": len(chosen)})
