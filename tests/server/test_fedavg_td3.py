"""FedAvg-TD3 as runs: what it equals, what travels, who is judged, in every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType

import client.client_app
from agents.replay import Batch
from agents.td3 import TD3Fleet
from cli.main import main
from client.session import Session
from core.errors import Mistake
from core.options import nested, override
from core.streams import agent_seeds
from runs import checkpoints
from runs.config import RunConfig, configure
from runs.directory import RunDirectory
from server.engines import prepare
from strategies import messages
from strategies.fedavg_td3 import FedAvgTD3
from strategies.messages import Trained
from strategies.rules.means import weighted_mean
from strategies.rules.rule import Rule, Verdict
from strategies.schedule import Schedule
from tests.server.federations import column, here, local
from tests.server.test_apps import Here

CONF = {
    "algorithm": "td3", "strategy": "fedavg-td3", "agents": 3, "steps": 60, "work": 20, "evaluate-episodes": 2,
    "tensorboard": False, "checkpoint-every": 1, "federation": {"deadline-s": 5.0, "give-up-s": 10.0},
    "world": {"id": "Pendulum-v1", "horizon": 15, "physics": {"length": [0.8, 1.0, 1.2]}},
    "td3": {"hidden": [8, 7], "batch": 16, "learning-starts": 20, "capacity": 300},
    "sync": {"critic-every": 5, "actor-every": 5},
}  # fmt: skip
ACTOR, CRITIC = 4 * (3 * 8 + 8 + 8 * 7 + 7 + 7 + 1), 8 * (4 * 8 + 8 + 8 * 7 + 7 + 7 + 1)
EACH = ["sync.critic-every=1", "sync.actor-every=1"]
EXTRA = {"settle": False, "save": False}


def config(*settings: str, **changes: Any) -> RunConfig:
    return configure(override(CONF | changes, list(settings)))


def total(run: RunDirectory, part: str) -> tuple[int, int]:
    """Bytes of a part, up and down."""
    found = [record["parts"].get(part, {"up": 0, "down": 0}) for record in run.read_metrics()]
    return sum(one["up"] for one in found), sum(one["down"] for one in found)


# --- what it equals ---------------------------------------------------------------------------------------------------


class Union:
    """One TD3 learner of one agent, that is handed the union of what many drew: their batches and their noise."""

    def __init__(self, given: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Batch, np.ndarray]] = []
        honest = TD3Fleet.critic_gradient

        def watched(fleet: TD3Fleet, batch: Batch) -> Any:
            counts = fleet.noise.counts.copy()
            noise = fleet.noise.normal(batch.reward.shape[1], 1)
            fleet.noise.counts[...] = counts
            self.seen.append((Batch(*(np.concatenate(list(x))[None] for x in batch)), noise.reshape(1, -1, 1)))
            return honest(fleet, batch)

        monkeypatch.setattr(TD3Fleet, "critic_gradient", watched)
        self.session, self.undo = prepare(given), monkeypatch.undo

    def learner(self, given: RunConfig) -> TD3Fleet:
        """After all the updates that the others made."""
        self.undo()
        one = Session(configure(override(CONF, ["agents=1", "world.physics={}", "evaluate-episodes=0"])))
        fleet = TD3Fleet(given.td3, one.worlds, agent_seeds(given.seed, [0]))
        for batch, noise in self.seen:
            fleet.replay.gather = lambda index, batch=batch: batch  # type: ignore[method-assign]
            fleet.noise.normal = lambda *shape, noise=noise: noise  # type: ignore[method-assign]
            fleet.update()
        return fleet


def furthest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agents: int, *settings: str) -> tuple[int, float]:
    """Updates, and the largest difference of any weight of any agent to those of one learner with the union batch."""
    physics = {"length": [0.8, 1.0, 1.2, 0.9, 1.1][:agents]}
    world = CONF["world"] | {"physics": physics}
    given = config(*EACH, *settings, agents=agents, steps=220, world=world, **{"evaluate-episodes": 0})
    union = Union(given, monkeypatch)
    local(tmp_path / "run", given, union.session)
    one, fleet = union.learner(given), union.session.fleet
    assert isinstance(fleet, TD3Fleet)
    names = ("actor", "critic", "actor_target", "critic_target")
    return int(one.updates[0]), max(np.abs(getattr(fleet, name) - getattr(one, name)).max() for name in names)


@pytest.mark.parametrize("agents", [1, 2, 5])
@pytest.mark.parametrize(
    "settings", [("sync.exchange=gradients",), ("td3.optimiser=sgd", "td3.learning-rate=0.01")], ids=["adam", "sgd"]
)
def test_exchanging_every_update_is_one_learner_with_the_union_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agents: int, settings: tuple[str, ...]
) -> None:
    """Gradients under Adam, parameters under plain descent: 200 updates of small networks in float32.

    At 256-256 rounding grows far beyond this bound: benchmarks/td3_union.py.
    """
    updates, away = furthest(tmp_path, monkeypatch, agents, *settings)
    assert updates == 200
    assert away <= 1e-5


def test_averaging_weights_under_adam_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert furthest(tmp_path, monkeypatch, 2)[1] > 1e-4


def test_central_is_gradients_at_every_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process as one learner, elsewhere by exchanging all gradients: nobody could tell."""
    one = local(tmp_path / "one", config(strategy="central"))
    each = local(tmp_path / "each", config(*EACH, "sync.exchange=gradients"))
    away = here(tmp_path / "away", config(strategy="central", engine="grpc"), monkeypatch)
    wanted = checkpoints.load(one.weights)[0]["actor"]
    assert np.abs(wanted - wanted[0]).max() == 0
    for run in (each, away):
        found = checkpoints.load(run.weights)[0]["actor"]
        np.testing.assert_allclose(found, np.broadcast_to(wanted[:1], found.shape), rtol=0, atol=1e-5)
        np.testing.assert_allclose(column(run, "return")[-1], column(one, "return")[-1], rtol=1e-3)
    assert column(one, "bytes_up")[-1] == [0] * 3


