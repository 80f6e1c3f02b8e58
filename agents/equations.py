"""Every equation of every algorithm, one pure function each, in the papers' symbols, its derivative beside it.

All of it is compiled loops over arrays: at the sizes of reinforcement learning an autograd graph costs more than the
arithmetic. A name that ends in ``_back`` adds d * (derivative) to its last arguments, d being the derivative of a loss
by the function's value; the tests differentiate an independent version by autograd and compare.

Axes: K agents, b samples, a actions, T time, n copies, d weights.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


# --- categorical distributions: logits (K, b, a) ----------------------------------------------------------------------


@njit(cache=True, inline="always")
def _log_normaliser(z):  # type: ignore[no-untyped-def]
    largest = z[0]
    for j in range(1, len(z)):
        largest = max(largest, z[j])
    total = 0.0
    for j in range(len(z)):
        total += math.exp(z[j] - largest)
    return largest + math.log(total)


@njit(cache=True)
def categorical_log_prob(logits, action):  # type: ignore[no-untyped-def]
    """log pi(a|s) = z_a - log sum_j exp z_j.   (K, b, a), (K, b) -> (K, b)"""
    assert logits.shape[:2] == action.shape
    out = np.empty(action.shape, np.float32)
    for k in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[k, i] = logits[k, i, action[k, i]] - _log_normaliser(logits[k, i])
    return out


@njit(cache=True)
def categorical_log_prob_back(logits, action, d, dlogits):  # type: ignore[no-untyped-def]
    """d log pi(a|s) / d z_j = [j = a] - p_j."""
    assert logits.shape == dlogits.shape
    assert logits.shape[:2] == action.shape == d.shape
    for k in range(d.shape[0]):
        for i in range(d.shape[1]):
            z, norm = logits[k, i], _log_normaliser(logits[k, i])
            for j in range(len(z)):
                dlogits[k, i, j] -= d[k, i] * math.exp(z[j] - norm)
            dlogits[k, i, action[k, i]] += d[k, i]


@njit(cache=True)
def categorical_entropy(logits):  # type: ignore[no-untyped-def]
    """H = -sum_j p_j log p_j.   (K, b, a) -> (K, b)"""
    out = np.zeros(logits.shape[:2], np.float32)
    for k in range(out.shape[0]):
        for i in range(out.shape[1]):
            z, norm = logits[k, i], _log_normaliser(logits[k, i])
            for j in range(len(z)):
                out[k, i] -= math.exp(z[j] - norm) * (z[j] - norm)
    return out


@njit(cache=True)
def categorical_entropy_back(logits, entropy, d, dlogits):  # type: ignore[no-untyped-def]
    """d H / d z_j = -p_j (log p_j + H)."""
    assert logits.shape == dlogits.shape
    assert logits.shape[:2] == entropy.shape == d.shape
    for k in range(d.shape[0]):
        for i in range(d.shape[1]):
            z, norm = logits[k, i], _log_normaliser(logits[k, i])
            for j in range(len(z)):
                dlogits[k, i, j] -= d[k, i] * math.exp(z[j] - norm) * (z[j] - norm + entropy[k, i])


@njit(cache=True)
def categorical_kl(p, q):  # type: ignore[no-untyped-def]
    """KL(p || q) = sum_j p_j (log p_j - log q_j).   logits (K, b, a) each -> (K, b)"""
    assert p.shape == q.shape
    out = np.zeros(p.shape[:2], np.float32)
    for k in range(out.shape[0]):
        for i in range(out.shape[1]):
            np_, nq = _log_normaliser(p[k, i]), _log_normaliser(q[k, i])
            for j in range(p.shape[2]):
                log_p, log_q = p[k, i, j] - np_, q[k, i, j] - nq
                out[k, i] += math.exp(log_p) * (log_p - log_q)
    return out


@njit(cache=True)
def categorical_kl_back_p(p, q, kl, d, dp):  # type: ignore[no-untyped-def]
    """d KL(p || q) / d z^p_j = p_j (log p_j - log q_j - KL)."""
    assert p.shape == q.shape == dp.shape
    assert p.shape[:2] == kl.shape == d.shape
    for k in range(d.shape[0]):
        for i in range(d.shape[1]):
            np_, nq = _log_normaliser(p[k, i]), _log_normaliser(q[k, i])
            for j in range(p.shape[2]):
                log_p, log_q = p[k, i, j] - np_, q[k, i, j] - nq
                dp[k, i, j] += d[k, i] * math.exp(log_p) * (log_p - log_q - kl[k, i])


@njit(cache=True)
def categorical_kl_back_q(p, q, d, dq):  # type: ignore[no-untyped-def]
    """d KL(p || q) / d z^q_j = q_j - p_j."""
    assert p.shape == q.shape == dq.shape
    assert p.shape[:2] == d.shape
    for k in range(d.shape[0]):
        for i in range(d.shape[1]):
            np_, nq = _log_normaliser(p[k, i]), _log_normaliser(q[k, i])
            for j in range(p.shape[2]):
                dq[k, i, j] += d[k, i] * (math.exp(q[k, i, j] - nq) - math.exp(p[k, i, j] - np_))


# --- diagonal Gaussians: mean (K, b, a), one log_std (K, a) per agent -------------------------------------------------


@njit(cache=True)
def gaussian_log_prob(mean, log_std, action):  # type: ignore[no-untyped-def]
    """log N(x; m, s) = sum_j -(x_j - m_j)^2 / 2 s_j^2 - log s_j - log(2 pi) / 2.   -> (K, b)"""
    assert mean.shape == action.shape
    assert log_std.shape == (mean.shape[0], mean.shape[2])
    out = np.zeros(mean.shape[:2], np.float32)
    for k in range(mean.shape[0]):
        for i in range(mean.shape[1]):
            total = 0.0
            for j in range(mean.shape[2]):
                z = (action[k, i, j] - mean[k, i, j]) * math.exp(-log_std[k, j])
                total -= 0.5 * z * z + log_std[k, j] + _HALF_LOG_2PI
            out[k, i] = total
    return out


@njit(cache=True)
def gaussian_log_prob_back(mean, log_std, action, d, dmean, dlog_std):  # type: ignore[no-untyped-def]
    """d log N / d m_j = (x_j - m_j) / s_j^2;  d log N / d log s_j = (x_j - m_j)^2 / s_j^2 - 1."""
    assert mean.shape == action.shape == dmean.shape
    assert mean.shape[:2] == d.shape
    assert log_std.shape == dlog_std.shape == (mean.shape[0], mean.shape[2])
    for k in range(mean.shape[0]):
        for i in range(mean.shape[1]):
            for j in range(mean.shape[2]):
                inverse = math.exp(-log_std[k, j])
                z = (action[k, i, j] - mean[k, i, j]) * inverse
                dmean[k, i, j] += d[k, i] * z * inverse
                dlog_std[k, j] += d[k, i] * (z * z - 1.0)


@njit(cache=True)
def gaussian_entropy(mean, log_std):  # type: ignore[no-untyped-def]
    """H = sum_j log s_j + (1 + log 2 pi) / 2.   -> (K, b): the same for every state"""
    assert log_std.shape == (mean.shape[0], mean.shape[2])
    out = np.zeros(mean.shape[:2], np.float32)
    for k in range(mean.shape[0]):
        out[k, :] = np.sum(log_std[k]) + mean.shape[2] * (0.5 + _HALF_LOG_2PI)
    return out


@njit(cache=True)
def gaussian_entropy_back(d, dlog_std):  # type: ignore[no-untyped-def]
    """d H / d log s_j = 1."""
    assert len(d) == len(dlog_std)
    for k in range(d.shape[0]):
        dlog_std[k, :] += np.sum(d[k])


@njit(cache=True)
def gaussian_kl(mp, lp, mq, lq):  # type: ignore[no-untyped-def]
    """KL(p || q) = sum_j log(sq/sp) + (sp^2 + (mp - mq)^2) / 2 sq^2 - 1/2.   -> (K, b)"""
    assert mp.shape == mq.shape
    assert lp.shape == lq.shape == (mp.shape[0], mp.shape[2])
    out = np.zeros(mp.shape[:2], np.float32)
    for k in range(mp.shape[0]):
        for i in range(mp.shape[1]):
            total = 0.0
            for j in range(mp.shape[2]):
                gap = (mp[k, i, j] - mq[k, i, j]) * math.exp(-lq[k, j])
                total += lq[k, j] - lp[k, j] + 0.5 * (math.exp(2.0 * (lp[k, j] - lq[k, j])) + gap * gap - 1.0)
            out[k, i] = total
    return out


@njit(cache=True)
def gaussian_kl_back_p(mp, lp, mq, lq, d, dmp, dlp):  # type: ignore[no-untyped-def]
    """d KL / d mp_j = (mp_j - mq_j) / sq_j^2;  d KL / d log sp_j = sp_j^2 / sq_j^2 - 1."""
    assert mp.shape == mq.shape == dmp.shape
    assert mp.shape[:2] == d.shape
    assert lp.shape == lq.shape == dlp.shape == (mp.shape[0], mp.shape[2])
    for k in range(mp.shape[0]):
        for i in range(mp.shape[1]):
            for j in range(mp.shape[2]):
                dmp[k, i, j] += d[k, i] * (mp[k, i, j] - mq[k, i, j]) * math.exp(-2.0 * lq[k, j])
                dlp[k, j] += d[k, i] * (math.exp(2.0 * (lp[k, j] - lq[k, j])) - 1.0)


@njit(cache=True)
def gaussian_kl_back_q(mp, lp, mq, lq, d, dmq, dlq):  # type: ignore[no-untyped-def]
    """d KL / d mq_j = (mq_j - mp_j) / sq_j^2;  d KL / d log sq_j = 1 - (sp_j^2 + (mp_j - mq_j)^2) / sq_j^2."""
    assert mp.shape == mq.shape == dmq.shape
    assert mp.shape[:2] == d.shape
    assert lp.shape == lq.shape == dlq.shape == (mp.shape[0], mp.shape[2])
    for k in range(mp.shape[0]):
        for i in range(mp.shape[1]):
            for j in range(mp.shape[2]):
                inverse = math.exp(-2.0 * lq[k, j])
                gap = mq[k, i, j] - mp[k, i, j]
                dmq[k, i, j] += d[k, i] * gap * inverse
                dlq[k, j] += d[k, i] * (1.0 - (math.exp(2.0 * lp[k, j]) + gap * gap) * inverse)


# --- returns and advantages -------------------------------------------------------------------------------------------


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


# --- policy gradient --------------------------------------------------------------------------------------------------


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


# --- PPO: a loss per sample (K, b) and its derivative -----------------------------------------------------------------


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


# --- TD3 --------------------------------------------------------------------------------------------------------------


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
