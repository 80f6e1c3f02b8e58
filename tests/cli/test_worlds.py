"""Worlds of a user's own: a file beside the conf, or in the working directory, and every process of a run finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.node import node
from client.party import Party
from core.errors import Mistake
from core.modules import FOLDERS
from runs.directory import RunDirectory
from tests.cli.test_commands import typed

WORLD = """
import gymnasium
import numpy as np
from my_lengths import LENGTH

class Count(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.array([self.count, action], np.float32), float(action), self.count == LENGTH, False, {}

gymnasium.register("Count-v0", Count, max_episode_steps=20)
"""
CONF = """
algorithm = "policy-gradient"
agents = 2
rounds = 2
steps = 0
work = 1
evaluate-episodes = 2
tensorboard = false
[world]
id = "my_worlds:Count-v0"
[policy-gradient]
batch = 2
hidden = [4]
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An empty folder, to type commands in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A conf, and beside it the module of its world, which imports another file."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "my.toml").write_text(CONF)
    (folder / "my_worlds.py").write_text(WORLD)
    (folder / "my_lengths.py").write_text("LENGTH = 5\n")
    return folder


def finished(done: subprocess.CompletedProcess[str], rounds: int) -> None:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == rounds


def test_a_world_beside_the_conf_is_found_from_anywhere_and_later(lab: Path, elsewhere: Path, tmp_path: Path) -> None:
    finished(typed("run", "../lab/my.toml", "--out", tmp_path / "run", "--json", cwd=elsewhere), 2)
    finished(typed("run", "--resume", tmp_path / "run", "--set", "rounds=3", "--json", cwd=elsewhere), 3)
    judged = typed("eval", tmp_path / "run", "--episodes", 2, "--json", cwd=elsewhere)
    assert judged.returncode == 0, judged.stderr
    assert 0 <= json.loads(judged.stdout)["mean"] <= 5


def test_a_world_in_the_working_directory_is_found(lab: Path, tmp_path: Path) -> None:
    conf = tmp_path / "confs" / "my.toml"
    conf.parent.mkdir()
    (lab / "my.toml").rename(conf)
    finished(typed("run", conf, "--out", tmp_path / "run", "--json", cwd=lab), 2)


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("grpc", ["--set", "strategy=fedavg", "--nodes", "1"]),
        ("gossip", ["--set", "strategy=fedpg-dec"]),
        ("ray", ["--set", "strategy=fedavg"]),
    ],
)
def test_every_process_of_a_run_finds_it(
    engine: str, more: list[str], lab: Path, elsewhere: Path, tmp_path: Path
) -> None:
    words = ("run", lab / "my.toml", "--engine", engine, *more, "--out", tmp_path / "run", "--json")
    finished(typed(*words, cwd=elsewhere), 2)


def test_a_sweep_finds_it(lab: Path, elsewhere: Path, tmp_path: Path) -> None:
    done = typed("sweep", "../lab/my.toml", "--seeds", 0, "--out", tmp_path / "sweep", "--json", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] == 1


def test_a_world_that_is_nowhere_is_a_sentence_that_says_where_was_looked(
    lab: Path, elsewhere: Path, tmp_path: Path
) -> None:
    (lab / "my_worlds.py").unlink()
    done = typed("run", "../lab/my.toml", "--out", tmp_path / "run", cwd=elsewhere)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "fedrl: there is no module 'my_worlds' for 'world.id' = 'my_worlds:Count-v0': looked in"
    )
    assert f"looked in the installed packages and {lab} and {elsewhere}; put my_worlds.py beside" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_file_hides_no_installed_package(lab: Path, elsewhere: Path, tmp_path: Path) -> None:
    for name in ("gymnasium", "random", "agents", "core"):
        (lab / f"{name}.py").write_text("raise SystemExit('imported')")
    finished(typed("run", "../lab/my.toml", "--out", tmp_path / "run", "--json", cwd=elsewhere), 2)


def test_a_run_that_was_sent_imports_nothing_that_came_with_it(lab: Path, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "sent", {"agents": 1, "world": {"id": "my_worlds:Count-v0"}})
    for name in ("my_worlds.py", "my_lengths.py"):
        (lab / name).rename(run.path / name)
    run.keep_folders([str(run.path), str(run.path / ".." / "sent"), "sent", "."])
    run.log({"round": 1, "steps": [1]})
    for cwd in (tmp_path, run.path):
        done = typed("run", "--resume", run.path, cwd=cwd)
        assert done.returncode == 2
        assert "there is no module 'my_worlds'" in done.stderr


@pytest.mark.parametrize("named", ["my_worlds", "my_lengths"])
def test_a_node_imports_what_its_owner_named(named: str, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the node's working directory, and only if --worlds names it."""
    made: list[Callable[..., Party]] = []

    class Host:
        def __init__(
            self, address: object, numbers: object, make: Callable[..., Party], *given: object, **more: object
        ):
            made.append(make)

        def serve(self) -> None: ...

    monkeypatch.setattr("client.node.Node", Host)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv(FOLDERS, "")
    monkeypatch.chdir(lab)
    node("127.0.0.1:1", "0", insecure=True, worlds=named, state=lab / "state")
    flat = {"agents": 1, "strategy": "fedavg", "world.id": "my_worlds:Count-v0", "evaluate-episodes": 0}
    if named == "my_worlds":
        assert made[0](0, flat, "run", lab / "state").session.worlds.horizon == 20
    else:
        with pytest.raises(Mistake, match=r"asks to import 'my_worlds' for its world, .* was not told to"):
            made[0](0, flat, "run", lab / "state")
