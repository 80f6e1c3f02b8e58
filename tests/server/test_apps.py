"""The two Flower apps together: real messages, a grid that answers them in this process."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid

import client.client_app
from client.client_app import app as client_app
from core.errors import Mistake
from core.options import unflatten
from flower.launch import QUIET, background, free_port, send
from runs.config import app_config
from runs.directory import RunDirectory
from server.server_app import app as server_app

ROOT = Path(__file__).parents[2]


class Here(Grid):
    """A grid whose nodes are contexts of this process; ``fresh`` forgets every session between messages."""

    def __init__(self, parties: int, config: dict[str, Any], fresh: bool = False) -> None:
        self.fresh, self.replies = fresh, {}
        self.contexts = {
            100 + k: Context(7, 100 + k, {"partition-id": k, "num-partitions": parties}, RecordDict(), config, 7)
            for k in range(parties)
        }

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            if self.fresh:
                client.client_app._here.clear()
            names.append(str(len(self.replies)))
            message.metadata.__dict__["_message_id"] = names[-1]
            self.replies[names[-1]] = client_app(message, self.contexts[message.metadata.dst_node_id])
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies[name] for name in message_ids][::-1]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    set_run = run = create_message = None  # type: ignore[assignment]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("FEDRL_STATE", str(tmp_path / "state"))
    client.client_app._here.clear()
    return app_config() | {
        "agents": 2, "work": 2, "world.copies": 4, "evaluate-episodes": 2, "ppo.rollout": 16, "ppo.hidden": "8",
        "rounds": 3, "directory": str(tmp_path / "out"),
    }  # fmt: skip


def federate(config: dict[str, Any], fresh: bool = False) -> RunDirectory:
    server_app(Here(2, config, fresh), Context(7, 0, {}, RecordDict(), config, 7))
    return RunDirectory.open(Path(config["directory"]))


def test_a_federation_leaves_a_run(config: dict[str, Any]) -> None:
    run = federate(config)
    records = run.read_metrics()
    assert [record["round"] for record in records] == [1, 2, 3]
    assert records[0]["kept.policy"] == [1, 1]
    assert records[0]["steps"] == [2 * 16 * 4] * 2
    with np.load(run.weights) as weights:
        widths = {name: weights[name].shape for name in ("policy", "value")}
        assert records[0]["bytes_up"] == [4 * sum(shape[1] for shape in widths.values())] * 2
        assert all(np.isfinite(weights[name]).all() for name in widths)


def test_a_line_per_round_is_printed_whatever_the_log_level_of_flower(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        run = federate(config)
    finally:
        logger.setLevel(before)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"the run is in {run.path}"
    assert [re.sub("  .*", "", line) for line in lines if line.startswith("round ")] == [
        "round 1/3", "round 2/3", "round 3/3",
    ]  # fmt: skip


def test_a_server_app_leaves_curve_and_summary(config: dict[str, Any]) -> None:
    run = federate(config)
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    summary = json.loads(run.summary.read_text())
    assert (summary["rounds"], summary["interrupted"]) == (3, False)
    assert summary["final_return"] == pytest.approx(np.mean(run.read_metrics()[-1]["return"]))


def test_a_session_survives_processes_that_do_not(config: dict[str, Any], tmp_path: Path) -> None:
    kept = dict(np.load(federate(config).weights))
    client.client_app._here.clear()
    again = config | {"directory": str(tmp_path / "again")}
    for snapshot in (tmp_path / "state").rglob("*.npz"):
        snapshot.unlink()
    found = dict(np.load(federate(again, fresh=True).weights))
    for name in ("policy", "value"):
        np.testing.assert_array_equal(kept[name], found[name])


def test_only_the_chosen_parts_travel(config: dict[str, Any]) -> None:
    run = federate(config | {"federation.parts": "policy"})
    with np.load(run.weights) as weights:
        assert "value" not in weights.files
        assert run.read_metrics()[0]["bytes_up"] == [4 * weights["policy"].shape[1]] * 2


def test_moments_are_added_up_and_nothing_is_counted_twice(config: dict[str, Any]) -> None:
    run = federate(config | {"ppo.normalise-observations": True})
    with np.load(run.weights) as weights:
        count = weights["moments.observations.shared"][0, 0]
    assert count == 3 * 2 * (2 * 16 * 4)  # rounds, parties, steps of a party in a round


def test_an_unknown_part_and_a_node_without_number_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match=r"'federation.parts' names 'actor'; ppo has policy, value"):
        federate(config | {"federation.parts": "actor"})
    with pytest.raises(Mistake, match="partition-id"):
        client.client_app.number_of(Context(7, 1, {}, RecordDict(), {}, 7))


def test_a_party_says_who_it_is(config: dict[str, Any]) -> None:
    here = Here(2, config)
    (answer,) = here.send_and_receive([Message(RecordDict(), 101, MessageType.QUERY)])
    who = answer.content.config_records["fedrl"]
    assert (who["party"], who["algorithm"], who["world"]) == (1, "ppo", "CartPole-v1")
    assert who["width.policy"] == 4 * 8 + 8 + 8 * 2 + 2


def test_flowers_configuration_is_generated_from_the_dataclasses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["tool"]["flwr"]["app"]["config"]
    assert declared == unflatten(app_config())


@pytest.mark.slow
def test_flwr_run_in_flowers_simulation(tmp_path: Path) -> None:
    """`flwr run .` as a user types it: a SuperLink of its own, Ray actors, two parties."""
    import os

    home, out = tmp_path / "home", tmp_path / "out"
    env = os.environ | QUIET | {
        "FLWR_HOME": str(home), "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()), "FEDRL_STATE": str(tmp_path / "state"),
        "RAY_USAGE_STATS_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    settings = f'agents=2 work=2 ppo.rollout=16 evaluate-episodes=2 rounds=2 directory="{out}"'
    federation = "num-supernodes=2 client-resources-num-cpus=1"
    try:
        done = subprocess.run(
            ["flwr", "run", ".", "--stream", "-c", settings, "--federation-config", federation],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert out.exists(), done.stdout + done.stderr
        run = RunDirectory.open(out)
        assert [(record["round"], record["kept.policy"]) for record in run.read_metrics()] == [(1, [1, 1]), (2, [1, 1])]
        assert run.weights.exists() and run.curve.exists() and run.summary.exists()
        assert "round 2/2  steps " in done.stdout
    finally:
        # The SuperLink that `flwr run` starts outlives it; ours is the one whose files lie in this home.
        left = [pid for pid, environ in background().items() if environ.get("FLWR_HOME") == str(home)]
        send(set(left), signal.SIGTERM)
    assert len(left) == 1


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_go_goes_though_flower_waits_for_itself(told: signal.Signals) -> None:
    """Flower's handler joins a thread that waits for a lock of the call that was interrupted."""
    script = (
        "import signal, sys, threading, time; from server.server_app import leave_in_time\n"
        "lock = threading.Lock()\n"
        "for one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, lambda *_: lock.acquire())\n"
        "leave_in_time(0.5)\n"
        "with lock:\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(told)
        assert process.wait(30) == 1
