"""Every equation against numbers worked by hand, against a slow independent version, and its slope against autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from agents.equations import distributions, estimators, ppo_losses, returns, td3_losses
from tests.agents.tiny import spread

K, B, A = 3, 7, 4
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def t64(x, grad=False):
    return torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=grad)


def close(found, wanted, **tolerance):
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else np.asarray(wanted)
    assert np.shape(found) == wanted.shape
    np.testing.assert_allclose(found, wanted, **(CLOSE | tolerance))


def f32(*rows):
    return np.array(rows, np.float32)


# --- categorical ------------------------------------------------------------------------------------------------------

LOGITS = {
    "random": spread((K, B, A), 1),
    "equal": np.zeros((K, B, A), np.float32),
    "wide": spread((K, B, A), 2, 20.0),
    "huge": spread((K, B, A), 3, 1000.0),
    "far from zero": spread((K, B, A), 4) + np.float32(1000),
    "one action": spread((K, B, 1), 5),
}


@pytest.fixture(params=list(LOGITS))
def logits(request):
    return LOGITS[request.param]


def actions_for(logits):
    return np.random.default_rng(7).integers(0, logits.shape[-1], logits.shape[:2])


def test_categorical_by_hand():
    # p = (1/4, 3/4): log 3/4 = -0.287682; H = -(1/4 log 1/4 + 3/4 log 3/4) = 0.562335; KL to uniform = log 2 - H.
    p, even = f32([[0.0, math.log(3.0)]]), f32([[0.0, 0.0]])
    close(distributions.categorical_log_prob(p, np.array([[1]])), [[-0.28768207]])
    close(distributions.categorical_entropy(p), [[0.56233514]])
    close(distributions.categorical_kl(p, even), [[0.69314718 - 0.56233514]])
    # KL(uniform || p) = 1/2 log (1/2)/(1/4) + 1/2 log (1/2)/(3/4) = 0.143841.
    close(distributions.categorical_kl(even, p), [[0.14384104]])
    back = np.zeros_like(p)
    distributions.categorical_log_prob_back(p, np.array([[1]]), f32([2.0]), back)
    close(back, [[[-0.5, 0.5]]])


def test_categorical_values(logits):
    action, other = actions_for(logits), np.roll(logits, 1, axis=1)
    p = Categorical(logits=t64(logits))
    close(distributions.categorical_log_prob(logits, action), p.log_prob(torch.tensor(action)))
    close(distributions.categorical_entropy(logits), p.entropy())
    log_p, log_q = t64(logits).log_softmax(-1), t64(other).log_softmax(-1)
    close(distributions.categorical_kl(logits, other), (log_p.exp() * (log_p - log_q)).sum(-1))
    close(distributions.categorical_kl(logits, logits), np.zeros(logits.shape[:2]))


def test_categorical_slopes(logits):
    action, other, d = actions_for(logits), np.roll(logits, 1, axis=1), spread(logits.shape[:2], 9)
    already = spread(logits.shape, 10)

    def slope(loss, *by):
        return [g.numpy() + already for g in torch.autograd.grad((loss * t64(d)).sum(), by, retain_graph=True)]

    z, y = t64(logits, True), t64(other, True)
    log_p, log_q = z.log_softmax(-1), y.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loose = {"rtol": 1e-4, "atol": 2e-4 if np.abs(logits).max() > 500 else 2e-5}

    back = already.copy()
    distributions.categorical_log_prob_back(logits, action, d, back)
    close(back, slope(log_p.gather(-1, torch.tensor(action)[..., None])[..., 0], z)[0], **loose)
    back = already.copy()
    distributions.categorical_entropy_back(logits, distributions.categorical_entropy(logits), d, back)
    close(back, slope(entropy, z)[0], **loose)
    back = already.copy()
    distributions.categorical_kl_back_p(logits, other, distributions.categorical_kl(logits, other), d, back)
    close(back, slope(kl, z)[0], **loose)
    back = already.copy()
    distributions.categorical_kl_back_q(logits, other, d, back)
    close(back, slope(kl, y)[0], **loose)


# --- Gaussian ---------------------------------------------------------------------------------------------------------


def test_gaussian_by_hand():
    # N(0; 0, 1) = 1 / sqrt(2 pi); a unit Gaussian's entropy is (1 + log 2 pi) / 2.
    zero, wide = f32([0.0]), f32([math.log(2.0)])
    close(distributions.gaussian_log_prob(f32([[0.0]]), zero, f32([[0.0]])), [[-0.91893853]])
    close(distributions.gaussian_log_prob(f32([[1.0]]), wide, f32([[3.0]])), [[-0.91893853 - math.log(2.0) - 0.5]])
    close(distributions.gaussian_entropy(f32([[0.0]]), zero), [[1.41893853]])
    # KL(N(0, 1) || N(1, 2)) = log 2 + (1 + 1) / 8 - 1/2.
    close(distributions.gaussian_kl(f32([[0.0]]), zero, f32([[1.0]]), wide), [[math.log(2.0) + 0.25 - 0.5]])


def gaussians(width=2):
    return spread((K, B, width), 1), spread((K, width), 2, 0.7), spread((K, B, width), 3), spread((K, width), 4, 0.7)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_gaussian_values(width):
    mp, lp, mq, lq = gaussians(width)
    action = spread((K, B, width), 5)
    p, q = (Normal(t64(m), t64(s).exp()[:, None]) for m, s in ((mp, lp), (mq, lq)))
    close(distributions.gaussian_log_prob(mp, lp, action), p.log_prob(t64(action)).sum(-1))
    close(distributions.gaussian_entropy(mp, lp), p.entropy().sum(-1))
    close(distributions.gaussian_kl(mp, lp, mq, lq), kl_divergence(p, q).sum(-1))
    close(distributions.gaussian_kl(mp, lp, mp, lp), np.zeros((K, B)))


@pytest.mark.parametrize("width", [1, 3])
def test_gaussian_slopes(width):
    mp, lp, mq, lq = gaussians(width)
    action, d = spread((K, B, width), 5), spread((K, B), 6)
    m, s, n, r = t64(mp, True), t64(lp, True), t64(mq, True), t64(lq, True)
    p, q = Normal(m, s.exp()[:, None]), Normal(n, r.exp()[:, None])
    kl = kl_divergence(p, q).sum(-1)

    def check(fill, loss, *by):
        backs = [np.ones(x.shape, np.float32) for x in by]
        fill(*backs)
        slopes = torch.autograd.grad((loss * t64(d)).sum(), by, retain_graph=True)
        for back, slope in zip(backs, slopes, strict=True):
            close(back, slope + 1.0, rtol=1e-4, atol=1e-5)

    check(lambda *b: distributions.gaussian_log_prob_back(mp, lp, action, d, *b), p.log_prob(t64(action)).sum(-1), m, s)
    check(lambda b: distributions.gaussian_entropy_back(d, b), p.entropy().sum(-1) + 0.0 * m.sum(-1), s)
    check(lambda *b: distributions.gaussian_kl_back_p(mp, lp, mq, lq, d, *b), kl, m, s)
    check(lambda *b: distributions.gaussian_kl_back_q(mp, lp, mq, lq, d, *b), kl, n, r)


# --- returns and advantages -------------------------------------------------------------------------------------------


def trajectories(seed=0, length=40):
    """Rewards (K, L), ends, and how many steps count: trajectories of many lengths, 1 among them."""
    rng = np.random.default_rng(seed)
    last = rng.random((K, length)) < 0.25
    used = np.array([length, length - 7, 5])
    for k in range(K):
        last[k, used[k] - 1 :] = True
    last[0, :2] = True
    return spread((K, length), seed), last, used


def pieces(last, used):
    """Where each trajectory begins and ends."""
    for k in range(len(used)):
        begin = 0
        for t in range(used[k]):
            if last[k, t]:
                yield k, begin, t + 1
                begin = t + 1


def slow_returns(reward, last, gamma):
    out = np.zeros(reward.shape)
    for k, begin, end in pieces(last, [reward.shape[1]] * len(reward)):
        for t in range(begin, end):
            out[k, t] = sum(gamma ** (s - t) * float(reward[k, s]) for s in range(t, end))
    return out


def test_returns_by_hand():
    # Two trajectories: rewards 1, 2, 3 and 4; gamma 1/2: 1 + (2 + 3/2)/2 = 2.75.
    found = returns.discounted_returns(f32([1, 2, 3, 4]), np.array([[False, False, True, True]]), 0.5)
    close(found, [[2.75, 3.5, 3.0, 4.0]])


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns(gamma):
    reward, last, _ = trajectories()
    close(returns.discounted_returns(reward, last, gamma), slow_returns(reward, last, gamma))


def test_trajectory_weight_by_hand():
    # Two trajectories: ratios 2 and 3, then 1/2; what comes behind them counts nothing.
    ratio, zero = np.log([[2.0, 3.0, 0.5, 9.0]]), np.zeros((1, 4))
    found = estimators.trajectory_weight(ratio, zero, np.array([[False, True, True, True]]), np.array([3]))
    close(found, [[6.0, 6.0, 0.5, 0.0]])


def test_trajectory_weight_of_ratios_that_would_vanish():
    """A thousand ratios of 1/2 and then as many of 2: the product is 1, and 2^-1000 on the way is no float32."""
    ratio = np.log(np.repeat([0.5, 2.0], 1000))[None].astype(np.float32)
    last = np.zeros((1, 2000), bool)
    last[0, -1] = True
    close(estimators.trajectory_weight(ratio, np.zeros_like(ratio), last, np.array([2000])), np.ones((1, 2000)))


def test_whitened_rewards_to_go_by_hand():
    # Returns 3, 1: mean 2, deviation 1. A single step says nothing.
    found = returns.whitened_rewards_to_go(np.array([[3.0, 1.0, 5.0]]), np.array([[False, True, True]]), np.array([3]))
    close(found, [[1.0, -1.0, 0.0]])


def test_whitened_rewards_to_go():
    reward, last, used = trajectories(1)
    discounted = slow_returns(reward, last, 0.9)
    wanted = np.zeros(discounted.shape)
    for k, begin, end in pieces(last, used):
        one = discounted[k, begin:end]
        wanted[k, begin:end] = (one - one.mean()) / (one.std() + 1e-20)
    close(returns.whitened_rewards_to_go(discounted, last, used), wanted)


@pytest.mark.parametrize("value", [0.1, 1.0, 1 / 3, 123.456])
@pytest.mark.parametrize("length", [1, 3, 7, 10, 499])
def test_equal_returns_give_no_advantage(value, length):
    """Rounding leaves a deviation of 1e-17 or so; dividing by it would make an advantage of 1 out of nothing."""
    discounted = np.full((1, length), value)
    last = np.zeros((1, length), bool)
    last[0, -1] = True
    close(returns.whitened_rewards_to_go(discounted, last, np.array([length])), np.zeros((1, length)))
    single = np.ones((1, length), bool)
    close(returns.whitened_whole_returns(discounted, single, np.array([length])), np.zeros((1, length)))


def test_whitened_whole_returns_by_hand():
    # Trajectories that return 3 and 1: every step of the first carries +1, of the second -1.
    discounted, last = np.array([[3.0, 9.0, 1.0, 7.0]]), np.array([[False, True, False, True]])
    close(returns.whitened_whole_returns(discounted, last, np.array([4])), [[1.0, 1.0, -1.0, -1.0]])


def test_whitened_whole_returns():
    reward, last, used = trajectories(2)
    discounted = slow_returns(reward, last, 0.9)
    wanted = np.zeros(discounted.shape)
    for k in range(K):
        mine = [(begin, end) for row, begin, end in pieces(last, used) if row == k]
        whole = np.array([discounted[k, begin] for begin, _ in mine])
        for (begin, end), value in zip(mine, whole, strict=True):
            wanted[k, begin:end] = (value - whole.mean()) / whole.std()
    close(returns.whitened_whole_returns(discounted, last, used), wanted)


def rollout(seed=0, T=12, n=2):
    rng = np.random.default_rng(seed)
    arrays = [spread((K, T, n), seed + j) for j in range(3)]
    terminated = rng.random((K, T, n)) < 0.15
    truncated = ~terminated & (rng.random((K, T, n)) < 0.15)
    return *arrays, terminated, terminated | truncated


def slow_gae(reward, value, next_value, terminated, ended, gamma, lam):
    """A_t = sum over s >= t, within the episode, of (gamma lambda)^(s-t) delta_s."""
    out = np.zeros(reward.shape)
    for k, t, i in np.ndindex(reward.shape):
        for s in range(t, reward.shape[1]):
            bootstrap = 0.0 if terminated[k, s, i] else gamma * float(next_value[k, s, i])
            out[k, t, i] += (gamma * lam) ** (s - t) * (float(reward[k, s, i]) + bootstrap - float(value[k, s, i]))
            if ended[k, s, i]:
                break
    return out


def test_gae_by_hand():
    # gamma 1/2, lambda 1/2; V = 1, 2; V' = 2, 4; r = 1, 1. delta = 1 + 1 - 1 = 1 and 1 + 2 - 2 = 1; A = 1 + 1/4, 1.
    r, v, after = (np.array(x, np.float32).reshape(1, 2, 1) for x in ([1, 1], [1, 2], [2, 4]))
    no = np.zeros((1, 2, 1), bool)
    end = np.array([False, True]).reshape(1, 2, 1)
    close(returns.gae(r, v, after, no, no, 0.5, 0.5)[0, :, 0], [1.25, 1.0])
    close(returns.gae(r, v, after, no, end, 0.5, 0.5)[0, :, 0], [1.25, 1.0])  # truncated: bootstraps all the same
    close(returns.gae(r, v, after, end, end, 0.5, 0.5)[0, :, 0], [0.75, -1.0])  # terminated: delta = 1 - 2
    # Cut after the first step: nothing flows back over the end, the successor's value still counts.
    cut = end[:, ::-1].copy()
    close(returns.gae(r, v, after, no, cut, 0.5, 0.5)[0, :, 0], [1.0, 1.0])


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("T", [1, 12])
def test_gae(lam, T):
    given = rollout(3, T)
    close(returns.gae(*given, 0.97, lam), slow_gae(*given, 0.97, lam), atol=1e-5)


def test_running_returns_go_on_over_rollouts():
    reward, *_, ended = rollout(4, T=20)
    running = np.zeros((K, 2))
    halves = [
        returns.running_returns(reward[:, part].copy(), ended[:, part].copy(), 0.9, running)
        for part in (slice(0, 8), slice(8, 20))
    ]
    wanted = np.zeros(reward.shape)
    for k, t, i in np.ndindex(reward.shape):
        for s in range(t, -1, -1):
            if s < t and ended[k, s, i]:
                break
            wanted[k, t, i] += 0.9 ** (t - s) * float(reward[k, s, i])
    close(np.concatenate(halves, axis=1), wanted)
    close(running, np.where(ended[:, -1], 0.0, wanted[:, -1]))


def test_running_returns_by_hand():
    running = np.array([[8.0]])
    reward, ended = f32([1.0], [1.0])[None].reshape(1, 2, 1), np.array([True, False]).reshape(1, 2, 1)
    close(returns.running_returns(reward, ended, 0.5, running)[0, :, 0], [5.0, 1.0])
    close(running, [[1.0]])


def test_standardised():
    close(returns.standardised(f32([1.0, 2.0, 3.0])), [[-1.0, 0.0, 1.0]])
    x = spread((K, 50), 5)
    close(returns.standardised(x), (t64(x) - t64(x).mean(1, True)) / t64(x).std(1, keepdim=True))
    close(returns.standardised(f32([2.5])), [[0.0]])
    close(returns.standardised(np.full((1, 6), 0.1, np.float32)), np.zeros((1, 6)), atol=1e-6)


def test_standardised_far_from_zero():
    """Many samples whose mean is a thousand deviations away: sums in float32 would lose it."""
    x = spread((1, 16_384), 6) + np.float32(1000)
    close(returns.standardised(x), (t64(x) - t64(x).mean()) / t64(x).std(), atol=1e-4)


def test_explained_variance():
    # Var(R) = 2/3, Var(R - V) = 2/9 with V = (0, 1, 1): 1 - 1/3.
    close(returns.explained_variance(f32([0, 1, 1]), f32([0, 1, 2])), [1.0 - (2 / 9) / (2 / 3)])
    close(returns.explained_variance(f32([0, 1, 2], [5, 5, 5]), f32([0, 1, 2], [0, 1, 2])), [1.0, 0.0])
    assert np.isnan(returns.explained_variance(f32([0, 1, 2]), f32([3, 3, 3]))).all()


# --- policy gradient --------------------------------------------------------------------------------------------------


def test_importance_weight():
    then, now = np.log(f32([0.2, 0.5])), np.log(f32([0.1, 1.0]))
    close(estimators.importance_weight(then, now), [[2.0, 0.5]])


def test_scsg_direction():
    close(estimators.scsg_direction(f32([1, 2]), f32([0.5, 0.5]), f32([10, 20])), [[10.5, 21.5]])
    g = spread((K, 9), 1)
    close(estimators.scsg_direction(g, g, g), g)


# --- PPO --------------------------------------------------------------------------------------------------------------

SURROGATE = [  # rho, A -> L, dL / d log rho, at epsilon = 0.2
    (1.0, 1.0, -1.0, -1.0),
    (1.19, 1.0, -1.19, -1.19),  # just inside
    (1.21, 1.0, -1.2, 0.0),  # just outside: no reason to go on
    (1.21, -1.0, 1.21, 1.21),  # the wrong way: come back
    (0.79, 1.0, -0.79, -0.79),
    (0.79, -1.0, 0.8, 0.0),
    (0.81, -1.0, 0.81, 0.81),
    (3.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("rho", "A_", "loss", "slope"), SURROGATE)
def test_clipped_surrogate_by_hand(rho, A_, loss, slope):
    found = ppo_losses.clipped_surrogate(f32([math.log(rho)]), f32([A_]), 0.2)
    close(found[0], [[loss]])
    close(found[1], [[slope]])


def test_clipped_surrogate():
    log_ratio, advantage = spread((K, 200), 1, 0.3), spread((K, 200), 2)
    x = t64(log_ratio, True)
    rho = x.exp()
    loss = -torch.minimum(rho * t64(advantage), rho.clamp(0.8, 1.2) * t64(advantage))
    found, slope = ppo_losses.clipped_surrogate(log_ratio, advantage, 0.2)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])
    assert (slope == 0).any()
    assert (slope > 0).any()
    assert (slope < 0).any()


def test_surrogate():
    log_ratio, advantage = spread((K, 50), 1, 0.3), spread((K, 50), 2)
    x = t64(log_ratio, True)
    loss = -x.exp() * t64(advantage)
    found, slope = ppo_losses.surrogate(log_ratio, advantage)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])
    assert found is not slope
    found[...] = 0.0
    assert (slope != 0).all()


def test_value_loss():
    close(ppo_losses.value_loss(f32([3.0]), f32([1.0])), [[[2.0]], [[2.0]]])
    value, target = spread((K, 50), 1), spread((K, 50), 2)
    x = t64(value, True)
    loss = 0.5 * (x - t64(target)) ** 2
    found, slope = ppo_losses.value_loss(value, target)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, -0.9),  # moved little: nothing is clipped
        (1.5, 1.0, 2.0, 0.5 * 0.8**2, 0.0),  # moved far towards the target: held at 1.2
        (0.5, 1.0, 2.0, 0.5 * 1.5**2, -1.5),  # moved away: the larger loss pulls it back
        (3.0, 1.0, 2.0, 0.5 * 1.0**2, 1.0),  # overshot: |3 - 2| > |1.2 - 2|
    ],
)
def test_clipped_value_loss_by_hand(value, old, target, loss, slope):
    found = ppo_losses.clipped_value_loss(f32([value]), f32([old]), f32([target]), 0.2)
    close(found[0], [[loss]])
    close(found[1], [[slope]])


def test_clipped_value_loss():
    value, old, target = spread((K, 200), 1), spread((K, 200), 2), spread((K, 200), 3)
    x, before, R = t64(value, True), t64(old), t64(target)
    loss = 0.5 * torch.maximum((x - R) ** 2, (before + (x - before).clamp(-0.2, 0.2) - R) ** 2)
    found, slope = ppo_losses.clipped_value_loss(value, old, target, 0.2)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])


def test_approximate_kl():
    x = f32([0.0, math.log(2.0), -math.log(2.0), 1e-3])
    close(ppo_losses.approximate_kl(x), [[0.0, 1 - math.log(2), -0.5 + math.log(2), 5e-7]], atol=1e-8)


def test_adapted_beta():
    # Doubled above 1.5 times the target, halved below target / 1.5, left alone between, the borders included.
    measured = np.array([0.02, 0.015, 0.01, 0.0067, 0.005, 0.0], np.float64)
    found = ppo_losses.adapted_beta(np.ones(6, np.float32), measured, 0.01)
    close(found, [2.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    assert found.dtype == np.float32


# --- TD3 --------------------------------------------------------------------------------------------------------------


def test_smoothed_action():
    action, noise = f32([0.0, 0.0, 0.9, -0.9, 0.2]), f32([0.3, 0.7, 0.3, -0.3, -0.1])
    close(td3_losses.smoothed_action(action, noise, 0.5), [[0.3, 0.5, 1.0, -1.0, 0.1]])


def test_twin_target_by_hand():
    # The smaller of 4 and 3; a termination keeps the reward alone.
    q = np.array([[[4.0, 4.0, 1.0], [3.0, 3.0, 2.0]]], np.float32)
    found = td3_losses.twin_target(f32([1.0, 1.0, 0.0]), np.array([[False, True, False]]), q, 0.5)
    close(found, [[2.5, 1.0, 0.5]])


def test_twin_target():
    reward, q = spread((K, 30), 1), spread((K, 2, 30), 2)
    terminated = np.random.default_rng(0).random((K, 30)) < 0.3
    close(td3_losses.twin_target(reward, terminated, q, 0.9), reward + 0.9 * ~terminated * q.min(axis=1))


def test_twin_loss():
    # Gaps of 1 and 3 in one critic, 2 and 0 in the other: (1 + 9) / 2 + (4 + 0) / 2.
    q, y = np.array([[[1.0, 3.0], [2.0, 0.0]]], np.float32), f32([0.0, 0.0])
    close(td3_losses.twin_loss(q, y)[0], [7.0])
    close(td3_losses.twin_loss(q, y)[1], [[[1.0, 3.0], [2.0, 0.0]]])
    q, y = spread((K, 2, 30), 1), spread((K, 30), 2)
    x = t64(q, True)
    loss = ((x - t64(y)[:, None]) ** 2).mean(-1).sum(-1)
    found, slope = td3_losses.twin_loss(q, y)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])


def test_l2_pull():
    close(td3_losses.l2_pull(f32([1, 2]), f32([0, 0]), 0.5)[0], [2.5])
    w, anchor = spread((K, 11), 1), spread((K, 11), 2)
    x = t64(w, True)
    loss = 0.3 * ((x - t64(anchor)) ** 2).sum(-1)
    found, slope = td3_losses.l2_pull(w, anchor, 0.3)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])


def test_action_pull_is_the_kl_of_two_gaussians():
    action, anchor, sigma = spread((K, B, 2), 1), spread((K, B, 2), 2), 0.4
    x = t64(action, True)
    s = torch.full((2,), sigma, dtype=torch.float64)
    loss = kl_divergence(Normal(x, s), Normal(t64(anchor), s)).sum(-1).mean(-1)
    found, slope = td3_losses.action_pull(action, anchor, sigma)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])
    close(td3_losses.action_pull(f32([[1.0]]), f32([[0.0]]), 0.5)[0], [2.0])


def test_value_pull():
    found = td3_losses.value_pull(f32([[1, 2], [0, 1]]), f32([[0, 0], [0, 3]]))[0]
    close(found, [(1 + 4) / 2 + (0 + 4) / 2])
    q, anchor = spread((K, 2, B), 1), spread((K, 2, B), 2)
    x = t64(q, True)
    loss = ((x - t64(anchor)) ** 2).mean(-1).sum(-1)
    found, slope = td3_losses.value_pull(q, anchor)
    close(found, loss)
    close(slope, torch.autograd.grad(loss.sum(), x)[0])


# --- shapes -----------------------------------------------------------------------------------------------------------


def equation(name):
    """Return the equation of this name, whichever module holds it."""
    modules = (distributions, estimators, ppo_losses, returns, td3_losses)
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def well_shaped():
    """Every equation over arrays with arguments that fit."""
    x, y = spread((K, B), 1), spread((K, B), 2)
    z, w = spread((K, B, A), 3), spread((K, B, A), 4)
    s, r = spread((K, A), 5), spread((K, A), 6)
    chosen = np.zeros((K, B), np.int64)
    last, used = np.ones((K, B), bool), np.full(K, B)
    cube, no = spread((K, 5, 2), 7), np.zeros((K, 5, 2), bool)
    twins, terminated = spread((K, 2, B), 8), np.zeros((K, B), bool)
    wide = x.astype(np.float64)
    return {
        "categorical_log_prob": (z, chosen),
        "categorical_log_prob_back": (z, chosen, x, w),
        "categorical_entropy_back": (z, x, y, w),
        "categorical_kl": (z, w),
        "categorical_kl_back_p": (z, w, x, y, z.copy()),
        "categorical_kl_back_q": (z, w, x, z.copy()),
        "gaussian_log_prob": (z, s, w),
        "gaussian_log_prob_back": (z, s, w, x, z.copy(), r),
        "gaussian_entropy": (z, s),
        "gaussian_entropy_back": (x, s),
        "gaussian_kl": (z, s, w, r),
        "gaussian_kl_back_p": (z, s, w, r, x, z.copy(), s.copy()),
        "gaussian_kl_back_q": (z, s, w, r, x, z.copy(), s.copy()),
        "discounted_returns": (x, last, 0.9),
        "whitened_rewards_to_go": (wide, last, used),
        "whitened_whole_returns": (wide, last, used),
        "gae": (cube, cube, cube, no, no, 0.9, 0.9),
        "running_returns": (cube, no, 0.9, np.zeros((K, 2))),
        "explained_variance": (x, y),
        "importance_weight": (x, y),
        "trajectory_weight": (x, y, last, used),
        "scsg_direction": (s, r, s),
        "clipped_surrogate": (x, y, 0.2),
        "surrogate": (x, y),
        "value_loss": (x, y),
        "clipped_value_loss": (x, y, x, 0.2),
        "adapted_beta": (used.astype(np.float32), used.astype(np.float64), 0.1),
        "smoothed_action": (z, w, 0.5),
        "twin_target": (x, terminated, twins, 0.9),
        "twin_loss": (twins, x),
        "l2_pull": (s, r, 0.1),
        "action_pull": (z, w, 0.1),
        "value_pull": (twins, twins.copy()),
    }  # fmt: skip


MISFITS = [
    (name, place) for name, given in well_shaped().items() for place, x in enumerate(given) if isinstance(x, np.ndarray)
]
# Axes whose length nothing else in the call says.
FREE = {
    ("categorical_log_prob", 0): 2,
    ("gaussian_entropy", 0): 1,
    ("gaussian_entropy_back", 0): 1,
    ("gaussian_entropy_back", 1): 1,
}


@pytest.mark.parametrize("name", well_shaped())
def test_right_shapes_are_taken(name):
    equation(name)(*well_shaped()[name])


@pytest.mark.parametrize(("name", "place"), MISFITS)
def test_wrong_shapes_are_refused(name, place):
    """An array that is one too short along any axis would be read past its end by a compiled loop."""
    given = list(well_shaped()[name])
    whole = given[place]
    for axis in range(whole.ndim):
        if FREE.get((name, place)) == axis:
            continue
        given[place] = np.ascontiguousarray(np.delete(whole, 0, axis))
        with pytest.raises(AssertionError):
            equation(name)(*given)
