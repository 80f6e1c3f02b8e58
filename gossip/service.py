"""The gRPC service of a peer. It bounds, parses and authenticates every message before it uses it.

gRPC hands over bytes, which are parsed here. So bytes that are no message of this protocol are refused and counted like
other bad messages.
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
from gossip.inbox import PIECE, Vector
from gossip.local import MAX_BYTES, VERSION, LocalPeer
from gossip.neighbour import Neighbour

SERVICE = "fedrl.gossip.v1.Peer"
CALLS = 64  # at a time, each with its thread; gRPC rejects more
TAG = 32  # characters in the tag of a broadcast
Answer = Callable[[Any, Neighbour | None, pb.Status], Message]


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The service of one peer. ``accept`` stores a broadcast, and returns whether it is still needed."""

    def __init__(
        self, local: LocalPeer, neighbours: Mapping[int, Neighbour], accept: Callable[[Neighbour, Vector], bool]
    ) -> None:
        self.local, self.neighbours, self.accept = local, neighbours, accept
        self._methods: dict[str, tuple[type[Any], Answer]] = {
            "Greet": (pb.Greeting, self._greet),
            "Give": (pb.Piece, self._give),
            "Withdraw": (pb.Withdrawal, self._withdraw),
            "Ask": (pb.Question, self._ask),
        }
        patience = local.patience
        self._arrivals = Arrivals(patience.call)  # no caller waits longer for an answer
        self._server = grpc.server(
            ThreadPoolExecutor(CALLS, "serves"),
            handlers=[self],
            options=[
                ("grpc.max_receive_message_length", MAX_BYTES),
                ("grpc.max_metadata_size", 8192),
                ("grpc.max_concurrent_streams", CALLER),
                ("grpc.max_allowed_incoming_connections", connections(local.identity.network)),
                ("grpc.server_handshake_timeout_ms", int(1000 * patience.call)),
                # A peer greets every beat. A connection without a call in ten beats is not a peer's.
                ("grpc.max_connection_idle_ms", int(1000 * max(10 * patience.beat, patience.call))),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=CALLS,
        )

    def start(self, address: str) -> int:
        """Serve at HOST:PORT. Returns the port: port 0 stands for a free one."""
        tls = self.local.tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.server())
        except RuntimeError:
            raise Failure(f"peer {self.local.identity.number} cannot listen at {address}: is the port taken?") from None
        self._arrivals.start()
        self._server.start()
        return int(port)

    def stop(self) -> None:
        self._server.stop(0.5).wait(2.0)
        self._arrivals.stop()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of a method, as gRPC asks for it."""
        service, _, method = details.method.lstrip("/").partition("/")
        if service != SERVICE or method not in self._methods:
            self.local.refuse(pb.STATUS_MALFORMED)
            return None
        kind, answer = self._methods[method]

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            request = self._arrivals.read(messages, context, tuple(_names(context)) or context.peer())
            try:
                message = kind.FromString(request)
            except DecodeError:
                message = kind()
            status, neighbour = self._check(message, context)
            self.local.count(status, neighbour.number if neighbour else None)
            reply: bytes = answer(message, neighbour, status).SerializeToString()
            return reply

        # A stream, of which only the first message is read: gRPC then calls the handler before the message arrives.
        return grpc.stream_unary_rpc_method_handler(call)

    def _check(self, message: Any, context: grpc.ServicerContext) -> tuple[pb.Status, Neighbour | None]:
        """Return TAKEN if a message is from the known life of a peer of this run and for this life; and the peer."""
        envelope, me = message.envelope, self.local.identity
        if not message.HasField("envelope") or (isinstance(message, pb.Piece) and message.WhichOneof("what") is None):
            return pb.STATUS_MALFORMED, None
        if envelope.version != VERSION:
            return pb.STATUS_WRONG_VERSION, None
        neighbour = self.neighbours.get(envelope.sender)
        if neighbour is None:
            return pb.STATUS_UNKNOWN_PEER, None
        if self.local.tls is not None and f"peer-{envelope.sender}".encode() not in _names(context):
            return pb.STATUS_FORGED, neighbour
        if envelope.run != me.run:
            return pb.STATUS_WRONG_RUN, neighbour
        if envelope.recipient != me.number:
            return pb.STATUS_WRONG_RECIPIENT, neighbour
        with self.local.changed:
            if envelope.incarnation != neighbour.life:
                return neighbour.check_life(envelope.incarnation), neighbour
        first = isinstance(message, pb.Greeting) and not envelope.recipient_incarnation
        if envelope.recipient_incarnation != me.life and not first:
            return pb.STATUS_STALE, neighbour
        return pb.STATUS_TAKEN, neighbour

    # The four calls. ``status`` is TAKEN if the sender was authenticated.

    def _greet(self, message: pb.Greeting, neighbour: Neighbour | None, status: pb.Status) -> Message:
        if neighbour is None:
            me = self.local.identity
            return pb.Greeting(envelope=pb.Envelope(version=VERSION), conf=me.conf, app=me.app, status=status)
        with self.local.changed:
            if status == pb.STATUS_TAKEN:
                neighbour.update(message)
            answer = neighbour.greeting(message.envelope.incarnation)
        answer.status = status
        return answer

    def _give(self, message: pb.Piece, neighbour: Neighbour | None, status: pb.Status) -> Message:
        if neighbour is None or status != pb.STATUS_TAKEN:
            return self._receipt(status)
        if len(message.broadcast.tag) > TAG:
            return self._receipt(self.local.refuse(pb.STATUS_MALFORMED, neighbour.number))
        with self.local.changed:
            neighbour.note_round(message.envelope.round)
            status, vector = neighbour.inbox.take(message, self.local.round, self.local.apart or self.local.closed)
            if vector is not None:
                self.local.counts["bytes_down"] += vector.nbytes
                neighbour.credit(vector)
                if vector.broadcast is not None and not self.accept(neighbour, vector):
                    status = pb.STATUS_LATE
                self.local.changed.notify_all()
        return self._receipt(self.local.count(status, neighbour.number))

    def _withdraw(self, message: pb.Withdrawal, neighbour: Neighbour | None, status: pb.Status) -> Message:
        if neighbour is not None and status == pb.STATUS_TAKEN:
            with self.local.changed:
                status = neighbour.inbox.give_up(message.sequence, self.local.closed)
            self.local.count(status, neighbour.number)
        return self._receipt(status)

    def _ask(self, message: pb.Question, neighbour: Neighbour | None, status: pb.Status) -> Message:
        # A new life asks before it is known here. It would get the same answer a moment later.
        if neighbour is None or status not in (pb.STATUS_TAKEN, pb.STATUS_UNKNOWN):
            return pb.Answer(status=status)
        with self.local.changed:
            published = self.local.published
        number, row = published if published is not None else (0, None)
        if row is None or message.round not in (0, number) or message.offset >= len(row):
            return pb.Answer(status=pb.STATUS_NOTHING, round=number)
        data = row[message.offset : message.offset + PIECE].tobytes()
        return pb.Answer(
            status=pb.STATUS_TAKEN, round=number, layout=self.local.identity.layout, width=len(row),
            offset=message.offset, data=data,
        )  # fmt: skip

    def _receipt(self, status: pb.Status) -> pb.Receipt:
        return pb.Receipt(status=status, round=self.local.round, incarnation=self.local.identity.life)


def connections(network: int) -> int:
    """Return how many connections a peer keeps open for others. Its own files and channels keep most descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(64, 4 * network)
    return wanted if limit == resource.RLIM_INFINITY else max(min(wanted, limit // 4), 2 * network)


def _names(context: grpc.ServicerContext) -> list[bytes]:
    """Return the names in the caller's certificate."""
    return list(context.auth_context().get("x509_subject_alternative_name", ()))
