"""The built-in rules, each a function of rows and f. A paper is named where a rule comes from one.

Where two choices are equally good, the order of the rows' bytes decides (``strategies/rules/geometry.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake
from strategies.rules.geometry import F32, F64, I64, Cloud, krum_rounds
from strategies.rules.rule import (
    MIXING,
    Given,
    Needs,
    Rule,
    RuleConfig,
    Verdict,
    enough,
    given_rule,
    needs,
    number,
    rule,
)

MOST_LEFT_OUT = 20  # by minimum-diameter: the search for whom to leave out can double with every two of them


def make_rule(config: RuleConfig, parties: int, measured: Rule | None = None, options: Any = None) -> Rule:
    """Return the rule of a configuration for this many parties.

    ``measured`` is the filter of a strategy that knows its sigma and batch; ``options`` are those of a plugin's rule.
    """
    f = config.byzantine
    name = ("fedpg" if measured else "weighted-mean") if config.rule == "auto" else config.rule
    if name == "fedpg" and not measured and config.sigma == "auto":
        raise Mistake("'sigma' = auto is measured by the strategy fedpg-br; elsewhere the rule fedpg needs a number")
    for one in (name, MIXING) if config.mixing else (name,):
        if parties < (needed := needs(one, f)):
            raise Mistake(
                f"'{one}' needs at least {needed} parties to survive byzantine = {f}, and there are {parties}; "
                "lower byzantine, add parties, or take another rule"
            )
    if name == "minimum-diameter" and f > MOST_LEFT_OUT:
        raise Mistake(
            f"'minimum-diameter' searches for at most {MOST_LEFT_OUT} attackers, not byzantine = {f}; try 'median'"
        )
    if name == "multi-krum" and config.keep > parties - f:
        raise Mistake(
            f"'multi-krum' can keep {parties - f} of {parties} rows with byzantine = {f}, not keep = {config.keep}"
        )
    made = measured if name == "fedpg" and measured else given_rule(name, config, parties, options)
    return after_mixing(made, f) if config.mixing else made


def weighted_mean(rows: F32, weights: NDArray[np.float64]) -> Verdict:
    """sum_k p_k w_k with p_k = n_k / n, added up in float64; equal shares when nobody did any work."""
    assert weights.shape == (len(rows),), (rows.shape, weights.shape)
    enough("weighted-mean", len(rows), 0)
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise ValueError("weights of a mean are finite and not negative")
    most = weights.max()
    parts = weights / most if most > 0 else np.ones(len(rows))
    cloud = Cloud(rows, ties=np.argsort(weights))
    return Verdict(cloud.mix((parts / math.fsum(parts))[cloud.order]), np.arange(len(rows)), {})


def mean(rows: F32) -> Verdict:
    """Every row the same share, whatever its party says it did."""
    enough("mean", len(rows), 0)
    return _mean_of(Cloud(rows), np.arange(len(rows)), {})


def fedpg_filter(rows: F32, parties: int, batch: int, sigma: float, delta: float = 0.6, alpha: float = 0.4) -> Verdict:
    """The filter of FedPG-BR (Fan 2021): who is near to one whom more than half are near to.

    A row counts as near to itself. K is ``parties``, also when some of them are silent: half means half of all.
    """
    K = parties
    assert len(rows) <= K and batch > 0, (len(rows), K, batch)
    V = 2 * math.log(2 * K / delta)
    threshold = 2 * sigma * math.sqrt(V / batch)
    notes = {"threshold": threshold, "wide-threshold": 2 * sigma}
    if len(rows):
        cloud = Cloud(rows)
        squared = cloud.squared()
        for regime, radius in ((1, threshold), (2, 2 * sigma)):
            near = squared <= radius**2
            S = np.flatnonzero(2 * near.sum(axis=1) > K)
            if not S.size:
                continue
            # |x - mean(S)|² is the mean of |x - y|² over y in S, less what is the same for every x.
            mom = S[np.argmin(np.sort(squared[np.ix_(S, S)], axis=1).sum(axis=1))]
            good = np.flatnonzero(near[mom])
            if regime == 2 or len(good) >= (1 - alpha) * K - 1e-9:
                return _mean_of(cloud, good, notes | {"regime": regime, "radius": radius})
    # Neither radius has anyone whom more than half are near to.
    nobody = np.full(rows.shape[1], np.nan, dtype=np.float32)
    return Verdict(nobody, np.arange(0), notes | {"regime": 0, "radius": 2 * sigma})


def median(rows: F32, f: int = 0) -> Verdict:
    """The median of every column (Yin 2018); of an even number, the mean of the middle two."""
    enough("median", len(rows), f)
    return Verdict(Cloud(rows).centre, np.arange(len(rows)), {})


def trimmed_mean(rows: F32, f: int) -> Verdict:
    """Of every column, the mean of what is left without the f smallest and the f largest (Yin 2018)."""
    enough("trimmed-mean", len(rows), f)
    return Verdict(Cloud(rows).sorted_mean(f, len(rows) - f), np.arange(len(rows)), {"trimmed": f})


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
    return _mean_of(cloud, best, {"score": float(scores[best[0]])})


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


def geometric_median(rows: F32, f: int = 0, steps: int = 100, smoothing: float = 1e-6) -> Verdict:
    """The point with the smallest sum of distances, by Weiszfeld's iteration, smoothed (Pillutla 2019).

    The point is z = sum_i a_i x_i all the way, and with the products around a centre, |x_i - z|² = g_ii - 2 (G a)_i +
    a G a: a step costs n² and not n d. It begins at the median of every column, which no liar has moved far. Distances
    below nu count as nu; that is a share of their median, so that the rule means the same in any unit.
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


