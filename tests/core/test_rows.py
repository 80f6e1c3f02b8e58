"""State with a row per agent: saved, loaded, taken apart and put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.errors import Failure
from core.rows import Rows


class Inner(Rows):
    ROWS = ("clock",)

    def __init__(self, agents: int) -> None:
        self.clock = np.arange(agents)


class Outer(Rows):
    ROWS = ("weights", "inner", "moments", "absent")

    def __init__(self, agents: int = 5, width: int = 3) -> None:
        self.weights = np.arange(agents * width, dtype=np.float32).reshape(agents, width)
        self.inner = Inner(agents)
        self.moments: dict[str, Any] = {"mean": np.zeros((agents, 2)), "deep": Inner(agents)}
        self.absent: Rows | None = None
        self.width = width


NAMES = {"weights", "inner.clock", "moments.mean", "moments.deep.clock"}


def same(left: Rows, right: Rows) -> bool:
    a, b = left.state(), right.state()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def changed(agents: int = 5) -> Outer:
    made = Outer(agents)
    for array in made.state().values():
        array += 100
    return made


def test_state_names_every_array_and_is_alive() -> None:
    outer = Outer()
    state = outer.state()
    assert set(state) == NAMES
    outer.weights[2] = -1
    assert (state["weights"][2] == -1).all()


def test_load_takes_over_values_and_not_arrays() -> None:
    source, target = changed(), Outer()
    weights = target.weights
    target.load_state(source.state())
    assert same(source, target)
    assert target.weights is weights
    source.weights[...] = 0
    assert not same(source, target)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_load_refuses_what_is_missing(name: str) -> None:
    state = Outer().state()
    del state[name]
    with pytest.raises(Failure, match=f"no '{name}'"):
        Outer().load_state(state)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_load_refuses_another_shape_or_type(name: str) -> None:
    state = Outer().state()
    for wrong in (np.zeros((6, 3), state[name].dtype), state[name].astype(np.float16)):
        with pytest.raises(Failure, match=f"'{name}' of the checkpoint is {wrong.dtype}"):
            Outer().load_state(state | {name: wrong})


def test_load_does_not_broadcast() -> None:
    with pytest.raises(Failure, match="this run needs"):
        Outer().load_state(Outer().state() | {"weights": np.zeros(3, np.float32)})


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 5, 2), np.array([4, 0]), np.array([], np.int64)])
def test_take_and_put(rows: Any) -> None:
    outer, before = Outer(), Outer()
    part = outer.take(rows)
    count = len(np.arange(5)[rows])
    assert all(len(array) == count for array in part.state().values())
    assert isinstance(part.moments["deep"], Inner)
    assert part.absent is None
    assert part.width == 3
    for array in part.state().values():
        array += 7
    outer.put(rows, part)
    touched = np.isin(np.arange(5), np.arange(5)[rows])
    for name, array in outer.state().items():
        was = before.state()[name]
        assert np.array_equal(array[touched], was[touched] + 7)
        assert np.array_equal(array[~touched], was[~touched])


def test_an_index_array_copies_until_put() -> None:
    outer = Outer()
    outer.take(np.array([0, 1])).weights[...] = -1
    assert same(outer, Outer())


def test_take_leaves_the_whole_as_it_was() -> None:
    outer = Outer()
    outer.take(slice(0, 1))
    assert len(outer.weights) == len(outer.inner.clock) == len(outer.moments["mean"]) == 5


def test_put_refuses_a_part_with_other_members() -> None:
    outer = Outer()
    part = outer.take(slice(0, 2))
    del part.moments["deep"]
    with pytest.raises(ValueError, match="shorter"):
        outer.put(slice(0, 2), part)
