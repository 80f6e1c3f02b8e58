"""The connection of a node to a SuperLink: Flower's Fleet API, call by call.

Flower's own connection ends the process where a call is refused, retries without a bound, and starts a thread pool per
message. Here every call has a deadline, every retry a bound, and every error a name. A message costs its number of
calls, so unnecessary calls are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from flwr.app import Message
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import ErrorCode
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
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.run import Run

from core.errors import Failure
from flower import objects
from flower.calls import OBJECT_S, Calls
from flower.errors import Forgotten, Refused, RunOver, TooLarge, Unreachable
from flower.keys import Address, Key

# The objects of a message, and the codes of an error reply.
Tree = ObjectTree
FAILED, WRONG_APP = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), int(ErrorCode.INVALID_FAB)

WAIT_S = 30.0  # how long an announced object may take to arrive at the SuperLink
LEAVE_S = 2.0  # deadline of a call of a node that leaves
HEARTBEAT_S = 10.0  # the promised interval (Flower's least); the SuperLink drops a node after twice that without one
KEY_S = 30.0  # how long a refused key is retried: the SuperLink may still count its last node as online


class NodeConnection:
    """One node of a SuperLink. ``stop`` says whether to give up; ``wait`` sleeps that long, or until the node stops."""

    def __init__(
        self, address: Address, key: Key | None, stop: Callable[[], bool], wait: Callable[[float], None]
    ) -> None:
        self.address, self._given, self._stop, self._wait = address, key, stop, wait
        self._calls = Calls(address, key or Key.fresh(), stop, wait)
        self._node: Node | None = None
        self._refused_since: float | None = None

    # The node: registers, shows that it is alive, leaves.

    @property
    def connected(self) -> bool:
        return self._node is not None

    @property
    def node_id(self) -> int:
        assert self._node is not None
        return self._node.node_id

    def reopen(self) -> None:
        """Replace the channel; the node keeps its identity."""
        self._calls.reopen()

    def connect(self) -> None:
        """Become a node of the SuperLink."""
        if self._given is None:
            self._calls.use_key(Key.fresh())  # a SuperLink registers a key only once
        public = public_key_to_bytes(self._calls.key.private.public_key())
        register = RegisterNodeFleetRequest(public_key=public)
        activate = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_S)
        try:
            if self._given is None:
                self._calls.once("RegisterNode", register)
            try:
                reply = self._calls.once("ActivateNode", activate)
            except Refused:
                if self._given is None:
                    raise
                # A SuperLink without authentication of nodes admits an unregistered key as well.
                self._calls.once("RegisterNode", register)
                reply = self._calls.once("ActivateNode", activate)
        except Refused as error:
            raise self._not_admitted(error) from None
        except Forgotten:
            raise Unreachable("it does not accept the signature of this node") from None
        self._refused_since = None
        self._node = Node(node_id=reply.node_id)

    def forget(self) -> None:
        """Drop the identity of this node; the next ``connect`` gets a new one."""
        self._node = None

    def heartbeat(self) -> bool:
        """Show that the node is alive; return whether the SuperLink received it.

        Errors are ignored: the next call meets them as well and handles them.
        """
        with suppress(Unreachable, Forgotten, RunOver, Refused, ValueError):  # ValueError: reopened meanwhile
            if self._node is not None:
                request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
                self._calls.once("SendNodeHeartbeat", request)
                return True
        return False

    def leave(self) -> None:
        """Tell the SuperLink that the node leaves, if it answers, and close the channel."""
        with suppress(Unreachable, Forgotten, RunOver, Refused, Failure):
            if self._node is not None:
                self._calls.once("DeactivateNode", DeactivateNodeRequest(node_id=self.node_id), LEAVE_S)
                if self._given is None:
                    self._calls.once("UnregisterNode", UnregisterNodeFleetRequest(node_id=self.node_id), LEAVE_S)
        self._node = None
        self._calls.close()

    # Runs and messages.

    def run(self, run_id: int) -> Run:
        """Return Flower's description of a run."""
        return run_from_proto(self._calls.retried("GetRun", GetRunRequest(node=self._node, run_id=run_id)).run)

    def is_over(self, run_id: int) -> bool:
        """Return whether a run has ended. Asks once, without a retry."""
        try:
            self._calls.once("GetRun", GetRunRequest(node=self._node, run_id=run_id))
        except RunOver:
            return True
        return False

    def app(self, run: Run) -> Fab:
        """Return the app bundle that a run carries."""
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run.run_id)
        return fab_from_proto(self._calls.retried("GetFab", request, OBJECT_S).fab)

    def config(self, app: Fab, run: Run) -> dict[str, bool | int | float | str]:
        """Return the flat configuration of a run: that of its app, overridden by the values it was submitted with."""
        return dict(get_fused_config_from_fab(app.content, run))

    def receive(self) -> tuple[Message, ObjectTree] | None:
        """Return the next message without its content, and the objects of the content; None if there is none."""
        begun = time.perf_counter()
        response = self._calls.once("PullMessages", PullMessagesRequest(node=self._node))
        self._calls.latency = time.perf_counter() - begun
        if not response.messages_list:
            return None
        return message_from_proto(response.messages_list[0]), response.message_object_trees[0]

    def fetch(self, message: Message, tree: ObjectTree) -> Message:
        """Return the message with its content.

        Of a message of our server only the record is fetched. Of any other message all objects are fetched, also the
        root, which holds nothing new: its sender sends it last, and the SuperLink deletes the objects of a message that
        is confirmed. A node that did not wait for the root could confirm while the sender is still sending.
        """
        content, record = None, objects.record(tree)
        if record is not None:
            content = objects.content_by_record(tree, self._pull(message, [record])[record])
        if content is None:
            content = objects.content(tree, self._pull(message, objects.names(tree)))
        return make_message(message.metadata, content)

    def _pull(self, message: Message, names: Sequence[str]) -> dict[str, bytes]:
        """Return these objects of a message."""
        run_id, contents, size = message.metadata.run_id, dict[str, bytes](), 0
        requests = [PullObjectRequest(node=self._node, run_id=run_id, object_id=name) for name in names]
        for request, response in zip(requests, self._calls.together("PullObject", requests), strict=True):
            if not response.object_available:
                response = self._await(request)
            contents[request.object_id] = response.object_content
            size += len(response.object_content)
            if size > self.address.max_bytes:
                raise TooLarge
        return contents

    def _await(self, request: PullObjectRequest) -> Any:
        """Wait for an object that was announced and is on its way to the SuperLink."""
        deadline, pause = time.monotonic() + WAIT_S, 0.005
        while time.monotonic() < deadline and not self._stop():
            self._wait(pause)
            response = self._calls.retried("PullObject", request, OBJECT_S)
            if response.object_available:
                return response
            pause = min(2 * pause, 0.5)
        raise ValueError("a part of the message did not arrive")

    def reply(self, reply: Message, seconds: float) -> bool:
        """Send a reply, which took ``seconds`` to compute, and its objects; return whether the SuperLink took it."""
        tree, contents = objects.of_reply(reply)
        reply.metadata.__dict__["_message_id"] = tree.object_id
        response = self._calls.retried(
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
        return all(answer.stored for answer in self._calls.together("PushObject", pushes))

    def confirm(self, message: Message) -> None:
        """Confirm receipt, so that the SuperLink can delete the message."""
        run_id, name = message.metadata.run_id, message.metadata.message_id
        request = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=name)
        self._calls.retried("ConfirmMessageReceived", request)

    def _not_admitted(self, error: Refused) -> Exception:
        """Return the exception for a node that the SuperLink refuses. A key is retried for ``KEY_S``."""
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
            advice = f"register it (flwr supernode register {path}.pub), or end the node that uses it"
            return Failure(f"{where} does not admit the key {path}: {advice}")
        return Unreachable(f"it does not admit the key {path}: the key is not registered, or another live node uses it")
