"""The same federation in three engines, and what people and machines do to one that runs on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from core.errors import Failure
from core.options import flatten, nested, override
from flower.control import Control
from flower.launch import QUIET, processes, spawn, start_node, superlink
from runs import checkpoints
from runs.config import RunConfig, configure
from runs.directory import RunDirectory, read_toml

ROOT = Path(__file__).parents[2]
CONF = """
algorithm = "ppo"
strategy = "fedavg"
agents = 2
rounds = 5
steps = 0
work = 2
checkpoint-every = 2
tensorboard = false
[world]
id = "CartPole-v1"
copies = 4
[ppo]
rollout = 32
hidden = [16]
learning-rate = 0.003
normalise-observations = true
"""


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps are installed below the base folder of this session of tests: compiled once, and not the user's."""
    monkeypatch.setenv("FEDRL_HOME", str(tmp_path_factory.getbasetemp() / "fedrl"))


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(CONF)
    return path


def fedrl(*arguments: object, timeout: float = 240) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "run", *map(str, arguments), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def returns(run: Path) -> list[list[float]]:
    return [record["return"] for record in RunDirectory.open(run).read_metrics()]


def until(true: Callable[[], bool], seconds: float = 90, process: subprocess.Popen[Any] | None = None) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not come true in time"
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.05)


def rounds(run: RunDirectory) -> int:
    records = run.read_metrics() if run.metrics.exists() else []
    return records[-1]["round"] if records else 0


# --- the same run, wherever it runs -----------------------------------------------------------------------------------


