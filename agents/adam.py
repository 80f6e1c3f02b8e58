"""Adam as one fused pass over a weight matrix, each row with its own step count."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.rows import Rows

F32 = NDArray[np.float32]


class Adam(Rows):
    """The optimiser of one part: moments beside the weights, bias-corrected (Kingma & Ba 2015)."""

    ROWS = ("m", "v", "t")

    def __init__(self, rows: int, width: int, epsilon: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.m: F32 = np.zeros((rows, width), np.float32)
        self.v: F32 = np.zeros((rows, width), np.float32)
        self.t = np.zeros(rows, np.int64)
        self.epsilon, self.betas = epsilon, betas

    def step(self, W: F32, G: F32, rate: float, max_norm: float = 0.0, active: NDArray[np.bool_] | None = None) -> F32:
        """W goes down G, each row's gradient cut to ``max_norm`` first (0: never). Returns the norms before the cut."""
        norms = np.empty(len(W), np.float32)
        everyone = np.ones(len(W), np.bool_) if active is None else active
        _adam(W, G, self.m, self.v, self.t, rate, *self.betas, self.epsilon, max_norm, everyone, norms)
        return norms


@njit(cache=True, fastmath=True, error_model="numpy")
def _adam(W, G, m, v, t, rate, beta1, beta2, epsilon, max_norm, active, norms):  # type: ignore[no-untyped-def]
    b1, b2 = np.float32(beta1), np.float32(beta2)
    c1, c2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    eps = np.float32(epsilon)
    for k in range(W.shape[0]):
        if not active[k]:
            norms[k] = np.float32(0)
            continue
        w, g, mk, vk = W[k], G[k], m[k], v[k]
        square = np.float32(0)
        if max_norm > 0:
            for j in range(w.shape[0]):
                square += g[j] * g[j]
        norms[k] = np.sqrt(square)
        cut = np.float32(1)
        if max_norm > 0 and norms[k] > max_norm:
            cut = np.float32(max_norm / (norms[k] + 1e-6))
        t[k] += 1
        step = np.float32(rate / (1.0 - beta1 ** t[k]))
        root = np.float32(1.0 / np.sqrt(1.0 - beta2 ** t[k]))
        for j in range(w.shape[0]):
            x = g[j] * cut
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
