"""Replies: whatever an agent sends is read, or refused by name."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from strategies import messages
from strategies.messages import RefusedError

LAYOUT, WIDTHS = 77, {"policy": 3, "moments.observations": 3}
ARRAYS = messages.pack({"policy": np.ones(3, np.float32), "moments.observations": np.zeros(3, np.float32)})
# Valid replies, by the function that reads them.
RIGHT: dict[str, Mapping[str, Any]] = {
    "trained": messages.work_report([0, LAYOUT, 10, 10, 1], [0, 0, 0], {"loss": 0.5}) | ARRAYS,
    "evaluated": {"party": 0, "return": 1.5},
    "described": {"party": 0, "layout": LAYOUT, "app": "abc"},
}
READ: dict[str, Callable[[Message], Any]] = {
    "trained": lambda reply: messages.trained(reply, WIDTHS, LAYOUT),
    "evaluated": messages.evaluated,
    "described": messages.described,
}
NUMBERS = [0, -1, 1, 0.5, -0.0, math.nan, math.inf, 2**63 - 1, -(2**63), 1e308]


def reply(entries: Mapping[str, Any]) -> Message:
    """Return a message as Flower delivers it: packed and unpacked."""
    record = ConfigRecord.inflate(ConfigRecord(dict(entries)).deflate())
    return Message(RecordDict({messages.RECORD: record}), 1, MessageType.TRAIN)


def anything(dice: random.Random) -> Any:
    """Return a value of any type that a record may hold. A list holds values of one type."""
    kinds: list[Callable[[], Any]] = [
        lambda: dice.choice(NUMBERS),
        lambda: dice.choice(["", "a", "5", "nan", "x" * 5000]),
        lambda: dice.randbytes(dice.choice([0, 11, 12, 13])),
        lambda: dice.random() < 0.5,
    ]
    one = dice.choice(kinds)
    if dice.random() < 0.6:
        return one()
    found = [one() for _ in range(dice.choice([0, 1, 3, 5, 5]))]
    return [value for value in found if type(value) is type(found[0])]


def test_right_replies_are_read() -> None:
    found = messages.trained(reply(RIGHT["trained"]), WIDTHS, LAYOUT)
    assert (found.agent, found.steps, found.lived, found.updates, found.measured["loss"]) == (0, 10, 10, 1, 0.5)
    assert messages.evaluated(reply(RIGHT["evaluated"])) == (0, 1.5)
    assert messages.described(reply(RIGHT["described"]))[:3] == (0, LAYOUT, "abc")


@pytest.mark.parametrize("name", RIGHT)
def test_any_reply_is_read_or_refused_by_name(name: str) -> None:
    dice, right = random.Random(name), RIGHT[name]
    read, longest, refused = 0, 0, set[str]()
    for _ in range(500):
        given = {key: anything(dice) if dice.random() < 1 / len(right) else value for key, value in right.items()}
        given = {key: value for key, value in given.items() if dice.random() < 0.95}
        try:
            found = READ[name](reply(given))
        except RefusedError as error:
            refused.add(error.reason)
            longest = max(longest, len(str(error)))
            continue
        read += 1
        assert type(found.agent) is int
        if name == "trained":
            assert all(type(one) is int and 0 <= one < messages.MAX_COUNT for one in (found.steps, found.lived))
            assert 0 <= found.updates < messages.MAX_COUNT
            assert all(map(math.isfinite, found.measured.values()))
            assert {part: len(row) for part, row in found.parts.items()} == WIDTHS
            assert all(np.isfinite(row).all() for row in found.parts.values())
        elif name == "evaluated":
            assert math.isfinite(found.value)
        else:
            assert (type(found.layout), type(found.app)) == (int, str)
    assert read > 20
    assert longest <= messages.MAX_SENTENCE
    expected = {"evaluated": {"no-number"}, "described": {"no-description"}}
    assert refused >= expected.get(name, {"no-number", "wrong-layout", "wrong-parts"})


def test_an_error_has_the_name_that_the_grid_gives_it_and_no_other() -> None:
    order = Message(RecordDict(), 1, MessageType.TRAIN)
    order.metadata.__dict__["_message_id"] = "x"
    for reason, name in (
        ("oversized: more than 5 bytes", "oversized"), ("malformed: DecodeError", "malformed"),
        ("no more, oversized: as it is", "error-reply"), ("boom", "error-reply"), ("", "error-reply"),
    ):  # fmt: skip
        for read in READ.values():
            with pytest.raises(RefusedError) as caught:
                read(Message(Error(0, reason), reply_to=order))
            assert caught.value.reason == name


def test_metrics_are_bounded() -> None:
    for measured in ({str(number): 1.0 for number in range(5000)}, {"x" * 61: 1.0}):
        given = messages.work_report([0, LAYOUT, 10, 10, 1], [0, 0, 0], measured) | ARRAYS
        with pytest.raises(RefusedError, match="metrics"):
            messages.trained(reply(given), WIDTHS, LAYOUT)
