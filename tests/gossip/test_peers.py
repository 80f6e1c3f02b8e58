"""Rounds of peers: the biased vectors, agreement, and equal results for one peer per process and all in one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.session import Session
from core.errors import Mistake
from gossip.mixing import Network
from gossip.run import distances, gossip, network
from runs.config import RunConfig, configure
from runs.directory import RunDirectory
from server import engines
from strategies.dec_byz_pg import DecByzPG
from strategies.fedpg_dec import FedPGDec
from strategies.graphs.topology import Topology, graph, names
from strategies.method import chosen
from strategies.peers import Peers
from strategies.push_sum import Gossip
from tests.gossip.mail import Mail, Post, together

# Those that connect all peers.
NAMES = [name for name in names() if graph(name).connected]

# Directed edges: y leaves 1, and the first peer receives less than it sends.
ONE_WAY = '{"edges": [[1, 0, 1], [2, 0, 1], [2, 1, 1], [3, 2, 1], [0, 3, 1]]}'
WORLD = {"id": "CartPole-v1", "copies": 4, "horizon": 40}
DEC = {
    "algorithm": "policy-gradient", "strategy": "fedpg-dec", "evaluate-episodes": 0, "steps": 0, "rounds": 4,
    "world": WORLD, "policy-gradient": {"hidden": [6], "learning-rate": 0.01},
    "fedpg": {"batch-min": 3, "batch-max": 5, "own-batch": 2, "guard": 0.05}, "tensorboard": False,
}  # fmt: skip
BYZ = DEC | {
    "strategy": "dec-byz-pg", "gossip": {"large": 6, "small": 2, "coin": 0.4},
    "federation": {"steps": 8, "smoothing": 0.1},
}  # fmt: skip
MIX = DEC | {"strategy": "gossip", "work": 1}
TD3 = {"hidden": [8], "capacity": 200, "batch": 8, "learning-starts": 10}
KINDS = {"fedpg-dec": DEC, "dec-byz-pg": BYZ, "gossip": MIX}


def configured(base: dict[str, Any], agents: int = 4, **more: Any) -> RunConfig:
    values = dict(base) | {"agents": agents}
    for name, value in more.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return configure(values)


def made(config: RunConfig) -> Peers:
    config.check()
    session = Session(config)
    found: Peers = chosen(config)(config, session, network(config, session))
    return found


def both_ways(config: RunConfig, rounds: int) -> tuple[Any, np.ndarray]:
    """Run all peers in one process, then each by itself over letters. Return the former, and the latter's weights."""
    whole = made(config)
    for number in range(1, rounds + 1):
        whole.round(number, False)
    post = Post(whole.medium.topology)  # type: ignore[attr-defined]

    def one(peer: int) -> np.ndarray:
        peers = chosen(config)(config, Session(config, [peer]), Mail(post, peer))
        for number in range(1, rounds + 1):
            peers.round(number, False)
        return peers.weights[0]

    return whole, np.stack(together(one, config.agents))


def test_the_biased_vector_is_carried_over() -> None:
    """x + progress is mixed, not z + progress; checked by a separate product."""
    peers = made(configured(DEC, gossip={"topology": ONE_WAY}))
    assert isinstance(peers, Gossip)
    P = Topology(ONE_WAY, 4).matrix(1)
    for number in range(1, 6):
        x, y, z, learned = peers.x.copy(), peers.y.copy(), peers.weights, np.empty(0)
        mix = peers.medium.mix

        def spying(n: int, sent: np.ndarray, *more: Any, mix: Any = mix, z: Any = z) -> Any:
            nonlocal learned
            learned = sent - z
            return mix(n, sent, *more)

        peers.medium.mix = spying  # type: ignore[method-assign]
        peers.round(number, False)
        peers.medium.mix = mix  # type: ignore[method-assign]
        progress = learned - (x - z)
        assert (np.abs(progress).max(axis=1) > 0).all()
        np.testing.assert_allclose(peers.x, P @ (x + progress).astype(np.float64), atol=1e-5)
        np.testing.assert_allclose(peers.y, P @ y, rtol=1e-9)
        np.testing.assert_allclose(peers.weights, peers.x / peers.y[:, None], rtol=1e-5)
        assert abs(peers.y.sum() - 4) < 1e-9
    assert peers.y.max() > 1.2 > 0.7 > peers.y.min(), "no peer was biased: the test shows nothing"


