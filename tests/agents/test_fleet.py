"""What every kind of fleet must do: go on exactly where it was saved, and be the sum of its agents."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from client.session import Session
from core.errors import Failure
from runs import checkpoints
from runs.config import configure
from tests.agents.tiny import Recorder

SMALL = {
    "policy-gradient": {"hidden": [8], "batch": 3, "learning-rate": 1e-2},
    "ppo": {"hidden": [8], "rollout": 16, "normalise-observations": True, "scale-rewards": True, "anneal-over": 500},
    "td3": {"hidden": [8], "batch": 8, "learning-starts": 20, "capacity": 50, "updates-per-step": 0.5},
}
WORK = {"policy-gradient": 2, "ppo": 2, "td3": 40}


def conf(algorithm, world, agents=2, copies=2, horizon=25, **changes):
    return {
        "algorithm": algorithm, "agents": agents, "seed": 3, "evaluate-episodes": 2, "evaluate": "sampled",
        "world": {"id": world, "copies": copies, "horizon": horizon}, algorithm: SMALL[algorithm] | changes,
    }  # fmt: skip


CASES = {
    "policy gradient, CartPole": conf("policy-gradient", "CartPole-v1"),
    "policy gradient, Pendulum": conf("policy-gradient", "Pendulum-v1"),
    "policy gradient, Acrobot": conf("policy-gradient", "Acrobot-v1"),
    "PPO, CartPole": conf("ppo", "CartPole-v1"),
    "PPO, Pendulum": conf("ppo", "Pendulum-v1", **{"objective": "kl", "target-kl": 0.01}),
    "PPO, Acrobot": conf("ppo", "Acrobot-v1"),
    "TD3, Pendulum": conf("td3", "Pendulum-v1"),
    "TD3, MountainCarContinuous": conf("td3", "MountainCarContinuous-v0"),
}
GO_ON = """
import json, sys
from pathlib import Path
from client.session import Session
from runs.config import configure
from runs import checkpoints
from tests.agents.tiny import Recorder
folder = Path(sys.argv[1])
for number, (conf, work) in enumerate(json.loads(sys.argv[2])):
    session = Session(configure(conf))
    session.load_state(checkpoints.load(folder / f"{number}.half.npz")[0])
    session.train(work)
    judged = session.evaluate()
    checkpoints.save(folder / f"{number}.resumed.npz", session.state() | {"judged": judged}, {})
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case twice: uninterrupted, and in a new process from the checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("runs")
    for number, one in enumerate(CASES.values()):
        session = Session(configure(one))
        session.train(WORK[one["algorithm"]])
        checkpoints.save(folder / f"{number}.half.npz", session.state(), {})
        session.train(WORK[one["algorithm"]])
        judged = session.evaluate()
        checkpoints.save(folder / f"{number}.whole.npz", session.state() | {"judged": judged}, {})
    given = json.dumps([(one, WORK[one["algorithm"]]) for one in CASES.values()])
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, str(folder), given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_saved_and_continued_elsewhere_is_uninterrupted(runs, case):
    number = list(CASES).index(case)
    half, whole, resumed = (checkpoints.load(runs / f"{number}.{name}.npz")[0] for name in ("half", "whole", "resumed"))
    assert whole.keys() == resumed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)
    part = {"policy-gradient": "policy", "ppo": "policy", "td3": "critic"}[CASES[case]["algorithm"]]
    assert (half[f"fleet.{part}"] != whole[f"fleet.{part}"]).any(), "nothing was learned after the checkpoint"


def test_a_state_of_another_fleet_is_refused_by_name():
    session = Session(configure(conf("ppo", "CartPole-v1")))
    wider = Session(configure(conf("ppo", "CartPole-v1", hidden=[9])))
    with pytest.raises(Failure, match=r"fleet\.policy"):
        session.load_state(wider.state())
    other = Session(configure(conf("td3", "Pendulum-v1")))
    with pytest.raises(Failure, match=r"'fleet\."):
        session.load_state(other.state())


# --- parts of a fleet -------------------------------------------------------------------------------------------------

KINDS = {"policy-gradient": "CartPole-v1", "ppo": "CartPole-v1", "td3": "Pendulum-v1"}


def session_of(algorithm, numbers):
    return Session(configure(conf(algorithm, KINDS[algorithm], agents=4)), numbers)


