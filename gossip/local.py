"""The state of this peer that its threads share: its identity, its round and its counters."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake
from gossip import gossip_pb2 as pb
from gossip.inbox import PIECE

F32 = NDArray[np.float32]

VERSION = 1
MAX_BYTES = 4 * PIECE + 64 * 1024  # of a message: a piece, and room for its other fields
# Statuses from here on are refusals.
REFUSED = pb.STATUS_MALFORMED
# Statuses that are no refusals, and are counted under these names.
COUNTED = {pb.STATUS_DUPLICATE: "duplicates", pb.STATUS_LATE: "late", pb.STATUS_STALE: "stale", pb.STATUS_HOLD: "held"}


def name(status: pb.Status) -> str:
    """Return the name of a status in the metrics: wrong-layout for STATUS_WRONG_LAYOUT."""
    return str(pb.Status.Name(status)).removeprefix("STATUS_").lower().replace("_", "-")


@dataclass(frozen=True)
class Identity:
    """The properties of a peer that stay the same for its whole life."""

    number: int
    network: int
    conf: int  # digest of the configuration; all peers of a run share it
    app: str  # digest of the code; all peers of a run share it
    layout: int
    width: int  # numbers in a vector
    life: int = field(default_factory=time.time_ns)

    @property
    def run(self) -> int:
        return self.conf ^ int(self.app[:16], 16)


@dataclass(frozen=True)
class Patience:
    """The time limits of a peer, in seconds."""

    deadline: float = 10.0  # for the shares and broadcasts of a turn
    dead: float = 5.0  # without a sign of life, until a peer counts as dead
    beat: float = 1.0  # between greetings
    call: float = 5.0  # for the answer to a call
    start: float = 60.0  # for all peers to start
    end: float = 60.0  # for all peers to finish


@dataclass(frozen=True)
class Tls:
    """The certificate authority of the network, and this peer's certificate for the name peer-K."""

    authority: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, folder: Path, number: int) -> Tls:
        try:
            parts = [(folder / name).read_bytes() for name in ("ca.pem", f"peer-{number}.pem", f"peer-{number}.key")]
        except OSError as error:
            raise Mistake(
                f"{error.filename} cannot be read: {error.strerror}; fedrl certs {folder} --peers {number} makes it"
            ) from None
        return cls(*parts)

    def server(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, require_client_auth=True)

    def client(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


class Reporter:
    """A callback that writes notes for the user.

    A note that cannot be written, as on a full disk, must not end a thread. The first such note goes to standard error.
    """

    def __init__(self, number: int, say: Callable[[str], None]) -> None:
        self._number, self._say, self._failed = number, say, False

    def __call__(self, note: str) -> None:
        try:
            self._say(note)
        except Exception as error:
            failed, self._failed = self._failed, True
            if not failed:
                with suppress(OSError, ValueError):  # standard error may be closed, or on the same disk
                    text = f"peer {self._number}: a note cannot be written ({error}); the first such note: {note}"
                    print(text, file=sys.stderr, flush=True)


@dataclass
class LocalPeer:
    """The state that the threads of one peer share. Read and write what changes only while ``changed`` is held."""

    identity: Identity
    patience: Patience
    largest: float
    tls: Tls | None = None
    say: Callable[[str], None] = lambda note: None
    changed: threading.Condition = field(default_factory=threading.Condition)
    state: pb.State = pb.STATE_WAITING
    round: int = 0
    apart: bool = False  # it sends nothing in this round, and takes no share
    held_up: int = 0  # the last round in which it waited long for a slow peer
    broadcasting: bool = False  # whether it waits for broadcasts, and not for shares
    deadlines: dict[int, float] = field(default_factory=dict)  # of recent rounds: until when it waited for vectors
    founders: dict[int, int] = field(default_factory=dict)  # the peers that were known when this one began: their lives
    reasons: Counter[str] = field(default_factory=Counter)  # refusals by name
    counts: Counter[str] = field(default_factory=Counter)  # since they were last read
    published: tuple[int, F32] | None = None  # a round and the weights after it, for peers that join late
    closed: bool = False  # it has added up for the last time: it takes no share, and gives none up
    closing: bool = False
    _reported: set[tuple[int, str]] = field(default_factory=set)

    def envelope(self, recipient: int, life: int) -> pb.Envelope:
        me = self.identity
        return pb.Envelope(
            version=VERSION, run=me.run, sender=me.number, incarnation=me.life, recipient=recipient,
            recipient_incarnation=life, round=self.round,
        )  # fmt: skip

    def is_overdue(self, number: int) -> bool:
        """Return whether a vector of a round, arriving now, is too late to have been waited for."""
        return time.monotonic() > self.deadlines[number] if number in self.deadlines else number < self.round

    def count(self, status: pb.Status, sender: int | None = None) -> pb.Status:
        """Count the status of a message, if it is one that is counted. Returns the status."""
        if status in COUNTED:
            with self.changed:
                self.counts[COUNTED[status]] += 1
        return self.refuse(status, sender) if status >= REFUSED else status

    def refuse(self, status: pb.Status, sender: int | None = None) -> pb.Status:
        """Count a refusal, and report the first one of each kind and sender. Returns the status."""
        kind = (sender if sender is not None else -1, name(status))
        with self.changed:
            self.reasons[name(status)] += 1
            self.counts["refused"] += 1
            is_new = kind not in self._reported
            self._reported.add(kind)
        if is_new:
            caller = f"peer {sender}" if sender is not None else "an unknown caller"
            self.say(f"a message of {caller} was refused ({name(status)})")
        return status
