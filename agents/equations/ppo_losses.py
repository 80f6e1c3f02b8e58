"""The losses of PPO, one value per sample (K, b), each with its derivative."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@njit(cache=True)
def clipped_surrogate(log_ratio, advantage, epsilon):  # type: ignore[no-untyped-def]
    """L = -min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = exp(log_ratio).   -> L, dL / d log_ratio"""
    assert log_ratio.shape == advantage.shape
    loss, slope = np.empty(log_ratio.shape, np.float32), np.empty(log_ratio.shape, np.float32)
    for k in range(loss.shape[0]):
        for i in range(loss.shape[1]):
            # In float64 throughout: inside the clip the two products must be equal to the last bit.
            rho, A = math.exp(np.float64(log_ratio[k, i])), np.float64(advantage[k, i])
            clipped = min(max(rho, 1.0 - epsilon), 1.0 + epsilon)
            loss[k, i] = -min(rho * A, clipped * A)
            slope[k, i] = -rho * A if rho * A <= clipped * A else 0.0
    return loss, slope


@njit(cache=True)
def surrogate(log_ratio, advantage):  # type: ignore[no-untyped-def]
    """L = -rho A.   -> L, dL / d log_ratio"""
    assert log_ratio.shape == advantage.shape
    loss = np.empty(log_ratio.shape, np.float32)
    for k in range(loss.shape[0]):
        for i in range(loss.shape[1]):
            loss[k, i] = -math.exp(log_ratio[k, i]) * advantage[k, i]
    return loss, loss.copy()


@njit(cache=True)
def value_loss(value, target):  # type: ignore[no-untyped-def]
    """L = (V - R)^2 / 2.   -> L, dL / dV"""
    assert value.shape == target.shape
    slope = value - target
    return np.float32(0.5) * slope * slope, slope


@njit(cache=True)
def clipped_value_loss(value, old, target, epsilon):  # type: ignore[no-untyped-def]
    """L = max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2.   -> L, dL / dV"""
    assert value.shape == old.shape == target.shape
    loss, slope = np.empty(value.shape, np.float32), np.empty(value.shape, np.float32)
    for k in range(loss.shape[0]):
        for i in range(loss.shape[1]):
            change = value[k, i] - old[k, i]
            free = value[k, i] - target[k, i]
            held = old[k, i] + min(max(change, -epsilon), epsilon) - target[k, i]
            if free * free >= held * held:
                loss[k, i], slope[k, i] = 0.5 * free * free, free
            else:
                loss[k, i], slope[k, i] = 0.5 * held * held, held if abs(change) < epsilon else 0.0
    return loss, slope


@njit(cache=True)
def approximate_kl(log_ratio):  # type: ignore[no-untyped-def]
    """KL(old || new) estimated without bias from samples of old: (rho - 1) - log rho.   (K, b) -> (K, b)"""
    return np.expm1(log_ratio) - log_ratio


def adapted_beta(beta: F32, measured: F32, target: float) -> F32:
    """beta doubled where the measured KL exceeds 1.5 target, halved where it is below target / 1.5.   (K,) -> (K,)"""
    assert beta.shape == measured.shape, (beta.shape, measured.shape)
    scaled = np.where(measured > 1.5 * target, beta * 2.0, np.where(measured < target / 1.5, beta / 2.0, beta))
    return scaled.astype(np.float32)
