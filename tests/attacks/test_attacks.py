"""Attacks: numbers by hand, who sees what, who is not disturbed, and what a federation makes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict
from gymnasium import spaces

from attacks.attack import About, AttackConfig, find
from attacks.false_worlds import FalseWorlds
from attacks.forgeries import drawn_in, forge, hidden_by
from attacks.plan import Plan, Silence
from cli.node import node
from client import answers
from client.party import Party
from client.session import Session
from core import registry
from core.errors import Mistake
from core.options import build, flatten, nested
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from flower.control import Control
from flower.launch import processes, start_node, superlink, wait
from runs.config import RunConfig, configure, flat_for_flower
from runs.directory import RunDirectory
from runs.ledger import Ledger
from server.federate import federate, make_strategy
from server.grids import LocalGrid
from server.rounds import Rounds
from strategies import messages
from strategies.federation import FederationConfig

KINDS = registry.names("attack")
FORGED = [kind for kind in KINDS if find(kind).forge]
FALSE_WORLDS = [kind for kind in KINDS if find(kind).worlds]
HONEST = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, -1.0]])
PENDULUM = {"id": "Pendulum-v1", "copies": 2, "horizon": 20}
SEEDS = agent_seeds(0, [4, 5])


def lie(kind: str, rows: Any = HONEST, number: int = 1, came: Any = None, **given: Any) -> np.ndarray:
    """The lies of agents 4 and 5 of ten."""
    given = {"agents": 10} | given
    rows = np.asarray(rows, np.float32)
    return forge(kind, rows, SEEDS[: len(rows)], number, About(**given), came)


def run_config(kind: str = "none", byzantine: int = 2, agents: int = 5, **more: Any) -> RunConfig:
    tiny: dict[str, Any] = {
        "algorithm": "policy-gradient", "strategy": "fedavg", "agents": agents, "rounds": 4, "steps": 0, "work": 2,
        "evaluate-episodes": 1, "tensorboard": False, "checkpoint-every": 1,
        "world": {"id": "CartPole-v1", "copies": 2, "horizon": 20},
        "policy-gradient": {"hidden": [4], "batch": 2},
        "ppo": {"hidden": [4], "rollout": 8, "minibatches": 2},
        "attack": {"kind": kind, "byzantine": byzantine if kind != "none" else 0},
    }  # fmt: skip
    return configure(tiny | more)


def order(session: Session, number: int = 1, exchange: str = "gradients", node: int = 1) -> Message:
    """Train from the first agent's first weights."""
    fresh = Session(session.config, [0]).fleet.parts["policy"][0]
    said: Any = {
        "round": number, "work": 2, "layout": answers.layout(session), "exchange": exchange, "parts": ["policy"],
        "pause": "", "settle": False, "save": False,
    }  # fmt: skip
    return Message(messages.content(messages.pack({"policy": fresh}), said), node, MessageType.TRAIN)


def row(content: RecordDict) -> np.ndarray:
    return np.frombuffer(messages.entries(content)["array.policy"], np.float32)


def train(session: Session, number: int = 1, exchange: str = "gradients") -> list[np.ndarray]:
    asked = order(session, number, exchange)
    return [row(reply.content) for reply in answers.answer(session, [(k, asked) for k in range(len(session.numbers))])]


# Lies, by hand.


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sign-flip", [[-2.5, -5, -7.5], [-7.5, -5, 2.5]]),
        ("zero", np.zeros((2, 3))),
        ("inner-product", [[-1, -1, -0.5]] * 2),
        ("mimic", [[1, 2, 3]] * 2),
        ("average-zero", [[-8, -8, -4]] * 2),  # 8 honest, 2 liars, mean (2, 2, 1)
        ("nan", np.full((2, 3), np.nan)),
        ("wrong-shape", [[1, 2], [3, 2]]),
    ],
)
def test_lies_by_hand(kind: str, expected: Any) -> None:
    np.testing.assert_allclose(lie(kind), expected)


