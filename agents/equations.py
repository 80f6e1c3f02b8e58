"""Every equation of every algorithm, one pure function each, in the papers' symbols.

Losses and targets are torch, so that autograd differentiates what stands here and nothing is derived twice. Recursions
over time are compiled. Shapes: ``...`` are leading axes (agents first), ``b`` a batch, ``T`` time, ``n`` copies,
``a`` actions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
_LOG_2PI = math.log(2.0 * math.pi)


# --- action distributions ---------------------------------------------------------------------------------------------


def categorical_log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """log pi(a|s) = z_a - log sum_j exp z_j.   logits (..., a), action (...) -> (...)"""
    assert logits.shape[:-1] == action.shape, (logits.shape, action.shape)
    return torch.log_softmax(logits, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(logits: Tensor) -> Tensor:
    """H = -sum_j p_j log p_j.   (..., a) -> (...)"""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_j p_j (log p_j - log q_j).   (..., a) -> (...)"""
    assert p_logits.shape[-1] == q_logits.shape[-1], (p_logits.shape, q_logits.shape)
    log_p, log_q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """log N(a; mu, sigma) with a diagonal sigma.   (..., a) -> (...)"""
    assert mean.shape == action.shape, (mean.shape, action.shape)
    z = (action - mean) * torch.exp(-log_std)
    return (-0.5 * z * z - log_std - 0.5 * _LOG_2PI).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """H = sum_j (log sigma_j + (1 + log 2 pi) / 2).   (..., a) -> (...)"""
    return (log_std + 0.5 * (1.0 + _LOG_2PI)).sum(-1)


def gaussian_kl(p_mean: Tensor, p_log_std: Tensor, q_mean: Tensor, q_log_std: Tensor) -> Tensor:
    """KL(p || q) = sum_j log(sq/sp) + (sp^2 + (mp - mq)^2) / (2 sq^2) - 1/2.   (..., a) -> (...)"""
    spread = torch.exp(2.0 * (p_log_std - q_log_std)) + ((p_mean - q_mean) * torch.exp(-q_log_std)) ** 2
    return (q_log_std - p_log_std + 0.5 * (spread - 1.0)).sum(-1)


# --- returns and advantages -------------------------------------------------------------------------------------------


@njit(cache=True)
def discounted_returns(reward, last, gamma):  # type: ignore[no-untyped-def]
    """R_t = r_t + gamma R_{t+1}, begun afresh after every ``last`` step.   (K, L), (K, L) -> (K, L)"""
    out = np.zeros(reward.shape, np.float64)
    for k in range(reward.shape[0]):
        running = 0.0
        for t in range(reward.shape[1] - 1, -1, -1):
            running = reward[k, t] + (0.0 if last[k, t] else gamma * running)
            out[k, t] = running
    return out


@njit(cache=True)
def whiten(x, last, used, epsilon):  # type: ignore[no-untyped-def]
    """A = (x - mean) / (std + epsilon) within each stretch that ends at a ``last`` step (population std).

    (K, L), of which the first used[k] count -> (K, L)
    """
    out = np.zeros(x.shape, np.float32)
    for k in range(x.shape[0]):
        begin = 0
        for t in range(used[k]):
            if not last[k, t]:
                continue
            stretch = x[k, begin : t + 1]
            mean = stretch.mean()
            std = np.sqrt(((stretch - mean) ** 2).mean())
            for s in range(begin, t + 1):
                out[k, s] = (x[k, s] - mean) / (std + epsilon)
            begin = t + 1
    return out


@njit(cache=True)
def gae(reward, value, next_value, terminated, ended, gamma, lam):  # type: ignore[no-untyped-def]
    """Generalised advantages (Schulman 2016), time on axis 1.   (K, T, n) each -> (K, T, n)

    delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}.
    s'_t is the true successor, so a truncated episode is bootstrapped from where it stopped.
    """
    out = np.empty(reward.shape, np.float32)
    for k in range(reward.shape[0]):
        for i in range(reward.shape[2]):
            running = 0.0
            for t in range(reward.shape[1] - 1, -1, -1):
                future = 0.0 if terminated[k, t, i] else gamma * next_value[k, t, i]
                delta = reward[k, t, i] + future - value[k, t, i]
                running = delta + (0.0 if ended[k, t, i] else gamma * lam * running)
                out[k, t, i] = running
    return out


# --- policy gradient --------------------------------------------------------------------------------------------------


