"""The optimiser against torch's, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.adam import Adam, norm_cut, polyak
from tests.agents.tiny import spread

K, D = 4, 37


@pytest.mark.parametrize(("epsilon", "rate"), [(1e-8, 1e-3), (1e-5, 2.5e-4)])
def test_adam_is_torchs(epsilon, rate):
    """Fifty steps; rows sit out some of them, so that each has its own step count; gradients are scaled."""
    W = spread((K, D), 0)
    ours = Adam(K, D, epsilon=epsilon)
    rows = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in W]
    theirs = [torch.optim.Adam([row], lr=rate, eps=epsilon) for row in rows]
    rng = np.random.default_rng(1)
    for step in range(50):
        G, cut = spread((K, D), 10 + step), rng.uniform(0.1, 1.0, K).astype(np.float32)
        active = rng.random(K) < (0.3, 0.6, 1.0, 0.0)
        ours.step(W, G, rate, cut, active)
        for k in np.flatnonzero(active):
            rows[k].grad = torch.tensor(G[k] * cut[k], dtype=torch.float64)
            theirs[k].step()
    counts = [int(o.state[r]["step"]) if o.state else 0 for o, r in zip(theirs, rows, strict=True)]
    np.testing.assert_array_equal(ours.t, counts)
    assert len(set(counts)) == 4
    np.testing.assert_allclose(W, [row.detach().numpy() for row in rows], rtol=0, atol=2e-6)
    for k, count in enumerate(counts):
        if count:
            state = theirs[k].state[rows[k]]
            np.testing.assert_allclose(ours.m[k], state["exp_avg"], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(ours.v[k], state["exp_avg_sq"], rtol=1e-4, atol=1e-6)


def test_rows_that_are_not_active_stay():
    W, ours = spread((K, D), 0), Adam(K, D)
    ours.step(W, spread((K, D), 1), 1e-3)
    before = W.copy(), {name: x.copy() for name, x in ours.state().items()}
    active = np.array([True, False, True, False])
    ours.step(W, spread((K, D), 2), 1e-3, active=active)
    for now, was in ((W, before[0]), *((ours.state()[name], x) for name, x in before[1].items())):
        np.testing.assert_array_equal(now[~active], was[~active])
        assert (now[active] != was[active]).all(axis=-1).all()


def test_first_step_by_hand():
    # Bias correction makes m = g and v = g^2: the step is rate * g / (|g| + eps).
    W = np.zeros((1, 3), np.float32)
    Adam(1, 3).step(W, np.array([[5.0, -0.01, 0.0]], np.float32), 0.1)
    np.testing.assert_allclose(W, [[-0.1, 0.1, 0.0]], rtol=1e-5)


@pytest.mark.parametrize("bound", [0.5, 7.0, 1e4])
def test_norm_cut_is_torchs(bound):
    one, two = spread((K, D), 1), spread((K, 5), 2, 3.0)
    norms, cut = norm_cut(bound, one, two)
    for k in range(K):
        parts = [torch.nn.Parameter(torch.zeros(n)) for n in (D, 5)]
        for part, g in zip(parts, (one[k], two[k]), strict=True):
            part.grad = torch.tensor(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(parts, bound)
        np.testing.assert_allclose(norms[k], norm, rtol=1e-5)
        np.testing.assert_allclose(one[k] * cut[k], parts[0].grad, rtol=1e-5)
        np.testing.assert_allclose(two[k] * cut[k], parts[1].grad, rtol=1e-5)


def test_no_bound_cuts_nothing():
    norms, cut = norm_cut(0.0, np.array([[3.0, 4.0]], np.float32))
    assert norms.tolist() == [5.0]
    assert cut.tolist() == [1.0]


def test_polyak():
    target, source = spread((K, D), 1), spread((K, D), 2)
    wanted = 0.9 * target.astype(np.float64) + 0.1 * source
    polyak(target, source, 0.1)
    np.testing.assert_allclose(target, wanted, rtol=1e-5, atol=1e-6)
    polyak(target, source, 1.0)
    np.testing.assert_allclose(target, source, rtol=1e-6, atol=1e-7)
