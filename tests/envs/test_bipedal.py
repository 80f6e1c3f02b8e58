"""Walkers: Gymnasium's own where its numbers are asked for, and what was asked for elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d.bipedal_walker import TERRAIN_STEP, BipedalWalkerHeuristics

from core.errors import Mistake
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from envs.bipedal import Bipedal, Walker

ALL = {"stump": 1, "stairs": 1, "pit": 1}


def worlds(agents: int = 1, copies: int = 1, numbers: list[int] | None = None, **given: Any) -> Bipedal:
    made = make_worlds(
        WorldConfig(**{"id": "BipedalWalker-v3", "copies": copies} | given),
        agent_seeds(3, numbers or range(agents)),
        numbers,
    )
    assert isinstance(made, Bipedal)
    return made


def walker(batch: Bipedal, agent: int = 0, copy: int = 0) -> Walker:
    found: Any = batch._stage._envs[int(batch._cells[agent, copy])].unwrapped  # type: ignore[attr-defined]
    assert isinstance(found, Walker)
    return found


def build(seed: int, **ground: float) -> Walker:
    one = Walker()
    one.reset(seed=seed, options={"ground": ground})
    return one


def boxes(one: Walker) -> list[tuple[float, float]]:
    """Width and height of every box, in terrain steps."""
    found = []
    for body in one.terrain:
        corners = np.array(body.fixtures[0].shape.vertices)
        if len(corners) == 4:
            found.append(tuple((np.ptp(corners, axis=0) / TERRAIN_STEP).tolist()))
    return found[::-1]


@pytest.mark.parametrize(
    ("world", "obstacles", "theirs"),
    [
        ("BipedalWalker-v3", {}, "BipedalWalker-v3"),
        ("BipedalWalker-v3", {"fall-reward": -100}, "BipedalWalker-v3"),
        ("BipedalWalkerHardcore-v3", {}, "BipedalWalkerHardcore-v3"),
        ("BipedalWalker-v3", ALL, "BipedalWalkerHardcore-v3"),
        ("BipedalWalker-v3", {"stump": 0.3, "stairs": 0.3, "pit": 0.3}, "BipedalWalkerHardcore-v3"),
    ],
)
def test_equals_gymnasium_step_for_step(world: str, obstacles: dict[str, Any], theirs: str) -> None:
    batch = worlds(id=world, obstacles=obstacles)
    ours = walker(batch)
    options = batch._reset_options()[0]
    falls = 0
    for seed in range(6):
        env = gymnasium.make(theirs)  # a fresh one: Gymnasium's remembers its past, see the module
        seen, wanted = ours.reset(seed=seed, options=options)[0], env.reset(seed=seed)[0]
        np.testing.assert_array_equal(seen, wanted)
        np.testing.assert_array_equal(ours.terrain_y, env.unwrapped.terrain_y)  # type: ignore[attr-defined]
        heuristics, over, length = BipedalWalkerHeuristics(), False, 0
        heuristics.a = np.zeros(4)
        while not over and length < 400:
            action = np.array(heuristics.step_heuristic(seen), np.float32)  # walks, so that obstacles are met
            seen, reward, terminated, _, _ = ours.step(action)
            wanted = env.step(action)
            np.testing.assert_array_equal(seen, wanted[0])
            assert (reward, terminated) == (wanted[1], wanted[2])
            over, length = terminated, length + 1
        falls += over
    assert falls


def test_an_episode_does_not_depend_on_the_ones_before() -> None:
    used, actions = build(0), np.random.default_rng(0).uniform(-1, 1, (120, 4)).astype(np.float32)
    for action in actions:
        used.step(action)
    for seed in range(8):
        fresh = build(seed)
        used.reset(seed=seed)
        for action in actions:
            a, b = used.step(action), fresh.step(action)
            np.testing.assert_array_equal(a[0], b[0])
            if a[2]:
                break


def test_time_limits() -> None:
    assert worlds().horizon == 1600
    assert worlds(obstacles=ALL).horizon == 1600
    assert worlds(id="BipedalWalkerHardcore-v3").horizon == 2000
    batch = worlds(horizon=7)
    for t in range(1, 8):
        step = batch.step(np.zeros((1, 1, 4)))
        assert step.truncated[0, 0] == (t == 7)


def test_uneven_weights_give_uneven_frequencies() -> None:
    counts: Counter[str] = Counter()
    for seed in range(60):
        counts.update(build(seed, stump=6, stairs=1, pit=3).kinds)
    total = sum(counts.values())
    assert total > 500
    shares = {kind: counts[kind] / total for kind in ("stump", "stairs", "pit")}
    assert shares == pytest.approx({"stump": 0.6, "stairs": 0.1, "pit": 0.3}, abs=0.07)


@pytest.mark.parametrize("kind", ["stump", "stairs", "pit"])
def test_one_kind_alone(kind: str) -> None:
    assert set(build(1, **{kind: 0.2}).kinds) == {kind}


def test_equal_weights_of_two_kinds() -> None:
    counts: Counter[str] = Counter()
    for seed in range(40):
        counts.update(build(seed, stump=2, pit=2).kinds)
    assert set(counts) == {"stump", "pit"}
    assert 0.4 < counts["stump"] / counts.total() < 0.6


def test_stump_sizes() -> None:
    square = [size for seed in range(12) for size in boxes(build(seed, **{"stump": 1, "stump-width-max": 4}))]
    assert {round(w, 3) for w, _ in square} == {1, 2, 3, 4}
    assert all(w == pytest.approx(h, abs=1e-4) for w, h in square)
    low = {"stump": 1, "stump-width-min": 3, "stump-width-max": 5, "stump-height-min": 1, "stump-height-max": 2}
    sizes = [size for seed in range(12) for size in boxes(build(seed, **low))]
    assert {round(w, 3) for w, _ in sizes} == {3, 4, 5}
    assert {round(h, 3) for _, h in sizes} == {1, 2}


def test_pit_sizes() -> None:
    lengths: Counter[int] = Counter()
    for seed in range(12):
        one = build(seed, **{"pit": 1, "pit-length-min": 2, "pit-length-max": 6, "pit-depth": 2.5})
        assert {round(h, 3) for _, h in boxes(one)} == {2.5}
        run = 0
        for before, after in zip(one.terrain_y, one.terrain_y[1:], strict=False):
            depth = (before - after) / TERRAIN_STEP
            if abs(depth - 2.5) < 1e-6:
                run = 1
            elif abs(depth + 2.5) < 1e-6:
                lengths[run] += 1
                run = 0
            else:
                run += bool(run)
    assert set(lengths) == {2, 3, 4, 5, 6}


def test_stair_sizes() -> None:
    ground = {"stairs": 1, "stairs-steps-min": 2, "stairs-steps-max": 6, "stairs-width-min": 2, "stairs-width-max": 3}
    sizes = [size for seed in range(12) for size in boxes(build(seed, **ground))]
    assert {round(w, 3) for w, _ in sizes} == {2, 3}
    capped = build(2, **{"stairs": 1, "stairs-steps-min": 1, "stairs-steps-max": 1})
    assert len(boxes(capped)) == len(capped.kinds)
    up = build(3, **{"stairs": 1, "stairs-up": 1, "roughness": 0, "stairs-height": 2})
    assert up.terrain_y[-1] > up.terrain_y[0]
    assert max(h for _, h in boxes(up)) == pytest.approx(2, abs=1e-4)
    down = build(3, **{"stairs": 1, "stairs-up": 0, "roughness": 0})
    assert down.terrain_y[-1] < down.terrain_y[0]


def test_flat_stretches() -> None:
    for seed in range(5):
        one = build(seed, **{"stump": 1, "flat-start": 60, "every-min": 30, "every-max": 35})
        assert len(set(one.terrain_y[:60])) == 1
        assert 2 <= len(one.kinds) <= 5
    assert len(set(build(0, roughness=0).terrain_y)) == 1
    assert len(build(0, **{"stump": 1, "every-min": 1, "every-max": 1}).kinds) > 25


def test_the_reward_of_a_fall() -> None:
    rewards = {}
    for given in ({}, {"fall-reward": -1}):
        batch, paid = worlds(obstacles=given), []
        while True:
            step = batch.step(np.full((1, 1, 4), 0.9))
            paid.append(float(step.reward[0, 0]))
            if step.terminated[0, 0]:
                break
        rewards[len(given)] = paid
    assert rewards[0][:-1] == rewards[1][:-1]
    assert (rewards[0][-1], rewards[1][-1]) == (-100, -1)


def test_ground_per_agent_changes_from_the_next_episode_on() -> None:
    batch = worlds(
        agents=3,
        horizon=5,
        obstacles={
            "stump": [1, 0, 0],
            "pit": {"before": 0, "after": [0, 1, 0], "at": 10},
            "every-min": 5,
            "every-max": 6,
        },
    )
    kinds = []
    for _ in range(15):
        batch.step(np.zeros((3, 1, 4)))
        kinds.append([set(walker(batch, k).kinds) for k in range(3)])
    assert kinds[0] == kinds[7] == [{"stump"}, set(), set()]
    assert kinds[9] == kinds[12] == [{"stump"}, {"pit"}, set()]


def test_a_part_keeps_its_agents_ground() -> None:
    part = worlds(agents=2, obstacles={"stump": [1, 0], "pit": [0, 1]}).take([1])
    part.reset()
    assert set(walker(part).kinds) == {"pit"}


def test_an_agent_alone_and_among_others() -> None:
    given = {"obstacles": {"stump": [1, 2, 0], "pit": {"uniform": [1, 2]}}, "copies": 2}
    many, alone = worlds(3, **given), worlds(numbers=[1], **given)
    actions = np.random.default_rng(0).uniform(-1, 1, (150, 3, 2, 4)).astype(np.float32)
    for action in actions:
        for x, y in zip(many.step(action), alone.step(action[1:2]), strict=True):
            np.testing.assert_array_equal(x[1:2], y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"obstacles": {"wall": 1}},
            "'world.obstacles.wall' is not known here (allowed: stump, stairs, pit, every-min",
        ),
        ({"obstacles": {"stump": -1, "pit": 1}}, "'world.obstacles.stump' must be at least 0, not -1"),
        ({"obstacles": {"stump": 0}}, "asks for obstacles (stump) but the weights of stump, stairs, pit sum to zero"),
        ({"obstacles": {"every-min": 5}}, "asks for obstacles (every-min) but the weights"),
        ({"obstacles": {"pit": {"from": 0, "to": 0, "steps": 5}}}, "sum to zero"),
        ({"obstacles": {"pit": [0]}}, "sum to zero"),
        (
            {"obstacles": {"pit": 1, "every-min": 12}},
            "'world.obstacles.every-min' must never be above 'world.obstacles.every-max'",
        ),
        ({"obstacles": {"pit": 1, "stump-height-min": 2}}, "must never be above 'world.obstacles.stump-height-max'"),
        ({"obstacles": {"pit": 1, "pit-length-max": 3.5}}, "'world.obstacles.pit-length-max' is a whole number"),
        ({"obstacles": {"pit": 1, "stairs-up": 2}}, "'world.obstacles.stairs-up' must be at least 0 and at most 1"),
        ({"obstacles": {"pit": "often"}}, "'world.obstacles.pit' is a number, a list or a table, not 'often'"),
        ({"obstacles": {"flat-start": 3}}, "'world.obstacles.flat-start' must be at least 14"),
        ({"obstacles": ALL, "id": "BipedalWalkerHardcore-v3"}, "'world.obstacles' is for BipedalWalker-v3"),
        ({"obstacles": ALL, "options": {"hardcore": True}}, "'world.obstacles' is for BipedalWalker-v3 without"),
        ({"physics": {"gravity": 1}}, "'world.physics' is for CartPole-v1 and Pendulum-v1"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake) as raised:
        worlds(**given)
    assert message in str(raised.value)


def test_obstacles_are_refused_elsewhere() -> None:
    with pytest.raises(Mistake, match=r"'world.obstacles' is for BipedalWalker-v3, not for 'Acrobot-v1'"):
        make_worlds(WorldConfig(id="Acrobot-v1", obstacles=ALL), [1])


def test_a_party_with_a_plain_agent_is_served() -> None:
    """The list is for all agents of the federation; this party has the one whose weight is zero."""
    assert walker(worlds(numbers=[1], obstacles={"stump": [1, 0]})).kinds == []
