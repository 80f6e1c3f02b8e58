"""FedAvg: the mean, the contract of messages, and parties that break it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from strategies import messages
from strategies.fedavg import FedAvg
from strategies.messages import RefusedError
from strategies.robust import weighted_mean

WIDTHS = {"policy": 3}


def reply(row: object, party: int = 0, updates: float = 1, name: str = "policy") -> Message:
    asked = Message(RecordDict(), 1, MessageType.TRAIN)
    arrays = ArrayRecord({name: Array(np.asarray(row))})
    metrics = MetricRecord({"party": party, "steps": 10, "updates": updates})
    return Message(messages.content(arrays, metrics=metrics), reply_to=asked)


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_weighted_mean_by_hand() -> None:
    rows = np.array([[0, 4], [4, 8]], np.float32)
    np.testing.assert_allclose(weighted_mean(rows, np.array([1.0, 3.0])), [3.0, 7.0])
    np.testing.assert_allclose(weighted_mean(rows, np.zeros(2)), [2.0, 6.0])
    for bad in ([-1.0, 2.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="not negative"):
            weighted_mean(rows, np.array(bad))
    with pytest.raises(ValueError, match="at least one row"):
        weighted_mean(rows[:0], np.zeros(0))


def test_aggregate_is_the_mean_by_work_in_any_order() -> None:
    replies = [reply(row(1, 2, 3), 0, 1), reply(row(5, 6, 7), 1, 3), reply(row(1e8, 0, 0), 2, 1)]
    results = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        arrays, metrics = FedAvg(WIDTHS, 3).aggregate_train(1, [replies[i] for i in order])
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
        (reply(np.zeros((1, 3), np.float32)), "wrong-layout"),
        (reply(row(1, 2, 3), name="value"), "wrong-parts"),
        (reply(row(1, 2, 3), updates=float("nan")), "no-metric"),
        (Message(RecordDict(), reply_to=Message(RecordDict(), 1, MessageType.TRAIN)), "no-arrays"),
        (Message(Error(0, "boom"), reply_to=Message(RecordDict(), 1, MessageType.TRAIN)), "error-reply"),
    ],
)
def test_bad_replies_are_refused_by_name_and_do_not_count(bad: Message, reason: str) -> None:
    strategy = FedAvg(WIDTHS, 2)
    arrays, _ = strategy.aggregate_train(1, [bad, reply(row(1, 2, 3), 1)])
    assert arrays is not None
    np.testing.assert_array_equal(arrays["policy"].numpy(), row(1, 2, 3))
    assert dict(strategy.refused) == {reason: 1}


def test_a_header_that_lies_about_the_bytes_is_refused() -> None:
    liar = reply(row(1, 2, 3, 4))
    liar.content.array_records["arrays"]["policy"].shape = (3,)
    with pytest.raises(RefusedError) as caught:
        messages.unpack(liar, WIDTHS)
    assert caught.value.reason == "wrong-layout"


def test_nobody_left_keeps_the_old_weights() -> None:
    assert FedAvg(WIDTHS, 1).aggregate_train(1, [reply(row(np.nan, 0, 0))]) == (None, None)


class FewNodes:
    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self.nodes


def test_a_round_goes_on_with_those_that_are_here_and_never_with_none() -> None:
    strategy = FedAvg(WIDTHS, 3, wait_s=0.2)
    sent = strategy.configure_train(1, messages.pack({"policy": row(0, 0, 0)}), ConfigRecord(), FewNodes([7, 5]))  # type: ignore[arg-type]
    assert [message.metadata.dst_node_id for message in sent] == [5, 7]
    with pytest.raises(TimeoutError, match="no party came"):
        strategy.configure_train(1, messages.pack({"policy": row(0, 0, 0)}), ConfigRecord(), FewNodes([]))  # type: ignore[arg-type]
