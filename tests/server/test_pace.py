"""How long rounds are, and what is said of a run whose rounds end every episode before its own end."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.pace import cut
from client.session import Session
from core.options import override
from runs.config import RunConfig, configure
from runs.directory import RunDirectory
from server.engines import prepare
from tests.server.federations import column, local

ROOT = Path(__file__).parents[2]
CUT = "EPISODES ARE CUT"
# A world that cannot be saved, whose episodes never end before 40 steps; nobody learns.
CONF: dict[str, Any] = {
    "algorithm": "td3", "agents": 2, "rounds": 3, "steps": 0, "evaluate-episodes": 0, "tensorboard": False,
    "world": {"id": "MountainCarContinuous-v0", "horizon": 40}, "td3": {"hidden": [8], "learning-starts": 10**6},
}  # fmt: skip


def config(*settings: str) -> RunConfig:
    return configure(override(CONF, list(settings)))


def test_by_default_td3_finishes_episodes_of_a_world_that_cannot_be_saved(tmp_path: Path) -> None:
    given = config("world={}", "world.id=LunarLanderContinuous-v3")
    run = local(tmp_path / "run", given)
    assert all(min(episodes) > 0 for episodes in column(run, "episodes"))
    assert run.notes() == []


@pytest.mark.parametrize("world", ["BipedalWalker-v3", "LunarLanderContinuous-v3", "Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("algorithm", ["ppo", "td3", "policy-gradient"])
def test_by_default_no_round_cuts_an_episode(algorithm: str, world: str) -> None:
    if (algorithm, world) == ("td3", "CartPole-v1"):
        pytest.skip("td3 needs continuous actions")
    given = config(f"algorithm={algorithm}", "world={}", f"world.id={world}", "world.copies=2")
    session = Session(given, [0])
    usual = {"td3": 2 * max(1000, session.worlds.horizon if not session.worlds.exact else 0), "policy-gradient": 10}
    usual["ppo"] = 13 if world == "BipedalWalker-v3" else 10  # of 128 steps each; its episodes have 1,600
    assert session.round_work == usual[algorithm]
    assert cut(given, session) == []
    session.close()


def test_an_episode_may_last_over_many_short_rounds(tmp_path: Path) -> None:
    given = config("work=10", "rounds=8", "settle-every=4", "checkpoint-every=4")
    run = local(tmp_path / "run", given)
    assert column(run, "episodes") == [[0, 0]] * 3 + [[1, 1]] + [[0, 0]] * 3 + [[1, 1]]
    assert run.notes() == []


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.toml")), ids=lambda path: path.stem)
def test_the_confs_run_at_the_pace_that_they_had(path: Path) -> None:
    """10 units a round, unless the conf says otherwise."""
    table = tomllib.loads(path.read_text())
    if table["world"]["id"].startswith("HalfCheetah"):
        pytest.importorskip("mujoco")
    given = configure(override(table, ["evaluate-episodes=0", "world.workers=0"]))
    session = Session(given, [0])
    assert session.round_work == table.get("work", 10)
    assert cut(given, session) == []
    session.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("work=10 settle-every=1", "after 10 of its 40 steps"),
        ("work=10 settle-every=1", " to at least 40, or both 'settle-every' and 'checkpoint-every' to at least 4."),
        ("work=10 settle-every=2", "after 20 of its 40 steps"),
        ("work=10 settle-every=4 checkpoint-every=3", "after 30 of its 40 steps"),
        ("work=10 world.copies=4 settle-every=1", "'work' to at least 160, or both"),
        ("engine=ray work=10", "if you set 'work' to at least 40."),
        ("engine=ray strategy=fedavg-td3 steps=100 rounds=0 sync.critic-every=10 sync.actor-every=20", "local or grpc"),
        ("algorithm=ppo world.id=Acrobot-v1 ppo.rollout=5 work=3 settle-every=1", "after 15 of its 40 steps"),
        ("algorithm=ppo world.id=Acrobot-v1 ppo.rollout=5 work=3 settle-every=1", "'work' to at least 8, or both"),
        ("work=40 settle-every=1", ""),
        ("work=20 settle-every=2", ""),
        ("work=0", ""),
        ("engine=ray", ""),
        ("algorithm=policy-gradient world.id=Acrobot-v1 work=1 settle-every=1", ""),
        ("world.id=Pendulum-v1 work=1 settle-every=1", ""),
    ],
)
def test_rounds_that_cut_episodes_are_named_with_what_to_do(settings: str, words: str) -> None:
    given = config(*settings.split())
    session = prepare(given)
    found = " ".join(cut(given, session))
    assert words in found
    assert bool(found) == bool(words)
    session.close()


@pytest.mark.parametrize("engine", ["local", "grpc", "gossip", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_that_cuts_episodes_says_so_once(engine: str, tmp_path: Path) -> None:
    """On the screen and in the run's notes; not again when it goes on."""
    strategy = "gossip" if engine == "gossip" else "alone"
    path, out = tmp_path / "conf.toml", tmp_path / "run"
    path.write_text(tomli_w.dumps(CONF | {"work": 10, "settle-every": 1, "strategy": strategy, "engine": engine}))
    assert fedrl(path, "--out", out).count(CUT) == 1
    assert sum(CUT in words for words in RunDirectory.open(out).notes()) == 1
    if engine == "local":
        assert CUT not in fedrl("--resume", out, "--set", "rounds=4")


def fedrl(*arguments: object) -> str:
    """What a run says to people."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "run", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_gossip_in_one_process_says_so_too(tmp_path: Path) -> None:
    path, out = tmp_path / "conf.toml", tmp_path / "run"
    path.write_text(tomli_w.dumps(CONF | {"work": 10, "settle-every": 1, "strategy": "gossip"}))
    assert fedrl(path, "--out", out).count(CUT) == 1
    assert sum(CUT in words for words in RunDirectory.open(out).notes()) == 1
