"""Topologies: shares that add up, graphs by hand, closing around lost peers, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.errors import Mistake
from strategies.graphs.topology import Topology, graph, hops, names, spelled

# Those that connect all peers.
NAMES = [name for name in names() if graph(name).connected]

CUT = json.dumps({"rounds": [{"edges": [[1, 0, 1], [2, 1, 3]]}, [[1, 0, 0], [0, 2, 0], [0, 0, 1]]]})
TWO = json.dumps({"rounds": [{"edges": [[1, 0, 1], [2, 1, 3]]}, [[3, 0, 1], [0, 2, 0], [0, 0, 1]]]})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("peers", [1, 2, 3, 8, 13])
def test_the_shares_of_every_peer_add_up_and_it_keeps_one(name: str, peers: int) -> None:
    topology = Topology(name, peers, degree=2 if peers > 2 else 1, seed=7)
    for number in range(1, 6):
        P = topology.matrix(number)
        np.testing.assert_allclose(P.sum(axis=0), 1.0, atol=1e-12)
        assert (np.diag(P) > 0).all() and (P >= 0).all()


def test_edges_by_hand() -> None:
    third, half = 1 / 3, 1 / 2
    np.testing.assert_allclose(
        Topology("ring", 4).matrix(1),
        [[third, third, 0, third], [third, third, third, 0], [0, third, third, third], [third, 0, third, third]],
    )
    np.testing.assert_allclose(
        Topology("directed-ring", 3).matrix(9), [[half, 0, half], [half, half, 0], [0, half, half]]
    )
    np.testing.assert_allclose(Topology("line", 3).matrix(1), [[half, third, 0], [half, third, half], [0, third, half]])
    np.testing.assert_allclose(Topology("star", 3).matrix(1), [[third, half, half], [third, half, 0], [third, 0, half]])
    np.testing.assert_allclose(Topology("complete", 5).matrix(1), np.full((5, 5), 0.2))
    assert Topology("ring", 5).edges(1).senders_to(0) == [0, 1, 4]
    assert Topology("regular", 8, 3).edges(1).sent_by(6) == dict.fromkeys((2, 5, 6, 7), 0.25)
    assert [set(Topology("exponential", 8).edges(t).sent_by(7)) - {7} for t in range(3, 7)] == [{0}, {1}, {3}, {0}]


def test_a_sender_keeps_the_shares_of_removed_edges() -> None:
    edges = Topology("ring", 4).edges(1)
    rest = edges.without((edges.senders == 0) & (edges.receivers == 1))
    np.testing.assert_allclose(rest.matrix(4) - edges.matrix(4), [[1 / 3, 0, 0, 0], [-1 / 3, 0, 0, 0], *[[0] * 4] * 2])
    assert len(rest.shares) == len(edges.shares) - 1


def test_a_random_topology_is_another_one_each_round_and_the_same_for_all() -> None:
    here, there = Topology("random", 20, 3, seed=5), Topology("random", 20, 3, seed=5)
    assert (here.matrix(4) == there.matrix(4)).all()
    assert (here.matrix(4) != here.matrix(5)).any()
    assert (Topology("random", 20, 3, seed=6).matrix(4) != here.matrix(4)).any()
    assert ((here.matrix(4) > 0).sum(axis=0) == 4).all()


def test_one_period_of_the_exponential_topology_is_the_average() -> None:
    topology = Topology("exponential", 16)
    product = np.eye(16)
    for number in range(1, hops(16) + 1):
        product = topology.matrix(number) @ product
    np.testing.assert_allclose(product, np.full((16, 16), 1 / 16), atol=1e-12)


def test_the_rate_is_the_second_eigenvalue() -> None:
    assert Topology("ring", 10).rate() == pytest.approx((1 + 2 * np.cos(2 * np.pi / 10)) / 3)
    assert Topology("directed-ring", 10).rate() == pytest.approx(np.cos(np.pi / 10))
    assert Topology("complete", 10).rate() == pytest.approx(0.0, abs=1e-7)
    assert Topology("exponential", 16).rate() < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_topology_closes_around_peers_that_are_gone(name: str) -> None:
    topology, alive = Topology(name, 10, 4, seed=1), [0, 1, 3, 4, 6, 9]
    reached = np.eye(10, dtype=bool)
    for number in range(1, 60):
        P = topology.matrix(number, alive)
        np.testing.assert_allclose(P[:, alive].sum(axis=0), 1.0, atol=1e-12)
        assert not P[:, [2, 5, 7, 8]].any() and not P[[2, 5, 7, 8]].any()
        reached = (P > 0) @ reached | reached
    assert reached[np.ix_(alive, alive)].all()


def test_a_ring_is_closed_where_a_peer_was() -> None:
    assert Topology("ring", 5).edges(1, [0, 1, 3, 4]).senders_to(3) == [1, 3, 4]
    assert Topology("ring", 5).edges(1, [2]).sent_by(2) == {2: 1.0}


def test_a_file_has_the_edges_of_every_round() -> None:
    topology = Topology(TWO, 3)
    np.testing.assert_allclose(topology.matrix(1), [[1 / 2, 0, 0], [1 / 2, 1 / 4, 0], [0, 3 / 4, 1]])
    np.testing.assert_allclose(topology.matrix(2), [[1, 0, 1 / 2], [0, 1, 0], [0, 0, 1 / 2]])
    assert (topology.matrix(7) == topology.matrix(1)).all()
    np.testing.assert_allclose(topology.matrix(1, [0, 2]), [[1, 0, 0], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CUT, "nothing of peer 1 ever reaches peer 0"),
        ("[[1, 0], [1]]", "not square"),
        ("[[1, -1, 0], [1, 1, 1], [0, 0, 1]]", "negative"),
        ('{"edges": [[0, 1, 1], [0, 1, 1]]}', "twice"),
        ('{"edges": [[0, 7, 1]]}', "agents go from 0 to 2"),
        ('{"rounds": []}', "one at least"),
        ("[1", "nor valid JSON"),
        ("{}", "edges"),
    ],
)
def test_bad_topologies_are_refused(text: str, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        Topology(text, 3)


def test_degrees_that_cannot_be_are_refused() -> None:
    for name, peers, degree in (("regular", 4, 4), ("random", 4, 4), ("regular", 5, 3), ("regular", 6, 1)):
        with pytest.raises(Mistake, match="degree"):
            Topology(name, peers, degree)
    with pytest.raises(Mistake, match="ring"):
        spelled("rnig")
