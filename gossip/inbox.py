"""The vectors from one peer. Each is used exactly once, or never.

A sender sends a vector only after it has a final answer to the one before. So the last sequence number tells old
vectors from new ones, whatever is lost, repeated, late or reordered. The last share may still be withdrawn: its sender
may miss our answer, count us as dead and keep the share. We then give the share up as well, so that it is used once in
all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossip import gossip_pb2 as pb
from strategies.medium import refusal

F32 = NDArray[np.float32]

PIECE = 1 << 18  # numbers in a piece: 1 MiB
_STATUS = {"": pb.STATUS_UNSPECIFIED, "not-finite": pb.STATUS_NOT_FINITE, "huge": pb.STATUS_HUGE}
AHEAD = 8  # rounds that a peer may be ahead of another
BROADCASTS = 2 * AHEAD  # broadcasts of one peer that may wait here


class Broadcast(NamedTuple):
    """The description of a vector that goes to all peers."""

    tag: str
    turn: int
    final: bool = False


class Vector(NamedTuple):
    """A vector in transit: a share, which has a weight, or a broadcast.

    ``honest`` is the row that an attacker holds where ``row`` is forged. ``scant`` marks a share that is smaller than
    the topology says, because its sender has little left.
    """

    round: int
    row: F32
    weight: float = 0.0
    broadcast: Broadcast | None = None
    honest: F32 | None = None
    scant: bool = False

    @property
    def nbytes(self) -> int:
        return self.row.nbytes + (8 if self.broadcast is None else 0)

    @property
    def kept(self) -> Vector:
        """The vector that its sender adds up again if it is not used. It never holds the sender's own forgery."""
        return self if self.honest is None else self._replace(row=self.honest, honest=None)


