"""Importance weights, and the variance-reduced policy gradient of SCSG and PAGE."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def importance_weight(log_prob_then: F32, log_prob_now: F32) -> F32:
    """w_t = pi_0(a_t|s_t) / pi_n(a_t|s_t), per timestep (SCSG).   (K, L) each -> (K, L)"""
    assert log_prob_then.shape == log_prob_now.shape, (log_prob_then.shape, log_prob_now.shape)
    weight: F32 = np.exp(log_prob_then - log_prob_now)
    return weight


@njit(cache=True)
def trajectory_weight(log_prob_then, log_prob_now, last, used):  # type: ignore[no-untyped-def]
    """w = prod_t pi_then / pi_now over a trajectory, the same at each of its steps (PAGE).   (K, L) each -> (K, L)

    The logarithms are added up first: hundreds of ratios multiplied in float32 vanish.
    """
    assert log_prob_then.shape == log_prob_now.shape == last.shape
    assert used.shape == (len(last),)
    out = np.zeros(last.shape, np.float32)
    for k in range(last.shape[0]):
        begin, log_ratio = 0, 0.0
        for t in range(used[k]):
            log_ratio += float(log_prob_then[k, t]) - float(log_prob_now[k, t])
            if last[k, t]:
                out[k, begin : t + 1] = math.exp(log_ratio)
                begin, log_ratio = t + 1, 0.0
    return out


def scsg_direction(now: F32, then_weighted: F32, mu: F32) -> F32:
    """v = g(theta_n) - g_w(theta_0) + mu: the variance-reduced ascent direction.   (..., d) each -> (..., d)"""
    assert now.shape == then_weighted.shape == mu.shape, (now.shape, then_weighted.shape, mu.shape)
    return now - then_weighted + mu
