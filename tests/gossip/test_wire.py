"""Peers over real gRPC on loopback: the results of one process, also over a bad network."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attacks import forgeries
from attacks.attack import About, AttackConfig, find
from core import registry
from core.errors import Failure
from gossip import gossip_pb2 as pb
from gossip.inbox import AHEAD
from gossip.mixing import Network
from gossip.wire import Wire
from strategies.graphs.topology import Topology, graph, names
from strategies.medium import F32, F64, Forged
from tests.gossip.network import QUICK, Faults, Net, network, starts, together

# Those that connect all peers.
FORGED = [name for name in registry.names("attack") if find(name).forge]
NAMES = [name for name in names() if graph(name).connected]

BAD = {"loss": 0.2, "twice": 0.2, "delay": 0.2, "reorder": 0.2}


def quiet(peer: int, number: int) -> float:
    """Peer 1 is silent."""
    return math.inf if peer == 1 else 0.0


def quiet_for_ten(peer: int, number: int) -> float:
    return quiet(peer, number) if 6 <= number < 16 else 0.0


Forge = Callable[[int, F32], Forged | None]  # the rows that a peer sends instead of x, in a round


def mixes(wire: Wire, x: F32, y: F64, rounds: int, forge: Forge = lambda number, x: None) -> tuple[F32, F64, list[F32]]:
    """Do the whole run of a peer. Returns its last x and y, and its z after every round."""
    assert not wire.gather()
    wire.begin()
    found = []
    for number in range(1, rounds + 1):
        x, y = wire.mix(number, x, y, forge(number, x))
        found.append(x[0] / y[0])
    x, y = wire.finish(x, y)
    return x, y, found


def all_mix(net: Net, X: F32, Y: F64, rounds: int) -> tuple[F32, F64, list[float]]:
    """Run all peers. Returns their last x and y, and the distance from consensus after every round."""
    wires = [net.start(k) for k in range(net.peers)]
    found = together([lambda w=w, k=k: mixes(w, X[k : k + 1], Y[k : k + 1], rounds) for k, w in enumerate(wires)])
    mean = X.mean(axis=0)
    errors = [float(np.linalg.norm(np.stack([one[2][number] for one in found]) - mean)) for number in range(rounds)]
    return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found]), errors


def product(net: Net, X: F32, Y: F64, rounds: int) -> tuple[F32, F64]:
    here = Network(net.topology(), lambda number: [k for k in range(net.peers) if net.after(k, number)])
    for number in range(1, rounds + 1):
        X, Y = here.mix(number, X, Y)
    return X, Y


def whole(x: F32, y: F64, X: F32) -> None:
    """Check that no mass was lost or made: a millionth, for every column by itself."""
    lost = np.abs(x.sum(axis=0, dtype=np.float64) - X.sum(axis=0, dtype=np.float64))
    assert (lost < 1e-6 * np.abs(X).sum(axis=0)).all(), (lost / np.abs(X).sum(axis=0)).max()
    assert y.sum() == pytest.approx(len(X), rel=1e-9)


# Other edges in every round, with given weights.
CHANGING = (
    '{"rounds": [{"edges": [[1, 0, 2], [2, 1, 1], [0, 2, 1], [3, 2, 1]]}, '
    '[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 3], [0, 0, 1, 1]], {"edges": [[0, 3, 1]]}]}'
)


@pytest.mark.parametrize("topology", [*NAMES, CHANGING])
def test_ten_rounds_are_the_same_as_in_one_process_bit_for_bit(topology: str) -> None:
    X, Y = starts(4, 300)
    with network(topology, 4, 300) as net:
        x, y, _ = all_mix(net, X, Y, 10)
        a, b = product(net, X, Y, 10)
    assert np.array_equal(x, a) and np.array_equal(y, b)
    assert not net.notes


REASONS = {"nan": "not-finite", "wrong-shape": "wrong-layout"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [*((kind, REASONS.get(kind, "")) for kind in [*FORGED, "silence"]), ("large-noise", "huge")],
)
def test_forgeries_of_every_kind_break_no_peer_not_even_the_attacker(kind: str, reason: str) -> None:
    """Peer 1 of 3 sends forged rows. If its neighbours refuse them, no mass is lost or made."""
    X, Y = starts(3, 40)
    about = About(3, config=AttackConfig(large_noise=1e8 if reason else 1e3))

    def forge(number: int, x: F32) -> Forged:
        received = 0.9 * x
        return lambda to: {0: forgeries.forge(kind, x, [7], number, about._replace(recipient=to), received)[0]}

    with network("ring", 3, 40, after=quiet if kind == "silence" else lambda peer, number: 0.0) as net:
        wires = [net.start(k) for k in range(3)]
        jobs = [(wire, X[k : k + 1], Y[k : k + 1], 4) for k, wire in enumerate(wires)]
        found = together(
            [lambda job=job, k=k: mixes(*job, *[forge] * (k == 1 and kind in FORGED)) for k, job in enumerate(jobs)]
        )
        reasons = [wire.reasons() for wire in wires]
    x, y = np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
    assert np.isfinite(x).all() and y.min() > 0.1
    assert reasons == [{reason: 4}, {}, {reason: 4}] if reason else [{}] * 3
    if reason or kind == "silence":
        whole(x, y, X)


@pytest.mark.parametrize("topology", ["ring", "exponential", "complete"])
def test_a_refused_peer_is_sent_no_share_as_in_one_process(topology: str) -> None:
    """Peer 1 of 4 sends nan."""
    X, Y = starts(4, 40)
    forged = np.full(40, np.nan, np.float32)

    with network(topology, 4, 40) as net:
        wires = [net.start(k) for k in range(4)]
        kept = [np.zeros((1, 4), np.bool_) for _ in wires]

        def goes(wire: Wire) -> tuple[F32, F64, int]:
            (k,) = wire.peers
            x, y = X[k : k + 1], Y[k : k + 1]
            assert not wire.gather()
            wire.begin()
            for number in range(1, 7):
                x, y = wire.mix(number, x, y, (lambda to: {0: forged}) if k == 1 else None, kept[k])
            return *wire.finish(x, y), wire.counts()["missed"][0]

        found = together([lambda w=w: goes(w) for w in wires])
        here, refused = Network(net.topology()), np.zeros((4, 4), np.bool_)
    for number in range(1, 7):
        X, Y = here.mix(number, X, Y, lambda to: {1: forged}, refused)
    assert np.array_equal(np.concatenate(kept), refused) and refused[:, 1].any()
    for k in (0, 2, 3):
        assert np.array_equal(found[k][0][0], X[k]) and found[k][1][0] == Y[k]
    missed = here.counts()["missed"]
    assert found[1][2] >= missed[1], "it may learn that it gets no more shares before its last one arrives"
    assert [found[k][2] for k in (0, 2, 3)] == [missed[k] for k in (0, 2, 3)]
    whole(np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found]), starts(4, 40)[0])


@pytest.mark.parametrize(("number", "taken"), [(1e6, True), (1.01e6, False)])
def test_one_process_and_the_wire_refuse_the_same_huge_numbers(number: float, taken: bool) -> None:
    """gossip.largest bounds x / y of a share, and the numbers of a broadcast."""
    X, Y = starts(2, 3)
    forged = {1: np.full(3, number, np.float32)}
    here = Network(Topology("ring", 2), largest=1e6)
    x, y = here.mix(1, X, Y, lambda to: forged)
    with network("ring", 2, 3, largest=1e6) as net:
        wires = [net.start(k) for k in range(2)]
        forges: list[Forge] = [lambda turn, row: None, lambda turn, row: lambda to: {0: forged[1]}]
        found = together(
            [lambda w=w, k=k: mixes(w, X[k : k + 1], Y[k : k + 1], 1, forges[k]) for k, w in enumerate(wires)]
        )
        assert wires[0].reasons() == here.reasons() == ({} if taken else {"huge": 1})
    assert np.array_equal(np.concatenate([one[0] for one in found]), x)
    assert np.array_equal(np.concatenate([one[1] for one in found]), y)
    assert here.broadcast(1, "gradient", 0, X, lambda to: forged)[0].senders.tolist() == ([0, 1] if taken else [0])


@pytest.mark.parametrize("topology", ["directed-ring", "ring", "complete", "exponential"])
def test_silent_peers_are_closed_around_as_in_one_process_bit_for_bit(topology: str) -> None:
    """No peer waits for a silent one, or sends it mass."""
    X, Y = starts(4, 300)
    with network(topology, 4, 300, after=quiet) as net:
        x, y, _ = all_mix(net, X, Y, 20)
        a, b = product(net, X, Y, 20)
        missed = [wire.counts()["missed"][0] for wire in net.wires.values()]
    assert np.array_equal(x, a) and np.array_equal(y, b)
    assert missed == [0] * 4 and not net.notes
    assert np.array_equal(x[1], X[1]) and y.min() > 0.1


def test_no_peer_waits_for_the_broadcasts_of_a_silent_peer_which_receives_all() -> None:
    with network("complete", 3, 4, after=quiet) as net:
        wires = [net.start(k) for k in range(3)]

        def broadcasts(wire: Wire) -> list[list[int]]:
            k = wire.peers[0]
            wire.gather()
            wire.begin()
            rows = np.full((1, 4), k, np.float32)
            # Five deadlines are more than ``together`` waits.
            return [wire.broadcast(number, "gradient", 0, rows)[0].senders.tolist() for number in range(1, 6)]

        zero, one, two = together([lambda w=w: broadcasts(w) for w in wires])
        assert zero == two == [[0, 2]] * 5 and one == [[0, 1, 2]] * 5
        assert [wire.counts()["missed"] for wire in wires] == [[5], [0], [5]]


def test_a_peer_that_is_silent_for_some_rounds_takes_no_mass_with_it() -> None:
    """Shares in flight to it return to their senders. Later it takes part as before."""
    X, Y = starts(3, 50)
    least: list[float] = []
    with network("directed-ring", 3, 50, after=quiet_for_ten) as net:
        wires = [net.start(k) for k in range(3)]
        quiet, done = threading.Event(), threading.Barrier(2, timeout=60)

        def goes(wire: Wire) -> tuple[F32, F64, F32]:
            k = wire.peers[0]
            x, y = X[k : k + 1], Y[k : k + 1]
            wire.gather()
            wire.begin()
            for number in range(1, 41):
                if number == 16 and k == 1:
                    assert quiet.wait(60)
                x, y = wire.mix(number, x, y)
                if 6 <= number < 16 and k != 1:
                    least.append(float(y[0]))
                if number == 15 and k != 1:
                    done.wait()
                    quiet.set()
            near = x[0] / y[0]
            return *wire.finish(x, y), near

        found = together([lambda w=w: goes(w) for w in wires])
    x, y, near = (np.concatenate([np.atleast_2d(one[at]) for one in found]) for at in range(3))
    whole(x, y.reshape(-1), X)
    assert min(least) > 0.1, "ten rounds, each of which would have halved it"
    assert np.ptp(near, axis=0).max() < 1e-3


def test_a_late_peer_is_not_waited_for_and_its_shares_are_added_later() -> None:
    """The attack delay, beyond the deadline of the others."""
    X, Y = starts(3, 50)
    after = lambda peer, number: 0.3 if (peer, number) == (1, 2) else 0.0  # noqa: E731
    with network("directed-ring", 3, 50, replace(QUICK, deadline=0.1), after=after) as net:
        x, y, _ = all_mix(net, X, Y, 8)
        counts = [wire.counts() for wire in net.wires.values()]
    whole(x, y, X)
    assert counts[2]["missed"][0] > 0 and counts[2]["late"][0] > 0


def test_the_last_peer_to_start_begins_with_the_first_round() -> None:
    """Others may be in the first round already when a slow peer sees that all are there."""
    X, Y = starts(3, 10)
    with network("ring", 3, 10) as net:
        wires = [net.start(k) for k in range(3)]

        def goes(wire: Wire) -> int:
            k = wire.peers[0]
            if k == 2:
                deadline = time.monotonic() + 20
                while wire.neighbours[0].round + wire.neighbours[1].round < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
            number, row = wire.join(0)
            assert row is None
            wire.mix(number + 1, X[k : k + 1], Y[k : k + 1])
            return number

        assert together([lambda w=w: goes(w) for w in wires]) == [0, 0, 0]


def test_vectors_of_several_pieces_arrive_whole() -> None:
    X, Y = starts(2, 600_000)
    with network("ring", 2, 600_000) as net:
        x, y, _ = all_mix(net, X, Y, 2)
        a, b = product(net, X, Y, 2)
    assert np.array_equal(x, a) and np.array_equal(y, b)


@pytest.mark.parametrize("topology", ["directed-ring", "random"])
def test_a_bad_network_changes_nothing_if_there_is_time(topology: str) -> None:
    """A fifth of the calls lost, repeated, late or out of order: the results of a good network, bit for bit."""
    X, Y = starts(5, 200)
    faults = Faults(**BAD, longest=0.02, seed=1)
    with network(topology, 5, 200, QUICK, faults) as net:
        x, y, errors = all_mix(net, X, Y, 12)
        found = [product(net, X, Y, number) for number in range(1, 13)]
        (a, b), after = found[-1], [one / weight[:, None] for one, weight in found]
        rate = net.topology().rate()
    assert np.array_equal(x, a) and np.array_equal(y, b)
    assert min(faults.did.values()) > 10
    # So consensus comes at the rate of the product, round by round, which on a ring is the topology's own.
    wanted = [float(np.linalg.norm(z - X.mean(axis=0))) for z in after]
    np.testing.assert_allclose(errors, wanted, rtol=1e-3)
    if topology == "directed-ring":
        assert (errors[-1] / errors[5]) ** (1 / 6) == pytest.approx(rate, abs=0.02)
    whole(x, y, X)


@pytest.mark.parametrize("topology", ["ring", "exponential"])
def test_no_mass_is_lost_or_made_if_there_is_no_time(topology: str) -> None:
    """Few shares meet the deadline: rounds go on without the others, which are used when they arrive."""
    X, Y = starts(4, 200)
    with network(topology, 4, 200, replace(QUICK, deadline=0.03), Faults(**BAD, seed=2)) as net:
        x, y, _ = all_mix(net, X, Y, 25)
        late = sum(wire.counts()["late"][0] for wire in net.wires.values())
    whole(x, y, X)
    assert late > 0


def test_all_receive_a_broadcast_and_a_final_one_in_later_turns() -> None:
    with network("complete", 3, 4) as net:
        wires = [net.start(k) for k in range(3)]
        rows = np.arange(12, dtype=np.float32).reshape(3, 4)

        def broadcasts(wire: Wire) -> list[Any]:
            k = wire.peers[0]
            wire.gather()
            wire.begin()
            found = [wire.broadcast(1, "gradient", 0, rows[k : k + 1])[0]]
            for turn in range(3):
                done = turn >= k  # peer 0 is done at once, peer 2 never
                found.append(wire.broadcast(1, "weights", turn, rows[k : k + 1] + turn, final=np.array([done]))[0])
                if done:
                    break
            found.append(wire.broadcast(2, "gradient", 0, -rows[k : k + 1])[0])
            return found

        zero, one, two = together([lambda w=w: broadcasts(w) for w in wires])
    for found in (zero, one, two):
        assert found[0].senders.tolist() == [0, 1, 2] and np.array_equal(found[0].rows, rows)
        assert np.array_equal(found[-1].rows, -rows)
    assert len(zero[1].senders) == 0, "a peer whose broadcast is final receives no more"
    assert np.array_equal(one[1].rows, rows)
    assert np.array_equal(two[1].rows, rows)
    assert np.array_equal(two[2].rows, [rows[0], rows[1] + 1, rows[2] + 1])


def test_what_is_told_ahead_is_kept_until_its_round() -> None:
    """A fast peer broadcasts its gradient of the next round before a slow peer has received the end of this one."""
    with network("complete", 2, 2) as net:
        fast, slow = net.start(0), net.start(1)
        together([fast.gather, slow.gather])
        rows = np.float32([[1, 2], [3, 4]])

        def begins(wire: Wire) -> None:
            k = wire.peers[0]
            wire.begin()
            wire.broadcast(1, "gradient", 0, rows[k : k + 1])

        together([lambda w=w: begins(w) for w in (fast, slow)])
        fast.broadcast(1, "weights", 0, rows[:1], final=np.array([True]))

        def ends(wire: Wire) -> F32:
            k = wire.peers[0]
            if wire is slow:
                deadline = time.monotonic() + 20
                while len(wire.neighbours[0].inbox.broadcasts) < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
                wire.broadcast(1, "weights", 0, rows[k:], final=np.array([True]))
            return wire.broadcast(2, "gradient", 0, -rows[k : k + 1])[0].rows

        for found in together([lambda w=w: ends(w) for w in (fast, slow)]):
            assert np.array_equal(found, -rows)


def test_a_liar_may_tell_everybody_something_else() -> None:
    with network("complete", 3, 2) as net:
        wires = [net.start(k) for k in range(3)]

        def broadcasts(wire: Wire) -> F32:
            k = wire.peers[0]
            wire.gather()
            wire.begin()
            forged = (lambda to: {0: np.full(2, 100 + to, np.float32)}) if k == 0 else None
            return wire.broadcast(1, "gradient", 0, np.full((1, 2), k, np.float32), forged)[0].rows

        zero, one, two = together([lambda w=w: broadcasts(w) for w in wires])
    assert zero[:, 0].tolist() == [0, 1, 2]
    assert one[:, 0].tolist() == [101, 1, 2]
    assert two[:, 0].tolist() == [102, 1, 2]


def test_who_waits_says_for_whom() -> None:
    with network("ring", 3, 2, replace(QUICK, start=0.5)) as net:
        wires = [net.start(0), net.start(1)]
        with pytest.raises(Failure, match=r"without peer 2 \(127.0.0.1:\d+: nobody listens there\)"):
            together([lambda w=w: w.gather() for w in wires])


def test_peers_begin_without_a_dead_peer_that_the_server_names() -> None:
    """A server may not know yet that a peer has died. The others learn without it, and it may join later.

    The address of peer 3 is never known.
    """
    X, Y = starts(4, 10)
    with network("ring", 4, 10, replace(QUICK, start=0.5)) as net:
        net.roster[3] = ""
        wires = [net.start(0), net.start(1)]

        def goes(wire: Wire) -> tuple[F32, F64]:
            k = wire.peers[0]
            deadline = time.monotonic() + 20
            while not wire.neighbours[1 - k].life and time.monotonic() < deadline:
                time.sleep(0.01)
            wire.expect(net.roster)
            assert wire.join(0) == (0, None)
            return wire.mix(1, X[k : k + 1], Y[k : k + 1])

        found = together([lambda w=w: goes(w) for w in wires])
        assert all(np.allclose(x, X[:2].mean(axis=0)) for x, _ in found)
        assert any("begins without peer 2" in note for note in net.notes)
        for k, (x, y) in enumerate(found):
            net.wires[k].next(2, x / np.float32(y))
        number, row = net.start(2).join(0)
        assert number == 1 and row is not None and np.allclose(row[0], X[:2].mean(axis=0))


def test_a_peer_that_finds_no_other_of_the_roster_does_not_learn_alone() -> None:
    with network("ring", 3, 2, replace(QUICK, start=0.5)) as net:
        wire = net.start(0)
        wire.expect(net.roster)
        with pytest.raises(Failure, match=r"without peer 1 .*; peer 2 "):
            wire.join(0)


def test_peers_of_another_run_are_refused_with_the_reason() -> None:
    with network("ring", 3, 2, replace(QUICK, start=1.0)) as net:
        net.start(0)
        net.start(1, conf=6)
        net.start(2, app="cd" * 32)
        why = r"peer 1 .*its configuration is another one.*peer 2 .*it runs the code 'cdcd"
        with pytest.raises(Failure, match=why):
            net.wires[0].gather()
        assert net.wires[0].reasons()["wrong-run"] > 0


def test_a_sleeping_peer_holds_up_no_other_beyond_the_deadline() -> None:
    """It serves and greets, and never mixes. Its neighbours go on, and the vectors for it are bounded."""
    X, Y = starts(4, 50)
    with network("directed-ring", 4, 50, replace(QUICK, deadline=3.0)) as net:
        wires = [net.start(k) for k in range(4)]

        def goes(wire: Wire) -> None:
            k = wire.peers[0]
            wire.gather()
            wire.begin()
            x, y = X[k : k + 1], Y[k : k + 1]
            for number in range(1, 4 * AHEAD):
                if k == 3:
                    break
                x, y = wire.mix(number, x, y)

        together([lambda w=w: goes(w) for w in wires])
        asleep = net.wires[3]
        assert len(asleep.neighbours[2].inbox.shares) <= AHEAD + 2
        assert len(net.wires[2].neighbours[3].outbox.vectors) <= AHEAD
        counts = [wire.counts() for wire in wires]
    assert counts[0]["missed"][0] > 0 and counts[2]["kept"][0] > 0
    assert counts[1]["kept"][0] == 0, "the outbox of a peer that is no neighbour of it never fills"


def learns(
    wire: Wire, X: F32, Y: F64, last: int, before: Callable[[int, int], bool],
    after: Callable[[int, int, F64], None] = lambda k, number, y: None, first: int = 1,
) -> tuple[F32, F64]:  # fmt: skip
    """The rounds of a peer from ``first`` to ``last``, as long as ``before`` returns True."""
    k = wire.peers[0]
    wire.gather()
    wire.begin(first - 1)
    x, y, number = X[k : k + 1], Y[k : k + 1], first
    while (number := wire.next(number, x)) <= last and before(k, number):
        x, y = wire.mix(number, x, y)
        after(k, number, y)
        number += 1
    return wire.finish(x, y)


@pytest.mark.parametrize("pace", [1.5, math.inf])  # deadlines that a round of it takes; infinite: it never mixes
def test_a_slow_peer_slows_its_neighbour_only_up_to_the_deadline_and_once(pace: float) -> None:
    """On a line whose first peer is slow: rounds go on without it, and late shares are added later. No mass is lost."""
    X, Y = starts(4, 50)
    rounds, deadline, over = 150, 2.0, threading.Event()
    with network("line", 4, 50, replace(QUICK, deadline=deadline, end=5.0)) as net:
        wires = [net.start(k) for k in range(4)]
        slow = [list[bool]() for _ in wires]
        in_vain, held_up, least = [list[int]() for _ in wires], [set[int]() for _ in wires], [1.0] * 4

        def before(k: int, number: int) -> bool:
            if over.wait(min(pace * deadline, 60.0) if k == 0 else 0.02) and k == 0:
                return False
            slow[k] = [neighbour.slow for neighbour in wires[k].neighbours.values()]
            return True

        def after(k: int, number: int, y: F64) -> None:
            now, least[k] = [neighbour.slow for neighbour in wires[k].neighbours.values()], min(least[k], float(y[0]))
            in_vain[k] += [number] * any(is_ and not was for was, is_ in zip(slow[k], now, strict=True))
            held_up[k].add(wires[k].local.held_up)
            if (k, number) == (1, rounds):
                over.set()

        done = together([lambda w=w: learns(w, X, Y, rounds, before, after) for w in wires])
        counts = [wire.counts() for wire in wires]
    assert in_vain[1] == [1] and in_vain[2:] == [[], []], "only its neighbour waits for a whole deadline"
    assert held_up[1] == {1}
    assert counts[1]["missed"][0] > rounds / 2
    assert min(least[2:]) > 0.1, "the shares in flight to waiting peers leave enough here"
    assert counts[1]["late"][0] > 0 or math.isinf(pace), "late shares are used"
    whole(np.concatenate([one[0] for one in done]), np.concatenate([one[1] for one in done]), X)


@pytest.mark.parametrize("topology", ["directed-ring", "exponential"])
def test_a_peer_behind_a_sleeping_one_does_not_send_all_its_mass(topology: str) -> None:
    """The mass that it sends does not return. Without a limit y would be below 1e-40 after these rounds."""
    X, Y = starts(4, 50)
    rounds, over, least = 150, threading.Event(), [1.0] * 4
    with network(topology, 4, 50, replace(QUICK, deadline=0.5, end=2.0)) as net:
        wires = [net.start(k) for k in range(4)]

        def before(k: int, number: int) -> bool:
            return not over.wait(60.0 if k == 0 else 0.005) or k != 0

        def after(k: int, number: int, y: F64) -> None:
            least[k] = min(least[k], float(y[0]))
            if (k, number) == (1, rounds):
                over.set()

        done = together([lambda w=w: learns(w, X, Y, rounds, before, after) for w in wires])
    assert min(least) > 0.05
    whole(np.concatenate([one[0] for one in done]), np.concatenate([one[1] for one in done]), X)


def test_a_slow_peer_that_keeps_up_again_is_waited_for_again() -> None:
    X, Y = starts(3, 50)
    deadline, rounds = 1.0, 100
    with network("line", 3, 50, replace(QUICK, deadline=deadline)) as net:
        wires = [net.start(k) for k in range(3)]

        slept = list[int]()

        def before(k: int, number: int) -> bool:
            sleeps = k == 0 and number >= 5 and not slept
            slept.extend([number] * sleeps)
            time.sleep(1.5 * deadline if sleeps else 0.02)
            return True

        done = together([lambda w=w: learns(w, X, Y, rounds, before) for w in wires])
        assert wires[1].local.held_up >= slept[0] and not wires[1].neighbours[0].slow
        assert wires[0].local.round == wires[1].local.round == wires[2].local.round == rounds
        missed = [wire.counts()["missed"][0] for wire in wires]
    assert missed[1] > 0 and max(missed) < 50
    whole(np.concatenate([one[0] for one in done]), np.concatenate([one[1] for one in done]), X)


def test_a_peer_that_is_far_ahead_of_the_others_waits_for_them() -> None:
    """Such a peer was parted from the others, or went on alone. It does not change their rounds."""
    X, Y = starts(4, 50)
    with network("ring", 4, 50, QUICK) as net:
        wires = [net.start(k) for k in range(4)]
        did, missed = [list[int]() for _ in wires], [0] * 4

        def before(k: int, number: int) -> bool:
            time.sleep(0.005)
            return True

        def after(k: int, number: int, y: F64) -> None:
            did[k].append(number)
            missed[k] = wires[k].counts()["missed"][0]

        begins = [101 if k == 1 else 1 for k in range(4)]
        together([lambda k=k: learns(wires[k], X, Y, 130, before, after, begins[k]) for k in range(4)])
    assert missed == [0] * 4, "in the last round all shares arrive"
    assert [note for note in net.notes if "ahead" in note] != []
    assert did == [list(range(first, 131)) for first in begins]


def test_a_killed_peer_is_noticed_and_comes_back_in_another_life() -> None:
    X, Y = starts(4, 50)
    with network("ring", 4, 50, replace(QUICK, dead=0.5)) as net:
        wires = [net.start(k) for k in range(4)]
        held: dict[int, tuple[F32, F64]] = {k: (X[k : k + 1], Y[k : k + 1]) for k in range(4)}

        def goes(k: int, first: int, last: int) -> None:
            for number in range(first, last + 1):
                held[k] = net.wires[k].mix(number, *held[k])
                assert net.wires[k].next(number + 1, held[k][0] / np.float32(held[k][1])) == number + 1

        together([w.gather for w in wires])
        for wire in wires:
            wire.begin()
        together([lambda k=k: goes(k, 1, 5) for k in range(4)])
        deadline = time.monotonic() + 20
        while (
            any(neighbour.outbox.is_busy for wire in wires for neighbour in wire.neighbours.values())
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        net.kill(2)
        # Only the mass that it held dies with it.
        sums, weight = X.sum(axis=0, dtype=np.float64) - held[2][0][0], 4.0 - float(held[2][1][0])
        together([lambda k=k: goes(k, 6, 12) for k in (0, 1, 3)])
        returned = {k: net.wires[k].counts()["returned"][0] for k in (0, 1, 3)}
        assert min(returned[1], returned[3]) > 0 == returned[0], "its neighbours have their shares again"
        assert "peer 2 is gone: nobody listens there" in net.notes
        there = [net.wires[k].pace.present() for k in (0, 1, 3)]
        assert there == [[0, 1, 3]] * 3
        # Its own mass died with it. Shares in flight to it were taken back. Three peers are one ring now.
        z = np.stack([held[k][0][0] / held[k][1][0] for k in (0, 1, 3)])
        together([lambda k=k: goes(k, 13, 22) for k in (0, 1, 3)])
        again = np.stack([held[k][0][0] / held[k][1][0] for k in (0, 1, 3)])
        assert np.ptp(again, axis=0).max() < 0.01 * max(np.ptp(z, axis=0).max(), 1e-5) + 1e-5

        back = net.start(2)
        number, row = back.join(0)
        assert number == 22 and row is not None and np.allclose(row[0], again[0], atol=1e-4)
        held[2] = (row, np.ones(1))
        for wire in net.wires.values():
            deadline = time.monotonic() + 10
            while len(wire.pace.present()) < 4 or not all(
                neighbour.counts_us for neighbour in wire.neighbours.values()
            ):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        together([lambda k=k: goes(k, 23, 30) for k in range(4)])
        assert back.counts()["missed"] == [0]
        done = together([lambda k=k: net.wires[k].finish(*held[k]) for k in range(4)])
        x, y = np.concatenate([one[0] for one in done]), np.concatenate([one[1] for one in done])
        assert (np.abs(x.sum(axis=0, dtype=np.float64) - sums - row[0]) < 1e-6 * np.abs(X).sum(axis=0)).all()
        assert y.sum() == pytest.approx(weight + 1.0)


def test_two_halves_part_and_come_together_and_no_mass_is_lost() -> None:
    """Each half learns something else while they are apart. Then they agree on the mean of all progress."""
    X, Y = starts(4, 50)
    learned = np.repeat(np.float32([[1], [1], [4], [4]]), 50, axis=1)
    parted = {(i, k) for i in range(4) for k in range(4) if (i < 2) != (k < 2)}
    faults, meeting = Faults(), threading.Barrier(4, timeout=60)
    with network("exponential", 4, 50, replace(QUICK, dead=2.0, beat=0.2), faults) as net:
        wires = [net.start(k) for k in range(4)]

        def goes(wire: Wire) -> tuple[F32, F64, F32, F32]:
            k = wire.peers[0]
            x, y = X[k : k + 1].copy(), Y[k : k + 1]
            wire.gather()
            wire.begin()
            for number in range(1, 61):
                if number == 5:
                    meeting.wait()
                    faults.cut |= parted
                if number == 12:
                    x += learned[k]
                if number == 30:
                    apart = x[0] / y[0]
                    meeting.wait()
                    faults.cut -= parted
                    # The others are greeted again, and are there again.
                    deadline = time.monotonic() + 20
                    while len(wire.pace.present()) < 4 and time.monotonic() < deadline:
                        time.sleep(0.02)
                x, y = wire.mix(number, x, y)
            near = x[0] / y[0]
            return *wire.finish(x, y), apart, near

        done = together([lambda w=w: goes(w) for w in wires])
    assert {note for note in net.notes if "is gone" in note}, "both halves noticed"
    x, y, apart, near = (np.concatenate([np.atleast_2d(one[at]) for one in done]) for at in range(4))
    assert np.ptp(apart[:2], axis=0).max() < 0.01 and np.ptp(apart[2:], axis=0).max() < 0.01
    assert np.ptp(apart, axis=0).min() > 0.5, "the halves have learned different things"
    assert np.ptp(near, axis=0).max() < 0.01
    whole(x, y.reshape(-1), X + learned)


def test_shares_whose_answers_are_lost_are_given_up_when_they_were_taken_back() -> None:
    """The worst moment to part: peer 1 uses a share of peer 0, which gets no answer and takes the share back."""
    X, Y = starts(2, 20)
    faults = Faults()
    with network("ring", 2, 20, replace(QUICK, deadline=5.0, dead=0.5, beat=0.1), faults) as net:
        wires = [net.start(k) for k in range(2)]

        def goes(wire: Wire) -> tuple[F32, F64]:
            k = wire.peers[0]
            x, y = X[k : k + 1], Y[k : k + 1]
            wire.gather()
            wire.begin()
            for number in range(1, 25):
                if number == 4 and k == 0:
                    faults.deaf = {(0, 1)}
                if number == 14 and k == 0:
                    faults.deaf = set()
                x, y = wire.mix(number, x, y)
                time.sleep(0.05)
            return wire.finish(x, y)

        done = together([lambda w=w: goes(w) for w in wires])
        assert any("peer 1 is gone" in note for note in net.notes), net.notes
    whole(np.concatenate([one[0] for one in done]), np.concatenate([one[1] for one in done]), X)
    assert pb.STATUS_GIVEN_UP in faults.withdrawn
