"""Agents alone, through the command line: resumed, interrupted, refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from runs import checkpoints
from runs.directory import RunDirectory

MAIN = "from cli.main import main; main()"
CONF = """
algorithm = "ppo"
agents = 2
steps = {steps}
work = 1
evaluate-episodes = 2
checkpoint-every = 2
[world]
id = "{world}"
copies = 2
horizon = 40
[ppo]
hidden = [8]
rollout = 16
"""
ROUND = 32
WORLDS = ("CartPole-v1", "Acrobot-v1")
# Several commands in one process, each as from a shell.
MANY = """
import json, sys
from cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["fedrl", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
"""


def fedrl(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def many(*commands):
    given = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", MANY, given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Per world: a run of four rounds, and one of two rounds that another process takes to four."""
    folder = tmp_path_factory.mktemp("solo")
    begin, go_on = [], []
    for world in WORLDS:
        conf = folder / f"{world}.toml"
        conf.write_text(CONF.format(steps=4 * ROUND, world=world))
        begin.append(["run", conf, "--out", folder / f"{world}.whole"])
        begin.append(["run", conf, "--out", folder / f"{world}.parts", "--set", f"steps={2 * ROUND}"])
        go_on.append(["run", "--resume", folder / f"{world}.parts", "--set", f"steps={4 * ROUND}"])
    many(*begin)
    for world in WORLDS:
        assert len(RunDirectory(folder / f"{world}.parts").read_metrics()) == 2
    many(*go_on)
    return folder


@pytest.mark.parametrize("world", WORLDS)
def test_two_rounds_a_stop_and_two_more_are_four(folder, world):
    whole, parts = (RunDirectory(folder / f"{world}.{name}") for name in ("whole", "parts"))
    for load in (lambda run: run.load_checkpoint()[0], lambda run: checkpoints.load(run.weights)[0]):
        one, other = load(whole), load(parts)
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)
    records = [
        [{k: v for k, v in r.items() if not k.endswith("_s")} for r in run.read_metrics()] for run in (whole, parts)
    ]
    assert len(records[0]) == 4
    assert records[0] == records[1]


def test_a_run_leaves_what_it_promises(folder):
    run = RunDirectory(folder / "CartPole-v1.whole")
    assert all(path.stat().st_size for path in (run.conf, run.metrics, run.weights, run.best, run.curve))
    assert run.read_metrics()[-1]["steps"] == [4 * ROUND] * 2


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C: the round in progress is finished, everything is saved, exit code 130; --resume goes on."""
    conf, out = tmp_path / "long.toml", tmp_path / "run"
    conf.write_text(CONF.format(steps=10**9, world="CartPole-v1"))
    run = RunDirectory(out)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "run", str(conf), "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    try:
        limit = time.monotonic() + 120
        while not (run.metrics.exists() and len(run.read_metrics()) >= 3):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in told
    assert "Traceback" not in told
    done = len(run.read_metrics())
    assert run.load_checkpoint()[1]["round"] == done
    resumed = fedrl("run", "--resume", out, "--set", f"steps={(done + 2) * ROUND}", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["rounds"] == done + 2
    assert [record["round"] for record in run.read_metrics()] == list(range(1, done + 3))


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    """One round takes minutes: the first Ctrl-C waits for its end, the second does not."""
    conf, out = tmp_path / "long.toml", tmp_path / "run"
    conf.write_text(CONF.format(steps=ROUND, world="CartPole-v1"))
    # Compiled before: an interrupt within the compiler may be lost.
    assert fedrl("run", conf, "--out", tmp_path / "first").returncode == 0
    command = [sys.executable, "-c", MAIN, "run", str(conf), "--out", str(out), "--set", "work=100000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not (out / "lock").exists():
            assert time.monotonic() < limit
            time.sleep(0.05)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        time.sleep(2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped at once" in told
    assert "Traceback" not in told


def test_a_full_disk_is_a_failure_and_code_1(tmp_path):
    """No file of this process may grow beyond what the first records need."""
    import resource

    conf = tmp_path / "a.toml"
    conf.write_text(CONF.format(steps=64, world="CartPole-v1"))

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = fedrl("run", conf, "--out", tmp_path / "run", "--set", "tensorboard=false", preexec_fn=small)
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(capsys, monkeypatch, *arguments):
    """The exit code and the words of a command in this process."""
    from cli.main import main

    monkeypatch.setattr(sys, "argv", ["fedrl", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    words = capsys.readouterr().err.strip()
    assert "Traceback" not in words
    assert len(words.splitlines()) == 1, words
    return ended.value.code, words


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ppo.learning-rat=0.1", ["ppo.learning-rat", "did you mean", "learning-rate"]),
        ("ppo.gamma=1.5", ["ppo.gamma", "1.5", "at most 1"]),
        ("agents=0", ["agents", "at least 1", "0"]),
        ("algorithm=dqn", ["algorithm", "dqn", "td3"]),
        ("world.id=NoSuchWorld-v9", ["NoSuchWorld"]),
        ("ppo.minibatches=1000", ["minibatches", "1000"]),
        ("seed", ["key=value"]),
    ],
)
def test_a_mistake_is_a_sentence_and_code_2(tmp_path, capsys, monkeypatch, setting, words):
    conf, out = tmp_path / "a.toml", tmp_path / "run"
    conf.write_text(CONF.format(steps=64, world="CartPole-v1"))
    code, told = refused(capsys, monkeypatch, "run", conf, "--out", out, "--set", setting)
    assert code == 2
    assert all(word in told for word in words), told
    assert not out.exists(), "something was begun"


def test_missing_files_are_mistakes(tmp_path, capsys, monkeypatch):
    code, told = refused(capsys, monkeypatch, "run", tmp_path / "none.toml")
    assert code == 2
    assert "none.toml" in told
    code, told = refused(capsys, monkeypatch, "run", "--resume", tmp_path)
    assert code == 2
    assert "holds no run" in told


def test_a_run_is_not_overwritten(folder, capsys, monkeypatch):
    out = folder / "CartPole-v1.whole"
    before = (out / "metrics.jsonl").read_text()
    code, told = refused(capsys, monkeypatch, "run", folder / "CartPole-v1.toml", "--out", out)
    assert code == 2
    assert "--resume" in told
    assert (out / "metrics.jsonl").read_text() == before


def test_a_broken_checkpoint_is_a_failure_and_code_1(tmp_path, capsys, monkeypatch):
    conf, out = CONF.format(steps=64, world="CartPole-v1"), tmp_path / "run"
    out.mkdir()
    (out / "conf.toml").write_text(conf)
    (out / "metrics.jsonl").write_text('{"round": 1}\n')
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "round-000001.npz").write_bytes(b"not one")
    code, told = refused(capsys, monkeypatch, "run", "--resume", out)
    assert code == 1
    assert "round-000001.npz" in told
    assert (out / "metrics.jsonl").read_text() == '{"round": 1}\n', "the records were thrown away"


def test_a_checkpoint_of_another_configuration_is_a_failure(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    (out / "conf.toml").write_text(CONF.format(steps=64, world="CartPole-v1").replace("[8]", "[9]"))
    (out / "metrics.jsonl").write_text("")
    shutil.copytree(folder / "CartPole-v1.whole" / "checkpoints", out / "checkpoints")
    code, told = refused(capsys, monkeypatch, "run", "--resume", out)
    assert code == 1
    assert "fleet.policy" in told


def test_as_a_process_too(tmp_path):
    done = fedrl("run", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "none.toml" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
