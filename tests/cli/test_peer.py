"""Peers as processes: by the engine gossip, by hand, killed, stopped, and come again."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from cli.peer import peer
from core.errors import Failure, Mistake
from flower.launch import free_port, processes, start_peer, wait
from gossip.peer import peer as serve
from runs import checkpoints
from runs.config import configure
from runs.directory import RunDirectory
from runs.peers import joined

ROOT = Path(__file__).parents[2]
LONG_S = 300.0  # far more than anything here takes on an idle machine
CONF: dict[str, Any] = {
    "algorithm": "policy-gradient", "strategy": "fedpg-dec", "agents": 3, "seed": 2, "rounds": 10, "steps": 0,
    "evaluate-episodes": 3, "tensorboard": False, "world": {"id": "CartPole-v1"},
    # Nobody is held for dead, or left behind, because the machine is busy.
    "gossip": {"topology": "ring", "dead-s": 60.0, "deadline-s": 60.0, "beat-s": 0.3},
}  # fmt: skip

# Other links in every round.
CHANGING = '{"rounds": [{"edges": [[1, 0, 2], [2, 1, 1], [3, 2, 1], [0, 3, 1]]}, {"edges": [[0, 2, 3], [2, 0, 1]]}]}'


def fedrl(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_S, check=False)


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "net.toml"
    gossip = {**CONF["gossip"], **changes.pop("gossip", {})}
    path.write_text(tomli_w.dumps({**CONF, **changes, "gossip": gossip}))
    return path


def weights(run: Path) -> dict[str, np.ndarray]:
    return checkpoints.load(run / "weights.npz")[0]


def same_in_both(folder: Path, conf: Path) -> None:
    for engine in ("local", "gossip"):
        done = fedrl("run", str(conf), "--engine", engine, "--out", str(folder / engine), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rounds"] == 10
    one, other = weights(folder / "local"), weights(folder / "gossip")
    for part in one:
        assert np.abs(one[part] - other[part]).max() < 1e-5
    for mine, theirs in zip(*(RunDirectory(folder / one).read_metrics() for one in ("local", "gossip")), strict=True):
        for name in ("return", "steps", "trajectories", "missed"):
            assert mine.get(name) == theirs.get(name), name


def test_peers_in_processes_learn_what_they_learn_in_one(tmp_path: Path) -> None:
    same_in_both(tmp_path, written(tmp_path))


NAMED = ["directed-ring", "line", "star", "complete", "regular", "exponential", "random"]


@pytest.mark.slow
@pytest.mark.parametrize("topology", [*NAMED, pytest.param(CHANGING, id="changing")])
def test_they_do_so_in_every_topology(tmp_path: Path, topology: str) -> None:
    same_in_both(tmp_path, written(tmp_path, agents=4, gossip={"topology": topology, "degree": 2}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "dec-byz-pg", "agents": 4, "gossip": {"topology": "complete", "large": 10}},
        {"strategy": "dec-byz-pg", "agents": 4, "federation": {"byzantine": 1}, "gossip": {"topology": "complete"},
         "attack": {"byzantine": 1, "kind": "per-recipient-noise"}},
        {"strategy": "gossip", "algorithm": "ppo", "work": 2},
        {"strategy": "gossip", "algorithm": "td3", "work": 40, "world": {"id": "Pendulum-v1"},
         "td3": {"hidden": [16, 16], "learning-starts": 50, "batch": 16, "capacity": 1000}},
    ],
    ids=["dec-byz-pg", "liars", "ppo", "td3"],
)  # fmt: skip
def test_they_do_so_with_every_algorithm(tmp_path: Path, changes: dict[str, Any]) -> None:
    same_in_both(tmp_path, written(tmp_path, **changes))


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts a peer of three by hand, with a directory that it keeps."""
    with processes() as started:
        roster = {str(k): f"127.0.0.1:{free_port()}" for k in range(3)}
        conf = written(tmp_path, rounds=1_000_000, **{"evaluate-episodes": 0}, gossip={"roster": roster, "dead-s": 2.0})

        def start(number: int) -> Any:
            process = start_peer(conf, number, tmp_path / f"peer-{number}", tmp_path / f"peer-{number}.log")
            started.append(process)
            return process

        yield start


