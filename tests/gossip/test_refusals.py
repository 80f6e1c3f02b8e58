"""Messages that no honest peer sends: each is refused by name, counted, and never used."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cli.certificates import Authority
from core.errors import Failure, Mistake
from gossip import gossip_pb2 as pb
from gossip.arrivals import CALLER
from gossip.gossip_pb2_grpc import PeerStub
from gossip.handshakes import counted
from gossip.inbox import AHEAD, PIECE
from gossip.local import MAX_BYTES, Tls
from gossip.published import read_published
from gossip.service import CALLS
from gossip.wire import Wire
from tests.gossip.network import QUICK, Net, network, starts, together

RUN = 5 ^ int("ab" * 8, 16)


@pytest.fixture
def pair() -> Iterator[Net]:
    """Peers 0 and 1 of three, at work and in round 3; peer 2 never comes, and attackers send messages in its name."""
    with network("complete", 3, 4, QUICK) as net:
        for k in range(2):
            net.start(k)
        for k in range(2):
            wire, other = net.wires[k], net.wires[k].neighbours[1 - k]
            deadline = time.monotonic() + 20
            while not other.life and time.monotonic() < deadline:
                time.sleep(0.01)
            wire.begin()
        X, Y = starts(2, 4)

        def goes(k: int) -> None:
            x, y = X[k : k + 1], Y[k : k + 1]
            for number in range(1, 4):
                x, y = net.wires[k].mix(number, x, y)

        together([lambda k=k: goes(k) for k in range(2)])
        # Wait for all answers, so that ``share`` knows which sequence number is next.
        deadline = time.monotonic() + 20
        while any(net.wires[k].neighbours[1 - k].outbox.is_busy for k in range(2)) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield net


def raw(net: Net, number: int = 0) -> Any:
    return PeerStub(grpc.insecure_channel(net.listen[number], [("grpc.use_local_subchannel_pool", 1)]))


def share(net: Net, **changes: Any) -> pb.Piece:
    """Return the next piece of peer 1 for peer 0, with changes to it or to its envelope."""
    neighbour = net.wires[1].neighbours[0]
    with net.wires[1].local.changed:
        piece = pb.Piece(
            envelope=net.wires[1].local.envelope(0, neighbour.life), sequence=neighbour.outbox.sequence,
            round=4, layout=7, width=4, data=np.ones(4, "<f4").tobytes(),
        )  # fmt: skip
    piece.share.weight = 0.5
    for name, value in changes.items():
        where = piece.envelope if hasattr(piece.envelope, name) and name not in ("round",) else piece
        setattr(where, name, value)
    return piece


FORGERIES: list[tuple[str, Callable[[Net], pb.Piece], str]] = [
    ("another version", lambda net: share(net, version=2), "wrong-version"),
    ("another run", lambda net: share(net, run=1), "wrong-run"),
    ("for another peer", lambda net: share(net, recipient=1), "wrong-recipient"),
    ("of an unknown peer", lambda net: share(net, sender=9), "unknown-peer"),
    ("of itself", lambda net: share(net, sender=0), "unknown-peer"),
    ("of an earlier life", lambda net: share(net, incarnation=net.wires[1].local.identity.life - 1), "replayed"),
    ("another layout", lambda net: share(net, layout=8), "wrong-layout"),
    ("longer", lambda net: share(net, width=5, data=bytes(20)), "wrong-layout"),
    ("more than its width", lambda net: share(net, data=bytes(20)), "oversized"),
    ("beyond its end", lambda net: share(net, offset=PIECE), "oversized"),
    ("nan", lambda net: share(net, data=np.full(4, np.nan, "<f4").tobytes()), "not-finite"),
    ("infinity", lambda net: share(net, data=np.full(4, np.inf, "<f4").tobytes()), "not-finite"),
    ("huge", lambda net: share(net, data=np.full(4, 1e30, "<f4").tobytes()), "huge"),
    ("of no weight", lambda net: _weighing(share(net), 0.0), "bad-weight"),
    ("of too much weight", lambda net: _weighing(share(net), 50.0), "bad-weight"),
    ("out of order", lambda net: share(net, sequence=99), "out-of-order"),
    ("neither share nor broadcast", lambda net: _cleared(share(net)), "malformed"),
    ("a long tag", lambda net: _tagged(share(net), "x" * 33), "malformed"),
]


def _weighing(piece: pb.Piece, weight: float) -> pb.Piece:
    piece.share.weight = weight
    return piece


def _cleared(piece: pb.Piece) -> pb.Piece:
    piece.ClearField("share")
    return piece


def _tagged(piece: pb.Piece, tag: str) -> pb.Piece:
    piece.broadcast.tag = tag
    return piece


def test_every_forged_message_is_refused_by_name_counted_and_not_used(pair: Net) -> None:
    wire, stub = pair.wires[0], raw(pair)
    for what, forge, name in FORGERIES:
        before = wire.reasons().get(name, 0)
        receipt = stub.Give(forge(pair), timeout=5)
        assert pb.Status.Name(receipt.status) == "STATUS_" + name.upper().replace("-", "_"), what
        assert wire.reasons()[name] == before + 1, what
        assert not wire.neighbours[1].inbox.shares, what
    assert wire.counts()["refused"] == [len(FORGERIES)]
    assert len({note for note in pair.notes if "was refused" in note}) == len(pair.notes), "each kind is reported once"


def test_replayed_shares_count_once(pair: Net) -> None:
    wire, stub = pair.wires[0], raw(pair)
    past = share(pair, sequence=1)
    for _ in range(3):
        assert stub.Give(past, timeout=5).status == pb.STATUS_DUPLICATE
    assert not wire.neighbours[1].inbox.shares and wire.counts()["duplicates"] == [3]
    # Recorded for an earlier life of the recipient.
    stale = share(pair, recipient_incarnation=wire.local.identity.life - 5)
    assert stub.Give(stale, timeout=5).status == pb.STATUS_STALE
    assert wire.counts()["stale"] == [1] and not wire.neighbours[1].inbox.shares


def test_a_message_in_the_name_of_another_peer_is_detected_by_asking_that_peer(pair: Net) -> None:
    """Without TLS there are no certificates. A life that the peer, when asked, does not have is forged."""
    wire, stub = pair.wires[0], raw(pair)
    forged = share(pair, incarnation=net_life(pair) + 10**9)
    assert stub.Give(forged, timeout=5).status == pb.STATUS_UNKNOWN
    deadline = time.monotonic() + 20
    while (receipt := stub.Give(forged, timeout=5)).status == pb.STATUS_UNKNOWN and time.monotonic() < deadline:
        time.sleep(0.02)
    assert receipt.status == pb.STATUS_FORGED and wire.reasons()["forged"] == 1
    assert not wire.neighbours[1].inbox.shares and wire.neighbours[1].life == net_life(pair)
    # A peer that never came cannot be asked.
    assert stub.Give(share(pair, sender=2), timeout=5).status == pb.STATUS_UNKNOWN


def net_life(net: Net) -> int:
    return net.wires[1].local.identity.life


def test_shares_from_far_ahead_are_held_off_and_memory_is_bounded(pair: Net) -> None:
    wire, stub = pair.wires[0], raw(pair)
    assert stub.Give(share(pair, round=4 + AHEAD), timeout=5).status == pb.STATUS_HOLD
    assert stub.Give(_tagged(share(pair, round=4 + AHEAD), "w"), timeout=5).status == pb.STATUS_HOLD
    assert wire.counts()["held"] == [2] and not wire.neighbours[1].inbox.shares


def test_only_the_last_vector_can_be_withdrawn(pair: Net) -> None:
    wire, stub, piece = pair.wires[0], raw(pair), share(pair)
    withdrawal = pb.Withdrawal(envelope=piece.envelope, sequence=1)
    assert stub.Withdraw(withdrawal, timeout=5).status == pb.STATUS_OUT_OF_ORDER
    assert wire.reasons()["out-of-order"] == 1 and not wire.neighbours[1].inbox.owed


def test_unusable_published_weights_are_refused(pair: Net) -> None:
    answer = raw(pair).Ask(pb.Question(envelope=share(pair).envelope, offset=4), timeout=5)
    assert answer.status == pb.STATUS_NOTHING, "the offset is beyond the end"
    neighbour = pair.wires[0].neighbours[1]
    with pair.wires[1].local.changed:
        pair.wires[1].local.published = (3, np.array([1, np.nan, 3, 4], "<f4"))
    assert read_published(pair.wires[0].local, neighbour) is None
    assert pair.wires[0].reasons()["wrong-layout"] == 1
    with pair.wires[1].local.changed:
        pair.wires[1].local.published = (3, np.ones(10**6, "<f4"))
    assert read_published(pair.wires[0].local, neighbour) is None


def test_noise_at_the_port_harms_no_peer(pair: Net) -> None:
    """Send bytes that are no gRPC, calls that are no message, and messages with random fields. Peers mix as before."""
    wire, generator = pair.wires[0], random.Random(0)
    host, _, port = pair.listen[0].rpartition(":")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is what is held now
    memory = peak()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for size in (1, 10, 100, 10_000, 1_000_000):
        for start in (b"", preface, b"\x16\x03\x01"):
            with socket.create_connection((host, int(port)), 5) as line, suppress(OSError):  # it may hang up
                line.sendall(start + generator.randbytes(size))
    channel = grpc.insecure_channel(pair.listen[0], [("grpc.max_send_message_length", -1)])
    whole = share(pair, incarnation=12345).SerializeToString()  # of an unknown life, whatever is changed in it
    sent = 0
    for index in range(600):
        method = generator.choice(("Greet", "Give", "Withdraw", "Ask"))
        if index % 3 == 0:
            noise = generator.randbytes(generator.randrange(200))
        else:  # a true message with some bytes changed, left out, or put in
            noise = bytearray(whole)
            for _ in range(generator.randrange(1, 6)):
                at = generator.randrange(len(noise))
                noise[at : at + generator.randrange(2)] = generator.randbytes(generator.randrange(3))
            noise = bytes(noise)
        with suppress(grpc.RpcError):
            channel.unary_unary(f"/fedrl.gossip.v1.Peer/{method}")(noise, timeout=5)
            sent += 1
    assert sent == 600, "every one of them was answered"
    with pytest.raises(grpc.RpcError, match="larger than max"):
        channel.unary_unary("/fedrl.gossip.v1.Peer/Give")(bytes(MAX_BYTES + 1), timeout=5)
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        channel.unary_unary("/fedrl.gossip.v1.Peer/Shutdown")(b"", timeout=5)
    assert wire.reasons()["malformed"] > 200
    assert peak() - memory < 100_000, "kilobytes"
    before = [wire.reasons()["malformed"], wire.neighbours[1].life]
    # None of these took the sequence number of the next vector of peer 1.
    found = together([lambda k=k: pair.wires[k].mix(4, *(starts(1, 4, seed=k))) for k in range(2)])
    assert sum(float(y[0]) for _, y in found) == pytest.approx(2.0, abs=1e-9)
    assert [wire.reasons()["malformed"], wire.neighbours[1].life] == before


def peak() -> int:
    """Return the peak memory of this process since the last reset, in kilobytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_a_flood_of_calls_is_rejected_and_peers_go_on(pair: Net) -> None:
    """Use twice as many connections as fill the server, as each keeps to the limit of calls at a time."""
    wire, filling = pair.wires[0], CALLS // CALLER
    lines = 2 * filling
    with ExitStack() as stack:
        calls = []
        with wire.local.changed:  # which every answer needs: none is done before all have come
            for _ in range(lines):
                own = [("grpc.use_local_subchannel_pool", 1)]
                channel = stack.enter_context(grpc.insecure_channel(pair.listen[0], own))
                give = channel.unary_unary("/fedrl.gossip.v1.Peer/Give")
                calls += [give.future(b"\xff" * 50_000, timeout=60) for _ in range(CALLS)]
            deadline = time.monotonic() + 30
            while sum(call.done() for call in calls) < (lines - filling) * CALLS and time.monotonic() < deadline:
                time.sleep(0.02)
        found = together([lambda k=k: pair.wires[k].mix(4, *(starts(1, 4, seed=k))) for k in range(2)])
        codes = Counter(call.code() for call in calls)  # waits for each
    assert sum(float(y[0]) for _, y in found) == pytest.approx(2.0)
    # More than all calls, more than a connection's, and calls that were ended without a message.
    turned = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    answered, away = codes[grpc.StatusCode.OK], sum(codes[code] for code in turned)
    assert answered + away == len(calls), codes
    assert away >= (lines - filling) * CALLS
    # A call may be ended at the moment in which its message arrives.
    assert answered > 0 and wire.reasons().keys() == {"malformed"} and wire.reasons()["malformed"] >= answered


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, peer-0 to peer-2, and what others might come with: of another authority, out of date, of no peer."""
    place = tmp_path_factory.mktemp("certificates")
    authority = Authority.make(place)
    for k in range(3):
        authority.issue(place / f"peer-{k}", [f"peer-{k}"], timedelta(days=1))
    authority.issue(place / "old", ["peer-1"], timedelta(days=-1))
    authority.issue(place / "visitor", ["visitor"], timedelta(days=1))
    (place / "foreign").mkdir()
    Authority.make(place / "foreign").issue(place / "foreign" / "peer-1", ["peer-1"], timedelta(days=1))
    return place


def test_peers_with_certificates_find_each_other_and_mix(folder: Path) -> None:
    X, Y = starts(2, 50)
    with network("ring", 2, 50) as net:
        wires = [started(net, k, folder) for k in range(2)]

        def goes(wire: Wire) -> float:
            k = wire.peers[0]
            wire.gather()
            wire.begin()
            x, y = wire.mix(1, X[k : k + 1], Y[k : k + 1])
            return float(wire.finish(x, y)[1][0])

        assert sum(together([lambda w=w: goes(w) for w in wires])) == pytest.approx(2.0)


def started(net: Net, number: int, folder: Path) -> Wire:
    net.wire["tls"] = Tls.read(folder, number)
    return net.start(number)


def test_callers_without_a_certificate_of_the_network_are_rejected_and_counted(folder: Path) -> None:
    ca = (folder / "ca.pem").read_bytes()

    def held(name: str) -> Any:
        return grpc.ssl_channel_credentials(
            ca, (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
        )

    refused: list[int] = []
    with network("ring", 3, 4) as net, counted(lambda: refused.append(1)):
        wire = started(net, 0, folder)
        strangers = [grpc.ssl_channel_credentials(ca), held("foreign/peer-1"), held("old"), None]
        for credentials in strangers:
            options = [("grpc.ssl_target_name_override", "peer-0"), ("grpc.use_local_subchannel_pool", 1)]
            if credentials is None:
                channel = grpc.insecure_channel(net.listen[0], options[1:])
            else:
                channel = grpc.secure_channel(net.listen[0], credentials, options)
            with pytest.raises(grpc.RpcError):
                PeerStub(channel).Greet(pb.Greeting(), timeout=5)
            channel.close()
        deadline = time.monotonic() + 10
        while len(refused) < len(strangers) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(refused) >= len(strangers)
        # A valid certificate, and a message in the name of another peer.
        for name, sender in (("visitor", 1), ("peer-2", 1)):
            channel = grpc.secure_channel(net.listen[0], held(name), options)
            envelope = pb.Envelope(version=1, run=RUN, sender=sender, incarnation=9, recipient=0)
            answer = PeerStub(channel).Greet(pb.Greeting(envelope=envelope), timeout=5)
            assert answer.status == pb.STATUS_FORGED, name
        assert wire.reasons() == {"forged": 2} and wire.neighbours[1].life == 0


def test_a_peer_with_a_foreign_certificate_is_rejected_and_reports_the_reason(folder: Path, tmp_path: Path) -> None:
    for name in ("ca.pem", "peer-1.pem", "peer-1.key"):
        (tmp_path / name).write_bytes((folder / "foreign" / name).read_bytes())
    patience = QUICK.__class__(start=1.5, beat=0.2, call=2.0)
    with network("ring", 2, 4, patience) as net:
        started(net, 0, folder)
        wire = started(net, 1, tmp_path)
        with pytest.raises(Failure, match=r"peer 0 .*its certificate does not verify"):
            wire.gather()


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"ca.pem cannot be read.*fedrl certs .* --peers 3 makes it"):
        Tls.read(tmp_path, 3)


def test_other_output_on_standard_error_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    refused: list[int] = []
    with counted(lambda: refused.append(1)):
        os.write(2, b"a word\nI0 ssl.cc:1] Handshake failed with error X\nanother\n")
    os.write(2, b"and one more\n")
    assert len(refused) == 1
    assert capfd.readouterr().err == "a word\nanother\nand one more\n"
