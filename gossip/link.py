"""The way to one other peer: a thread that greets it, sends what is for it, and sees that it lives.

What is sent stays ours until it is answered for good. One vector is on its way at a time, sent again and again until
then. When the peer is dead (no sign of life for so long), all that was not answered is taken back; a peer that was held
for dead and was not is first told so, and gives up what it had used.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from gossip import gossip_pb2 as pb
from gossip.gossip_pb2_grpc import PeerStub
from gossip.here import MAX_BYTES, REFUSED, VERSION, Here, name
from gossip.inbox import AHEAD, PIECE, Inbox, Parcel

# A vector with one of these answers is the recipient's, or is not needed any more.
DONE = {pb.STATUS_TAKEN, pb.STATUS_DUPLICATE, pb.STATUS_LATE}
# A vector with one of these was not used and never will be: it is ours again.
HOPELESS = {
    pb.STATUS_WRONG_LAYOUT, pb.STATUS_OVERSIZED, pb.STATUS_NOT_FINITE, pb.STATUS_HUGE, pb.STATUS_BAD_WEIGHT
}  # fmt: skip
AGAIN_S, LONGEST_S = 0.01, 0.5  # the first pause before something is tried again, and the longest; they double


class Link:
    """One other peer: how to reach it, what is known of it, what is on its way there and what came from it.

    Everything here is read and written while ``here.changed`` is held. Where there is no ``address`` yet, the peer is
    one of whom nobody has said where it is.
    """

    def __init__(self, here: Here, number: int, address: str) -> None:
        me = here.identity
        self.here, self.number, self.address = here, number, address
        self.expected = bool(address)  # whether it is one of those that learn together now
        self.inbox = Inbox(me.layout, me.width, here.largest, me.network)
        self.life = 0  # which of its lives we know; 0: none yet
        self.state, self.round = pb.STATE_UNSPECIFIED, 0
        self.heard = 0.0  # when it last said how far it is
        self.behind = 0  # by how many rounds it was behind us then
        self.there = False  # whether it takes part and can be reached
        self.apart = False  # whether it exchanges nothing for now
        self.counts_us = True  # whether it sends us shares
        self.began_without_us = False
        self.trouble = "it was not reached yet"
        self.waited = 0.0  # seconds that it was waited for since it last sent something in time
        self.slow = False  # whether that was a whole deadline: it is not waited for any more
        self.useless = False  # whether its last share was refused: it is sent none then
        self.held_up = 0  # the last round in which it waited long for somebody slow
        self.returned: list[Parcel] = []  # shares that were taken back
        self._outbox: deque[Parcel] = deque()
        self._sequence, self._tried = 1, False  # of the first in the outbox, and whether it may have arrived
        self._withdraw = 0  # the sequence number that the peer must be told to give up; 0: none
        self._withdrawn: Parcel | None = None  # the share of that number
        self._shared, self._withholds = -1, False  # its round at the last share, and whether it is sent none for now
        self._claimed = self._disproved = 0  # a life that somebody claims for it, and one that it was found not to live
        self._reached, self._contact, self._greeted, self._greet_now = False, 0.0, 0.0, True
        self._met: frozenset[type[Exception]] = frozenset()  # kinds of unexpected errors that were reported
        self._channel, self.stub = self._open()
        self._thread = threading.Thread(target=self._run, name=f"to peer {number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, deadline: float) -> None:
        """After ``here.closing`` was set: the thread says goodbye, and ends; by then, whatever it waits for."""
        if self._thread.is_alive():  # a peer that could not listen has started no thread
            self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._channel is not None:
            self._channel.close()

    # For the other threads of this peer.

    def expect(self, address: str) -> None:
        """It learns with us, there; or nowhere, for now."""
        self.expected = bool(address)
        if address and address != self.address:
            before, self.address, self.trouble = self._channel, address, "it was not reached yet"
            self._channel, self.stub = self._open()
            if before is not None:
                before.close()  # a call of the thread ends with it
            self._greet_now = True
        self.refresh()

    def put(self, parcel: Parcel) -> bool:
        """Send a vector; where there is no room, or nobody, it stays ours.

        Who is slow, or held up, is sent a share in every round of its own, not of ours: it gives one back in each, and
        more would leave us with little. It is told so, and does not wait for the others.
        """
        if not self._open_to(parcel) or self.full:
            return False
        if parcel.word is None:
            was, self._withholds = self._withholds, (self.slow or self.waits) and self._shared == self.round
            if self._withholds is not was:
                self.greet_soon()
            if self._withholds:
                return False
            self._shared = self.round
        self._outbox.append(parcel)
        self.here.changed.notify_all()
        return True

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        return bool(self._outbox or self._withdraw)

    @property
    def unsettled(self) -> bool:
        """Whether the peer has still to be told what was taken back, and can be."""
        return self._reached and self._withdraw != 0

    @property
    def waits(self) -> bool:
        """Whether it is held up in the round that it is in."""
        return self.held_up >= self.round > 0

    @property
    def full(self) -> bool:
        """Whether there is no room for another vector."""
        return len(self._outbox) >= AHEAD

    @property
    def exchanges(self) -> bool:
        """Whether it is sent shares."""
        return self.there and not self.apart

    @property
    def takes_part(self) -> bool:
        """Whether it is one of those we began with, or has caught up with them."""
        return self.state in (pb.STATE_LEARNING, pb.STATE_FINISHED) or (
            self.life != 0 and self.here.founders.get(self.number) == self.life
        )

    def refresh(self) -> None:
        """Look again whether the peer is there."""
        was, self.there = self.there, self.expected and self._reached and not self._withdraw and self.takes_part
        if self.there is not was:
            self._greet_now = True  # it should know soon that it counts here
        self.here.changed.notify_all()

    def take_back(self) -> None:
        """What was not answered is ours again; what may have arrived must be given up there."""
        if self._outbox and self._tried:
            self._withdraw, self._sequence, self._tried = self._sequence, self._sequence + 1, False
            first = self._outbox[0]
            self._withdrawn = first.kept if first.word is None else None
        self._empty()

    def greet_soon(self) -> None:
        self._greet_now = True
        self.here.changed.notify_all()

    def greeting(self, life: int) -> pb.Greeting:
        """What we say to this life of the peer."""
        here = self.here
        begun = here.state != pb.STATE_WAITING
        return pb.Greeting(
            envelope=here.envelope(self.number, life), state=here.state, conf=here.identity.conf, app=here.identity.app,
            counts_you=self.there and not (self._withholds or self.useless), apart=here.apart, held_up=here.held_up,
            began_without_you=begun and here.founders.get(self.number) != life,
            taken=self.inbox.taken if life == self.life else 0,
        )  # fmt: skip

    def learn(self, greeting: pb.Greeting) -> None:
        """What a greeting of the life that we know says of the peer, be it a call of its or the answer to ours."""
        self.state = greeting.state
        self.is_in(greeting.envelope.round)
        self.began_without_us, self.held_up = greeting.began_without_you, greeting.held_up
        # Who still waits counts nobody, and will count us when it begins.
        self.counts_us = greeting.counts_you or greeting.state == pb.STATE_WAITING
        if greeting.apart and not self.apart and any(one.word is None for one in self._outbox):
            self.take_back()  # it would hold our shares for as long as it says nothing
        self.apart = greeting.apart
        if greeting.state == pb.STATE_LEAVING and self._reached:
            self._settle(greeting.taken)
            self._gone("has left")
        self.refresh()

    def waited_for(self, seconds: float) -> None:
        """Spend patience with the peer. It has one deadline in all, whatever it says of itself meanwhile: only what it
        sends in time gives it another one."""
        self.waited += seconds
        self.slow |= self.waited >= self.here.patience.deadline

    def sent(self, parcel: Parcel) -> None:
        """Renew patience with the peer, if what it sent is of the kind that is waited for, and in time."""
        if (parcel.word is not None) is self.here.tells and not self.here.in_vain(parcel.round):
            self.waited, self.slow = 0.0, False

    def is_in(self, number: int) -> None:
        """It says which round it is in; what it said before may arrive later."""
        self.heard = time.monotonic()
        if number >= self.round:
            self.round, self.behind = number, self.here.round - number

    def doubt(self, life: int) -> pb.Status:
        """What to answer a message of a life that we do not know: was the peer born again, or does somebody pretend?"""
        if life < self.life:
            return pb.STATUS_REPLAYED
        if life == self._disproved:
            return pb.STATUS_FORGED
        self._claimed = life
        self.greet_soon()
        return pb.STATUS_UNKNOWN

    # The thread.

    def _run(self) -> None:
        pause = 0.0
        while (todo := self._next(pause)) is not None:
            try:
                again = todo()
            except grpc.RpcError as error:
                self._failed(words(error))
                again = True
            except ValueError:  # the channel was closed
                again = True
            except Exception as error:  # without its thread a peer would count as there for ever
                self._failed(self._unexpected(error))
                again = True
            pause = min(max(2 * pause, AGAIN_S), LONGEST_S) if again else 0.0
        with self.here.changed:
            goodbye = self.greeting(self.life) if self._reached else None
        if goodbye is not None:
            try:
                self.stub.Greet(goodbye, timeout=1.0)
            except (grpc.RpcError, ValueError):
                return  # it sees by itself that we are gone

    def _next(self, pause: float) -> Callable[[], bool] | None:
        """What is to be done next, waited for; None when this peer leaves."""
        with self.here.changed:
            until = time.monotonic() + pause
            while not self.here.closing:
                now, beat = time.monotonic(), self._greeted + self.here.patience.beat
                if now >= until and self.address:
                    if self._greet_now or not self.life or now >= beat:
                        return self._greet
                    if self._reached and self._withdraw:
                        return self._give_back
                    if self._reached and self._outbox:
                        return self._give
                self.here.changed.wait((until if now < until else beat) - now if self.address else None)
        return None

    def _greet(self) -> bool:
        with self.here.changed:
            self._greet_now, self._greeted = False, time.monotonic()
            greeting = self.greeting(self.life)
        answer = self.stub.Greet(greeting, timeout=self.here.patience.call)
        with self.here.changed:
            if trouble := self._misfit(answer):
                self._failed(trouble)
                return True
            life = answer.envelope.incarnation
            if self._claimed and self._claimed != life:
                self._disproved = self._claimed
            self._claimed = 0
            if life != self.life:
                self._meet(life)
            self._contact, self.trouble = time.monotonic(), ""
            self._reached |= answer.state != pb.STATE_LEAVING
            self.learn(answer)
        return False

    def _misfit(self, answer: pb.Greeting) -> str:
        """Why who answers is not the peer that we look for, in words."""
        me, said = self.here.identity, answer.envelope
        if said.version != VERSION:
            return f"it speaks version {said.version} of the protocol, not {VERSION}"
        if answer.conf != me.conf:
            return "its configuration is another one: all peers of a run are given the same conf"
        if answer.app != me.app:
            return f"it runs the code {answer.app[:12]!r}, this peer {me.app[:12]!r}: install the same on both"
        if answer.status >= REFUSED:
            return f"it refuses this peer ({name(answer.status)})"
        if (said.run, said.sender, said.recipient) != (me.run, self.number, me.number):
            return f"peer {said.sender} answers there, to peer {said.recipient}"
        return ""

    def _meet(self, life: int) -> None:
        """The peer is new, or has been born again: what was for its last life is ours, what came from it as well."""
        if self.life:
            self.here.say(f"peer {self.number} is back, in another life")
        self._empty()
        self.inbox.begin_anew()
        self.held_up, self.behind, self._shared, self._withholds = 0, 0, -1, False
        self.life, self.round, self._sequence, self._tried = life, 0, 1, False
        self._withdraw, self._withdrawn = 0, None

    def _give(self) -> bool:
        """Send the first of the outbox, piece by piece."""
        here = self.here
        with here.changed:
            if not self._outbox:
                return False
            parcel, envelope, self._tried = self._outbox[0], here.envelope(self.number, self.life), True
            piece = pb.Piece(
                envelope=envelope, sequence=self._sequence, round=parcel.round, layout=here.identity.layout,
                width=len(parcel.row),
            )  # fmt: skip
            if parcel.word is None:
                piece.share.weight, piece.share.scant = parcel.weight, parcel.scant
            else:
                piece.word.tag, piece.word.turn, piece.word.final = parcel.word
        row = np.ascontiguousarray(parcel.row, "<f4")
        for offset in range(0, max(len(row), 1), PIECE):
            piece.offset, piece.data = offset, row[offset : offset + PIECE].tobytes()
            receipt = self.stub.Give(piece, timeout=here.patience.call)
            if receipt.status != pb.STATUS_PART:
                break
        with here.changed:
            here.counts["bytes_up"] += parcel.nbytes
            if not self._answered(receipt, envelope) or not self._outbox or self._outbox[0] is not parcel:
                return True
            if receipt.status in DONE | HOPELESS:
                self._outbox.popleft()
                self._sequence, self._tried = self._sequence + (receipt.status in DONE), False
                if receipt.status in HOPELESS and parcel.word is None:
                    self.returned.append(parcel.kept)
                here.changed.notify_all()
                return False
        return True

    def _give_back(self) -> bool:
        """Tell the peer what we took back while we held it for dead."""
        with self.here.changed:
            sequence, envelope = self._withdraw, self.here.envelope(self.number, self.life)
        receipt = self.stub.Withdraw(
            pb.Withdrawal(envelope=envelope, sequence=sequence), timeout=self.here.patience.call
        )
        with self.here.changed:
            kept = receipt.status == pb.STATUS_DUPLICATE  # the peer has added up for the last time
            if not self._answered(receipt, envelope) or not (kept or receipt.status == pb.STATUS_GIVEN_UP):
                return True
            if self._withdraw == sequence:
                self._settle(sequence if kept else 0)
            self.refresh()
        return False

    def _answered(self, receipt: pb.Receipt, envelope: pb.Envelope) -> bool:
        """Whether a receipt is of the life that we wrote to; a refusal of the sender is no sign of life."""
        if receipt.status >= REFUSED and receipt.status not in HOPELESS:
            self._failed(f"it refuses this peer ({name(receipt.status)})")
            return False
        if receipt.incarnation != self.life or envelope.recipient_incarnation != self.life:
            self.greet_soon()
            return False
        self._contact = time.monotonic()
        self.is_in(receipt.round)
        return True

    def _unexpected(self, error: Exception) -> str:
        """Report an error that a link should not meet, once for each kind; returns its words."""
        kind, words = type(error), f"{type(error).__name__}: {error}"
        with self.here.changed:
            new, self._met = kind not in self._met, self._met | {kind}
        if new:
            self.here.say(f"the link to peer {self.number} failed: {words}")
        return words

    def _failed(self, trouble: str) -> None:
        """A call brought nothing: after some time of this the peer is dead to us."""
        with self.here.changed:
            self.trouble = trouble
            if self._reached and time.monotonic() - self._contact > self.here.patience.dead:
                self._gone(f"is gone: {trouble}")
            self.refresh()

    def _settle(self, taken: int) -> None:
        """No answer to the share on its way is needed any more: the peer has taken it if it has this number."""
        if self._withdraw and self._withdraw == taken and self._withdrawn is not None:
            self.inbox.owed.append(self._withdrawn)  # we have it again, and must not
        if self._outbox and self._sequence == taken:
            self._outbox.popleft()
        self._withdraw, self._withdrawn, self._tried = 0, None, False

    def _gone(self, how: str) -> None:
        if self.takes_part and self.here.state == pb.STATE_LEARNING:
            self.here.say(f"peer {self.number} {how}")
        self._reached = False
        self.take_back()

    def _open(self) -> tuple[grpc.Channel | None, Any]:
        channel = _channel(self.here, self.number, self.address) if self.address else None
        return channel, PeerStub(channel) if channel is not None else None

    def _open_to(self, parcel: Parcel) -> bool:
        """Who stands apart is told words all the same."""
        return self.there if parcel.word is not None else self.exchanges

    def _empty(self) -> None:
        """The outbox is given up; words are nothing that could be lost."""
        self.returned += [parcel.kept for parcel in self._outbox if parcel.word is None]
        self._outbox.clear()


def _channel(here: Here, number: int, address: str) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_BYTES),
        # A connection of its own, which is tried again soon: gRPC itself would come to wait two minutes.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if here.tls is None:
        return grpc.insecure_channel(address, options)
    # Peers are known by their number, wherever they are.
    return grpc.secure_channel(
        address, here.tls.client(), [*options, ("grpc.ssl_target_name_override", f"peer-{number}")]
    )


def words(error: grpc.RpcError) -> str:
    """Why a peer was not reached, in words."""
    code, details = error.code(), " ".join(str(error.details() or "").split())
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "it does not answer"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return f"its certificate does not verify: {details.rpartition('FAILED: ')[2][:100]}"
    if "Hostname Verification" in details or "Peer name" in details:
        return "its certificate is not for this peer"
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks plain text, and this peer TLS"
    if code is grpc.StatusCode.UNAVAILABLE and "refused" in details:
        return "nobody listens there"
    return f"{code.name.lower().replace('_', ' ')}: {details[:160]}"
