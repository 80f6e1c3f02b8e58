"""A node's connection to a SuperLink: Flower's Fleet API, call by call.

Flower's own connection ends the process where a call is refused, retries without a bound, and starts a thread pool per
message. Here every call has a deadline, every retry a bound, what goes wrong has a name, and the objects of a message
travel together. What a message costs is its number of calls, so none is made that could be left out.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, ErrorCode
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import Run
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from core.errors import Failure, Mistake
from flower import objects

# What a message consists of, and the codes of a reply that is an error.
Tree = ObjectTree
FAILED, WRONG_APP = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), int(ErrorCode.INVALID_FAB)

CALL_S = 10.0  # deadline of a call that carries little
OBJECT_S = 60.0  # deadline of a call that carries an object, 5 MB at most when Flower packed it
RETRY_S = 5.0  # how long a call of a message in progress is tried again when the network fails
WAIT_S = 30.0  # how long an announced object may take to arrive at the SuperLink
LEAVE_S = 2.0  # deadline of a call of a node that leaves
HEARTBEAT_S = 10.0  # what we promise (Flower's least); after twice that without one, the SuperLink holds us for gone
KEY_S = 30.0  # how long a refused key is tried again: its last node may still be held to be online
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)  # the network; a database that is busy for a moment
FLYING = 8  # objects on their way at a time, on a slow line
SLOW_S = 0.03  # a call that takes longer has gone a long way
SIGNATURE_S = 10.0  # a signature serves so long (the SuperLink takes it for 300 s); making one costs more than a call


class Unreachable(Exception):
    """The SuperLink does not answer, or not as one does. It may later."""


class Forgotten(Exception):
    """The SuperLink does not know this node: it was restarted, or somebody removed the node."""


class RunOver(Exception):
    """The run has ended, or was never known here."""


class TooLarge(Exception):
    """A message, or one object of it, is larger than we hold."""


class _Refused(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(frozen=True)
class Address:
    """Where the SuperLink is, and how it is trusted."""

    superlink: str
    insecure: bool = False
    roots: Path | None = None  # None: those of the system
    max_bytes: int = 256 * 2**20

    def open(self) -> grpc.Channel:
        options = [
            ("grpc.max_receive_message_length", self.max_bytes),
            ("grpc.max_send_message_length", -1),
            # A channel of its own connection, that tries again soon: gRPC itself would come to wait two minutes.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if self.insecure:
            return grpc.insecure_channel(self.superlink, options)
        return grpc.secure_channel(
            self.superlink, grpc.ssl_channel_credentials(self.roots and self.roots.read_bytes()), options
        )


@dataclass(frozen=True)
class Key:
    """The private key that a node is known by, and the file it came from."""

    private: ec.EllipticCurvePrivateKey
    path: Path | None

    @classmethod
    def read(cls, path: Path) -> Key:
        try:
            private = load_ssh_private_key(path.read_bytes(), None)
        except OSError as error:
            raise Mistake(f"the key {path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise Mistake(f"{path} is no key of a node: make one by ssh-keygen -t ecdsa -b 256 -N '' -f FILE")
        return cls(private, path)

    @classmethod
    def fresh(cls) -> Key:
        """P-256, because the SuperLink checks a signature per call: 0.1 ms, and 1 ms with Flower's own P-384."""
        return cls(ec.generate_private_key(ec.SECP256R1()), None)


