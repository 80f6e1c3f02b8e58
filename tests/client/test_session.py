"""A session: an evaluation changes nothing, and a part of a fleet is a fleet."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
import tomli_w

from client.session import Session
from core.errors import Failure, Mistake
from core.options import flatten, nested, override, unflatten
from envs import WorldConfig
from runs.config import assembled, configure, from_user

PENDULUM = WorldConfig(id="Pendulum-v1", horizon=20)


def session(algorithm: str = "ppo", agents: int = 4, **world: object) -> Session:
    defaults = {"id": "CartPole-v1", "copies": 2} if algorithm != "td3" else {"id": "Pendulum-v1", "horizon": 20}
    config = assembled()(algorithm=algorithm, agents=agents, evaluate_episodes=3, world=WorldConfig(**defaults | world))
    object.__setattr__(config.td3, "learning_starts", 10)
    object.__setattr__(config.td3, "capacity", 50)
    object.__setattr__(config.td3, "batch", 8)
    return Session(config)


def test_an_evaluation_neither_moves_the_world_on_nor_lets_it_jump() -> None:
    one = session(agents=1, physics={"gravity": {"before": 9.8, "after": 1.0, "at": 1000}})
    one.train(1)
    before = one.worlds.steps.copy()
    assert one.evaluation is not None
    for _ in range(3):
        one.evaluate()
        assert one.evaluation.steps == before == one.worlds.steps
        assert one.evaluation.physics[0, 0] == 9.8  # type: ignore[attr-defined]
    one.worlds.steps[...] = 1000
    one.evaluate()
    assert one.evaluation.physics[0, 0] == 1.0  # type: ignore[attr-defined]


def test_an_evaluation_depends_on_the_progress_of_an_agent_and_on_nothing_else() -> None:
    one, other = session(), session()
    one.evaluate()
    np.testing.assert_array_equal(one.evaluate(), other.evaluate())
    first = one.evaluate()
    one.train(1)
    assert (one.evaluate() != first).any()


def test_an_evaluation_without_worlds_is_refused() -> None:
    with pytest.raises(Mistake, match="evaluate-episodes"):
        Session(assembled()(evaluate_episodes=0)).evaluate()


@pytest.mark.parametrize("algorithm", ["ppo", "policy-gradient", "td3"])
def test_every_second_agent_trains_as_it_would_alone(algorithm: str) -> None:
    whole, work = session(algorithm), 30 if algorithm == "td3" else 1
    untouched = {name: matrix[1::2].copy() for name, matrix in whole.fleet.parts.items()}
    part = whole.fleet.take(slice(0, 4, 2))
    part.train(work)
    whole.fleet.put(slice(0, 4, 2), part)
    everyone = session(algorithm)
    everyone.train(work)
    for name, matrix in whole.fleet.parts.items():
        np.testing.assert_allclose(matrix[::2], everyone.fleet.parts[name][::2], atol=1e-5)
        np.testing.assert_array_equal(matrix[1::2], untouched[name])


def test_the_state_of_a_part_is_that_of_its_agents_alone() -> None:
    whole = session("td3", agents=3)
    whole.train(30)
    state = whole.fleet.take(slice(1, 2)).state()
    assert {array.shape[0] for array in state.values()} == {1}
    fresh = session("td3", agents=3)
    part = fresh.fleet.take(slice(1, 2))
    part.load_state(state)
    np.testing.assert_array_equal(fresh.fleet.replay.obs[1], whole.fleet.replay.obs[1])  # type: ignore[attr-defined]
    assert not fresh.fleet.replay.obs[[0, 2]].any()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("algorithm", "part"), [("ppo", "policy"), ("policy-gradient", "value"), ("td3", "bogus")])
def test_gradients_of_parts_that_have_none_are_refused(algorithm: str, part: str) -> None:
    fleet = session(algorithm).fleet
    with pytest.raises(Mistake, match=part):
        fleet.gradient(part)
    with pytest.raises(Mistake, match=part):
        fleet.apply(part, np.zeros((4, 1), np.float32))


def test_a_gradient_applied_is_a_training_step() -> None:
    trained, stepped = session("policy-gradient"), session("policy-gradient")
    trained.train(1)
    stepped.fleet.apply("policy", stepped.fleet.gradient("policy"))
    np.testing.assert_array_equal(trained.fleet.parts["policy"], stepped.fleet.parts["policy"])


@pytest.mark.parametrize(("algorithm", "work"), [("ppo", 2), ("policy-gradient", 2), ("td3", 3), ("td3", 0)])
@pytest.mark.parametrize("rate", [0.3, 1.0, 2.5])
def test_what_agents_do_lies_within_the_bounds_of_their_work(algorithm: str, work: int, rate: float) -> None:
    """An honest agent is never refused for its work: the bounds hold, in every round and for every agent."""
    one = session(algorithm, copies=2)
    object.__setattr__(one.config.td3, "updates_per_step", rate)
    fewest, most, updates = one.fleet.bounds(work)
    assert fewest == most or algorithm == "policy-gradient"
    for _ in range(8):
        report = one.train(work)
        assert fewest <= report.steps.min() and report.steps.max() <= most
        assert report.updates.max() <= updates


def test_what_a_gradient_takes_lies_within_its_bounds() -> None:
    one = session("policy-gradient")
    assert one.fleet.bounds(5, measured=True) == (5, 5 * 500, 1)
    report = one.measure("policy", 5)[1]
    assert report.steps.min() >= 5 and report.steps.max() <= 5 * 500 and (report.updates == 1).all()
    one = session("td3")
    for part in ("critic", "actor"):
        fewest, most, updates = one.fleet.bounds(15, measured=True)
        report = one.measure(part, 15)[1]
        assert (report.steps == fewest).all() and (report.steps == most).all() and (report.updates <= updates).all()


def test_a_checkpoint_with_more_than_the_run_has_is_refused() -> None:
    one = session()
    with pytest.raises(Failure, match=r"fleet\.gone"):
        one.load_state(one.state() | {"fleet.gone": np.zeros(1)})


ROWS, EDGES = [[0, 1], [1, 0]], {"edges": [[0, 1, 1.0], [1, 0, 1.0]]}


@pytest.mark.parametrize(("room", "key"), [("kl", "matrix"), ("gossip", "topology")])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("{key} = [[0, 1], [1, 0]]", ROWS),
        ("{key} = '[[0, 1], [1, 0]]'", ROWS),
        ("{key} = {{ edges = [[0, 1, 1.0], [1, 0, 1.0]] }}", EDGES),
        ("{key} = '{{\"edges\": [[0, 1, 1.0], [1, 0, 1.0]]}}'", EDGES),
        ("[{room}.{key}]\nedges = [[0, 1, 1.0], [1, 0, 1.0]]", EDGES),
    ],
)
def test_a_graph_may_be_a_list_a_table_or_a_text_in_a_conf(room: str, key: str, written: str, meant: object) -> None:
    """Flower's configuration holds numbers and texts only, so all of them become a text."""
    config = from_user(tomllib.loads(f"[{room}]\n" + written.format(room=room, key=key)))
    text = getattr(getattr(config, room), key)
    assert json.loads(text) == meant
    assert {type(value) for value in flatten(config).values()} <= {bool, int, float, str}
    assert configure(unflatten(flatten(config))) == config
    assert configure(tomllib.loads(tomli_w.dumps(nested(config)))) == config


@pytest.mark.parametrize("value", [ROWS, EDGES])
@pytest.mark.parametrize("key", ["kl.matrix", "gossip.topology"])
def test_a_graph_may_be_set_on_the_command_line(key: str, value: object) -> None:
    assert json.loads(str(flatten(from_user(override({}, [f"{key}={json.dumps(value)}"])))[key])) == value


@pytest.mark.parametrize("written", ["matrix = 3", "matrix = true", "matrix = 1979-05-27", "matrix = [1979-05-27]"])
def test_a_graph_of_another_kind_is_refused_by_name(written: str) -> None:
    with pytest.raises(Mistake, match=r"'kl\.matrix' (is a text|holds lists, tables, numbers and texts), not "):
        from_user({"kl": tomllib.loads(written)})
