"""Rules that make one row of many: (n, d), weights (n,) -> a verdict, which is a row and who had a say in it.

``f`` is how many of the n rows may be lies. Only ``weighted_mean`` looks at the weights: a weight is a party's own
word, and a rule for parties that lie cannot take it. The result depends on which rows came, never on their order; where
two choices are equally good, the order of the rows' bytes decides (``strategies/rules/geometry.py``). Rules keep
nothing from one call to the next, so one rule serves all parts of a fleet, and there is nothing to save or to forget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.options import option
from core.errors import Mistake
from strategies.rules.geometry import F32, F64, I64, Cloud, krum_rounds


class Verdict(NamedTuple):
    """What a rule decided. Nobody kept is no verdict: the row is nan then, so that nobody takes it for one."""

    row: F32
    kept: NDArray[np.int64]  # which rows had a say, ascending
    notes: dict[str, float]  # for the ledger: a radius, a number of steps, ...


Rule = Callable[[F32, NDArray[np.float64]], Verdict]

# How many rows each rule needs to survive f liars.
NEEDS: dict[str, Callable[[int], int]] = {
    "weighted-mean": lambda f: 1,
    "mean": lambda f: 1,
    "fedpg": lambda f: 2 * f + 1,
    "median": lambda f: 2 * f + 1,
    "trimmed-mean": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi-krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "geometric-median": lambda f: 2 * f + 1,
    "centered-clipping": lambda f: 2 * f + 1,
    "minimum-diameter": lambda f: 2 * f + 1,
    "norm-clipping": lambda f: 2 * f + 1,
    "mixing": lambda f: 2 * f + 1,
}
RULES = ("auto", *(name for name in NEEDS if name != "mixing"))
MOST_LEFT_OUT = 20  # by minimum-diameter: the search for whom to leave out can double with every two of them


class TooFewError(ValueError):
    """Fewer rows than a rule needs to survive its liars."""


@dataclass(frozen=True)
class RuleConfig:
    """How the rows of the parties become one."""

    rule: str = option(
        "auto", "How the rows of the parties become one; auto: fedpg for fedpg-br, else weighted-mean.", choices=RULES
    )
    byzantine: int = option(0, "f: how many liars the rule must survive (the two means survive none).", low=0)
    mixing: bool = option(False, "Replace every row by the mean of the n - f nearest to it before the rule.")
    keep: int = option(0, "Rows that multi-krum averages (0: n - f).", low=0)
    steps: int = option(100, "Steps of Weiszfeld's iteration (geometric-median).", low=1)
    smoothing: float = option(1e-6, "No row counts as nearer than this share of the median distance.", above=0, high=1)
    radius: float = option(0.0, "Where clipping begins (0: at the median of the distances, anew in every step).", low=0)
    clipping_steps: int = option(3, "Steps of centered-clipping.", low=1)
    sigma: str = option(
        "auto",
        "How far honest gradients may be from the true one, a number (fedpg); auto: fedpg-br measures it.",
        number_too=True,
    )
    delta: float = option(0.6, "How often an honest row may be mistaken for a lie (fedpg).", above=0, high=1)
    alpha: float = option(0.4, "Bound on the share of liars (fedpg).", low=0, high=0.5)
    batch: int = option(16, "Trajectories behind every row (fedpg; fedpg-br knows how many).", low=1)

    @property
    def judges(self) -> bool:
        """Whether anything but the usual mean is asked for: who does not ask a rule refuses that."""
        return self.rule != "auto" or self.byzantine > 0 or self.mixing


def number(sigma: str) -> float:
    """A sigma that is given and not measured."""
    try:
        found = float(sigma)
        if not 0 < found < math.inf:
            raise ValueError
    except ValueError:
        raise Mistake(f"'sigma' is auto or a number above 0, not {sigma!r}") from None
    return found


def make_rule(config: RuleConfig, parties: int, measured: Rule | None = None) -> Rule:
    """The rule of a configuration, for this many parties; ``measured``: the filter of who knows its sigma and batch."""
    f, c = config.byzantine, config
    rule = ("fedpg" if measured else "weighted-mean") if c.rule == "auto" else c.rule
    if rule == "fedpg" and not measured and c.sigma == "auto":
        raise Mistake("'sigma' = auto is measured by the strategy fedpg-br; elsewhere the rule fedpg needs a number")
    for name in (rule, "mixing") if c.mixing else (rule,):
        if parties < (needed := NEEDS[name](f)):
            raise Mistake(
                f"'{name}' needs at least {needed} parties to survive byzantine = {f}, and there are {parties}; "
                "lower byzantine, add parties, or take another rule"
            )
    if rule == "minimum-diameter" and f > MOST_LEFT_OUT:
        raise Mistake(
            f"'minimum-diameter' searches for at most {MOST_LEFT_OUT} liars, not byzantine = {f}; try 'median'"
        )
    if rule == "multi-krum" and c.keep > parties - f:
        raise Mistake(
            f"'multi-krum' can keep {parties - f} of {parties} rows with byzantine = {f}, not keep = {c.keep}"
        )
    rules: dict[str, Rule] = {
        "weighted-mean": weighted_mean,
        "mean": lambda rows, weights: mean(rows),
        "fedpg": measured
        or (lambda rows, weights: fedpg_filter(rows, parties, c.batch, number(c.sigma), c.delta, c.alpha)),
        "median": lambda rows, weights: median(rows, f),
        "trimmed-mean": lambda rows, weights: trimmed_mean(rows, f),
        "krum": lambda rows, weights: krum(rows, f),
        "multi-krum": lambda rows, weights: multi_krum(rows, f, c.keep),
        "bulyan": lambda rows, weights: bulyan(rows, f),
        "geometric-median": lambda rows, weights: geometric_median(rows, f, c.steps, c.smoothing),
        "centered-clipping": lambda rows, weights: centered_clipping(rows, f, c.radius, c.clipping_steps),
        "minimum-diameter": lambda rows, weights: minimum_diameter(rows, f),
        "norm-clipping": lambda rows, weights: norm_clipping(rows, f, c.radius),
    }
    return after_mixing(rules[rule], f) if c.mixing else rules[rule]


def weighted_mean(rows: F32, weights: NDArray[np.float64]) -> Verdict:
    """sum_k p_k w_k with p_k = n_k / n, added up in float64; equal shares when nobody did any work."""
    assert weights.shape == (len(rows),), (rows.shape, weights.shape)
    _enough("weighted-mean", len(rows), 0)
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise ValueError("weights of a mean are finite and not negative")
    most = weights.max()
    parts = weights / most if most > 0 else np.ones(len(rows))
    cloud = Cloud(rows, ties=np.argsort(weights))
    return Verdict(cloud.mix((parts / math.fsum(parts))[cloud.order]), np.arange(len(rows)), {})


def mean(rows: F32) -> Verdict:
    """Every row the same share, whatever its party says it did."""
    _enough("mean", len(rows), 0)
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
    _enough("median", len(rows), f)
    return Verdict(Cloud(rows).centre, np.arange(len(rows)), {})


def trimmed_mean(rows: F32, f: int) -> Verdict:
    """Of every column, the mean of what is left without the f smallest and the f largest (Yin 2018)."""
    _enough("trimmed-mean", len(rows), f)
    return Verdict(Cloud(rows).sorted_mean(f, len(rows) - f), np.arange(len(rows)), {"trimmed": f})


def krum(rows: F32, f: int) -> Verdict:
    """The row with the smallest sum of squared distances to the n - f - 2 nearest others (Blanchard 2017)."""
    return _krum("krum", rows, f, 1)


def multi_krum(rows: F32, f: int, keep: int = 0) -> Verdict:
    """The mean of the ``keep`` rows (n - f for 0) that Krum finds best (Blanchard 2017)."""
    _enough("multi-krum", len(rows), f)
    return _krum("multi-krum", rows, f, min(keep or len(rows) - f, len(rows) - f))


def _krum(name: str, rows: F32, f: int, keep: int) -> Verdict:
    _enough(name, len(rows), f)
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
    _enough("bulyan", len(rows), f)
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
    _enough("geometric-median", len(rows), f)
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
    _enough("centered-clipping", len(rows), f)
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
    _enough("norm-clipping", len(rows), f)
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
    _enough("minimum-diameter", len(rows), f)
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
        _enough("mixing", n, f)
        cloud = Cloud(rows)
        nearest = np.argsort(cloud.squared(), axis=1, kind="stable")[:, : n - f]
        member = np.zeros((n, n), dtype=bool)
        np.put_along_axis(member, nearest, True, axis=1)
        verdict = rule(cloud.means(member), weights[cloud.order])
        return verdict._replace(kept=cloud.names(np.flatnonzero(member[verdict.kept].any(axis=0))))

    return mixed


def _enough(rule: str, n: int, f: int) -> None:
    if n < (needed := NEEDS[rule](f)):
        rows = "one row" if needed == 1 else f"{needed} rows"
        raise TooFewError(f"{rule} needs at least {rows} to survive f = {f} liars, and there are {n}")


def _mean_of(cloud: Cloud, members: I64, notes: dict[str, float]) -> Verdict:
    return Verdict(cloud.mean(members), cloud.names(members), notes)
