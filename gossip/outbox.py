"""The vectors for one peer. A vector stays its sender's until it has a final answer.

One vector is in flight at a time, and is sent again until then. When the peer counts as dead, all vectors without an
answer are taken back. The first of them may have arrived: if the peer lives after all, it must give that one up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gossip import gossip_pb2 as pb
from gossip.inbox import AHEAD, Vector

# After one of these answers the vector is the recipient's, or is not needed any more.
DONE = {pb.STATUS_TAKEN, pb.STATUS_DUPLICATE, pb.STATUS_LATE}
# After one of these the vector was not used and never will be: it is the sender's again.
HOPELESS = {
    pb.STATUS_WRONG_LAYOUT, pb.STATUS_OVERSIZED, pb.STATUS_NOT_FINITE, pb.STATUS_HUGE, pb.STATUS_BAD_WEIGHT
}  # fmt: skip


@dataclass
class Outbox:
    """The vectors for one life of a peer, in order."""

    vectors: deque[Vector] = field(default_factory=deque)
    sequence: int = 1  # of the first vector
    tried: bool = False  # whether the first vector may have arrived
    withdraw: int = 0  # the sequence number that the peer must give up; 0: none
    withdrawn: Vector | None = None  # the share of that number
    returned: list[Vector] = field(default_factory=list)  # shares that were taken back, to be added up again

    @property
    def is_busy(self) -> bool:
        """Whether a vector or a withdrawal waits for its answer."""
        return bool(self.vectors or self.withdraw)

    @property
    def is_full(self) -> bool:
        return len(self.vectors) >= AHEAD

    @property
    def has_shares(self) -> bool:
        return any(vector.broadcast is None for vector in self.vectors)

    def take_back(self) -> None:
        """Take back all vectors without an answer. The peer must give up the one that may have arrived."""
        if self.vectors and self.tried:
            self.withdraw, self.sequence, self.tried = self.sequence, self.sequence + 1, False
            first = self.vectors[0]
            self.withdrawn = first.kept if first.broadcast is None else None
        self.clear()

    def clear(self) -> None:
        """Take back all shares, and drop all broadcasts: a broadcast carries no mass."""
        self.returned += [vector.kept for vector in self.vectors if vector.broadcast is None]
        self.vectors.clear()

    def restart(self) -> None:
        """Begin again for a new life of the peer, which has none of the vectors of the last one."""
        self.clear()
        self.sequence, self.tried = 1, False
        self.withdraw, self.withdrawn = 0, None

    def finish_first(self, status: pb.Status) -> None:
        """Remove the first vector after a final answer. A refused share is the sender's again."""
        vector = self.vectors.popleft()
        self.sequence, self.tried = self.sequence + (status in DONE), False
        if status in HOPELESS and vector.broadcast is None:
            self.returned.append(vector.kept)

    def settle(self, taken: int) -> Vector | None:
        """Stop waiting for answers: ``taken`` is the number of the last share that the peer has taken.

        Returns a share that was taken back here although the peer has taken it: it must be subtracted again.
        """
        twice = self.withdrawn if self.withdraw and self.withdraw == taken else None
        if self.vectors and self.sequence == taken:
            self.vectors.popleft()
        self.withdraw, self.withdrawn, self.tried = 0, None, False
        return twice
