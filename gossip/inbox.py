"""What comes from one peer, and which of it has been used: every vector exactly once, or never.

A sender sends a vector when the one before it was answered for good, so the last sequence number tells old from new,
whatever is lost, repeated, late or out of order. The last share may still be taken back: its sender may have missed our
answer, hold us for dead, and keep what it sent. Then it is given up here as well, so that it is used once in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossip import gossip_pb2 as pb
from strategies.medium import flaw

F32 = NDArray[np.float32]

PIECE = 1 << 18  # numbers of a piece: 1 MiB
_STATUS = {"": pb.STATUS_UNSPECIFIED, "not-finite": pb.STATUS_NOT_FINITE, "huge": pb.STATUS_HUGE}
AHEAD = 8  # rounds that a peer may be ahead of another
WORDS = 2 * AHEAD  # words that may wait here to be heard


class Word(NamedTuple):
    """What a vector that is told to everybody is about."""

    tag: str
    turn: int
    final: bool = False


class Parcel(NamedTuple):
    """A vector on its way: a share, which has a weight, or a word. ``true`` is what a liar has in place of ``row``;
    ``scant`` is a share of somebody who has little left."""

    round: int
    row: F32
    weight: float = 0.0
    word: Word | None = None
    true: F32 | None = None
    scant: bool = False

    @property
    def nbytes(self) -> int:
        return self.row.nbytes + (8 if self.word is None else 0)

    @property
    def kept(self) -> Parcel:
        """What its sender has again when it does not go, or comes back: never its own lie."""
        return self if self.true is None else self._replace(row=self.true, true=None)


@dataclass
class Inbox:
    """From one peer. ``width`` numbers are a vector; a larger number than ``largest`` is refused."""

    layout: int
    width: int
    largest: float
    network: int
    last: int = 0  # sequence number of the last vector that was taken or given up
    taken: int = 0  # sequence number of the last share that was taken, unless it was given up
    shares: list[Parcel] = field(default_factory=list)  # not used yet
    owed: list[Parcel] = field(default_factory=list)  # used, then taken back by their sender: to be given up
    words: list[Parcel] = field(default_factory=list)  # not heard yet; final ones until their round is over
    spoiled: tuple[int, str, int] = (0, "", 0)  # round, tag and turn of what was refused last: it does not come again
    _newest: Parcel | None = None  # the last share: the only one that may be taken back
    _coming: int = 0  # sequence number of the vector whose pieces come
    _row: F32 | None = None
    _missing: set[int] = field(default_factory=set)

    def begin_anew(self) -> None:
        """Its sender has died, and lives again: what came from it is ours, and nobody takes it back."""
        self.last, self.taken, self._newest, self.words = 0, 0, None, []
        self._drop()

    def take(self, piece: pb.Piece, here: int, shut: bool = False) -> tuple[pb.Status, Parcel | None]:
        """What becomes of a piece, while we are in round ``here``; and the vector, when it is whole and new.

        A share waits here until it is ``due``; none is taken while the inbox is ``shut``. A word is handed out, to be
        kept in ``words`` if it is not too late.
        """
        if piece.sequence <= self.last:
            return pb.STATUS_DUPLICATE, None
        if piece.sequence > self.last + 1:
            return pb.STATUS_OUT_OF_ORDER, None
        about = piece.word if piece.HasField("word") else None
        room = len(self.words) < WORDS if about is not None else not shut
        if piece.round > here + AHEAD or not room:
            return pb.STATUS_HOLD, None
        status, row = self._joined(piece)
        if row is not None:
            weight = piece.share.weight if about is None else 1.0
            status = self._flaw(row, weight) or status
        if status not in (pb.STATUS_TAKEN, pb.STATUS_PART):
            self.spoiled = (piece.round, *((about.tag, about.turn) if about is not None else ("", 0)))
        if row is None or status != pb.STATUS_TAKEN:
            return status, None
        self.last, self._newest = piece.sequence, None
        if about is not None:
            return pb.STATUS_TAKEN, Parcel(piece.round, row, word=Word(about.tag, about.turn, about.final))
        self.taken = piece.sequence
        parcel = self._newest = Parcel(piece.round, row, weight, scant=piece.share.scant)
        self._wait(parcel, here)
        return pb.STATUS_TAKEN, parcel

    def give_up(self, sequence: int, closed: bool = False) -> pb.Status:
        """Its sender has taken a vector back. A peer that has ``closed`` its books keeps a share that is in them."""
        if sequence == self.last + 1:
            self.last = sequence  # it never came whole, and is not to come any more
            self._drop()
        elif sequence != self.last:
            return pb.STATUS_OUT_OF_ORDER
        elif self._newest is not None:
            if closed:
                return pb.STATUS_DUPLICATE
            self.taken = 0
            waiting = [one for one in self.shares if one is not self._newest]
            if len(waiting) == len(self.shares):
                self.owed.append(self._newest)
            self.shares = waiting
        self._newest = None
        return pb.STATUS_GIVEN_UP

    def due(self, number: float) -> list[Parcel]:
        """The shares of this round and of earlier ones that came late, in order: they are used now."""
        found = [one for one in self.shares if one.round <= number]
        self.shares = [one for one in self.shares if one.round > number]
        return found

    def has(self, number: int) -> bool:
        """Whether the share of a round is there, or was refused, or will not come because a later one has."""
        return self._refused_since(number) or any(one.round >= number for one in self.shares)

    def refused(self, number: int) -> bool:
        """Whether the share of a round was refused, as far as is known when that of a later one was, too."""
        return self._refused_since(number) and all(one.round != number for one in self.shares)

    def said(self, number: int, tag: str, turn: int) -> F32 | None:
        """What it tells in this turn; its final word stands for all turns after it."""
        for one in self.words:
            word = one.word
            if word is None or (one.round, word.tag) != (number, tag):
                continue
            if word.turn == turn or (word.final and word.turn < turn):
                return one.row
        return None

    def _refused_since(self, number: int) -> bool:
        """Whether what was refused last is a share of this round, or of a later one."""
        return self.spoiled[0] >= number and not self.spoiled[1]

    def _wait(self, parcel: Parcel, here: int) -> None:
        """Keep a share until it is used. There is one for each round to come, and one for all that are over."""
        for at, other in enumerate(self.shares):
            if other.round == parcel.round or max(other.round, parcel.round) < here:
                row, weight = other.row + parcel.row, other.weight + parcel.weight
                self.shares[at] = Parcel(other.round, row, weight, scant=other.scant or parcel.scant)
                return
        self.shares.append(parcel)

    def _joined(self, piece: pb.Piece) -> tuple[pb.Status, F32 | None]:
        """The vector, when this was the last piece of it."""
        data, offset = piece.data, piece.offset
        if piece.layout != self.layout or piece.width != self.width:
            return pb.STATUS_WRONG_LAYOUT, None
        count = min(PIECE, self.width - offset)
        if offset % PIECE or count <= 0 or len(data) != 4 * count:
            return pb.STATUS_OVERSIZED, None
        row = np.frombuffer(data, "<f4")
        if count == self.width:
            return pb.STATUS_TAKEN, row
        if self._row is None or self._coming != piece.sequence:
            # Memory before its numbers have come: for the one vector that is next, and of the width that all have.
            self._coming, self._row = piece.sequence, np.empty(self.width, np.float32)
            self._missing = set(range(0, self.width, PIECE))
        self._row[offset : offset + count] = row
        self._missing.discard(offset)
        if self._missing:
            return pb.STATUS_PART, None
        whole = self._row
        self._drop()
        return pb.STATUS_TAKEN, whole

    def _flaw(self, row: F32, weight: float) -> pb.Status:
        """Why a vector cannot be used, or nothing. What was learned, x / y, is of a moderate size whatever y is."""
        if not 0.0 < weight <= self.network:
            return pb.STATUS_BAD_WEIGHT
        return _STATUS[flaw(row, self.width, self.largest * weight)]

    def _drop(self) -> None:
        self._row, self._coming, self._missing = None, 0, set()
