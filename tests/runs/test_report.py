"""What a run tells people: the line of a round, the picture and the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runs.directory import RunDirectory
from runs.report import describe, finish


def record(number: int, returns: list[float | None]) -> dict[str, Any]:
    zeros = {name: [0, 0, 0] for name in ("bytes_up", "bytes_down", "missed", "refused", "left-out")}
    return {"round": number, "return": returns, "steps": [number] * 3, "wall_s": 1.0} | zeros


def test_a_round_s_line_names_who_had_no_say() -> None:
    one = record(1, [1.0, 2.0, 3.0])
    assert "dropped" not in describe(one | {"kept.policy": [1, None, 1]}, 0, 0)
    assert describe(one | {"kept.actor": [1, None, 0], "kept.critic": [0, 1, 1]}, 0, 0).endswith("dropped: 0, 2")


def test_a_finished_run_has_its_picture_and_its_summary(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    for number in (1, 2):
        run.log(record(number, [1.0, None, 2.0]))
    told = finish(run, {"rounds": 2, "final_return": float("nan")}, "ppo", "CartPole-v1")
    assert told["picture"] == str(run.curve)
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    # JSON has no nan.
    assert json.loads(run.summary.read_text()) == {"rounds": 2, "final_return": None, "picture": str(run.curve)}


def test_a_run_that_measured_no_return_has_no_picture(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    run.log(record(1, [None, None, None]))
    assert finish(run, {"rounds": 1}, "ppo", "CartPole-v1") == {"rounds": 1}
    assert not run.curve.exists()
    assert json.loads(run.summary.read_text()) == {"rounds": 1}
