"""The grid behind a SuperLink: Flower's, for short rounds, and with a limit to what one reply may hold.

Flower's own grid waits seconds between two looks, starts a pool of threads per message, and stops at a reply whose
objects are still on their way. Here a reply that has been announced is looked at again with the next question, the
others are not kept waiting, and no object is taken that is larger than such a fleet can send. What the nodes need comes
first, and what only the SuperLink needs while they work.
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

REASON = 1000  # characters with which a reply may say why it is none
MOST_OBJECTS = 64  # of Flower's, in one reply; ours have one, those of stock SuperNodes three


@dataclass
class _Coming:
    """A reply that was announced; its objects follow."""

    head: Message
    tree: ObjectTree
    since: float = field(default_factory=time.monotonic)
    contents: dict[str, bytes] = field(default_factory=dict)


def behind_superlink(grid: Grid, limit: int, patience: float) -> LinkGrid | None:
    """Return our grid in place of Flower's where a SuperLink serves it; None in a simulation or a test."""
    return LinkGrid(grid, limit, patience) if isinstance(grid, GrpcGrid) else None


class LinkGrid(Grid):
    """``limit``: the bytes that one reply may hold. ``patience``: the seconds that its objects may take."""

    def __init__(self, grid: GrpcGrid, limit: int, patience: float) -> None:
        self._grid, self._limit, self._patience = grid, limit, patience
        self._coming: dict[str, _Coming] = {}  # by the message that they answer
        self._read: list[_Coming] = []  # what the SuperLink still keeps for us
        badges = [RuntimeVersionClientInterceptor("flwr-serverapp"), RuntimeTokenClientInterceptor(grid._token)]
        # A connection of its own: an object's size is known before its bytes are taken, and then it is refused.
        self._objects = RuntimeStub(create_channel(grid._addr, grid._insecure, grid._cert, limit, badges))
        wrap_stub(self._objects, grid._retry_invoker)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; the ids under which they are answered, empty for those that were not taken."""
        messages = list(messages)
        if not messages:
            return []
        with no_object_id_recompute():
            parts: dict[str, InflatableObject] = {}
            for message in messages:
                own = message.metadata.__dict__
                own["_run_id"], own["_src_node_id"] = self.run.run_id, self._grid.node.node_id
                own["_message_id"] = message.object_id
                parts |= get_all_nested_objects(message)
            response = self._grid._stub.PushMessages(
                PushAppMessagesRequest(
                    messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
                    message_object_trees=[get_object_tree(message) for message in messages],
                )
            )
            missing = set(response.objects_to_push)
            # Records first: a node that has its record begins (client/node.py keeps the rest until its next message).
            for name, one in sorted(parts.items(), key=lambda item: -_DEPTH.get(type(item[1]), 2)):
                if name in missing:
                    request = PushObjectRequest(
                        node=self._grid.node, run_id=self.run.run_id, object_id=name, object_content=one.deflate(),
                        session_id=response.session_id,
                    )  # fmt: skip
                    self._grid._stub.PushObject(request)
        while self._read:
            self._done(self._read.pop())
        return list(response.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that have come whole, and an error for each that never will."""
        names = set(message_ids)
        for name in self._coming.keys() - names:  # nobody waits for it any more
            self._read.append(self._coming.pop(name))
        if fresh := names - self._coming.keys():
            response = self._grid._stub.PullMessages(PullAppMessagesRequest(message_ids=fresh))
            for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                head = message_from_proto(proto)
                self._coming[head.metadata.reply_to_message_id] = _Coming(head, tree)
        found = []
        for name, one in list(self._coming.items()):
            message = self._whole(one)
            if message is not None:
                self._read.append(self._coming.pop(name))
                found.append(message)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        names, found, begun = set(self.push_messages(messages)), list[Message](), time.monotonic()
        while names and (timeout is None or time.monotonic() - begun < timeout):
            if new := self.pull_messages(names):
                found += new
                names -= {message.metadata.reply_to_message_id for message in new}
            else:
                time.sleep(0.02)
        return found

    def _whole(self, one: _Coming) -> Message | None:
        """The reply, if all of it is here; an error if it is too large, or did not come in time."""
        if one.head.has_error():  # it came with the announcement
            return self._error(one, str(one.head.error.reason)[:REASON], one.head.error.code)
        names = objects.names(one.tree)
        if len(names) > MOST_OBJECTS:  # each is a call, however small it is
            return self._error(one, f"{MALFORMED}: {len(names)} objects, and replies have at most {MOST_OBJECTS}")
        for name in names:
            if name in one.contents:
                continue
            request = PullObjectRequest(node=self._grid.node, run_id=one.head.metadata.run_id, object_id=name)
            try:
                answer = self._objects.PullObject(request)
            except grpc.RpcError as error:
                if cast(grpc.Call, error).code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                return self._error(one, f"{OVERSIZED}: more than {self._limit:,} bytes")
            if not answer.object_available:
                if not answer.object_found or time.monotonic() - one.since > self._patience:
                    return self._error(one, "the reply was announced, and did not come")
                return None
            one.contents[name] = answer.object_content
            if sum(map(len, one.contents.values())) > self._limit:
                return self._error(one, f"{OVERSIZED}: more than {self._limit:,} bytes")
        try:
            return make_message(one.head.metadata, objects.content(one.tree, one.contents))
        except Exception as error:  # what bytes raise that are no record depends on the bytes
            words = f"{MALFORMED}: {type(error).__name__}: {' '.join(str(error).split())}"
            return self._error(one, words[:REASON])

    def _done(self, one: _Coming) -> None:
        """The SuperLink may drop the reply."""
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node, run_id=one.head.metadata.run_id, message_object_id=one.head.metadata.message_id
        )
        self._grid._stub.ConfirmMessageReceived(request)

    @staticmethod
    def _error(one: _Coming, reason: str, code: int = ErrorCode.MESSAGE_UNAVAILABLE) -> Message:
        return make_message(one.head.metadata, error=Error(code, reason))

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("use Message(...)")


# How far down its message an object stands; records are at the bottom.
_DEPTH: dict[type, int] = {Message: 0, RecordDict: 1}
