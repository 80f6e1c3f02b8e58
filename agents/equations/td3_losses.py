"""The targets and losses of TD3, each loss with its derivative."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@njit(cache=True)
def smoothed_action(action, noise, limit):  # type: ignore[no-untyped-def]
    """clip(mu'(s') + clip(noise, -c, c), -1, 1): target policy smoothing, in units of the action range."""
    assert action.shape == noise.shape
    held = np.minimum(np.maximum(noise, -limit), limit)
    return np.minimum(np.maximum(action + held, -1.0), 1.0).astype(np.float32)


@njit(cache=True)
def twin_target(reward, terminated, q_next, gamma):  # type: ignore[no-untyped-def]
    """y = r + gamma (1 - terminated) min(Q1', Q2'); truncation bootstraps.   (K, b), (K, b), (K, 2, b) -> (K, b)"""
    assert q_next.shape == (reward.shape[0], 2, reward.shape[1])
    assert reward.shape == terminated.shape
    y = np.empty(reward.shape, np.float32)
    for k in range(y.shape[0]):
        for i in range(y.shape[1]):
            future = 0.0 if terminated[k, i] else gamma * min(q_next[k, 0, i], q_next[k, 1, i])
            y[k, i] = reward[k, i] + future
    return y


@njit(cache=True)
def twin_loss(q, y):  # type: ignore[no-untyped-def]
    """L = mean_b (Q1 - y)^2 + mean_b (Q2 - y)^2.   (K, 2, b), (K, b) -> L (K,), dL / dQ (K, 2, b)"""
    assert q.shape == (y.shape[0], 2, y.shape[1])
    loss, slope, b = np.zeros(len(y), np.float32), np.empty(q.shape, np.float32), y.shape[1]
    for k in range(q.shape[0]):
        for j in range(2):
            for i in range(b):
                gap = q[k, j, i] - y[k, i]
                loss[k] += gap * gap / b
                slope[k, j, i] = 2.0 * gap / b
    return loss, slope


def l2_pull(w: F32, anchor: F32, beta: float) -> tuple[F32, F32]:
    """L = beta ||w - w_glob||^2 (squared, no 1/2).   (K, d) each -> L (K,), dL / dw (K, d)"""
    assert w.shape == anchor.shape, (w.shape, anchor.shape)
    gap = w - anchor
    return np.float32(beta) * np.einsum("kd,kd->k", gap, gap), np.float32(2.0 * beta) * gap


def action_pull(action: F32, anchor: F32, sigma: float) -> tuple[F32, F32]:
    """L = mean_b |a - a_glob|^2 / 2 sigma^2: the KL between Gaussians of equal sigma.   (K, b, a) -> L (K,), dL / da"""
    assert action.shape == anchor.shape, (action.shape, anchor.shape)
    gap, b = action - anchor, action.shape[1]
    return np.einsum("kba,kba->k", gap, gap) / np.float32(2.0 * sigma**2 * b), gap / np.float32(sigma**2 * b)


def value_pull(q: F32, anchor: F32) -> tuple[F32, F32]:
    """L = mean_b (Q1 - Q1_glob)^2 + mean_b (Q2 - Q2_glob)^2.   (K, 2, b) each -> L (K,), dL / dQ (K, 2, b)"""
    assert q.shape == anchor.shape, (q.shape, anchor.shape)
    gap, b = q - anchor, q.shape[2]
    return np.einsum("kjb,kjb->k", gap, gap) / np.float32(b), gap * np.float32(2.0 / b)
