"""The compiled loop and the loop step by step are one: same records, same worlds afterwards, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from agents.policies import Policy
from agents.rollout import play
from core.streams import Streams, agent_seeds
from envs import WorldConfig, make_worlds
from envs.classic import Classic
from tests.agents.tiny import spread


def played(name, once, agents, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(Classic, "compiled", None)
    seeds = agent_seeds(3, range(agents))
    worlds = make_worlds(WorldConfig(id=name, copies=3, horizon=30), seeds)
    assert (worlds.compiled is not None) == compiled
    policy = Policy(worlds.observation_space, worlds.action_space, (8, 8), "tanh", squash=False)
    streams = Streams(seeds, "acting", lanes=3)
    playing = np.array([[True, True, False]] * agents) if once else None
    record = play(policy, spread((agents, policy.width), 1, 0.5), worlds, streams, 30 if once else 70, playing)
    return record, worlds.state() | streams.state()


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.parametrize("once", [False, True], ids=["rollout", "episodes"])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_compiled_is_step_by_step(name, once, agents, monkeypatch):
    fast, after_fast = played(name, once, agents, monkeypatch, compiled=True)
    slow, after_slow = played(name, once, agents, monkeypatch, compiled=False)
    np.testing.assert_array_equal(fast.lengths, slow.lengths)
    for key, array in after_fast.items():
        np.testing.assert_array_equal(array, after_slow[key], err_msg=key)
    kept = ("obs", "action", "reward", "ends") if once else fast._fields
    for field in kept:
        for k, i in np.ndindex(*fast.lengths.shape):
            where = (slice(fast.lengths[k, i]), *([slice(None)] if field == "ends" else []), k, i)
            if field != "lengths":
                np.testing.assert_array_equal(getattr(fast, field)[where], getattr(slow, field)[where], err_msg=field)
    if once:
        assert not fast.lengths[:, 2].any()
        assert fast.lengths[:, :2].all()


def test_changing_physics_are_played_step_by_step():
    config = WorldConfig(physics={"gravity": {"from": 9.8, "to": 5.0, "steps": 100}})
    assert make_worlds(config, agent_seeds(0, [0])).compiled is None
