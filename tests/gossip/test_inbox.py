"""Every vector exactly once, or never: the inbox for one neighbour, without a network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import gossip_pb2 as pb
from gossip.inbox import AHEAD, BROADCASTS, PIECE, Inbox, Vector


def inbox(width: int = 3) -> Inbox:
    return Inbox(layout=7, width=width, largest=1e6, network=4)


def piece(
    sequence: int, row: object = (1, 2, 3), *, number: int = 1, weight: float = 0.5, **changes: object
) -> pb.Piece:
    data = np.asarray(row, "<f4")
    made = pb.Piece(sequence=sequence, round=number, layout=7, width=len(data), data=data.tobytes())
    made.share.weight = weight
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def held(box: Inbox) -> tuple[np.ndarray, float]:
    """Return the sum of all shares in the inbox, less those to be subtracted."""
    total, weight = np.zeros(box.width), 0.0
    for sign, those in ((1, box.shares), (-1, box.owed)):
        for one in those:
            total, weight = total + sign * one.row, weight + sign * one.weight
    return total, weight


def test_a_share_is_taken_once_and_in_order() -> None:
    box = inbox()
    assert box.take(piece(2), 1)[0] == pb.STATUS_OUT_OF_ORDER
    assert box.take(piece(1), 1)[0] == pb.STATUS_TAKEN
    assert box.take(piece(1, (9, 9, 9)), 1)[0] == pb.STATUS_DUPLICATE
    assert box.take(piece(2, number=2), 1)[0] == pb.STATUS_TAKEN
    assert box.is_settled(1) and box.is_settled(2) and not box.is_settled(3)
    (first,) = box.pop_due(1)
    assert first.row.tolist() == [1, 2, 3] and first.weight == 0.5
    assert box.is_settled(1) and box.is_settled(2), (
        "what comes in order and has come for round 2 does not come for round 1 any more"
    )


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (piece(1, (1, 2)), pb.STATUS_WRONG_LAYOUT),
        (piece(1, layout=8), pb.STATUS_WRONG_LAYOUT),
        (piece(1, offset=1), pb.STATUS_OVERSIZED),
        (piece(1, offset=PIECE), pb.STATUS_OVERSIZED),
        (piece(1, data=b"1234567890123"), pb.STATUS_OVERSIZED),
        (piece(1, (1, np.nan, 2)), pb.STATUS_NOT_FINITE),
        (piece(1, (1, -np.inf, 2)), pb.STATUS_NOT_FINITE),
        (piece(1, (1, 3e38, -3e38)), pb.STATUS_HUGE),
        (piece(1, (1, 6e5, 2)), pb.STATUS_HUGE),  # at half a weight, x / y is above a million
        (piece(1, weight=0.0), pb.STATUS_BAD_WEIGHT),
        (piece(1, weight=-0.5), pb.STATUS_BAD_WEIGHT),
        (piece(1, weight=5.0), pb.STATUS_BAD_WEIGHT),
        (piece(1, weight=float("nan")), pb.STATUS_BAD_WEIGHT),
    ],
)
def test_an_unusable_share_is_refused_by_name_and_not_waited_for(wrong: pb.Piece, status: pb.Status) -> None:
    box = inbox()
    assert box.take(wrong, 1) == (status, None)
    assert box.is_settled(1) and not box.pop_due(1), "the share is not waited for, and there is none to use"
    assert box.take(piece(1), 1)[0] == pb.STATUS_TAKEN, "its number is still free"


def test_large_numbers_that_are_spread_out_are_no_huge_ones() -> None:
    box = inbox(width=10_000)
    assert box.take(piece(1, np.full(10_000, 4e5)), 1)[0] == pb.STATUS_TAKEN


def test_a_share_from_far_ahead_stays_with_its_sender() -> None:
    box = inbox()
    assert box.take(piece(1, number=AHEAD + 2), 1)[0] == pb.STATUS_HOLD
    assert box.take(piece(1, number=AHEAD + 1), 1)[0] == pb.STATUS_TAKEN


def test_the_shares_in_an_inbox_are_bounded() -> None:
    box = inbox()
    for sequence in range(1, 200):
        assert box.take(piece(sequence, number=1 + sequence % 12), 8)[0] == pb.STATUS_TAKEN
    assert len(box.shares) <= AHEAD + 2
    total, weight = held(box)
    assert weight == pytest.approx(199 * 0.5) and total.tolist() == pytest.approx([199, 398, 597])


def test_broadcasts_beyond_the_limit_stay_with_their_sender() -> None:
    box = inbox()
    for sequence in range(1, BROADCASTS + 2):
        broadcast = piece(sequence)
        broadcast.broadcast.tag, broadcast.broadcast.turn = "weights", sequence
        status, vector = box.take(broadcast, 1)
        if vector is not None:
            box.broadcasts.append(vector)
    assert status == pb.STATUS_HOLD and len(box.broadcasts) == BROADCASTS


def test_pieces_may_come_in_any_order_and_more_than_once() -> None:
    width = 2 * PIECE + 5
    row = np.arange(width, dtype="<f4")
    box = inbox(width)
    order = [2, 0, 2, 0, 1]
    statuses = []
    for at in order:
        part = piece(1, row, weight=1.0, offset=at * PIECE, data=row[at * PIECE : (at + 1) * PIECE].tobytes())
        statuses.append(box.take(part, 1)[0])
    assert statuses == [pb.STATUS_PART] * 4 + [pb.STATUS_TAKEN]
    assert np.array_equal(box.pop_due(1)[0].row, row)


def test_a_share_withdrawn_before_it_arrived_never_counts() -> None:
    box = inbox()
    assert box.give_up(1) == pb.STATUS_GIVEN_UP
    assert box.take(piece(1), 1)[0] == pb.STATUS_DUPLICATE
    assert not box.shares and box.take(piece(2), 1)[0] == pb.STATUS_TAKEN


def test_a_share_withdrawn_after_it_arrived_is_given_up() -> None:
    box = inbox()
    box.take(piece(1), 1)
    assert box.give_up(1) == pb.STATUS_GIVEN_UP and not box.shares and not box.owed
    box.take(piece(2), 1)
    box.pop_due(1)  # used
    assert box.give_up(2) == pb.STATUS_GIVEN_UP
    assert box.give_up(2) == pb.STATUS_GIVEN_UP, "a repeated withdrawal has no further effect"
    assert [one.weight for one in box.owed] == [0.5]
    assert box.give_up(9) == pb.STATUS_OUT_OF_ORDER


def test_a_new_life_of_a_sender_begins_again_and_withdraws_nothing() -> None:
    box = inbox()
    box.take(piece(1), 1)
    box.restart()
    assert box.give_up(1) == pb.STATUS_GIVEN_UP and box.is_settled(1), "the share is ours: its sender is dead"
    assert box.take(piece(2), 1)[0] == pb.STATUS_TAKEN


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(("send", "lose", "answer lost", "old", "take back", "use")), max_size=60))
def test_every_share_belongs_to_exactly_one_side(story: list[str]) -> None:
    """A sender like gossip/neighbour.py: its own shares and those in the inbox always add up to all shares."""
    box, sequence, sent = inbox(1), 1, 0.0
    mine: list[float] = []  # weights that the sender has got back
    used: list[Vector] = []
    waiting: list[float] = []  # the outbox, its first one may have been tried
    tried = False
    past: list[pb.Piece] = []
    for step, what in enumerate(story):
        if what == "send" or not waiting:
            waiting.append((step + 1) / 100)
            sent += waiting[-1]
        now = piece(sequence, (waiting[0],), number=1 + step % 3, weight=waiting[0])
        if what in ("send", "answer lost", "lose"):
            tried = True
            past.append(now)
            if what != "lose":
                status, _ = box.take(now, 2)
                if what == "send":
                    assert status in (pb.STATUS_TAKEN, pb.STATUS_DUPLICATE)
                    waiting.pop(0)
                    sequence, tried = sequence + 1, False
        elif what == "old" and past:
            box.take(past[step % len(past)], 2)
        elif what == "take back":
            mine += waiting
            waiting = []
            if tried:
                assert box.give_up(sequence) == pb.STATUS_GIVEN_UP
                sequence, tried = sequence + 1, False
        elif what == "use":
            used += box.pop_due(2)
        # The first of the outbox may be on both sides while its answer is not here: it is the recipient's then.
        both = waiting[0] if tried and box.last == sequence else 0.0
        theirs = held(box)[1] + sum(one.weight for one in used)
        assert theirs + sum(mine) + sum(waiting) - both == pytest.approx(sent)
