"""Stacked networks against torch modules with the same weights, one per row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import bfloat, networks
from agents.networks import MLP, Tape
from core.streams import Streams
from tests.agents.slow import mlp, row_of
from tests.agents.tiny import spread

KINDS = [(a, s) for a in ("relu", "tanh") for s in (False, True)]


def module(net: MLP, row: np.ndarray) -> torch.nn.Sequential:
    return mlp(net.sizes, net.activation, net.squash, row)


def case(lead, shared, sizes=(5, 8, 6, 3), b=9, seed=0, **kind):
    """A net, weights (*lead, d), input (*lead or shared, b, in), and a gradient of the output."""
    net = MLP(sizes, **kind)
    x = spread((*(n if not s else 1 for n, s in zip(lead, shared, strict=True)), b, sizes[0]), seed + 1)
    return net, spread((*lead, net.width), seed, 0.5), x, spread((*lead, b, sizes[-1]), seed + 2)


LEADS = [((3,), (False,)), ((3, 2), (False, True)), ((1,), (False,))]


@pytest.mark.parametrize(("activation", "squash"), KINDS)
@pytest.mark.parametrize(("lead", "shared"), LEADS)
@pytest.mark.parametrize(("sizes", "b"), [((5, 8, 6, 3), 9), ((1, 4, 1), 1), ((3, 2), 4)])
def test_forward_and_backward(activation, squash, lead, shared, sizes, b):
    net, W, x, dy = case(lead, shared, sizes, b, activation=activation, squash=squash)
    tape, G = Tape(), np.full_like(W, 7.0)
    y = net.forward(W, x, tape).copy()
    dx = net.backward(W, tape, dy.copy(), G, want_dx=True)
    assert dx is not None
    wide = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    for at in np.ndindex(lead):
        one = module(net, W[at])
        given = torch.tensor(wide[at], dtype=torch.float64, requires_grad=True)
        found = one(given)
        found.backward(torch.tensor(dy[at], dtype=torch.float64))
        np.testing.assert_allclose(y[at], found.detach().numpy(), rtol=1e-4, atol=5e-6)
        np.testing.assert_allclose(G[at], row_of(one, gradient=True), rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(dx[at], given.grad.numpy(), rtol=1e-3, atol=2e-5)


def test_only_what_is_wanted():
    net, W, x, dy = case((3,), (False,))
    tape, G = Tape(), np.empty((3, MLP((5, 8, 6, 3)).width), np.float32)
    net.forward(W, x, tape)
    assert net.backward(W, tape, dy.copy(), G) is None
    net.forward(W, x, tape)
    dx = net.backward(W, tape, dy.copy(), None, want_dx=True)
    fresh = Tape()
    net.forward(W, x, fresh)
    other = np.empty_like(G)
    np.testing.assert_array_equal(dx, net.backward(W, fresh, dy.copy(), other, want_dx=True))
    np.testing.assert_array_equal(G, other)


def test_a_tape_serves_passes_of_different_sizes():
    net, W, x, dy = case((3,), (False,), activation="tanh")
    tape = Tape()
    net.forward(W, spread((3, 31, 5), 5), tape)
    y, G = net.forward(W, x, tape).copy(), np.empty_like(W)
    net.backward(W, tape, dy.copy(), G)
    fresh, wanted = Tape(), np.empty_like(W)
    np.testing.assert_array_equal(y, net.forward(W, x, fresh))
    net.backward(W, fresh, dy.copy(), wanted)
    np.testing.assert_array_equal(G, wanted)


@pytest.mark.parametrize(("activation", "squash"), KINDS)
def test_infer_equals_forward(activation, squash):
    net, W, x, _ = case((4,), (False,), activation=activation, squash=squash)
    active = np.random.default_rng(0).random((4, 9)) < 0.6
    found = net.infer(W, x, active)
    np.testing.assert_allclose(found[active], net.forward(W, x)[active], rtol=1e-5, atol=2e-6)
    assert (~active).any()
    assert (found[~active] == 0).all()


def test_infer_reads_a_row_that_holds_more():
    """A Gaussian policy's rows end with its deviations."""
    net, W, x, _ = case((2,), (False,))
    wider = np.concatenate([W, np.full((2, 3), 1e6, np.float32)], axis=1)
    everyone = np.ones((2, 9), bool)
    np.testing.assert_array_equal(net.infer(wider, x, everyone), net.infer(W, x, everyone))


