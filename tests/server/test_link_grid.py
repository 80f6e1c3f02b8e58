"""The grid behind a SuperLink, before one that writes down what it is asked."""

# ruff: noqa: N802 (calls have the names of Flower's protocol)

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.proto.runtime_pb2_grpc import RuntimeServicer, add_RuntimeServicer_to_server
from flwr.supercore.inflatable.inflatable_object import get_object_type_from_object_content
from flwr.supercore.run import Run
from flwr.superlink.grid import GrpcGrid

from client import objects
from server.launch import free_port
from server.link_grid import LinkGrid
from strategies import messages


class Link(RuntimeServicer):
    """Every order is answered at once by a record that names its node."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.open: dict[str, Message] = {}
        self.held: dict[str, bytes] = {}

    def PushMessages(self, request: Any, context: Any) -> PushAppMessagesResponse:
        self.calls.append("orders")
        for proto in request.messages_list:
            self.open[proto.metadata.message_id] = message_from_proto(proto)
        missing = list(dict.fromkeys(n for tree in request.message_object_trees for n in reversed(objects.names(tree))))
        return PushAppMessagesResponse(message_ids=list(self.open), objects_to_push=missing, session_id="s")

    def PushObject(self, request: Any, context: Any) -> PushObjectResponse:
        self.calls.append(get_object_type_from_object_content(request.object_content))
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: Any, context: Any) -> PullAppMessagesResponse:
        response = PullAppMessagesResponse()
        for name in request.message_ids:
            order = self.open.pop(name, None)
            if order is None:
                continue
            reply = Message(messages.content({"node": order.metadata.dst_node_id}), reply_to=order)
            tree, held = objects.of_reply(reply)
            reply.metadata.__dict__["_message_id"] = tree.object_id
            self.held |= held
            response.messages_list.append(message_to_proto(remove_content_from_message(reply)))
            response.message_object_trees.append(tree)
        self.calls.append(f"{len(response.messages_list)} replies")
        return response

    def PullObject(self, request: Any, context: Any) -> PullObjectResponse:
        self.calls.append("reply")
        return PullObjectResponse(object_found=True, object_available=True, object_content=self.held[request.object_id])

    def ConfirmMessageReceived(self, request: Any, context: Any) -> ConfirmMessageReceivedResponse:
        self.calls.append("done")
        return ConfirmMessageReceivedResponse()


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def grid(link: Link) -> Iterator[LinkGrid]:
    server, port = grpc.server(ThreadPoolExecutor(2)), free_port()
    add_RuntimeServicer_to_server(link, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    flower = GrpcGrid(f"127.0.0.1:{port}", insecure=True, token="token")
    flower.set_run(Run.create_empty(7))
    try:
        yield LinkGrid(flower, 1 << 20, 5.0)
    finally:
        flower.close()
        server.stop(None)


def orders(word: str) -> list[Message]:
    content = RecordDict({messages.RECORD: ConfigRecord({"word": word})})
    return [Message(content, node, MessageType.TRAIN) for node in (1, 2)]


def test_what_nodes_need_comes_first_and_what_only_the_superlink_needs_while_they_work(
    grid: LinkGrid, link: Link
) -> None:
    names = grid.push_messages(orders("first"))
    assert link.calls == ["orders", "ConfigRecord", "RecordDict", "Message", "Message"]
    link.calls.clear()
    found = grid.pull_messages(names)
    assert sorted(messages.entries(reply.content)["node"] for reply in found) == [1, 2]
    assert link.calls == ["2 replies", "reply", "reply"]
    link.calls.clear()
    grid.push_messages(orders("second"))
    assert link.calls == ["orders", "ConfigRecord", "RecordDict", "Message", "Message", "done", "done"]