def test_one_agent_is_plain_td3(tmp_path: Path) -> None:
    world = CONF["world"] | {"physics": {}}
    alone = local(tmp_path / "alone", config(strategy="alone", agents=1, world=world))
    for name, settings in {"parameters": [], "gradients": ["sync.exchange=gradients"]}.items():
        run = local(tmp_path / name, config(*settings, agents=1, world=world))
        one, other = (checkpoints.load(which.weights)[0] for which in (alone, run))
        np.testing.assert_array_equal(one["actor"], other["actor"], err_msg=name)


@pytest.mark.parametrize("pull", ["l2", "kl"])
def test_a_pull_without_weight_is_none_bit_for_bit(tmp_path: Path, pull: str) -> None:
    free = local(tmp_path / "free", config())
    none = local(tmp_path / "none", config(f"td3.pull={pull}"))
    pulled = local(tmp_path / "pulled", config(f"td3.pull={pull}", "td3.beta-actor=3", "td3.beta-critic=3"))
    one, other, far = (run.load_checkpoint()[0] for run in (free, none, pulled))
    assert one.keys() == other.keys() == far.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    assert np.abs(one["strategy.actor"] - far["strategy.actor"]).max() > 1e-6
    shares = [row for row in column(pulled, "share-critic-pull") if row]
    assert shares
    assert all(0 <= share < 1 for row in shares for share in row)
    assert max(max(row) for row in shares) > 0
    # Held harder, agents end nearer to what they share; kl holds what networks say, not how they say it.
    if pull == "l2":
        assert np.mean(last(pulled, "distance.critic")) < np.mean(last(free, "distance.critic"))


# --- what travels -----------------------------------------------------------------------------------------------------


def last(run: RunDirectory, name: str) -> Any:
    return [row for row in column(run, name) if row is not None][-1]


def formula(given: RunConfig) -> tuple[int, int, bool]:
    """How often an agent sends critics, and actors; and whether the last round brings its weights home, once."""
    N, L = given.sync.critic_every, given.sync.actor_every
    gradients = given.sync.exchange == "gradients"
    if given.strategy == "central":
        N, L, gradients = 1, 1, True
    return given.steps // N, given.steps // (given.td3.policy_delay * L), gradients


