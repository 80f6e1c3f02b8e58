"""Optimisers as one fused pass over a weight matrix: Adam, each row with its own step count, and plain descent."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.rows import Rows

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Adam(Rows):
    """The optimiser of one part: moments beside the weights, bias-corrected (Kingma & Ba 2015)."""

    ROWS = ("m", "v", "t")

    def __init__(self, rows: int, width: int, epsilon: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.m: F32 = np.zeros((rows, width), np.float32)
        self.v: F32 = np.zeros((rows, width), np.float32)
        self.t = np.zeros(rows, np.int64)
        self.epsilon, self.betas = epsilon, betas

    def step(
        self, W: F32, G: F32, rate: float, cut: F32 | None = None, active: NDArray[np.bool_] | None = None
    ) -> None:
        """W goes down G, each active row's gradient scaled by its ``cut``."""
        _adam(W, G, self.m, self.v, self.t, rate, *self.betas, self.epsilon, cut, active)


class SGD(Rows):
    """W goes down G: nothing is remembered, so the mean of many steps is the step of the mean."""

    def __init__(self, rows: int, width: int) -> None:
        pass

    def step(self, W: F32, G: F32, rate: float, active: Bools | None = None) -> None:
        rows = slice(None) if active is None else active
        W[rows] -= np.float32(rate) * G[rows]


def norm_cut(max_norm: float, *gradients: F32) -> tuple[F32, F32]:
    """Each agent's gradient norm over several parts together, and the factor that cuts it to ``max_norm`` (0: none)."""
    squares: F32 = np.sum([np.einsum("kd,kd->k", G, G) for G in gradients], axis=0, dtype=np.float32)
    norms = np.sqrt(squares)
    if max_norm <= 0:
        return norms, np.ones_like(norms)
    return norms, np.minimum(np.float32(1), np.float32(max_norm) / (norms + np.float32(1e-6)))


@njit(cache=True, fastmath=True, error_model="numpy")
def _adam(W, G, m, v, t, rate, beta1, beta2, epsilon, cut, active):  # type: ignore[no-untyped-def]
    b1, b2 = np.float32(beta1), np.float32(beta2)
    c1, c2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    eps = np.float32(epsilon)
    for k in range(W.shape[0]):
        if active is not None:  # noqa: SIM102 (numba knows this test when it compiles, and leaves out what is dead)
            if not active[k]:
                continue
        w, g, mk, vk = W[k], G[k], m[k], v[k]
        scale = np.float32(1) if cut is None else cut[k]
        t[k] += 1
        step = np.float32(rate / (1.0 - beta1 ** t[k]))
        root = np.float32(1.0 / np.sqrt(1.0 - beta2 ** t[k]))
        for j in range(w.shape[0]):
            x = g[j] * scale
            mk[j] = b1 * mk[j] + c1 * x
            vk[j] = b2 * vk[j] + c2 * (x * x)
            w[j] -= step * mk[j] / (np.sqrt(vk[j]) * root + eps)


@njit(cache=True, fastmath=True, error_model="numpy")
def polyak(target, source, tau):  # type: ignore[no-untyped-def]
    """target = (1 - tau) target + tau source, in place."""
    share = np.float32(tau)
    for k in range(target.shape[0]):
        for j in range(target.shape[1]):
            target[k, j] += share * (source[k, j] - target[k, j])
