"""The demonstration as a user types it: quiet off a terminal, a table of who was kept, a picture, and no traceback."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import cli.main
from cli import demo, screen

SHORT = ("--set", "rounds=12", "--set", "fedpg.batch-min=3", "--set", "fedpg.batch-max=4", "--set", "world.copies=4")


def fedrl(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.argv", ["fedrl", *map(str, arguments)])
        patch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as ended:
            cli.main.main()
    assert "Traceback" not in err.getvalue()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def test_large_lies_are_found_and_everything_is_shown(tmp_path: Path) -> None:
    code, out, err = fedrl("demo", *SHORT, "--attack", "large-noise", "--out", tmp_path / "demo")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:2] == ["0", "honest"]
    assert ["9", "liar", "0", "of", "12", "rounds"] in lines
    assert "recall 1.00" in out and "what to try next" in out
    assert str(tmp_path / "demo" / "curves.png") in out
    assert (tmp_path / "demo" / "curves.png").stat().st_size > 10_000
    # Off a terminal: who lies, and a line every tenth round and at the end, of both runs.
    told = err.splitlines()
    assert "7, 8, 9 of them lie: large-noise" in told[0]
    assert [line.split("  ")[0] for line in told[1:]] == [
        f"{run}: round {at}/12" for run in ("with the filter", "without it") for at in (10, 12)
    ]
    rules = {name: (tmp_path / "demo" / name / "metrics.jsonl").read_text().splitlines() for name in ("filter", "mean")}
    assert json.loads(rules["filter"][-1])["kept.policy"][-3:] == [0, 0, 0]
    assert json.loads(rules["mean"][-1])["kept.policy"] == [1] * 10
    # The same runs in a table: where they got to, and what the filter did.
    figures = tmp_path / "table.json"
    code, out, err = fedrl("table", tmp_path / "demo", "--group", "--reach", 9, "--x", "trajectories", "--out", figures)
    assert code == 0 and "mean 9 at trajectories" in out and not err
    ways = json.loads(figures.read_text())
    assert ways["federation.rule=auto"]["filter"]["recall"] == 1.0
    assert ways["federation.rule=mean"]["filter"]["recall"] == 0.0
    reach = ways["federation.rule=auto"]["reach"]
    assert reach["x"] == "trajectories" and 3 <= reach["mean"] == reach["each"][0] < 60
    assert fedrl("table", tmp_path / "demo", "--reach", 9)[0] == 2
    assert fedrl("table", tmp_path / "demo", "--group", "--reach", 9, "--x", "days")[0] == 2


def test_a_conf_that_makes_no_sense_is_one_sentence(tmp_path: Path) -> None:
    for wrong, words in (
        (("--attack", "noise"), "there is no attack 'noise'"),
        (("--set", "engine=grpc"), "`fedrl run` runs everything else"),
        (("--set", "fedpg.margins=2"), "margins"),
    ):
        code, out, err = fedrl("demo", *wrong, "--out", tmp_path / "demo")
        assert code == 2 and words in err and not out
    assert not (tmp_path / "demo").exists()


def test_who_was_kept_counts_rounds() -> None:
    records = [{"kept.policy": [1, 0]}, {"kept.policy": [1, 1]}, {"kept.policy": [None, 0]}]
    columns = [list(column.cells) for column in demo.who_was_kept(records, [1]).columns]
    assert columns == [["0", "1"], ["honest", "liar"], ["2 of 3 rounds", "1 of 3 rounds"]]


def test_a_round_s_line_names_who_had_no_say() -> None:
    record = {"round": 1, "return": [1.0, 2.0, 3.0], "steps": [1, 1, 1], "wall_s": 1.0}
    record |= {name: [0, 0, 0] for name in ("bytes_up", "bytes_down", "missed", "refused", "left-out")}
    assert "  return 2.0  " in screen.describe(record, 0, 0)
    claimed = record | {"return": [1.0, 1e6, 2.0], "steps": [0, 3, 10**9]}
    assert "  steps 3  median return 2.0  " in screen.describe(claimed, 0, 0, reported=True)
    assert "  return -  " in screen.describe(record | {"return": [None] * 3}, 0, 0)
    assert "dropped" not in screen.describe(record | {"kept.policy": [1, None, 1]}, 0, 0)
    assert screen.describe(record | {"kept.actor": [1, None, 0], "kept.critic": [0, 1, 1]}, 0, 0).endswith(
        "dropped: 0, 2"
    )
