"""The mean of the rows that lie closest together, found by an exact search."""

from __future__ import annotations

import math

import numpy as np

from strategies.rules.geometry import F32, F64, I64, Cloud
from strategies.rules.means import mean_of
from strategies.rules.rule import Verdict, enough

MOST_LEFT_OUT = 20  # the search for the rows to leave out can double with every two of them


def minimum_diameter(rows: F32, f: int) -> Verdict:
    """The mean of those n - f rows whose largest distance from one another is smallest (Rousseeuw 1985).

    Exact, and not by trying all choices: below a given diameter the pairs that are farther apart must each lose a row,
    so whom to leave out is a vertex cover, and at most f of them is quickly decided. Often several choices have the
    smallest diameter. Then rows near to the median of every column go first: of two choices the one that has the
    nearest row that is not in both.
    """
    enough("minimum-diameter", len(rows), f)
    if f > MOST_LEFT_OUT:
        raise ValueError(f"minimum-diameter searches for at most {MOST_LEFT_OUT} attackers, not {f}")
    cloud = Cloud(rows)
    squared = cloud.squared()
    ranked = np.argsort(cloud.distances_to(cloud.centre), kind="stable")
    squared = squared[np.ix_(ranked, ranked)]
    diameters = np.unique(squared)  # with the 0 of a row and itself
    low, high = 0, len(diameters) - 1
    while low < high:
        middle = (low + high) // 2
        if _coverable(_far(squared, diameters[middle]), (1 << len(rows)) - 1, f):
            high = middle
        else:
            low = middle + 1
    good = _first_cover(_far(squared, diameters[low]), f)
    return mean_of(cloud, ranked[good], {"diameter": math.sqrt(diameters[low])})


def _far(squared: F64, diameter: float) -> list[int]:
    """For every row the rows farther away than that, as the bits of a number."""
    packed = np.packbits(squared > diameter, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _coverable(far: list[int], alive: int, budget: int) -> bool:
    """Whether, of the rows alive, leaving out ``budget`` can leave no two that are far from one another."""
    degrees = [(foes & alive).bit_count() if alive >> i & 1 else 0 for i, foes in enumerate(far)]
    most = max(degrees)
    if most == 0:
        return True
    if sum(degrees) > 2 * budget * most:  # every row left out settles ``most`` pairs at best
        return False
    worst = degrees.index(most)
    if _coverable(far, alive & ~(1 << worst), budget - 1):
        return True
    return most <= budget and _coverable(far, alive & ~far[worst], budget - most)


def _first_cover(far: list[int], f: int) -> I64:
    """The n - f rows that can stay together: of several choices, the first in the order of the rows."""
    alive, budget, good = (1 << len(far)) - 1, f, []
    for i, foes in enumerate(far):
        if not alive >> i & 1:
            continue
        lost = foes & alive
        cost = lost.bit_count()
        if cost == 0 or (cost <= budget and _coverable(far, alive & ~lost, budget - cost)):
            alive, budget = alive & ~lost, budget - cost
            good.append(i)
        else:
            alive, budget = alive & ~(1 << i), budget - 1
    return np.array(good[: len(far) - f])
