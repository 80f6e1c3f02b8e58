"""Worlds that differ from agent to agent and change over time, as data.

A quantity is described by one of

    9.8                                             the same for every agent
    [9.8, 5.0, 12.0]                                one per agent, by the agent's number
    {uniform = [8.0, 12.0]}                         drawn once per agent, from its own seed
    {from = 9.8, to = 5.0, steps = 100_000}         drifts linearly, then stays
    {before = 9.8, after = 5.0, at = 10_000}        jumps
    {mean = 9.8, amplitude = 2.0, period = 5_000}   swings as a sine; phase = 0.25 starts a quarter period on

Inside a table each value may again be a number, a list or ``{uniform = ...}``. Time is the agent's own step count.
"""

from __future__ import annotations

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
    """A quantity that a world knows: what it is when nothing is said, and what it may be."""

    default: float
    low: float
    sentence: str
    high: float = np.inf


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
                raise Mistake(f"'{where}.{name}' is not known here (allowed: {', '.join(known) or 'none'})")
        self._curves = [_Curve(f"{where}.{name}", q, given.get(name, q.default), seeds, numbers) for name, q in known.items()]
        self.changing = any(curve.kind != "fixed" for curve in self._curves)

    def at(self, steps: NDArray[np.int64]) -> F64:
        """(agents, quantities) at these step counts, in the order in which the world knows them."""
        return np.stack([curve.at(steps) for curve in self._curves], axis=1)

    def take(self, rows: Any) -> Dynamics:
        part = object.__new__(Dynamics)
        part._curves = [curve.take(rows) for curve in self._curves]
        part.changing = self.changing
        return part


class _Curve:
    """One quantity of every agent as a function of its step count."""

    def __init__(self, name: str, quantity: Quantity, given: Any, seeds: Sequence[int], numbers: Sequence[int]) -> None:
        self.kind, leaves = _kind(name, given)
        self._values = {
            key: _per_agent(f"{name}.{key}" if key != "value" else name, leaf, seeds, numbers) for key, leaf in leaves.items()
        }
        for low, high, label in self._extremes():
            if np.any(low < quantity.low) or np.any(high > quantity.high):
                bound = f"at least {quantity.low:g}" + (f" and at most {quantity.high:g}" if quantity.high < np.inf else "")
                wrong = float(np.min(low)) if np.any(low < quantity.low) else float(np.max(high))
                raise Mistake(f"'{name}'{label} must be {bound}, not {wrong:g}")
        for key in ("steps", "period"):
            if key in self._values and np.any(self._values[key] <= 0):
                raise Mistake(f"'{name}.{key}' must be above 0")

    def _extremes(self) -> list[tuple[F64, F64, str]]:
        if self.kind == "swing":
            mean, size = self._values["mean"], np.abs(self._values["amplitude"])
            return [(mean - size, mean + size, " (mean minus or plus amplitude)")]
        names = {"fixed": ["value"], "drift": ["from", "to"], "jump": ["before", "after"]}[self.kind]
        return [(self._values[n], self._values[n], "" if n == "value" else f" ({n})") for n in names]

    def at(self, steps: NDArray[np.int64]) -> F64:
        v = self._values
        if self.kind == "fixed":
            return v["value"]
        if self.kind == "drift":
            return v["from"] + (v["to"] - v["from"]) * np.clip(steps / v["steps"], 0.0, 1.0)
        if self.kind == "jump":
            return np.where(steps < v["at"], v["before"], v["after"])
        return v["mean"] + v["amplitude"] * np.sin(2 * np.pi * (steps / v["period"] + v["phase"]))

    def take(self, rows: Any) -> _Curve:
        part = object.__new__(_Curve)
        part.kind, part._values = self.kind, {key: value[rows] for key, value in self._values.items()}
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


def _per_agent(name: str, leaf: Any, seeds: Sequence[int], numbers: Sequence[int]) -> F64:
    if isinstance(leaf, Mapping):
        if set(leaf) != {"uniform"} or not _is_pair(leaf["uniform"]):
            raise Mistake(f"'{name}' is a number, a list with one number per agent, or {{uniform = [low, high]}}")
        low, high = map(float, leaf["uniform"])
        return np.array([low + (high - low) * uniform01(np.uint64(child(seed, name)), np.uint64(0)) for seed in seeds])
    if isinstance(leaf, list | tuple):
        if not all(_is_number(x) for x in leaf):
            raise Mistake(f"'{name}' lists something that is not a number: {leaf!r}")
        if max(numbers) >= len(leaf):
            raise Mistake(f"'{name}' lists {len(leaf)} values for {max(numbers) + 1} agents; give one per agent")
        return np.array([float(leaf[number]) for number in numbers])
    if not _is_number(leaf):
        raise Mistake(f"'{name}' is a number, a list or a table, not {leaf!r}")
    return np.full(len(numbers), float(leaf))


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and bool(np.isfinite(x))


def _is_pair(x: Any) -> bool:
    return isinstance(x, list | tuple) and len(x) == 2 and all(map(_is_number, x)) and x[0] <= x[1]
