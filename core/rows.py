"""State with one row per agent: what a resume needs, and how a part of a fleet is a fleet.

Everything that changes while agents learn is an array whose first axis is the agent. A class names those arrays (and
the members that hold more of them) once, in ``ROWS``; saving, loading and working on some agents follow from that.
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
        """Everything a resume needs, by name. The arrays are the living ones: copy what must not change."""
        found: dict[str, Array] = {}
        for name, member in self._members():
            if isinstance(member, Rows):
                found |= {f"{name}.{inner}": array for inner, array in member.state().items()}
            else:
                found[name] = member
        return found

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        """Take over a ``state()``; refuses one of another shape, naming the array."""
        for name, member in self._members():
            if isinstance(member, Rows):
                member.load_state(state, f"{where}{name}.")
            else:
                adopt(member, state, where + name)

    def take(self, rows: Any) -> Self:
        """Some of the agents as an object of their own (rows: a slice or an index array)."""
        part = copy.copy(self)
        for name in self.ROWS:
            member = getattr(self, name)
            if isinstance(member, dict):
                setattr(part, name, {key: _taken(value, rows) for key, value in member.items()})
            elif member is not None:
                setattr(part, name, _taken(member, rows))
        return part

    def put(self, rows: Any, part: Self) -> None:
        """Take back what ``take(rows)`` gave away."""
        for (_, mine), (_, theirs) in zip(self._members(), part._members(), strict=True):
            if isinstance(mine, Rows):
                mine.put(rows, theirs)
            else:
                mine[rows] = theirs


def adopt(mine: Array, state: Mapping[str, Array], key: str) -> None:
    """Overwrite an array with that of a saved state; refuses one that is missing or of another shape."""
    if key not in state:
        raise Failure(f"the checkpoint has no '{key}': it was written by another configuration")
    found = state[key]
    if found.shape != mine.shape or found.dtype != mine.dtype:
        raise Failure(
            f"'{key}' of the checkpoint is {found.dtype}{list(found.shape)}, "
            f"this run needs {mine.dtype}{list(mine.shape)}"
        )
    mine[...] = found


def _taken(member: Any, rows: Any) -> Any:
    # Compiled loops are made for arrays in one stretch; a slice without steps stays a view.
    return member.take(rows) if isinstance(member, Rows) else np.ascontiguousarray(member[rows])
