"""The ring of each agent against a list that forgets."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from agents.replay import Batch, Replay
from core.errors import Failure


def transition(K, n, number, o=3, a=2):
    """A transition of every agent and copy, told apart by what it holds."""
    tag = 1000.0 * np.arange(K)[:, None] + 10.0 * number + np.arange(n)
    parts = (tag[..., None] + 0.1 * np.arange(o), -tag[..., None] - 0.1 * np.arange(a), tag)
    ends = (tag.astype(int) % 3 == 0, tag.astype(int) % 3 == 1)
    wide = [np.asarray(x, np.float32) for x in (*parts, tag[..., None] + 0.5 + np.zeros(o))]
    return Batch(wide[0], wide[1], wide[2], *ends, wide[3])


def held(replay, k):
    """What agent k can sample, as a set of rows, oldest anywhere."""
    size = int(replay.size[k])
    index = np.broadcast_to(np.arange(size), (len(replay.size), size))
    batch = replay.gather(index)
    return sorted(tuple(np.concatenate([np.ravel(field[k, j]) for field in batch]).tolist()) for j in range(size))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("count", [0, 2, 7, 8, 30])
def test_the_last_of_each_agent(n, count):
    K, capacity = 2, 7
    replay, lists = Replay(K, capacity, 3, 2), [deque(maxlen=capacity) for _ in range(K)]
    for number in range(count):
        given = transition(K, n, number)
        replay.add(*given)
        for k in range(K):
            lists[k].extend(tuple(np.concatenate([np.ravel(f[k, i]) for f in given]).tolist()) for i in range(n))
    for k in range(K):
        assert replay.size[k] == len(lists[k])
        assert held(replay, k) == sorted(lists[k])


def test_gather_takes_each_agents_own():
    replay = Replay(2, 5, 3, 2)
    for number in range(5):
        replay.add(*transition(2, 1, number))
    batch = replay.gather(np.array([[0, 0, 4], [3, 1, 3]]))
    np.testing.assert_array_equal(batch.reward, [[0, 0, 40], [1030, 1010, 1030]])
    np.testing.assert_allclose(batch.next_obs[..., 0], batch.reward + 0.5)
    batch.obs[...] = -1.0
    assert (replay.gather(np.zeros((2, 1), np.int64)).obs != -1.0).any(), "a batch is a copy"


def test_terminated_and_truncated_are_apart():
    replay = Replay(1, 4, 3, 2)
    for terminated, truncated in ((True, False), (False, True), (False, False), (True, True)):
        replay.add(*transition(1, 1, 0)[:3], np.array([[terminated]]), np.array([[truncated]]), transition(1, 1, 0)[5])
    batch = replay.gather(np.arange(4)[None])
    assert batch.terminated.tolist() == [[True, False, False, True]]
    assert batch.truncated.tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([1, 2])])
def test_a_part_shares_the_memory(rows):
    replay = Replay(3, 4, 3, 2)
    replay.add(*transition(3, 1, 0))
    part = replay.take(rows)
    two = transition(3, 1, 1)
    part.add(*(x[1:] for x in two))
    np.testing.assert_array_equal(replay.size, [1, 2, 2])
    np.testing.assert_array_equal(part.size, [2, 2])
    assert np.shares_memory(part.obs, replay.obs)
    np.testing.assert_array_equal(part.gather(np.array([[0, 1], [1, 0]])).reward, [[1000, 1010], [2010, 2000]])
    # A part of a part: agent 2 of the whole.
    last = part.take(np.array([1]))
    last.add(*(x[2:] for x in transition(3, 1, 2)))
    replay.put(rows, part)
    np.testing.assert_array_equal(replay.size, [1, 2, 3])
    assert replay.gather(np.full((3, 1), 2)).reward[2, 0] == 2020


def test_saved_and_loaded():
    replay, other = Replay(2, 4, 3, 2), Replay(2, 4, 3, 2)
    for number in range(6):
        replay.add(*transition(2, 1, number))
    other.load_state({name: x.copy() for name, x in replay.state().items()})
    for k in range(2):
        assert held(other, k) == held(replay, k)
    for one in (replay, other):
        one.add(*transition(2, 1, 9))
    for k in range(2):
        assert held(other, k) == held(replay, k)
    with pytest.raises(Failure, match="obs"):
        Replay(2, 5, 3, 2).load_state(replay.state())


def test_a_million_transitions_of_the_walker_take_their_arrays():
    """(2 x 24 + 4 + 1) floats and two truths each: 214 MB, and nothing beside them."""
    replay = Replay(1, 1_000_000, 24, 4)
    held_ = sum(x.nbytes for x in vars(replay).values() if isinstance(x, np.ndarray))
    assert 1_000_000 * (2 * 24 + 4 + 1) * 4 <= held_ <= 240e6


def test_a_state_holds_what_was_stored_and_not_the_room_for_more():
    replay = Replay(2, 1000, 3, 1)
    for t in range(7):
        row = np.full((2, 1), t, np.float32)
        no = np.zeros((2, 1), np.bool_)
        replay.add(
            np.full((2, 1, 3), t, np.float32), row[..., None], row, no, no, np.full((2, 1, 3), t + 1, np.float32)
        )
    state = replay.state()
    assert state["obs"].shape == (2, 7, 3)
    again = Replay(2, 1000, 3, 1)
    again.load_state({name: array.copy() for name, array in state.items()})
    index = np.array([[0, 6, 3], [5, 2, 2]])
    for mine, theirs in zip(replay.gather(index), again.gather(index), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(Failure, match="obs"):
        Replay(2, 1000, 4, 1).load_state(state)