class FleetLink:
    """One node of a SuperLink. ``stop`` says whether to give up, ``wait`` sleeps so long or until then."""

    def __init__(
        self, address: Address, key: Key | None, stop: Callable[[], bool], wait: Callable[[float], None]
    ) -> None:
        self.address, self._given, self._stop, self._wait = address, key, stop, wait
        self._key = key or Key.fresh()
        self._node: Node | None = None
        self._registered = False
        self._refused_since: float | None = None
        self._headers: tuple[float, list[tuple[str, str | bytes]]] = (0.0, [])
        self._version = list(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        self._retry = RetryInvoker(
            lambda: exponential(0.05, max_delay=1),
            grpc.RpcError,
            max_tries=None,
            max_time=RETRY_S,
            should_giveup=lambda error: stop() or cast(Any, error).code() not in AGAIN,
            wait_function=wait,
        )
        self._lag = 0.0  # how long the last small call took
        self._channel: grpc.Channel = None
        self.reopen()

    # The node: comes, shows that it lives, goes.

    @property
    def connected(self) -> bool:
        return self._node is not None

    @property
    def node_id(self) -> int:
        assert self._node is not None
        return self._node.node_id

    def reopen(self) -> None:
        """A new connection under the same name: the old one may hang where the network went away silently."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self.address.open()
        self._stub = FleetStub(self._channel)

    def connect(self) -> None:
        """Become a node of the SuperLink."""
        if self._given is None:
            self._key = Key.fresh()  # a SuperLink registers a key once in its life
            self._headers = (0.0, [])
        public = public_key_to_bytes(self._key.private.public_key())
        register = RegisterNodeFleetRequest(public_key=public)
        activate = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_S)
        try:
            if self._given is None:
                self._call("RegisterNode", register)
            try:
                reply = self._call("ActivateNode", activate)
            except _Refused:
                if self._given is None:
                    raise
                self._call("RegisterNode", register)  # where anybody may register, so may somebody with a key
                reply = self._call("ActivateNode", activate)
        except _Refused as error:
            raise self._not_admitted(error) from None
        except Forgotten:
            raise Unreachable("it does not accept the signature of this node") from None
        self._refused_since = None
        self._node = Node(node_id=reply.node_id)

    def forget(self) -> None:
        """Be nobody, until the next ``connect``."""
        self._node = None

    def heartbeat(self) -> bool:
        """Show that we live; whether it was heard. Failures are for others to find: the next call meets them too."""
        with suppress(Unreachable, Forgotten, RunOver, _Refused, ValueError):  # ValueError: reopened meanwhile
            if self._node is not None:
                self._call(
                    "SendNodeHeartbeat", SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
                )
                return True
        return False

    def leave(self) -> None:
        """Say goodbye, if somebody listens."""
        with suppress(Unreachable, Forgotten, RunOver, _Refused, Failure):
            if self._node is not None:
                self._call("DeactivateNode", DeactivateNodeRequest(node_id=self.node_id), LEAVE_S)
                if self._given is None:
                    self._call("UnregisterNode", UnregisterNodeFleetRequest(node_id=self.node_id), LEAVE_S)
        self._node = None
        self._channel.close()

    # Runs and messages.

    def run(self, run_id: int) -> Run:
        return run_from_proto(self._insist("GetRun", GetRunRequest(node=self._node, run_id=run_id)).run)

    def over(self, run_id: int) -> bool:
        """Whether a run has ended, asked once."""
        try:
            self._call("GetRun", GetRunRequest(node=self._node, run_id=run_id))
        except RunOver:
            return True
        return False

    def app(self, run: Run) -> Fab:
        """The bundle that a run carries."""
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run.run_id)
        return fab_from_proto(self._insist("GetFab", request, OBJECT_S).fab)

    def config(self, app: Fab, run: Run) -> dict[str, bool | int | float | str]:
        """Return the flat configuration of a run: that of its app, with what was given when it was submitted."""
        return dict(get_fused_config_from_fab(app.content, run))

    def receive(self) -> tuple[Message, ObjectTree] | None:
        """The next message, still without its content, and what the content consists of."""
        begun = time.perf_counter()
        response = self._call("PullMessages", PullMessagesRequest(node=self._node))
        self._lag = time.perf_counter() - begun
        if not response.messages_list:
            return None
        return message_from_proto(response.messages_list[0]), response.message_object_trees[0]

    def fetch(self, message: Message, tree: ObjectTree) -> Message:
        """The message with its content.

        What others than our server send comes with all its objects. The root says nothing that is not here already, but
        it is what they send last, and what we are done with the SuperLink deletes: who did not wait for it would pull
        the rug from under the sender.
        """
        content, record = None, objects.record(tree)
        if record is not None:
            content = objects.content_by_record(tree, self._pulled(message, [record])[record])
        if content is None:
            content = objects.content(tree, self._pulled(message, objects.names(tree)))
        return make_message(message.metadata, content)

    def _pulled(self, message: Message, names: Sequence[str]) -> dict[str, bytes]:
        run_id, contents, size = message.metadata.run_id, dict[str, bytes](), 0
        requests = [PullObjectRequest(node=self._node, run_id=run_id, object_id=name) for name in names]
        for request, response in zip(requests, self._together("PullObject", requests), strict=True):
            if not response.object_available:
                response = self._await(request)
            contents[request.object_id] = response.object_content
            size += len(response.object_content)
            if size > self.address.max_bytes:
                raise TooLarge
        return contents

    def reply(self, reply: Message, seconds: float) -> bool:
        """Send a reply and its objects, which took ``seconds`` to make; whether it was taken."""
        tree, contents = objects.of_reply(reply)
        reply.metadata.__dict__["_message_id"] = tree.object_id
        response = self._insist(
            "PushMessages",
            PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            ),
        )
        missing = set(response.objects_to_push)
        pushes = (
            PushObjectRequest(
                node=self._node,
                run_id=reply.metadata.run_id,
                object_id=name,
                object_content=content,
                session_id=response.session_id,
            )
            for name, content in contents.items()
            if name in missing
        )
        return all(answer.stored for answer in self._together("PushObject", pushes))

    def done(self, message: Message) -> None:
        """The SuperLink may drop the message."""
        run_id, name = message.metadata.run_id, message.metadata.message_id
        request = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=name)
        self._insist("ConfirmMessageReceived", request)

    # Calls.

    def _await(self, request: PullObjectRequest) -> Any:
        """An object that was announced and is on its way to the SuperLink."""
        deadline, pause = time.monotonic() + WAIT_S, 0.005
        while time.monotonic() < deadline and not self._stop():
            self._wait(pause)
            response = self._insist("PullObject", request, OBJECT_S)
            if response.object_available:
                return response
            pause = min(2 * pause, 0.5)
        raise ValueError("a part of the message did not arrive")

    def _together(self, name: str, requests: Iterable[Any]) -> Iterator[Any]:
        """Calls that carry objects. On a slow line some at a time, so that it is waited for once and not per object.

        On a fast line one after the other: the SuperLink answers on one core, and calls at a time cost it 10 % more.
        """
        if self._lag < SLOW_S:
            yield from (self._insist(name, request, OBJECT_S) for request in requests)
            return
        method = getattr(self._stub, name)
        flying: deque[tuple[Any, Any]] = deque()
        try:
            for request in requests:
                flying.append((request, method.future(request, timeout=OBJECT_S, metadata=self._signed())))
                if len(flying) == FLYING:
                    yield self._landed(name, *flying.popleft())
            while flying:
                yield self._landed(name, *flying.popleft())
        finally:
            for _, call in flying:
                call.cancel()

    def _landed(self, name: str, request: Any, call: Any) -> Any:
        try:
            return call.result()
        except grpc.RpcError as error:
            if error.code() in AGAIN:
                return self._insist(name, request, OBJECT_S)
            raise self._meaning(error) from None

    def _insist(self, name: str, request: Any, seconds: float = CALL_S) -> Any:
        """A call, again for a while where the network fails."""
        method = getattr(self._stub, name)
        try:
            return self._retry.invoke(lambda: method(request, timeout=seconds, metadata=self._signed()))
        except grpc.RpcError as error:
            raise self._meaning(error) from None

    def _call(self, name: str, request: Any, seconds: float = CALL_S) -> Any:
        try:
            return getattr(self._stub, name)(request, timeout=seconds, metadata=self._signed())
        except grpc.RpcError as error:
            raise self._meaning(error) from None

    def _signed(self) -> list[tuple[str, str | bytes]]:
        """What Flower wants to know with every call: which version we are, and that our key is ours."""
        made, headers = self._headers
        if time.monotonic() - made > SIGNATURE_S or not headers:
            stamp = now().isoformat()
            headers = [
                *self._version,
                (PUBLIC_KEY_HEADER, public_key_to_bytes(self._key.private.public_key())),
                (TIMESTAMP_HEADER, stamp),
                (SIGNATURE_HEADER, sign_message(self._key.private, stamp.encode("ascii"))),
            ]
            self._headers = (time.monotonic(), headers)
        return headers

    # What goes wrong.

    def _meaning(self, error: grpc.RpcError) -> Exception:
        code, details = error.code(), str(error.details() or "")
        match code:
            case grpc.StatusCode.PERMISSION_DENIED:
                return RunOver()
            case grpc.StatusCode.UNAUTHENTICATED if "timestamp" in details:
                return Unreachable("its clock and the one of this machine differ by minutes")
            case grpc.StatusCode.UNAUTHENTICATED:
                return Forgotten()
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
                return TooLarge()
            case grpc.StatusCode.FAILED_PRECONDITION:
                known = FlowerError.from_json(details)
                return _Refused(known.code if known else 0)
            case grpc.StatusCode.UNAVAILABLE:
                return Unreachable(self._why(details))
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return Unreachable("it does not answer in time")
        return Unreachable(f"it answered {code.name}: {_line(details)}")

    def _why(self, details: str) -> str:
        """In words what TLS has to say."""
        if "CERTIFICATE_VERIFY_FAILED" in details or "certificate verify failed" in details.lower():
            roots = self.address.roots or "the roots of this system (name its CA by --root-certificates)"
            return f"its certificate does not verify against {roots}: {_line(details.rpartition('FAILED: ')[2])}"
        if "Hostname Verification" in details:
            return f"its certificate is not for the name {self.address.superlink.rpartition(':')[0]}"
        if "WRONG_VERSION_NUMBER" in details:
            return "it speaks plain text where TLS was expected: it runs with --insecure, so must the node, or neither"
        if self.address.insecure and "refused" not in details and self._speaks_tls():
            return "it speaks TLS: leave --insecure away, and name its CA by --root-certificates"
        return _line(details.rpartition(": ")[2] if "last error" in details else details.partition(": [")[0])

    def _speaks_tls(self) -> bool:
        """Whether TLS is what answers there: to plain text it only closes the line."""
        host, _, port = self.address.superlink.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), LEAVE_S) as line:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent, only asked
                context.set_alpn_protocols(["h2"])
                context.wrap_socket(line).close()
        except (OSError, ValueError):
            return False
        return True

    def _not_admitted(self, error: _Refused) -> Exception:
        where = f"the SuperLink at {self.address.superlink}"
        if self._given is None and error.code == ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED:
            return Failure(
                f"{where} admits registered nodes only: give the node a key (--key) that is registered there"
            )
        if self._given is None:
            return Failure(f"{where} refuses new nodes")
        path = self._given.path
        self._refused_since = self._refused_since or time.monotonic()
        if time.monotonic() - self._refused_since > KEY_S:
            known = f"register it (flwr supernode register {path}.pub), or end the node that uses it"
            return Failure(f"{where} does not admit the key {path}: {known}")
        return Unreachable(
            f"it does not admit the key {path}, either unknown to it or in use by a node that it thinks alive"
        )


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
