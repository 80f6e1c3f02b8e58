"""Worker processes step the same worlds, and end a run in one sentence when they fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import Failure, Mistake
from core.streams import agent_seeds
from envs import WorldConfig, Worlds, make_worlds
from envs.workers import Crew
from tests.envs.strange import Sleeps

STRANGE = "tests.envs.strange:"


def worlds(world: str, workers: int, agents: int = 3, copies: int = 2, **given: Any) -> Worlds:
    return make_worlds(WorldConfig(id=world, copies=copies, workers=workers, **given), agent_seeds(5, range(agents)))


def run(batch: Worlds, steps: int) -> None:
    for _ in range(steps):
        batch.step(np.zeros((3, 2), np.int64))


def processes(batch: Worlds) -> list[Any]:
    found: list[Any] = batch._stage._processes  # type: ignore[attr-defined]
    return list(found)


@pytest.mark.parametrize(
    ("world", "given", "shape"),
    [
        ("BipedalWalker-v3", {"obstacles": {"stump": {"before": 0, "after": 1, "at": 30}, "fall-reward": -1}}, (4,)),
        ("Acrobot-v1", {}, ()),
    ],
)
def test_the_same_worlds_as_in_this_process(world: str, given: dict[str, Any], shape: tuple[int, ...]) -> None:
    here, there = worlds(world, 0, horizon=20, **given), worlds(world, 2, horizon=20, **given)
    assert len(processes(there)) == 2
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(here.obs, there.obs)

    def act(*axes: int) -> Any:
        return rng.uniform(-1, 1, (*axes, *shape)) if shape else rng.integers(0, 3, axes)

    for t in range(60):
        action, active = act(3, 2), rng.random((3, 2)) < 0.7 if t % 2 else None
        for x, y in zip(here.step(action, active), there.step(action, active), strict=True):
            np.testing.assert_array_equal(x, y)
    rows = np.array([2, 0])
    one, other = here.take(rows), there.take(rows)
    for _ in range(25):
        action = act(2, 2)
        for x, y in zip(one.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(x, y)
    here.put(rows, one)
    there.put(rows, other)
    for (name, x), y in zip(here.state().items(), there.state().values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
    for x, y in zip(here.step(action := act(3, 2)), there.step(action), strict=True):
        np.testing.assert_array_equal(x, y)
    there.close()


def test_workers_are_few_have_one_thread_and_end() -> None:
    before = dict(os.environ)
    batch = worlds("Acrobot-v1", 9, agents=1, copies=2)
    assert dict(os.environ) == before
    crew = processes(batch)
    assert len(crew) == 2
    assert all(process.daemon for process in crew)
    for process in crew:
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            assert "Threads:\t1\n" in status.read_text()
    batch.close()
    batch.close()
    assert [process.exitcode for process in crew] == [0, 0]
    with pytest.raises(Failure, match="the workers of 'Acrobot-v1' are closed"):
        batch.step(np.zeros((1, 2), np.int64))


def test_a_killed_worker_is_named_and_the_others_end() -> None:
    batch = worlds("Acrobot-v1", 2)
    crew = processes(batch)
    os.kill(crew[1].pid, signal.SIGKILL)
    begin = time.perf_counter()
    with pytest.raises(
        Failure, match=rf"worker 1 of 2 of 'Acrobot-v1' \(process {crew[1].pid}\) died \(exit code -9\)"
    ):
        run(batch, 3)
    assert time.perf_counter() - begin < 10
    assert not any(process.is_alive() for process in crew)


def test_a_worker_that_raises_is_named() -> None:
    batch = worlds(STRANGE + "Raises-v0", 2)
    with pytest.raises(
        Failure, match=r"worker 0 of 2 .* raised ZeroDivisionError: the wheel came off; world.workers=0 shows"
    ):
        run(batch, 5)


def test_a_worker_that_does_not_answer_is_named() -> None:
    crew = Crew(Sleeps, np.zeros((4, 1), np.float32), np.zeros(4, np.int64), 2, "Sleeps", deadline_s=1.0)
    which, actions = np.arange(4), np.zeros(4, np.int64)
    crew.step(which, actions)
    begin = time.perf_counter()
    with pytest.raises(Failure, match=r"worker 1 of 2 of 'Sleeps' .* did not answer within 1 s"):
        crew.step(which, actions)
    assert time.perf_counter() - begin < 10


def test_a_stopped_worker_is_named_even_when_its_pipe_is_full() -> None:
    crew = Crew(Sleeps, np.zeros((4, 1), np.float32), np.zeros(4, np.int64), 1, "Sleeps", deadline_s=1.0)
    os.kill(crew._processes[0].pid, signal.SIGSTOP)
    with pytest.raises(Failure, match="did not answer within 1 s"):
        crew.begin(np.arange(4), [1] * 4, [{"much": "x" * 1_000_000}] * 4)


def test_a_mistake_is_told_before_a_worker_starts() -> None:
    with pytest.raises(Mistake, match="there is no world 'Nothing-v0' here"):
        worlds("Nothing-v0", 2)
