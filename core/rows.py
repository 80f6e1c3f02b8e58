"""State with one row per agent.

All state that changes during learning is in arrays whose first axis is the agent. A class lists these arrays (and
members that hold more of them) once, in ``ROWS``. Saving, loading and working on some agents are derived from it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from core.errors import Failure

Array = NDArray[Any]


class Rows:
    """State as arrays with a row per agent."""

    ROWS: ClassVar[tuple[str, ...]] = ()

    def _members(self) -> Iterator[tuple[str, Any]]:
        for name in self.ROWS:
            member = getattr(self, name)
            if isinstance(member, dict):
                yield from ((f"{name}.{key}", value) for key, value in member.items())
            elif member is not None:
                yield name, member

    def state(self) -> dict[str, Array]:
        """Return all state by name. The arrays are not copies: copy what must not change."""
        arrays: dict[str, Array] = {}
        for name, member in self._members():
            if isinstance(member, Rows):
                arrays |= {f"{name}.{inner}": array for inner, array in member.state().items()}
            else:
                arrays[name] = member
        return arrays

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        """Load a ``state()``; refuses one with another shape, and names the array."""
        for name, member in self._members():
            if isinstance(member, Rows):
                member.load_state(state, f"{where}{name}.")
            else:
                adopt(member, state, where + name)

    def take(self, rows: Any) -> Self:
        """Return some of the agents as an object of their own. ``rows`` is a slice or an index array."""
        part = copy.copy(self)
        for name in self.ROWS:
            member = getattr(self, name)
            if isinstance(member, dict):
                setattr(part, name, {key: _taken(value, rows) for key, value in member.items()})
            elif member is not None:
                setattr(part, name, _taken(member, rows))
        return part

    def put(self, rows: Any, part: Self) -> None:
        """Write back the agents that ``take(rows)`` returned."""
        for (_, mine), (_, theirs) in zip(self._members(), part._members(), strict=True):
            if isinstance(mine, Rows):
                mine.put(rows, theirs)
            else:
                mine[rows] = theirs


def adopt(mine: Array, state: Mapping[str, Array], key: str) -> None:
    """Overwrite an array with that of a saved state; refuses one that is missing or has another shape."""
    if key not in state:
        raise Failure(f"the checkpoint has no '{key}': it was written by another configuration")
    saved = state[key]
    if saved.shape != mine.shape or saved.dtype != mine.dtype:
        raise Failure(
            f"'{key}' of the checkpoint is {saved.dtype}{list(saved.shape)}, "
            f"this run needs {mine.dtype}{list(mine.shape)}"
        )
    mine[...] = saved


def _taken(member: Any, rows: Any) -> Any:
    # Compiled loops need contiguous arrays. A slice without a step stays a view.
    return member.take(rows) if isinstance(member, Rows) else np.ascontiguousarray(member[rows])
