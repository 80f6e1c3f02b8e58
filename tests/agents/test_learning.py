"""Learning, seen in seconds: problems that an algorithm that works solves; the mean of several seeds."""

from __future__ import annotations

import numpy as np
import pytest

from agents.policy_gradient import PolicyGradientConfig, PolicyGradientFleet
from agents.ppo import PPOConfig, PPOFleet
from agents.td3 import TD3Fleet
from agents.td3_config import TD3Config
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from tests.agents.tiny import Aim, Echo, Identity

SEEDS = agent_seeds(11, range(5))


def judged(fleet, worlds):
    """The mean over seeds of the mean return of greedy episodes."""
    return float(fleet.evaluate(worlds).mean())


def learned(fleet, worlds, work):
    before = judged(fleet, worlds)
    fleet.train(work)
    after = judged(fleet, worlds)
    assert after > before
    return after


@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
def test_policy_gradient_learns_to_say_what_it_sees(estimator):
    """Eight steps without a future, or one: chance earns a quarter of the steps, 1 is all of them."""
    horizon = 8 if estimator == "gpomdp" else 1
    config = PolicyGradientConfig(hidden=(16,), learning_rate=2e-2, gamma=0.0, batch=32, estimator=estimator)
    fleet = PolicyGradientFleet(config, Identity(SEEDS, 32, horizon), SEEDS)
    assert learned(fleet, Identity(SEEDS, 100, horizon), 120) / horizon >= 0.95


def test_policy_gradient_learns_to_answer_with_the_same_number():
    """A policy that ignores what it sees loses 1/3 a step at best."""
    config = PolicyGradientConfig(hidden=(16,), activation="tanh", learning_rate=2e-2, gamma=0.0, batch=32)
    fleet = PolicyGradientFleet(config, Echo(SEEDS, 32, 8), SEEDS)
    assert learned(fleet, Echo(SEEDS, 100, 1), 120) >= -0.05


def test_ppo_learns_to_say_what_it_sees():
    config = PPOConfig(hidden=(16,), rollout=32, learning_rate=1e-2)
    fleet = PPOFleet(config, Identity(SEEDS, 4), SEEDS)
    assert learned(fleet, Identity(SEEDS, 100), 40) >= 0.97


def test_ppo_learns_to_answer_with_the_same_number():
    config = PPOConfig(hidden=(16,), rollout=64, learning_rate=1e-2, entropy_coef=0.0)
    fleet = PPOFleet(config, Echo(SEEDS, 4), SEEDS)
    assert learned(fleet, Echo(SEEDS, 100), 50) >= -0.03


def test_ppo_with_a_penalty_on_kl_learns_as_well():
    config = PPOConfig(hidden=(16,), rollout=32, learning_rate=1e-2, objective="kl", target_kl=0.02)
    fleet = PPOFleet(config, Identity(SEEDS, 4), SEEDS)
    assert learned(fleet, Identity(SEEDS, 100), 60) >= 0.95


TINY_TD3 = {"hidden": (32, 32), "batch": 64, "learning_starts": 200, "capacity": 3000}


def test_td3_finds_the_best_action_of_a_bandit():
    fleet = TD3Fleet(TD3Config(**TINY_TD3), Aim(SEEDS), SEEDS)
    assert learned(fleet, Aim(SEEDS, 20), 1500) >= -0.01


def test_td3_learns_to_answer_with_the_same_number():
    fleet = TD3Fleet(TD3Config(**TINY_TD3), Echo(SEEDS), SEEDS)
    assert learned(fleet, Echo(SEEDS, 100), 2000) >= -0.02


def pendulum(copies, purpose):
    """Fifty steps, and a motor strong enough to lift the pendulum without swinging it first."""
    config = WorldConfig(id="Pendulum-v1", copies=copies, horizon=50, physics={"torque": 12.0})
    return make_worlds(config, SEEDS[:3], purpose=purpose)


def doing_nothing():
    """What no torque at all comes to in the worlds that judge."""
    worlds = pendulum(40, "judge")
    return sum(worlds.step(np.zeros((3, 40, 1))).reward for _ in range(50)).mean()


def test_td3_lifts_a_pendulum():
    config = TD3Config(hidden=(32, 32), batch=64, learning_starts=300, capacity=4000, gamma=0.9)
    fleet = TD3Fleet(config, pendulum(1, "world"), SEEDS[:3])
    assert learned(fleet, pendulum(40, "judge"), 1500) >= 0.5 * doing_nothing()


def test_ppo_lifts_a_pendulum():
    config = PPOConfig(
        hidden=(32,), rollout=100, learning_rate=3e-3, gamma=0.9, epochs=10, entropy_coef=0.0, clip_value=False,
        normalise_observations=True, scale_rewards=True,
    )  # fmt: skip
    fleet = PPOFleet(config, pendulum(8, "world"), SEEDS[:3])
    assert learned(fleet, pendulum(40, "judge"), 30) >= 0.5 * doing_nothing()
