"""A run's directory: nothing is lost, and a resumed run writes its rounds again."""

from __future__ import annotations

import os

import numpy as np
import pytest

from core.errors import Failure, Mistake
from runs.directory import RunDirectory, read_toml


def test_create_and_open(tmp_path):
    run = RunDirectory.create(tmp_path / "a" / "run", {"seed": 3, "world": {"id": "CartPole-v1"}})
    assert RunDirectory.open(tmp_path / "a" / "run").read_conf() == {"seed": 3, "world": {"id": "CartPole-v1"}}
    assert run.read_metrics() == []


def test_a_directory_that_holds_a_run_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"seed": 1})
    run.log({"round": 1})
    with pytest.raises(Mistake, match="already holds a run"):
        RunDirectory.create(tmp_path / "run", {"seed": 2})
    assert run.read_conf() == {"seed": 1}
    assert run.read_metrics() == [{"round": 1}]


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    for name in ("conf.toml", "notes.txt", "b", "a"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(Mistake, match=r"holds other files \(a, b, conf\.toml, \.\.\.\): .* choose another --out"):
        RunDirectory.create(tmp_path, {"seed": 1})
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
    assert len(list(tmp_path.iterdir())) == 4


def test_an_empty_folder_and_the_log_of_a_sweep_are_no_other_files(tmp_path):
    (tmp_path / "run.log").write_text("begins\n")
    assert RunDirectory.create(tmp_path, {"seed": 1}).read_conf() == {"seed": 1}


def test_a_file_in_its_place_is_a_failure(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(Failure, match="could not be created"):
        RunDirectory.create(tmp_path / "run", {})
    assert (tmp_path / "run").read_text() == "mine"


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(Mistake, match="holds no run"):
        RunDirectory.open(tmp_path)


def test_rewind(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    for number in range(1, 6):
        run.log({"round": number, "return": [0.5, None]})
    run.rewind(3)
    assert [record["round"] for record in run.read_metrics()] == [1, 2, 3]
    run.log({"round": 4})
    assert [record["round"] for record in run.read_metrics()] == [1, 2, 3, 4]


def test_a_line_cut_short_ends_the_records(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.log({"round": 1})
    run.log({"round": 2})
    whole = run.metrics.read_text()
    run.metrics.write_text(whole[:-5])
    assert run.read_metrics() == [{"round": 1}]
    run.rewind(1)
    run.log({"round": 2})
    assert run.metrics.read_text() == whole


def test_weights_are_plain(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.save_weights({"policy": np.ones((2, 3), np.float32)}, {"algorithm": "ppo"})
    with np.load(run.weights, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["policy"], np.ones((2, 3)))


def test_toml_that_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(Mistake, match="no file"):
        read_toml(tmp_path / "missing.toml")
    for content in (b"a = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(Mistake, match=r"bad\.toml"):
            read_toml(tmp_path / "bad.toml")
    with pytest.raises(Mistake, match="cannot be read"):
        read_toml(tmp_path)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    returns = {2: 50.0, 4: 90.0, 6: 10.0, 8: 20.0, 10: 30.0}
    for number in returns:
        known = {done: value for done, value in returns.items() if done <= number}
        run.save_checkpoint({"a": np.full(2, number)}, {"round": number}, known, keep=2)
    assert list(run.saved_rounds()) == [4, 8, 10]
    arrays, meta = run.load_checkpoint()
    assert (arrays["a"].tolist(), meta) == ([10, 10], {"round": 10})


def test_one_process_at_a_time(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    with run.held(), pytest.raises(Mistake, match="another process is at work"), RunDirectory(run.path).held():
        pass
    with run.held():
        pass


def test_a_run_keeps_its_name_when_it_moves(tmp_path):
    name = RunDirectory.create(tmp_path / "my run", {}).name
    (tmp_path / "my run").rename(tmp_path / "elsewhere")
    assert RunDirectory.open(tmp_path / "elsewhere").name == name
    assert name.startswith("my-run-")


def test_last_words_are_raised_as_what_they_were(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.raise_word()
    run.leave_word(Mistake("no such key"))
    with pytest.raises(Mistake, match="no such key"):
        run.raise_word()
    run.leave_word(OSError("the disk is full"))
    with pytest.raises(Failure, match="the disk is full"):
        run.raise_word()
    run.go_on()
    run.raise_word()


# A directory that somebody else made.


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "checkpoints", "logs/node-0.log", "events.log"])
def test_a_directory_with_a_link_in_it_is_refused_and_what_it_leads_to_stays(tmp_path, name):
    run = RunDirectory.create(tmp_path / "run", {})
    mine = tmp_path / "mine"
    mine.write_text("mine")
    link = run.path / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(mine)
    with pytest.raises(Mistake, match=f"{name} is a link"):
        RunDirectory.open(run.path)
    assert mine.read_text() == "mine"


def test_links_of_weights_and_biases_are_its_own(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "latest-run").symlink_to(tmp_path)
    RunDirectory.open(run.path)


def test_nothing_is_written_through_a_link_that_came_later(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.metrics.unlink()
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("lock", "metrics.jsonl", "events.log", ".conf.toml.new"):
        (run.path / name).symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"), run.held():
        pass
    with pytest.raises(Failure, match="could not be written"):
        run.log({"round": 1})
    for write in (lambda: run.note("words"), lambda: run.write_conf({})):
        with pytest.raises(OSError, match="symbolic links"):
            write()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b'{"round": ' + b"[" * 100_000, b"[1]\n", b'{"round": "one"}\n', b"{}\n", None]
)
def test_metrics_that_are_none_are_refused_in_a_sentence(tmp_path, content):
    run = RunDirectory.create(tmp_path / "run", {})
    run.metrics.unlink()
    os.mkfifo(run.metrics) if content is None else run.metrics.write_bytes(content)
    with pytest.raises(Mistake, match=r"metrics\.jsonl (is not the metrics of a run|cannot be read)"):
        run.read_metrics()


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.save_checkpoint({"w": np.zeros(2)}, {"round": 1}, {}, keep=2)
    for name in ("round-x.npz", "round-.npz", "round--1.npz", "round-\u0663.npz", "round-" + "9" * 40 + ".npz"):
        (run.checkpoints / name).write_bytes(b"")
    assert list(run.saved_rounds()) == [1]


def test_other_files_of_noise_are_refused_in_a_sentence(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.conf.write_text("a = " + "9" * 5000)
    with pytest.raises(Mistake, match="is not valid TOML"):
        run.read_conf()
    for name, read in (("name", lambda: run.name), ("events.log", run.notes)):
        (run.path / name).write_bytes(b"\xff")
        with pytest.raises(Mistake, match=f"{name} cannot be read"):
            read()
