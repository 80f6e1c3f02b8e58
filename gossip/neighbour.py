"""Another peer, seen from this one. A thread greets it, sends its vectors, and watches whether it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from gossip import gossip_pb2 as pb
from gossip.channel import explain, mismatch, open_channel
from gossip.gossip_pb2_grpc import PeerStub
from gossip.inbox import PIECE, Vector
from gossip.local import REFUSED, LocalPeer, name
from gossip.outbox import DONE, HOPELESS
from gossip.standing import Standing

AGAIN_S, LONGEST_S = 0.01, 0.5  # the first and the longest pause before a retry; pauses double


class Neighbour(Standing):
    """Another peer with its channel and the thread that calls it. An empty ``address`` is not known yet."""

    def __init__(self, local: LocalPeer, number: int, address: str) -> None:
        super().__init__(local, number, bool(address))
        self.address = address
        self._contact, self._greeted = 0.0, 0.0
        self._reported: frozenset[type[Exception]] = frozenset()  # kinds of unexpected errors that were reported
        self._channel, self.stub = self._open()
        self._thread = threading.Thread(target=self._run, name=f"to peer {number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, deadline: float) -> None:
        """Wait until the thread has sent a goodbye, or until the deadline. Set ``local.closing`` before."""
        if self._thread.is_alive():  # a peer that could not listen has started no thread
            self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._channel is not None:
            self._channel.close()

    def expect(self, address: str) -> None:
        """Expect the peer at an address to take part. An empty address means that it takes no part for now."""
        self.expected = bool(address)
        if address and address != self.address:
            before, self.address, self.trouble = self._channel, address, "it was not reached yet"
            self._channel, self.stub = self._open()
            if before is not None:
                before.close()  # this ends a call of the thread
            self._greet_now = True
        self.refresh()

    # The thread.

    def _run(self) -> None:
        pause = 0.0
        while (call := self._next_call(pause)) is not None:
            try:
                retry = call()
            except grpc.RpcError as error:
                self._fail(explain(error))
                retry = True
            except ValueError:  # the channel was closed
                retry = True
            except Exception as error:  # if the thread ended here, the peer would count as there for ever
                self._fail(self._report_unexpected(error))
                retry = True
            pause = min(max(2 * pause, AGAIN_S), LONGEST_S) if retry else 0.0
        with self.local.changed:
            goodbye = self.greeting(self.life) if self._reached else None
        if goodbye is not None:
            try:
                self.stub.Greet(goodbye, timeout=1.0)
            except (grpc.RpcError, ValueError):
                return  # the peer will notice by itself that this one is gone

    def _next_call(self, pause: float) -> Callable[[], bool] | None:
        """Wait for the next call to make. A call returns whether to retry; None means that this peer leaves."""
        with self.local.changed:
            until = time.monotonic() + pause
            while not self.local.closing:
                now, beat = time.monotonic(), self._greeted + self.local.patience.beat
                if now >= until and self.address:
                    if self._greet_now or not self.life or now >= beat:
                        return self._greet
                    if self._reached and self.outbox.withdraw:
                        return self._withdraw
                    if self._reached and self.outbox.vectors:
                        return self._send
                self.local.changed.wait((until if now < until else beat) - now if self.address else None)
        return None

    def _greet(self) -> bool:
        with self.local.changed:
            self._greet_now, self._greeted = False, time.monotonic()
            greeting = self.greeting(self.life)
        answer = self.stub.Greet(greeting, timeout=self.local.patience.call)
        with self.local.changed:
            if trouble := mismatch(self.local.identity, self.number, answer):
                self._fail(trouble)
                return True
            life = answer.envelope.incarnation
            if self._claimed and self._claimed != life:
                self._disproved = self._claimed
            self._claimed = 0
            if life != self.life:
                self._begin_life(life)
            self._contact, self.trouble = time.monotonic(), ""
            self._reached |= answer.state != pb.STATE_LEAVING
            self.update(answer)
        return False

    def _begin_life(self, life: int) -> None:
        """Begin with a new life of the peer. Vectors for its last life, and shares from it, are this peer's now."""
        if self.life:
            self.local.say(f"peer {self.number} is back, in another life")
        self.outbox.restart()
        self.inbox.restart()
        self.held_up, self.behind, self._share_round, self._withholds = 0, 0, -1, False
        self.life, self.round = life, 0

    def _send(self) -> bool:
        """Send the first vector of the outbox, piece by piece."""
        local, outbox = self.local, self.outbox
        with local.changed:
            if not outbox.vectors:
                return False
            vector, envelope, outbox.tried = outbox.vectors[0], local.envelope(self.number, self.life), True
            piece = pb.Piece(
                envelope=envelope, sequence=outbox.sequence, round=vector.round, layout=local.identity.layout,
                width=len(vector.row),
            )  # fmt: skip
        receipt = self._send_pieces(piece, vector)
        with local.changed:
            local.counts["bytes_up"] += vector.nbytes
            if not self._accepts(receipt, envelope) or not outbox.vectors or outbox.vectors[0] is not vector:
                return True
            if receipt.status in DONE | HOPELESS:
                outbox.finish_first(receipt.status)
                local.changed.notify_all()
                return False
        return True

    def _send_pieces(self, piece: pb.Piece, vector: Vector) -> pb.Receipt:
        """Send all pieces of a vector. Returns the answer to the last one, or the first answer that ends it."""
        if vector.broadcast is None:
            piece.share.weight, piece.share.scant = vector.weight, vector.scant
        else:
            piece.broadcast.tag, piece.broadcast.turn, piece.broadcast.final = vector.broadcast
        row = np.ascontiguousarray(vector.row, "<f4")
        for offset in range(0, max(len(row), 1), PIECE):
            piece.offset, piece.data = offset, row[offset : offset + PIECE].tobytes()
            receipt: pb.Receipt = self.stub.Give(piece, timeout=self.local.patience.call)
            if receipt.status != pb.STATUS_PART:
                break
        return receipt

    def _withdraw(self) -> bool:
        """Tell the peer which vector was taken back while it counted as dead."""
        with self.local.changed:
            sequence, envelope = self.outbox.withdraw, self.local.envelope(self.number, self.life)
        receipt = self.stub.Withdraw(
            pb.Withdrawal(envelope=envelope, sequence=sequence), timeout=self.local.patience.call
        )
        with self.local.changed:
            keeps = receipt.status == pb.STATUS_DUPLICATE  # the peer has added up for the last time
            if not self._accepts(receipt, envelope) or not (keeps or receipt.status == pb.STATUS_GIVEN_UP):
                return True
            if self.outbox.withdraw == sequence:
                self._settle(sequence if keeps else 0)
            self.refresh()
        return False

    def _accepts(self, receipt: pb.Receipt, envelope: pb.Envelope) -> bool:
        """Return whether a receipt is of the called life. A refusal of this peer is no sign of life."""
        if receipt.status >= REFUSED and receipt.status not in HOPELESS:
            self._fail(f"it refuses this peer ({name(receipt.status)})")
            return False
        if receipt.incarnation != self.life or envelope.recipient_incarnation != self.life:
            self.greet_soon()
            return False
        self._contact = time.monotonic()
        self.note_round(receipt.round)
        return True

    def _report_unexpected(self, error: Exception) -> str:
        """Report an unexpected error, once for each kind. Returns its text."""
        kind, text = type(error), f"{type(error).__name__}: {error}"
        with self.local.changed:
            is_new, self._reported = kind not in self._reported, self._reported | {kind}
        if is_new:
            self.local.say(f"the exchange with peer {self.number} failed: {text}")
        return text

    def _fail(self, trouble: str) -> None:
        """Note a failed call. After ``patience.dead`` seconds without contact the peer counts as dead."""
        with self.local.changed:
            self.trouble = trouble
            if self._reached and time.monotonic() - self._contact > self.local.patience.dead:
                self._lose(f"is gone: {trouble}")
            self.refresh()

    def _open(self) -> tuple[grpc.Channel | None, Any]:
        channel = open_channel(self.local.tls, self.number, self.address) if self.address else None
        return channel, PeerStub(channel) if channel is not None else None