def test_a_little_is_enough_by_hand() -> None:
    np.testing.assert_allclose(lie("a-little-is-enough", config=AttackConfig(z=1.5)), [[0.5, 2, -2]] * 2)
    np.testing.assert_allclose(hidden_by(50, 24), 1.426, atol=1e-3)  # Baruch's own example: phi(z) = 24 / 26
    np.testing.assert_allclose(hidden_by(10, 3), 0.180, atol=1e-3)  # phi(z) = 4 / 7
    np.testing.assert_allclose([hidden_by(10, 1), hidden_by(3, 2), hidden_by(2, 2)], [0, 3, 3], atol=1e-3)
    z = hidden_by(10, 2)
    np.testing.assert_allclose(lie("a-little-is-enough"), [[2 - z, 2, 1 - 2 * z]] * 2, atol=1e-6)


def test_random_noise_is_as_wide_as_each_layer() -> None:
    config, rows = AttackConfig(), np.concatenate([HONEST, 100 * HONEST[:, ::-1], HONEST[:, :1]], axis=1)
    parts = [slice(0, 3), slice(3, 6), slice(6, 7)]
    found = lie("random-noise", rows, layers=parts, config=config)
    drawn = drawn_in(1, SEEDS, "lie ").uniform(7)
    for k in range(2):
        for part in parts:
            layer = rows[k, part].tolist()
            for at, g in enumerate(layer, part.start):
                noise = 3 * (max(layer) - min(layer)) * (2 * drawn[k, at] - 1)
                np.testing.assert_allclose(found[k, at], g + noise, rtol=1e-5)
    many = lie("random-noise", np.tile([0.0, 1.0], (2, 5000)))
    assert 2.9 < np.abs(many - np.tile([0.0, 1.0], (2, 5000))).max() <= 3.0


def test_large_noise_is_uniform() -> None:
    found = lie("large-noise", np.ones((2, 10_000)))
    assert 990 < np.abs(found).max() <= 1000
    assert abs(found.mean()) < 20
    assert 570 < found.std() < 585  # 1000 / sqrt 3


def test_pairwise_distance_is_that_far_off_the_mean_and_nothing_for_one_alone() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    seeds = agent_seeds(0, [4, 5, 6])
    found = forge("pairwise-distance", rows.astype(np.float32), seeds, 1, About(10))
    assert (found == found[0]).all()
    np.testing.assert_allclose(np.linalg.norm(found[0] - rows.mean(axis=0)), 1.5 * 5, rtol=1e-5)
    direction = drawn_in(1, seeds[:1], "lie ").normal(2)[0]
    np.testing.assert_allclose(found[0] - rows.mean(axis=0), 7.5 * direction / np.linalg.norm(direction), rtol=1e-5)
    np.testing.assert_array_equal(lie("pairwise-distance", HONEST[:1]), HONEST[:1])


def test_noise_per_recipient_is_another_for_each_and_random_noise_for_a_server() -> None:
    np.testing.assert_array_equal(lie("per-recipient-noise"), lie("random-noise"))
    to = [lie("per-recipient-noise", recipient=recipient) for recipient in (0, 1, 0)]
    np.testing.assert_array_equal(to[0], to[2])
    assert (to[0] != to[1]).all()
    assert (to[0] != lie("random-noise")).all()


@pytest.mark.parametrize("kind", ["random-noise", "large-noise", "pairwise-distance", "per-recipient-noise"])
def test_lies_follow_from_seed_agent_part_and_round(kind: str) -> None:
    first = lie(kind)
    np.testing.assert_array_equal(first, lie(kind))
    assert (first != lie(kind, number=2)).all()
    assert (first != lie(kind, part="value")).all()
    if kind != "pairwise-distance":  # what does not collude is the same alone
        np.testing.assert_array_equal(first[:1], lie(kind, HONEST[:1]))


@pytest.mark.parametrize("kind", [kind for kind in FORGED if kind != "nan"])
def test_of_weights_the_update_is_lied_about(kind: str) -> None:
    came = np.array([[4.0, -2.0, 8.0]] * 2, np.float32)
    false = lie(kind)
    np.testing.assert_allclose(lie(kind, HONEST + came, came=came), came[:, : false.shape[1]] + false, rtol=1e-5)


