"""The front door: a run from Python, what it leaves, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import fedrl
from client.session import Session
from runs import checkpoints
from runs.directory import read_toml
from tests.fedrl import lab

CONF: dict[str, Any] = {
    "agents": 2, "rounds": 3, "steps": 0, "work": 1, "evaluate-episodes": 2, "tensorboard": False, "strategy": "fedavg",
    "world": {"horizon": 40, "copies": 2}, "ppo": {"hidden": [8], "rollout": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> fedrl.Run:
    """A run whose agents share their weights."""
    return fedrl.run(CONF, out=tmp_path_factory.mktemp("shared") / "run", quiet=True)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> fedrl.Run:
    """A run whose agents have weights of their own."""
    return fedrl.run(CONF, out=tmp_path_factory.mktemp("apart") / "run", quiet=True, strategy="alone")


def test_a_dict_a_path_and_changes_are_the_same_run(
    shared: fedrl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(tomli_w.dumps(CONF))
    path = fedrl.run("mine.toml", quiet=True)
    assert re.fullmatch(r"out/mine-\d{8}-\d{6}", str(path.path))
    changes = {name.replace("-", "_"): value for name, value in CONF.items()}
    changed = fedrl.run(out="changed", quiet=True, **changes)
    for run in (path, changed):
        assert returns(run) == returns(shared)
        assert read_toml(run.path / "conf.toml") == read_toml(shared.path / "conf.toml")


def test_changes_and_the_seed_are_put_over_the_conf(tmp_path: Path) -> None:
    run = fedrl.run(CONF, out=tmp_path / "run", seed=7, rounds=1, ppo={"learning_rate": 0.01}, quiet=True)
    conf = read_toml(run.path / "conf.toml")
    assert (conf["seed"], conf["rounds"]) == (7, 1)
    assert (conf["ppo"]["learning-rate"], conf["ppo"]["hidden"]) == (0.01, [8])
    assert CONF["rounds"] == 3 and "learning-rate" not in CONF["ppo"]


def test_a_line_per_round_is_shown_unless_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fedrl.run(CONF, out=tmp_path / "loud")
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [f"round {k}/3" for k in (1, 2, 3)]
    fedrl.run(CONF, out=tmp_path / "quiet", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_records_and_the_summary_say_what_a_run_came_to(shared: fedrl.Run) -> None:
    assert [record["round"] for record in shared.records] == [1, 2, 3]
    assert shared.summary["rounds"] == 3 and shared.summary["interrupted"] is False
    assert shared.summary["env_steps"] == sum(shared.records[-1]["steps"])
    assert shared.config.agents == 2 and str(shared.path) in repr(shared)
    try:
        import pandas  # noqa: F401
    except ImportError:
        assert shared.metrics == shared.records
    else:
        assert list(shared.metrics.index) == [1, 2, 3]


def test_metrics_are_a_frame_where_pandas_is(shared: fedrl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame(list[Any]):
        def set_index(self, key: str) -> tuple[str, list[Any]]:
            return key, list(self)

    stand_in = type("pandas", (), {"DataFrame": Frame})
    monkeypatch.setitem(__import__("sys").modules, "pandas", stand_in)
    assert shared.metrics == ("round", shared.records)


@pytest.mark.parametrize("name", ["shared", "apart"])
@pytest.mark.parametrize("agent", [0, 1])
def test_a_policy_acts_as_the_fleet_does(request: pytest.FixtureRequest, name: str, agent: int) -> None:
    run: fedrl.Run = request.getfixturevalue(name)
    session = Session(run.config)
    session.fleet.load_learned(checkpoints.load(run.path / "weights.npz")[0])
    obs = np.random.default_rng(0).normal(size=(2, 50, 4)).astype(np.float32)
    expected = session.fleet.act(obs)[agent]
    policy = run.policy(agent)
    np.testing.assert_array_equal(policy.act(obs[agent]), expected)
    assert [int(policy.act(row)) for row in obs[agent]] == expected.tolist()
    assert policy.act(obs[agent, 0].tolist()).shape == ()


def test_agents_that_learned_alone_have_policies_of_their_own(shared: fedrl.Run, apart: fedrl.Run) -> None:
    obs = np.random.default_rng(0).normal(size=(500, 4))
    assert (shared.policy(0).act(obs) == shared.policy(1).act(obs)).all()
    assert (apart.policy(0).act(obs) != apart.policy(1).act(obs)).any()


def test_sampled_actions_are_drawn_from_a_seed_and_anew_in_each_call(shared: fedrl.Run) -> None:
    obs = np.zeros((200, 4))
    first, again, other = shared.policy(), shared.policy(), shared.policy(seed=1)
    drawn = [first.act(obs, sample=True) for _ in range(2)]
    assert 0 < drawn[0].mean() < 1 and (drawn[0] != drawn[1]).any()
    for actions in drawn:
        np.testing.assert_array_equal(again.act(obs, sample=True), actions)
    assert (other.act(obs, sample=True) != drawn[0]).any()


@pytest.mark.parametrize("obs", [[1, 2, 3], 1.0, "left", np.zeros((2, 3, 4)), [[1, 2], [3]]])
def test_an_observation_of_another_shape_is_refused(shared: fedrl.Run, obs: Any) -> None:
    with pytest.raises(fedrl.Mistake, match=r"an observation of this world is \[4\]"):
        shared.policy().act(obs)


def test_an_evaluation_is_repeated_and_may_be_in_another_world(shared: fedrl.Run) -> None:
    there = shared.evaluate(episodes=5)
    assert there.shape == (2, 5)
    np.testing.assert_array_equal(fedrl.evaluate(shared, episodes=5), there)
    np.testing.assert_array_equal(fedrl.evaluate(shared.path, episodes=5), there)
    shorter = shared.evaluate(episodes=5, world={"horizon": 5})
    assert (shorter == 5).all() and shared.config.world.horizon == 40
    assert shared.evaluate(episodes=2, best=True).shape == (2, 2)


def test_a_run_is_drawn(shared: fedrl.Run, tmp_path: Path) -> None:
    for path in (shared.plot(tmp_path / "a.png", x="wall"), shared.plot()):
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert shared._repr_png_() == (shared.path / "curve.png").read_bytes()


@pytest.mark.parametrize("strategy", ["fedavg", "alone"])
def test_a_resume_goes_on_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    whole = fedrl.run(CONF, out=tmp_path / "whole", quiet=True, strategy=strategy)
    fedrl.run(CONF, out=tmp_path / "parts", quiet=True, strategy=strategy, rounds=1)
    parts = fedrl.resume(tmp_path / "parts", rounds=3, federation={"wait_s": 1.0}, quiet=True)
    assert returns(parts) == returns(whole) and parts.config.federation.wait_s == 1.0
    expected, found = (checkpoints.load(run.path / "weights.npz")[0] for run in (whole, parts))
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows)


def test_a_run_is_opened_in_another_process(shared: fedrl.Run, tmp_path: Path) -> None:
    code = f"import fedrl; run = fedrl.load({str(shared.path)!r}); print(len(run.records), run.evaluate(2).shape)"
    done = lab.python(code, tmp_path)
    assert done.stdout.strip() == "3 (2, 2)", done.stderr


def test_mistakes_are_those_of_the_command_line(
    shared: fedrl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused: list[tuple[str, Any]] = [
        ("absent.toml", lambda: fedrl.run("absent.toml")),
        ("unknown key 'agnets'; did you mean 'agents'", lambda: fedrl.run(CONF, agnets=3)),
        ("'ppo.clip' must be", lambda: fedrl.run(CONF, ppo={"clip": -1})),
        (r"'td3.tau' means nothing here", lambda: fedrl.run(CONF, td3={"tau": 0.1})),
        ("--nodes is for the engine grpc", lambda: fedrl.run(CONF, nodes=2)),
        ("no module 'nowhere' for the plugin nowhere", lambda: fedrl.run(CONF, plugins="nowhere")),
        ("already holds a run", lambda: fedrl.run(CONF, out=shared.path)),
        ("'seed' is settled in a run that goes on", lambda: fedrl.resume(shared.path, seed=3)),
        (r"'ppo.clip' is settled in a run that goes on", lambda: fedrl.resume(shared.path, ppo={"clip": 0.1})),
        ("is finished, after 3 rounds", lambda: fedrl.resume(shared.path)),
        ("holds no run", lambda: fedrl.load(tmp_path)),
        ("the run has agents 0 to 1, not 2", lambda: shared.policy(2)),
        ("unknown key 'world.lenght'", lambda: shared.evaluate(world={"lenght": 3})),
        ("'x' is one of steps", lambda: shared.plot(x="hours")),
        ("nonsense", lambda: shared.plot(tmp_path / "a.png", metric="nonsense")),
        ("a.doc", lambda: shared.plot(tmp_path / "a.doc")),
    ]
    for sentence, act in refused:
        with pytest.raises(fedrl.Mistake, match=sentence):
            act()
    assert not list(tmp_path.iterdir())


def test_a_run_of_which_no_round_is_the_best_says_so(tmp_path: Path) -> None:
    run = fedrl.run(CONF, out=tmp_path / "run", quiet=True, evaluate_episodes=0, work=0)
    with pytest.raises(fedrl.Mistake, match=r"has no best.npz yet"):
        run.policy(best=True)


def returns(run: fedrl.Run) -> list[Any]:
    return [record["return"] for record in run.records]


def test_the_lines_of_the_readme_run(tmp_path: Path) -> None:
    (code,) = re.findall(r"## From Python\n\n```python\n(.*?)```", (lab.ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "conf").symlink_to(lab.ROOT / "conf")
    shorter = re.sub(r"rounds=(\d)0", r"rounds=\1", code).replace("episodes=50", "episodes=2")
    assert shorter != code
    done = lab.python(shorter, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "middle.png").exists()
