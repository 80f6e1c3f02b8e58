"""Returns, advantages, and how they are whitened."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@njit(cache=True)
def discounted_returns(reward, last, gamma):  # type: ignore[no-untyped-def]
    """R_t = r_t + gamma R_{t+1}, begun afresh after every ``last`` step.   (K, L), (K, L) -> (K, L)"""
    assert reward.shape == last.shape
    out = np.zeros(reward.shape, np.float64)
    for k in range(reward.shape[0]):
        running = 0.0
        for t in range(reward.shape[1] - 1, -1, -1):
            running = reward[k, t] + (0.0 if last[k, t] else gamma * running)
            out[k, t] = running
    return out


@njit(cache=True)
def whitened_rewards_to_go(returns, last, used):  # type: ignore[no-untyped-def]
    """GPOMDP: A_t = (R_t - mean) / (std + 1e-20) within each trajectory.

    (K, L), of which the first used[k] count and a trajectory ends at each ``last`` -> (K, L)
    """
    assert returns.shape == last.shape
    assert used.shape == (len(returns),)
    out = np.zeros(returns.shape, np.float32)
    for k in range(returns.shape[0]):
        begin = 0
        for t in range(used[k]):
            if last[k, t]:
                one = returns[k, begin : t + 1]
                mean, std = one.mean(), one.std()
                # Equal returns say nothing; what rounding leaves of their deviation would make each step worth 1.
                for s in range(begin, t + 1):
                    out[k, s] = (returns[k, s] - mean) / (std + 1e-20) if std > 1e-12 * abs(mean) else 0.0
                begin = t + 1
    return out


@njit(cache=True)
def whitened_whole_returns(returns, last, used):  # type: ignore[no-untyped-def]
    """REINFORCE: every step of a trajectory carries R_0, whitened over the batch's trajectories.   (K, L) -> (K, L)"""
    assert returns.shape == last.shape
    assert used.shape == (len(returns),)
    out = np.zeros(returns.shape, np.float32)
    for k in range(returns.shape[0]):
        whole = np.array([returns[k, t] for t in range(used[k]) if t == 0 or last[k, t - 1]])
        mean, std = whole.mean(), whole.std()
        now = 0.0
        for t in range(used[k]):
            if t == 0 or last[k, t - 1]:
                # Equal returns say nothing, whatever rounding leaves of their deviation.
                now = (returns[k, t] - mean) / std if std > 1e-9 * (1.0 + abs(mean)) else 0.0
            out[k, t] = now
    return out


@njit(cache=True)
def gae(reward, value, next_value, terminated, ended, gamma, lam):  # type: ignore[no-untyped-def]
    """Generalised advantages (Schulman 2016).   (K, T, n) each -> (K, T, n)

    delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}.
    s'_t is the true successor, so a truncated episode is bootstrapped from where it stopped.
    """
    assert reward.shape == value.shape == next_value.shape == terminated.shape == ended.shape
    out = np.empty(reward.shape, np.float32)
    for k in range(reward.shape[0]):
        for i in range(reward.shape[2]):
            running = 0.0
            for t in range(reward.shape[1] - 1, -1, -1):
                future = 0.0 if terminated[k, t, i] else gamma * next_value[k, t, i]
                running = reward[k, t, i] + future - value[k, t, i] + (0.0 if ended[k, t, i] else gamma * lam * running)
                out[k, t, i] = running
    return out


@njit(cache=True)
def running_returns(reward, ended, gamma, running):  # type: ignore[no-untyped-def]
    """G_t = r_t + gamma G_{t-1} within an episode; ``running`` (K, n) carries it from rollout to rollout."""
    assert reward.shape == ended.shape
    assert running.shape == (reward.shape[0], reward.shape[2])
    out = np.empty(reward.shape, np.float64)
    for k in range(reward.shape[0]):
        for t in range(reward.shape[1]):
            for i in range(reward.shape[2]):
                running[k, i] = reward[k, t, i] + gamma * running[k, i]
                out[k, t, i] = running[k, i]
                if ended[k, t, i]:
                    running[k, i] = 0.0
    return out


@njit(cache=True)
def standardised(x):  # type: ignore[no-untyped-def]
    """(x - mean) / (std + 1e-8) over the last axis, sample deviation.   (K, b) -> (K, b)"""
    out = np.empty(x.shape, np.float32)
    for k in range(x.shape[0]):
        mean = x[k].astype(np.float64).mean()
        square = 0.0
        for i in range(x.shape[1]):
            square += (x[k, i] - mean) ** 2
        std = math.sqrt(square / max(x.shape[1] - 1, 1))
        for i in range(x.shape[1]):
            out[k, i] = (x[k, i] - mean) / (std + 1e-8)
    return out


def explained_variance(value: F32, target: F32) -> F32:
    """1 - Var(R - V) / Var(R) over the last axis; nan where R does not vary."""
    assert value.shape == target.shape, (value.shape, target.shape)
    spread = target.var(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 1.0 - (target - value).var(-1) / spread
    return np.where(spread > 0, found, np.nan).astype(np.float32)
