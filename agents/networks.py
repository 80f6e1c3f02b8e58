"""Stacked multi-layer perceptrons over a weight matrix.

Every row of ``W`` is one network; layers are views of it, and gradients are views of one matrix beside it. The backward
pass is written out: at the sizes of reinforcement learning, an autograd graph costs more than the arithmetic.

Two ways through the same weights: ``infer`` is compiled, for acting on a few observations at a time without a
dispatch per layer; ``forward`` and ``backward`` are matrix products, for learning on batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.streams import Streams

F32 = NDArray[np.float32]


@dataclass
class Tape:
    """What a forward pass leaves for the backward pass; its arrays are used again by the next pass."""

    inputs: list[F32] = field(default_factory=list)
    scratch: dict[Any, F32] = field(default_factory=dict)

    def buffer(self, name: Any, shape: tuple[int, ...]) -> F32:
        found = self.scratch.get(name)
        if found is None or found.shape != shape:
            found = self.scratch[name] = np.empty(shape, dtype=np.float32)
        return found


@dataclass(frozen=True)
class MLP:
    """The shape of a network: layer sizes, the hidden activation, and whether the output passes through tanh.

    A row holds, layer by layer, the weights (inputs x outputs) and then the biases.
    """

    sizes: tuple[int, ...]
    activation: str = "relu"
    squash: bool = False
    precision: str = "float32"

    @property
    def width(self) -> int:
        """How many numbers one network is."""
        return sum((a + 1) * b for a, b in zip(self.sizes, self.sizes[1:], strict=False))

    def layers(self, W: F32) -> list[tuple[F32, F32]]:
        """Views of ``W[..., d]``: weights (..., inputs, outputs) and biases (..., outputs)."""
        lead, found, at = W.shape[:-1], [], 0
        for a, b in zip(self.sizes, self.sizes[1:], strict=False):
            middle, end = at + a * b, at + (a + 1) * b
            found.append((W[..., at:middle].reshape(*lead, a, b), W[..., middle:end]))
            at = end
        assert W.shape[-1] == at, (W.shape, at)
        return found

    def initial(self, streams: Streams, gains: tuple[float, float] | None = None) -> F32:
        """A row per stream: uniform +-1/sqrt(inputs), or orthogonal with (hidden, output) gains and zero biases."""
        W = np.zeros((*streams.keys.shape, self.width), dtype=np.float32)
        layers = self.layers(W)
        for index, (weight, bias) in enumerate(layers):
            a, b = weight.shape[-2:]
            if gains is None:
                bound = 1.0 / math.sqrt(a)
                weight[...] = (2.0 * streams.uniform(a, b) - 1.0) * bound
                bias[...] = (2.0 * streams.uniform(b) - 1.0) * bound
            else:
                gain = gains[0] if index < len(layers) - 1 else gains[1]
                q, r = np.linalg.qr(streams.normal(max(a, b), min(a, b)))
                q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
                weight[...] = gain * (q if a >= b else np.swapaxes(q, -1, -2))
        return W

    def infer(self, W: F32, x: F32, active: NDArray[np.bool_]) -> F32:
        """(K, d), (K, n, inputs) -> (K, n, outputs) where active, zero elsewhere. For acting: few rows, no waiting."""
        out = np.zeros((*x.shape[:2], self.sizes[-1]), dtype=np.float32)
        infer_rows(W, x, np.array(self.sizes), self.activation == "relu", self.squash, active, out)
        return out

    def forward(self, W: F32, x: F32, tape: Tape | None = None) -> F32:
        """(..., d), (..., b, inputs) -> (..., b, outputs); leading axes are broadcast.

        With a tape, the result is valid until the tape's next pass.
        """
        tape = Tape() if tape is None else tape
        layers = self.layers(W)
        tape.inputs = [x]
        for index, (weight, bias) in enumerate(layers):
            h, lead = tape.inputs[-1], bias.shape[:-1]
            if h.shape[:-2] != lead:
                lead = np.broadcast_shapes(h.shape[:-2], lead)
            z = tape.buffer(index, (*lead, h.shape[-2], weight.shape[-1]))
            _product(h, weight, z, self.precision)
            hidden = index < len(layers) - 1
            kind = self.activation if hidden else "tanh" if self.squash else "none"
            _BIASED[kind](z.reshape(-1, *z.shape[-2:]), _flat(bias, lead))
            tape.inputs.append(z)
        return tape.inputs[-1]

    def backward(self, W: F32, tape: Tape, dy: F32, G: F32 | None, want_dx: bool = False) -> F32 | None:
        """Writes d loss / d W into ``G`` (None: not wanted) and returns d loss / d x when wanted. Consumes ``dy``."""
        layers = self.layers(W)
        slots = self.layers(G) if G is not None else [None] * len(layers)
        if self.squash:
            y = tape.inputs[-1]
            dy = dy * (1.0 - y * y)
        sums = _sums(dy.reshape(-1, *dy.shape[-2:]))
        for index in range(len(layers) - 1, -1, -1):
            weight, slot, h = layers[index][0], slots[index], tape.inputs[index]
            if slot is not None:
                _product(np.swapaxes(h, -1, -2), dy, slot[0], self.precision)
                slot[1][...] = sums.reshape(slot[1].shape)
            if index == 0 and not want_dx:
                return None
            dx = tape.buffer(("d", index), (*dy.shape[:-1], weight.shape[-2]))
            _product(dy, np.swapaxes(weight, -1, -2), dx, self.precision)
            if index == 0:
                return dx
            back = _relu_back if self.activation == "relu" else _tanh_back
            sums = back(dx.reshape(-1, *dx.shape[-2:]), h.reshape(-1, *dx.shape[-2:]))
            dy = dx
        return None


# Thin matrices gain nothing from units for bf16 and stay in float32.
_THIN = 16


def _product(a: F32, b: F32, out: F32, precision: str) -> None:
    """out = a @ b. The BLAS under numpy uses what the processor has for float32."""
    if a.shape[-1] == 1:
        lead = out.shape[:-2]
        _outer(_flat(a[..., 0], lead), _flat(b[..., 0, :], lead), out.reshape(-1, *out.shape[-2:]))
    elif precision == "float32" or min(a.shape[-1], b.shape[-1]) < _THIN:
        np.matmul(a, b, out=out)
    else:
        from agents import bfloat  # torch takes seconds to import, which only those wait for who ask for bf16

        bfloat.product(a, b, out)


def _flat(x: F32, lead: tuple[int, ...]) -> F32:
    """(..., n) -> (L, n), one row for each of the leading axes ``lead``."""
    if x.shape[:-1] != lead:
        x = np.broadcast_to(x, (*lead, x.shape[-1]))
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


@njit(cache=True)
def _outer(a, b, out):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        for i in range(out.shape[1]):
            row = out[k, i]
            for j in range(row.shape[0]):
                row[j] = a[k, i] * b[k, j]


@njit(cache=True)
def _sums(x):  # type: ignore[no-untyped-def]
    """(L, b, n) -> (L, n), row by row."""
    out = np.zeros((x.shape[0], x.shape[2]), np.float32)
    for k in range(x.shape[0]):
        total = out[k]
        for i in range(x.shape[1]):
            row = x[k, i]
            for j in range(row.shape[0]):
                total[j] += row[j]
    return out


@njit(cache=True, inline="always", fastmath=True, error_model="numpy")
def _tanh(x):  # type: ignore[no-untyped-def]
    """tanh to 1e-6, in arithmetic that vectorises: exp(2x) = exp(x / 8)^16 by its series."""
    u = min(max(x, np.float32(-9)), np.float32(9)) * np.float32(0.125)
    e = np.float32(1 / 720) + u * np.float32(1 / 5040)
    e = np.float32(1 / 24) + u * (np.float32(1 / 120) + u * e)
    e = np.float32(1) + u * (np.float32(1) + u * (np.float32(1 / 2) + u * (np.float32(1 / 6) + u * e)))
    e = e * e
    e = e * e
    e = e * e
    e = e * e
    return (e - np.float32(1)) / (e + np.float32(1))


@njit(cache=True, fastmath=True, error_model="numpy")
def _add(z, bias):  # type: ignore[no-untyped-def]
    for k in range(z.shape[0]):
        b = bias[k]
        for i in range(z.shape[1]):
            row = z[k, i]
            for j in range(row.shape[0]):
                row[j] += b[j]


@njit(cache=True, fastmath=True, error_model="numpy")
def _add_relu(z, bias):  # type: ignore[no-untyped-def]
    for k in range(z.shape[0]):
        b = bias[k]
        for i in range(z.shape[1]):
            row = z[k, i]
            for j in range(row.shape[0]):
                row[j] = max(row[j] + b[j], np.float32(0))


@njit(cache=True, fastmath=True, error_model="numpy")
def _add_tanh(z, bias):  # type: ignore[no-untyped-def]
    for k in range(z.shape[0]):
        b = bias[k]
        for i in range(z.shape[1]):
            row = z[k, i]
            for j in range(row.shape[0]):
                row[j] = _tanh(row[j] + b[j])


_BIASED = {"none": _add, "relu": _add_relu, "tanh": _add_tanh}


@njit(cache=True, fastmath=True, error_model="numpy")
def _relu_back(dh, h):  # type: ignore[no-untyped-def]
    """From d loss / d h to that by what the activation was given, in place; returns its sums, for the biases."""
    sums = np.zeros((dh.shape[0], dh.shape[2]), np.float32)
    for k in range(dh.shape[0]):
        total = sums[k]
        for i in range(dh.shape[1]):
            d, y = dh[k, i], h[k, i]
            for j in range(d.shape[0]):
                d[j] = d[j] if y[j] > 0 else np.float32(0)
                total[j] += d[j]
    return sums


@njit(cache=True, fastmath=True, error_model="numpy")
def _tanh_back(dh, h):  # type: ignore[no-untyped-def]
    sums = np.zeros((dh.shape[0], dh.shape[2]), np.float32)
    for k in range(dh.shape[0]):
        total = sums[k]
        for i in range(dh.shape[1]):
            d, y = dh[k, i], h[k, i]
            for j in range(d.shape[0]):
                d[j] *= np.float32(1) - y[j] * y[j]
                total[j] += d[j]
    return sums


@njit(cache=True, fastmath=True, error_model="numpy")
def infer_rows(W, x, sizes, relu, squash, active, out):  # type: ignore[no-untyped-def]
    widest = sizes.max()
    here, there = np.empty(widest, np.float32), np.empty(widest, np.float32)
    last = len(sizes) - 2
    for k in range(x.shape[0]):
        for i in range(x.shape[1]):
            if not active[k, i]:
                continue
            here[: sizes[0]] = x[k, i]
            at = 0
            for layer in range(last + 1):
                a, b = sizes[layer], sizes[layer + 1]
                there[:b] = W[k, at + a * b : at + a * b + b]
                for p in range(a):
                    v = here[p]
                    row = W[k, at + p * b : at + p * b + b]
                    for q in range(b):
                        there[q] += v * row[q]
                if layer < last and relu:
                    for q in range(b):
                        there[q] = max(there[q], np.float32(0))
                elif layer < last or squash:
                    for q in range(b):
                        there[q] = _tanh(there[q])
                here, there = there, here
                at += (a + 1) * b
            for q in range(sizes[-1]):
                out[k, i, q] = here[q]