def test_a_peer_that_is_killed_comes_again_and_all_save_when_they_are_told_to_stop(
    tmp_path: Path, net: Callable[[int], Any]
) -> None:
    runs = [RunDirectory(tmp_path / f"peer-{number}") for number in range(3)]

    def rounds(number: int) -> list[dict[str, Any]]:
        return runs[number].read_metrics() if runs[number].metrics.exists() else []

    def said(number: int, words: str) -> bool:
        return any(words in line for line in runs[number].notes())

    # In any order, and each waits for the others.
    peers = {2: net(2), 0: net(0), 1: net(1)}
    assert wait(lambda: all(len(rounds(k)) > 12 for k in range(3)), LONG_S)
    peers[1].send_signal(signal.SIGKILL)
    assert wait(lambda: said(0, "peer 1 is gone") and said(2, "peer 1 is gone"), LONG_S)
    then = len(rounds(0))
    assert wait(lambda: len(rounds(0)) > then + 10, LONG_S), "the others go on"
    peers[1] = net(1)
    assert wait(lambda: said(1, "caught up with them after round"), LONG_S), runs[1].notes()
    assert wait(lambda: said(0, "peer 1 is back"), LONG_S)
    back = rounds(0)[-1]["round"]
    assert wait(lambda: rounds(1) != [] and rounds(1)[-1]["round"] > back + 10, LONG_S)
    for process in peers.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(LONG_S) for process in peers.values()] == [130, 130, 130]
    for number in range(3):
        last = rounds(number)[-1]["round"]
        assert max(runs[number].saved_rounds()) == last, "what was learned is saved"
    # Started again they go on where they stopped.
    peers = {k: net(k) for k in range(3)}
    assert wait(lambda: all(rounds(k)[-1]["round"] > last + 5 for k in range(3)), LONG_S)
    assert wait(lambda: joined([rounds(k) for k in range(3)])[-6]["missed"] == [0, 0, 0], LONG_S), "all hear all again"


def test_a_peer_that_returns_when_the_others_are_done_reports_where_its_weights_are(tmp_path: Path) -> None:
    roster = {str(k): f"127.0.0.1:{free_port()}" for k in range(2)}
    runs = [RunDirectory.create(tmp_path / str(k), {}) for k in range(2)]

    def goes(number: int, rounds: int, start_s: float) -> dict[str, Any]:
        gossip = {**CONF["gossip"], "roster": roster, "start-s": start_s}
        config = configure({**CONF, "agents": 2, "rounds": 6, "evaluate-episodes": 0, "gossip": gossip})
        return serve(config, number, "", runs[number], stop=lambda: len(runs[number].read_metrics()) >= rounds)

    with ThreadPoolExecutor(2) as pool:
        left, done = pool.map(goes, (0, 1), (3, 99), (LONG_S, LONG_S))
    assert left["interrupted"] and not done["interrupted"]
    own = r"if the others have done all their rounds and left, this peer ends after its round 3, .*0/weights.npz"
    with pytest.raises(Failure, match=rf"without peer 1 \(.*: nobody listens there\); {own}"):
        goes(0, 99, 0.5)
    assert weights(tmp_path / "0").keys() == {"policy"}


