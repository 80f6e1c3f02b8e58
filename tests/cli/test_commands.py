"""Every command on one tiny run, as a user types it; mistakes are one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from typer.models import ParameterInfo

import cli.main
from core.options import nested, unflatten
from flower.launch import free_port
from runs.config import assembled, configure
from runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
CONF = """
algorithm = "td3"
agents = 2
steps = 60
work = 20
evaluate-episodes = 2
checkpoint-every = 2
[world]
id = "Acrobot-v1"
[td3]
hidden = [8]
learning-starts = 30
batch = 4
capacity = 100
"""


def fedrl(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["fedrl", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main.main()
    return int(caught.value.code or 0)


def typed(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What the command prints in a process of its own, on 200 columns.

    As in the installed script, the working directory is not on Python's path (-P).
    """
    command = [sys.executable, "-P", "-m", "cli.main", *map(str, words)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(CONF.replace("Acrobot-v1", "Pendulum-v1"))
    return path


@pytest.fixture
def run(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert fedrl(monkeypatch, "run", conf, "--out", tmp_path / "run") == 0
    return tmp_path / "run"


def test_a_run_and_everything_that_is_done_with_it(
    run: Path, conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in run.iterdir()} >= {"conf.toml", "metrics.jsonl", "checkpoints", "curve.png"}
    assert (run / "tensorboard").is_dir()
    capsys.readouterr()
    assert fedrl(monkeypatch, "table", run, "--out", tmp_path / "table.json") == 0
    figures = json.loads((tmp_path / "table.json").read_text())["run"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["mean"] == round(float(np.mean(last["return"])), 1)
    assert figures["steps"] == 60
    # The first round learned nothing yet: its losses are missing, and the curve begins later.
    assert fedrl(monkeypatch, "plot", run, "--metric", "critic-loss", "--out", tmp_path / "loss.png") == 0
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert fedrl(monkeypatch, "eval", run, "--episodes", 2, "--set", "world.physics.length=1.5") == 0
    assert "mean return" in capsys.readouterr().out
    assert fedrl(monkeypatch, "run", "--resume", run, "--set", "steps=80", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rounds"], summary["env_steps"]) == (4, 160)
    promised = {"final_return", "best_return", "rounds", "env_steps", "bytes_up", "bytes_down", "wall_s", "run_dir"}
    assert promised <= set(summary)
    assert fedrl(monkeypatch, "conf", "td3.") == 0
    assert "td3.policy-delay" in capsys.readouterr().out


def test_every_key_as_json_is_what_a_conf_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedrl(monkeypatch, "conf", "--json") == 0
    told = {key["name"]: key for key in json.loads(capsys.readouterr().out)}
    assert all(set(key) == {"name", "default", "kind", "range", "sentence", "choices"} for key in told.values())
    # The defaults make the default configuration, and every choice is one that a conf may hold.
    assert nested(configure(unflatten({name: key["default"] for name, key in told.items()}))) == nested(assembled()())
    for name, key in told.items():
        for choice in key["choices"]:
            configure(unflatten({name: choice}))
    assert "td3" in told["algorithm"]["choices"] and not told["td3.gamma"]["choices"]
    assert fedrl(monkeypatch, "conf", "td3.", "--json") == 0
    assert [key["name"] for key in json.loads(capsys.readouterr().out)] == [name for name in told if "td3." in name[:4]]
    assert fedrl(monkeypatch, "conf", "nothing.", "--json") == 2


def test_two_runs_of_one_name_are_two_lines(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    run.rename(tmp_path / "other" / "run")
    conf = tmp_path / "tiny.toml"
    assert fedrl(monkeypatch, "run", conf, "--out", run) == 0
    assert fedrl(monkeypatch, "table", run, tmp_path / "other" / "run", "--out", tmp_path / "t.json") == 0
    assert len(json.loads((tmp_path / "t.json").read_text())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run",), "give a conf"),
        (("run", "missing.toml"), "there is no file"),
        (("run", "--resume", "RUN", "--seed", "9"), "'seed' is settled"),
        (("run", "--resume", "RUN", "--set", "world.copies=3"), "'world.copies' is settled"),
        (("run", "--resume", "RUN", "--out", "elsewhere"), "remove --out"),
        (("run", "CONF", "--out", "RUN"), "already holds a run"),
        (("run", "CONF", "--out", "FULL"), "FULL holds other files (mine.txt): a run needs a new or an empty folder"),
        (("run", "--resume", "RUN"), "is finished, after 3 rounds and 60 steps of each agent: to go on"),
        (("run", "--resume", "RUN"), "give it a later end (--set steps=N, N above 60)"),
        (("run", "--resume", "RUN", "--set", "rounds=3", "--set", "steps=0"), "(--set rounds=N, N above 3)"),
        (("run", "CONF", "--set", "td3.gama=1"), "did you mean 'td3.gamma'"),
        (("run", "CONF", "--set", "wandb=3"), "true or false"),
        (("run", "CONF", "--nodes", "2"), "--nodes is for the engine grpc"),
        (("run", "CONF", "--engine", "grpc", "--set", "strategy=fedavg", "--nodes", "9"), "nothing to do for 2 agents"),
        (("run", "CONF", "--engine", "mars"), "'engine' is one of"),
        (("run", "CONF", "--set", "steps=0"), "would never end"),
        (("run", "CONF", "--set", "strategy=fedavg", "--set", "federation.parts=brain"), "td3 has actor, critic"),
        (("eval", "RUN", "--agent", "7"), "agents 0 to 1"),
        (("eval", "nowhere"), "holds no run"),
        (("plot", "RUN", "--metric", "kl"), "has no metric 'kl'"),
        (("plot", "RUN", "--out", "x.foo"), "--out 'x.foo' must end in"),
        (("plot", "RUN", "--x", "miles"), "--x must be one of"),
        (("conf", "nothing."), "no key begins"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], words: str, run: Path, conf: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    capsys.readouterr()
    full = conf.parent / "FULL"
    full.mkdir()
    (full / "mine.txt").write_text("")
    given = [{"RUN": run, "CONF": conf, "FULL": full}.get(argument, argument) for argument in arguments]
    before = set(Path("out").iterdir()) if Path("out").exists() else set()
    assert fedrl(monkeypatch, *given) == 2
    told = capsys.readouterr().err
    assert words in told
    assert not Path("out").exists() or set(Path("out").iterdir()) == before, "something was begun"
    assert "Traceback" not in told


def test_a_failure_is_one_sentence_and_exit_code_1(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    next((run / "checkpoints").iterdir()).write_bytes(b"not a checkpoint")
    assert fedrl(monkeypatch, "run", "--resume", run, "--set", "steps=80") == 1
    told = capsys.readouterr().err
    assert "cannot be read" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plot", "RUN", "--out", "/nonexistent/a.png"), "create the folder '/nonexistent'"),
        (("plot", "RUN", "--out", "RUN"), "must end in .png, .pdf or .svg"),
        (("plot", "RUN", "--out", "FOLDER"), "is a folder"),
        (("plot", "RUN", "--matrix", "--out", "FILE/a.png"), "cannot be written"),
        (("table", "RUN", "--out", "/nonexistent/a.json"), "create the folder '/nonexistent'"),
        (("table", "RUN", "--group", "--out", "RUN"), "is a folder"),
        (("table", "RUN", "--out", "/proc/a.json"), "cannot be written"),
        (("eval", "RUN", "--video", "a.avi"), ".mp4 or .gif"),
        (("eval", "RUN", "--video", "FILE/a.gif"), "--video 'FILE/a.gif' cannot be written"),
        (("eval", "RUN", "--video", "/nonexistent/a.gif"), "create the folder '/nonexistent'"),
        (("eval", "RUN", "--cross", "--out", "FOLDER"), "is a folder"),
        (("eval", "RUN", "--cross", "--out", "a.jpg"), "must end in .png, .pdf or .svg"),
        (("sweep", "CONF", "--seeds", "0", "--out", "FILE"), "is a file"),
        (("sweep", "CONF", "--seeds", "0", "--out", "FILE/a/b"), "is a file"),
        (("sweep", "CONF", "--seeds", "0", "--out", "/proc/a"), "cannot be written"),
        (("sweep", "CONF", "--seeds", "0", "--out", "SWEPT"), "the picture 'SWEPT/sweep.png' must be a file"),
        (("demo", "--out", "FILE"), "is a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def work(*given: object, **named: object) -> None:
        pytest.fail("the work has begun")

    for name in (
        "runs.groups.read_runs", "client.session.Session.__init__", "cli.sweep.run_all", "cli.demo.learn",
        "runs.links.matrix",
    ):  # fmt: skip
        monkeypatch.setattr(name, work)
    if arguments[-1] == "SWEPT":  # what a sweep makes before its first run is no work
        monkeypatch.setattr("cli.sweep.check_runnable", lambda configs: None)
    conf, run, file, folder, swept = (tmp_path / name for name in ("a.toml", "run", "file", "folder.png", "swept"))
    conf.write_text(CONF)
    file.write_text("x")
    folder.mkdir()
    RunDirectory.create(run, nested(configure({}))).best.touch()
    (swept / "sweep.png").mkdir(parents=True)
    (swept / "sweep.json").write_text('{"grid": {}, "seeds": [0]}')
    (swept / "sweep.toml").write_text(CONF)
    names = {"RUN": run, "CONF": conf, "FILE": file, "FOLDER": folder, "SWEPT": swept}

    def filled(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, str(path))
        return text

    before = sorted(tmp_path.rglob("*"))
    assert fedrl(monkeypatch, *map(filled, arguments)) == 2
    told = capsys.readouterr().err
    assert filled(words) in told
    assert len(told.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_stopped_between_checkpoints_equals_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a simulator whose state cannot be saved, stopped after a round that the checkpoints do not fall on."""
    conf = tmp_path / "mountain.toml"
    conf.write_text(CONF.replace("Acrobot-v1", "MountainCarContinuous-v0").replace("every = 2", "every = 7"))
    assert fedrl(monkeypatch, "run", conf, "--out", tmp_path / "whole", "--set", "steps=100") == 0
    assert fedrl(monkeypatch, "run", conf, "--out", tmp_path / "half", "--set", "steps=60") == 0
    assert fedrl(monkeypatch, "run", "--resume", tmp_path / "half", "--set", "steps=100") == 0
    with np.load(tmp_path / "whole" / "weights.npz") as whole, np.load(tmp_path / "half" / "weights.npz") as half:
        for name in ("actor", "critic"):
            np.testing.assert_array_equal(whole[name], half[name])


COMMANDS: dict[str, Any] = {one.name or one.callback.__name__: one.callback for one in cli.main.app.registered_commands}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_argument_and_option(name: str) -> None:
    done = typed(name, "--help")
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.replace("│", " ").split())
    for hint in get_type_hints(COMMANDS[name], include_extras=True).values():
        for about in get_args(hint):
            if isinstance(about, ParameterInfo):
                assert about.help and about.help in printed


@pytest.mark.parametrize(("arguments", "code"), [(("eval", "nowhere"), 2), (("certs", "FILE/keys"), 1)])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    arguments: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    (tmp_path / "FILE").write_text("")
    plain, debug = typed(*arguments, cwd=tmp_path), typed(*arguments, "--debug", cwd=tmp_path)
    assert "Traceback" not in plain.stderr and "Traceback" in debug.stderr
    assert plain.returncode == debug.returncode == code
    assert plain.stderr.strip() in debug.stderr, "the sentence comes after it"


def test_a_superlink_that_does_not_answer_leaves_no_run(conf: Path, tmp_path: Path) -> None:
    words = ("run", conf, "--set", "strategy=fedavg", "--superlink", f"127.0.0.1:{free_port()}")
    for out in ((), ("--out", tmp_path / "run")):
        done = typed(*words, *out, cwd=tmp_path)
        assert done.returncode == 1
        assert (
            done.stderr.startswith("fedrl: no SuperLink answers at 127.0.0.1:") and len(done.stderr.splitlines()) == 1
        )
    assert {path.name for path in tmp_path.iterdir()} == {conf.name}
