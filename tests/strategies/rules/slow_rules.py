"""The rules again, from their papers, one number at a time in float64: slow, and written to be compared with.

Where two choices are equally good, the row that stands first is taken; hand the rows over in the order of their bytes.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np

Row = list[float]
Found = tuple[Row, list[int]]


def square(x: Row, y: Row) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def distance(x: Row, y: Row) -> float:
    return math.sqrt(square(x, y))


def middle(rows: list[Row]) -> Row:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def average(rows: Sequence[Row], shares: Sequence[float] | None = None) -> Row:
    shares = shares or [1 / len(rows)] * len(rows)
    return [math.fsum(p * a for p, a in zip(shares, column, strict=True)) for column in zip(*rows, strict=True)]


def weighted_mean(rows: list[Row], weights: list[float]) -> Found:
    total = math.fsum(weights)
    shares = [w / total for w in weights] if total else None
    return average(rows, shares), list(range(len(rows)))


def mean(rows: list[Row]) -> Found:
    return average(rows), list(range(len(rows)))


def median(rows: list[Row]) -> Found:
    return middle(rows), list(range(len(rows)))


def trimmed_mean(rows: list[Row], f: int) -> Found:
    columns = [sorted(column)[f : len(rows) - f] for column in zip(*rows, strict=True)]
    return [statistics.fmean(column) for column in columns], list(range(len(rows)))


def scores(rows: list[Row], left: list[int], count: int) -> list[tuple[float, int]]:
    found = []
    for i in left:
        others = sorted(square(rows[i], rows[j]) for j in left if j != i)
        found.append((math.fsum(others[:count]), i))
    return found


def multi_krum(rows: list[Row], f: int, keep: int) -> Found:
    n = len(rows)
    kept = [i for _, i in sorted(scores(rows, list(range(n)), n - f - 2))[:keep]]
    return average([rows[i] for i in kept]), sorted(kept)


def bulyan(rows: list[Row], f: int) -> Found:
    left, chosen = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        _, best = min(scores(rows, left, max(len(left) - f - 2, 1)))
        left.remove(best)
        chosen.append(best)
    row = []
    for column in zip(*(rows[i] for i in chosen), strict=True):
        centre = statistics.median(column)
        nearest = sorted(column, key=lambda a: (abs(a - centre), a))
        row.append(statistics.fmean(nearest[: len(rows) - 4 * f]))
    return row, sorted(chosen)


def geometric_median(rows: list[Row], steps: int, smoothing: float) -> Found:
    z = middle(rows)
    nu = smoothing * statistics.median(distance(x, z) for x in rows)
    for _ in range(steps if nu else 0):
        shares = [1 / max(nu, distance(x, z)) for x in rows]
        z = average(rows, [a / math.fsum(shares) for a in shares])
    return z, list(range(len(rows)))


def centered_clipping(rows: list[Row], radius: float, steps: int) -> Found:
    v = middle(rows)
    for _ in range(steps):
        lengths = [distance(x, v) for x in rows]
        limit = radius or statistics.median(lengths)
        factors = [min(1.0, limit / length) if length else 1.0 for length in lengths]
        v = average([[b + c * (a - b) for a, b in zip(x, v, strict=True)] for c, x in zip(factors, rows, strict=True)])
    return v, list(range(len(rows)))


def norm_clipping(rows: list[Row], radius: float) -> Found:
    lengths = [distance(x, [0.0] * len(x)) for x in rows]
    limit = radius or statistics.median(lengths)
    factors = [min(1.0, limit / length) if length else 1.0 for length in lengths]
    return average([[c * a for a in x] for c, x in zip(factors, rows, strict=True)]), list(range(len(rows)))


def minimum_diameter(rows: list[Row], f: int) -> Found:
    """All choices, one after the other, those of rows near to the median first."""
    centre = middle(rows)
    ranked = sorted(range(len(rows)), key=lambda i: distance(rows[i], centre))
    apart = {(i, j): square(rows[i], rows[j]) for i in ranked for j in ranked}
    choices = itertools.combinations(ranked, len(rows) - f)
    best = min(choices, key=lambda some: max(apart[i, j] for i in some for j in some))
    return average([rows[i] for i in best]), sorted(best)


def fedpg_filter(
    rows: list[Row], K: int, B: int, sigma: float, delta: float, alpha: float
) -> tuple[Row | None, list[int], int]:
    """Row, kept and which of the two radii it was; no row when neither found anyone."""
    n, V = len(rows), 2 * math.log(2 * K / delta)
    for regime, radius in ((1, 2 * sigma * math.sqrt(V / B)), (2, 2 * sigma)):
        S = [k for k in range(n) if sum(distance(rows[j], rows[k]) <= radius for j in range(n)) > K / 2]
        if not S:
            continue
        centre = average([rows[k] for k in S])
        mom = min(S, key=lambda k: distance(rows[k], centre))
        G = [k for k in range(n) if distance(rows[k], rows[mom]) <= radius]
        if regime == 2 or not len(G) < (1 - alpha) * K:
            return average([rows[k] for k in G]), G, regime
    return None, [], 0


def mixing(rows: list[Row], f: int) -> tuple[list[Row], list[list[int]]]:
    """The mixed rows, as float32 holds them, and who is in each."""
    n = len(rows)
    groups = [sorted(range(n), key=lambda j, i=i: square(rows[i], rows[j]))[: n - f] for i in range(n)]
    mixed = [[float(np.float32(a)) for a in average([rows[j] for j in group])] for group in groups]
    return mixed, groups
