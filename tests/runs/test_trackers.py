"""Metrics as TensorBoard reads them, and as Weights & Biases would get them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import Mistake
from runs import trackers
from runs.trackers import Trackers, scalars

RECORD = {"round": 3, "steps": [90, 110], "return": [10.0, None], "kl": [1.0, 3.0], "wall_s": 2.5, "none": [None]}


def test_a_round_as_numbers() -> None:
    assert scalars(RECORD) == {"return": 10.0, "return-worst": 10.0, "kl": 2.0, "wall_s": 2.5}


def test_tensorboard_reads_what_was_logged_and_forgets_what_a_resume_does_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Trackers(tmp_path, {}, tensorboard=True, wandb=False)
    for steps, kl in ((100, 1.0), (200, 2.0), (300, 3.0)):
        first.log(RECORD | {"steps": [steps], "kl": [kl]})
    first.close()
    resumed = Trackers(tmp_path, {}, tensorboard=True, wandb=False, since=200)
    resumed.log(RECORD | {"steps": [300], "kl": [7.0]})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("kl")] == [(100, 1.0), (200, 2.0), (300, 7.0)]


def test_weights_and_biases_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    started: dict[str, Any] = {}

    def init(**settings: Any) -> Any:
        started.update(settings)
        return SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    one = Trackers(tmp_path, {"seed": 3}, tensorboard=False, wandb=True)
    one.log(RECORD)
    one.close()
    assert started["config"] == {"seed": 3}
    assert logged == [scalars(RECORD) | {"steps": 100}, "finished"]


def test_a_missing_extra_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(Mistake, match=r"wandb"):
        trackers.check(True)
    trackers.check(False)
