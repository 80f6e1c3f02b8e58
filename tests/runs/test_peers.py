"""Directories of peers as one run: rows by peer, peers that were away, rounds that wait for slow peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runs import checkpoints
from runs.directory import RunDirectory
from runs.groups import join_peers, read_runs
from runs.peers import Together, joined, save_weights


def record(peer: int, number: int, **more: Any) -> dict[str, Any]:
    return {
        "round": number, "peers": [peer], "return": [10.0 * peer + number], "steps": [100 * number], "missed": [peer],
        "batch": 7, "round_s": 0.1 * (peer + 1), "reasons": {"huge": peer},
    } | more  # fmt: skip


def test_lists_get_a_row_per_peer() -> None:
    (one,) = joined([[record(1, 1)], [record(0, 1)], [record(2, 1, diameter=[None])]])
    assert one["return"] == [1.0, 11.0, 21.0] and one["missed"] == [0, 1, 2]
    assert one["batch"] == 7 and one["round_s"] == 0.1 * 3 and one["reasons"] == {"huge": 3}
    assert one["diameter"] == [None, None, None] and "peers" not in one


def test_a_peer_that_was_away_has_no_return_and_keeps_its_steps() -> None:
    runs = [[record(0, n) for n in range(1, 5)], [record(1, 1), record(1, 4)]]
    found = joined(runs)
    assert [one["return"] for one in found[1:]] == [[2.0, None], [3.0, None], [4.0, 14.0]]
    assert [one["steps"] for one in found] == [[100, 100], [200, 100], [300, 100], [400, 400]]
    assert found[1]["missed"] == [0, 0]


def made(path: Path, **conf: Any) -> RunDirectory:
    return RunDirectory.create(path, {"agents": 2, "seed": 4, **conf})


def test_a_round_is_reported_when_all_active_peers_or_the_others_long_ago_have_done_it(tmp_path: Path) -> None:
    run = made(tmp_path)
    both = Together(run, 2)
    assert both.news([True, True]) == [], "nobody has begun"
    parts = [made(tmp_path / "peers" / str(peer)) for peer in range(2)]
    parts[0].log(record(0, 1))
    parts[0].log(record(0, 2))
    assert both.news([True, True]) == []
    parts[1].log(record(1, 1))
    assert [one["round"] for one in both.news([True, True])] == [1]
    assert [one["round"] for one in both.news([True, False])] == [2], "the other has ended"
    for number in range(3, 3 + both.patience):
        parts[0].log(record(0, number))
    assert both.news([True, True]) == [], "it may still come to the third"
    parts[0].log(record(0, 3 + both.patience))
    assert [one["round"] for one in both.news([True, True])] == [3]
    assert [one["round"] for one in run.read_metrics()] == [1, 2, 3]


def test_weights_of_all_peers_are_rows_of_one_file(tmp_path: Path) -> None:
    run = made(tmp_path)
    both = Together(run, 2)
    for peer in range(2):
        made(tmp_path / "peers" / str(peer))
    checkpoints.save(tmp_path / "peers" / "1" / "weights.npz", {"policy": np.full((1, 3), 1.0)}, {"algorithm": "ppo"})
    assert save_weights(run, both.parts) == [0] and not run.weights.exists()
    checkpoints.save(tmp_path / "peers" / "0" / "weights.npz", {"policy": np.zeros((1, 3))}, {"algorithm": "ppo"})
    assert save_weights(run, both.parts) == []
    assert checkpoints.load(run.weights)[0]["policy"].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_plots_and_tables_see_one_run(tmp_path: Path) -> None:
    roster = {"gossip": {"roster": {"0": "a:1", "1": "b:1"}}}
    for peer in range(2):
        run = made(tmp_path / "here" / f"peer-{peer}", **roster)
        for number in (1, 2):
            run.log(record(peer, number))
    other = made(tmp_path / "other", seed=5)
    other.log({"round": 1, "return": [1.0, 2.0], "steps": [5, 5]})
    found = {run.name: run.records for run in read_runs([tmp_path], print)}
    assert [one["return"] for one in found["peer-0"]] == [[1.0, 11.0], [2.0, 12.0]]
    assert len(found) == 2 and found["other"][0]["return"] == [1.0, 2.0]


def test_peers_of_a_run_that_is_there_are_in_it(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.log({"round": 1, "return": [1.0, 2.0], "steps": [5, 5]})
    for peer in range(2):
        made(tmp_path / "run" / "peers" / str(peer)).log(record(peer, 1))
    assert [one.name for one in read_runs([tmp_path], print)] == ["run"]
    assert join_peers(read_runs([tmp_path], print)) == read_runs([tmp_path], print)
