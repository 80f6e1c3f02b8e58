"""Weights between nodes only: real SuperLinks and nodes, of which some are killed, and what a server must not see."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tomli_w
import typer
from flwr.app import Context, Message, MessageType, RecordDict

from cli.certs import certs
from cli.node import door, node
from client.session import Session
from core.errors import Mistake
from core.options import flatten, nested, override
from flower.control import Control
from flower.launch import processes, start_node, superlink, wait
from gossip.member import Door, Member
from runs import checkpoints
from runs.config import RunConfig, configure
from runs.directory import RunDirectory
from runs.peers import PEERS
from server import engines
from server.server_app import app as server_app
from server.server_app import limit
from strategies import messages
from strategies.messages import Described, RefusedError
from strategies.roster import Roster
from tests.cli.test_peer import CONF as PEERS_CONF
from tests.cli.test_peer import LONG_S
from tests.server.test_apps import Here

ROOT = Path(__file__).parents[2]
CONF = PEERS_CONF | {"rounds": 5}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Apps are installed and compiled once for this session of tests, and not the user's."""
    place = tmp_path_factory.getbasetemp() / "fedrl"
    monkeypatch.setenv("FEDRL_HOME", str(place))
    return place / "flower"


def configured(*settings: str) -> RunConfig:
    return configure(override(CONF, ["engine=grpc", *settings]))