@pytest.mark.parametrize(("algorithm", "part", "networks"), [
    ("policy-gradient", "policy", 1), ("ppo", "policy", 1), ("ppo", "value", 1), ("td3", "actor", 1),
    ("td3", "critic", 2),
])  # fmt: skip
def test_layers_are_those_of_the_network(algorithm: str, part: str, networks: int) -> None:
    world = {"id": "Pendulum-v1", "horizon": 5}
    fleet = Session(run_config(algorithm=algorithm, world=world, td3={"hidden": [6], "capacity": 9})).fleet
    width, hidden = fleet.parts[part].shape[1], 6 if algorithm == "td3" else 4
    inputs = 4 if part == "critic" else 3
    sizes = [inputs * hidden, hidden, hidden, 1] * networks + ([1] if part == "policy" else [])  # a log_std
    found = fleet.layers(part, width)
    assert [at.stop - at.start for at in found] == sizes
    assert [at.start for at in found] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert found[-1].stop == width
    assert fleet.layers("unknown", 7) == [slice(None)]


# Who does what, when.


def test_the_grammar_of_plans() -> None:
    def does(kind: str, number: int, agents: int = 4, **given: Any) -> list[str]:
        plan = Plan(AttackConfig(kind=kind, **given), agents)
        return [plan.kind(agent, number) for agent in range(agents)]

    assert does("zero", 1, byzantine=2) == ["none", "none", "zero", "zero"]
    assert does("0:sign-flip, 3:zero", 9) == ["sign-flip", "none", "none", "zero"]
    schedule = "none@1,random-noise@10,zero@50"
    assert [does(schedule, n, byzantine=1)[3] for n in (1, 9, 10, 49, 50, 99)] == [
        "none", "none", "random-noise", "random-noise", "zero", "zero",
    ]  # fmt: skip
    assert does("zero@5", 4, byzantine=4) == ["none"] * 4
    both = "zero,0:nan@3,0:none@5"
    assert [does(both, n, byzantine=1) for n in (1, 3, 5)] == [
        ["none", "none", "none", "zero"], ["nan", "none", "none", "zero"], ["none", "none", "none", "zero"],
    ]  # fmt: skip
    assert does("none", 1) == ["none"] * 4
    for kind in KINDS:
        assert does(kind, 1, byzantine=1)[3] == kind
    chosen = Plan(AttackConfig(kind="zero", agents=(1,)), 3)
    assert [chosen.honest(agent) for agent in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "sing-flip", "byzantine": 1}, "did you mean 'sign-flip'.*there are .*random-noise"),
        ({"kind": "zero@0", "byzantine": 1}, "the first round is 1"),
        ({"kind": "zero@x", "byzantine": 1}, r"\[AGENT:\]ATTACK\[@ROUND\]"),
        ({"kind": "zero,", "byzantine": 1}, r"\[AGENT:\]ATTACK"),
        ({"kind": "", "byzantine": 1}, r"\[AGENT:\]ATTACK"),
        ({"kind": "zero,nan", "byzantine": 1}, "says twice what all should do from round 1 on"),
        ({"kind": "2:zero@4,2:nan@4"}, "says twice what agent 2"),
        ({"kind": "9:zero"}, "'attack.kind' names agent 9: the run has the agents 0 to 4"),
        ({"kind": "zero", "agents": [5]}, "'attack.agents' names agent 5"),
        ({"kind": "zero", "byzantine": 6}, "'attack.byzantine' is 6, and the run has 5"),
        ({"kind": "zero", "byzantine": 1, "agents": [0]}, "give one of them"),
        ({"kind": "zero"}, "nobody makes the attack 'zero'"),
        ({"kind": "0:zero", "byzantine": 1}, "says nothing about agent 4"),
        (
            {"byzantine": 3},
            "'attack.byzantine' lets agent 2 attack, and 'attack.kind' is 'none', .*random-noise",
        ),
        ({"agents": [1]}, "'attack.agents' lets agent 1 attack, and 'attack.kind' is 'none'"),
        ({"kind": "none@1,none@9", "byzantine": 1}, "which names no attack for it"),
        ({"kind": "zero,4:none", "byzantine": 2}, "lets agent 4 attack"),
        ({"kind": "delay", "delay-s": 1000}, "'attack.delay-s' must be above 0 and at most 600"),
    ],
)
def test_nonsense_is_refused_before_anything_starts(given: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        Session(run_config(attack=given))


def test_the_truth_for_whoever_counts_what_a_filter_found() -> None:
    config = run_config(attack={"byzantine": 2, "kind": "none,zero@3,0:delay"})
    plan = Plan(config.attack, config.agents)
    assert [plan.attackers(number) for number in (1, 3)] == [set(), {3, 4}]
    assert Plan(run_config().attack, 5).attackers(1) == set()


@pytest.mark.parametrize(
    ("attack", "words"),
    [("flip", "no attack 'flip'"), ("0:zero", "start another node"), ("none", "'none', which is no attack")],
)
def test_a_node_refuses_an_attack_that_is_none(attack: str, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        node("127.0.0.1:1", "0", attack=attack)


# Colluders, and honest agents beside them.


@pytest.mark.parametrize("kind", FORGED)
def test_liars_see_their_own_rows_and_nothing_else(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(run_config(kind, byzantine=3, agents=7))
    learned, report = session.measure("policy", 1)
    sent = []
    for scale in (1.0, 1e6):
        rows = learned.copy()
        rows[:4] = scale * rows[3::-1]
        monkeypatch.setattr(session, "measure", lambda *_, rows=rows: (rows, report))
        sent.append(train(session))
        for k in range(4):
            np.testing.assert_array_equal(sent[-1][k], rows[k])
    for k in range(4, 7):
        np.testing.assert_array_equal(sent[0][k], sent[1][k])
    seeds, widths = session.fleet.seeds[4:], session.fleet.layers("policy", learned.shape[1])
    expected = forge(kind, learned[4:], seeds, 1, About(7, widths, part="policy"))
    np.testing.assert_array_equal(sent[0][4:], expected)


def test_liars_of_another_attack_are_no_colluders() -> None:
    both = train(Session(run_config("mimic,1:mimic,2:zero")))
    assert not both[2].any()
    for k in (3, 4):
        np.testing.assert_array_equal(both[k], train(Session(run_config()))[1])


@pytest.mark.parametrize("exchange", ["gradients", "weights"])
@pytest.mark.parametrize("kind", [*FALSE_WORLDS, "random-noise"])
def test_honest_agents_learn_what_they_learn_without_liars(kind: str, exchange: str) -> None:
    with_liars = Session(run_config(kind))
    without = Session(run_config(agents=3))
    for number in (1, 2, 3):
        mixed, alone = train(with_liars, number, exchange), train(without, number, exchange)
        for k in range(3):
            np.testing.assert_array_equal(mixed[k], alone[k])
    state, expected = with_liars.state(), without.state()
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name][:3], array, err_msg=name)


@pytest.mark.parametrize("kind", ["random-noise", "large-noise", "random-action", "reward-shuffle", "reward-flip"])
@pytest.mark.parametrize("algorithm", ["policy-gradient", "ppo"])
def test_a_liar_on_a_node_of_its_own_does_what_it_does_among_others(kind: str, algorithm: str, tmp_path: Path) -> None:
    """A party with an attack of its own, whatever the run says."""
    exchange = "weights" if algorithm == "ppo" else "gradients"
    given: dict[str, Any] = {"algorithm": algorithm, "world": PENDULUM}
    together, honest = Session(run_config(f"none,{kind}@2", **given)), Session(run_config(**given))
    party = Party(4, flat_for_flower(run_config(**given)), "run", tmp_path, f"none,{kind}@2")
    for number in (1, 2):
        mine = row(party.answer(order(together, number, exchange)))
        all_of_us, truth = train(together, number, exchange), train(honest, number, exchange)
        np.testing.assert_allclose(mine, all_of_us[4], rtol=1e-4, atol=1e-4)
        assert np.allclose(mine, truth[4], rtol=1e-4, atol=1e-5) == (number == 1)


# False worlds.


class Told:
    """What a world was told, and paid: its own actions and rewards, beside those an agent knows of."""

    def __init__(self, kind: str, agents: Sequence[int] = (0, 1, 2), world: str = "Pendulum-v1") -> None:
        seeds, config = agent_seeds(3, agents), WorldConfig(id=world, copies=4, horizon=50)
        true: Any = make_worlds(config, seeds, agents)
        self.executed: list[np.ndarray] = []
        self.paid: list[np.ndarray] = []
        step = true.step

        def noting(actions: np.ndarray, active: Any = None) -> Any:
            found = step(actions, active)
            self.executed.append(actions)
            self.paid.append(found.reward)
            return found

        true.step = noting
        self.worlds: FalseWorlds = find(kind).worlds(true, drawn_in(1, seeds, "attack", lanes=4))

    def play(self, steps: int, active: Any = None) -> list[np.ndarray]:
        space = self.worlds.action_space
        shape = (self.worlds.agents, 4)
        wanted = np.ones(shape, np.int64) if isinstance(space, spaces.Discrete) else np.ones((*shape, 1), np.float32)
        self.worlds.reset()
        return [self.worlds.step(wanted, active).reward for _ in range(steps)]


def test_random_actions_are_uniform() -> None:
    one = Told("random-action")
    one.play(500)
    drawn = np.array(one.executed)
    assert drawn.dtype == np.float32
    assert drawn.min() >= -2
    assert drawn.max() <= 2
    np.testing.assert_allclose(np.histogram(drawn, 4, (-2, 2))[0] / drawn.size, 0.25, atol=0.02)
    two = Told("random-action", world="CartPole-v1")
    two.play(500)
    assert np.array(two.executed).dtype == np.int64
    np.testing.assert_allclose(np.mean(two.executed, axis=(0, 2)), 0.5, atol=0.05)


def test_constant_actions_are_the_first_or_the_lowest() -> None:
    for world, first in (("Pendulum-v1", -2.0), ("CartPole-v1", 0)):
        one = Told("constant-action", world=world)
        one.play(3)
        assert (np.array(one.executed) == first).all()


def test_rewards_are_turned_round_or_come_in_another_order() -> None:
    flipped = Told("reward-flip")
    np.testing.assert_array_equal(flipped.play(20), -np.array(flipped.paid))
    shuffled = Told("reward-shuffle")
    told, paid = np.array(shuffled.play(200)), np.array(shuffled.paid)
    assert (told != paid).mean() > 0.9
    for t, k, i in np.ndindex(told.shape):
        assert told[t, k, i] in paid[max(0, t - 63) : t + 1, k, i]


@pytest.mark.parametrize("kind", ["random-action", "reward-shuffle"])
def test_copies_that_stand_still_draw_nothing_and_company_changes_nothing(kind: str) -> None:
    together, alone = Told(kind), Told(kind, agents=[1])
    active = np.ones((3, 4), np.bool_)
    active[0], active[2, 2] = False, False
    told, mine = together.play(30, active), alone.play(30)
    np.testing.assert_array_equal([reward[1] for reward in told], [reward[0] for reward in mine])
    counts = together.worlds.streams.counts - np.uint64(1 << 32)
    assert (counts == np.where(active, 30, 0)).all()


def test_a_part_of_false_worlds_is_a_false_world() -> None:
    seeds = agent_seeds(3, [0, 1, 2])
    whole, straight = (
        find("reward-shuffle").worlds(
            make_worlds(WorldConfig(id="Pendulum-v1", copies=4, horizon=50), seeds),
            drawn_in(1, seeds, "attack", lanes=4),
        )
        for _ in range(2)
    )
    part = whole.take(np.array([0, 2]))
    actions = np.zeros((3, 4, 1), np.float32)
    for _ in range(3):
        part.step(actions[:2])
        straight.step(actions)
    whole.put(np.array([0, 2]), part)
    for name in ("kept", "seen", "obs"):
        np.testing.assert_array_equal(getattr(whole, name)[[0, 2]], getattr(straight, name)[[0, 2]])
    assert not whole.seen[1].any()


# Federations.


def rounds(config: RunConfig, **settings: Any) -> Rounds:
    session = Session(config)
    quick = {"wait-s": 0.2, "deadline-s": 0.3, "give-up-s": 5.0} | settings
    found = Rounds(
        LocalGrid(session), make_strategy(config, session), build(FederationConfig, quick), 0, Ledger(config.agents)
    )
    found.gather_parties()
    return found


EXTRA = {"settle": True, "save": False}


@pytest.mark.parametrize(("kind", "reason"), [("nan", "not-finite"), ("wrong-shape", "wrong-layout")])
def test_what_cannot_be_weights_is_refused_by_name(kind: str, reason: str) -> None:
    record = rounds(run_config(kind)).round(1, EXTRA, judge=True)
    assert (record["refused"], record["reasons"]) == ([0, 0, 0, 1, 1], {reason: 2})
    assert record["kept.policy"] == [1, 1, 1, None, None]
    assert all(value > 0 for value in record["return"])  # judged honestly, all of them


def test_silence_is_missed_and_who_is_late_is_late() -> None:
    silent = rounds(run_config("silence@2")).round
    assert silent(1, EXTRA, judge=False)["missed"] == [0] * 5
    assert silent(2, EXTRA, judge=False)["missed"] == [0, 0, 0, 1, 1]
    slow = rounds(run_config(attack={"kind": "4:delay@1,4:none@2", "delay-s": 0.5}))
    begun = time.monotonic()
    assert slow.round(1, EXTRA, judge=False)["missed"] == [0, 0, 0, 0, 1]
    assert time.monotonic() - begun < 0.45
    time.sleep(0.3)
    second = slow.round(2, EXTRA, judge=False)
    assert (second["missed"], second["late"]) == ([0] * 5, [0, 0, 0, 0, 1])


def test_who_is_asked_and_waited_for_answers_late() -> None:
    """Flower's own way through a grid: all answers, or as many as come in time."""
    config = run_config(attack={"kind": "0:delay,1:silence", "delay-s": 0.2})
    grid = LocalGrid(Session(config))
    letters = [order(grid.session, node=node) for node in (1, 2, 3)]
    assert [reply.metadata.src_node_id for reply in grid.send_and_receive(letters)] == [3, 1]
    letters = [order(grid.session, node=node) for node in (1, 2, 3)]
    assert [reply.metadata.src_node_id for reply in grid.send_and_receive(letters, timeout=0.05)] == [3]


def test_a_party_that_is_silent_says_so_to_its_node_only(tmp_path: Path) -> None:
    party = Party(0, flatten(run_config()), "run", tmp_path, "silence")
    with pytest.raises(Silence):
        party.answer(order(party.session))
    described = party.answer(Message(RecordDict(), 1, MessageType.QUERY))
    assert described["fedrl"]["attack-free"] is False
    late = Party(1, flatten(run_config(attack={"delay-s": 0.2})), "run", tmp_path, "delay")
    begun = time.monotonic()
    late.answer(order(late.session))
    assert time.monotonic() - begun > 0.2


def test_agents_say_whether_they_ever_attack() -> None:
    session = Session(run_config("none,zero@50", byzantine=2))
    asked = Message(RecordDict(), 1, MessageType.QUERY)
    said = answers.answer(session, [(k, asked) for k in range(5)])
    assert [reply.content["fedrl"]["attack-free"] for reply in said] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    "kind", ["0:random-noise,1:random-action,2:reward-shuffle@2,3:pairwise-distance,4:pairwise-distance"]
)
@pytest.mark.parametrize("algorithm", ["policy-gradient", "ppo"])
def test_a_run_with_attacks_resumes_as_if_it_had_not_stopped(kind: str, algorithm: str, tmp_path: Path) -> None:
    config = run_config(kind, 0, algorithm=algorithm, world=PENDULUM)
    left = []
    for name, stops in (("straight", [99]), ("stopped", [2, 99])):
        directory = RunDirectory.create(tmp_path / name, nested(config))
        for stop in stops:
            session, done = Session(config), [0]
            federate(
                config, LocalGrid(session), directory, session,
                lambda record, done=done: done.append(record["round"]), lambda done=done, stop=stop: done[-1] >= stop,
            )  # fmt: skip
        assert done[-1] == 4
        left.append(directory.load_checkpoint()[0])
    assert left[0].keys() == left[1].keys()
    for name, array in left[0].items():
        np.testing.assert_array_equal(array, left[1][name], err_msg=name)