@pytest.mark.slow
def test_ctrl_c_ends_all_peers_and_the_run_goes_on_with_resume(tmp_path: Path) -> None:
    conf = written(tmp_path, rounds=100_000, **{"evaluate-episodes": 0})
    words = [sys.executable, "-m", "cli.main", "run", str(conf), "--engine", "gossip", "--out", str(tmp_path / "run")]
    run = RunDirectory(tmp_path / "run")

    def interrupted(command: list[str], least: int) -> None:
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert wait(lambda: run.metrics.exists() and len(run.read_metrics()) > least, LONG_S)
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=LONG_S)[1]
            assert process.returncode == 130, errors
            assert "continue with: fedrl run --resume" in errors
        finally:
            process.kill()

    interrupted(words, 5)
    first = run.read_metrics()
    assert weights(run.path)["policy"].shape[0] == 3
    interrupted([*words[:4], "--resume", str(run.path)], len(first) + 5)
    numbers = [record["round"] for record in run.read_metrics()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("changes", "number", "sentence"),
    [
        ({}, 3, "--id 3: the run has the peers 0 to 2"),
        ({}, 0, "'gossip.roster' has no entry for peer 0"),
        ({"steps": 100}, 0, "peers end together after so many rounds: set 'rounds', and 'steps' to 0"),
        ({"strategy": "fedavg"}, 0, "fedavg needs a server"),
        ({"gossip": {"roster": {"0": "nowhere"}}}, 0, 'has an entry 0 = "HOST:PORT" per peer'),
        (
            {"agents": 2, "gossip": {"roster": {"0": "127.0.0.1:9", "1": "10.0.0.1:9"}}},
            0,
            "peers on more than one machine speak TLS",
        ),
        (
            {"agents": 2, "gossip": {"roster": {"0": "127.0.0.1:9", "1": "10.0.0.1:9"}, "certificates": "nowhere"}},
            0,
            "cannot be read",
        ),
    ],
)
def test_mistakes_are_one_sentence_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], number: int, sentence: str
) -> None:
    arguments: dict[str, Any] = {"listen": "", "settings": None, "out": tmp_path / "peer", "as_json": False}
    with pytest.raises(Mistake, match=re.escape(sentence)):
        peer(written(tmp_path, **changes), number, insecure=False, **arguments)


@pytest.fixture
def taken() -> Iterator[str]:
    """An address at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("option", [False, True], ids=["roster", "listen"])
def test_a_taken_port_is_one_sentence(tmp_path: Path, taken: str, option: bool) -> None:
    elsewhere = f"127.0.0.1:{free_port()}"
    conf = written(tmp_path, agents=2, gossip={"roster": {"0": elsewhere if option else taken, "1": elsewhere}})
    words = ("peer", str(conf), "--id", "0", "--out", str(tmp_path / "peer"))
    done = fedrl(*words, *(("--listen", taken) if option else ()))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fedrl: peer 0 cannot listen at {taken}: Address already in use; give another address")
    assert not (tmp_path / "peer").exists(), "nothing was begun"


def test_a_taken_port_of_a_node_is_one_sentence(tmp_path: Path, taken: str) -> None:
    words = ("--insecure", "--agents", "5", "--state", str(tmp_path), "--peers", "127.0.0.1", "--listen", taken)
    done = fedrl("node", "--superlink", "127.0.0.1:1", *words)
    assert done.returncode == 1
    assert f"fedrl: agent 5 cannot listen at {taken}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_at_the_last_moment_is_the_same_sentence(taken: str) -> None:
    roster = {"0": taken, "1": f"127.0.0.1:{free_port()}"}
    config = configure({**CONF, "agents": 2, "gossip": {**CONF["gossip"], "roster": roster}})
    with pytest.raises(Failure, match=f"peer 0 cannot listen at {taken}: is the port taken"):
        serve(config, 0, "", RunDirectory(Path("nowhere")))


@pytest.mark.parametrize("listen", ["9500", "10.0.0.1", "10.0.0.1:x"])
def test_listen_is_an_address(tmp_path: Path, listen: str) -> None:
    roster = {str(k): f"127.0.0.1:{free_port()}" for k in range(3)}
    with pytest.raises(Mistake, match=f"--listen must be HOST:PORT, such as 0.0.0.0:9500, not '{listen}'"):
        peer(written(tmp_path, gossip={"roster": roster}), 0, listen, out=tmp_path / "peer")


def test_a_peer_that_has_done_its_rounds_says_what_goes_on(tmp_path: Path) -> None:
    roster = {str(k): f"127.0.0.1:{free_port()}" for k in range(3)}
    RunDirectory.create(tmp_path / "peer", {}).log({"round": 10})
    with pytest.raises(
        Mistake, match=r"peer 0 has finished its 10 rounds in .*--set rounds=N, N above 10.*another --out"
    ):
        peer(written(tmp_path, gossip={"roster": roster}), 0, out=tmp_path / "peer")