def centered_clipping(rows: F32, f: int, radius: float = 0.0, steps: int = 3, start: F32 | None = None) -> Verdict:
    """v + mean_i of (x_i - v) clipped to length ``radius``, again and again (Karimireddy 2021).

    The paper begins at its previous result. Here that is the caller's to hand over (``start``); without it the rule
    begins at the median of every column, which like the previous result no liar has moved far, and which needs no
    memory: nothing to save, and nothing that a liar of long ago has left behind.
    """
    enough("centered-clipping", len(rows), f)
    cloud = Cloud(rows)
    v: F64 = (cloud.centre if start is None else start).astype(np.float64)
    assert v.shape == rows.shape[1:], (v.shape, rows.shape)
    limit, clipped = radius, 0
    for _ in range(steps):
        distances = cloud.distances_to(v)
        limit = radius or float(np.median(distances))
        shares, clipped = _clipped(distances, limit)
        v = (1 - math.fsum(shares)) * v + cloud.blend(shares)
    return Verdict(v.astype(np.float32), np.arange(len(rows)), {"radius": limit, "clipped": clipped})


def norm_clipping(rows: F32, f: int, radius: float = 0.0) -> Verdict:
    """The mean of the rows, those longer than ``radius`` shortened to it."""
    enough("norm-clipping", len(rows), f)
    cloud = Cloud(rows)
    lengths = cloud.distances_to(np.zeros(rows.shape[1]))
    limit = radius or float(np.median(lengths))
    shares, clipped = _clipped(lengths, limit)
    return Verdict(cloud.mix(shares), np.arange(len(rows)), {"radius": limit, "clipped": clipped})


def _clipped(lengths: F64, limit: float) -> tuple[F64, int]:
    """What every row counts in a mean when none may be longer than the limit, and how many are."""
    long = lengths > limit
    return np.where(long, limit / np.where(long, lengths, 1.0), 1.0) / len(lengths), int(long.sum())


def minimum_diameter(rows: F32, f: int) -> Verdict:
    """The mean of those n - f rows whose largest distance from one another is smallest (Rousseeuw 1985).

    Exact, and not by trying all choices: below a given diameter the pairs that are farther apart must each lose a row,
    so whom to leave out is a vertex cover, and at most f of them is quickly decided. Often several choices have the
    smallest diameter. Then rows near to the median of every column go first: of two choices the one that has the
    nearest row that is not in both.
    """
    enough("minimum-diameter", len(rows), f)
    if f > MOST_LEFT_OUT:
        raise ValueError(f"minimum-diameter searches for at most {MOST_LEFT_OUT} liars, not {f}")
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
    return _mean_of(cloud, ranked[good], {"diameter": math.sqrt(diameters[low])})


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


def after_mixing(rule: Rule, f: int) -> Rule:
    """The rule on mixed rows: each the mean of the n - f nearest to it, itself among them (Allouah 2023).

    Who had a say are the rows in the mixtures that the rule kept.
    """

    def mixed(rows: F32, weights: NDArray[np.float64]) -> Verdict:
        n = len(rows)
        enough("mixing", n, f)
        cloud = Cloud(rows)
        nearest = np.argsort(cloud.squared(), axis=1, kind="stable")[:, : n - f]
        member = np.zeros((n, n), dtype=bool)
        np.put_along_axis(member, nearest, True, axis=1)
        verdict = rule(cloud.means(member), weights[cloud.order])
        return verdict._replace(kept=cloud.names(np.flatnonzero(member[verdict.kept].any(axis=0))))

    return mixed


def _mean_of(cloud: Cloud, members: I64, notes: dict[str, float]) -> Verdict:
    return Verdict(cloud.mean(members), cloud.names(members), notes)


def _fedpg(rows: F32, given: Given) -> Verdict:
    c = given.config
    return fedpg_filter(rows, given.parties, c.batch, number(c.sigma), c.delta, c.alpha)


def _anybody(f: int) -> int:
    return 1


def _majority(f: int) -> int:
    return 2 * f + 1


_RULES: dict[str, tuple[Needs, Callable[[F32, Given], Verdict]]] = {
    "weighted-mean": (_anybody, lambda rows, given: weighted_mean(rows, given.weights)),
    "mean": (_anybody, lambda rows, given: mean(rows)),
    "fedpg": (_majority, _fedpg),
    "median": (_majority, lambda rows, given: median(rows, given.f)),
    "trimmed-mean": (_majority, lambda rows, given: trimmed_mean(rows, given.f)),
    "krum": (lambda f: 2 * f + 3, lambda rows, given: krum(rows, given.f)),
    "multi-krum": (lambda f: 2 * f + 3, lambda rows, given: multi_krum(rows, given.f, given.config.keep)),
    "bulyan": (lambda f: 4 * f + 3, lambda rows, given: bulyan(rows, given.f)),
    "geometric-median": (
        _majority,
        lambda rows, given: geometric_median(rows, given.f, given.config.steps, given.config.smoothing),
    ),
    "centered-clipping": (
        _majority,
        lambda rows, given: centered_clipping(rows, given.f, given.config.radius, given.config.clipping_steps),
    ),
    "minimum-diameter": (_majority, lambda rows, given: minimum_diameter(rows, given.f)),
    "norm-clipping": (_majority, lambda rows, given: norm_clipping(rows, given.f, given.config.radius)),
}
for _name, (_needs, _function) in _RULES.items():
    rule(_name, needs=_needs, few=_name == "fedpg")(_function)  # the filter compares with half of all parties