@dataclass
class Inbox:
    """The vectors from one peer. A vector has ``width`` numbers, none of them above ``largest`` in size."""

    layout: int
    width: int
    largest: float
    network: int
    last: int = 0  # sequence number of the last vector that was taken or given up
    taken: int = 0  # sequence number of the last share that was taken, unless it was given up
    shares: list[Vector] = field(default_factory=list)  # not used yet
    owed: list[Vector] = field(default_factory=list)  # used here, then withdrawn by their sender: to be subtracted
    broadcasts: list[Vector] = field(default_factory=list)  # not used yet; final ones stay until their round is over
    spoiled: tuple[int, str, int] = (0, "", 0)  # round, tag and turn of the last refused vector: it is not sent again
    _newest: Vector | None = None  # the last share, the only one that its sender may withdraw
    _partial_sequence: int = 0  # sequence number of the vector of which some pieces have arrived
    _partial: F32 | None = None
    _missing: set[int] = field(default_factory=set)

    def restart(self) -> None:
        """Prepare for a new life of the sender. What its last life sent stays ours, and nobody withdraws it."""
        self.last, self.taken, self._newest, self.broadcasts = 0, 0, None, []
        self._drop_partial()

    def take(self, piece: pb.Piece, here: int, shut: bool = False) -> tuple[pb.Status, Vector | None]:
        """Take a piece while this peer is in round ``here``. Returns its status, and the vector if it is complete.

        A share is stored until ``pop_due`` returns it. An inbox that is ``shut`` takes no shares. A broadcast is only
        returned: the caller stores it in ``broadcasts`` if it is not too late.
        """
        if piece.sequence <= self.last:
            return pb.STATUS_DUPLICATE, None
        if piece.sequence > self.last + 1:
            return pb.STATUS_OUT_OF_ORDER, None
        about = piece.broadcast if piece.HasField("broadcast") else None
        has_room = len(self.broadcasts) < BROADCASTS if about is not None else not shut
        if piece.round > here + AHEAD or not has_room:
            return pb.STATUS_HOLD, None
        status, row = self._assemble(piece)
        if row is not None:
            weight = piece.share.weight if about is None else 1.0
            status = self._refusal(row, weight) or status
        if status not in (pb.STATUS_TAKEN, pb.STATUS_PART):
            self.spoiled = (piece.round, *((about.tag, about.turn) if about is not None else ("", 0)))
        if row is None or status != pb.STATUS_TAKEN:
            return status, None
        self.last, self._newest = piece.sequence, None
        if about is not None:
            broadcast = Broadcast(about.tag, about.turn, about.final)
            return pb.STATUS_TAKEN, Vector(piece.round, row, broadcast=broadcast)
        self.taken = piece.sequence
        vector = self._newest = Vector(piece.round, row, weight, scant=piece.share.scant)
        self._store(vector, here)
        return pb.STATUS_TAKEN, vector

    def give_up(self, sequence: int, closed: bool = False) -> pb.Status:
        """Give up a vector that its sender has withdrawn. A ``closed`` peer keeps a share that it has added up."""
        if sequence == self.last + 1:
            self.last = sequence  # it was never complete, and is not taken any more
            self._drop_partial()
        elif sequence != self.last:
            return pb.STATUS_OUT_OF_ORDER
        elif self._newest is not None:
            if closed:
                return pb.STATUS_DUPLICATE
            self.taken = 0
            unused = [vector for vector in self.shares if vector is not self._newest]
            if len(unused) == len(self.shares):
                self.owed.append(self._newest)
            self.shares = unused
        self._newest = None
        return pb.STATUS_GIVEN_UP

    def pop_due(self, number: float) -> list[Vector]:
        """Remove and return the shares of this round and the late ones of earlier rounds, in order."""
        due = [share for share in self.shares if share.round <= number]
        self.shares = [share for share in self.shares if share.round > number]
        return due

    def is_settled(self, number: int) -> bool:
        """Return whether nothing is to be waited for: the round's share, or a later one, has arrived or was refused."""
        return self._refused_since(number) or any(share.round >= number for share in self.shares)

    def has_refused(self, number: int) -> bool:
        """Return whether the share of a round was refused. A later refusal counts for it too, if it never arrived."""
        return self._refused_since(number) and all(share.round != number for share in self.shares)

    def find_broadcast(self, number: int, tag: str, turn: int) -> F32 | None:
        """Return the broadcast of this turn. A final broadcast stands for all turns after it."""
        for vector in self.broadcasts:
            about = vector.broadcast
            if about is None or (vector.round, about.tag) != (number, tag):
                continue
            if about.turn == turn or (about.final and about.turn < turn):
                return vector.row
        return None

    def drop_used(self, number: int, tag: str, turn: int) -> None:
        """Drop the broadcasts of a tag up to this turn. Final ones stay: later turns use them again."""

        def is_used(vector: Vector) -> bool:
            about = vector.broadcast
            if about is None or about.final:
                return False
            return (vector.round, about.tag) == (number, tag) and about.turn <= turn

        self.broadcasts = [vector for vector in self.broadcasts if not is_used(vector)]

    def drop_tag(self, number: int, tag: str) -> None:
        """Drop all broadcasts of a tag in a round, final ones included."""
        self.broadcasts = [
            vector
            for vector in self.broadcasts
            if vector.broadcast is None or (vector.round, vector.broadcast.tag) != (number, tag)
        ]

    def drop_before(self, number: int) -> None:
        """Drop the broadcasts of rounds before this one."""
        self.broadcasts = [vector for vector in self.broadcasts if vector.round >= number]

    def _refused_since(self, number: int) -> bool:
        """Return whether the last refused vector is a share of this round or of a later one."""
        return self.spoiled[0] >= number and not self.spoiled[1]

    def _store(self, share: Vector, here: int) -> None:
        """Store a share until it is used: one per round to come, and one sum for all rounds that are over."""
        for at, other in enumerate(self.shares):
            if other.round == share.round or max(other.round, share.round) < here:
                row, weight = other.row + share.row, other.weight + share.weight
                self.shares[at] = Vector(other.round, row, weight, scant=other.scant or share.scant)
                return
        self.shares.append(share)

    def _assemble(self, piece: pb.Piece) -> tuple[pb.Status, F32 | None]:
        """Add a piece to its vector. Returns the vector if this was its last piece."""
        data, offset = piece.data, piece.offset
        if piece.layout != self.layout or piece.width != self.width:
            return pb.STATUS_WRONG_LAYOUT, None
        count = min(PIECE, self.width - offset)
        if offset % PIECE or count <= 0 or len(data) != 4 * count:
            return pb.STATUS_OVERSIZED, None
        row = np.frombuffer(data, "<f4")
        if count == self.width:
            return pb.STATUS_TAKEN, row
        if self._partial is None or self._partial_sequence != piece.sequence:
            # Memory is reserved for one vector at a time, of the width that all vectors of the run have.
            self._partial_sequence, self._partial = piece.sequence, np.empty(self.width, np.float32)
            self._missing = set(range(0, self.width, PIECE))
        self._partial[offset : offset + count] = row
        self._missing.discard(offset)
        if self._missing:
            return pb.STATUS_PART, None
        complete = self._partial
        self._drop_partial()
        return pb.STATUS_TAKEN, complete

    def _refusal(self, row: F32, weight: float) -> pb.Status:
        """Return the status of a vector that is refused, or 0. The bound is on x / y, which does not grow with y."""
        if not 0.0 < weight <= self.network:
            return pb.STATUS_BAD_WEIGHT
        return _STATUS[refusal(row, self.width, self.largest * weight)]

    def _drop_partial(self) -> None:
        self._partial, self._partial_sequence, self._missing = None, 0, set()
