"""Agents pulled towards their neighbours: what travels, what it costs, and that every engine does the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType

from cli.main import main
from client.session import Session
from core.errors import Mistake
from core.options import override
from runs import checkpoints
from runs.config import RunConfig, configure
from runs.directory import RunDirectory
from server.engines import prepare
from tests.server.federations import column, here, local
from tests.server.test_apps import Here

CONF = {
    "algorithm": "ppo", "strategy": "kl-ppo", "agents": 4, "rounds": 4, "steps": 0, "work": 2, "evaluate-episodes": 3,
    "tensorboard": False, "checkpoint-every": 2, "federation": {"deadline-s": 5.0, "give-up-s": 10.0},
    "world": {"id": "CartPole-v1", "copies": 2, "physics": {"length": [0.3, 0.5, 0.8, 1.2]}},
    "ppo": {"rollout": 16, "hidden": [8], "learning-rate": 0.01, "penalty": True, "penalty-coef": 5.0},
    "kl": {"matrix": "pairs"},
}  # fmt: skip
SIZE = 4 * (4 * 8 + 8 + 8 * 2 + 2)
DIRECTED = '{"edges": [[0, 1, 1], [0, 2, 3], [1, 0, 1]]}'  # 3 is on its own


def config(*settings: str, **changes: Any) -> RunConfig:
    return configure(override(CONF | changes, list(settings)))


def weights(run: RunDirectory) -> dict[str, np.ndarray]:
    return checkpoints.load(run.weights)[0]


# --- what travels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "down", "up"),
    [
        ("pairs", [1, 1, 1, 1], [1, 1, 1, 1]),
        ("complete", [3, 3, 3, 3], [1, 1, 1, 1]),
        ("ring", [2, 2, 2, 2], [1, 1, 1, 1]),
        ("star", [1, 1, 1, 1], [1, 1, 1, 1]),
        (DIRECTED, [2, 1, 0, 0], [1, 1, 1, 0]),
    ],
)
def test_bytes_are_edges_times_the_size_of_a_policy(
    tmp_path: Path, matrix: str, down: list[int], up: list[int]
) -> None:
    run = local(tmp_path / "run", config(kl={"matrix": matrix}))
    assert column(run, "bytes_down") == [[0] * 4, *([[SIZE * edges for edges in down]] * 3)]
    assert column(run, "bytes_up") == [[SIZE * sends for sends in up]] * 4
    assert "value" not in run.read_metrics()[-1]["parts"]


@pytest.mark.parametrize(
    "setting",
    [
        "kl.matrix=[[0, 1, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]",
        f"kl.matrix={DIRECTED}",
        "kl.matrix.edges=[[0, 1, 1], [0, 2, 3], [1, 0, 1]]",
    ],
)
def test_a_graph_of_ones_own_runs_here_and_on_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    given = configure(override(CONF | {"kl": {}}, [setting, "rounds=2"]))
    one = local(tmp_path / "one", given)
    away = here(tmp_path / "away", replace(given, engine="grpc"), monkeypatch)
    for run in (one, away):
        assert column(run, "bytes_down")[1] == [SIZE * edges for edges in (2, 1, 0, 0)]


def test_four_agents_are_one_batched_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, train = list[int](), Session.train

    def counted(own: Session, work: int, rows: Any, *rest: Any) -> Any:
        trained.append(len(rows))
        return train(own, work, rows, *rest)

    monkeypatch.setattr(Session, "train", counted)
    local(tmp_path / "run", config())
    assert trained == [4] * 4


def test_what_is_measured(tmp_path: Path) -> None:
    records = local(tmp_path / "run", config(kl={"matrix": DIRECTED})).read_metrics()
    first, last = records[0], records[-1]
    assert not [name for name in first if name.startswith("kl")], "nobody had sent a policy yet"
    known = [[k for k, value in enumerate(last[f"kl.{j}"]) if value is not None] for j in range(3)]
    assert known == [[1], [0], [0]]
    np.testing.assert_allclose(last["kl-neighbours"][0], (last["kl.1"][0] + last["kl.2"][0]) / 2, rtol=1e-6)
    assert last["kl-neighbours"][2:] == [None, None]
    assert last["penalty"][0] > 0 == last["penalty"][2]
    shares = [last[f"share-{name}"] for name in ("policy", "value", "entropy", "penalty")]
    np.testing.assert_allclose(np.sum(shares, axis=0), np.ones(4), rtol=1e-5)
    wanted = {"clip-fraction", "explained-variance", "entropy", "gradient-norm", "policy-loss", "value-loss"}
    assert wanted <= last.keys()
    assert (last["neighbours"], last["neighbours-stale"], last["neighbours-left-out"]) == (
        [2, 1, 0, 0],
        [0] * 4,
        [0] * 4,
    )


def test_watching_measures_all_pairs_and_changes_nothing(tmp_path: Path) -> None:
    blind = local(tmp_path / "blind", config())
    watched = local(tmp_path / "watched", config("kl.watch=true"))
    np.testing.assert_array_equal(weights(blind)["policy"], weights(watched)["policy"])
    last = watched.read_metrics()[-1]
    known = [[last[f"kl.{j}"][k] is not None for j in range(4)] for k in range(4)]
    assert known == (~np.eye(4, dtype=bool)).tolist()


# --- what it comes to -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"penalty": False}, {"penalty-coef": 0.0}])
@pytest.mark.parametrize("normalised", [False, True])
def test_without_a_pull_it_is_independent_ppo_bit_for_bit(
    tmp_path: Path, settings: dict[str, Any], normalised: bool
) -> None:
    ppo = CONF["ppo"] | {"normalise-observations": normalised, "scale-rewards": normalised}
    alone = local(tmp_path / "alone", config(strategy="alone", ppo=ppo | {"penalty": False}))
    linked = local(tmp_path / "linked", config(ppo=ppo | settings))
    assert column(linked, "return") == column(alone, "return")
    one, other = weights(alone), weights(linked)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_a_pull_brings_neighbours_closer(tmp_path: Path) -> None:
    """The KL falls with every larger coefficient on frozen data (tests/agents/test_ppo.py); here agents also learn."""
    free, pulled = (
        local(tmp_path / str(coef), config(f"ppo.penalty-coef={coef}", "rounds=8", "work=4")) for coef in (0, 1)
    )
    far, near = (np.mean(column(run, "kl-neighbours")[-1]) for run in (free, pulled))
    assert near < far / 2


@pytest.mark.parametrize("matrix", ["pairs", DIRECTED])
def test_two_rounds_a_stop_and_two_more_are_four(tmp_path: Path, matrix: str) -> None:
    kl = {"matrix": matrix}
    whole = local(tmp_path / "whole", config(kl=kl))
    local(tmp_path / "parts", config("rounds=2", kl=kl))
    parts = local(tmp_path / "parts", config(kl=kl))
    one, other = whole.load_checkpoint()[0], parts.load_checkpoint()[0]
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    for name in ("return", "kl-neighbours", "bytes_down", "neighbours"):
        assert column(whole, name) == column(parts, name)


@pytest.mark.parametrize(
    "settings",
    [
        ["kl.matrix=pairs"], ["kl.matrix=star"], [f"kl.matrix={json.dumps(DIRECTED)}"],
        ["kl.matrix=ring", "kl.watch=true", "ppo.normalise-observations=true", "ppo.scale-rewards=true"],
        ["world.id=Pendulum-v1", "world.horizon=20", "world.physics={}", "ppo.penalty-direction=reverse"],
    ],
)  # fmt: skip
def test_agents_in_sessions_of_their_own_do_what_a_fleet_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    given = config(*settings)
    fleet, parties = local(tmp_path / "local", given), here(tmp_path / "here", given, monkeypatch)
    for name in ("return", "kl-neighbours", "bytes_down", "bytes_up", "neighbours"):
        one, other = (np.array([row or [None] * 4 for row in column(run, name)], float) for run in (fleet, parties))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6, err_msg=name)
    mine, theirs = weights(fleet)["policy"], weights(parties)["policy"]
    known = np.isfinite(theirs).all(axis=1)
    assert known.tolist() == ([True, True, True, False] if "edges" in given.kl.matrix else [True] * 4)
    np.testing.assert_allclose(mine[known], theirs[known], rtol=0, atol=1e-5)


class Silent(Here):
    """Agent 1 answers no training between the first round and the sixth."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        asked = list(messages)
        names = super().push_messages(asked)
        self.lost = getattr(self, "lost", set())
        for name, message in zip(names, asked, strict=True):
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if kind == MessageType.TRAIN and node == 101 and 1 < message.content["fedrl"]["round"] < 6:
                self.lost.add(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages([name for name in message_ids if name not in self.lost])


def test_a_missing_neighbour_is_stale_and_then_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["rounds=7", "kl.max-age=1", "federation.deadline-s=0.05", "federation.patience=9", "kl.matrix=complete"]
    run = here(tmp_path / "here", config(*settings), monkeypatch, Silent)
    assert [missed[1] for missed in column(run, "missed")] == [0, 1, 1, 1, 1, 0, 0]
    assert [known[0] for known in column(run, "neighbours")] == [0, 3, 3, 2, 2, 2, 3]
    assert [stale[0] for stale in column(run, "neighbours-stale")] == [0, 0, 1, 0, 0, 0, 0]
    assert [out[0] for out in column(run, "neighbours-left-out")] == [3, 0, 0, 1, 1, 1, 0]
    assert [down[0] // SIZE for down in column(run, "bytes_down")] == [0, 3, 3, 2, 2, 2, 3]


def test_one_agent_is_plain_ppo(tmp_path: Path) -> None:
    world = CONF["world"] | {"physics": {}}
    for matrix in ("complete", "star", "ring", "pairs"):
        run = local(tmp_path / matrix, config(agents=1, world=world, kl={"matrix": matrix}))
        assert column(run, "bytes_down") == column(run, "bytes_up") == [[0]] * 4
    alone = local(tmp_path / "alone", config("ppo.penalty=false", agents=1, world=world, strategy="alone"))
    assert column(alone, "return") == column(run, "return")


def test_policies_that_came_from_nodes_can_be_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Value functions stayed with their owners; acting does not need them."""
    run = here(tmp_path / "here", config("ppo.normalise-observations=true"), monkeypatch)
    from core.options import nested

    run.write_conf(nested(config("ppo.normalise-observations=true")))
    assert "value" not in weights(run)
    monkeypatch.setattr(sys, "argv", ["fedrl", "eval", str(run.path), "--episodes", "2", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["agents"]) == 4


@pytest.mark.parametrize(("rule", "misled"), [("auto", True), ("median", False), ("geometric-median", False)])
def test_a_liar_in_a_star_pulls_everybody_unless_a_rule_survives_it(tmp_path: Path, rule: str, misled: bool) -> None:
    """What the honest are told to be near to is far off with the liar in the mean, and near where the rule copes."""
    given = config("kl.matrix=star", "attack.kind=large-noise", "attack.agents=[3]", f"federation.rule={rule}")
    given = replace(given, federation=replace(given.federation, byzantine=0 if misled else 1))
    far = np.array(column(local(tmp_path / "run", given), "kl-neighbours")[1:], float)[:, :3]
    assert far.min() > 0.4 if misled else far.max() < 0.2, far


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["kl.matrix=circle"], "'kl.matrix' is ring"),
        (['kl.matrix="[[0, 1], [1, 0]]"'], "for 2 agents, and the run has 4"),
        (["strategy=alone"], "'ppo.penalty' needs neighbours"),
        (["strategy=fedavg"], "'ppo.penalty'"),
        (["algorithm=td3", "world.id=Pendulum-v1", "world.physics={}"], "the strategy kl-ppo is for ppo, not for td3"),
        (["kl.max-age=-1"], "'kl.max-age' must be at least 0"),
        (["federation.rule=median"], 'mean nothing without kl.matrix = "star"'),
        (["federation.byzantine=1"], "mean nothing without kl.matrix"),
        (["federation.mixing=true"], "mean nothing without kl.matrix"),
        (["kl.matrix=star", "federation.rule=krum", "federation.byzantine=1"], "'krum' needs at least 5 parties"),
        (["federation.parts=value"], "'federation.parts' cannot be 'value'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(settings: list[str], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        prepare(config(*settings))


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["grpc", "ray"])
def test_engines_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    import tomli_w

    monkeypatch.setenv("FEDRL_HOME", str(tmp_path / "home"))
    conf = tmp_path / "conf.toml"
    # Whoever compiles first is slow: nobody may be left behind for that.
    conf.write_text(tomli_w.dumps(CONF | {"federation": {"deadline-s": 120.0}}))
    for name in ("local", engine):
        command = [sys.executable, "-m", "cli.main", "run", str(conf), "--out", str(tmp_path / name), "--engine", name]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
    one, other = (RunDirectory.open(tmp_path / name) for name in ("local", engine))
    np.testing.assert_allclose(column(one, "return"), column(other, "return"), rtol=1e-4)
    assert column(one, "bytes_down") == column(other, "bytes_down")