def policy_gradient_loss(log_prob: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """-sum_t w_t log pi(a_t|s_t) A_t, whose gradient is minus the estimate.   (..., L) each -> (...)"""
    assert log_prob.shape == advantage.shape == weight.shape, (log_prob.shape, advantage.shape, weight.shape)
    return -(weight * log_prob * advantage).sum(-1)


def importance_weight(log_prob_then: Tensor, log_prob_now: Tensor) -> Tensor:
    """w_t = pi_0(a|s) / pi_n(a|s) per timestep, detached (SCSG).   (..., L) each -> (..., L)"""
    return torch.exp(log_prob_then - log_prob_now).detach()


def scsg_direction(now: F32, then_weighted: F32, mu: F32) -> F32:
    """v = g(theta_n) - g_w(theta_0) + mu: the variance-reduced ascent direction.   (..., d) each -> (..., d)"""
    assert now.shape == then_weighted.shape == mu.shape, (now.shape, then_weighted.shape, mu.shape)
    return now - then_weighted + mu


# --- PPO --------------------------------------------------------------------------------------------------------------


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = exp(log_ratio).   (..., b) each -> (..., b)"""
    assert log_ratio.shape == advantage.shape, (log_ratio.shape, advantage.shape)
    ratio = torch.exp(log_ratio)
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantage)


def surrogate(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """-rho A.   (..., b) each -> (..., b)"""
    assert log_ratio.shape == advantage.shape, (log_ratio.shape, advantage.shape)
    return -torch.exp(log_ratio) * advantage


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(old || new) estimated without bias from samples of old: (rho - 1) - log rho.   (..., b) -> (..., b)"""
    return torch.expm1(log_ratio) - log_ratio


def adapted_beta(beta: F32, measured: F32, target: float) -> F32:
    """beta doubled where the measured KL exceeds 1.5 target, halved where it is below target / 1.5.   (K,) -> (K,)"""
    assert beta.shape == measured.shape, (beta.shape, measured.shape)
    scaled = np.where(measured > 1.5 * target, beta * 2.0, np.where(measured < target / 1.5, beta / 2.0, beta))
    return scaled.astype(np.float32)


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """(V - R)^2 / 2.   (..., b) each -> (..., b)"""
    assert value.shape == target.shape, (value.shape, target.shape)
    return 0.5 * (value - target) ** 2


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2.   (..., b) each -> (..., b)"""
    assert value.shape == old.shape == target.shape, (value.shape, old.shape, target.shape)
    clipped = old + (value - old).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2)


def explained_variance(value: F32, target: F32) -> F32:
    """1 - Var(R - V) / Var(R) over the last axis; nan where R does not vary."""
    spread = target.var(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 1.0 - (target - value).var(-1) / spread
    return np.where(spread > 0, found, np.nan).astype(np.float32)


# --- TD3 --------------------------------------------------------------------------------------------------------------


def smoothed_action(action: Tensor, noise: Tensor, limit: float) -> Tensor:
    """clip(mu'(s') + clip(noise, -c, c), -1, 1): target policy smoothing, in units of the action range."""
    assert action.shape == noise.shape, (action.shape, noise.shape)
    return (action + noise.clamp(-limit, limit)).clamp(-1.0, 1.0)


def twin_target(reward: Tensor, terminated: Tensor, q_next: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - terminated) min(Q1', Q2'); truncation bootstraps.   (K, b), (K, b), (K, 2, b) -> (K, b)"""
    assert q_next.shape[-2] == 2 and q_next.shape[-1] == reward.shape[-1], (q_next.shape, reward.shape)
    return reward + gamma * (~terminated) * q_next.amin(-2)


def twin_loss(q: Tensor, y: Tensor) -> Tensor:
    """mean_b (Q1 - y)^2 + mean_b (Q2 - y)^2.   (K, 2, b), (K, b) -> (K,)"""
    assert q.shape[0] == y.shape[0] and q.shape[-1] == y.shape[-1], (q.shape, y.shape)
    return ((q - y.unsqueeze(-2)) ** 2).mean(-1).sum(-1)


def l2_pull(w: F32, anchor: F32, beta: float) -> F32:
    """The gradient of beta ||w - w_glob||^2 (squared, no 1/2).   (K, d) each -> (K, d)"""
    assert w.shape == anchor.shape, (w.shape, anchor.shape)
    pull: F32 = np.float32(2.0 * beta) * (w - anchor)
    return pull


def action_distance(action: Tensor, anchor: Tensor, sigma: float) -> Tensor:
    """KL between Gaussians of equal sigma around two actions: |a - a_glob|^2 / (2 sigma^2).   (..., a) -> (...)"""
    assert action.shape == anchor.shape, (action.shape, anchor.shape)
    return ((action - anchor) ** 2).sum(-1) / (2.0 * sigma * sigma)
