"""This peer, as its links and its service share it: who it is, where it stands, what it has counted."""

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
MAX_BYTES = 4 * PIECE + 64 * 1024  # of a message: a piece and what stands around it
# Statuses from here on are refusals.
REFUSED = pb.STATUS_MALFORMED
# What is no refusal, and counted all the same.
COUNTED = {pb.STATUS_DUPLICATE: "duplicates", pb.STATUS_LATE: "late", pb.STATUS_STALE: "stale", pb.STATUS_HOLD: "held"}


def name(status: pb.Status) -> str:
    """A status as it stands in the metrics: wrong-layout for STATUS_WRONG_LAYOUT."""
    return str(pb.Status.Name(status)).removeprefix("STATUS_").lower().replace("_", "-")


@dataclass(frozen=True)
class Identity:
    """What a peer is to the others for its whole life."""

    number: int
    network: int
    conf: int  # digests of the configuration and of the code, which all peers of a run share
    app: str
    layout: int
    width: int  # numbers of a vector
    life: int = field(default_factory=time.time_ns)

    @property
    def run(self) -> int:
        return self.conf ^ int(self.app[:16], 16)


@dataclass(frozen=True)
class Patience:
    """For how long a peer waits for what, in seconds."""

    deadline: float = 10.0  # for the shares and words of a turn
    dead: float = 5.0  # without a sign of life until a peer counts as dead
    beat: float = 1.0  # between greetings
    call: float = 5.0  # for the answer to a call
    start: float = 60.0  # for all peers to be there
    end: float = 60.0  # for all peers to have finished


@dataclass(frozen=True)
class Tls:
    """The authority of the network, and this peer's certificate, which names it peer-K."""

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


class Report:
    """Tells people what happened.

    A note that cannot be written, as on a full disk, ends no thread. The first such note goes to standard error.
    """

    def __init__(self, number: int, say: Callable[[str], None]) -> None:
        self._number, self._say, self._failed = number, say, False

    def __call__(self, words: str) -> None:
        try:
            self._say(words)
        except Exception as error:
            failed, self._failed = self._failed, True
            if not failed:
                with suppress(OSError, ValueError):  # standard error may be closed, or on the same disk
                    text = f"peer {self._number}: a note cannot be written ({error}); the first such note: {words}"
                    print(text, file=sys.stderr, flush=True)


@dataclass
class Here:
    """Shared by the threads of one peer: read and written while ``changed`` is held, but for what never changes."""

    identity: Identity
    patience: Patience
    largest: float
    tls: Tls | None = None
    say: Callable[[str], None] = lambda words: None
    changed: threading.Condition = field(default_factory=threading.Condition)
    state: pb.State = pb.STATE_WAITING
    round: int = 0
    apart: bool = False  # it says nothing in this round, and takes no share
    held_up: int = 0  # the last round in which it waited long for somebody slow
    tells: bool = False  # whether words are waited for, and not shares
    due: dict[int, float] = field(default_factory=dict)  # until when shares and words of a round were waited for
    founders: dict[int, int] = field(default_factory=dict)  # whose lives were known when this peer began
    reasons: Counter[str] = field(default_factory=Counter)  # refusals by name
    counts: Counter[str] = field(default_factory=Counter)  # since they were last asked for
    published: tuple[int, F32] | None = None  # a round, and what newcomers are told of it
    closed: bool = False  # it has added up for the last time: no share is taken, or given up, any more
    closing: bool = False
    _said: set[tuple[int, str]] = field(default_factory=set)

    def envelope(self, recipient: int, life: int) -> pb.Envelope:
        me = self.identity
        return pb.Envelope(
            version=VERSION, run=me.run, sender=me.number, incarnation=me.life, recipient=recipient,
            recipient_incarnation=life, round=self.round,
        )  # fmt: skip

    def in_vain(self, number: int) -> bool:
        """Whether what belongs to a round, and comes now, would have been waited for in vain."""
        return time.monotonic() > self.due[number] if number in self.due else number < self.round

    def count(self, status: pb.Status, sender: int | None = None) -> pb.Status:
        """Count what became of a message, if it is worth a count."""
        if status in COUNTED:
            with self.changed:
                self.counts[COUNTED[status]] += 1
        return self.refuse(status, sender) if status >= REFUSED else status

    def refuse(self, status: pb.Status, sender: int | None = None) -> pb.Status:
        """Count a refusal; people are told once of each kind and sender."""
        with self.changed:
            self.reasons[name(status)] += 1
            self.counts["refused"] += 1
            new = (sender if sender is not None else -1, name(status)) not in self._said
            self._said.add((sender if sender is not None else -1, name(status)))
        if new:
            whom = f"peer {sender}" if sender is not None else "somebody"
            self.say(f"a message of {whom} was refused ({name(status)})")
        return status
