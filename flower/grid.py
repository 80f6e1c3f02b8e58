"""The server's grid behind a SuperLink: fast polls, and a limit to the size of a reply.

Flower's own grid waits seconds between two polls, starts a thread pool per message, and blocks on a reply whose objects
are still on their way. This grid looks at such a reply again at the next poll, and takes no object that is larger than
an honest reply. It sends first what the nodes need. What only the SuperLink needs is sent while the nodes work.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from flwr.app import Error, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.proto.runtime_pb2_grpc import RuntimeStub
from flwr.serverapp import Grid
from flwr.supercore.grpc import create_channel
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors import RuntimeTokenClientInterceptor, RuntimeVersionClientInterceptor
from flwr.supercore.retry import wrap_stub
from flwr.supercore.run import Run
from flwr.superlink.grid import GrpcGrid

from flower import objects
from strategies.messages import MALFORMED, OVERSIZED

REASON = 1000  # the most characters of an error's reason
MOST_OBJECTS = 64  # the most objects of a reply; a reply of our nodes has one, of stock SuperNodes three


@dataclass
class _Incoming:
    """A reply that was announced, and those of its objects that have arrived."""

    head: Message
    tree: ObjectTree
    since: float = field(default_factory=time.monotonic)
    contents: dict[str, bytes] = field(default_factory=dict)


def behind_superlink(grid: Grid, limit: int, patience: float) -> SuperLinkGrid | None:
    """Return our grid in place of Flower's where a SuperLink serves it; None in a simulation or a test."""
    return SuperLinkGrid(grid, limit, patience) if isinstance(grid, GrpcGrid) else None


class SuperLinkGrid(Grid):
    """The server's way to its nodes: who is there, send, receive.

    ``limit`` is the most bytes of a reply. ``patience`` is how many seconds its objects may take to arrive.
    """

    def __init__(self, grid: GrpcGrid, limit: int, patience: float) -> None:
        self._grid, self._limit, self._patience = grid, limit, patience
        self._incoming: dict[str, _Incoming] = {}  # by the id of the message that they answer
        self._unconfirmed: list[_Incoming] = []  # received; the SuperLink still keeps them
        interceptors = [RuntimeVersionClientInterceptor("flwr-serverapp"), RuntimeTokenClientInterceptor(grid._token)]
        # A channel of its own with a limit: an object that is too large is refused before its bytes are received.
        self._objects = RuntimeStub(create_channel(grid._addr, grid._insecure, grid._cert, limit, interceptors))
        wrap_stub(self._objects, grid._retry_invoker)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; return their ids, empty for those that the SuperLink did not take."""
        messages = list(messages)
        if not messages:
            return []
        with no_object_id_recompute():
            parts: dict[str, InflatableObject] = {}
            for message in messages:
                metadata = message.metadata.__dict__
                metadata["_run_id"], metadata["_src_node_id"] = self.run.run_id, self._grid.node.node_id
                metadata["_message_id"] = message.object_id
                parts |= get_all_nested_objects(message)
            response = self._grid._stub.PushMessages(
                PushAppMessagesRequest(
                    messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
                    message_object_trees=[get_object_tree(message) for message in messages],
                )
            )
            missing = set(response.objects_to_push)
            # Records first: a node starts as soon as it has its record (see ``fleet.NodeConnection.fetch``).
            for name, part in sorted(parts.items(), key=lambda item: -_DEPTH.get(type(item[1]), 2)):
                if name in missing:
                    request = PushObjectRequest(
                        node=self._grid.node, run_id=self.run.run_id, object_id=name, object_content=part.deflate(),
                        session_id=response.session_id,
                    )  # fmt: skip
                    self._grid._stub.PushObject(request)
        while self._unconfirmed:
            self._confirm(self._unconfirmed.pop())
        return list(response.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the complete replies to these messages, and an error for each that will not arrive."""
        names = set(message_ids)
        for name in self._incoming.keys() - names:  # the caller no longer waits for it
            self._unconfirmed.append(self._incoming.pop(name))
        if fresh := names - self._incoming.keys():
            response = self._grid._stub.PullMessages(PullAppMessagesRequest(message_ids=fresh))
            for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                head = message_from_proto(proto)
                self._incoming[head.metadata.reply_to_message_id] = _Incoming(head, tree)
        replies = []
        for name, incoming in list(self._incoming.items()):
            message = self._complete(incoming)
            if message is not None:
                self._unconfirmed.append(self._incoming.pop(name))
                replies.append(message)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        names, replies, begun = set(self.push_messages(messages)), list[Message](), time.monotonic()
        while names and (timeout is None or time.monotonic() - begun < timeout):
            if new := self.pull_messages(names):
                replies += new
                names -= {message.metadata.reply_to_message_id for message in new}
            else:
                time.sleep(0.02)
        return replies

    def _complete(self, incoming: _Incoming) -> Message | None:
        """Return the reply if all of it has arrived, an error if it is too large or too late, else None."""
        if incoming.head.has_error():  # the error came with the announcement
            return self._error(incoming, str(incoming.head.error.reason)[:REASON], incoming.head.error.code)
        names = objects.names(incoming.tree)
        if len(names) > MOST_OBJECTS:  # every object costs a call, however small it is
            return self._error(incoming, f"{MALFORMED}: {len(names)} objects, and a reply has at most {MOST_OBJECTS}")
        for name in names:
            if name in incoming.contents:
                continue
            request = PullObjectRequest(node=self._grid.node, run_id=incoming.head.metadata.run_id, object_id=name)
            try:
                answer = self._objects.PullObject(request)
            except grpc.RpcError as error:
                if cast(grpc.Call, error).code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                return self._error(incoming, f"{OVERSIZED}: more than {self._limit:,} bytes")
            if not answer.object_available:
                if not answer.object_found or time.monotonic() - incoming.since > self._patience:
                    return self._error(incoming, "the reply was announced, and did not arrive")
                return None
            incoming.contents[name] = answer.object_content
            if sum(map(len, incoming.contents.values())) > self._limit:
                return self._error(incoming, f"{OVERSIZED}: more than {self._limit:,} bytes")
        try:
            return make_message(incoming.head.metadata, objects.content(incoming.tree, incoming.contents))
        except Exception as error:  # malformed bytes may raise any exception
            reason = f"{MALFORMED}: {type(error).__name__}: {' '.join(str(error).split())}"
            return self._error(incoming, reason[:REASON])

    def _confirm(self, incoming: _Incoming) -> None:
        """Confirm receipt, so that the SuperLink can delete the reply."""
        metadata = incoming.head.metadata
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node, run_id=metadata.run_id, message_object_id=metadata.message_id
        )
        self._grid._stub.ConfirmMessageReceived(request)

    @staticmethod
    def _error(incoming: _Incoming, reason: str, code: int = ErrorCode.MESSAGE_UNAVAILABLE) -> Message:
        return make_message(incoming.head.metadata, error=Error(code, reason))

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("use Message(...)")


# The depth of an object in its message; records are the deepest.
_DEPTH: dict[type, int] = {Message: 0, RecordDict: 1}
