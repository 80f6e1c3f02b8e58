"""Log-probability, entropy and KL divergence of categorical and diagonal Gaussian policies."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

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
