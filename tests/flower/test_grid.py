"""The grid behind a SuperLink, against a fake one that records the calls."""

# ruff: noqa: N802 (calls have the names of Flower's protocol)

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.proto.runtime_pb2_grpc import RuntimeServicer, add_RuntimeServicer_to_server
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    get_object_type_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.run import Run
from flwr.superlink.grid import GrpcGrid

from flower import objects
from flower.grid import SuperLinkGrid
from flower.launch import free_port
from strategies import messages
from strategies.messages import RefusedError

Objects = tuple[ObjectTree, dict[str, bytes]]


class Link(RuntimeServicer):
    """A fake SuperLink. It answers every order at once with a record that names its node, or as a test sets it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.objects: Callable[[Message], Objects] = objects.of_reply
        self.error = ""
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
            if self.error:
                reply = Message(Error(3, self.error), reply_to=order)
            tree, held = self.objects(reply)
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
        self.calls.append("confirm")
        return ConfirmMessageReceivedResponse()


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def grid(link: Link) -> Iterator[SuperLinkGrid]:
    server, port = grpc.server(ThreadPoolExecutor(2)), free_port()
    add_RuntimeServicer_to_server(link, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    flower = GrpcGrid(f"127.0.0.1:{port}", insecure=True, token="token")
    flower.set_run(Run.create_empty(7))
    try:
        yield SuperLinkGrid(flower, 1 << 20, 5.0)
    finally:
        flower.close()
        server.stop(None)


def orders(word: str, count: int = 2) -> list[Message]:
    content = RecordDict({messages.RECORD: ConfigRecord({"word": word})})
    return [Message(content, node, MessageType.TRAIN) for node in range(1, count + 1)]


def test_what_nodes_need_comes_first_and_what_only_the_superlink_needs_while_they_work(
    grid: SuperLinkGrid, link: Link
) -> None:
    names = grid.push_messages(orders("first"))
    assert link.calls == ["orders", "ConfigRecord", "RecordDict", "Message", "Message"]
    link.calls.clear()
    found = grid.pull_messages(names)
    assert sorted(messages.entries(reply.content)["node"] for reply in found) == [1, 2]
    assert link.calls == ["2 replies", "reply", "reply"]
    link.calls.clear()
    grid.push_messages(orders("second"))
    assert link.calls == ["orders", "ConfigRecord", "RecordDict", "Message", "Message", "confirm", "confirm"]


# Malformed replies, which no node of ours sends.


def an_object(kind: str, children: list[ObjectTree], body: bytes) -> Objects:
    """One of Flower's objects with any body; its head is right, so that a SuperLink takes it."""
    names = ",".join(child.object_id for child in children)
    content = f"{kind} {names} {len(body)}".encode() + b"\x00" + body
    validate_object_content(content)
    return ObjectTree(object_id=get_object_id(content), children=children), {get_object_id(content): content}


KINDS = ("Message", "RecordDict", "ConfigRecord", "ArrayRecord", "MetricRecord", "Array", "ArrayChunk")


def hostile(dice: random.Random, order: Message) -> Objects:
    """Objects as a hostile node may send them: right ones with a few wrong bytes, noise, one inside the wrong other."""
    said = ConfigRecord({"counts": [0, 7, 1, 1, 1], "array.policy": bytes(12), "x": "abc", "y": [0.5]})
    whole = Message(RecordDict({messages.RECORD: said, "arrays": ArrayRecord({})}), order.metadata.src_node_id, "train")
    right = [(type(one).__name__, body_of(one.deflate())) for one in get_all_nested_objects(whole).values()]
    made: list[ObjectTree] = []
    held: dict[str, bytes] = {}
    for _ in range(dice.randint(1, 4)):
        kind, given = dice.choice([*right, (dice.choice(KINDS), dice.randbytes(dice.randint(0, 60)))])
        body = bytearray(given)
        for _ in range(min(len(body), dice.choice([0, 0, 1, 3]))):
            body[dice.randrange(len(body))] = dice.randrange(256)
        kind = dice.choice([kind, kind, *KINDS])
        tree, one = an_object(kind, dice.choice([[], made[-1:], made]), bytes(body))
        made.append(tree)
        held |= one
    return made[-1], held


def body_of(content: bytes) -> bytes:
    return content.partition(b"\x00")[2]


def test_whatever_bytes_a_node_sends_come_out_as_records_or_as_an_error_with_a_name(
    grid: SuperLinkGrid, link: Link
) -> None:
    dice = random.Random(1)
    link.objects = lambda reply: hostile(dice, reply)
    found = grid.pull_messages(grid.push_messages(orders("x", 200)))
    assert len(found) == 200
    reasons = set()
    for reply in found:
        for read in (messages.evaluated, messages.described, lambda one: messages.trained(one, {"policy": 3}, 7)):
            with pytest.raises(RefusedError) as caught:
                read(reply)
            reasons.add(caught.value.reason)
    assert {"malformed", "no-arrays", "no-number", "no-description"} <= reasons


def test_a_message_of_errors_and_one_of_messages_are_malformed(grid: SuperLinkGrid, link: Link) -> None:
    def error(reply: Message) -> Objects:
        """Announced as an answer; what follows is an error."""
        inner = Message(Error(1, "boom"), reply_to=reply)
        return get_object_tree(inner), {name: one.deflate() for name, one in get_all_nested_objects(inner).items()}

    def nested(reply: Message) -> Objects:
        tree, held = error(reply)
        outer, more = an_object("Message", [tree], body_of(reply.deflate()))
        return outer, held | more

    for shape in (error, nested):
        link.objects = shape
        for reply in grid.pull_messages(grid.push_messages(orders(shape.__name__))):
            with pytest.raises(RefusedError, match="malformed: ") as caught:
                messages.evaluated(reply)
            assert caught.value.reason == "malformed"


def test_a_reply_of_thousands_of_objects_is_not_fetched(grid: SuperLinkGrid, link: Link) -> None:
    def crumbs(reply: Message) -> Objects:
        held, trees = dict[str, bytes](), []
        for number in range(1000):
            tree, one = an_object("ConfigRecord", [], str(number).encode())
            trees.append(tree)
            held |= one
        outer, more = an_object("RecordDict", trees, b"")
        return outer, held | more

    link.objects = crumbs
    found = grid.pull_messages(grid.push_messages(orders("x")))
    assert all("malformed: 1001 objects" in str(reply.error.reason) for reply in found)
    assert len(found) == 2
    assert "reply" not in link.calls


def test_an_error_is_as_long_as_a_sentence(grid: SuperLinkGrid, link: Link) -> None:
    link.error = "x" * 1_000_000
    for reply in grid.pull_messages(grid.push_messages(orders("x"))):
        assert (reply.error.code, reply.error.reason) == (3, "x" * 1000)
