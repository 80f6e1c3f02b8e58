"""PPO against a slow one written out in torch, knob by knob; and what only a fleet can get wrong."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from torch.distributions import Normal

from agents.ppo import PPOConfig, PPOFleet
from agents.report import Report
from core.errors import Mistake
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from tests.agents.slow import SlowPPO, row_of, t64
from tests.agents.tiny import Clock, Echo, Recorder, Wide, spread

BASE = {"hidden": (8,), "rollout": 13, "minibatches": 3, "epochs": 2, "learning_rate": 1e-3}
KINDS = ("discrete", "continuous")


def worlds_for(kind, numbers=(0, 1), copies=2, seed=5):
    """Short episodes, so that every rollout holds terminations and truncations."""
    seeds = agent_seeds(seed, numbers)
    if kind == "discrete":
        return make_worlds(WorldConfig(id="CartPole-v1", copies=copies, horizon=12), seeds), seeds
    return Wide(seeds, copies, horizon=6, truncates=True), seeds


def fleet_for(kind, numbers=(0, 1), **changes):
    worlds, seeds = worlds_for(kind, numbers)
    recorder = Recorder(worlds)
    fleet = PPOFleet(PPOConfig(**(BASE | changes)), recorder, seeds)
    if changes.get("penalty"):
        # Three frozen policies; agent 0 is pulled to two of them, agent 1 to the third.
        fleet.link(frozen(fleet), np.array([[0.5, 2.0, 0.0], [0.0, 0.0, 1.0]], np.float32)[: len(numbers)])
    return fleet, recorder


def frozen(fleet, count=3):
    return spread((count, fleet.policy.shape[1]), 77, 0.4)


def rollouts(recorder, T):
    """What was recorded, T steps at a time: axes (T, agent, copy, ...)."""
    for begin in range(0, len(recorder.found), T):
        steps = recorder.found[begin : begin + T]
        yield [np.stack(x) for x in (recorder.seen[begin : begin + T], recorder.done[begin : begin + T])] + [
            np.stack([getattr(step, name) for step in steps])
            for name in ("reward", "terminated", "truncated", "next_obs")
        ]


def compare(kind, iterations=2, **changes):
    """Some iterations of a fleet of two, and of two slow learners on what was recorded."""
    fleet, recorder = fleet_for(kind, **changes)
    slow = [SlowPPO(fleet.config, fleet, k) for k in range(2)]
    if changes.get("penalty"):
        for k, weights in enumerate([[(0.5, 0), (2.0, 1)], [(1.0, 2)]]):
            slow[k].pull = [(weight, slow[k].make(frozen(fleet)[j])) for weight, j in weights]
    report = fleet.train(iterations)
    for rollout in rollouts(recorder, fleet.config.rollout):
        for k in range(2):
            slow[k].iterate(*(x[:, k] for x in rollout))
    for k in range(2):
        np.testing.assert_allclose(fleet.policy[k], slow[k].actor.row(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(fleet.value[k], row_of(slow[k].critic), rtol=0, atol=1e-5)
        assert report.updates[k] == slow[k].updates
        np.testing.assert_allclose(fleet.beta[k], slow[k].beta)
    ends = [np.concatenate([x[j] for x in rollouts(recorder, fleet.config.rollout)]) for j in (3, 4)]
    assert all(x.any() for x in ends), "a test without terminations and truncations says little"
    return fleet


SETTINGS = {
    "the defaults": {},
    "kl objective": {"objective": "kl", "target_kl": 0.01},
    "free value loss": {"clip_value": False},
    "penalty forward": {"penalty": True, "penalty_coef": 0.7},
    "penalty reverse": {"penalty": True, "penalty_coef": 0.7, "penalty_direction": "reverse"},
    "normalised": {"normalise_observations": True, "scale_rewards": True},
    "all at once": {
        "objective": "kl", "target_kl": 0.001, "clip_value": False, "penalty": True, "normalise_observations": True,
        "scale_rewards": True, "anneal_over": 100, "entropy_coef": 0.1, "max_grad_norm": 0.0, "activation": "relu",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_fleet_is_many_slow_learners(kind, setting):
    compare(kind, iterations=3, **SETTINGS[setting])


# Every knob: what it is changed from (beside BASE) and to.
KL = {"objective": "kl", "target_kl": 0.003}
PULL = {"penalty": True}
KNOBS = {
    "hidden": ({}, (6, 5)),
    "activation": ({}, "relu"),
    "rollout": ({}, 20),
    "learning_rate": ({}, 3e-3),
    "anneal_over": ({}, 60),
    "gamma": ({}, 0.7),
    "gae": ({}, False),
    "gae_lambda": ({}, 0.3),
    "minibatches": ({}, 5),
    "epochs": ({}, 4),
    "normalise_advantage": ({}, False),
    "objective": ({"target_kl": 0.003, "max_grad_norm": 0.0}, "kl"),
    "clip": ({"clip_value": False, "learning_rate": 1e-2}, 0.02),
    "clip_value": ({"clip": 0.02}, False),
    "entropy_coef": ({}, 0.5),
    "value_coef": ({}, 3.0),
    "max_grad_norm": ({}, 0.05),
    "target_kl": ({"epochs": 6, "learning_rate": 1e-2}, 1e-3),
    "beta": (KL, 30.0),
    "normalise_observations": ({}, True),
    "scale_rewards": ({}, True),
    "penalty": ({}, True),
    "penalty_coef": (PULL, 5.0),
    "penalty_direction": (PULL, "reverse"),
}


def test_every_knob_is_here():
    assert set(KNOBS) == {field.name for field in dataclasses.fields(PPOConfig)}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_does_what_a_slow_learner_does_with_it(knob):
    base, value = KNOBS[knob]
    turned = compare("continuous", **(base | {knob: value}))
    still, _ = fleet_for("continuous", **base)
    still.train(2)
    if turned.value.shape == still.value.shape:
        assert max(np.abs(turned.policy - still.policy).max(), np.abs(turned.value - still.value).max()) > 1e-4


def test_without_gae_is_lambda_one():
    without, _ = fleet_for("discrete", gae=False, gae_lambda=0.5)
    one, _ = fleet_for("discrete", gae_lambda=1.0)
    without.train(2)
    one.train(2)
    np.testing.assert_array_equal(without.policy, one.policy)
    np.testing.assert_array_equal(without.value, one.value)


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (3, 2), (26, 5)])
def test_updates_are_minibatches_times_epochs(minibatches, epochs):
    fleet, _ = fleet_for("discrete", minibatches=minibatches, epochs=epochs)
    report = fleet.train(2)
    assert report.updates.tolist() == [2 * minibatches * epochs] * 2
    assert report.steps.tolist() == [2 * 13 * 2] * 2
    assert fleet.worlds.steps.tolist() == [2 * 13 * 2] * 2


def test_the_step_falls_to_nothing():
    """After anneal_over steps of an agent nothing moves any more."""
    fleet, _ = fleet_for("discrete", anneal_over=2 * 13 * 2)
    fleet.train(2)
    before = fleet.policy.copy(), fleet.value.copy()
    fleet.train(1)
    np.testing.assert_array_equal(fleet.policy, before[0])
    np.testing.assert_array_equal(fleet.value, before[1])


def test_target_kl_stops_each_agent_by_itself():
    """Agent 1 stands still from the first stop on while agent 0 goes on, and learns as it would alone."""
    changes = {"epochs": 8, "learning_rate": 2e-2, "target_kl": 0.02}
    fleet, _ = fleet_for("continuous", (0, 1, 2, 3), **changes)
    found = [fleet.train(1).updates.copy() for _ in range(4)]
    assert len({tuple(updates) for updates in found}) > 1
    assert any(len(set(updates)) > 1 for updates in found), "all stopped together: the test says nothing"
    for k in range(4):
        alone, _ = fleet_for("continuous", (k,), **changes)
        for updates in found:
            report = alone.train(1)
            assert report.updates[0] == updates[k]
        np.testing.assert_allclose(alone.policy[0], fleet.policy[k], rtol=0, atol=1e-4)


def test_what_is_measured_does_not_depend_on_who_goes_on():
    """An agent that has stopped reports what it measured, not what it would have measured in others' epochs."""
    changes = {"epochs": 8, "learning_rate": 2e-2, "target_kl": 0.02}
    fleet, _ = fleet_for("continuous", (0, 1, 2, 3), **changes)
    together = fleet.train(1)
    assert len(set(together.updates)) > 1
    for k in range(4):
        alone = fleet_for("continuous", (k,), **changes)[0].train(1)
        assert alone.metrics.keys() == together.metrics.keys()
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(values[0], together.metrics[name][k], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_learns_the_same_alone_and_in_a_fleet(kind):
    changes = {"normalise_observations": True, "scale_rewards": True}
    fleet, _ = fleet_for(kind, range(5), **changes)
    fleet.train(3)
    for k in (0, 3):
        alone, _ = fleet_for(kind, (k,), **changes)
        alone.train(3)
        np.testing.assert_allclose(alone.policy[0], fleet.policy[k], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.value[0], fleet.value[k], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_twice(kind):
    one, other = (fleet_for(kind, normalise_observations=True, scale_rewards=True)[0] for _ in range(2))
    for fleet in (one, other):
        fleet.train(3)
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


# --- episodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncates", [True, False])
def test_a_cut_episode_is_worth_what_its_true_successor_is(truncates):
    """One step, reward 1, lambda 1: the target is 1, and when the episode was cut gamma V(s') of the state it was cut
    in (phase 1), which is not the state that is acted on next (phase 0)."""
    seeds = agent_seeds(0, [0])
    fleet = PPOFleet(PPOConfig(**(BASE | {"gamma": 0.5, "rollout": 12})), Clock(seeds, 2, 4, truncates), seeds)
    rollout = fleet.collect(Report(np.zeros(1, np.int64), np.zeros(1, np.int64)))
    target = rollout.target.reshape(12, 2)
    final = fleet.value_net.forward(fleet.value, np.array([[[1.0, 1.0]]], np.float32))[0, 0, 0]
    wanted = 1.0 + (0.5 * final if truncates else 0.0)
    np.testing.assert_allclose(target[3::4], np.full((3, 2), wanted), rtol=1e-5)


def test_the_probability_is_of_what_was_drawn():
    """The world is told an action inside its range; learning is about the one that was drawn."""
    seeds = agent_seeds(0, [0, 1])
    fleet = PPOFleet(PPOConfig(**BASE), Recorder(Echo(seeds, 2)), seeds)
    rollout = fleet.collect(Report(np.zeros(2, np.int64), np.zeros(2, np.int64)))
    told = np.stack(fleet.worlds.done, axis=1).reshape(2, 26, 1)
    assert np.abs(rollout.action).max() > 1.0
    np.testing.assert_array_equal(told, np.clip(rollout.action, -1.0, 1.0))
    wanted = Normal(t64(rollout.outputs), 1.0).log_prob(t64(rollout.action))[..., 0]
    np.testing.assert_allclose(rollout.log_prob, wanted, rtol=1e-4, atol=1e-5)


def test_episodes_are_reported_with_return_length_and_place():
    fleet, recorder = fleet_for("continuous")
    report = fleet.train(3)
    ended = np.stack([step.terminated | step.truncated for step in recorder.found])
    assert len(report.episodes) == ended.sum()
    for k, i in np.ndindex(2, 2):
        begin = 0
        for t in np.flatnonzero(ended[:, k, i]):
            total = sum(float(recorder.found[s].reward[k, i]) for s in range(begin, t + 1))
            found = [e for e in report.episodes if e.agent == k and e.at == 2 * (t + 1) and e.length == t + 1 - begin]
            assert any(abs(e.total - total) < 1e-4 for e in found)
            begin = t + 1


# --- the pull ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_larger_penalty_holds_an_agent_closer_to_its_neighbour(kind, direction):
    """On frozen data: the KL to the linked policy falls with every larger coefficient."""
    swap, distances = np.array([[0, 1], [1, 0]], np.float32), []
    for coef in (0.0, 0.1, 1.0, 10.0):
        fleet, _ = fleet_for(kind, penalty=True, penalty_coef=coef, penalty_direction=direction, epochs=4, hidden=(16,))
        fleet.policy += spread(fleet.policy.shape, 3, 0.3)
        fleet.link(fleet.policy, swap)
        report = Report(np.zeros(2, np.int64), np.zeros(2, np.int64))
        rollout = fleet.collect(report)
        for _ in range(12):
            fleet.learn(rollout, report)
        own = fleet.shape.outputs(fleet.policy, rollout.obs)
        near = fleet.shape.outputs(fleet.neighbours.policies[::-1].copy(), rollout.obs)
        distances.append((near.kl(own) if direction == "forward" else own.kl(near)).mean(-1))
    assert (np.diff(distances, axis=0) < 0).all(), distances
    assert (np.array(distances) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_gradient_of_the_pull_is_that_of_finite_differences(kind, direction):
    """Everything else in the loss is turned off. The penalty is reckoned in float64, by somebody else's formula."""
    off = {"entropy_coef": 0.0, "value_coef": 0.0, "normalise_advantage": False}
    fleet, _ = fleet_for(kind, penalty=True, penalty_coef=0.7, penalty_direction=direction, **off)
    fleet.policy += spread(fleet.policy.shape, 3, 0.3)
    rollout = fleet.collect(Report(np.zeros(2, np.int64), np.zeros(2, np.int64)))
    fleet._backward(
        rollout._replace(advantage=np.zeros_like(rollout.advantage)), fleet.policy, fleet.neighbour_outputs(rollout.obs)
    )
    pulls = [[(0.5, 0), (2.0, 1)], [(1.0, 2)]]

    def said(row, k):
        """A policy on the states of agent k, (b, a): probabilities, or means and deviations."""
        net, log_std = fleet.shape.split(row[None])
        x = rollout.obs[k].astype(np.float64)
        for W, b in fleet.shape.net.layers(net)[:-1]:
            x = np.tanh(x @ W[0] + b[0])
        W, b = fleet.shape.net.layers(net)[-1]
        x = x @ W[0] + b[0]
        if log_std is not None:
            return x, np.exp(log_std)
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def kl(p, q):
        if isinstance(p, tuple):
            (m, s), (n, t) = p, q
            return (np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1).mean()
        return (p * np.log(p / q)).sum(-1).mean()

    def penalty(row, k):
        total = 0.0
        for weight, j in pulls[k]:
            own, other = said(row, k), said(frozen(fleet)[j].astype(np.float64), k)
            total += 0.7 * weight * (kl(other, own) if direction == "forward" else kl(own, other))
        return total

    eps = 1e-5
    for k in range(2):
        row = fleet.policy[k].astype(np.float64)
        steps = eps * np.eye(len(row))
        slope = np.array([(penalty(row + d, k) - penalty(row - d, k)) / (2 * eps) for d in steps])
        assert np.abs(slope).max() > 0.01
        np.testing.assert_allclose(fleet._gradients[0][k], slope, rtol=1e-3, atol=1e-5)


def test_how_far_an_agent_is_from_whom_it_knows():
    """By name, before the first update; a policy that is known without weight is measured and pulls nobody."""
    fleet, _ = fleet_for("discrete", penalty=True)
    known = np.array([[True, True, False], [False, False, True]])
    fleet.link(frozen(fleet), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]], np.float32), known, ["a", "b", "c"])
    other, _ = fleet_for("discrete", penalty=True)
    other.link(frozen(fleet), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]], np.float32))
    start = fleet.policy.copy()
    metrics, blind = fleet.train(2).metrics, other.train(2).metrics
    np.testing.assert_array_equal(fleet.policy, other.policy)
    assert {"kl.a", "kl.b", "kl.c", "kl-neighbours"} == {name for name in metrics if name.startswith("kl")}
    assert np.isnan(metrics["kl.c"][0]) and np.isnan(metrics["kl.a"][1]) and np.isnan(metrics["kl.b"][1])
    assert "kl.b" not in blind
    np.testing.assert_array_equal(metrics["kl-neighbours"], [metrics["kl.a"][0], metrics["kl.c"][1]])
    again, _ = fleet_for("discrete")
    rollout = again.collect(Report(np.zeros(2, np.int64), np.zeros(2, np.int64)))
    own = again.shape.outputs(start, rollout.obs)
    for name, j, k in (("a", 0, 0), ("b", 1, 0), ("c", 2, 1)):
        theirs = again.shape.outputs(np.repeat(frozen(fleet)[j : j + 1], 2, axis=0), rollout.obs)
        np.testing.assert_allclose(metrics[f"kl.{name}"][k], theirs.kl(own).mean(-1)[k], rtol=1e-5)