def test_local_twice_is_the_same_bit_for_bit(conf: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fedrl(conf, "--out", tmp_path / name)
    assert returns(tmp_path / "one") == returns(tmp_path / "two")
    one, two = (checkpoints.load(tmp_path / name / "weights.npz")[0] for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


def test_grpc_is_local(conf: Path, tmp_path: Path) -> None:
    fedrl(conf, "--out", tmp_path / "local")
    summary = fedrl(conf, "--out", tmp_path / "grpc", "--engine", "grpc")
    np.testing.assert_allclose(returns(tmp_path / "grpc"), returns(tmp_path / "local"), rtol=1e-4)
    assert summary["rounds"] == 5
    assert summary["bytes_up"] == summary["bytes_down"] > 0
    assert not strays(tmp_path)


def test_a_run_on_a_superlink_that_is_there_is_local(conf: Path, tmp_path: Path) -> None:
    """The nodes find out by themselves which agents they are, and live on when the run is over."""
    fedrl(conf, "--out", tmp_path / "local", "--set", "rounds=3")
    claims = tmp_path / "claims"
    claims.mkdir()
    home = Path(os.environ["FEDRL_HOME"]) / "flower"
    with superlink(home, log=tmp_path / "link.log") as link, processes() as started:
        for name in ("one", "two"):
            alive = tmp_path / f"{name}-alive"
            words = ["--superlink", link.fleet, "--insecure", "--state", str(tmp_path / name)]
            words += ["--claim", str(claims), "--alive", str(alive)]
            log = tmp_path / f"{name}.log"
            started.append(spawn([sys.executable, "-m", "cli.main", "node", *words], log, QUIET, ROOT))
        fedrl(conf, "--out", tmp_path / "run", "--superlink", link.control, "--set", "rounds=3")
        until(alive.exists)
        assert all(process.poll() is None for process in started)
    np.testing.assert_allclose(returns(tmp_path / "run"), returns(tmp_path / "local"), rtol=1e-4)
    assert sorted((tmp_path / name / "agent").read_text() for name in ("one", "two")) == ["0\n", "1\n"]


@pytest.mark.slow
def test_ray_is_local(conf: Path, tmp_path: Path) -> None:
    fedrl(conf, "--out", tmp_path / "local")
    fedrl(conf, "--out", tmp_path / "ray", "--engine", "ray")
    np.testing.assert_allclose(returns(tmp_path / "ray"), returns(tmp_path / "local"), rtol=1e-4)


@pytest.mark.slow
def test_stock_supernodes_and_flwr_run_are_local(conf: Path, tmp_path: Path) -> None:
    """Nothing of ours but the app: flower-superlink, flower-supernode, flwr run."""
    fedrl(conf, "--out", tmp_path / "local", "--set", "rounds=2")
    home, binaries = tmp_path / "home", Path(sys.executable).parent
    environ = QUIET | {
        "FLWR_HOME": str(home), "FEDRL_STATE": str(tmp_path / "state"),
        "PATH": os.pathsep.join([str(binaries), os.environ["PATH"]]),
    }  # fmt: skip
    # Each of their answers comes from a process of its own, which compiles anew: a busy machine takes a minute for two.
    config = configure(override(read_toml(conf), ["rounds=2", "engine=grpc", "federation.deadline-s=300"]))
    settings = tmp_path / "settings.toml"
    given = flatten(config) | {"directory": str(tmp_path / "run")}
    settings.write_text(tomli_w.dumps(dict(given)))
    with superlink(home) as link, processes() as started:
        for k in range(2):
            node = [str(binaries / "flower-supernode"), "--insecure", "--superlink", link.fleet]
            about = ["--node-config", f"partition-id={k}", "--clientappio-api-address", "127.0.0.1:0"]
            started.append(spawn([*node, *about], tmp_path / f"{k}.log", environ))
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link.control}"\ninsecure = true\n'
        )
        done = subprocess.run(
            [str(binaries / "flwr"), "run", str(ROOT), "here", "--stream", "-c", str(settings)],
            env=os.environ | environ, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    assert (tmp_path / "run").exists(), done.stdout + done.stderr
    np.testing.assert_allclose(returns(tmp_path / "run"), returns(tmp_path / "local"), rtol=1e-4)


@pytest.mark.slow
def test_td3_keeps_its_replay_in_every_engine(conf: Path, tmp_path: Path) -> None:
    settings = [
        "algorithm=td3", "work=60", "world.id=Pendulum-v1", "world.copies=1", "world.horizon=50", "td3.hidden=16",
        "td3.learning-starts=50", "td3.batch=16", "td3.capacity=1000",
    ]  # fmt: skip
    given = [word for setting in settings for word in ("--set", setting)]
    for engine in ("local", "ray", "grpc"):
        fedrl(conf, *given, "--out", tmp_path / engine, "--engine", engine)
    for engine in ("ray", "grpc"):
        np.testing.assert_allclose(returns(tmp_path / engine), returns(tmp_path / "local"), rtol=1e-4)


@pytest.mark.parametrize("extra", [(), ("federation.fraction=0.5",)])
def test_two_rounds_a_stop_and_two_more_are_four(conf: Path, tmp_path: Path, extra: tuple[str, ...]) -> None:
    given = [word for setting in extra for word in ("--set", setting)]
    fedrl(conf, *given, "--out", tmp_path / "whole", "--set", "rounds=4")
    fedrl(conf, *given, "--out", tmp_path / "parts", "--set", "rounds=2")
    fedrl("--resume", tmp_path / "parts", "--set", "rounds=4")
    whole, parts = (RunDirectory.open(tmp_path / name) for name in ("whole", "parts"))
    one, other = whole.load_checkpoint()[0], parts.load_checkpoint()[0]
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    same = [
        [{k: v for k, v in r.items() if not k.endswith("_s")} for r in run.read_metrics()] for run in (whole, parts)
    ]
    assert same[0] == same[1]


# --- real processes, real failures ------------------------------------------------------------------------------------


def strays(mark: Path) -> list[str]:
    """Command lines of living processes that name this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(mark) in command and int(process.name) != os.getpid() and "pytest" not in command:
            found.append(command)
    return found


def test_ctrl_c_over_grpc_leaves_a_resumable_run_and_no_process(conf: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "cli.main", "run", str(conf), "--out", str(run.path), "--engine", "grpc"]
    process = subprocess.Popen(
        [*command, "--nodes", "1", "--set", "rounds=100000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: rounds(run) >= 3, process=process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in told
    assert "Traceback" not in told
    assert not strays(tmp_path)
    done = rounds(run)
    assert max(run.saved_rounds()) == done
    lived = run.read_metrics()[-1]["steps"]
    summary = fedrl("--resume", run.path, "--set", f"rounds={done + 2}")
    assert summary["rounds"] == done + 2
    # The nodes' own state was saved too: their worlds went on where they were.
    assert run.read_metrics()[-1]["steps"] == [steps + 2 * 2 * 32 * 4 for steps in lived]


def run_config(run: RunDirectory) -> RunConfig:
    return configure(run.read_conf())


@contextmanager
def federating(conf: Path, tmp_path: Path, *settings: str, database: Path | None = None) -> Iterator[Any]:
    """A SuperLink, and a run of many rounds of three agents whose nodes the test starts."""
    always = ["rounds=100000", "agents=3", "checkpoint-every=1", "federation.deadline-s=2", "federation.quorum=0.6"]
    config = configure(override(read_toml(conf), [*always, "engine=grpc", *settings]))
    run = RunDirectory.create(tmp_path / "run", nested(config))
    flat = flatten(config) | {"directory": str(run.path), "run": run.name}
    home = Path(os.environ["FEDRL_HOME"]) / "flower"
    with superlink(home, database=database, log=tmp_path / "superlink.log") as link, processes() as started:

        def node(agent: int) -> subprocess.Popen[bytes]:
            started.append(start_node(link.fleet, [agent], tmp_path / "state", tmp_path / f"node-{agent}.log"))
            return started[-1]

        def submit() -> int:
            with Control(link.control) as control:
                return control.submit(ROOT, flat)

        yield run, link, node, submit, started


@pytest.fixture
def federation(conf: Path, tmp_path: Path) -> Iterator[Any]:
    with federating(conf, tmp_path) as found:
        yield found


def test_a_node_that_was_killed_comes_back_with_its_agent(federation: Any) -> None:
    run, _, node, submit, _ = federation
    nodes = [node(agent) for agent in range(3)]
    submit()
    until(lambda: rounds(run) >= 3)
    nodes[1].send_signal(signal.SIGKILL)
    nodes[1].wait()
    until(lambda: any(record["missed"] == [0, 1, 0] for record in run.read_metrics()))
    killed = next(record for record in run.read_metrics() if record["missed"][1])
    node(1)
    until(lambda: run.read_metrics()[-1]["kept.policy"] == [1, 1, 1])
    back = next(
        record for record in run.read_metrics() if record["round"] > killed["round"] and not record["missed"][1]
    )
    # Its worlds, optimiser and replay are those of its last snapshot, one round ago at most: nothing began anew.
    assert killed["steps"][1] <= back["steps"][1] <= killed["steps"][1] + 2 * 2 * 32 * 4
    run.ask_to_stop()


@pytest.mark.slow
def test_a_superlink_killed_and_restarted_finds_its_nodes_and_the_run_goes_on_when_submitted_again(
    conf: Path, tmp_path: Path
) -> None:
    """With SQLite state nodes stay registered. The run's ServerApp dies with the SuperLink, its checkpoint stays."""
    home, database = Path(os.environ["FEDRL_HOME"]) / "flower", tmp_path / "state.sqlite"
    with federating(conf, tmp_path, database=database) as (run, link, node, submit, _):
        nodes = [node(agent) for agent in range(3)]
        submit()
        until(lambda: rounds(run) >= 3)
        link.process.kill()
        link.process.wait()
        with superlink(home, fleet=link.fleet, database=database, log=tmp_path / "second.log") as second:
            time.sleep(15)  # until the first ServerApp has noticed
            before = run.read_metrics()[-1]
            with Control(second.control) as control:
                control.submit(ROOT, flatten(run_config(run)) | {"directory": str(run.path), "run": run.name})
            until(lambda: rounds(run) >= before["round"] + 3, 180)
            after = run.read_metrics()[-1]
            assert min(after["steps"]) > min(before["steps"])
            assert all(process.poll() is None for process in nodes)
            run.ask_to_stop()


ROGUE = """
import sys
from pathlib import Path
import numpy as np
from flwr.app import Message, MessageType
from flower.keys import Address
from client.node import Node
from client.party import Party, run_name
from strategies import messages
class Rogue(Party):
    lies = iter(["huge", "nan", "wide"] * 1000)

    def answer(self, message, keep=False):
        found = super().answer(message, keep)
        if message.metadata.message_type == MessageType.TRAIN:
            said = messages.entries(found)
            row = np.frombuffer(said["array.policy"], np.float32)
            wrong = {"huge": np.zeros(50_000_000, np.float32), "nan": row * np.nan, "wide": np.append(row, row)}
            return messages.content(said, messages.pack({"policy": wrong[next(self.lies)]}))
        return found

Node(Address(sys.argv[1], True, None, 2**28), [2], Rogue, run_name, Path(sys.argv[2]), [],
     give_up=0.0, grace=1.0, say=print, debug=True).serve()
"""


@pytest.fixture
def patient(conf: Path, tmp_path: Path) -> Iterator[Any]:
    with federating(conf, tmp_path, "federation.deadline-s=30") as found:
        yield found


def test_replies_of_200_mb_with_nan_and_of_another_layout_are_refused_by_name(patient: Any, tmp_path: Path) -> None:
    run, link, node, submit, started = patient
    honest = [node(agent) for agent in range(2)]
    script = tmp_path / "rogue.py"
    script.write_text(textwrap.dedent(ROGUE))
    environ = {"PYTHONPATH": str(ROOT)}
    started.append(
        spawn([sys.executable, str(script), link.fleet, str(tmp_path / "state")], tmp_path / "rogue.log", environ)
    )
    submit()
    wanted = {"oversized", "not-finite", "wrong-layout"}
    until(lambda: rounds(run) > 0 and wanted <= set(run.read_metrics()[-1]["reasons"]))
    records = run.read_metrics()
    assert all(record["kept.policy"][2] is None for record in records)
    assert all(record["refused"][:2] == [0, 0] for record in records)
    assert all(process.poll() is None for process in honest)
    run.ask_to_stop()


def test_a_quorum_that_never_comes_ends_the_run_resumable_and_says_for_whom(conf: Path, tmp_path: Path) -> None:
    with federating(conf, tmp_path, "federation.wait-s=1", "federation.give-up-s=3") as (run, link, node, submit, _):
        node(0)
        number = submit()
        with Control(link.control) as control:
            until(lambda: control.status(number).over)
            assert control.status(number).sub_status == "failed"
    with pytest.raises(Failure, match=r"no quorum within .*: agents 1, 2 did not come.*--resume"):
        run.raise_word()
