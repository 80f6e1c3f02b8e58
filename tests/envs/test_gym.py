"""Any Gymnasium id behind the batched interface."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from core.errors import Failure, Mistake
from core.streams import agent_seeds
from envs import WorldConfig, Worlds, make_worlds

STRANGE = "tests.envs.strange:"


def worlds(world: str, agents: int = 1, copies: int = 1, render: bool = False, **given: Any) -> Worlds:
    return make_worlds(WorldConfig(id=world, copies=copies, **given), agent_seeds(5, range(agents)), render=render)


def sample(batch: Worlds, rng: np.random.Generator) -> Any:
    shape = (batch.agents, batch.copies)
    if isinstance(batch.action_space, spaces.Discrete):
        return rng.integers(0, batch.action_space.n, shape)
    assert isinstance(batch.action_space, spaces.Box)
    return rng.uniform(batch.action_space.low, batch.action_space.high, (*shape, *batch.action_space.shape))


@pytest.mark.parametrize("world", ["Acrobot-v1", "MountainCarContinuous-v0", "LunarLander-v3"])
def test_equals_gymnasium(world: str) -> None:
    batch, env = worlds(world, horizon=60), gymnasium.make(world, max_episode_steps=60)
    assert batch.horizon == 60
    rng, ends = np.random.default_rng(0), 0
    wanted = None
    for _ in range(200):
        if wanted is None or wanted[2] or wanted[3]:
            seeds: list[Any] = []
            stage: Any = batch._stage  # type: ignore[attr-defined]
            seeds.append(stage._envs[0].unwrapped.np_random_seed)
            np.testing.assert_array_equal(batch.obs[0, 0], env.reset(seed=seeds[0])[0])
        action = sample(batch, rng)
        step = batch.step(action)
        one = action[0, 0] if isinstance(batch.action_space, spaces.Discrete) else action[0, 0].astype(np.float32)
        wanted = env.step(one)
        np.testing.assert_array_equal(step.next_obs[0, 0], wanted[0])
        assert step.reward[0, 0] == np.float32(wanted[1])
        assert (step.terminated[0, 0], step.truncated[0, 0]) == (wanted[2], wanted[3] and not wanted[2])
        ends += bool(wanted[2] or wanted[3])
    assert ends >= 3


def test_the_end_of_an_episode() -> None:
    batch = worlds(STRANGE + "BothEnds-v0", copies=2)
    for t in range(1, 13):
        step = batch.step(np.full((1, 2), 1))
        assert step.terminated.all() == (t % 5 == 0)
        assert not step.truncated.any()
        assert (step.next_obs[..., 0] == (t - 1) % 5 + 1).all()
        assert (step.obs[..., 0] == t % 5).all()
    assert batch.steps.tolist() == [24]


def test_inactive_copies_are_untouched() -> None:
    batch = worlds("Acrobot-v1", agents=2, copies=2, horizon=4)
    before = batch.obs
    counts = batch.streams.counts.copy()  # type: ignore[attr-defined]
    active = np.array([[True, False], [False, False]])
    for _ in range(4):
        step = batch.step(np.zeros((2, 2), np.int64), active)
        for array in (step.next_obs, step.reward, step.terminated, step.truncated):
            assert not array[~active].any()
    np.testing.assert_array_equal(step.obs[~active], before[~active])
    assert (batch.streams.counts - counts).tolist() == [[1, 0], [0, 0]]  # type: ignore[attr-defined]
    assert batch.steps.tolist() == [4, 0]
    nobody = batch.step(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.bool_))
    np.testing.assert_array_equal(nobody.obs, step.obs)


def test_what_was_returned_does_not_change_later() -> None:
    batch = worlds("Acrobot-v1", copies=2, horizon=3)
    first = batch.step(np.zeros((1, 2), np.int64))
    kept = [array.copy() for array in first]
    for _ in range(5):
        batch.step(np.ones((1, 2), np.int64))
    for array, before in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("world", ["Acrobot-v1", "LunarLander-v3", "BipedalWalker-v3"])
def test_an_interrupted_run_sees_the_same_worlds(world: str) -> None:
    going, rng = worlds(world, agents=2, copies=2, horizon=25), np.random.default_rng(0)
    for _ in range(60):
        going.step(sample(going, rng))
    saved = {name: array.copy() for name, array in going.state().items()}
    resumed = worlds(world, agents=2, copies=2, horizon=25)
    resumed.step(sample(going, rng))
    resumed.load_state(saved)
    np.testing.assert_array_equal(going.obs, resumed.obs)
    for _ in range(60):
        action = sample(going, rng)
        for x, y in zip(going.step(action), resumed.step(action), strict=True):
            np.testing.assert_array_equal(x, y)
    assert going.steps.tolist() == resumed.steps.tolist() == [240, 240]


def test_some_agents_as_a_batch_of_their_own() -> None:
    whole, parts = (worlds("Acrobot-v1", agents=3, copies=2, horizon=9) for _ in range(2))
    rng, rows = np.random.default_rng(0), np.array([2, 0])
    for _ in range(30):
        action, active = sample(whole, rng), np.zeros((3, 2), np.bool_)
        active[rows] = True
        wanted, part = whole.step(action, active), parts.take(rows)
        step = part.step(action[rows])
        parts.put(rows, part)
        np.testing.assert_array_equal(step.next_obs, wanted.next_obs[rows])
        np.testing.assert_array_equal(parts.obs, whole.obs)
        np.testing.assert_array_equal(parts.steps, whole.steps)


def test_an_agent_alone_and_among_others() -> None:
    seeds, config = agent_seeds(5, range(8)), WorldConfig(id="MountainCar-v0", copies=2, horizon=20)
    many, alone = make_worlds(config, seeds), make_worlds(config, seeds[5:6], [5])
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = sample(many, rng)
        for x, y in zip(many.step(action), alone.step(action[5:6]), strict=True):
            np.testing.assert_array_equal(x[5:6], y)


def test_nested_observations_become_a_flat_vector() -> None:
    batch = worlds(STRANGE + "Nested-v0")
    assert batch.observation_space.shape == (9,)
    assert batch.observation_space.dtype == np.float32
    assert batch.step(np.zeros((1, 1), np.int64)).obs[0, 0].tolist() == [0, 1, 0, 1, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(("world", "size"), [("FrozenLake-v1", 16), ("CarRacing-v3", 96 * 96 * 3)])
def test_numbers_and_pictures_become_a_flat_vector(world: str, size: int) -> None:
    batch = worlds(world)
    assert batch.obs.shape == (1, 1, size)
    assert batch.observation_space.contains(batch.obs[0, 0])
    batch.close()


def test_actions_are_numbered_from_zero() -> None:
    batch = worlds(STRANGE + "Offset-v0")
    assert batch.action_space == spaces.Discrete(3)
    assert [batch.step(np.full((1, 1), a)).obs[0, 0, 1] for a in (0, 1, 2)] == [5, 6, 7]


def test_actions_are_kept_inside_their_bounds() -> None:
    batch = worlds(STRANGE + "Vector-v0")
    assert batch.step(np.array([[[9.0, 0.25]]])).obs[0, 0, 1] == 1.25


@pytest.mark.parametrize("world", ["Nan-v0", "NanReward-v0"])
def test_numbers_that_are_not_finite_end_the_run(world: str) -> None:
    batch = worlds(STRANGE + world, agents=2)
    with pytest.raises(
        Failure, match=rf"{world}' returned an observation or a reward that is not finite \(row 0, copy 0"
    ):
        run(batch, 5)


def run(batch: Worlds, steps: int) -> None:
    for _ in range(steps):
        batch.step(np.zeros((batch.agents, batch.copies), np.int64))


@pytest.mark.parametrize(
    ("world", "given", "message"),
    [
        ("CartPol-v1", {}, "there is no world 'CartPol-v1' here: Environment `CartPol` doesn't exist. Did you mean"),
        ("CartPole-v7", {}, "there is no world 'CartPole-v7' here"),
        ("Hopper-v2", {}, "there is no world 'Hopper-v2' here"),
        ("nowhere.at.all:X-v0", {}, "there is no module 'nowhere.at.all' for 'world.id'"),
        ("Acrobot-v1", {"options": {"wings": 2}}, "cannot be made with world.options {'wings': 2}"),
        ("FrozenLake-v1", {"options": {"map_name": "7x7"}}, "cannot be made with world.options {'map_name': '7x7'}"),
        (STRANGE + "Fussy-v0", {"options": {"size": 9}}, "ValueError: size is at most 3"),
        ("Acrobot-v1", {"options": {"max_episode_steps": 9}}, "'world.options.max_episode_steps' is not yours to give"),
        ("Acrobot-v1", {"options": {"render_mode": "human"}}, "'world.options.render_mode' is not yours to give"),
        ("Acrobot-v1", {"physics": {"gravity": 1}}, "'Acrobot-v1' takes 'world.options'"),
        (STRANGE + "Many-v0", {}, "MultiDiscrete([2 3]); Discrete and bounded one-dimensional Box are supported"),
        (STRANGE + "Endless-v0", {}, "Discrete and bounded one-dimensional Box are supported"),
        (STRANGE + "Graph-v0", {}, "cannot be made a flat vector"),
        (STRANGE + "Unlimited-v0", {}, "may last for ever; set 'world.horizon' to a number of steps"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refusals(world: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake) as raised:
        worlds(world, **given)
    assert message in str(raised.value)


def test_a_horizon_makes_an_endless_world_usable() -> None:
    assert worlds(STRANGE + "Unlimited-v0", horizon=5).horizon == 5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pictures_need_a_world_that_draws() -> None:
    with pytest.raises(Mistake, match="Raises-v0' cannot be filmed"):
        worlds(STRANGE + "Raises-v0", render=True)
    with pytest.raises(Mistake, match=r"draw no pictures: make them with make_worlds\(render=True\)"):
        worlds("Acrobot-v1").render()
    assert worlds("Acrobot-v1", render=True).render().shape == (500, 500, 3)


@pytest.mark.parametrize("world", ["Ant-v5", "HalfCheetah-v5"])
def test_without_mujoco_the_extra_is_named(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the checkout: the package index has a fedrl that is not ours."""
    monkeypatch.setitem(sys.modules, "mujoco", None)  # as if it were not installed
    for module in ("gymnasium.envs.mujoco", "gymnasium.envs.mujoco.mujoco_env"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(Mistake) as raised:
        worlds(world)
    words = str(raised.value)
    assert f"the world '{world}' needs a package that is missing" in words
    assert words.endswith(": pip install -e '.[mujoco]' in the checkout of fedrl")
    assert "fedrl[" not in words


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco is not installed")
def test_with_mujoco_it_runs() -> None:
    batch, rng = worlds("HalfCheetah-v5", agents=2, horizon=20), np.random.default_rng(0)
    for _ in range(50):
        step = batch.step(sample(batch, rng))
    assert np.isfinite(step.obs).all()
    assert batch.horizon == 20
