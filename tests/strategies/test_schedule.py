"""Merged exchanges, against a walk through every step."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.schedule import ACTOR, CRITIC, Schedule


def walk(N: int, M: int, L: int, T: int) -> list[tuple[int, str]]:
    """The loop of the paper: at every step the critics first, then the actor's update, then its exchange."""
    found, n = [], 0
    for t in range(1, T + 1):
        if t % N == 0:
            found.append((t, CRITIC))
        if t % M == 0:
            n += 1
            if n % L == 0:
                found.append((t, ACTOR))
    return found


@pytest.mark.parametrize("seed", range(200))
def test_any_schedule_is_the_walk(seed: int) -> None:
    draw = np.random.default_rng(seed)
    N, M, L = (int(draw.integers(1, high)) for high in (30, 6, 9))
    T = int(draw.integers(1, 400))
    schedule, wanted = Schedule(N, M * L, T), walk(N, M, L, T)
    assert schedule.rounds == len(wanted) + 1 == T // N + T // (M * L) + 1
    rounds = [schedule.stretch(number) for number in range(1, schedule.rounds + 1)]
    assert [(one.end, one.part) for one in rounds] == [*wanted, (T, "")]
    assert [one.begin for one in rounds] == [0, *[one.end for one in rounds[:-1]]]
    # For ever is the same for as long as it is looked at.
    assert [Schedule(N, M * L).stretch(number) for number in range(1, schedule.rounds)] == rounds[:-1]


def test_the_walker_of_the_reference_settings() -> None:
    rounds = [Schedule(400, 800, 1600).stretch(number) for number in range(1, 8)]
    work = [(one.end - one.begin, one.part) for one in rounds]
    assert work == [(400, CRITIC), (400, CRITIC), (0, ACTOR), (400, CRITIC), (400, CRITIC), (0, ACTOR), (0, "")]
