"""The rules beside their slow twins, on rows that are easy and on rows that are meant to break them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from core import registry
from core.errors import Mistake
from core.options import build
from strategies.rules import clipping, diameter, fedpg, geometry, krum, means, medians
from strategies.rules.geometry import Cloud
from strategies.rules.kernels import LANES, network
from strategies.rules.robust import make_rule
from strategies.rules.rule import RuleConfig, TooFewError, Verdict, needs
from tests.strategies.rules import slow_rules as slow

F32 = NDArray[np.float32]
LIARS = {11: 2, 8: 1, 7: 0}  # rows -> f
NAMED = registry.names("rule")
GOOD = tuple(rule for rule in NAMED if rule not in ("mean", "weighted-mean", "norm-clipping"))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random(n: int, d: int) -> F32:
    return rng(n, d).standard_normal((n, d), dtype=np.float32)


def close(n: int, d: int) -> F32:
    """All within a millionth of their length of one another."""
    base = random(1, d).astype(np.float64)
    return (base + 1e-6 * np.linalg.norm(base) * random(n, d) / math.sqrt(d)).astype(np.float32)


def few_numbers(n: int, d: int) -> F32:
    """Corners of a cube: the same distances again and again."""
    return rng(n, d).integers(0, 2, (n, d)).astype(np.float32)


def equal(n: int, d: int) -> F32:
    return np.repeat(random(1, d), n, axis=0)


def copies(n: int, d: int) -> F32:
    return random(n, d)[np.arange(n) // 2]


def collusion(n: int, d: int) -> F32:
    """The liars are one vector, a little aside."""
    rows = random(n, d)
    rows[: LIARS[n]] = rows.mean(axis=0) - 1.5 * rows.std(axis=0)
    return rows


def huge(n: int, d: int) -> F32:
    rows = random(n, d)
    rows[: LIARS[n]] *= np.float32(1e30)
    return rows


def largest(n: int, d: int) -> F32:
    """Differences of these are no float32."""
    rows = random(n, d)
    rows[: LIARS[n]] = 3.4e38 * np.sign(rows[: LIARS[n]])
    return rows


def tiny(n: int, d: int) -> F32:
    """Squares of these are no float32."""
    return random(n, d) * np.float32(1e-30)


def two_places(n: int, d: int) -> F32:
    """Close to one another, far from the rest: what no centre can cure."""
    return np.where(np.arange(n)[:, None] < LIARS[n] + 2, 1000 + 1e-3 * random(n, d), random(n, d)).astype(np.float32)


def far_twins(n: int, d: int) -> F32:
    rows = random(n, d)
    rows[:3] = 1e20 * (1 + np.arange(3)[:, None] * 2e-7)
    return rows


def long(n: int, d: int) -> F32:
    """More columns than are looked at in one go."""
    return random(n, geometry._CHUNK + LANES + d)


PLACES = (random, close, few_numbers, equal, copies, collusion, huge, largest, tiny, two_places, far_twins, long)


def bytewise(rows: F32) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: rows[i].tobytes())


def config(rule: str, f: int, **more: object) -> RuleConfig:
    return build(RuleConfig, {"rule": rule, "byzantine": f if rule in GOOD else 0, "sigma": 0.06, **more})


def sigma_for(rows: F32, share: float) -> float:
    """A sigma with which the wide radius, 2 sigma, is this quantile of the distances."""
    lists = rows.astype(np.float64).tolist()
    apart = [slow.distance(x, y) for i, x in enumerate(lists) for y in lists[:i]]
    return max(1e-30, float(np.quantile(apart, share, method="nearest")) * 1.001 / 2)


def slowly(rule: str, rows: list[slow.Row], weights: list[float], f: int, sigma: float) -> slow.Found:
    n = len(rows)
    found: dict[str, Callable[[], slow.Found]] = {
        "weighted-mean": lambda: slow.weighted_mean(rows, weights),
        "mean": lambda: slow.mean(rows),
        "median": lambda: slow.median(rows),
        "trimmed-mean": lambda: slow.trimmed_mean(rows, f),
        "krum": lambda: slow.multi_krum(rows, f, 1),
        "multi-krum": lambda: slow.multi_krum(rows, f, n - f),
        "bulyan": lambda: slow.bulyan(rows, f),
        "geometric-median": lambda: slow.geometric_median(rows, 30, 1e-6),
        "centered-clipping": lambda: slow.centered_clipping(rows, 0.0, 3),
        "norm-clipping": lambda: slow.norm_clipping(rows, 0.0),
        "minimum-diameter": lambda: slow.minimum_diameter(rows, f),
    }
    if rule == "fedpg":
        row, kept, _ = slow.fedpg_filter(rows, n, 16, sigma, 0.6, 0.4)
        return row or [math.nan] * len(rows[0]), kept
    return found[rule]()


def agree(verdict: Verdict, row: slow.Row, kept: list[int], unit: float) -> None:
    assert verdict.kept.tolist() == sorted(kept)
    assert verdict.kept.dtype == np.int64
    assert verdict.row.dtype == np.float32
    np.testing.assert_allclose(verdict.row, np.array(row), rtol=2e-7, atol=2e-6 * unit)


def spread(rows: F32) -> float:
    """How far a typical entry is from the median of its column: the unit in which a result may be wrong."""
    wide = rows.astype(np.float64)
    return float(np.median(np.abs(wide - np.median(wide, axis=0))))


@pytest.mark.parametrize("n", LIARS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("rule", NAMED)
def test_a_rule_is_its_slow_twin(rule: str, place: Callable[[int, int], F32], n: int) -> None:
    f, rows = LIARS[n], place(n, 30)
    f = 1 if rule == "bulyan" and n == 8 else f
    if n < needs(rule, f):
        f = LIARS[7]
    rows = rows[bytewise(rows)]
    weights = rng(n).uniform(0, 100, n)
    sigma = sigma_for(rows, 0.6)
    made = make_rule(config(rule, f, steps=30, sigma=sigma), n)
    row, kept = slowly(rule, rows.astype(np.float64).tolist(), weights.tolist(), f, sigma)
    # A mean that 3e38 and -3e38 go into is what float64 leaves of it; no other rule lets them in.
    lost = 1e-15 * float(np.abs(rows).max()) if rule in ("mean", "weighted-mean") else 0.0
    agree(made(rows, weights), row, kept, spread(rows) + 1e6 * lost)


@pytest.mark.parametrize("place", [random, close, few_numbers, copies, huge, two_places], ids=lambda p: p.__name__)
@pytest.mark.parametrize("rule", ["mean", "median", "krum", "bulyan", "geometric-median"])
def test_a_rule_after_mixing_is_its_slow_twin(rule: str, place: Callable[[int, int], F32]) -> None:
    n, f = 11, 2
    rows = place(n, 30)
    rows = rows[bytewise(rows)]
    mixed, groups = slow.mixing(rows.astype(np.float64).tolist(), f)
    order = bytewise(np.array(mixed, np.float32))
    row, kept = slowly(rule, [mixed[i] for i in order], [1.0] * n, f, 1.0)
    made = means.after_mixing(make_rule(config(rule, f, steps=30), n), f)
    agree(made(rows, np.ones(n)), row, sorted({j for i in kept for j in groups[order[i]]}), spread(rows))


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("rule", NAMED)
def test_the_order_of_the_rows_decides_nothing(rule: str, place: Callable[[int, int], F32], mixing: bool) -> None:
    n, f = 11, 2
    rows, weights = place(n, 30), rng(0).integers(1, 5, n).astype(np.float64)
    made = make_rule(config(rule, f, mixing=mixing, sigma=sigma_for(rows, 0.6)), n)
    first = made(rows, weights)
    for seed in range(4):
        order = rng(seed).permutation(n)
        again = made(rows[order], weights[order])
        assert again.row.tobytes() == first.row.tobytes()
        assert again.notes == first.notes
        said, before = (sorted(row.tobytes() for row in some) for some in (rows[order][again.kept], rows[first.kept]))
        assert said == before  # of equal rows, whichever came first


@pytest.mark.parametrize("share", [0.01, 0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("batch", [1, 16, 100])
@pytest.mark.parametrize("silent", [0, 3])
def test_the_filter_in_both_regimes(share: float, batch: int, silent: int) -> None:
    for seed in range(10):
        rows = rng(seed).standard_normal((9, 4)).astype(np.float32)
        rows[:3] += 3
        rows = rows[bytewise(rows)]
        sigma, K = sigma_for(rows, share), len(rows) + silent
        row, kept, regime = slow.fedpg_filter(rows.astype(np.float64).tolist(), K, batch, sigma, 0.6, 0.4)
        verdict = fedpg.fedpg_filter(rows, K, batch, sigma)
        assert verdict.notes["regime"] == regime
        assert verdict.notes["threshold"] == pytest.approx(2 * sigma * math.sqrt(2 * math.log(2 * K / 0.6) / batch))
        agree(verdict, row or [math.nan] * 4, kept, 1.0)


def test_the_filter_by_hand() -> None:
    # K = 4, delta = 0.6: V = 2 ln(13.33) = 5.1806; B = 16: T = 2 * 0.1 * sqrt(5.1806 / 16) = 0.11381.
    rows = np.array([[0.0], [0.1], [0.05], [9.0]], np.float32)
    verdict = fedpg.fedpg_filter(rows, 4, 16, 0.1)
    assert verdict.notes["threshold"] == pytest.approx(0.11381, abs=1e-5)
    assert (verdict.kept.tolist(), verdict.notes["regime"]) == ([0, 1, 2], 1)
    assert verdict.row[0] == pytest.approx(0.05)
    # Only two of four are near to one another: nobody, and a row that nobody can take for one.
    apart = fedpg.fedpg_filter(np.array([[0.0], [0.1], [5.0], [9.0]], np.float32), 4, 16, 0.1)
    assert (apart.kept.tolist(), apart.notes["regime"]) == ([], 0)
    assert np.isnan(apart.row).all()
    # Half of all parties, also of those that are silent.
    assert fedpg.fedpg_filter(rows, 6, 16, 0.1).kept.tolist() == []
    assert fedpg.fedpg_filter(rows[:0], 6, 16, 0.1).kept.tolist() == []


@pytest.mark.parametrize("rule", GOOD)
@pytest.mark.parametrize("lie", [1e30, -3.4e38, 1e3, 0.0])
def test_liars_move_a_rule_no_farther_than_the_honest_are_apart(rule: str, lie: float) -> None:
    n, f = 15, 3
    rows = 1 + 0.1 * random(n, 50)
    rows[[2, 7, 11]] = np.float32(lie)
    verdict = make_rule(config(rule, f, sigma=0.6), n)(rows, np.ones(n))
    assert np.abs(verdict.row - 1).max() < 0.3
    if rule in ("fedpg", "krum", "multi-krum", "minimum-diameter"):
        assert not {2, 7, 11} & set(verdict.kept.tolist())


@pytest.mark.parametrize("rule", NAMED)
def test_one_row_is_the_result_or_too_few(rule: str) -> None:
    row = random(1, 20)
    if rule in ("krum", "multi-krum", "bulyan"):
        with pytest.raises(TooFewError, match=rf"{rule} needs at least 3 rows .* f = 0 .* 1"):
            getattr(krum, rule.replace("-", "_"))(row, 0)
        with pytest.raises(Mistake, match=rf"'{rule}' needs at least 3 parties"):
            make_rule(config(rule, 0), 1)
        return
    verdict = make_rule(config(rule, 0, mixing=True), 1)(row, np.ones(1))
    np.testing.assert_allclose(verdict.row, row[0], rtol=1e-7)
    assert verdict.kept.tolist() == [0]


@pytest.mark.parametrize("rule", GOOD)
def test_too_few_is_refused_by_name(rule: str) -> None:
    n = needs(rule, 2)
    made = make_rule(config(rule, 2), n)
    assert made(random(n, 5), np.ones(n)).row.shape == (5,)
    if rule == "fedpg":  # half means half of all: two liars that agree are nobody, however few came
        assert made(equal(2, 5), np.ones(2)).kept.tolist() == []
    else:
        with pytest.raises(TooFewError, match=rf"{rule} needs at least {n} rows .* f = 2 .* {n - 1}"):
            made(random(n - 1, 5), np.ones(n - 1))
    with pytest.raises(Mistake, match=rf"'{rule}' needs at least {n} parties .* there are {n - 1}"):
        make_rule(config(rule, 2), n - 1)


def test_what_cannot_be_is_refused_up_front() -> None:
    with pytest.raises(Mistake, match="'mixing' needs at least 9 parties"):
        make_rule(build(RuleConfig, {"rule": "mean", "byzantine": 4, "mixing": True}), 8)
    with pytest.raises(Mistake, match="at most 20 attackers"):
        make_rule(config("minimum-diameter", 21), 100)
    with pytest.raises(Mistake, match="can keep 8 of 10 rows"):
        make_rule(config("multi-krum", 2, keep=9), 10)
    with pytest.raises(Mistake, match="did you mean 'krum'"):
        config("krumm", 2)
    with pytest.raises(TooFewError, match="at least one row"):
        means.mean(random(1, 3)[:0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", NAMED)
def test_what_is_not_finite_is_refused(rule: str, bad: float) -> None:
    rows = random(11, 20)
    rows[3, 7] = rows[9, 0] = bad
    with pytest.raises(ValueError, match=r"nan or an infinity: 3, 9$"):
        make_rule(config(rule, 2), 11)(rows, np.ones(11))


def test_auto_is_the_weighted_mean_and_a_sigma_that_nobody_measures_is_refused() -> None:
    rows = random(4, 5)
    auto = make_rule(build(RuleConfig, {}), 4)(rows, np.arange(1.0, 5.0))
    np.testing.assert_array_equal(auto.row, means.weighted_mean(rows, np.arange(1.0, 5.0)).row)
    with pytest.raises(Mistake, match="needs a number"):
        make_rule(build(RuleConfig, {"rule": "fedpg"}), 4)


def test_knobs_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]], np.float32)
    assert medians.trimmed_mean(rows, 1).row[0] == 2
    assert krum.multi_krum(rows, 1, keep=2).kept.tolist() == [1, 2]
    assert diameter.minimum_diameter(rows, 1).notes["diameter"] == 3
    assert clipping.norm_clipping(rows, 1, radius=2).row[0] == pytest.approx((0 + 1 + 2 + 2 + 2) / 5)
    # From 2, clipped to 1: (-1 - 1 + 0 + 1 + 1) / 5 = 0. From 10 four rows pull down by one and the last one up.
    assert clipping.centered_clipping(rows, 1, radius=1, steps=1).row[0] == 2
    start = np.array([10.0], np.float32)
    assert clipping.centered_clipping(rows, 1, radius=1, steps=2, start=start).row[0] == pytest.approx(10 - 2 * 3 / 5)
    assert medians.geometric_median(rows, 1).row[0] == pytest.approx(2, abs=1e-4)
    # Four rows become the mean of 0, 1, 2 and 3, the liar the mean of itself and three of them.
    mixed = means.after_mixing(lambda some, weights: medians.median(some), 1)(rows, np.ones(5))
    assert mixed.row[0] == 1.5


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_distances_are_right(place: Callable[[int, int], F32]) -> None:
    rows = place(11, 30)
    cloud = Cloud(rows)
    wide = rows[cloud.order].astype(np.float64)
    exact = ((wide[:, None] - wide) ** 2).sum(axis=-1)
    np.testing.assert_allclose(cloud.squared(), exact, rtol=1e-5, atol=0)


def test_columns_are_sorted_by_any_network() -> None:
    for n in (1, 2, 3, 5, 8, 13, 33, 64, 100):
        columns = random(n, 200)
        columns[:, 0], columns[:, 1] = 0.0, np.where(np.arange(n) % 2, -0.0, 0.0)
        ordered = np.sort(columns.astype(np.float64), axis=0)
        for first in range(0, n, max(1, n // 4)):
            for last in {first + 1, (first + 1 + n) // 2, n}:
                found = Cloud(columns).sorted_mean(first, last)
                np.testing.assert_allclose(found, ordered[first:last].mean(axis=0), rtol=1e-6, atol=1e-7)
    assert len(network(16, 0, 16)) == 63  # as Knuth counts them


def test_weights_of_equal_rows_may_come_in_any_order() -> None:
    rows = np.repeat(random(2, 50), 4, axis=0)
    weights = rng(1).uniform(0, 1, 8)
    first = means.weighted_mean(rows, weights)
    for seed in range(10):
        order = rng(seed).permutation(8)
        assert means.weighted_mean(rows[order], weights[order]).row.tobytes() == first.row.tobytes()


def test_leaving_out_finds_the_best_of_all_choices() -> None:
    """Few columns of few numbers: many choices have the smallest diameter, and the two ways must pick the same one."""
    for seed in range(60):
        n, f = 6 + seed % 6, 1 + seed % 3
        n = max(n, 2 * f + 1)
        rows = rng(seed).integers(0, 4, (n, 1 + seed % 3)).astype(np.float32)
        rows = rows[bytewise(rows)]
        row, kept = slow.minimum_diameter(rows.astype(np.float64).tolist(), f)
        agree(diameter.minimum_diameter(rows, f), row, kept, 1.0)