def test_agents_that_nobody_pulls_learn_alone():
    lonely, _ = fleet_for("discrete", penalty=True)
    lonely.link(np.empty((0, lonely.policy.shape[1]), np.float32), np.empty((2, 0), np.float32))
    alone, _ = fleet_for("discrete")
    metrics = lonely.train(2).metrics
    alone.train(2)
    np.testing.assert_array_equal(lonely.policy, alone.policy)
    assert (metrics["penalty"] == 0).all()


def test_without_weight_the_run_is_independent_ppo():
    pulled, _ = fleet_for("discrete", penalty=True, penalty_coef=0.0)
    alone, _ = fleet_for("discrete")
    pulled.train(2)
    alone.train(2)
    np.testing.assert_array_equal(pulled.policy, alone.policy)


def test_linked_policies_are_copies():
    fleet, _ = fleet_for("discrete", penalty=True)
    swap = np.array([[0, 1], [1, 0]], np.float32)
    fleet.link(fleet.policy, swap)
    before = fleet.neighbours.policies.copy()
    fleet.train(1)
    np.testing.assert_array_equal(fleet.neighbours.policies, before)


def test_links_of_a_part():
    """A part of a fleet keeps its own links: training it is training those agents in the whole."""
    whole, _ = fleet_for("continuous", penalty=True)
    other, _ = fleet_for("continuous", penalty=True)
    part = other.take(np.array([1]))
    part.train(1)
    other.put(np.array([1]), part)
    whole.train(1)
    np.testing.assert_allclose(other.policy[1], whole.policy[1], rtol=0, atol=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minibatches": 27}, ["minibatches", "27", "26"]),
        ({"objective": "kl"}, ["target-kl"]),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    worlds, seeds = worlds_for("discrete")
    with pytest.raises(Mistake) as refused:
        PPOFleet(PPOConfig(**(BASE | changes)), worlds, seeds)
    assert all(word in str(refused.value) for word in words)


def test_a_penalty_without_links_is_refused():
    worlds, seeds = worlds_for("discrete")
    fleet = PPOFleet(PPOConfig(**(BASE | {"penalty": True})), worlds, seeds)
    before = copy.deepcopy(fleet.state())
    with pytest.raises(Mistake, match="penalty"):
        fleet.train(1)
    np.testing.assert_array_equal(fleet.policy, before["policy"])


# --- what is measured -------------------------------------------------------------------------------------------------


def test_measures():
    """Every term of the loss is told, per agent, so that one sees when a coefficient drowns the rest."""
    fleet, _ = fleet_for("discrete", penalty=True)
    metrics = fleet.train(2).metrics
    wanted = {"policy-loss", "value-loss", "entropy", "penalty", "approx-kl", "clip-fraction", "gradient-norm"}
    shares = [metrics[f"share-{name}"] for name in ("policy", "value", "entropy", "penalty")]
    np.testing.assert_allclose(np.sum(shares, axis=0), np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(shares[3] / shares[1], metrics["penalty"] / (0.5 * metrics["value-loss"]), rtol=0.05)
    assert wanted <= metrics.keys()
    for name in wanted:
        assert metrics[name].shape == (2,)
        assert np.isfinite(metrics[name]).all()
    assert (metrics["entropy"] <= np.log(2) + 1e-6).all()
    assert (metrics["penalty"] > 0).all()
