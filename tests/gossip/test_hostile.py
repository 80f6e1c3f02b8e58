"""Callers that open connections and calls, and then send nothing: a peer goes on, and its neighbours get in."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cli.certificates import Authority
from flower.launch import free_port
from gossip import gossip_pb2 as pb
from gossip.gossip_pb2_grpc import PeerStub
from gossip.local import Identity, Patience, Tls
from gossip.wire import Wire
from strategies.graphs.topology import Topology
from tests.gossip.network import CODE, QUICK, Net, network, starts, together, until

ROOT = Path(__file__).parents[3]
GIVE = "/fedrl.gossip.v1.Peer/Give"
OWN = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own


@contextmanager
def silent_streams(address: str, lines: int, streams: int, credentials: Any = None) -> Iterator[list[Any]]:
    """Open calls on several connections, without their messages."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(120.0)
        yield from ()

    options = [*OWN, ("grpc.ssl_target_name_override", "peer-0")]
    with ExitStack() as stack:
        stack.callback(over.set)
        calls = []
        for _ in range(lines):
            if credentials is None:
                channel = grpc.insecure_channel(address, OWN)
            else:
                channel = grpc.secure_channel(address, credentials, options)
            stack.enter_context(channel)
            calls += [channel.stream_unary(GIVE).future(nothing()) for _ in range(streams)]
        yield calls


def began(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the methods called from now on, also of calls without a message."""
    calls, service = list[str](), wire.service.service

    def counts(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        calls.append(details.method)
        return service(details)

    monkeypatch.setattr(wire.service, "service", counts)
    return calls


def at_work(net: Net) -> None:
    """Two peers after their first round."""
    X, Y = starts(2, 4)
    for k in range(2):
        net.start(k)

    def goes(k: int) -> None:
        assert net.wires[k].join(0) == (0, None)
        net.wires[k].mix(1, X[k : k + 1], Y[k : k + 1])

    together([lambda k=k: goes(k) for k in range(2)])


@pytest.mark.parametrize(("lines", "streams"), [(1, 4), (1, 64), (16, 8)])
def test_calls_without_a_message_keep_no_neighbour_out(
    lines: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with network("ring", 2, 4, replace(QUICK, deadline=10.0, call=3.0)) as net:
        at_work(net)
        for wire in net.wires.values():
            wire.counts()
        calls = began(net.wires[0], monkeypatch)
        with silent_streams(net.listen[0], lines, streams):
            until(lambda: calls.count(GIVE) >= min(lines * streams, 4 * lines))
            X, Y = starts(2, 4)

            def goes(k: int) -> float:
                x, y = X[k : k + 1], Y[k : k + 1]
                for number in range(2, 12):
                    x, y = net.wires[k].mix(number, x, y)
                return float(y[0])

            found = together([lambda k=k: goes(k) for k in range(2)])
            assert [wire.counts()["missed"] for wire in net.wires.values()] == [[0], [0]]
    assert sum(found) == pytest.approx(2.0)


def test_a_call_without_a_message_is_ended() -> None:
    with network("ring", 2, 4, replace(QUICK, call=0.5)) as net:
        net.start(0)
        with silent_streams(net.listen[0], 1, 3) as calls:
            until(lambda: all(call.done() for call in calls))
            assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}


def test_a_certificate_has_a_few_calls_at_a_time_on_however_many_connections(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    for k in range(3):
        authority.issue(tmp_path / f"peer-{k}", [f"peer-{k}"], timedelta(days=1))
    with network("ring", 3, 4, replace(QUICK, call=20.0)) as net:
        for k in range(2):
            net.wire["tls"] = Tls.read(tmp_path, k)
            net.start(k)
        with silent_streams(net.listen[0], 8, 8, Tls.read(tmp_path, 2).client()) as calls:
            until(lambda: sum(call.done() for call in calls) >= 7 * 8)
            codes = Counter(call.code() for call in calls if call.done())
            assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED: 7 * 8}
            until(lambda: net.wires[0].neighbours[1].life != 0 and net.wires[1].neighbours[0].life != 0)


# Connections ----------------------------------------------------------------------------------------------------------

FILES, IDLE = 512, 1200  # descriptors that the peer may have, and connections that are opened to it


def made(number: int, ports: list[int]) -> Wire:
    identity = Identity(number, 2, conf=5, app=CODE, layout=7, width=4)
    patience = Patience(deadline=60.0, dead=60.0, beat=0.2, call=2.0)
    wire = Wire(identity, Topology("ring", 2), {k: f"127.0.0.1:{port}" for k, port in enumerate(ports)}, patience)
    wire.open(f"127.0.0.1:{ports[number]}")
    return wire


def mixes(wire: Wire, notes: Path, over: threading.Event) -> None:
    """Do rounds, each of which opens a file, as a run directory does."""
    x, y = np.ones((1, 4), np.float32), np.ones(1)
    number, _ = wire.join(0)
    while not over.wait(0.02):
        number += 1
        x, y = wire.mix(number, x, y)
        notes.write_text(str(number))


def peer(notes: str, *ports: str) -> None:
    """Run peer 0 in a process of its own, until its standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    wire, over, failed = made(0, [int(port) for port in ports]), threading.Event(), list[BaseException]()

    def ends() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=ends, daemon=True).start()
    try:
        mixes(wire, Path(notes), over)
    except OSError as error:
        failed.append(error)
    sys.exit(f"{failed[0]}" if failed else 0)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Raise the limit of this process so that it can hold all these connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 2 * IDLE
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_take_no_descriptor_that_a_peer_needs(tmp_path: Path, descriptors: None) -> None:
    ports, notes, over = [free_port(), free_port()], tmp_path / "notes", threading.Event()
    script = f"from tests.gossip.test_hostile import peer; peer(*{[str(notes), *map(str, ports)]!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    other = made(1, ports)
    mixing = threading.Thread(target=mixes, args=(other, tmp_path / "other", over), daemon=True)
    mixing.start()
    lines: list[socket.socket] = []

    def done() -> int:
        assert process.poll() is None, process.communicate()[1][-500:]
        text = notes.read_text() if notes.exists() else ""
        return int(text) if text else 0

    try:
        until(lambda: done() > 5, 120.0)
        for _ in range(IDLE):
            lines.append(socket.create_connection(("127.0.0.1", ports[0]), 30.0))
        then = done()
        until(lambda: done() > then + 50, 60.0)
        until(lambda: answers(ports[0]), 60.0)  # the idle ones run out of time, one after another
        assert len(lines) == IDLE
    finally:
        over.set()
        for line in lines:
            line.close()
        mixing.join(70.0)
        other.close()
        process.communicate(timeout=60.0)
    assert process.returncode == 0


def answers(port: int) -> bool:
    """Return whether a new caller gets an answer."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", OWN) as channel:
        try:
            return bool(PeerStub(channel).Greet(pb.Greeting(), timeout=1.0).status == pb.STATUS_MALFORMED)
        except grpc.RpcError:
            return False