@pytest.fixture
def simulated_and_real(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The lines of a run of simulated liars, and of one whose nodes were started with the same attacks."""

    def run(attacks: dict[int, str], **given: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        given |= {"agents": 4, "federation": {"deadline-s": 5.0, "wait-s": 60.0}}
        kinds = ",".join(f"{agent}:{entry}" for agent, kind in attacks.items() for entry in kind.split(","))
        simulated, config = run_config(kinds, 0, **given), run_config(engine="grpc", **given)
        local = RunDirectory.create(tmp_path / "local", nested(simulated))
        session = Session(simulated)
        federate(simulated, LocalGrid(session), local, session)

        directory = RunDirectory.create(tmp_path / "grpc", nested(config))
        home = tmp_path_factory.getbasetemp() / "fedrl" / "flower"
        with superlink(home, log=tmp_path / "superlink.log") as link, processes() as started:
            honest = [k for k in range(4) if k not in attacks]
            for agents, words in [(honest, ()), *(([k], ("--attack", kind)) for k, kind in attacks.items())]:
                log = tmp_path / f"node-{agents[0]}.log"
                started.append(start_node(link.fleet, agents, tmp_path / "state", log, words))
            with Control(link.control) as control:
                flat = flatten(config) | {"directory": str(directory.path), "run": directory.name}
                number = control.submit(Path(__file__).parents[2], flat)
                assert wait(lambda: control.status(number).over, 300.0)
            assert all(process.poll() is None for process in started)
        return local.read_metrics(), directory.read_metrics()

    return run


def test_attacking_nodes_behind_a_superlink_do_what_simulated_ones_do(simulated_and_real: Any) -> None:
    expected, records = simulated_and_real({2: "none@1,random-noise@2", 3: "none@1,nan@3,silence@4"})
    assert [record["refused"] for record in records] == [[0] * 4, [0] * 4, [0, 0, 0, 1], [0] * 4]
    assert [record["missed"] for record in records] == [[0] * 4, [0] * 4, [0] * 4, [0, 0, 0, 1]]
    for name in ("refused", "missed", "kept.policy"):
        assert [record[name] for record in records] == [record[name] for record in expected]
    np.testing.assert_allclose([r["return"] for r in records], [r["return"] for r in expected], rtol=1e-4)


@pytest.mark.slow
def test_the_filter_drops_an_attacking_node_behind_a_superlink(simulated_and_real: Any) -> None:
    few = {"batch-min": 8, "batch-max": 12, "own-batch": 2}
    expected, records = simulated_and_real({3: "large-noise"}, strategy="fedpg-br", fedpg=few)
    kept = [record["kept.policy"] for record in records]
    assert len(kept) == 4
    assert all(row[3] == 0 and sum(row[:3]) >= 2 for row in kept)
    for name in ("kept.policy", "batch", "inner-steps", "trajectories", "steps"):
        assert [record[name] for record in records] == [record[name] for record in expected]
    for name in ("return", "sigma", "threshold.policy"):
        np.testing.assert_allclose([r[name] for r in records], [r[name] for r in expected], rtol=1e-4)