@pytest.mark.parametrize(
    ("strategy", "topology"),
    [("fedpg-dec", name) for name in [*NAMES, ONE_WAY]] + [("dec-byz-pg", "complete"), ("gossip", "random")],
)
def test_one_peer_per_process_and_all_in_one_give_equal_results(strategy: str, topology: str) -> None:
    """Ten rounds over letters, against the product. dec-byz-pg broadcasts to all, whatever the topology."""
    whole, apart = both_ways(configured(KINDS[strategy], gossip={"topology": topology, "degree": 2}), rounds=10)
    np.testing.assert_allclose(apart, whole.weights, atol=1e-5)


def test_one_peer_per_process_and_all_in_one_refuse_the_same_shares() -> None:
    """The last peer of a ring sends unusable shares: its neighbours send it none, and keep theirs."""
    config = configured(MIX, 5, gossip={"topology": "ring"}, attack={"byzantine": 1, "kind": "nan@3"})
    whole, apart = both_ways(config, rounds=6)
    assert np.argwhere(whole.refused).tolist() == [[0, 4], [3, 4]]
    assert whole.y[:4].min() > 0.6
    np.testing.assert_allclose(apart[:4], whole.weights[:4], atol=1e-5)


def test_peers_begin_with_the_same_weights_or_with_their_own() -> None:
    assert not distances(made(configured(DEC)).weights).any()
    assert distances(made(configured(DEC, gossip={"same-start": False})).weights).all()
    last = Session(configured(DEC), [3])
    first = made(configured(DEC)).weights
    np.testing.assert_array_equal(Gossip(configured(DEC), last, Lone([3])).weights, first[:1])


class Lone:
    """A medium without other peers."""

    network = 4

    def __init__(self, peers: list[int]) -> None:
        self.peers = peers


def test_trajectories_count_all_samples_of_a_peer() -> None:
    peers = made(configured(DEC))
    for number in range(1, 4):
        report, notes = peers.round(number, False)
        assert (report.steps > 0).all()
    played = peers.session.worlds.steps
    assert notes["trajectories"] == peers.sampled.tolist()  # type: ignore[attr-defined]
    assert (peers.sampled * 40 >= played).all()  # type: ignore[attr-defined]
    assert (peers.sampled >= 9).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["large-noise", "average-zero", "nan", "wrong-shape", "per-recipient-noise"])
def test_honest_peers_agree_under_every_attack(kind: str) -> None:
    config = configured(BYZ, 7, attack={"byzantine": 2, "kind": kind}, federation={"byzantine": 2})
    peers = made(config)
    for number in range(1, 6):
        start = peers.weights
        _, notes = peers.round(number, False)
        honest = peers.weights[:5]
        assert distances(honest).max() < 1e-5
        # One step of Adam: no peer moved far.
        assert np.abs(honest - start[:5]).max() < 0.011 * 1.5
        assert max(notes["diameter"][:5]) < 1e-5
        assert notes["turns"] <= 5


def test_plain_averaging_is_carried_away_by_noise() -> None:
    attack = {"byzantine": 2, "kind": "large-noise"}
    plain = {"federation": {"rule": "mean", "byzantine": 0}, "gossip": {"turns": 1}}
    peers = made(configured(BYZ, 7, attack=attack, **plain))
    peers.round(1, False)
    assert np.abs(peers.weights[:5]).max() > 10


def test_small_rounds_correct_the_last_direction_where_it_is_known() -> None:
    """v = g(theta) - g_w(theta_prev) + v_prev, with the agreed v_prev. A new peer measures its own gradient."""
    peers = made(configured(BYZ, 3, gossip={"coin": 1e-9}))
    assert isinstance(peers, DecByzPG)
    peers.round(1, False)
    twin = made(configured(BYZ, 3, gossip={"coin": 1e-9}))
    twin.round(1, False)
    assert isinstance(twin, DecByzPG)
    fleet = twin.session.fleet
    peers.known[2] = False
    found = fleet.sample(fleet.policy, 2)  # type: ignore[attr-defined]
    wanted = fleet.correction(twin.then, found)[0] + twin.direction  # type: ignore[attr-defined]
    wanted[2] = fleet.ascent(fleet.policy, found)[2]  # type: ignore[attr-defined]
    sent: list[np.ndarray] = []
    broadcast = peers.medium.broadcast

    def spying(number: int, tag: str, turn: int, vectors: np.ndarray, *rest: Any) -> Any:
        sent.append(vectors.copy())
        return broadcast(number, tag, turn, vectors, *rest)

    peers.medium.broadcast = spying  # type: ignore[method-assign]
    peers.round(2, False)
    np.testing.assert_allclose(sent[0], wanted, atol=1e-6)
    np.testing.assert_array_equal(peers.then, np.stack([twin.weights[0]] * 3))


