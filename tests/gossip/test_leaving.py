"""Peers that are asked to stop: at any moment, each share is in exactly one checkpoint."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from flower.launch import free_port, processes, start_peer, wait
from gossip import gossip_pb2 as pb
from gossip.wire import Wire
from runs.directory import RunDirectory
from strategies.medium import F32, F64
from tests.gossip.network import QUICK, Faults, Net, network, starts, together, until, within

LIMIT_S = 30.0  # for anything that a busy machine may delay
DISK_S = 0.5  # that a checkpoint takes, or less if a share has come meanwhile


def offered(wire: Wire) -> bool:
    """Return whether a share has arrived, taken or not, at a peer that has added up already."""
    with wire.local.changed:
        return bool(wire.local.counts["held"]) or any(neighbour.inbox.shares for neighbour in wire.neighbours.values())


class Leg:
    """All peers from their checkpoints, until they are asked one by one to stop and save."""

    def __init__(self, net: Net, saved: dict[int, tuple[int, F32, F64]]) -> None:
        self.net, self.saved, self._starting = net, saved, threading.Lock()
        self.stops = {k: threading.Event() for k in saved}
        self.done, self.offered = dict.fromkeys(saved, 0), 0

    def goes(self, k: int) -> None:
        net = self.net
        with self._starting:
            wire = start_with(net, k, self.stops[k])
        number, x, y = self.saved[k]
        assert wire.join(number) == (number, None)
        while not self.stops[k].is_set():
            number = wire.next(number + 1, x / np.float32(y))
            x, y = wire.mix(number, x, y)
            self.done[k] += 1
        x, y = wire.finish(x, y)
        # The disk is slow: the others go on meanwhile and send shares, unless all of them wait for this peer.
        self.offered += within(DISK_S, lambda: offered(wire))
        self.saved[k] = number, x, y
        del net.wires[k]
        wire.close()

    def stop(self, k: int) -> None:
        """Stop a peer when all have done some rounds of this leg, and wait until it has left."""
        until(lambda: min(self.done.values()) >= 2)
        self.stops[k].set()
        until(lambda: k not in self.net.wires)


@pytest.mark.parametrize("topology", ["complete", "directed-ring"])
def test_five_stops_and_restarts_lose_no_mass_and_make_none(topology: str) -> None:
    X, Y = starts(4, 20)
    saved = {k: (0, X[k : k + 1], Y[k : k + 1]) for k in range(4)}
    with network(topology, 4, 20) as net:
        for turn in range(5):
            leg = Leg(net, saved)

            def stops(leg: Leg = leg, turn: int = turn) -> None:
                for k in range(4):
                    leg.stop((turn + k) % 4)

            together([*(lambda k=k, leg=leg: leg.goes(k) for k in range(4)), stops], 2 * LIMIT_S)
            assert leg.offered, "the test shows nothing"
            assert sum(float(y[0]) for _, _, y in saved.values()) == pytest.approx(4.0, rel=1e-9), turn
    x = np.concatenate([x for _, x, _ in saved.values()]).sum(axis=0, dtype=np.float64)
    assert (np.abs(x - X.sum(axis=0, dtype=np.float64)) < 1e-6 * np.abs(X).sum(axis=0)).all()


def test_a_goodbye_replaces_a_lost_answer_to_a_share() -> None:
    """Peer 1 takes a share of peer 0, its answer is lost, and it leaves with the share in its checkpoint."""
    X, Y = starts(2, 20)
    faults, leaves = Faults(), threading.Event()
    with network("ring", 2, 20, QUICK, faults) as net:
        stays, goes = net.start(0), start_with(net, 1, leaves)

        def first() -> tuple[F32, F64]:
            assert stays.join(0) == (0, None)
            x, y = stays.mix(1, X[:1], Y[:1])
            until(lambda: not stays.neighbours[1].outbox.is_busy)
            faults.deaf = {(0, 1)}  # greetings get no answer either
            x, y = stays.mix(2, x, y)
            assert stays.neighbours[1].outbox.is_busy, "no answer has arrived"
            leaves.set()
            until(lambda: stays.pace.present() == [0])
            return stays.finish(x, y)

        def second() -> tuple[F32, F64]:
            assert goes.join(0) == (0, None)
            x, y = X[1:], Y[1:]
            for number in (1, 2):
                x, y = goes.mix(number, x, y)
            until(leaves.is_set)
            x, y = goes.finish(x, y)
            goes.close()
            return x, y

        done = together([first, second])
    assert sum(float(y[0]) for _, y in done) == pytest.approx(2.0, rel=1e-9)
    x = np.concatenate([x for x, _ in done]).sum(axis=0, dtype=np.float64)
    assert (np.abs(x - X.sum(axis=0, dtype=np.float64)) < 1e-6 * np.abs(X).sum(axis=0)).all()


def test_a_share_that_is_in_a_checkpoint_is_not_given_up_there_but_by_its_sender() -> None:
    """Peer 0 takes back a share that peer 1 has used and added up for the last time, as after a partition."""
    X, Y = starts(2, 20)
    faults = Faults()
    with network("ring", 2, 20, QUICK, faults) as net:
        wires = [net.start(k) for k in range(2)]
        held = [(X[k : k + 1], Y[k : k + 1]) for k in range(2)]

        def goes(k: int) -> None:
            assert wires[k].join(0) == (0, None)
            for number in (1, 2):
                if (k, number) == (0, 2):
                    until(lambda: not wires[0].neighbours[1].outbox.is_busy)
                    faults.deaf = {(0, 1)}
                held[k] = wires[k].mix(number, *held[k])

        together([lambda k=k: goes(k) for k in range(2)])
        with wires[0].local.changed:
            assert wires[0].neighbours[1].outbox.is_busy, "no answer has arrived"
            wires[0].neighbours[1].take_back()
        held[1] = ends(wires[1], *held[1])
        faults.deaf = set()
        until(lambda: not wires[0].neighbours[1].outbox.is_busy)
        held[0] = ends(wires[0], *held[0])
        assert faults.withdrawn == [pb.STATUS_DUPLICATE]
    assert sum(float(y[0]) for _, y in held) == pytest.approx(2.0, rel=1e-9)


def start_with(net: Net, number: int, stop: threading.Event) -> Wire:
    net.wire["stop"] = stop.is_set
    try:
        return net.start(number)
    finally:
        del net.wire["stop"]


def ends(wire: Wire, x: F32, y: F64) -> tuple[F32, F64]:
    """End a peer that is asked to stop. It goes on serving, as while its checkpoint is written."""
    wire.pace.stop = lambda: True
    return wire.finish(x, y)


@pytest.mark.slow
def test_processes_that_are_stopped_and_started_again_lose_no_mass(tmp_path: Path) -> None:
    """Five times SIGTERM for each of four, one after the other."""
    roster = {str(k): f"127.0.0.1:{free_port()}" for k in range(4)}
    conf = tmp_path / "net.toml"
    conf.write_text(
        tomli_w.dumps(
            {
                "algorithm": "policy-gradient", "strategy": "gossip", "agents": 4, "seed": 2, "rounds": 1_000_000,
                "steps": 0, "work": 1, "evaluate-episodes": 0, "tensorboard": False, "world": {"id": "CartPole-v1"},
                "gossip": {"topology": "complete", "dead-s": 60.0, "deadline-s": 60.0, "beat-s": 0.3, "roster": roster},
            }
        )
    )  # fmt: skip
    runs = [RunDirectory(tmp_path / f"peer-{k}") for k in range(4)]

    def last(k: int) -> int:
        rounds = runs[k].read_metrics() if runs[k].metrics.exists() else []
        return int(rounds[-1]["round"]) if rounds else 0

    for turn in range(5):
        before = [last(k) for k in range(4)]
        with processes() as started:
            peers = [start_peer(conf, k, runs[k].path, tmp_path / f"peer-{k}.log") for k in range(4)]
            started.extend(peers)
            for k in [(turn + k) % 4 for k in range(4)]:
                then = [max(before[j], last(j)) for j in range(4)]
                alive = [j for j in range(4) if peers[j].poll() is None]
                assert wait(lambda then=then, alive=alive: all(last(j) > then[j] + 3 for j in alive), 300.0)
                peers[k].send_signal(signal.SIGTERM)
                assert peers[k].wait(300.0) == 130
        total = sum(float(run.load_checkpoint()[0]["peers.y"][0]) for run in runs)
        assert total == pytest.approx(4.0, rel=1e-9), turn
