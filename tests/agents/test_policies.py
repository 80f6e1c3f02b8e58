"""What policies draw, and what their outputs say, against torch's distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Normal, kl_divergence

from agents.policies import Policy
from core.errors import Mistake
from core.streams import Streams
from tests.agents.tiny import spread

SEEN = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTIONS = {"discrete": spaces.Discrete(4), "continuous": spaces.Box(-2.0, 3.0, (2,), np.float32)}
K, B = 3, 6


def policy(kind, squash=False):
    return Policy(SEEN, ACTIONS[kind], (8,), "tanh", squash)


def weights(kind, seed=0, scale=0.7):
    return spread((K, policy(kind).width), seed, scale)


def theirs(kind, W, obs):
    """The same distributions in torch."""
    shape = policy(kind)
    net, log_std = shape.split(W)
    values = torch.tensor(shape.net.forward(net, obs)).double()
    if kind == "discrete":
        return Categorical(logits=values)
    return Normal(values, torch.tensor(np.asarray(log_std)).double().exp()[:, None].expand_as(values))


def total(x):
    return (x if x.dim() == 2 else x.sum(-1)).numpy()


@pytest.mark.parametrize("kind", ACTIONS)
def test_outputs_are_torchs_distributions(kind):
    W, V, obs = weights(kind, 0), weights(kind, 1), spread((K, B, 3), 2)
    shape = policy(kind)
    p, q = shape.outputs(W, obs), shape.outputs(V, obs)
    P, Q = theirs(kind, W, obs), theirs(kind, V, obs)
    action = P.sample().numpy().astype(np.int64 if kind == "discrete" else np.float32)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(p.log_prob(action), total(P.log_prob(torch.tensor(action))), **close)
    np.testing.assert_allclose(p.entropy(), total(P.entropy()), **close)
    np.testing.assert_allclose(p.kl(q), total(kl_divergence(P, Q)), **close)
    np.testing.assert_allclose(q.kl(p), total(kl_divergence(Q, P)), **close)
    assert np.abs(p.kl(q) - q.kl(p)).max() > 0.01, "the directions differ, or this test says nothing"


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("term", ["log_prob", "entropy", "kl", "kl_other"])
@pytest.mark.parametrize("squash", [False, True])
def test_backward_is_the_gradient_of_the_whole_policy(kind, term, squash):
    """From a loss to the weights, log_std included, by finite differences in the direction of the gradient."""
    shape, obs, d = policy(kind, squash), spread((K, B, 3), 2), spread((K, B), 3)
    W, other = weights(kind, 0), policy(kind, squash).outputs(weights(kind, 1), obs)
    drawn = np.random.default_rng(0).integers(0, 4, (K, B)) if kind == "discrete" else spread((K, B, 2), 4)

    def said(V):
        now = shape.outputs(V, obs)
        return {
            "log_prob": lambda: now.log_prob(drawn),
            "entropy": lambda: now.entropy(),
            "kl": lambda: now.kl(other),
            "kl_other": lambda: other.kl(now),
        }[term]()

    tape = networks_tape()
    now = shape.outputs(W, obs, tape)
    back, G = now.zeros(), np.full_like(W, np.nan)
    {
        "log_prob": lambda: now.log_prob_back(drawn, d, back),
        "entropy": lambda: now.entropy_back(now.entropy(), d, back),
        "kl": lambda: now.kl_back(other, now.kl(other), d, back),
        "kl_other": lambda: other.kl_back_other(now, d, back),
    }[term]()
    shape.backward(W, tape, back, G)
    for direction in (G, spread(W.shape, 8)):
        way = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
        h = np.float32(2e-3)
        change = ((said(W + h * way) - said(W - h * way)).astype(np.float64) * d).sum(1) / (2 * h)
        np.testing.assert_allclose((G * way).sum(1), change, rtol=0.02, atol=0.02)


def networks_tape():
    from agents.networks import Tape

    return Tape()


def test_categorical_draws_follow_the_softmax():
    shape, W, n = policy("discrete"), weights("discrete", 3, 1.5), 40_000
    obs = np.repeat(spread((K, 1, 3), 5), n, axis=1)
    actions, outputs = shape.act(W, obs, Streams(range(K), "acting", lanes=n), np.ones((K, n), bool))
    p = theirs("discrete", W, obs[:, :1]).probs[:, 0].numpy()
    found = np.stack([(actions == a).mean(axis=1) for a in range(4)], axis=1)
    assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n)).all()
    np.testing.assert_allclose(outputs[:, 0], shape.outputs(W, obs[:, :1]).values[:, 0], rtol=1e-4, atol=1e-5)


def test_gaussian_draws_have_their_mean_and_deviation():
    shape, W, n = policy("continuous"), weights("continuous", 3), 40_000
    obs = np.repeat(spread((K, 1, 3), 5), n, axis=1)
    actions, outputs = shape.act(W, obs, Streams(range(K), "acting", lanes=n), np.ones((K, n), bool))
    P = theirs("continuous", W, obs[:, :1])
    mean, std = P.mean[:, 0].numpy(), P.stddev[:, 0].numpy()
    np.testing.assert_allclose(outputs[:, 0], mean, rtol=1e-4, atol=1e-5)
    assert (np.abs(actions.mean(1) - mean) < 4.5 * std / np.sqrt(n)).all()
    np.testing.assert_allclose(actions.std(1), std, rtol=0.02)
    z = (actions - mean[:, None]) / std[:, None]
    assert np.abs((z**3).mean(1)).max() < 0.1
    np.testing.assert_allclose((z**4).mean(1), 3.0, atol=0.2)
    assert np.abs((z[..., 0] * z[..., 1]).mean(1)).max() < 0.05, "the actions of a step are drawn apart"


@pytest.mark.parametrize("kind", ACTIONS)
def test_streams_move_only_where_active(kind):
    shape, W, obs = policy(kind), weights(kind), spread((K, B, 3), 1)
    active = np.zeros((K, B), bool)
    active[0, 2] = active[2, :3] = True
    streams, all_ = Streams(range(K), "acting", lanes=B), Streams(range(K), "acting", lanes=B)
    some, _ = shape.act(W, obs, streams, active)
    whole, _ = shape.act(W, obs, all_, np.ones((K, B), bool))
    assert (streams.counts[~active] == 0).all()
    assert (streams.counts[active] > 0).all()
    np.testing.assert_array_equal(some[active], whole[active])


def test_without_streams_the_likeliest():
    obs, everyone = spread((K, B, 3), 1), np.ones((K, B), bool)
    W = weights("discrete", scale=2.0)
    actions, _ = policy("discrete").act(W, obs, None, everyone)
    np.testing.assert_array_equal(actions, theirs("discrete", W, obs).probs.argmax(-1).numpy())
    W = weights("continuous")
    actions, _ = policy("continuous").act(W, obs, None, everyone)
    np.testing.assert_allclose(actions, theirs("continuous", W, obs).mean.numpy(), rtol=1e-4, atol=1e-5)


def test_the_world_is_told_actions_inside_its_range():
    told = policy("continuous").to_world(np.array([[[-9.0, 0.5], [9.0, 2.9]]], np.float32))
    np.testing.assert_allclose(told, [[[-2.0, 0.5], [3.0, 2.9]]], rtol=1e-6)


def test_first_policies():
    """A small last layer: nearly uniform, and a deviation of one."""
    for kind in ACTIONS:
        shape = policy(kind)
        W = shape.initial(Streams(range(K), "policy"), (2.0**0.5, 0.01))
        assert W.shape == (K, shape.width)
        assert np.abs(shape.outputs(W, spread((K, B, 3))).values).max() < 0.1
        if kind == "continuous":
            assert (shape.split(W)[1] == 0).all()


def test_tanh_logits_are_bounded():
    shape = policy("discrete", squash=True)
    values = shape.outputs(weights("discrete", scale=50.0), spread((K, B, 3), scale=100.0)).values
    assert np.abs(values).max() <= 1.0


def test_unbounded_actions_are_refused():
    with pytest.raises(Mistake, match="bounded"):
        Policy(SEEN, spaces.Box(-np.inf, np.inf, (1,), np.float32), (8,), "tanh", False)
