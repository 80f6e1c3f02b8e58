"""What a party refuses of a run that somebody else thought up."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from pathlib import Path

import pytest
from flwr.app import Message, MessageType, RecordDict

from client.party import KEPT, Party, run_name
from core.errors import Mistake
from core.options import flatten
from runs.config import from_flower, from_user

MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Mine-v0", CartPoleEnv, max_episode_steps=5)
"""


def test_a_run_imports_nothing_that_the_node_was_not_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worlds_of_theirs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    flat = {"world.id": "worlds_of_theirs:Mine-v0", "algorithm": "policy-gradient", "strategy": "fedavg", "rounds": 1}
    for modules in ([], [""], ["worlds_of"]):
        with pytest.raises(Mistake, match=r"asks to import 'worlds_of_theirs' .* --worlds worlds_of_theirs"):
            Party(0, flat, "run", tmp_path / "state", modules=modules)
    assert "worlds_of_theirs" not in sys.modules
    Party(0, flat, "run", tmp_path / "state", modules=["worlds_of_theirs"]).close()
    assert "worlds_of_theirs" in sys.modules


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "a\0b", "a b", "~", "$HOME"])
def test_a_name_of_a_run_leads_nowhere_else(name: str) -> None:
    with pytest.raises(Mistake, match="a run's name holds letters"):
        run_name({"run": name}, 1)
    assert run_name({"run": "first-run_2.b"}, 1) == "first-run_2.b"
    assert run_name({"run": ""}, 7) == "run-7"


@pytest.mark.parametrize("key", ["kl.matrix", "gossip.topology"])
def test_a_run_that_is_sent_opens_no_file(key: str, tmp_path: Path) -> None:
    """A device would fill the memory, a pipe would hang, a file's content is nobody's affair."""
    (tmp_path / "mine.json").write_text("[[0, 1], [1, 0]]")
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path / "mine.json")):
        with pytest.raises(Mistake, match=f"'{key}' is .* or JSON; files are read where a conf is"):
            from_flower({"agents": 2, key: name})
    for name in ("/dev/zero", str(tmp_path / "pipe")):
        table, _, last = key.partition(".")
        with pytest.raises(Mistake, match=f"'{key}' is .* or a file that holds it, not '{name}'"):
            from_user({"agents": 2, table: {last: name}})


@pytest.mark.parametrize("key", ["kl.matrix", "gossip.topology"])
def test_a_file_that_a_person_names_travels_as_what_it_holds(key: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[[0, 1],\n [1, 0]]\n")
    table, _, last = key.partition(".")
    config = from_user({"agents": 2, table: {last: str(tmp_path / "mine.json")}})
    assert flatten(config)[key] == "[[0,1],[1,0]]"
    assert from_flower(flatten(config)) == config
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(Mistake, match="holds no JSON"):
        from_user({"agents": 2, table: {last: str(tmp_path / "deep.json")}})


def test_old_runs_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    """Folders of a user's own, older than all runs, stay: also those that look a little like ours."""
    flat = {"world.id": "CartPole-v1", "algorithm": "policy-gradient", "strategy": "fedavg", "rounds": 1}
    foreign = {"papers/thesis.tex", "mixed/agent-0.npz", "mixed/notes.txt", "chat/peers/anna.txt", "nets/peers/0/a.txt"}
    ours = {f"run-{k}/agent-0.npz" for k in range(25)} | {"run-0/.agent-0.npz.77", "run-1/peers/0/metrics.jsonl"}
    for name in foreign | ours:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run-24")
    for folder in tmp_path.iterdir():
        number = int(folder.name[4:]) if folder.name.startswith("run-") else -1
        if not folder.is_symlink():
            os.utime(folder, (2000 + number, 2000 + number))
    Party(0, flat, "new", tmp_path).close()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"run-{k}/agent-0.npz" for k in range(25 - KEPT + 1, 25)} == {name for name in left if "run-" in name}
    assert left >= foreign
    assert (tmp_path / "empty").is_dir()


def test_a_closed_party_leaves_no_fleet_in_memory(tmp_path: Path) -> None:
    """A node lives for as many runs as come, and a fleet with its replay may be gigabytes."""
    party = Party(0, {"algorithm": "policy-gradient", "strategy": "fedavg", "rounds": 1}, "run", tmp_path / "state")
    assert "party" in party.answer(Message(RecordDict(), 1, MessageType.QUERY))["fedrl"]
    session, fleet = weakref.ref(party.session), weakref.ref(party.session.fleet)
    party.close()
    del party
    gc.collect()
    assert session() is None and fleet() is None
