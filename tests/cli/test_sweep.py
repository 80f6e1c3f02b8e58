"""A sweep as a user types it: finished, called again, interrupted, killed, refused; and runs looked at in groups."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest

import cli.main
from cli import jobs, sweep
from cli.screen import announce
from core.errors import Mistake
from core.options import nested, override
from runs import groups, sweeps
from runs.config import configure
from runs.directory import RunDirectory

CONF = """
algorithm = "policy-gradient"
agents = 2
rounds = 2
steps = 0
work = 1
evaluate-episodes = 1
tensorboard = false
[world]
copies = 2
[policy-gradient]
batch = 2
hidden = [4]
"""
GRID = ("--grid", "policy-gradient.gamma=0.9,0.99", "--seeds", "0:2", "--jobs", 2)
NAMES = ("policy-gradient.gamma=0.9", "policy-gradient.gamma=0.99")


def fedrl(*arguments) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.argv", ["fedrl", *map(str, arguments)])
        patch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as ended:
            cli.main.main()
    assert "Traceback" not in err.getvalue()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def processes_of(directory: Path) -> list[int]:
    """Who was started with this directory in its command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(directory) in (entry / "cmdline").read_bytes().decode() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def until(true, seconds=60.0):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def finished_files(directory: Path) -> dict[Path, int]:
    """Everything that runs left, and when."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("seed-*/**/*") if path.is_file()}


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("confs") / "tiny.toml"
    path.write_text(CONF)
    return path


@pytest.fixture(scope="module")
def swept(conf) -> tuple[Path, str]:
    """Two values, two seeds; and what was said."""
    out = conf.parent / "swept"
    code, told, said = fedrl("sweep", conf, *GRID, "--out", out)
    assert code == 0, said
    return out, told + said


# --- a sweep ----------------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_runs_a_table_and_a_picture(swept):
    out, said = swept
    found = json.loads((out / "sweep.json").read_text())
    assert list(found["combinations"]) == list(NAMES)
    assert (found["runs"], found["finished"], found["failed"], found["interrupted"]) == (4, 4, {}, False)
    for gamma, name in zip((0.9, 0.99), NAMES, strict=True):
        for seed in (0, 1):
            config = RunDirectory.open(out / name / f"seed-{seed}").read_conf()
            assert (config["seed"], config["policy-gradient"]["gamma"]) == (seed, gamma)
            last = RunDirectory(out / name / f"seed-{seed}").read_metrics()[-1]
            assert found["combinations"][name]["returns"][str(seed)] == sum(last["return"]) / 2
    assert (out / "sweep.png").stat().st_size > 1000
    assert all(word in said for word in ("done 4/4", *NAMES, "interquartile mean", "worst (seed)", "running 2: "))
    assert processes_of(out) == []


def test_called_again_it_does_nothing(conf, swept):
    out, _ = swept
    before = finished_files(out)
    code, told, _ = fedrl("sweep", conf, *GRID, "--out", out, "--json")
    assert code == 0
    assert json.loads(told) == json.loads((out / "sweep.json").read_text())
    assert finished_files(out) == before


def test_seeds_may_be_added(conf, swept, tmp_path, monkeypatch):
    out = shutil.copytree(swept[0], tmp_path / "swept")
    begun = []
    monkeypatch.setattr(sweep, "run_all", lambda todo, *more: (begun.extend(run.name for run in todo), ({}, False))[1])
    code, told, _ = fedrl("sweep", conf, *GRID[:2], "--seeds", "3", "--out", out, "--json")
    assert code == 0
    assert begun == [f"{name}/seed-3" for name in NAMES]
    found = json.loads(told)
    assert (found["seeds"], found["runs"], found["finished"]) == ([0, 1, 3], 6, 4)


def test_a_run_that_fails_is_named(conf, swept, tmp_path):
    """It cannot go on, for its checkpoint is broken."""
    out = shutil.copytree(swept[0], tmp_path / "swept")
    broken, name = RunDirectory(out / NAMES[0] / "seed-1"), f"{NAMES[0]}/seed-1"
    broken.rewind(1)
    (broken.checkpoints / "round-000002.npz").write_bytes(b"nothing")
    code, told, said = fedrl("sweep", conf, *GRID, "--out", out, "--json")
    assert code == 1
    found = json.loads(told)
    assert list(found["failed"]) == [name]
    assert "cannot be read" in found["failed"][name]
    assert f"failed: {name}" in said
    assert "cannot be read" in (broken.path / "run.log").read_text()
    assert [one["seeds"] for one in found["combinations"].values()] == [1, 2]


def test_interrupted_it_goes_on_and_one_that_is_killed_is_named(conf, tmp_path, monkeypatch):
    out, rounds = tmp_path / "long", 300
    words = ["sweep", conf, "--seeds", "0:2", "--set", f"rounds={rounds}", "--jobs", 1, "--out", out]
    runs = [RunDirectory(out / f"seed-{seed}") for seed in range(2)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *map(str, words)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        # One is in the middle of it; the other waits.
        until(lambda: (runs[0].metrics.exists() and runs[0].read_metrics()) or process.poll() is not None)
        # As in a terminal: the whole group of the sweep, to which its runs do not belong.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "continue with: fedrl sweep" in said
    assert f"--out={out}" in said
    assert "Traceback" not in said
    assert processes_of(out) == []
    before = len(runs[0].read_metrics())
    assert before == max(runs[0].saved_rounds()) < rounds
    assert not runs[1].path.exists()

    def start_and_kill(run, *more):
        one = start(run, *more)
        if run.seed == 1:
            one.process.kill()
        return one

    start = jobs.start
    monkeypatch.setattr(jobs, "start", start_and_kill)
    code, told, _ = fedrl(*words, "--json")
    assert (code, json.loads(told)["failed"]) == (1, {"seed-1": "it was ended by SIGKILL"})
    assert [record["round"] for record in runs[0].read_metrics()] == list(range(1, rounds + 1))
    assert processes_of(out) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--grid", "policy-gradient.gama=1"), "did you mean 'policy-gradient.gamma'"),
        (("--grid", "work=1,none"), "'work' is a whole number"),
        (("--grid", "world.id=CartPole-v1,Carpole"), "world.id=Carpole: "),
        (("--grid", "work=1,1.0"), "asks twice for the same run: work=1.0"),
        (("--grid", "work=1,,2"), "--grid must be key=value,value"),
        (("--grid", "work"), "--grid must be key=value,value"),
        (("--grid", "work=1", "--grid", "work=2"), "gives 'work' twice"),
        (("--grid", "work=1", "--set", "work=2"), "'work' is given by --grid and again by --set"),
        (("--grid", "seed=1,2"), "given by --seeds"),
        (("--set", "seed=1"), "given by --seeds"),
        (("--engine", "cloud"), "'engine' is one of"),
        (("--seeds", "3:3"), "--seeds must be like"),
        (("--seeds", "some"), "--seeds must be like"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(arguments, words, conf, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "start", lambda *given: pytest.fail("something was started"))
    code, _, said = fedrl("sweep", conf, "--seeds", "0:2", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_sweep_s_directory_is_refused(conf, swept, monkeypatch):
    monkeypatch.setattr(jobs, "start", lambda *given: pytest.fail("something was started"))
    out, _ = swept
    before = (out / "sweep.json").read_text()
    for more, words in (
        (("--set", "work=2"), "work was 1, is 2"),
        (("--grid", "agents=1,2"), "another sweep (--grid was"),
        (("--set", "world.horizon=9"), "world.horizon was not there, is 9"),
    ):
        code, _, said = fedrl("sweep", conf, *GRID, *more, "--out", out)
        assert (code, "another sweep" in said, words in said) == (2, True, True), said
    run = out / NAMES[0] / "seed-0"
    assert "but no sweep" in fedrl("sweep", conf, *GRID, "--out", run)[2]
    assert (out / "sweep.json").read_text() == before


def test_one_sweep_at_a_time(conf, swept):
    with sweeps.locked(swept[0]):
        code, _, said = fedrl("sweep", conf, *GRID, "--out", swept[0])
    assert (code, "at work in" in said) == (2, True)


def test_seeds_and_grids_are_read():
    assert sweeps.parse_seeds("0:3") == [0, 1, 2]
    assert sweeps.parse_seeds("7, 0:2,1") == [0, 1, 7]
    text = 'ppo.hidden=[64,64],[8], 9 ,{"a":[1,2],"b":"x,]"}'
    assert sweeps.parse_grid([text]) == {"ppo.hidden": ["[64,64]", "[8]", "9", '{"a":[1,2],"b":"x,]"}']}


def test_folders_of_odd_values_differ():
    axes = {"world.physics": ['{"length":1}', '{"length":2}', '{"length" 1}'][:2], "ppo.hidden": ["[8,8]", '"8,9"']}
    found = sweeps.combine({}, axes, "conf")
    assert len({one.folder for one in found}) == len(found) == 4
    assert all("/" not in one.folder and '"' not in one.folder for one in found)
    assert sweeps.combine({}, {}, "conf")[0].name == "conf"


# --- runs in groups ---------------------------------------------------------------------------------------------------


def made(path: Path, *settings: str, returns=((1.0, 3.0), (2.0, 4.0))) -> Path:
    """A run that never ran."""
    run = RunDirectory.create(path, nested(configure(override({"agents": 2}, list(settings)))))
    for number, values in enumerate(returns, start=1):
        sent = {"steps": [10 * number] * 2, "bytes_up": [5, 5], "bytes_down": [0, 0], "wall_s": 1.0 * number}
        run.log({"round": number, "return": list(values), **sent})
    return path


def test_runs_that_differ_by_their_seed_alone_are_one_group(tmp_path):
    for seed in range(3):
        for rule in ("krum", "mean"):
            more = ("engine=ray", "tensorboard=false", "threads=2", "checkpoints=9") if seed == 1 else ()
            made(tmp_path / rule / f"{seed}", f"seed={seed}", f"federation.rule={rule}", "strategy=fedavg", *more)
    found = groups.grouped(groups.read_runs([tmp_path], announce), announce)
    assert list(found) == ["federation.rule=krum", "federation.rule=mean"]
    assert [[run.conf["seed"] for run in group] for group in found.values()] == [["0", "1", "2"]] * 2
    assert list(groups.grouped(groups.read_runs([tmp_path / "krum"], announce), announce)) == ["ppo, CartPole-v1"]
    assert list(groups.grouped(groups.read_runs([tmp_path / "krum" / "2"], announce), announce)) == ["2"]
    code, _, said = fedrl("plot", tmp_path, "--x", "bytes", "--each", "--out", tmp_path / "a.png")
    assert code == 0, said
    assert (tmp_path / "a.png").stat().st_size > 1000
    code, told, _ = fedrl("table", "--group", tmp_path, "--out", tmp_path / "a.json")
    assert (code, "federation.rule=krum" in told) == (0, True)
    found = json.loads((tmp_path / "a.json").read_text())["federation.rule=mean"]
    assert (found["seeds"], found["mean"], found["env_steps"]) == (3, 3.0, 120)


def test_a_table_of_runs_says_what_differs_between_them(tmp_path):
    for seed in (0, 1):
        for rule in ("krum", "mean"):
            more = f'gossip.roster={{"0":"127.0.0.1:{7000 + seed}"}}'  # where peers were reached is nobody's setting
            made(tmp_path / rule / f"{seed}", f"seed={seed}", f"federation.rule={rule}", "strategy=fedavg", more)
    code, told, _ = fedrl("table", tmp_path)
    assert code == 0
    assert [re.split(r"\s{2,}", line)[:2] for line in told.splitlines()] == [["run", "what differs"]] + [
        [str(tmp_path / rule / f"{seed}"), f"federation.rule={rule}, seed={seed}"]
        for rule in ("krum", "mean")
        for seed in (0, 1)
    ]
    told = fedrl("table", tmp_path / "krum" / "0")[1]
    assert told.split()[:2] == ["run", "agents"]  # nothing differs


def test_a_sweep_over_a_key_that_makes_no_other_experiment_has_a_group_per_value(tmp_path):
    for seed in (0, 1):
        for engine in ("local", "ray"):
            made(tmp_path / f"{engine}-{seed}", f"seed={seed}", f"engine={engine}", "strategy=fedavg")
    found = groups.grouped(groups.read_runs([tmp_path], announce), announce)
    assert {label: sorted(run.name for run in group) for label, group in found.items()} == {
        f"engine={engine}": [f"{engine}-0", f"{engine}-1"] for engine in ("local", "ray")
    }
    told = fedrl("table", "--group", tmp_path)[1].splitlines()
    assert sorted(line.split()[:2] for line in told[1:]) == [["engine=local", "2"], ["engine=ray", "2"]]


def test_where_peers_were_reached_makes_no_other_experiment(tmp_path):
    for seed in range(2):
        where = f'gossip.roster={{"0":"127.0.0.1:{7000 + seed}","1":"127.0.0.1:{8000 + seed}"}}'
        made(tmp_path / f"{seed}", f"seed={seed}", where, "strategy=fedpg-dec", "algorithm=policy-gradient")
    assert list(groups.grouped(groups.read_runs([tmp_path], announce), announce)) == ["policy-gradient, CartPole-v1"]


def test_labels_say_what_differs():
    confs = [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "2", "b": "x", "c": "3"}]
    assert groups.labels(confs) == ["a=1", "a=2", "a=2, c=3"]
    assert groups.labels([{"c": "3"}, {}]) == ["c=3", "no c"]
    # Of many keys that differ, those that tell any two apart.
    wide = [{"world.id": f"{k}", **dict.fromkeys("abcdef", f"{k // 2}")} for k in range(4)]
    assert groups.labels(wide) == [f"world.id={k}" for k in range(4)]


def test_keys_of_another_algorithm_make_no_group(tmp_path):
    for seed in (0, 1):
        made(tmp_path / f"{seed}", f"seed={seed}", f"td3.batch={100 + seed}")
    assert len(groups.grouped(groups.read_runs([tmp_path], announce), announce)) == 1


def test_a_seed_that_is_there_twice_is_said(tmp_path, capsys):
    runs = groups.read_runs([made(tmp_path / "a"), made(tmp_path / "b")], announce)
    assert len(groups.grouped(runs, announce)) == 1
    assert "seed 0 appears more than once; each of these runs counts as a seed: a, b" in capsys.readouterr().err


def test_runs_without_metrics_are_left_out_below_a_directory_and_refused_by_name(tmp_path, capsys):
    made(tmp_path / "begun", returns=())
    made(tmp_path / "good")
    assert [run.name for run in groups.read_runs([tmp_path], announce)] == ["good"]
    assert "left out" in capsys.readouterr().err
    with pytest.raises(Mistake, match="begun has no metrics yet"):
        groups.read_runs([tmp_path / "begun"], announce)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Mistake, match="holds no run"):
        groups.read_runs([tmp_path / "empty"], announce)


def test_where_the_shortest_run_ends_is_said(tmp_path):
    made(tmp_path / "0", "seed=0", returns=[(k, k) for k in range(10)])
    made(tmp_path / "1", "seed=1")
    _, _, said = fedrl("plot", tmp_path, "--out", tmp_path / "a.png")
    assert "drawn to 20 of 100 (steps), where its shortest run ends" in said


# --- the best weights -------------------------------------------------------------------------------------------------


def test_eval_takes_the_best_weights_and_prints_json(swept, tmp_path):
    run = shutil.copytree(swept[0] / NAMES[0] / "seed-0", tmp_path / "run")
    code, told, _ = fedrl("eval", run, "--best", "--json", "--episodes", 3)
    found = json.loads(told)
    assert (code, found["weights"], found["episodes"], len(found["agents"])) == (0, "best.npz", 3, 2)
    assert found["mean"] == pytest.approx(sum(agent["mean"] for agent in found["agents"]) / 2)
    shutil.copy(run / "best.npz", run / "weights.npz")
    _, told, _ = fedrl("eval", run, "--json", "--episodes", 3)
    assert json.loads(told) == found | {"weights": "weights.npz"}
    (run / "best.npz").unlink()
    code, _, said = fedrl("eval", run, "--best")
    assert (code, "has no best.npz" in said) == (2, True)
