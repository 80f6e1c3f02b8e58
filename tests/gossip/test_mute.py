"""A peer that greets, acknowledges and reports progress, but sends no shares: it costs a neighbour one deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gossip import gossip_pb2 as pb
from gossip.inbox import AHEAD
from gossip.wire import Wire
from tests.gossip.network import QUICK, network, starts, together, until

DEADLINE_S, STALL_S, ROUNDS = 1.0, 0.4, 40


def far_ahead(mute: Wire, number: int) -> None:
    """Make it too far ahead to be waited for, until its neighbours are in their next round."""
    mute.local.round = number + AHEAD + 1


def leaves(mute: Wire, number: int) -> None:
    """Make it leave, and come back at once."""
    mute.local.state = pb.STATE_LEAVING
    for neighbour in mute.neighbours.values():
        neighbour.stub.Greet(neighbour.greeting(neighbour.life), timeout=5.0)
    mute.local.state = pb.STATE_LEARNING


@pytest.mark.parametrize(("move", "lead"), [(far_ahead, AHEAD), (leaves, 0)])
def test_a_mute_peer_costs_one_deadline_in_all_whatever_it_reports(
    move: Callable[[Wire, int], None], lead: int
) -> None:
    """Before its neighbours have waited half a deadline for it, it gives them a reason to stop waiting."""
    X, Y = starts(3, 20)
    over, stalls = threading.Event(), list[int]()
    with network("complete", 3, 20, replace(QUICK, deadline=DEADLINE_S, end=5.0)) as net:
        wires = [net.start(k) for k in range(3)]
        mute, other = wires[1], wires[0]

        def learns(k: int) -> None:
            x, y = X[k : k + 1], Y[k : k + 1]
            assert wires[k].join(0) == (0, None)
            for number in range(1, ROUNDS + 1):
                until(lambda: 1 in wires[k].pace.present())  # whoever comes back is waited for again
                x, y = wires[k].mix(number, x, y)
                assert np.isfinite(x).all()

        def attacks() -> None:
            assert mute.join(0) == (0, None)
            while not over.is_set():
                number = other.local.round
                with mute.local.changed:
                    mute.local.round = number + lead
                    mute.pace.greet_all()
                if not over.wait(STALL_S) and number and other.local.round == number:
                    stalls.append(number)
                    move(mute, number)
                    with mute.local.changed:
                        mute.pace.greet_all()
                    until(lambda number=number: over.is_set() or other.local.round != number, 5 * DEADLINE_S)

        def all_learn() -> None:
            try:
                together([lambda k=k: learns(k) for k in (0, 2)])
            finally:
                over.set()

        together([all_learn, attacks])
    assert len(stalls) <= DEADLINE_S / STALL_S + 2, f"{len(stalls)} of {ROUNDS} rounds waited for it"
