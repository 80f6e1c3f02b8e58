"""What a peer serves: every message is bounded, read, and checked for who sent it, before anything is done with it.

Messages come as bytes and are read here, so that what is no message of ours is refused and counted like everything
else that is wrong.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from core.errors import Failure
from gossip import gossip_pb2 as pb
from gossip.arrivals import CALLER, Arrivals
from gossip.here import MAX_BYTES, VERSION, Here
from gossip.inbox import PIECE, Parcel
from gossip.link import Link

SERVICE = "fedrl.gossip.v1.Peer"
CALLS = 64  # at a time, a thread for each; more are turned away by gRPC
TAG = 32  # characters of a word's tag
Answer = Callable[[Any, Link | None, pb.Status], Message]


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """``keep`` gets a word that came, and says whether it is still wanted."""

    def __init__(self, here: Here, links: Mapping[int, Link], keep: Callable[[Link, Parcel], bool]) -> None:
        self.here, self.links, self.keep = here, links, keep
        self._methods: dict[str, tuple[type[Any], Answer]] = {
            "Greet": (pb.Greeting, self._greet),
            "Give": (pb.Piece, self._give),
            "Withdraw": (pb.Withdrawal, self._withdraw),
            "Ask": (pb.Question, self._ask),
        }
        patience = here.patience
        self._arrivals = Arrivals(patience.call)  # nobody waits longer for an answer
        self._server = grpc.server(
            ThreadPoolExecutor(CALLS, "serves"),
            handlers=[self],
            options=[
                ("grpc.max_receive_message_length", MAX_BYTES),
                ("grpc.max_metadata_size", 8192),
                ("grpc.max_concurrent_streams", CALLER),
                ("grpc.max_allowed_incoming_connections", connections(here.identity.network)),
                ("grpc.server_handshake_timeout_ms", int(1000 * patience.call)),
                # Neighbours greet every beat: who makes no call in ten of them is none.
                ("grpc.max_connection_idle_ms", int(1000 * max(10 * patience.beat, patience.call))),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=CALLS,
        )

    def start(self, address: str) -> int:
        """Serve at HOST:PORT; returns the port, which may have been 0."""
        tls = self.here.tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.server())
        except RuntimeError:
            raise Failure(f"peer {self.here.identity.number} cannot listen at {address}: is the port taken?") from None
        self._arrivals.start()
        self._server.start()
        return int(port)

    def stop(self) -> None:
        self._server.stop(0.5).wait(2.0)
        self._arrivals.stop()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """gRPC asks who answers to a method's name."""
        service, _, method = details.method.lstrip("/").partition("/")
        if service != SERVICE or method not in self._methods:
            self.here.refuse(pb.STATUS_MALFORMED)
            return None
        kind, answer = self._methods[method]

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            request = self._arrivals.read(messages, context, tuple(_names(context)) or context.peer())
            try:
                message = kind.FromString(request)
            except DecodeError:
                message = kind()
            status, link = self._admitted(message, context)
            self.here.count(status, link.number if link else None)
            found: bytes = answer(message, link, status).SerializeToString()
            return found

        # Bytes in, bytes out. A stream of messages, of which the first is read: gRPC calls us before it has come.
        return grpc.stream_unary_rpc_method_handler(call)

    def _admitted(self, message: Any, context: grpc.ServicerContext) -> tuple[pb.Status, Link | None]:
        """Whether a message is of a peer of this run, in the life that we know, for us in this life; and of whom."""
        envelope, me = message.envelope, self.here.identity
        if not message.HasField("envelope") or (isinstance(message, pb.Piece) and message.WhichOneof("what") is None):
            return pb.STATUS_MALFORMED, None
        if envelope.version != VERSION:
            return pb.STATUS_WRONG_VERSION, None
        link = self.links.get(envelope.sender)
        if link is None:
            return pb.STATUS_UNKNOWN_PEER, None
        if self.here.tls is not None and f"peer-{envelope.sender}".encode() not in _names(context):
            return pb.STATUS_FORGED, link
        if envelope.run != me.run:
            return pb.STATUS_WRONG_RUN, link
        if envelope.recipient != me.number:
            return pb.STATUS_WRONG_RECIPIENT, link
        with self.here.changed:
            if envelope.incarnation != link.life:
                return link.doubt(envelope.incarnation), link
        first = isinstance(message, pb.Greeting) and not envelope.recipient_incarnation
        if envelope.recipient_incarnation != me.life and not first:
            return pb.STATUS_STALE, link
        return pb.STATUS_TAKEN, link

    # The four calls. ``status`` is TAKEN where the sender is who it says.

    def _greet(self, message: pb.Greeting, link: Link | None, status: pb.Status) -> Message:
        if link is None:
            me = self.here.identity
            return pb.Greeting(envelope=pb.Envelope(version=VERSION), conf=me.conf, app=me.app, status=status)
        with self.here.changed:
            if status == pb.STATUS_TAKEN:
                link.learn(message)
            answer = link.greeting(message.envelope.incarnation)
        answer.status = status
        return answer

    def _give(self, message: pb.Piece, link: Link | None, status: pb.Status) -> Message:
        if link is None or status != pb.STATUS_TAKEN:
            return self._receipt(status)
        if len(message.word.tag) > TAG:
            return self._receipt(self.here.refuse(pb.STATUS_MALFORMED, link.number))
        with self.here.changed:
            link.is_in(message.envelope.round)
            status, parcel = link.inbox.take(message, self.here.round, self.here.apart or self.here.closed)
            if parcel is not None:
                self.here.counts["bytes_down"] += parcel.nbytes
                link.sent(parcel)
                if parcel.word is not None and not self.keep(link, parcel):
                    status = pb.STATUS_LATE
                self.here.changed.notify_all()
        return self._receipt(self.here.count(status, link.number))

    def _withdraw(self, message: pb.Withdrawal, link: Link | None, status: pb.Status) -> Message:
        if link is not None and status == pb.STATUS_TAKEN:
            with self.here.changed:
                status = link.inbox.give_up(message.sequence, self.here.closed)
            self.here.count(status, link.number)
        return self._receipt(status)

    def _ask(self, message: pb.Question, link: Link | None, status: pb.Status) -> Message:
        # Who has just been born asks before it is known here: it would be told the same a moment later.
        if link is None or status not in (pb.STATUS_TAKEN, pb.STATUS_UNKNOWN):
            return pb.Answer(status=status)
        with self.here.changed:
            published = self.here.published
        number, row = published if published is not None else (0, None)
        if row is None or message.round not in (0, number) or message.offset >= len(row):
            return pb.Answer(status=pb.STATUS_NOTHING, round=number)
        data = row[message.offset : message.offset + PIECE].tobytes()
        return pb.Answer(
            status=pb.STATUS_TAKEN, round=number, layout=self.here.identity.layout, width=len(row),
            offset=message.offset, data=data,
        )  # fmt: skip

    def _receipt(self, status: pb.Status) -> pb.Receipt:
        return pb.Receipt(status=status, round=self.here.round, incarnation=self.here.identity.life)


def connections(network: int) -> int:
    """How many connections a peer keeps open for others. Most descriptors are left to its own files and links."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(64, 4 * network)
    return wanted if most == resource.RLIM_INFINITY else max(min(wanted, most // 4), 2 * network)


def _names(context: grpc.ServicerContext) -> list[bytes]:
    """The names that the caller's certificate vouches for."""
    return list(context.auth_context().get("x509_subject_alternative_name", ()))
