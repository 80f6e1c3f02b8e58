"""The network in one process: against a slow product, conserved mass, consensus at the topology's rate, forgeries."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.mixing import Network, mixed, share
from strategies.graphs.topology import Topology, graph, names

# Those that connect all peers.
NAMES = [name for name in names() if graph(name).connected]

EDGES = '{"edges": [[1, 0, 1], [2, 1, 3], [0, 2, 1], [2, 0, 0.5]]}'


def rows(peers: int, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(peers, width)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("peers", [6, 50])  # few edges are added up one by one, many are a product
def test_a_round_is_the_product_with_p(name: str, peers: int) -> None:
    topology, x, y = Topology(name, peers, 4, seed=3), rows(peers), np.linspace(0.5, 1.5, peers)
    for number in range(1, 4):
        P = topology.matrix(number)
        found, weight = mixed(topology.edges(number), x, y)
        np.testing.assert_allclose(found, P @ x.astype(np.float64), atol=2e-6)
        np.testing.assert_allclose(weight, P @ y, rtol=1e-12)
        assert found.dtype == np.float32


def test_few_edges_are_added_up_as_over_the_wire_bit_for_bit() -> None:
    topology, x, y = Topology("random", 12, 3, seed=1), rows(12), np.ones(12)
    edges = topology.edges(5)
    found, _ = mixed(edges, x, y)
    for i in range(12):
        total = np.zeros(30)
        for k in edges.senders_to(i):
            total += share(x[k], edges.sent_by(k)[i])
        np.testing.assert_array_equal(found[i], total.astype(np.float32))


@pytest.mark.parametrize("text", [*NAMES, EDGES])
def test_mass_is_conserved_while_peers_leave_and_return(text: str) -> None:
    peers = 3 if text == EDGES else 9
    away = {number: {number % peers} for number in range(50, 120)}
    network = Network(Topology(text, peers, 2, seed=2), lambda number: away.get(number, ()))
    x, y = rows(peers), np.ones(peers)
    before = x.sum(axis=0, dtype=np.float64)
    for number in range(1, 301):
        x, y = network.mix(number, x, y)
    scale = np.abs(rows(peers)).sum(axis=0)
    assert (np.abs(x.sum(axis=0, dtype=np.float64) - before) <= 1e-6 * scale).all()
    assert abs(y.sum() - peers) <= 1e-6 * peers
    np.testing.assert_allclose(x / y[:, None], np.broadcast_to(before / peers, x.shape), atol=2e-5)


def test_mass_is_conserved_in_a_thousand_rounds_of_a_product() -> None:
    topology, x, y = Topology("complete", 70), rows(70), np.ones(70)
    before = x.sum(axis=0, dtype=np.float64)
    for number in range(1000):
        x, y = mixed(topology.edges(number), x, y)
    assert (np.abs(x.sum(axis=0, dtype=np.float64) - before) <= 1e-6 * np.abs(rows(70)).sum(axis=0)).all()


@pytest.mark.parametrize(("name", "rounds"), [("ring", 40), ("directed-ring", 60), ("star", 14), ("line", 60)])
def test_the_distance_from_consensus_falls_at_the_topologys_rate(name: str, rounds: int) -> None:
    topology, x, y = Topology(name, 8), rows(8), np.ones(8)
    mean, distances = x.mean(axis=0), []
    for number in range(1, rounds + 1):
        x, y = mixed(topology.edges(number), x, y)
        distances.append(np.linalg.norm(x / y[:, None] - mean))
    half = rounds // 2
    measured = (distances[-1] / distances[half]) ** (1 / (rounds - 1 - half))
    assert measured == pytest.approx(topology.rate(), abs=0.02)


def test_a_share_of_nan_is_refused_and_harms_no_peer() -> None:
    network = Network(Topology("ring", 5))
    x, y = rows(5), np.ones(5)
    x[2, 7] = np.inf
    found, weight = network.mix(1, x, y)
    np.testing.assert_allclose(found[1], (x[0] + x[1]) / 3, atol=1e-6)
    np.testing.assert_allclose(weight, [1, 2 / 3, 5 / 3, 2 / 3, 1])
    np.testing.assert_allclose(found[0], (x[4] + x[0] + x[1]) / 3, atol=1e-6)
    assert np.isfinite(found[[0, 1, 3, 4]]).all()
    assert network.counts()["refused"] == [0, 1, 0, 1, 0]
    assert network.reasons() == {"not-finite": 2}


def test_each_neighbour_can_be_sent_another_forgery() -> None:
    network, x, y = Network(Topology("ring", 4)), rows(4), np.ones(4)
    forgeries = {0: {1: np.full(30, 3, np.float32)}, 2: {1: np.full(29, 3, np.float32)}}
    found, weight = network.mix(1, x, y, lambda recipient: forgeries.get(recipient, {}))
    np.testing.assert_allclose(found[0], (x[3] + x[0] + 3) / 3, atol=1e-6)
    np.testing.assert_allclose(found[2], (x[2] + x[3]) / 3, atol=1e-6)
    np.testing.assert_allclose(found[1], (x[0] + x[1] + x[2] + x[1]) / 3, atol=1e-6)
    np.testing.assert_allclose(weight, [1, 4 / 3, 2 / 3, 1])
    assert network.reasons() == {"wrong-layout": 1}


@pytest.mark.parametrize("number", [np.nan, 1e7])
def test_a_refused_share_returns_to_its_sender_and_no_mass_is_lost(number: float) -> None:
    network, x, y = Network(Topology("complete", 3)), rows(3), np.ones(3)
    for turn in range(1, 21):
        x, y = network.mix(turn, x, y, lambda recipient: {1: np.full(30, number, np.float32)})
    assert y.sum() == pytest.approx(3)
    assert network.counts()["refused"] == [20, 0, 20]
    assert (np.abs(x.sum(axis=0) - rows(3).sum(axis=0)) <= 1e-5 * np.abs(rows(3)).sum(axis=0)).all()
    assert np.abs(x / y[:, None]).max() < 10, "the attacker keeps its honest row"


def test_a_refused_peer_is_sent_no_share_until_one_of_its_shares_is_usable() -> None:
    network, x, y = Network(Topology("complete", 3)), rows(3), np.ones(3)
    refused = np.zeros((3, 3), np.bool_)
    for number in range(1, 4):
        x, y = network.mix(number, x, y, lambda recipient: {1: np.full(30, np.nan, np.float32)}, refused)
        np.testing.assert_allclose(y, [2 / 3, 5 / 3, 2 / 3])
        assert refused.tolist() == [[False, True, False], [False] * 3, [False, True, False]]
    assert network.counts()["missed"] == [0, 4, 0]
    x, y = network.mix(4, x, y, None, refused)
    np.testing.assert_allclose(y, [11 / 9, 5 / 9, 11 / 9])
    assert not refused.any()
    x, y = network.mix(5, x, y, None, refused)
    np.testing.assert_allclose(y, [1, 1, 1])
    np.testing.assert_allclose(x, np.tile(rows(3).mean(axis=0), (3, 1)), atol=1e-6)


def test_all_receive_all_broadcasts_and_attackers_receive_their_own_honest_rows() -> None:
    network, sent = Network(Topology("complete", 4), lambda number: {3} if number == 2 else ()), rows(4)
    received = network.broadcast(1, "gradient", 0, sent)
    assert all(one is received[0] for one in received)
    np.testing.assert_array_equal(received[0].rows, sent)
    forged = {1: np.zeros(30, np.float32)}
    received = network.broadcast(1, "gradient", 0, sent, lambda recipient: forged)
    np.testing.assert_array_equal(received[1].rows, sent)
    assert received[0].rows is received[2].rows
    assert not received[0].rows[1].any()
    forged = {1: np.full(30, np.nan, np.float32)}
    received = network.broadcast(2, "gradient", 0, sent, lambda recipient: forged)
    np.testing.assert_array_equal(received[0].senders, [0, 2])
    np.testing.assert_array_equal(received[0].rows, sent[[0, 2]])
    assert network.broadcast(2, "gradient", 1, sent, None, np.ones(4, bool))[0].senders.size == 0


def test_bytes_are_those_of_the_shares_that_travel() -> None:
    network = Network(Topology("star", 4))
    network.mix(1, rows(4), np.ones(4))
    assert network.counts()["bytes_up"] == [3 * 128, 128, 128, 128]
    network.broadcast(1, "gradient", 0, rows(4))
    assert network.counts() == {"bytes_up": [360] * 4, "bytes_down": [360] * 4, "missed": [0] * 4, "refused": [0] * 4,
                                "late": [0] * 4}  # fmt: skip
