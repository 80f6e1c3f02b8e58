"""The state of another peer, as far as this one knows it, and what is sent to it accordingly."""

from __future__ import annotations

import time

from gossip import gossip_pb2 as pb
from gossip.inbox import Inbox, Vector
from gossip.local import LocalPeer
from gossip.outbox import Outbox


class Standing:
    """Another peer: its state as far as it is known, and the vectors to it and from it.

    Read and write its attributes only while ``local.changed`` is held.
    """

    def __init__(self, local: LocalPeer, number: int, expected: bool) -> None:
        me = local.identity
        self.local, self.number = local, number
        self.expected = expected  # whether it is one of the peers that learn together now
        self.inbox, self.outbox = Inbox(me.layout, me.width, local.largest, me.network), Outbox()
        self.life = 0  # the life that is known here; 0: none yet
        self.state, self.round = pb.STATE_UNSPECIFIED, 0
        self.round_seen = 0.0  # when it last reported its round
        self.behind = 0  # by how many rounds it was behind this peer then
        self.there = False  # whether it takes part and can be reached
        self.apart = False  # whether it exchanges nothing for now
        self.counts_us = True  # whether it sends shares to this peer
        self.began_without_us = False
        self.trouble = "it was not reached yet"
        self.waited = 0.0  # seconds that this peer has waited for it since it last sent a vector in time
        self.slow = False  # whether that was a whole deadline: it is not waited for any more
        self.useless = False  # whether its last share was refused: it is sent no share then
        self.held_up = 0  # the last round in which it waited long for a slow peer
        self._share_round, self._withholds = -1, False  # its round at the last share; whether it is sent none for now
        self._claimed = self._disproved = 0  # the life that a caller claims, and one that was a false claim
        self._reached, self._greet_now = False, True

    def put(self, vector: Vector) -> bool:
        """Queue a vector. Returns False if the peer takes none or the outbox is full: the vector stays ours then.

        A slow or held-up peer is sent one share in each of its own rounds, not of ours. It gives one back in each, so
        more shares would leave this peer with little. A greeting tells it to stop waiting for more.
        """
        # A peer that stands apart still receives broadcasts.
        accepts = self.there if vector.broadcast is not None else self.exchanges
        if not accepts or self.outbox.is_full:
            return False
        if vector.broadcast is None:
            was, self._withholds = self._withholds, (self.slow or self.waits) and self._share_round == self.round
            if self._withholds is not was:
                self.greet_soon()
            if self._withholds:
                return False
            self._share_round = self.round
        self.outbox.vectors.append(vector)
        self.local.changed.notify_all()
        return True

    @property
    def is_unsettled(self) -> bool:
        """Whether the peer can be reached, and has still to give up a vector that was taken back."""
        return self._reached and self.outbox.withdraw != 0

    @property
    def waits(self) -> bool:
        """Whether it is held up in its current round."""
        return self.held_up >= self.round > 0

    @property
    def exchanges(self) -> bool:
        """Whether shares are sent to it."""
        return self.there and not self.apart

    @property
    def takes_part(self) -> bool:
        """Whether it began together with this peer, or has caught up since."""
        return self.state in (pb.STATE_LEARNING, pb.STATE_FINISHED) or (
            self.life != 0 and self.local.founders.get(self.number) == self.life
        )

    def refresh(self) -> None:
        """Decide again whether the peer is there."""
        was = self.there
        self.there = self.expected and self._reached and not self.outbox.withdraw and self.takes_part
        if self.there is not was:
            self._greet_now = True  # it should soon know that it counts here
        self.local.changed.notify_all()

    def take_back(self) -> None:
        """Take back all vectors that the peer has not answered."""
        self.outbox.take_back()

    def greet_soon(self) -> None:
        self._greet_now = True
        self.local.changed.notify_all()

    def greeting(self, life: int) -> pb.Greeting:
        """Return the greeting for this life of the peer."""
        local = self.local
        has_begun = local.state != pb.STATE_WAITING
        return pb.Greeting(
            envelope=local.envelope(self.number, life), state=local.state, conf=local.identity.conf,
            app=local.identity.app, counts_you=self.there and not (self._withholds or self.useless),
            apart=local.apart, held_up=local.held_up,
            began_without_you=has_begun and local.founders.get(self.number) != life,
            taken=self.inbox.taken if life == self.life else 0,
        )  # fmt: skip

    def update(self, greeting: pb.Greeting) -> None:
        """Update the state from a greeting of the known life, be it a call or the answer to one."""
        self.state = greeting.state
        self.note_round(greeting.envelope.round)
        self.began_without_us, self.held_up = greeting.began_without_you, greeting.held_up
        # A peer that has not begun counts nobody yet, and will count this peer when it begins.
        self.counts_us = greeting.counts_you or greeting.state == pb.STATE_WAITING
        if greeting.apart and not self.apart and self.outbox.has_shares:
            self.take_back()  # a peer that stands apart would hold the shares for all that time
        self.apart = greeting.apart
        if greeting.state == pb.STATE_LEAVING and self._reached:
            self._settle(greeting.taken)
            self._lose("has left")
        self.refresh()

    def charge(self, seconds: float) -> None:
        """Charge the peer with seconds of waiting. After a deadline in all it counts as slow.

        Only a vector that arrives in time renews the deadline, whatever the peer reports of itself.
        """
        self.waited += seconds
        self.slow |= self.waited >= self.local.patience.deadline

    def credit(self, vector: Vector) -> None:
        """Renew the peer's deadline if a vector is of the kind that is waited for, and in time."""
        if (vector.broadcast is not None) is self.local.broadcasting and not self.local.is_overdue(vector.round):
            self.waited, self.slow = 0.0, False

    def note_round(self, number: int) -> None:
        """Note the round that the peer reports. Reports may arrive out of order, so a lower number is ignored."""
        self.round_seen = time.monotonic()
        if number >= self.round:
            self.round, self.behind = number, self.local.round - number

    def check_life(self, life: int) -> pb.Status:
        """Return the answer to a message of an unknown life. The peer itself is asked whether it has that life."""
        if life < self.life:
            return pb.STATUS_REPLAYED
        if life == self._disproved:
            return pb.STATUS_FORGED
        self._claimed = life
        self.greet_soon()
        return pb.STATUS_UNKNOWN

    def _settle(self, taken: int) -> None:
        """Stop waiting for the answer to a share. ``taken`` is the number of the last share that the peer has taken."""
        twice = self.outbox.settle(taken)
        if twice is not None:
            self.inbox.owed.append(twice)

    def _lose(self, reason: str) -> None:
        if self.takes_part and self.local.state == pb.STATE_LEARNING:
            self.local.say(f"peer {self.number} {reason}")
        self._reached = False
        self.take_back()