def same(one, i, other, j):
    """Agent i of a fleet and agent j of another hold the same, but for the rounding of their matrix products."""
    mine, theirs = of(one, i), of(other, j)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        wanted = theirs[name].astype(np.float64)
        np.testing.assert_allclose(array.astype(np.float64), wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def of(fleet, k):
    """What a fleet holds of agent k; of its replay, what was stored."""
    found = {name: array[k].copy() for name, array in fleet.state().items()}
    stored = found.get("replay.stored")
    return {name: x[:stored] if name.startswith("replay.") and x.ndim else x for name, x in found.items()}


@pytest.mark.parametrize("algorithm", KINDS)
@pytest.mark.parametrize("rows", [[1, 3], slice(0, 2)])
def test_training_a_part_is_training_those_agents_alone(algorithm, rows):
    whole, work = session_of(algorithm, range(4)).fleet, WORK[algorithm]
    whole.train(work)
    before = [of(whole, k) for k in range(4)]
    part = whole.take(np.array(rows) if isinstance(rows, list) else rows)
    assert part.agents == 2
    part.train(work)
    whole.put(np.array(rows) if isinstance(rows, list) else rows, part)
    trained = np.arange(4)[rows]
    others = np.setdiff1d(np.arange(4), trained)
    for k in others:
        for name, array in of(whole, k).items():
            np.testing.assert_array_equal(array, before[k][name], err_msg=name)
    alone = session_of(algorithm, trained.tolist()).fleet
    alone.train(work)
    alone.train(work)
    for j, k in enumerate(trained):
        same(whole, k, alone, j)


@pytest.mark.parametrize("algorithm", KINDS)
def test_agents_that_are_not_equally_far_train_in_groups(algorithm):
    fleet, work = session_of(algorithm, range(3)).fleet, WORK[algorithm]
    ahead = np.array([2, 0])
    part = fleet.take(ahead)
    part.train(work)
    fleet.put(ahead, part)
    assert len(set(fleet.progress.tolist())) == 2
    report = fleet.train(work)
    assert (report.steps > 0).all()
    assert (report.updates > 0).all()
    assert {e.agent for e in report.episodes} <= {0, 1, 2}
    for values in report.metrics.values():
        assert values.shape == (3,)
        assert np.isfinite(values).all()
    for k, times in ((0, 2), (1, 1), (2, 2)):
        alone = session_of(algorithm, [k]).fleet
        steps = sum(alone.train(work).steps[0] * (t == times - 1) for t in range(times))
        assert report.steps[k] == steps
        same(fleet, k, alone, 0)


@pytest.mark.parametrize("algorithm", KINDS)
def test_judging_moves_nothing(algorithm):
    """A run that is judged more often learns the same, and the same judgement is passed in any company."""
    one, other = session_of(algorithm, range(3)), session_of(algorithm, [1])
    for _ in range(3):
        judged = one.evaluate()
    assert judged.shape == (3, 2)
    for _ in range(3):
        alone = other.evaluate()
    np.testing.assert_allclose(judged[1], alone[0], rtol=1e-4)
    quiet = session_of(algorithm, range(3))
    quiet.train(WORK[algorithm])
    one.train(WORK[algorithm])
    for name, array in quiet.fleet.state().items():
        np.testing.assert_array_equal(array, one.fleet.state()[name], err_msg=name)


@pytest.mark.parametrize("algorithm", ["policy-gradient", "ppo"])
@pytest.mark.parametrize("world", ["CartPole-v1", "Pendulum-v1"])
def test_a_rollout_in_one_loop_is_a_rollout_step_by_step(algorithm, world):
    """Behind a recorder a world hands out no compiled step: the fleet learns the same, to the last bit or nearly."""
    config = configure(conf(algorithm, world, agents=3))
    quick, slow = Session(config).fleet, Session(config).fleet
    slow.worlds = Recorder(slow.worlds)
    reports = [fleet.train(2 * WORK[algorithm]) for fleet in (quick, slow)]
    assert slow.worlds.found, "the recorder saw nothing: both took the same way"
    assert [(e.agent, e.length, e.at) for e in reports[0].episodes] == [
        (e.agent, e.length, e.at) for e in reports[1].episodes
    ]
    slow.worlds = slow.worlds.worlds
    for k in range(3):
        same(quick, k, slow, k)