def test_layers_are_views():
    net = MLP((2, 3, 1))
    W = np.zeros((2, net.width), np.float32)
    for weight, bias in net.layers(W):
        weight += 1.0
        bias += 2.0
    # 2 x 3 weights, 3 biases, 3 x 1 weights, 1 bias.
    np.testing.assert_array_equal(W, [[1.0] * 6 + [2.0] * 3 + [1.0] * 3 + [2.0]] * 2)


def test_tanh_is_accurate():
    x = np.concatenate([np.linspace(-20, 20, 200_001), [0.0, -1e-8, 1e-8, 1e4, -1e4]]).astype(np.float32)
    z = x.reshape(1, -1, 1).copy()
    networks._add_tanh(z, np.zeros((1, 1), np.float32))
    assert np.abs(z[0, :, 0] - np.tanh(x.astype(np.float64))).max() <= 1e-6
    assert np.abs(z).max() <= 1.0


# --- initial weights --------------------------------------------------------------------------------------------------


def test_initial_orthogonal():
    net, seeds = MLP((6, 32, 16, 16, 2)), [3, 4, 5]
    W = net.initial(Streams(seeds, "policy"), gains=(2.0**0.5, 0.01))
    layers = net.layers(W)
    for index, (weight, bias) in enumerate(layers):
        assert (bias == 0).all()
        gain = 0.01 if index == len(layers) - 1 else 2.0**0.5
        for one in weight.astype(np.float64) / gain:
            small = one if one.shape[0] >= one.shape[1] else one.T
            np.testing.assert_allclose(small.T @ small, np.eye(small.shape[1]), atol=1e-5)
    assert not np.allclose(W[0], W[1])


def test_initial_orthogonal_is_uniform_over_rotations():
    """The sign correction: without it the diagonal of Q is biased, and entries do not average to nothing."""
    weight, _ = MLP((3, 3)).layers(MLP((3, 3)).initial(Streams(range(4000), "w"), gains=(1.0, 1.0)))[0]
    assert np.abs(weight.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose((weight**2).mean(axis=0), np.full((3, 3), 1 / 3), atol=0.03)


def test_initial_uniform():
    net = MLP((100, 50, 2))
    W = net.initial(Streams(range(20), "actor"))
    for weight, bias in net.layers(W):
        bound = 1.0 / np.sqrt(weight.shape[-2])
        for part in (weight, bias):
            assert np.abs(part).max() <= bound
            assert np.abs(part).max() > 0.95 * bound
            np.testing.assert_allclose(part.std(), bound / np.sqrt(3.0), rtol=0.15)


@pytest.mark.parametrize("gains", [None, (1.4, 0.01)])
def test_initial_does_not_depend_on_the_fleet(gains):
    net = MLP((4, 16, 2))
    together = net.initial(Streams([10, 11, 12], "policy"), gains)
    for k, seed in enumerate([10, 11, 12]):
        np.testing.assert_array_equal(net.initial(Streams([seed], "policy"), gains)[0], together[k])
    assert not np.allclose(together[0], net.initial(Streams([10], "value"), gains)[0])


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [((3,), (False,)), ((3, 2), (False, True))])
def test_bf16_is_float32_to_bf16_precision(lead):
    """Products of numbers with 8 significant bits: relative errors of 2^-8 per factor, averaged out over a sum."""
    sizes = (24, 64, 64, 4)
    net, W, x, dy = case(*lead, sizes, 128)
    rough = MLP(sizes, precision="bf16")
    tape, other, G, H = Tape(), Tape(), np.empty_like(W), np.empty_like(W)
    y, z = net.forward(W, x, tape), rough.forward(W, x, other)
    dx = net.backward(W, tape, dy.copy(), G, want_dx=True)
    ex = rough.backward(W, other, dy.copy(), H, want_dx=True)
    # Rounding also flips units that are near 0, so gradients differ more than outputs do.
    for exact, found, bound in ((y, z, 0.02), (G, H, 0.06), (dx, ex, 0.06)):
        assert 0 < np.linalg.norm(found - exact) <= bound * np.linalg.norm(exact)


def test_bf16_does_not_reach_other_products(monkeypatch):
    """Asking for bf16 in one network leaves the products of everybody else in the process as they were."""
    monkeypatch.setattr(bfloat, "_UNITS", True)
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = "ieee"
        net, W, x, _ = case((2,), (False,), (32, 32, 32))
        MLP(net.sizes, precision="bf16").forward(W, x)
        assert products.fp32_precision == "ieee"
    finally:
        products.fp32_precision = before
