"""The demonstration as a user types it: quiet off a terminal, a table of kept rounds, a picture, and no traceback."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import cli.main
from cli import demo

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


def test_large_forgeries_are_dropped_and_everything_is_shown(tmp_path: Path) -> None:
    code, out, err = fedrl("demo", *SHORT, "--attack", "large-noise", "--out", tmp_path / "demo")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:2] == ["0", "honest"]
    assert ["9", "attacker", "0", "of", "12", "rounds"] in lines
    assert "recall 1.00" in out and "What to try next" in out
    assert str(tmp_path / "demo" / "curves.png") in out
    assert (tmp_path / "demo" / "curves.png").stat().st_size > 10_000
    # Outside a terminal: the attackers, and a line every tenth round and at the end, of both runs.
    lines = err.splitlines()
    assert "attackers: 7, 8, 9 (large-noise)" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        f"{run}: round {at}/12" for run in ("with the filter", "without the filter") for at in (10, 12)
    ]
    rules = {name: (tmp_path / "demo" / name / "metrics.jsonl").read_text().splitlines() for name in ("filter", "mean")}
    assert json.loads(rules["filter"][-1])["kept.policy"][-3:] == [0, 0, 0]
    assert json.loads(rules["mean"][-1])["kept.policy"] == [1] * 10
    # The same runs in a table: where they arrived, and what the filter did.
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


def test_without_attackers_precision_is_empty_though_honest_agents_were_dropped(tmp_path: Path) -> None:
    """In the metrics, in the summary and in a table beside runs that have one."""
    nobody = ("--set", "attack.byzantine=0", "--set", "attack.kind=none", "--set", "federation.sigma=0.001")
    summaries = {}
    for name, more in (("nobody", nobody), ("three", ("--set", "attack.kind=large-noise"))):
        code, out, err = fedrl("run", demo.CONF, *SHORT, *more, "--out", tmp_path / name, "--json")
        assert code == 0, err
        summaries[name] = json.loads(out)
    records = [json.loads(line) for line in (tmp_path / "nobody" / "metrics.jsonl").read_text().splitlines()]
    assert any(record["honest-dropped"] for record in records)
    assert not any("precision" in record for record in records)
    assert "precision" not in summaries["nobody"] and summaries["three"]["precision"] > 0.5
    figures = tmp_path / "table.json"
    code, out, _ = fedrl("table", tmp_path, "--group", "--reach", 9, "--x", "trajectories", "--out", figures)
    head, *rows = [re.split(r"\s{2,}", line) for line in out.splitlines()[-3:]]
    shown = {row[0].partition(",")[0]: row[head.index("precision")] for row in rows}
    assert code == 0 and shown["attack.byzantine=0"] == "-" and float(shown["attack.byzantine=3"]) > 0.5
    found = {label.partition(",")[0]: one["filter"] for label, one in json.loads(figures.read_text()).items()}
    assert "precision" not in found["attack.byzantine=0"] and found["attack.byzantine=3"]["precision"] > 0.5


def test_a_conf_that_makes_no_sense_is_one_sentence(tmp_path: Path) -> None:
    for wrong, words in (
        (("--attack", "noise"), "there is no attack 'noise'"),
        (("--set", "engine=grpc"), "`fedrl run` runs everything else"),
        (("--set", "fedpg.margins=2"), "margins"),
    ):
        code, out, err = fedrl("demo", *wrong, "--out", tmp_path / "demo")
        assert code == 2 and words in err and not out
    assert not (tmp_path / "demo").exists()


def test_kept_rounds_are_counted() -> None:
    records = [{"kept.policy": [1, 0]}, {"kept.policy": [1, 1]}, {"kept.policy": [None, 0]}]
    assert demo.kept_rounds(records, [1]) == [(0, "honest", "2 of 3 rounds"), (1, "attacker", "1 of 3 rounds")]
