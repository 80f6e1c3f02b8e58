"""Running moments against numpy's over everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from core.moments import Moments, measured, merged

K, W = 3, 4


def samples(seed, size, scale=1.0, shift=0.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((K, size, W))


def test_measured():
    x = samples(0, 20)
    found = measured(x)
    np.testing.assert_allclose(found[:, 0], 20)
    np.testing.assert_allclose(found[:, 1 : 1 + W], x.mean(1))
    np.testing.assert_allclose(found[:, 1 + W :], x.var(1) * 20)


def test_merged_by_hand():
    # {0, 2} and {7}: mean 3, M2 = 9 + 1 + 16.
    a, b = np.array([2.0, 1.0, 2.0]), np.array([1.0, 7.0, 0.0])
    np.testing.assert_allclose(merged(a, b), [3.0, 3.0, 26.0])


@pytest.mark.parametrize(("left", "right"), [(5, 9), (1, 1), (1000, 1)])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_merged_is_the_concatenation(left, right, shift):
    a, b = samples(1, left, shift=shift), samples(2, right, 3.0, shift - 1)
    found, wanted = merged(measured(a), measured(b)), measured(np.concatenate([a, b], axis=1))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    np.testing.assert_allclose(merged(measured(b), measured(a)), wanted, rtol=1e-9)


def test_merged_with_nothing():
    a, nothing = measured(samples(1, 5)), np.zeros((K, 1 + 2 * W))
    np.testing.assert_array_equal(merged(a, nothing), a)
    np.testing.assert_array_equal(merged(nothing, a), a)
    np.testing.assert_array_equal(merged(nothing, nothing), nothing)


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        merged(np.zeros((2, 5)), np.zeros((2, 7)))


def test_in_pieces_as_at_once():
    x, whole, pieces = samples(3, 300, 2.0, 50.0).astype(np.float32), Moments(K, W), Moments(K, W)
    whole.add(x)
    for piece in np.split(x, [1, 2, 50, 51, 200], axis=1):
        pieces.add(piece)
    np.testing.assert_allclose(pieces.seen, whole.seen, rtol=1e-9)
    np.testing.assert_allclose(whole.mean, x.mean(1, dtype=np.float64))
    np.testing.assert_allclose(whole.std, x.std(1, dtype=np.float64))


def test_before_anything_was_seen():
    fresh = Moments(K, W)
    assert (fresh.mean == 0).all()
    assert (fresh.std == 1).all()


def test_what_does_not_vary_does_not_divide_by_nothing():
    fresh = Moments(K, W)
    fresh.add(np.full((K, 10, W), 3.0))
    assert (fresh.std > 0).all()


def test_take_over_does_not_count_twice():
    one, x, y = Moments(K, W), samples(4, 30), samples(5, 20)
    one.add(x)
    one.take_over(one.seen.copy())
    np.testing.assert_allclose(one.mean, x.mean(1))
    one.add(y)
    both = np.concatenate([x, y], axis=1)
    np.testing.assert_allclose(one.mean, both.mean(1))
    np.testing.assert_allclose(one.std, both.std(1))


def test_three_agents_that_merge_and_go_on_know_what_a_centre_would():
    """Two exchanges: what travels is what was seen since the last; the sum is everything, once."""
    agents, centre, everything = Moments(K, W), np.zeros(1 + 2 * W), []
    for exchange in range(2):
        x = samples(6 + exchange, 40, 1.0 + exchange, 10.0 * exchange)
        agents.add(x[:, :25])
        agents.add(x[:, 25:])
        everything.append(x)
        for k in range(K):
            centre = merged(centre, agents.seen[k])
        agents.take_over(centre)
    after = samples(9, 5)
    agents.add(after)
    central = np.concatenate([x.reshape(-1, W) for x in everything])
    for k in range(K):
        mine = np.concatenate([central, after[k]])
        np.testing.assert_allclose(agents.mean[k], mine.mean(0))
        np.testing.assert_allclose(agents.std[k], mine.std(0))