@pytest.mark.parametrize("exchange", ["parameters", "gradients"])
@pytest.mark.parametrize("seed", range(12))
def test_bytes_are_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str, seed: int) -> None:
    """T/N critics and T/(M*L) actors, there and back, from every agent; here as a fleet and as parties of their own."""
    draw = np.random.default_rng(seed)
    N, M, L, T = (int(draw.integers(1, high)) for high in (12, 4, 6, 60))
    given = config(
        f"sync.critic-every={N}", f"sync.actor-every={L}", f"td3.policy-delay={M}", f"sync.exchange={exchange}",
        f"steps={T}", "evaluate-episodes=0",
    )  # fmt: skip
    critics, actors, home = formula(given)
    assert (critics, actors) == (T // N, T // (M * L))
    runs = [local(tmp_path / "local", given)]
    if seed < 4:
        runs.append(here(tmp_path / "here", given, monkeypatch))
    for run in runs:
        assert total(run, "critic") == (3 * CRITIC * (critics + home), 3 * CRITIC * critics)
        assert total(run, "actor") == (3 * ACTOR * (actors + home), 3 * ACTOR * actors)
        records = run.read_metrics()
        assert len(records) == critics + actors + 1
        assert records[-1]["steps"] == [T] * 3
        assert all(len(record["parts"]) <= 2 for record in records)


@pytest.mark.parametrize(
    "settings",
    [
        [], ["sync.exchange=gradients", *EACH], ["td3.pull=kl", "td3.beta-actor=0.1", "td3.beta-critic=0.1"],
        ["td3.pull=l2", "td3.beta-actor=0.1", "td3.beta-critic=0.1", "td3.precision=bf16"],
        ["federation.rule=median", "attack.kind=sign-flip", "attack.byzantine=1"],
        ["sync.exchange=gradients", "federation.rule=geometric-median", "federation.byzantine=1",
         "attack.kind=random-noise", "attack.byzantine=1"],
        ["world.copies=2", "td3.updates-per-step=0.5", "sync.critic-every=6", "sync.actor-every=6"],
    ],
)  # fmt: skip
def test_parties_of_their_own_do_what_a_fleet_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    given = config(*settings)
    fleet, parties = local(tmp_path / "local", given), here(tmp_path / "here", given, monkeypatch)
    away = "distance.gradient" if given.sync.exchange == "gradients" else "distance"
    assert f"{away}.critic" in fleet.read_metrics()[0]
    for name in ("return", "steps", "updates", "bytes_up", "bytes_down", f"{away}.actor", f"{away}.critic"):
        one, other = (np.array([row or [None] * 3 for row in column(run, name)], float) for run in (fleet, parties))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5, err_msg=name)
    one, other = (checkpoints.load(run.weights)[0]["actor"] for run in (fleet, parties))
    honest = 3 - given.attack.byzantine * (given.sync.exchange == "gradients")  # whose weights come home as they are
    np.testing.assert_allclose(one[:honest], other[:honest], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [[], ["sync.exchange=gradients"], ["td3.pull=l2", "td3.beta-critic=0.1"]])
@pytest.mark.parametrize("stop", [3, 8])
def test_a_stop_and_a_resume_are_no_interruption(tmp_path: Path, settings: list[str], stop: int) -> None:
    """After round 3 the actor's update is still to come, and after round 8 the targets' move."""
    whole = local(tmp_path / "whole", config(*settings))
    local(tmp_path / "parts", config(*settings, f"rounds={stop}"))
    parts = local(tmp_path / "parts", config(*settings))
    one, other = whole.load_checkpoint()[0], parts.load_checkpoint()[0]
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    assert column(whole, "distance.critic") == column(parts, "distance.critic")


