"""Worlds that differ from agent to agent and change over time, as data.

A quantity is described by one of

    9.8                                             the same for every agent
    [9.8, 5.0, 12.0]                                one per agent, by the agent's number
    {uniform = [8.0, 12.0]}                         drawn once per agent, from its own seed
    {from = 9.8, to = 5.0, steps = 100_000}         drifts linearly, then stays
    {before = 9.8, after = 5.0, at = 10_000}        jumps
    {mean = 9.8, amplitude = 2.0, period = 5_000}   swings as a sine; phase = 0.25 starts a quarter period on

Inside a table each value may again be a number, a list or ``{uniform = ...}``. Time is the agent's own step count.
A quantity that is counted (``whole``) is rounded when it is used, so that it may drift as well.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake
from core.streams import child, uniform01

F64 = NDArray[np.float64]
_SHAPES = {
    "drift": {"from", "to", "steps"},
    "jump": {"before", "after", "at"},
    "swing": {"mean", "amplitude", "period"},
}


@dataclass(frozen=True)
class Quantity:
    """A physical quantity of a world: its default, and its range."""

    default: float
    low: float
    sentence: str
    high: float = np.inf
    whole: bool = False


class Dynamics:
    """The values of a world's quantities for each agent at its own step count."""

    def __init__(
        self,
        known: Mapping[str, Quantity],
        given: Mapping[str, Any],
        seeds: Sequence[int],
        numbers: Sequence[int],
        where: str = "world.physics",
    ) -> None:
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{where}.{near[0]}'?" if near else ""
                raise Mistake(f"'{where}.{name}' is not known here{hint} (allowed: {', '.join(known) or 'none'})")
        self.names = tuple(known)
        self._curves = [
            _Curve(f"{where}.{name}", q, given.get(name, q.default), seeds, numbers) for name, q in known.items()
        ]
        self.changing = any(curve.kind != "fixed" for curve in self._curves)

    def at(self, steps: NDArray[np.int64]) -> F64:
        """(agents, quantities) at these step counts, in the order in which the world knows them."""
        return np.stack([curve.at(steps) for curve in self._curves], axis=1)

    def refuse_crossing(self, smallest: str, largest: str) -> None:
        """A range whose ends are two quantities must never be empty.

        Between the bends of the two curves both are straight, so looking at the bends is enough; a swing has bends
        everywhere, so it must stay clear of all that the other may be.
        """
        crossed: Any
        low, high = (self._curves[self.names.index(name)] for name in (smallest, largest))
        if "swing" in (low.kind, high.kind):
            crossed = low.extreme(np.maximum) > high.extreme(np.minimum)
        else:
            bends = np.concatenate([low.bends(), high.bends()])
            crossed = np.array([low.exactly(bend) > high.exactly(bend) for bend in bends]).any(axis=0)
        if crossed.any():
            row = int(np.flatnonzero(crossed)[0])
            raise Mistake(f"'{low.name}' must never be above '{high.name}', and it is for row {row} of the agents")

    def take(self, rows: Any) -> Dynamics:
        part = copy.copy(self)
        part._curves = [curve.take(rows) for curve in self._curves]
        return part


