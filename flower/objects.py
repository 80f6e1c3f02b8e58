"""As which of Flower's objects a message travels, and how it is read.

Flower sends an object for the message, one for its content and one for each record; each costs a call by who sends it
and one by who gets it, and calls are what a round consists of. Our messages are one record (strategies/messages.py): a
node replies with that object alone, and of what it is sent it fetches no other, as it knows how they must look.
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

# Which message a record that travels alone answers. Flower knows an object by what it holds, and a reply by its object:
# with this, two replies that say the same are two.
_ANSWERS = "answers"


def of_reply(reply: Message) -> tuple[ObjectTree, dict[str, bytes]]:
    """The objects of a reply: the record alone, if it is one of ours; else as Flower does."""
    if reply.has_content() and list(reply.content) == [RECORD]:
        record = cast(ConfigRecord, reply.content[RECORD])
        content = ConfigRecord({**record, _ANSWERS: reply.metadata.reply_to_message_id}).deflate()
        name = get_object_id(content)
        return ObjectTree(object_id=name), {name: content}
    with no_object_id_recompute():
        return get_object_tree(reply), {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}


def names(tree: ObjectTree) -> list[str]:
    """The objects of a message; who holds others comes after them."""
    return list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))


def content(tree: ObjectTree, contents: dict[str, bytes]) -> RecordDict:
    """What a message says, from all its objects."""
    whole = inflate_object_from_contents(tree.object_id, dict(contents))
    if isinstance(whole, ConfigRecord):
        whole.pop(_ANSWERS, None)
        return RecordDict({RECORD: whole})
    if isinstance(whole, Message) and whole.has_content() and isinstance(whole.content, RecordDict):
        return whole.content
    raise ValueError(f"what came is a {type(whole).__name__}, and no Message that holds records")


def record(tree: ObjectTree) -> str | None:
    """The object that may be the one record of a message of ours."""
    chain = names(tree)
    return chain[0] if len(chain) == 3 and len(tree.children) == 1 and len(tree.children[0].children) == 1 else None


def content_by_record(tree: ObjectTree, record: bytes) -> RecordDict | None:
    """What a message of ours says, from its record alone; None if it is no message of ours."""
    if get_object_type_from_object_content(record) != ConfigRecord.__qualname__:
        return None
    found = RecordDict({RECORD: ConfigRecord.inflate(record)})
    with no_object_id_recompute():  # or the record is packed three times over
        return found if found.object_id == tree.children[0].object_id else None
