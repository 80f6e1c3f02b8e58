"""The medium between peers. A strategy writes a round once, for the peers of its process, and it runs over any medium.

If all peers share a process, the network is a matrix product (gossip/mixing.py). If each peer has a process of its own,
the others are reached by gRPC (gossip/wire.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

# The rows that attackers of this process send to a recipient, by their position here. A row may have any length and any
# numbers. The table is empty if the recipient gets honest rows. Recipients of the same rows get the same object.
Forged = Callable[[int], Mapping[int, F32]]


class Received(NamedTuple):
    """The rows that one peer received, its own among them, with their senders in ascending order. All are usable."""

    senders: I64
    rows: F32


class Medium(Protocol):
    """The connection of the peers of this process to the others.

    ``peers`` are the numbers of these peers, in the order of their rows, ascending. ``network`` is the number of all
    peers. All peers make the same calls in the same order: round by round, and within a round as the algorithm does.
    """

    @property
    def peers(self) -> Sequence[int]: ...
    @property
    def network(self) -> int: ...

    def mix(
        self, number: int, x: F32, y: F64, forged: Forged | None = None, refused: Bools | None = None
    ) -> tuple[F32, F64]:
        """Do one round of push-sum: every peer k sends p_ik (x_k, y_k) to i, and adds up the shares that arrive.

        ``x`` (rows, d) and ``y`` (rows,) are the biased values, and so are the results. The shares of a peer add up to
        1. Shares are added up in the order of their senders, so that every medium computes the same sum, bit for bit.
        A share that is late for its round is added in the next one. ``forged`` rows are sent in place of x. A refused
        share is its sender's again: the honest row, not the forged one.

        ``refused`` (rows, network) marks the peers whose share each row refused in the round before, and is overwritten
        with those of this round. A peer whose shares are refused is sent no share, or it would soon hold all mass.
        """

    def broadcast(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        """Send ``vectors`` (rows, d) to all peers, and return the broadcasts of the same turn, a result per row.

        Turns of a tag count from 0 within a round. A row that is ``final`` is the last of its peer: it stands for all
        later turns of that tag and round. If all rows are final, the call waits for nobody and returns empty results.
        An attacker receives its own honest row.
        """

    def join(self, number: int) -> tuple[int, F32 | None]:
        """Wait for the others, after ``number`` rounds here. If they are at work already, catch up with them.

        Returns the rounds that are done, and the weights (rows, d) of the others if this process caught up.
        """

    def next(self, number: int, weights: F32) -> int:
        """Return the round to do now: ``number``, or a later one if the others are far ahead.

        ``weights`` (rows, d) are published for peers that join late.
        """

    def finish(self, x: F32, y: F64) -> tuple[F32, F64]:
        """End the run: hand over the shares that are in flight, and return x and y with the last shares added."""

    def counts(self) -> dict[str, list[int]]:
        """Return counts per row since the last call: ``bytes_up``, ``bytes_down``, ``missed``, ``refused``, ``late``
        and others.
        """

    def reasons(self) -> dict[str, int]:
        """Return the number of refusals so far, by reason."""

    def close(self) -> None: ...


def refusal(row: F32, width: int, bound: float) -> str:
    """Return the reason to refuse a row, or an empty string. Numbers above ``bound`` do not arise from learning."""
    if row.shape != (width,):
        return "wrong-layout"
    with np.errstate(over="ignore", invalid="ignore"):
        if float(np.dot(row, row)) < bound * bound:  # one pass; it is False for nan and infinity
            return ""
    if not np.isfinite(row).all():
        return "not-finite"
    return "huge" if float(np.abs(row).max()) > bound else ""