def test_what_is_judged_is_what_all_share(tmp_path: Path) -> None:
    """At multiples of ``work`` with all that is exchanged there; at the end what agents have is what the run leaves."""
    session = prepare(config("sync.critic-every=5", "sync.actor-every=5"))
    run = local(tmp_path / "run", config("sync.critic-every=5", "sync.actor-every=5"), session)
    judged = [record["steps"][0] for record in run.read_metrics() if record["return"][0] is not None]
    assert judged == [20, 40, 60]
    shared = checkpoints.load(run.weights)[0]
    for name, matrix in session.fleet.parts.items():
        np.testing.assert_array_equal(matrix, np.repeat(shared[name], 3, axis=0))
    own = checkpoints.load(run.path / "own.npz")[0]["actor"]
    assert own.shape == (3, ACTOR // 4)
    assert np.abs(own - shared["actor"]).max() > 0
    np.testing.assert_allclose(own.mean(axis=0), shared["actor"][0], atol=1e-6)


HEAVY = {"heavy": {"physics": {"mass": 2.0, "length": 1.0}}, "long": {"physics": {"length": [1.5, 1.6, 1.7]}}}


@pytest.mark.parametrize("strategy", ["fedavg-td3", "alone"])
def test_policies_are_judged_in_worlds_that_nobody_trains_in(tmp_path: Path, strategy: str) -> None:
    """And nothing else of the run changes; ``fedrl eval --set world...`` builds the same world."""
    plain = local(tmp_path / "plain", config(strategy=strategy))
    session = prepare(config(strategy=strategy, unseen=HEAVY))
    run = local(tmp_path / "run", config(strategy=strategy, unseen=HEAVY), session)
    assert column(plain, "return") == column(run, "return")
    assert [record["round"] for record in run.read_metrics() if "return.heavy" in record] == [
        record["round"] for record in run.read_metrics() if record["return"][0] is not None
    ]
    world = CONF["world"] | HEAVY["long"]
    other = Session(config(strategy=strategy, world=world))
    other.fleet.load_learned(checkpoints.load(run.weights)[0])
    np.testing.assert_allclose(last(run, "return.long"), other.evaluate().mean(axis=1))


def test_who_learns_alone_elsewhere_is_judged_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come home with every judgement, not only with snapshots: in unseen worlds, and to know the best."""
    given = config(strategy="alone", unseen=HEAVY, **{"checkpoint-every": 3})
    one, other = local(tmp_path / "local", given), here(tmp_path / "here", given, monkeypatch)
    assert len(column(one, "return.long")) == 3
    for name in ("return.long", "return.heavy"):
        np.testing.assert_allclose(column(one, name), column(other, name), rtol=1e-3, err_msg=name)
    mine, theirs = (checkpoints.load(run.path / "best.npz")[0]["actor"] for run in (one, other))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_who_does_well_in_whose_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The matrix of fedrl eval --cross: its diagonal is what each agent does at home."""
    for strategy, names in {"fedavg-td3": 3 * ["agent"] + ["shared"], "alone": 3 * ["agent"]}.items():
        given = config(strategy=strategy)
        run = local(tmp_path / strategy, given)
        run.write_conf(nested(given))
        found = []
        for more in (["--cross", "--out", str(tmp_path / f"{strategy}.png")], []):
            words = ["fedrl", "eval", str(run.path), "--episodes", "2", "--json", *more]
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
            found.append(json.loads(capsys.readouterr().out))
        crossed, home = found
        assert [name.split()[0] for name in crossed] == names
        assert (tmp_path / f"{strategy}.png").stat().st_size > 5000
        mine = crossed["shared"] if "shared" in crossed else [crossed[f"agent {k}"][k] for k in range(3)]
        np.testing.assert_allclose(mine, [one["mean"] for one in home["agents"]], rtol=1e-5)
        assert len(set(map(tuple, crossed.values()))) == len(names)


def test_rounds_shorter_than_episodes_do_not_end_them(tmp_path: Path) -> None:
    """In a world whose state cannot be saved: 60 steps are two episodes of 30, in rounds of 5, or in two stretches of
    ``work`` that settle none."""
    world = {"id": "MountainCarContinuous-v0", "horizon": 30}
    ended = {}
    for every in (1, 100):
        given = config(world=world, work=20, **{"settle-every": every, "checkpoint-every": 100})
        run = local(tmp_path / str(every), given)
        ended[every] = [sum(row[k] for row in column(run, "episodes")) for k in range(3)]
    assert ended == {1: [0] * 3, 100: [2] * 3}


# --- who is missing, who came back ------------------------------------------------------------------------------------


class Silent(Here):
    """Agent 1 hears nothing of the rounds in ``deaf``; before the one in ``reborn`` it forgets all it knew."""

    deaf: tuple[int, ...] = ()
    reborn = 0

    def push_messages(self, asked: Iterable[Message]) -> list[str]:
        names = []
        for message in asked:
            train, mine = message.metadata.message_type == MessageType.TRAIN, message.metadata.dst_node_id == 101
            number = messages.entries(message.content)["round"] if train else 0
            if train and mine and number == self.reborn:
                key = next(key for key in client.client_app._here if key[2] == 1)
                client.client_app._here.pop(key).path.unlink()
            if train and mine and number in self.deaf:
                names.append(f"lost-{number}")
            else:
                names += super().push_messages([message])
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages([name for name in message_ids if not name.startswith("lost")])


def test_who_missed_exchanges_is_sent_all_that_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are critic, critic, actor, ...; agent 1 hears nothing of the fourth to the sixth."""
    grid = type("Deaf", (Silent,), {"deaf": (4, 5, 6)})
    run = here(tmp_path / "here", config("federation.deadline-s=0.05", "federation.patience=9"), monkeypatch, grid)
    assert [missed[1] for missed in column(run, "missed")][:8] == [0, 0, 0, 1, 1, 1, 0, 0]
    down = [record["bytes_down"][1] for record in run.read_metrics()]
    assert down[:9] == [0, CRITIC, CRITIC, ACTOR, *([ACTOR + CRITIC] * 3), CRITIC, CRITIC]
    assert [record["bytes_down"][0] for record in run.read_metrics()][:7] == [
        0,
        CRITIC,
        CRITIC,
        ACTOR,
        CRITIC,
        CRITIC,
        ACTOR,
    ]
    assert column(run, "distance.critic")[4][1] is None


def test_who_forgot_everything_is_sent_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was killed without a snapshot tells of fewer steps than it took: the next order brings all.

    The server counts what its answers took, also where the node has forgotten it.
    """
    grid = type("Killed", (Silent,), {"reborn": 8})
    run = here(tmp_path / "here", config(), monkeypatch, grid)
    down = [record["bytes_down"][1] for record in run.read_metrics()]
    assert down[7:10] == [CRITIC, ACTOR + CRITIC, ACTOR]
    assert run.read_metrics()[-1]["steps"] == [60, 60, 60]


# --- what becomes one -------------------------------------------------------------------------------------------------


def server(rule: Rule = weighted_mean, gradients: bool = False) -> FedAvgTD3:
    """Of two agents, with parts of two and one number; the critics every 10 steps, the actor every 20."""
    start = {"actor": np.zeros(1, np.float32), "critic": np.zeros(2, np.float32)}
    return FedAvgTD3(Schedule(10, 20), gradients, start, 7, 2, 10, rule)


def sent(agent: int, updates: float, **parts: list[float]) -> Trained:
    rows = {name: np.array(row, np.float32) for name, row in parts.items()}
    return Trained(agent, rows, 0, 0, updates, {})


def test_who_did_more_since_a_part_was_exchanged_counts_more_in_it() -> None:
    one = server()
    one.orders(1, [0, 1], EXTRA)
    one.aggregate(1, [sent(0, 10, critic=[0, 4]), sent(1, 30, critic=[8, 0])])
    np.testing.assert_array_equal(one.rows["critic"], [6, 1])
    one.orders(2, [0, 1], EXTRA)
    one.aggregate(2, [sent(0, 30, critic=[0, 4]), sent(1, 10, critic=[8, 0])])
    np.testing.assert_array_equal(one.rows["critic"], [2, 3])  # by 30 and 10: the first exchange began their count anew
    one.orders(3, [0, 1], EXTRA)
    one.aggregate(3, [sent(0, 0, actor=[1]), sent(1, 60, actor=[2])])
    np.testing.assert_allclose(one.rows["actor"], [(40 * 1 + 100 * 2) / 140])  # all since the start: none before


@pytest.mark.parametrize("gradients", [False, True])
def test_a_rule_that_trusts_nobody_makes_no_step(gradients: bool) -> None:
    """Least of all down the gradient of another step."""
    verdicts = iter([True, False, True])

    def rule(rows: Any, weights: Any) -> Verdict:
        kept = np.arange(len(rows)) if next(verdicts) else np.empty(0, np.int64)
        return Verdict(rows.mean(axis=0), kept, {})

    one, down = server(rule, gradients), []
    for number in (1, 2):
        down.append(sorted(messages.arrays(one.orders(number, [0, 1], EXTRA)[0])))
        one.aggregate(number, [sent(k, 10, critic=[number, number]) for k in range(2)])
    down.append(sorted(messages.arrays(one.orders(3, [0, 1], EXTRA)[0])))
    assert down == ([[], ["gradient.critic"], []] if gradients else [[], ["critic"], ["critic"]])
    if not gradients:
        np.testing.assert_array_equal(one.rows["critic"], [1, 1])


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["algorithm=ppo"], "fedavg-td3 is for td3, not for ppo"),
        (["algorithm=ppo", "strategy=central"], "central is for td3, not for ppo"),
        (["federation.parts=actor"], "leave out 'federation.parts'"),
        (["world.copies=2"], "sync.critic-every is 5 steps, and 2 copies step at once"),
        (["world.copies=3", "sync.critic-every=6"], "td3.policy-delay is 10 steps, and 3 copies"),
        (["strategy=central", "engine=grpc", "world.copies=2"], "must be 1, not 2"),
        (["strategy=central", "federation.fraction=0.5"], "leave 'federation.fraction' at 1"),
        (["sync.exchange=gradients", "federation.fraction=0.5"], "apart for good: leave 'federation.fraction' at 1"),
        (["strategy=central", "federation.rule=median"], "central has no rows for a rule to aggregate"),
        (["strategy=alone", "federation.rule=median"], "alone aggregates nothing"),
        (["strategy=central", "attack.kind=zero", "attack.byzantine=1"], "nobody in it could attack"),
        (["strategy=central", "engine=grpc", "unseen.heavy.physics={}"], "evaluate in unseen worlds with fedrl eval"),
        (["sync.exchange=gradients", "engine=ray", "unseen.heavy.physics={}"], "or take the engine local"),
        (["strategy=alone", "td3.pull=l2"], "take fedavg-td3, or set it to none"),
        (["td3.pull=kl", "td3.beta-actor=1", "td3.exploration=0"], "'td3.exploration', which is 0"),
        (["unseen.heavy=3"], "'unseen.heavy' is a table"),
        (["unseen.heavy.mass=3"], "unknown key 'unseen.heavy.mass'"),
        (["unseen.other.id=MountainCarContinuous-v0", "unseen.other.physics={}"], "has other observations or actions"),
        (["unseen.heavy.physics={}", "evaluate-episodes=0"], "'evaluate-episodes' is 0"),
        (["sync.critic-every=0"], "'sync.critic-every' must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_starts(settings: list[str], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        prepare(config(*settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], []),
        (["sync.critic-every=4"], ["every 10 steps, no multiple of the 4"]),
        (["td3.learning-starts=21"], ["no multiple of td3.policy-delay, 2"]),
        (["sync.exchange=gradients"], ["only the steps at exchanges are shared"]),
        (["sync.exchange=gradients", *EACH], []),
        (["sync.exchange=gradients", *EACH, "td3.updates-per-step=2"], ["only the steps at exchanges are shared"]),
        (
            [
                "sync.exchange=gradients",
                "world.copies=2",
                "td3.updates-per-step=0.5",
                "sync.critic-every=2",
                "sync.actor-every=2",
            ],
            [],
        ),
        (["strategy=central"], []),
    ],
)
def test_what_has_a_price_is_said(tmp_path: Path, settings: list[str], words: list[str]) -> None:
    run = local(tmp_path / "run", config(*settings, "steps=4", "evaluate-episodes=0"))
    assert len(run.notes()) == len(words)
    for said, wanted in zip(run.notes(), words, strict=True):
        assert wanted in said


