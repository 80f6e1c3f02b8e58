"""What a party refuses of a run that somebody else thought up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from client.party import Party, run_name
from core.errors import Mistake

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
