"""What lies between peers. A round is written once, for the peers that live here, and runs over any medium.

In one process all peers are here and the network is a matrix product (gossip/mixing.py); in a process per peer
one of them is here, and the others are at the other end of a wire.
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

# What the liars here send to a recipient, by their row here; it may have any length, and hold anything. An empty table
# where the recipient is told the truth. Two recipients who are told the same are given the same object.
Forged = Callable[[int], Mapping[int, F32]]


class Received(NamedTuple):
    """What came to one peer, its own among it: who sent (ascending) and what, a row each. All of it can be used."""

    senders: I64
    rows: F32


class Medium(Protocol):
    """How the peers that live here reach the others.

    ``peers`` are the numbers of the rows here, ascending; ``network`` is how many peers there are in all. Calls come in
    the same order from every peer: round by round, and within a round as the algorithm has them.
    """

    @property
    def peers(self) -> Sequence[int]: ...
    @property
    def network(self) -> int: ...

    def mix(
        self, number: int, x: F32, y: F64, forged: Forged | None = None, refused: Bools | None = None
    ) -> tuple[F32, F64]:
        """Push-sum in round ``number``: every peer k sends p_ik (x_k, y_k) to i, and adds up what comes in.

        ``x`` (rows, d) and ``y`` (rows,) are the biased ones, and so is what is returned. The shares of a peer add up
        to 1. What came is added up in the order of the senders, so that every medium finds the same sum, bit for bit; a
        share that came too late for its round is added in the next one. ``forged`` rows are sent in place of x. A share
        that is refused is its sender's again: what it has, not what it said.

        ``refused`` (rows, network) says whose share each peer here refused in the round before, and is written anew:
        who sends what cannot be used is sent nothing, or it would soon have all.
        """

    def tell(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        """Tell everybody ``vectors`` (rows, d), and hear what they tell in the same turn; a result per row.

        Turns of a tag count from 0 within a round. A row that is ``final`` says its last: it counts as said again in
        all later turns of that tag and round. Where all rows here are final nobody is waited for, and what is heard is
        nothing. A liar hears itself say the truth.
        """

    def join(self, number: int) -> tuple[int, F32 | None]:
        """Wait for the others, when ``number`` rounds are done here. Those who are at work already are caught up with:
        how many rounds they have done, and what they have learned (rows, d)."""

    def next(self, number: int, weights: F32) -> int:
        """The round to do now: ``number``, or a later one where the others are far ahead. ``weights`` (rows, d) is what
        is told to who comes late."""

    def finish(self, x: F32, y: F64) -> tuple[F32, F64]:
        """The run is over here: what is still on its way to others is handed over, what comes from them added up."""

    def counts(self) -> dict[str, list[int]]:
        """What it cost since the last call, per row: ``bytes_up``, ``bytes_down``, ``missed``, ``refused``, ``late``,
        ...
        """

    def reasons(self) -> dict[str, int]:
        """Why something was refused, and how often so far."""

    def close(self) -> None: ...


def flaw(row: F32, width: int, bound: float) -> str:
    """Why a row cannot be used, or nothing; a larger number than ``bound`` is none that learning makes."""
    if row.shape != (width,):
        return "wrong-layout"
    with np.errstate(over="ignore", invalid="ignore"):
        if float(np.dot(row, row)) < bound * bound:  # one pass, which nan and infinity do not pass
            return ""
    if not np.isfinite(row).all():
        return "not-finite"
    return "huge" if float(np.abs(row).max()) > bound else ""