# --- real processes ---------------------------------------------------------------------------------------------------


MOUNTAIN = ["world.id=MountainCarContinuous-v0", "world.physics={}", "settle-every=100", "checkpoint-every=100"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        *((engine, settings) for engine in ("grpc", "ray") for settings in (
            [], ["sync.exchange=gradients", *EACH], ["strategy=central"], ["strategy=alone"],
        )),
        ("grpc", ["federation.rule=median", "td3.pull=kl", "td3.beta-actor=0.1", "attack.kind=sign-flip",
                  "attack.byzantine=1"]),
        ("grpc", MOUNTAIN),  # episodes of 15 over rounds of 5: a node ends none of them, Flower's simulation must
    ],
)  # fmt: skip
def test_engines_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, settings: list[str]) -> None:
    import tomli_w

    monkeypatch.setenv("FEDRL_HOME", str(tmp_path / "home"))
    conf = tmp_path / "conf.toml"
    # Whoever compiles first is slow: nobody may be left behind for that.
    short = {"steps": 40, "federation": {"deadline-s": 120.0}}
    conf.write_text(tomli_w.dumps(override(CONF | short, settings)))
    for name in ("local", engine):
        command = [sys.executable, "-m", "cli.main", "run", str(conf), "--out", str(tmp_path / name), "--engine", name]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
    one, other = (RunDirectory.open(tmp_path / name) for name in ("local", engine))
    np.testing.assert_allclose(column(one, "return")[-1], column(other, "return")[-1], rtol=1e-3)
    mine, theirs = (checkpoints.load(run.weights)[0]["actor"] for run in (one, other))
    np.testing.assert_allclose(*np.broadcast_arrays(mine, theirs), rtol=0, atol=1e-5)
    given = configure(override(CONF | short, settings))
    if given.strategy == "alone":
        assert [total(other, part)[1] for part in ("actor", "critic")] == [0, 0]
        return
    arrays, (critics, actors, home) = other.load_checkpoint()[0], formula(given)
    for part, times in (("critic", critics), ("actor", actors)):
        each = 3 * 4 * arrays[f"strategy.{part}"].shape[-1]  # three agents, float32
        assert total(other, part) == (each * (times + home), each * times)
        if given.strategy != "central":
            assert total(one, part) == total(other, part)