def fedrl(*words: str | Path) -> RunDirectory:
    command = [sys.executable, "-m", "cli.main", "run", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr
    return RunDirectory.open(next(Path(word) for flag, word in pairwise(words) if flag in ("--out", "--resume")))


def column(run: RunDirectory, name: str) -> list[Any]:
    return [record.get(name) for record in run.read_metrics()]


def test_nodes_learn_what_peers_in_one_process_learn_and_the_server_sees_no_weights(tmp_path: Path) -> None:
    """Two nodes for three agents, which prove to each other who they are: what one waits for, the other must answer."""
    certs(tmp_path / "certs", server="", peers="0-2", nodes="", force=False)
    conf = tmp_path / "net.toml"
    conf.write_text(tomli_w.dumps({**CONF, "gossip": {**CONF["gossip"], "certificates": str(tmp_path / "certs")}}))
    config = configured("engine=local")
    here = RunDirectory.create(tmp_path / "local", nested(config))
    engines.run(config, engines.prepare(config), here, lambda record: None, print, lambda: False)
    apart = fedrl(conf, "--out", tmp_path / "grpc", "--engine", "grpc", "--nodes", "2")
    for name in ("return", "steps", "trajectories", "missed"):
        assert column(here, name) == column(apart, name), name
    one, other = (checkpoints.load(run.weights)[0]["policy"] for run in (here, apart))
    assert one.shape == other.shape and np.abs(one - other).max() < 1e-5
    # Of what went through the server nothing was an array, and it keeps none.
    assert column(apart, "bytes_up") == column(apart, "bytes_down") == [[0, 0, 0]] * 5
    assert column(apart, "parts") == [{}] * 5 and apart.load_checkpoint()[0] == {}
    sizes = np.array([column(apart, "words_up"), column(apart, "words_down")])
    assert sizes.min() > 0 and sizes.max() < one[0].nbytes
    # Each told two neighbours in every round, and had a share of each; what comes after a round is counted in the next.
    share = one[0].nbytes + 8
    came = np.sum(column(apart, "peers.bytes_down"), axis=0)
    assert 4 * 2 * share <= came.min() and came.max() <= 5 * 2 * share
    # What is sent again, because its recipient still asked who that is, counts again.
    assert np.sum(column(apart, "peers.bytes_up"), axis=0).min() >= 4 * 2 * share
    assert not any(name.startswith("peers.reasons") for record in apart.read_metrics() for name in record)


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_did_not_end(tmp_path: Path) -> None:
    """Its agents are found by the run's name, whatever node they live in now."""
    conf = tmp_path / "net.toml"
    conf.write_text(tomli_w.dumps(CONF))
    whole = fedrl(conf, "--out", tmp_path / "whole", "--set", "rounds=6")
    fedrl(conf, "--out", tmp_path / "parts", "--engine", "grpc", "--nodes", "1", "--set", "rounds=3")
    parts = fedrl("--resume", tmp_path / "parts", "--nodes", "3", "--set", "rounds=6")
    for name in ("round", "return", "steps", "trajectories", "missed"):
        assert column(whole, name) == column(parts, name), name
    one, other = (checkpoints.load(run.weights)[0]["policy"] for run in (whole, parts))
    assert np.abs(one - other).max() < 1e-5


@pytest.fixture
def federation(tmp_path: Path, home: Path) -> Iterator[Any]:
    """A run without an end of three agents, whose nodes the test starts."""
    impatient = ["federation.deadline-s=3", "federation.quorum=0.6", "gossip.dead-s=2", "gossip.deadline-s=2"]
    config = configured("rounds=100000", "evaluate-episodes=0", "checkpoint-every=1", *impatient)
    run = RunDirectory.create(tmp_path / "run", nested(config))
    flat = flatten(config) | {"directory": str(run.path), "run": run.name}
    with superlink(home, log=tmp_path / "superlink.log") as neighbour, processes() as started:

        def node(agent: int) -> subprocess.Popen[bytes]:
            log = tmp_path / f"node-{agent}.log"
            started.append(start_node(neighbour.fleet, [agent], tmp_path / "state", log, ["--peers", "127.0.0.1"]))
            return started[-1]

        nodes = [node(agent) for agent in range(3)]
        with Control(neighbour.control) as control:
            control.submit(ROOT, flat)
            yield run, node, nodes, tmp_path / "state" / run.name / "peers"
            run.ask_to_stop()


def test_a_node_that_is_killed_is_left_out_and_takes_part_again_at_another_address(federation: Any) -> None:
    run, node, nodes, peers = federation

    def until(true: Callable[[list[dict[str, Any]]], bool]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = run.read_metrics() if run.metrics.exists() else []
            return bool(found) and true(found)

        assert wait(there, LONG_S), (run.notes(), found[-1:])
        return found[-1]

    def said(agent: int) -> str:
        return "\n".join(RunDirectory(peers / str(agent)).notes())

    def all_hear_all(records: list[dict[str, Any]]) -> bool:
        return records[-1]["missed"] == records[-1].get("peers.missed") == [0, 0, 0]

    until(lambda records: len(records) > 3 and all_hear_all(records))
    nodes[1].send_signal(signal.SIGKILL)
    nodes[1].wait()
    # The two that are left go on, and exchange with each other: nobody waits for the dead any more.
    killed = until(lambda records: records[-1]["missed"] == [0, 1, 0])["round"]
    until(lambda records: records[-1]["round"] > killed + 3 and records[-1]["peers.bytes_up"][0] > 0)
    assert "peer 1 is gone" in said(0) and "peer 1 is gone" in said(2)
    node(1)
    back = until(lambda records: records[-1]["round"] > killed + 3 and all_hear_all(records))
    assert "caught up with them after round" in said(1)
    assert "peer 1 is back, in another life" in said(0)
    lived = until(lambda records: records[-1]["round"] > back["round"] + 3 and all_hear_all(records))
    assert lived["steps"][1] > back["steps"][1], "it learns on"
    assert all(sum(record["bytes_up"]) == 0 for record in run.read_metrics())


# --- what comes and goes ----------------------------------------------------------------------------------------------


def described(agent: int, **words: Any) -> Described:
    return Described(agent, 7, "app", words)


def reply(**entries: Any) -> Message:
    said = messages.work_report((1, 7, 10, 20, 1), (0.1, 0.1, 0.2), {"trajectories": 4})
    asked = Message(RecordDict(), 101, MessageType.TRAIN)
    return Message(messages.content(said, entries), reply_to=asked)


def test_an_order_says_who_is_there_and_where_and_holds_no_array() -> None:
    roster = Roster(7, 3, 1)
    for agent in (0, 2):
        roster.admit(described(agent, address=f"127.0.0.1:{9500 + agent}"))
        roster.members[agent] = 100 + agent
    roster.admit(described(2, address="10.0.0.2:9"))  # it came back elsewhere
    orders = roster.orders(4, [0, 1, 2], {"settle": False, "save": True})
    assert list(orders) == [0, 1, 2]
    order = Message(orders[0], 100, MessageType.TRAIN)
    assert messages.roster(order) == {0: "127.0.0.1:9500", 2: "10.0.0.2:9"}
    assert messages.order(order).round == 4 and not messages.arrays(orders[0])


def test_an_answer_with_an_array_is_refused_and_words_are_counted() -> None:
    roster = Roster(7, 3, 1)
    roster.orders(1, [1], {"settle": False, "save": False})
    with pytest.raises(RefusedError, match="has the parts") as refused:
        roster.read(reply(**messages.pack({"policy": np.ones(3, np.float32)})))
    assert refused.value.reason == "wrong-parts"
    found = roster.read(reply())
    assert found.parts == {} and found.measured["trajectories"] == 4
    counted = roster.aggregate(1, [found])
    assert counted["words_up"][1] > 40 and counted["words_up"][::2] == [0, 0]
    assert roster.learned() == {} and roster.state() == {}


@pytest.mark.parametrize("address", [None, 9500, "nowhere", "unix:/tmp/x:1", "a:0", "a:70000", "a b:1", "[::1:9"])
def test_who_does_not_say_where_it_is_has_no_part(address: Any) -> None:
    with pytest.raises(Mistake, match="agent 1 does not say where others reach it"):
        Roster(7, 3, 1).admit(described(1, address=address))


@pytest.mark.parametrize("address", ["a:1", "127.0.0.1:9500", "[::1]:9500", "agent-0.net:65535"])
def test_addresses_are_hosts_with_ports(address: str) -> None:
    assert messages.is_address(address)


@pytest.mark.parametrize(
    "entries",
    [
        {}, {"peers": [0], "addresses": []}, {"peers": [-1], "addresses": ["a:1"]},
        {"peers": [0], "addresses": ["unix:/tmp/x:1"]}, {"peers": ["0"], "addresses": ["a:1"]},
    ],
)  # fmt: skip
def test_an_order_without_a_sound_roster_is_refused(entries: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as refused:
        messages.roster(Message(messages.content(entries), 100, MessageType.TRAIN))
    assert refused.value.reason == "no-order"


def test_a_reply_has_no_room_for_weights() -> None:
    large = "policy-gradient.hidden=[700,700]"
    with closing(Session(configured(large), [0])) as session:
        weights = session.fleet.parts["policy"].nbytes
        assert limit(session, session.config) < weights < limit(session, configured(large, "strategy=fedavg"))


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["engine=ray"], "none stays where others could reach it"),
        (["federation.fraction=0.5"], "leave 'federation.fraction' at 1"),
        (['gossip.roster={"0": "a:1"}'], "'gossip.roster' is not used with grpc"),
        (["gossip.topology=moebius"], "gossip.topology"),
        (["federation.rule=median"], "adds up every share"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_starts(settings: list[str], sentence: str) -> None:
    with pytest.raises(Mistake, match=sentence):
        engines.prepare(configured(*settings))


def test_certificates_are_the_nodes_own_affair_where_they_live_already() -> None:
    with pytest.raises(Mistake, match="fedrl node --certificates"):
        engines.prepare(configured("gossip.certificates=keys"), superlink="127.0.0.1:9093")


def test_flowers_own_nodes_are_told_that_they_cannot_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They answer each message in another process: there is nobody whom others could reach."""
    monkeypatch.setenv("FEDRL_STATE", str(tmp_path / "state"))
    flat = flatten(configured()) | {"directory": str(tmp_path / "run"), "run": "run"}
    with pytest.raises(Mistake, match=r"start every node with fedrl node --peers HOST \(a SuperNode of Flower's"):
        server_app(Here(3, flat), Context(7, 0, {}, RecordDict(), flat, 7))
    assert not (tmp_path / "run" / "weights.npz").exists()


def test_plain_text_is_for_loopback(tmp_path: Path) -> None:
    flat = flatten(configured())
    with pytest.raises(Mistake, match=r"one is at 10\.0\.0\.1:9: start the nodes with --certificates"):
        Member(0, flat, "run", tmp_path, door=Door("10.0.0.1:9"))
    member = Member(0, flat, "run", tmp_path, door=Door("127.0.0.1:0"))
    try:
        order = messages.content(
            {"round": 1, "work": 1, "layout": 0, "exchange": "weights", "parts": [], "pause": ""},
            {"settle": False, "save": False, "peers": [0, 1], "addresses": [member.address, "10.0.0.1:9"]},
        )
        order["fedrl"]["layout"] = messages.entries(member.answer(query()))["layout"]
        with pytest.raises(Mistake, match=r"10\.0\.0\.1:9"):
            member.answer(Message(order, 100, MessageType.TRAIN))
    finally:
        member.save()


def test_what_is_over_is_not_answered_and_a_server_may_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders and exams of earlier rounds are dropped; a server that goes on from its checkpoint takes all with it."""
    flat = flatten(configured("agents=1", "gossip.topology=complete", "rounds=9"))
    member = Member(0, flat, "run", tmp_path, door=Door("127.0.0.1:0"))
    try:
        layout = messages.entries(cast(RecordDict, member.answer(query())))["layout"]

        def order(number: int) -> Message:
            about = {"round": number, "work": 1, "layout": layout, "exchange": "weights", "parts": [], "pause": ""}
            roster = {"settle": True, "save": True, "peers": [0], "addresses": [member.address]}
            return Message(messages.content(about, roster), 100, MessageType.TRAIN)

        def asked(message: Message) -> Future[RecordDict]:
            return cast(Future[RecordDict], member.answer(message))

        exam = Message(RecordDict(), 100, MessageType.EVALUATE)
        for number in (1, 2, 3):
            assert "counts" in messages.entries(asked(order(number)).result(LONG_S))
        again, lived = asked(order(3)).result(LONG_S), member.session.worlds.steps[0]
        assert messages.entries(again)["counts"][3] == lived, "a round is done once, however often it is asked for"
        assert "return" in messages.entries(asked(exam).result(LONG_S))
        begun, may, learn = threading.Event(), threading.Event(), member.learning.round

        def waits(*words: Any, **named: Any) -> Any:
            begun.set()
            assert may.wait(LONG_S)
            return learn(*words, **named)

        monkeypatch.setattr(member.learning, "round", waits)
        first = asked(order(4))
        assert begun.wait(LONG_S)
        old, second, over = asked(exam), asked(order(5)), asked(order(4))
        may.set()
        assert "counts" in messages.entries(first.result(LONG_S))
        for late in (old, over):
            with pytest.raises(RefusedError, match="round 4 is over: the server is in round 5"):
                late.result(LONG_S)
        assert "counts" in messages.entries(second.result(LONG_S))
        member.save()
        member = Member(0, flat, "run", tmp_path, door=Door("127.0.0.1:0"))
        assert "counts" in messages.entries(asked(order(3)).result(LONG_S))
    finally:
        member.save()
    kept = RunDirectory.open(tmp_path / "run" / PEERS / "0")
    assert [record["round"] for record in kept.read_metrics()] == [1, 2, 3]


def query() -> Message:
    return Message(RecordDict(), 100, MessageType.QUERY)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--peers", "10.0.0.1:9"], r"speak TLS, and one is at 10\.0\.0\.1:9"),
        (["--peers", "127.0.0.1", "--listen", "0.0.0.0:9"], r"speak TLS, and one is at 0\.0\.0\.0:9"),
        (["--peers", "10.0.0.1", "--listen", "127.0.0.1:9"], r"speak TLS, and one is at 10\.0\.0\.1:0"),
        (
            ["--peers", "10.0.0.1:9", "--listen", "127.0.0.1", "--certificates", "."],
            "peer-0.pem cannot be read|ca.pem cannot be read",
        ),
        (["--peers", "a:b"], "HOST or HOST:PORT"),
        (["--listen", "127.0.0.1:9"], "add --peers HOST"),
    ],
)
def test_a_node_that_others_could_not_reach_safely_does_not_start(
    options: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(Mistake, match=sentence):
        node_command(["--superlink", "127.0.0.1:9", "--agents", "0", "--state", str(tmp_path), *options])


def node_command(words: list[str]) -> None:
    app = typer.Typer()
    app.command()(node)
    app(words, standalone_mode=False)


def test_every_agent_of_a_node_has_a_port_of_its_own() -> None:
    assert [door("10.0.0.5:9500", at) for at in range(3)] == ["10.0.0.5:9500", "10.0.0.5:9501", "10.0.0.5:9502"]
    assert [door(text, 1) for text in ("agent-0", "[::1]")] == ["agent-0:0", "[::1]:0"]
