"""How agents act and send. Honest agents are here, attackers are ``attacks.byzantine.Byzantine``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet
from agents.report import Report

F32 = NDArray[np.float32]
# One step of some agents: their fleet, and their rows in the session.
Act = Callable[[Fleet, NDArray[np.int64]], tuple[F32, Report]]


class Conduct(Protocol):
    """How the agents of a session act and send. Rows are those of the session's fleet."""

    def is_honest(self, row: int) -> bool: ...
    def delay(self, row: int, number: int) -> float: ...
    def act(self, fleet: Fleet, rows: NDArray[np.int64], number: int, act: Act) -> tuple[F32, Report]: ...
    def begin(self, rows: Sequence[int], number: int, parts: Sequence[str]) -> None: ...
    def sends(self, rows: Sequence[int], number: int, honest: Mapping[str, F32]) -> Mapping[str, Sequence[F32]]: ...
    def to_peers(
        self, number: int, honest: F32, start: F32 | None, where: Mapping[str, slice], tag: str
    ) -> Callable[[int], Mapping[int, F32]] | None: ...


class Honest:
    """All agents act in their true worlds, and send what they learned, at once."""

    def is_honest(self, row: int) -> bool:
        return True

    def delay(self, row: int, number: int) -> float:
        return 0.0

    def act(self, fleet: Fleet, rows: NDArray[np.int64], number: int, act: Act) -> tuple[F32, Report]:
        return act(fleet, rows)

    def begin(self, rows: Sequence[int], number: int, parts: Sequence[str]) -> None:
        """Begin a round."""

    def sends(self, rows: Sequence[int], number: int, honest: Mapping[str, Any]) -> Mapping[str, Any]:
        return honest

    def to_peers(self, number: int, honest: F32, start: F32 | None, where: Mapping[str, slice], tag: str) -> None:
        return None