class _Curve:
    """One quantity of every agent as a function of its step count."""

    def __init__(self, name: str, quantity: Quantity, given: Any, seeds: Sequence[int], numbers: Sequence[int]) -> None:
        self.name, self._whole = name, quantity.whole
        self.kind, leaves = _kind(name, given)
        self._values = {
            key: _per_agent(name, leaf, seeds, numbers, quantity.whole)
            if key == "value"
            else _per_agent(f"{name}.{key}", leaf, seeds, numbers)
            for key, leaf in leaves.items()
        }
        for low, high, label in self._extremes():
            if np.any(low < quantity.low) or np.any(high > quantity.high):
                bound = f"at least {quantity.low:g}" + (
                    f" and at most {quantity.high:g}" if quantity.high < np.inf else ""
                )
                wrong = float(np.min(low)) if np.any(low < quantity.low) else float(np.max(high))
                raise Mistake(f"'{name}'{label} must be {bound}, not {wrong:g}")
        for key in ("steps", "period"):
            if key in self._values and np.any(self._values[key] <= 0):
                raise Mistake(f"'{name}.{key}' must be above 0")

    def extreme(self, pick: np.ufunc) -> F64:
        """The least (np.minimum) or the most (np.maximum) that each agent's value ever is."""
        ends = [end for low, high, _ in self._extremes() for end in (low, high)]
        most: F64 = pick.reduce(ends)
        return most

    def bends(self) -> F64:
        """The step counts (bends, agents) where a curve that does not swing turns, and around those where it jumps."""
        v, found = self._values, [np.zeros_like(next(iter(self._values.values())))]
        if self.kind == "drift":
            found += [v["steps"]]
        if self.kind == "jump":
            found += [np.maximum(v["at"], 0.0), np.maximum(np.ceil(v["at"]) - 1, 0.0)]
        return np.stack(found)

    def _extremes(self) -> list[tuple[F64, F64, str]]:
        if self.kind == "swing":
            mean, size = self._values["mean"], np.abs(self._values["amplitude"])
            return [(mean - size, mean + size, " (mean minus or plus amplitude)")]
        names = {"fixed": ["value"], "drift": ["from", "to"], "jump": ["before", "after"]}[self.kind]
        return [(self._values[n], self._values[n], "" if n == "value" else f" ({n})") for n in names]

    def at(self, steps: NDArray[np.int64] | F64) -> F64:
        value = self.exactly(steps)
        return np.rint(value) if self._whole else value

    def exactly(self, steps: NDArray[np.int64] | F64) -> F64:
        """The value before what is counted is rounded."""
        v = self._values
        if self.kind == "fixed":
            return v["value"]
        if self.kind == "drift":
            return v["from"] + (v["to"] - v["from"]) * np.clip(steps / v["steps"], 0.0, 1.0)
        if self.kind == "jump":
            return np.where(steps < v["at"], v["before"], v["after"])
        return v["mean"] + v["amplitude"] * np.sin(2 * np.pi * (steps / v["period"] + v["phase"]))

    def take(self, rows: Any) -> _Curve:
        part = copy.copy(self)
        part._values = {key: value[rows] for key, value in self._values.items()}
        return part


def _kind(name: str, given: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(given, Mapping) or set(given) == {"uniform"}:
        return "fixed", {"value": given}
    for kind, wanted in _SHAPES.items():
        if wanted <= set(given) <= wanted | ({"phase"} if kind == "swing" else set()):
            return kind, dict(given) | ({"phase": given.get("phase", 0.0)} if kind == "swing" else {})
    raise Mistake(
        f"'{name}' has the keys {', '.join(given) or 'none'}; a table is one of {{uniform}}, {{from, to, steps}}, "
        "{before, after, at} or {mean, amplitude, period[, phase]}"
    )


def _per_agent(name: str, leaf: Any, seeds: Sequence[int], numbers: Sequence[int], whole: bool = False) -> F64:
    if isinstance(leaf, Mapping):
        if set(leaf) != {"uniform"} or not _is_pair(leaf["uniform"], whole):
            kind = "whole number" if whole else "number"
            raise Mistake(
                f"'{name}' is a {kind}, a list with one per agent, or {{uniform = [low, high]}}, not {leaf!r}"
            )
        low, high = map(float, leaf["uniform"])
        share = np.array([uniform01(np.uint64(child(seed, name)), np.uint64(0)) for seed in seeds])
        return low + np.floor((high - low + 1) * share) if whole else low + (high - low) * share
    if isinstance(leaf, list | tuple):
        if not all(_is_number(x, whole) for x in leaf):
            raise Mistake(f"'{name}' lists something that is not a {'whole ' * whole}number: {leaf!r}")
        if max(numbers) >= len(leaf):
            raise Mistake(f"'{name}' lists {len(leaf)} values for {max(numbers) + 1} agents; give one per agent")
        return np.array([float(leaf[number]) for number in numbers])
    if not _is_number(leaf, whole):
        raise Mistake(f"'{name}' is a {'whole ' * whole}number, a list or a table, not {leaf!r}")
    return np.full(len(numbers), float(leaf))


def _is_number(x: Any, whole: bool = False) -> bool:
    if isinstance(x, bool) or not isinstance(x, int | float):
        return False
    return abs(x) < 1e300 and not (whole and x != round(x))  # no nan, no infinity, no integer too long for a float


def _is_pair(x: Any, whole: bool = False) -> bool:
    return isinstance(x, list | tuple) and len(x) == 2 and all(_is_number(end, whole) for end in x) and x[0] <= x[1]
