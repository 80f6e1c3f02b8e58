"""CartPole and Pendulum are Gymnasium's own; each agent's world is its own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from core.errors import Failure, Mistake
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from envs.classic import Classic

CARTPOLE = {"gravity": 12.0, "cart-mass": 1.5, "pole-mass": 0.3, "length": 0.8, "force": 7.0}
PENDULUM = {"gravity": 7.0, "mass": 1.4, "length": 0.7, "torque": 3.0, "speed-limit": 5.0}


def worlds(world: str, agents: int = 1, copies: int = 1, **given: Any) -> Classic:
    made = make_worlds(WorldConfig(id=world, copies=copies, **given), agent_seeds(3, range(agents)))
    assert isinstance(made, Classic)
    return made


def actions(batch: Classic, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = (batch.agents, batch.copies)
    if batch.WIDTH == 4:
        return rng.integers(0, 2, shape)
    return rng.uniform(-2, 2, (*shape, 1)).astype(np.float32)


def reference(world: str, physics: dict[str, float]) -> Any:
    env: Any = gymnasium.make(world)
    bare = env.unwrapped
    if world == "CartPole-v1" and physics:
        bare.gravity, bare.masscart, bare.masspole, bare.length, bare.force_mag = physics.values()
        bare.total_mass, bare.polemass_length = bare.masscart + bare.masspole, bare.masspole * bare.length
    if world == "Pendulum-v1" and physics:
        bare.g, bare.m, bare.l, bare.max_torque, bare.max_speed = physics.values()
    return env


@pytest.mark.parametrize(
    ("world", "physics"),
    [("CartPole-v1", {}), ("CartPole-v1", CARTPOLE), ("Pendulum-v1", {}), ("Pendulum-v1", PENDULUM)],
)
def test_equals_gymnasium_step_for_step(world: str, physics: dict[str, float]) -> None:
    batch, env = worlds(world, copies=2, physics=physics), reference(world, physics)
    rng, ends = np.random.default_rng(0), 0
    scale = physics.get("torque", 2.0) / 2.0  # our command is always in [-2, 2]
    begun = True
    for _ in range(1500):
        if begun:
            env.reset()
            env.unwrapped.state = batch.state_[0, 0].copy()
        chosen = actions(batch, rng)
        step = batch.step(chosen)
        wanted, reward, terminated, truncated, _ = env.step(
            int(chosen[0, 0]) if world == "CartPole-v1" else chosen[0, 0] * scale
        )
        np.testing.assert_allclose(step.next_obs[0, 0], wanted, atol=1e-6)
        assert step.reward[0, 0] == pytest.approx(reward, rel=1e-6, abs=1e-6)
        assert (step.terminated[0, 0], step.truncated[0, 0]) == (terminated, truncated and not terminated)
        begun = bool(terminated or truncated)
        ends += begun
        if not begun:
            np.testing.assert_array_equal(step.obs, np.where(_ended(step)[..., None], step.obs, step.next_obs))
    assert ends >= 7


def _ended(step: Any) -> Any:
    return step.terminated | step.truncated


def test_cartpole_reaches_its_time_limit() -> None:
    batch = worlds("CartPole-v1", physics={"gravity": 0.0, "force": 0.0})
    for t in range(1, 501):
        step = batch.step(np.zeros((1, 1), np.int64))
        assert step.truncated[0, 0] == (t == 500)
        assert not step.terminated[0, 0]
    assert (np.abs(step.obs) <= 0.05).all()
    assert not np.array_equal(step.obs, step.next_obs)


@pytest.mark.parametrize("world", ["CartPole-v1", "Pendulum-v1"])
def test_an_agent_sees_the_same_world_alone_and_among_a_hundred(world: str) -> None:
    config = WorldConfig(id=world, copies=3, physics={"gravity": {"uniform": [5.0, 12.0]}, "length": [0.4, 0.5] * 50})
    seeds = agent_seeds(9, range(100))
    many, alone = make_worlds(config, seeds), make_worlds(config, [seeds[41]], [41])
    rng = np.random.default_rng(1)
    for _ in range(300):
        chosen = actions(many, rng)  # type: ignore[arg-type]
        a, b = many.step(chosen), alone.step(chosen[41:42])
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x[41:42], y)


def test_purposes_share_the_world_and_not_the_episodes() -> None:
    config, seeds = WorldConfig(physics={"gravity": {"uniform": [5.0, 12.0]}}), agent_seeds(0, range(4))
    own, judge = make_worlds(config, seeds), make_worlds(config, seeds, purpose="judge")
    assert isinstance(own, Classic)
    assert isinstance(judge, Classic)
    np.testing.assert_array_equal(own.physics, judge.physics)
    assert not np.array_equal(own.obs, judge.obs)


@pytest.mark.parametrize("world", ["CartPole-v1", "Pendulum-v1"])
def test_inactive_copies_are_untouched(world: str) -> None:
    batch, rng = worlds(world, agents=3, copies=2), np.random.default_rng(2)
    for _ in range(50):
        before = {name: array.copy() for name, array in batch.state().items()}
        active = rng.random((3, 2)) < 0.5
        step = batch.step(actions(batch, rng), active)
        for array in (step.reward, step.terminated, step.truncated, step.next_obs):
            assert not array[~active].any()
        np.testing.assert_array_equal(step.obs[~active], before["obs"][~active])
        after = batch.state()
        for name in ("state_", "clock", "streams.counts"):
            np.testing.assert_array_equal(after[name][~active], before[name][~active])
        np.testing.assert_array_equal(after["steps"] - before["steps"], active.sum(axis=1))


@pytest.mark.parametrize("world", ["CartPole-v1", "Pendulum-v1"])
def test_a_loaded_state_goes_on_bit_for_bit(world: str) -> None:
    drift = {"gravity": {"from": 9.0, "to": 3.0, "steps": 200}}
    one, rng = worlds(world, agents=2, copies=2, physics=drift), np.random.default_rng(3)
    for _ in range(37):
        one.step(actions(one, rng))
    saved = {name: array.copy() for name, array in one.state().items()}
    other = worlds(world, agents=2, copies=2, physics=drift)
    other.load_state(saved)
    for _ in range(100):
        chosen = actions(one, rng)
        for x, y in zip(one.step(chosen), other.step(chosen), strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(one.physics, other.physics)


def test_a_state_of_another_shape_is_refused() -> None:
    with pytest.raises(Failure, match=r"state_.*needs"):
        worlds("CartPole-v1", copies=2).load_state(worlds("CartPole-v1", copies=3).state())


def test_some_agents_as_a_batch_of_their_own() -> None:
    drift = {"gravity": {"from": 9.0, "to": [3.0, 4.0, 5.0], "steps": 50}}
    whole, parts = (worlds("CartPole-v1", agents=3, copies=2, physics=drift) for _ in range(2))
    rng, rows = np.random.default_rng(4), np.array([0, 2])
    for _ in range(60):
        chosen = actions(whole, rng)
        active = np.zeros((3, 2), np.bool_)
        active[rows] = True
        wanted = whole.step(chosen, active)
        part = parts.take(rows)
        step = part.step(chosen[rows])
        parts.put(rows, part)
        np.testing.assert_array_equal(step.next_obs, wanted.next_obs[rows])
        np.testing.assert_array_equal(parts.obs, whole.obs)
        np.testing.assert_array_equal(parts.steps, whole.steps)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"physics": {"gravty": 1}}, "'world.physics.gravty' is not known here; did you mean 'world.physics.gravity'"),
        ({"physics": {"length": 0}}, "'world.physics.length' must be at least 1e-06, not 0"),
        ({"obstacles": {"pit": 1}}, "'world.obstacles' is for BipedalWalker-v3; 'CartPole-v1' takes 'world.physics'"),
        ({"options": {"g": 1}}, "'world.options' is not for 'CartPole-v1'"),
        ({"workers": 2}, "'world.workers' is not for 'CartPole-v1': a step of the whole batch costs less"),
    ],
)
def test_what_a_classic_world_would_ignore_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake) as raised:
        worlds("CartPole-v1", **given)
    assert message in str(raised.value)