def test_rounds_are_large_as_often_as_the_coin_says_and_for_all_at_once() -> None:
    peers = made(configured(BYZ, 3, gossip={"coin": 0.3, "large": 2, "small": 1}))
    large = [peers.round(number, False)[1]["large"] for number in range(1, 201)]
    assert large[0] == 1
    assert 0.18 < np.mean(large) < 0.42
    assert len(set(peers.sampled.tolist())) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("algorithm", "world"), [("ppo", WORLD), ("td3", {"id": "Pendulum-v1", "horizon": 20})])
def test_any_fleet_can_be_mixed(algorithm: str, world: dict[str, Any]) -> None:
    base = MIX | {"algorithm": algorithm, "world": world, "td3": TD3, "ppo": {"hidden": [8], "rollout": 16}}
    config = configured(base, work=30 if algorithm == "td3" else 1, gossip={"topology": "complete"})
    peers, alone = made(config), Session(config)
    for name, matrix in alone.fleet.parts.items():
        matrix[...] = peers.session.fleet.parts[name][0]
    alone.train(config.work)
    peers.round(1, False)
    for name, matrix in alone.fleet.parts.items():
        found = peers.session.fleet.parts[name]
        np.testing.assert_allclose(found, np.broadcast_to(matrix.mean(axis=0), found.shape), atol=1e-5)


def test_only_the_parts_that_are_named_are_mixed() -> None:
    world = {"id": "Pendulum-v1", "horizon": 20}
    base = MIX | {"algorithm": "td3", "world": world, "td3": TD3, "federation": {"parts": "critic"}, "work": 30}
    peers = made(configured(base, gossip={"topology": "complete"}))
    peers.round(1, False)
    assert np.ptp(peers.session.fleet.parts["critic"], axis=0).max() < 1e-5
    assert np.ptp(peers.session.fleet.parts["actor"], axis=0).max() > 1e-3


def test_silent_peers_are_left_out_and_no_peer_waits() -> None:
    peers = made(configured(DEC, 5, attack={"kind": "silence", "byzantine": 1}, gossip={"topology": "complete"}))
    peers.round(1, False)
    assert np.ptp(peers.weights[:4], axis=0).max() < 1e-5
    assert np.abs(peers.weights[4] - peers.weights[0]).max() > 1e-4


@pytest.mark.parametrize("strategy", KINDS)
@pytest.mark.parametrize("attack", [{}, {"byzantine": 1, "kind": "random-action"}, {"byzantine": 1, "kind": "nan"}])
def test_two_rounds_a_stop_and_two_more_are_four(strategy: str, attack: dict[str, Any], tmp_path: Path) -> None:
    def run(name: str, rounds: int, base: dict[str, Any] = KINDS[strategy]) -> RunDirectory:
        ring = {} if strategy == "dec-byz-pg" else {"topology": "ring" if "nan" in attack.values() else "directed-ring"}
        config = configured(base, 4, rounds=rounds, attack=attack, gossip=ring)
        path = tmp_path / name
        directory = RunDirectory.open(path) if path.exists() else RunDirectory.create(path, {})
        session = engines.prepare(config)
        engines.run(config, session, directory, lambda record: None, lambda note: None, lambda: False)
        session.close()
        return directory

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4)
    (wanted, _), (found, meta) = whole.load_checkpoint(), parts.load_checkpoint()
    assert meta["round"] == 4
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, found[name], err_msg=name)
    assert [record["steps"] for record in whole.read_metrics()] == [record["steps"] for record in parts.read_metrics()]
    assert whole.weights.exists() and (strategy != "fedpg-dec" or (whole.path / "picked.npz").exists())


def test_a_run_ends_on_request(tmp_path: Path) -> None:
    config = configured(DEC, rounds=50, gossip={"topology": "ring"}, **{"evaluate-episodes": 1})
    session, records = Session(config), []
    found = gossip(
        config, session, network(config, session), RunDirectory.create(tmp_path / "run", {}), records.append,
        lambda: len(records) == 3,
    )  # fmt: skip
    assert found["interrupted"] and found["rounds"] == 3 and len(records) == 3
    record = records[-1]
    for name in ("return", "steps", "consensus", "trajectories", "bytes_up", "missed", "refused", "late", "left-out"):
        assert len(record[name]) == 4, name
    assert all(value > 0 for value in record["consensus"])


