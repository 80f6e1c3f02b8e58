"""Worlds that differ and change, as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Mistake
from core.streams import agent_seeds
from envs.dynamics import Dynamics, Quantity

KNOWN = {
    "g": Quantity(9.8, 0.0, "gravity"),
    "p": Quantity(0.5, 0.0, "a share", 1.0),
    "low": Quantity(1, 0, "least", 100, whole=True),
    "high": Quantity(9, 0, "most", 100, whole=True),
}


def make(agents: int = 3, numbers: list[int] | None = None, **values: Any) -> Dynamics:
    numbers = list(range(agents)) if numbers is None else numbers
    return Dynamics(KNOWN, values, agent_seeds(1, numbers), numbers)


def at(dynamics: Dynamics, name: str, steps: list[float]) -> list[float]:
    found: list[float] = dynamics.at(np.array(steps))[:, dynamics.names.index(name)].tolist()
    return found


def test_fixed_values_and_defaults() -> None:
    dynamics = make(g=[1.0, 2, 3.5, 4.0])
    assert at(dynamics, "g", [0, 10, 1000]) == [1.0, 2.0, 3.5]
    assert at(dynamics, "p", [0, 0, 0]) == [0.5] * 3
    assert not dynamics.changing


def test_lists_go_by_the_agents_number() -> None:
    assert at(make(numbers=[2, 0], g=[1, 2, 3]), "g", [0, 0]) == [3.0, 1.0]


def test_a_drift_is_linear_and_then_stays() -> None:
    dynamics = make(g={"from": 10, "to": [5, 20, 10], "steps": 100})
    assert dynamics.changing
    assert at(dynamics, "g", [0, 0, 0]) == [10, 10, 10]
    assert at(dynamics, "g", [50, 25, 3]) == [7.5, 12.5, 10]
    assert at(dynamics, "g", [100, 1000, 5]) == [5, 20, 10]


def test_a_jump_is_at_its_step() -> None:
    assert at(make(g={"before": 1, "after": 2, "at": 10}), "g", [9, 10, 11]) == [1, 2, 2]


def test_a_swing() -> None:
    dynamics = make(g={"mean": 5, "amplitude": 2, "period": 8})
    assert at(dynamics, "g", [0, 2, 6]) == pytest.approx([5, 7, 3])
    assert at(make(g={"mean": 5, "amplitude": 2, "period": 8, "phase": 0.25}), "g", [0, 2, 4]) == pytest.approx(
        [7, 5, 3]
    )


def test_a_draw_is_the_agents_own() -> None:
    many = at(make(agents=50, g={"uniform": [2.0, 4.0]}), "g", [0] * 50)
    assert 2.0 <= min(many) < 2.3 < 3.7 < max(many) < 4.0
    assert at(make(numbers=[41], g={"uniform": [2.0, 4.0]}), "g", [0]) == [many[41]]
    ends = make(agents=50, g={"from": {"uniform": [2, 4]}, "to": {"uniform": [2, 4]}, "steps": 10})
    assert at(ends, "g", [0] * 50) != at(ends, "g", [10] * 50)


def test_what_is_counted_is_whole() -> None:
    assert at(make(low={"from": 1, "to": 4, "steps": 3}, agents=4), "low", [0, 1, 2, 3]) == [1, 2, 3, 4]
    drawn = at(make(agents=300, low={"uniform": [1, 3]}), "low", [0] * 300)
    assert {x: 70 < drawn.count(x) < 130 for x in drawn} == {1.0: True, 2.0: True, 3.0: True}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_range_that_was_accepted_is_never_empty(data: st.DataObject) -> None:
    number = st.integers(0, 20)
    shape = st.one_of(
        number,
        st.fixed_dictionaries({"from": number, "to": number, "steps": st.integers(1, 40)}),
        st.fixed_dictionaries({"before": number, "after": number, "at": st.integers(-5, 40)}),
        st.fixed_dictionaries({"mean": st.just(30), "amplitude": number, "period": st.integers(1, 40)}),
    )
    dynamics = make(agents=1, low=data.draw(shape), high=data.draw(shape))
    crossing = any(at(dynamics, "low", [t]) > at(dynamics, "high", [t]) for t in range(60))
    try:
        dynamics.refuse_crossing("low", "high")
    except Mistake:
        return
    assert not crossing


def test_an_empty_range_is_named() -> None:
    with pytest.raises(
        Mistake, match=r"'world.physics.low' must never be above 'world.physics.high', and it is for row 1"
    ):
        make(low=[1, 5, 1], high=[9, {"x": 1}, 9] if False else [9, 4, 9]).refuse_crossing("low", "high")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"G": 1}, "'world.physics.G' is not known here (allowed: g, p, low, high)"),
        ({"hihg": 1}, "did you mean 'world.physics.high'?"),
        ({"g": -1}, "'world.physics.g' must be at least 0, not -1"),
        ({"p": 2}, "'world.physics.p' must be at least 0 and at most 1, not 2"),
        ({"g": "9"}, "'world.physics.g' is a number, a list or a table, not '9'"),
        ({"g": True}, "not True"),
        ({"g": float("nan")}, "not nan"),
        ({"g": 10**400}, "is a number"),
        ({"g": [1, 2]}, "'world.physics.g' lists 2 values for 3 agents; give one per agent"),
        ({"g": [1, "x", 3]}, "lists something that is not a number"),
        ({"g": {}}, "has the keys none; a table is one of {uniform}, {from, to, steps}"),
        ({"g": {"from": 1, "to": 2}}, "has the keys from, to; a table is one of"),
        ({"g": {"from": 1, "to": 2, "steps": 0}}, "'world.physics.g.steps' must be above 0"),
        ({"g": {"from": 1, "to": -2, "steps": 5}}, "'world.physics.g' (to) must be at least 0, not -2"),
        ({"g": {"mean": 1, "amplitude": 2, "period": 5}}, "(mean minus or plus amplitude) must be at least 0, not -1"),
        ({"g": {"mean": 1, "amplitude": 1, "period": -5}}, "'world.physics.g.period' must be above 0"),
        ({"g": {"uniform": [3, 1]}}, "or {uniform = [low, high]}, not {'uniform': [3, 1]}"),
        ({"g": {"uniform": 3}}, "or {uniform = [low, high]}, not {'uniform': 3}"),
        (
            {"g": {"before": {"from": 1}, "after": 1, "at": 1}},
            "'world.physics.g.before' is a number, a list with one per",
        ),
        ({"low": 1.5}, "'world.physics.low' is a whole number, a list or a table, not 1.5"),
        ({"low": [1, 2.5, 1]}, "lists something that is not a whole number"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake) as raised:
        make(**values)
    assert message in str(raised.value)
