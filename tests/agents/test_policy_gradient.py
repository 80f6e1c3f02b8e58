"""Whole trajectories, and their gradient against autograd on one trajectory after the other."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from agents import policy_gradient
from agents.policy_gradient import PolicyGradientConfig, PolicyGradientFleet
from agents.report import Report
from core.errors import Mistake
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from strategies.scsg import SCSGConfig, ascend
from tests.agents.slow import Actor, per_state, t64
from tests.agents.tiny import Identity, Recorder, Wide, spread

KINDS = ("discrete", "continuous")


def fleet_for(kind, numbers=(0, 1, 2), copies=3, recorded=False, **changes):
    seeds = agent_seeds(3, numbers)
    if kind == "discrete":
        worlds = make_worlds(WorldConfig(id="CartPole-v1", copies=copies, horizon=30), seeds)
    else:
        worlds = Wide(seeds, copies, horizon=9, truncates=True)
    config = PolicyGradientConfig(**({"hidden": (8,), "gamma": 0.9, "batch": 7, "learning_rate": 1e-2} | changes))
    return PolicyGradientFleet(config, Recorder(worlds) if recorded else worlds, seeds)


def trajectories(found, k):
    """Agent k's episodes as slices."""
    ends = np.cumsum(found.lengths[k])
    return [slice(int(end - length), int(end)) for end, length in zip(ends, found.lengths[k], strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("copies", "batch"), [(3, 7), (7, 7), (10, 7), (1, 2)])
def test_sample_holds_whole_episodes(kind, copies, batch):
    """Played in waves when there are fewer copies than episodes; against what the worlds themselves did."""
    fleet = fleet_for(kind, copies=copies, recorded=True)
    report = Report(np.zeros(3, np.int64), np.zeros(3, np.int64))
    found = fleet.sample(fleet.policy, batch, report)
    worlds = fleet.worlds
    assert found.lengths.shape == found.totals.shape == (3, batch)
    np.testing.assert_array_equal(found.used, found.lengths.sum(axis=1))
    np.testing.assert_array_equal(report.steps, found.used)
    np.testing.assert_array_equal(worlds.steps, found.used)
    assert len(set(found.used.tolist())) > 1
    # Every wave, copy by copy, from the record: a wave begins where every copy of it is fresh.
    for k in range(3):
        episodes, t = [], 0
        for width in [min(copies, batch - done) for done in range(0, batch, copies)]:
            wave = [[] for _ in range(width)]
            over = [np.zeros((3, width), bool)]
            while not over[0].all():
                step = worlds.found[t]
                for i in range(width):
                    if not over[0][k, i]:
                        wave[i].append((worlds.seen[t][k, i], worlds.done[t][k, i], step.reward[k, i]))
                over[0] |= (step.terminated | step.truncated)[:, :width]
                t += 1
            episodes += wave
        assert [len(episode) for episode in episodes] == found.lengths[k].tolist()
        whole = [step for episode in episodes for step in episode]
        n = int(found.used[k])
        np.testing.assert_array_equal(found.obs[k, :n], [step[0] for step in whole])
        np.testing.assert_allclose(found.action[k, :n], [step[1] for step in whole], rtol=1e-6)
        np.testing.assert_array_equal(found.reward[k, :n], [step[2] for step in whole])
        np.testing.assert_allclose(found.totals[k], [sum(s[2] for s in episode) for episode in episodes], rtol=1e-5)
        ends = np.zeros(n, bool)
        ends[np.cumsum(found.lengths[k]) - 1] = True
        np.testing.assert_array_equal(found.last[k, :n], ends)
    told = sorted((e.agent, e.length, round(e.total, 3)) for e in report.episodes)
    wanted = [(k, int(found.lengths[k, i]), round(float(found.totals[k, i]), 3)) for k, i in np.ndindex(3, batch)]
    assert told == sorted(wanted)


def slow_ascent(fleet, W, found, k, weight=None):
    """The mean over all timesteps of grad log pi A, trajectory by trajectory."""
    config, shape = fleet.config, fleet.shape
    actor = Actor(shape.net.sizes, config.activation, config.tanh_logits, shape.discrete, W[k])
    episodes = trajectories(found, k)
    returns = []
    for piece in episodes:
        reward = found.reward[k, piece].astype(np.float64)
        returns.append(
            [sum(config.gamma ** (s - t) * reward[s] for s in range(t, len(reward))) for t in range(len(reward))]
        )
    whole = np.array([one[0] for one in returns])
    total = torch.zeros((), dtype=torch.float64)
    for piece, R in zip(episodes, returns, strict=True):
        if config.estimator == "gpomdp":
            A = (np.array(R) - np.mean(R)) / (np.std(R) + 1e-20)
        else:
            A = np.full(len(R), (R[0] - whole.mean()) / whole.std())
        now = actor(found.obs[k, piece])
        action = found.action[k, piece]
        log_prob = per_state(now, now.log_prob(torch.tensor(action) if shape.discrete else t64(action)))
        scale = A if weight is None else A * weight[k, piece]
        total = total + (log_prob * t64(scale)).sum()
    (total / int(found.used[k])).backward()
    return actor.row(gradient=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ascent(kind, estimator, weighted):
    fleet = fleet_for(kind, estimator=estimator, activation="tanh", tanh_logits=kind == "discrete")
    found = fleet.sample(fleet.policy, 7)
    weight = np.exp(spread(found.reward.shape, 1, 0.3)) if weighted else None
    # Also at policies other than those that played.
    for W in (fleet.policy, fleet.policy + spread(fleet.policy.shape, 2, 0.1)):
        g = fleet.ascent(W, found, weight)
        for k in range(3):
            np.testing.assert_allclose(g[k], slow_ascent(fleet, W, found, k, weight), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimators_differ(kind):
    one, other = (fleet_for(kind, estimator=e) for e in ("gpomdp", "reinforce"))
    found = one.sample(one.policy, 7)
    assert np.abs(one.ascent(one.policy, found) - other.ascent(one.policy, found)).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs(kind):
    fleet = fleet_for(kind)
    found, W = fleet.sample(fleet.policy, 5), fleet.policy + np.float32(0.05)
    log_prob = fleet.log_probs(W, found)
    for k in range(3):
        n = int(found.used[k])
        actor = Actor(fleet.shape.net.sizes, "relu", False, fleet.shape.discrete, W[k])
        now = actor(found.obs[k, :n])
        action = torch.tensor(found.action[k, :n]) if fleet.shape.discrete else t64(found.action[k, :n])
        wanted = per_state(now, now.log_prob(action)).detach()
        np.testing.assert_allclose(log_prob[k, :n], wanted, rtol=1e-4, atol=1e-5)


def test_how_many_agents_share_a_pass_does_not_matter(monkeypatch):
    fleet = fleet_for("discrete", range(6))
    found = fleet.sample(fleet.policy, 7)
    results = []
    for chunk in (1, 2 * found.reward.shape[1], 1_000_000):
        monkeypatch.setattr(policy_gradient, "_CHUNK", chunk)
        results.append((fleet.ascent(fleet.policy, found), fleet.log_probs(fleet.policy, found)))
    for g, log_prob in results[1:]:
        np.testing.assert_allclose(g, results[0][0], rtol=1e-4, atol=1e-6)
        used = np.arange(found.reward.shape[1]) < found.used[:, None]
        np.testing.assert_allclose(log_prob[used], results[0][1][used], rtol=1e-5, atol=1e-6)


def test_a_step_goes_down_the_gradient_of_the_loss():
    """One Adam step from nothing moves each weight by the learning rate, against the gradient."""
    fleet, twin = fleet_for("discrete"), fleet_for("discrete")
    g, before = twin.gradient("policy"), fleet.policy.copy()
    np.testing.assert_array_equal(twin.policy, before)
    report = fleet.train(1)
    sure = np.abs(g) > 1e-4
    np.testing.assert_allclose((fleet.policy - before)[sure], -1e-2 * np.sign(g)[sure], rtol=1e-2)
    assert report.updates.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_learns_the_same_alone_and_in_a_fleet(kind):
    fleet = fleet_for(kind, range(5))
    fleet.train(4)
    for k in (0, 3):
        alone = fleet_for(kind, (k,))
        alone.train(4)
        np.testing.assert_allclose(alone.policy[0], fleet.policy[k], rtol=0, atol=1e-5)
    assert np.abs(fleet.policy[0] - fleet.policy[3]).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_twice(kind):
    one, other = fleet_for(kind), fleet_for(kind)
    for fleet in (one, other):
        fleet.train(3)
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


def test_endless_worlds_are_refused():
    seeds = agent_seeds(0, [0])
    with pytest.raises(Mistake, match="horizon"):
        PolicyGradientFleet(PolicyGradientConfig(), Identity(seeds, 1, horizon=0), seeds)


@pytest.mark.slow
def test_a_thousand_agents_fit_in_a_process():
    """CartPole, five batches: under 2 GB for the whole process, interpreter and compiler included."""
    program = """
import resource
from client.session import Session
from runs.config import configure
session = Session(configure({
    "algorithm": "policy-gradient", "agents": 1000, "evaluate-episodes": 0,
    "world": {"id": "CartPole-v1", "copies": 4}, "policy-gradient": {"batch": 4},
}))
before = session.fleet.policy.copy()
report = session.train(5)
assert (abs(session.fleet.policy - before).max(axis=1) > 0).all(), "some agents did not learn"
assert len(report.episodes) == 1000 * 4 * 5
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0


def test_what_scatters_is_the_variance_of_a_batchs_gradient() -> None:
    """s^2 / B, from one batch of 16, against the variance of the gradients of 150 batches."""
    fleet = fleet_for("discrete", numbers=(0,), copies=16)
    estimates, gradients = [], []
    for _ in range(150):
        found = fleet.sample(fleet.policy, 16)
        estimates.append(fleet.scatter(fleet.policy, found))
        gradients.append(fleet.ascent(fleet.policy, found)[0].astype(np.float64))
    measured = np.var(gradients, axis=0, ddof=1).sum() * 16
    assert abs(np.mean(estimates) / measured - 1) < 0.2


def test_there_is_no_progress_where_nothing_has_moved() -> None:
    fleet = fleet_for("discrete", numbers=(0,), copies=4)
    found = fleet.sample(fleet.policy, 4)
    change, weight = fleet.progress_since(fleet.policy.copy(), found)
    assert weight == 1.0
    assert not change.any()
    then = fleet.policy.copy()
    fleet.policy += 0.01
    change, weight = fleet.progress_since(then, found)
    assert change.any()
    assert 0 < abs(weight - 1.0) < 0.1


def test_a_correction_weighs_whole_trajectories() -> None:
    """Against trajectory by trajectory, in float64: g(now) - sum_i w_i g_i(then), agent by agent."""
    fleet = fleet_for("discrete", copies=4)
    then = fleet.policy.copy()
    fleet.policy += spread(then.shape, 5, 0.03)
    found = fleet.sample(fleet.policy, 4)
    change, mean = fleet.correction(then, found)
    before, now = fleet.log_probs(then, found).astype(np.float64), fleet.log_probs(fleet.policy, found)
    weights = np.zeros_like(before)
    for k in range(3):
        for one in trajectories(found, k):
            weights[k, one] = np.prod(np.exp(before[k, one] - now[k, one]))
    wanted = fleet.ascent(fleet.policy, found) - fleet.ascent(then, found, weights.astype(np.float32))
    np.testing.assert_allclose(change, wanted, atol=1e-5)
    np.testing.assert_allclose(mean, [w[:used].mean() for w, used in zip(weights, found.used, strict=True)], rtol=1e-5)
    assert (np.abs(weights[weights > 0] - 1) > 1e-3).any()


def test_agents_take_their_inner_steps_as_they_would_alone() -> None:
    """SCSG for three agents, which stop by themselves, and for each of them as a fleet of one."""
    config = SCSGConfig(own_batch=3, guard=0.02)

    def steps(fleet: PolicyGradientFleet) -> np.ndarray:
        found = fleet.sample(fleet.policy, 7)
        return ascend(fleet, fleet.ascent(fleet.policy, found), 9, config)

    together = fleet_for("discrete", hidden=(16,))
    taken = steps(together)
    assert len(set(taken.tolist())) > 1, "all stopped together: the test shows nothing"
    for k in range(3):
        alone = fleet_for("discrete", numbers=(k,), hidden=(16,))
        np.testing.assert_array_equal(steps(alone), taken[[k]])
        np.testing.assert_allclose(alone.policy[0], together.policy[k], atol=1e-6)