def test_shares_that_arrive_after_the_last_round_are_saved_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that round had its checkpoint already: a share that is not saved is lost mass."""
    monkeypatch.setattr(Network, "finish", lambda self, x, y: (x + y[:, None].astype(np.float32), 2 * y))
    config = configured(DEC, rounds=2, **{"checkpoint-every": 1})
    directory, session = RunDirectory.create(tmp_path / "run", {}), Session(config)
    gossip(config, session, network(config, session), directory)
    saved, meta = directory.load_checkpoint()
    assert meta["round"] == 2 and saved["peers.y"].tolist() == [2.0] * 4
    with np.load(directory.weights) as left:
        np.testing.assert_allclose(left["policy"], saved["peers.x"] / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "td3", "world": {"id": "Pendulum-v1"}}, "is for policy-gradient, not for td3"),
        ({"engine": "ray"}, "none stays where others could reach it"),
        ({"gossip": {"topology": "random", "degree": 9}}, "degree"),
        ({"attack": {"byzantine": 1, "kind": "delay"}}, "use the engine gossip"),
        ({"fedpg": {"batch-min": 9, "batch-max": 2}}, "batch-min"),
        ({"federation": {"parts": "critic"}}, "critic"),
        ({"strategy": "dec-byz-pg", "gossip": {"topology": "ring"}}, "every peer broadcasts to all"),
        ({"federation": {"rule": "median"}}, "for strategies that survive attackers"),
        ({"federation": {"mixing": True}}, "'federation.mixing' are for strategies that survive attackers"),
        ({"federation": {"fraction": 0.5}}, "leave 'federation.fraction' at 1"),
        ({"engine": "gossip", "federation": {"fraction": 0.5}}, "leave 'federation.fraction' at 1"),
        ({"strategy": "dec-byz-pg", "federation": {"byzantine": 2}}, "at least 5 parties"),
        ({"strategy": "gossip", "algorithm": "ppo", "ppo": {"penalty": True}}, "kl-ppo"),
        ({"strategy": "gossip", "algorithm": "ppo", "ppo": {"normalise-observations": True}}, "normalisation"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_before_the_first_round(
    changes: dict[str, Any], message: str
) -> None:
    def begin() -> None:
        config = configured(DEC, **changes)
        with closing(engines.prepare(config)) as session:
            chosen(config)(config, session, network(config, session))

    with pytest.raises(Mistake, match=message):
        begin()


def test_peers_with_a_process_each_may_attack_by_delay() -> None:
    engines.prepare(configured(DEC, engine="gossip", attack={"byzantine": 1, "kind": "delay"})).close()


def test_fedpg_dec_learns_on_a_directed_ring_and_peers_stay_together() -> None:
    config = configured(
        DEC, 4, world={"horizon": 100, "copies": 10}, fedpg={"batch-min": 10, "batch-max": 10, "guard": 0.005},
        gossip={"topology": "directed-ring"}, **{"evaluate-episodes": 5},
    )  # fmt: skip
    peers = made(config)
    assert isinstance(peers, FedPGDec)
    before = peers.session.evaluate().mean()
    for number in range(1, 21):
        peers.round(number, False)
    assert peers.session.evaluate().mean() > 50 > 2 * before
    assert distances(peers.weights).max() < 0.2 * np.linalg.norm(peers.weights.mean(axis=0))


def test_dec_byz_pg_learns_among_attackers() -> None:
    config = configured(
        BYZ, 7, world={"horizon": 100, "copies": 10}, gossip={"large": 20, "small": 4, "coin": 0.3},
        attack={"byzantine": 2, "kind": "large-noise"}, federation={"byzantine": 2}, **{"evaluate-episodes": 5},
    )  # fmt: skip
    peers = made(config)
    before = peers.session.evaluate().mean()
    for number in range(1, 61):
        peers.round(number, False)
    assert peers.session.evaluate().mean() > 50 > 2 * before


def test_a_network_of_one_is_a_peer_alone() -> None:
    peers = made(configured(DEC, 1))
    peers.round(1, False)
    assert isinstance(peers.medium, Network)
    assert peers.medium.counts()["bytes_up"] == [0]
