"""FedAvg: the mean, the contract of messages, and parties that break it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from strategies import messages
from strategies.fedavg import FedAvg
from strategies.messages import RefusedError
from strategies.robust import TooFewError, Verdict, weighted_mean

WIDTHS = {"policy": 3}
LAYOUT = 77


def fedavg(parties: int = 3, **given: Any) -> FedAvg:
    return FedAvg({"policy": np.zeros(3, np.float32)}, LAYOUT, parties, 1, **given)


def reply(
    row: object, party: int = 0, updates: float = 1, name: str = "policy", layout: int = LAYOUT, **more: float
) -> Message:
    asked = Message(RecordDict(), 1, MessageType.TRAIN)
    arrays = {f"array.{name}": row if isinstance(row, str) else np.asarray(row).tobytes()}
    return Message(
        messages.content(arrays, messages.account([party, layout, 10, 20, updates], [0, 0, 0], more)), reply_to=asked
    )


def said(words: list[float]) -> Message:
    """A reply whose account of itself is these numbers."""
    found = reply(row(1, 2, 3))
    found.content.config_records["fedrl"]["said"] = words
    return found


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_weighted_mean_by_hand() -> None:
    rows = np.array([[0, 4], [4, 8]], np.float32)
    np.testing.assert_allclose(weighted_mean(rows, np.array([1.0, 3.0])).row, [3.0, 7.0])
    np.testing.assert_allclose(weighted_mean(rows, np.zeros(2)).row, [2.0, 6.0])
    for bad in ([-1.0, 2.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="not negative"):
            weighted_mean(rows, np.array(bad))
    with pytest.raises(ValueError, match="at least one row"):
        weighted_mean(rows[:0], np.zeros(0))


def test_aggregate_is_the_mean_by_work_in_any_order() -> None:
    replies = [reply(row(1, 2, 3), 0, 1), reply(row(5, 6, 7), 1, 3), reply(row(1e8, 0, 0), 2, 1)]
    results = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        arrays, metrics = fedavg().aggregate_train(1, [replies[i] for i in order])
        assert arrays is not None
        assert metrics is not None
        assert metrics["replies"] == 3
        results.append(arrays["policy"].numpy())
    np.testing.assert_allclose(results[0], (row(1, 2, 3) + 3 * row(5, 6, 7) + row(1e8, 0, 0)) / 5, rtol=1e-6)
    assert all(np.array_equal(results[0], other) for other in results)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (reply(row(1, np.nan, 3)), "not-finite"),
        (reply(row(1, np.inf, 3)), "not-finite"),
        (reply(row(1, 2)), "wrong-layout"),
        (reply(np.zeros(3)), "wrong-layout"),
        (reply("weights"), "wrong-layout"),
        (reply(row(1, 2, 3), name="value"), "wrong-parts"),
        (said([0.0, float(LAYOUT), 10.0, 20.0, math.nan]), "no-number"),
        (reply(row(1, 2, 3), updates=-1), "negative-work"),
        (reply(row(1, 2, 3), layout=78), "wrong-layout"),
        (reply(row(1, 2, 3), loss=float("inf")), "no-number"),
        (reply(np.zeros(10**6, np.float32)), "wrong-layout"),
        (said([0, LAYOUT, 10]), "no-number"),
        (Message(RecordDict(), reply_to=Message(RecordDict(), 1, MessageType.TRAIN)), "no-arrays"),
        (Message(Error(0, "boom"), reply_to=Message(RecordDict(), 1, MessageType.TRAIN)), "error-reply"),
    ],
)
def test_bad_replies_are_refused_by_name_and_do_not_count(bad: Message, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        fedavg().read(bad)
    assert caught.value.reason == reason
    arrays, _ = fedavg().aggregate_train(1, [bad, reply(row(1, 2, 3), 1)])
    assert arrays is not None
    np.testing.assert_array_equal(arrays["policy"].numpy(), row(1, 2, 3))


def test_nobody_left_keeps_the_old_weights() -> None:
    assert fedavg().aggregate_train(1, [reply(row(np.nan, 0, 0))]) == (None, None)


def test_too_few_for_the_rule_keeps_the_old_weights() -> None:
    def needs_five(rows: Any, weights: Any) -> Any:
        raise TooFewError("five are needed")

    arrays, _ = fedavg(rule=needs_five).aggregate_train(1, [reply(row(1, 2, 3))])
    assert arrays is not None
    np.testing.assert_array_equal(arrays["policy"].numpy(), row(0, 0, 0))


def test_a_rule_that_trusts_nobody_keeps_the_old_weights() -> None:
    def nobody(rows: Any, weights: Any) -> Verdict:
        return Verdict(row(np.nan, np.nan, np.nan), np.arange(0), {})

    arrays, _ = fedavg(rule=nobody).aggregate_train(1, [reply(row(1, 2, 3))])
    assert arrays is not None
    np.testing.assert_array_equal(arrays["policy"].numpy(), row(0, 0, 0))


def test_a_message_is_one_object_of_flowers_beside_the_envelope() -> None:
    """What a round costs over gRPC is their number."""
    assert len(get_all_nested_objects(reply(row(1, 2, 3), loss=0.5))) == 3


class Nodes:
    """A grid of nodes that say who they are."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def send_and_receive(self, letters: list[Message], timeout: float) -> list[Message]:
        replies = []
        for letter in letters:
            node = letter.metadata.dst_node_id
            letter.metadata.__dict__["_message_id"] = str(node)
            who = {"party": node - 5, "layout": LAYOUT, "app": "x"}
            replies.append(Message(messages.content(who), reply_to=letter))
        return replies


def test_in_flowers_own_loop_a_round_goes_on_with_those_that_are_here_and_never_with_none() -> None:
    strategy, start = fedavg(wait_s=0.2), ArrayRecord({"policy": Array(row(1, 1, 1))})
    sent = strategy.configure_train(1, start, ConfigRecord(), Nodes([7, 5]))  # type: ignore[arg-type]
    assert [message.metadata.dst_node_id for message in sent] == [5, 7]
    np.testing.assert_array_equal(messages.unpack(next(iter(sent)), WIDTHS)["policy"], row(1, 1, 1))
    with pytest.raises(TimeoutError, match="no party came"):
        fedavg(wait_s=0.2).configure_train(1, start, ConfigRecord(), Nodes([]))  # type: ignore[arg-type]


def test_in_flowers_own_loop_one_claim_does_not_move_the_return() -> None:
    asked = Message(RecordDict(), 1, MessageType.EVALUATE)
    claims = [1.0, 3.0, 1e6, math.nan]
    replies = [
        Message(messages.content({"party": party, "return": value}), reply_to=asked)
        for party, value in enumerate(claims)
    ]
    found = fedavg().aggregate_evaluate(1, replies)
    assert found is not None and found["return"] == 3.0
