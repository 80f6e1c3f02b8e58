"""FedAvg: the mean, the contract of messages, and parties that break it."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from strategies import messages
from strategies.fedavg import FedAvg
from strategies.messages import RefusedError
from strategies.rules.means import weighted_mean
from strategies.rules.rule import TooFewError, Verdict

WIDTHS = {"policy": 3}
LAYOUT = 77


def fedavg(parties: int = 3, **given: Any) -> FedAvg:
    return FedAvg({"policy": np.zeros(3, np.float32)}, LAYOUT, parties, 1, **given)


def aggregated(strategy: FedAvg, replies: list[Message]) -> np.ndarray:
    """The policy after a round with these replies: those that are refused do not count."""
    accepted = {}
    for one in replies:
        with suppress(RefusedError):
            found = strategy.read(one)
            accepted[found.agent] = found
    if accepted:  # rounds without a quorum end the run, so a strategy never aggregates nothing
        strategy.aggregate(1, [accepted[agent] for agent in sorted(accepted)])
    return strategy.learned()["policy"][0]


def reply(
    row: object, party: int = 0, updates: float = 1, name: str = "policy", layout: int = LAYOUT, **more: float
) -> Message:
    asked = Message(RecordDict(), 1, MessageType.TRAIN)
    arrays = {f"array.{name}": row if isinstance(row, str) else np.asarray(row).tobytes()}
    return Message(
        messages.content(arrays, messages.work_report([party, layout, 10, 20, updates], [0, 0, 0], more)),
        reply_to=asked,
    )


def said(words: list[float]) -> Message:
    """A reply whose account of itself is these numbers."""
    found = reply(row(1, 2, 3))
    found.content.config_records["fedrl"]["counts"] = words
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
        results.append(aggregated(fedavg(), [replies[i] for i in order]))
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
    np.testing.assert_array_equal(aggregated(fedavg(), [bad, reply(row(1, 2, 3), 1)]), row(1, 2, 3))


def test_nobody_left_keeps_the_old_weights() -> None:
    np.testing.assert_array_equal(aggregated(fedavg(), [reply(row(np.nan, 0, 0))]), row(0, 0, 0))


def test_too_few_for_the_rule_keeps_the_old_weights() -> None:
    def needs_five(rows: Any, weights: Any) -> Any:
        raise TooFewError("five are needed")

    np.testing.assert_array_equal(aggregated(fedavg(rule=needs_five), [reply(row(1, 2, 3))]), row(0, 0, 0))


def test_a_rule_that_trusts_nobody_keeps_the_old_weights() -> None:
    def nobody(rows: Any, weights: Any) -> Verdict:
        return Verdict(row(np.nan, np.nan, np.nan), np.arange(0), {})

    np.testing.assert_array_equal(aggregated(fedavg(rule=nobody), [reply(row(1, 2, 3))]), row(0, 0, 0))


def test_a_message_is_one_object_of_flowers_beside_the_envelope() -> None:
    """What a round costs over gRPC is their number."""
    assert len(get_all_nested_objects(reply(row(1, 2, 3), loss=0.5))) == 3
