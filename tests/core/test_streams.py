"""Randomness is a function of (seed, agent, purpose, lane, count), and it is random."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from core.streams import Streams, agent_seeds, child

SEEDS = agent_seeds(7, range(8))


def chi_square(draws: NDArray[np.int64], cells: int) -> float:
    """How far counts are from equal, in standard deviations of the chi-square distribution."""
    expected = draws.size / cells
    statistic = float(((np.bincount(draws.ravel(), minlength=cells) - expected) ** 2 / expected).sum())
    return (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1))


class TestSeedTree:
    def test_a_child_depends_on_its_path_alone(self) -> None:
        assert agent_seeds(3, [5]) == [agent_seeds(3, range(10))[5]]
        assert child(child(3, "agent"), 5) == agent_seeds(3, [5])[0]

    def test_paths_do_not_meet(self) -> None:
        seeds = [
            child(child(seed, name), lane)
            for seed in range(20)
            for name in ("act", "world", 0, 1)
            for lane in range(20)
        ]
        assert len(set(seeds)) == len(seeds)

    def test_order_of_the_path_matters(self) -> None:
        assert child(child(0, "a"), "b") != child(child(0, "b"), "a")

    @pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
    def test_a_child_fits_64_bits(self, seed: int) -> None:
        assert 0 <= child(seed, "agent") < 2**64


class TestBelonging:
    def test_alone_and_among_others(self) -> None:
        together = Streams(SEEDS, "act").uniform(100)
        for k, seed in enumerate(SEEDS):
            assert np.array_equal(Streams([seed], "act").uniform(100)[0], together[k])

    def test_lanes_do_not_depend_on_how_many_there_are(self) -> None:
        assert np.array_equal(
            Streams(SEEDS, "act", lanes=2).uniform(9), Streams(SEEDS, "act", lanes=5).uniform(9)[:, :2]
        )

    def test_one_draw_equals_many(self) -> None:
        whole, bits = Streams(SEEDS, "act"), Streams(SEEDS, "act")
        pieces = [bits.uniform(5), bits.uniform()[:, None], bits.uniform(2, 3).reshape(8, 6)]
        assert np.array_equal(whole.uniform(12), np.concatenate(pieces, axis=1))

    def test_purposes_lanes_and_agents_differ(self) -> None:
        streams = [Streams(SEEDS, purpose, lanes=3).uniform(4).reshape(-1, 4) for purpose in ("act", "world")]
        rows = np.concatenate(streams)
        assert len(np.unique(rows, axis=0)) == len(rows)

    @pytest.mark.parametrize("rows", [slice(2, 5), slice(0, 8, 3), slice(None, None, -1), [6, 1], [3]])
    @pytest.mark.parametrize("lanes", [None, 3])
    def test_a_part_draws_what_the_whole_would(self, rows: slice | list[int], lanes: int | None) -> None:
        whole, split = Streams(SEEDS, "act", lanes), Streams(SEEDS, "act", lanes)
        first = whole.uniform(4)
        part = split.take(rows)
        assert np.array_equal(part.uniform(4), first[rows])
        split.put(rows, part)
        assert np.array_equal(split.uniform(3)[rows], whole.uniform(3)[rows])

    def test_a_state_goes_on(self) -> None:
        streams = Streams(SEEDS, "act", lanes=2)
        streams.normal(3)
        saved = {name: array.copy() for name, array in streams.state().items()}
        expected = streams.uniform(5)
        resumed = Streams([0] * len(SEEDS), "other", lanes=2)
        resumed.load_state(saved)
        assert np.array_equal(resumed.uniform(5), expected)

    def test_nothing_drawn_nothing_counted(self) -> None:
        streams = Streams(SEEDS, "act")
        assert streams.uniform(0).shape == (8, 0)
        assert not streams.counts.any()


class TestDistributions:
    def test_uniform(self) -> None:
        draws = Streams(SEEDS, "act").uniform(50_000)
        assert draws.min() >= 0.0
        assert draws.max() < 1.0
        assert abs(chi_square((draws * 256).astype(np.int64), 256)) < 4

    def test_neighbouring_draws_are_independent(self) -> None:
        draws = (Streams(SEEDS, "act").uniform(50_000) * 16).astype(np.int64)
        assert abs(chi_square(draws[:, :-1:2] * 16 + draws[:, 1::2], 256)) < 4

    def test_neighbouring_agents_are_independent(self) -> None:
        draws = Streams(agent_seeds(0, range(64)), "act").uniform(5_000)
        correlation = np.corrcoef(draws) - np.eye(64)
        assert np.abs(correlation).max() < 5 / math.sqrt(5_000)

    def test_normal_moments(self) -> None:
        draws = Streams(SEEDS, "act").normal(50_001).ravel()
        n = draws.size
        assert abs(draws.mean()) < 4 / math.sqrt(n)
        assert abs(draws.var() - 1) < 4 * math.sqrt(2 / n)
        assert abs((draws**3).mean()) < 4 * math.sqrt(15 / n)
        assert abs((draws**4).mean() - 3) < 4 * math.sqrt(96 / n)
        assert np.isfinite(draws).all()

    def test_normal_shapes(self) -> None:
        assert Streams(SEEDS, "act").normal().shape == (8,)
        assert Streams(SEEDS, "act", lanes=2).normal(3, 5).shape == (8, 2, 3, 5)

    def test_integers_reach_every_value(self) -> None:
        assert abs(chi_square(Streams(SEEDS, "act").integers(7, 10_000), 7)) < 4

    def test_integers_below_each_agents_bound(self) -> None:
        high = np.array([1, 2, 3, 5, 8, 13, 21, 1_000_000])
        draws = Streams(SEEDS, "act").integers(high, 2_000)
        assert draws.shape == (8, 2_000)
        assert (draws >= 0).all()
        assert np.array_equal(draws[:7].max(axis=1), high[:7] - 1)
        assert draws[7].max() < 1_000_000

    def test_integers_with_lanes(self) -> None:
        high = np.arange(1, 9)
        assert np.array_equal(Streams(SEEDS, "act", lanes=8).integers(high, 500).max(axis=(1, 2)), high - 1)
        each = np.arange(1, 25).reshape(8, 3)
        draws = Streams(SEEDS, "act", lanes=3).integers(each)
        assert draws.shape == (8, 3)
        assert (draws < each).all()

    def test_permutation(self) -> None:
        orders = Streams(agent_seeds(1, range(4_000)), "shuffle").permutation(5)
        assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (4_000, 1)))
        ranked = orders @ (5 ** np.arange(5))
        names = np.unique(ranked)
        assert len(names) == math.factorial(5)
        assert abs(chi_square(np.searchsorted(names, ranked), len(names))) < 4


@pytest.mark.slow
class TestManySeeds:
    """What a single seed cannot show: that no family of related streams is worse than chance."""

    def test_first_draws_across_seeds(self) -> None:
        first = Streams([child(seed, "agent") for seed in range(1_000_000)], "act").uniform(2)
        for column in first.T:
            assert abs(chi_square((column * 1024).astype(np.int64), 1024)) < 4
        assert abs(np.corrcoef(first.T)[0, 1]) < 5 / 1000

    @pytest.mark.parametrize("family", ["seeds", "agents", "lanes", "purposes"])
    def test_streams_do_not_overlap(self, family: str) -> None:
        """2,000 streams of 1,000 draws of 53 bits: two equal draws would be chance of 1 in 4,000."""
        makers = {
            "seeds": lambda: Streams([agent_seeds(seed, [0])[0] for seed in range(2_000)], "act").uniform(1_000),
            "agents": lambda: Streams(agent_seeds(0, range(2_000)), "act").uniform(1_000),
            "lanes": lambda: Streams(agent_seeds(0, [0]), "act", lanes=2_000).uniform(1_000),
            "purposes": lambda: np.stack([Streams([1], f"purpose-{i}").uniform(1_000) for i in range(2_000)]),
        }
        draws = makers[family]()
        assert len(np.unique(draws)) == draws.size

    def test_pairs_of_streams_are_independent(self) -> None:
        draws = (Streams(agent_seeds(0, range(400)), "act").uniform(20_000) * 8).astype(np.int64)
        far = [chi_square(a * 8 + b, 64) for a, b in itertools.pairwise(draws)]
        assert max(map(abs, far)) < 6  # the tail of chi-square is heavier than that of a normal
        assert abs(float(np.mean(far))) < 4 / math.sqrt(len(far))
