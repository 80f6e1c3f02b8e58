"""The objects of a message on the wire.

Flower sends one object for the message, one for its content and one per record. Each object costs a call of its sender
and one of its receiver, and calls dominate the time of a round. Our messages are one record (strategies/messages.py).
A node replies with that object alone. Of a request it fetches the record alone, and derives the other objects from it.
"""

from __future__ import annotations

from typing import cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    get_object_type_from_object_content,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from strategies.messages import RECORD

# The entry that names the message a reply answers. Flower identifies a reply by its object, and an object by its
# content: without this entry, two replies with the same content would be one.
_ANSWERS = "answers"


def of_reply(reply: Message) -> tuple[ObjectTree, dict[str, bytes]]:
    """Return the objects of a reply: the record alone for a reply of ours, all of Flower's objects for any other."""
    if reply.has_content() and list(reply.content) == [RECORD]:
        record = cast(ConfigRecord, reply.content[RECORD])
        content = ConfigRecord({**record, _ANSWERS: reply.metadata.reply_to_message_id}).deflate()
        name = get_object_id(content)
        return ObjectTree(object_id=name), {name: content}
    with no_object_id_recompute():
        return get_object_tree(reply), {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}


def names(tree: ObjectTree) -> list[str]:
    """Return the names of the objects of a message; an object comes after those that it contains."""
    return list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))


def content(tree: ObjectTree, contents: dict[str, bytes]) -> RecordDict:
    """Return the content of a message from all its objects."""
    whole = inflate_object_from_contents(tree.object_id, dict(contents))
    if isinstance(whole, ConfigRecord):
        whole.pop(_ANSWERS, None)
        return RecordDict({RECORD: whole})
    if isinstance(whole, Message) and whole.has_content() and isinstance(whole.content, RecordDict):
        return whole.content
    raise ValueError(f"the reply is a {type(whole).__name__}, and not a Message with records")


def record(tree: ObjectTree) -> str | None:
    """Return the name of the object that may be the record of a message of ours; None for any other message."""
    chain = names(tree)
    return chain[0] if len(chain) == 3 and len(tree.children) == 1 and len(tree.children[0].children) == 1 else None


def content_by_record(tree: ObjectTree, record: bytes) -> RecordDict | None:
    """Return the content of a message of ours from its record; None if it is not a message of ours."""
    if get_object_type_from_object_content(record) != ConfigRecord.__qualname__:
        return None
    content = RecordDict({RECORD: ConfigRecord.inflate(record)})
    with no_object_id_recompute():  # without this, the record is serialised three times
        return content if content.object_id == tree.children[0].object_id else None
