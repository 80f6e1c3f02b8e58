"""Noise at a peer's port: it is counted, takes no memory, and honest peers do not notice."""

from __future__ import annotations

import os
import random
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from client.gossip import gossip_pb2 as pb
from client.gossip.here import MAX_BYTES, VERSION
from client.gossip.service import SERVICE
from tests.client.gossip.network import network, starts, together
from tests.client.gossip.test_wire import all_mix, product

KINDS: dict[str, type[Message]] = {
    "Greet": pb.Greeting, "Give": pb.Piece, "Withdraw": pb.Withdrawal, "Ask": pb.Question,
}  # fmt: skip
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NUMBERS = (0, 1, 2, 7, 2**31 - 1, 2**32 - 1)


def resident() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def strange(dice: random.Random, kind: type[Message]) -> bytes:
    """A message of ours with any values, never of the run that its peers are in."""
    message: Any = kind()
    if dice.random() < 0.9:
        message.envelope.version = dice.choice([VERSION, VERSION, VERSION, 0, 9])
        message.envelope.run = dice.getrandbits(64)
        message.envelope.sender, message.envelope.recipient = dice.choice(NUMBERS), dice.choice(NUMBERS)
        message.envelope.incarnation = dice.getrandbits(64)
        message.envelope.recipient_incarnation = dice.choice([0, dice.getrandbits(64)])
    for field in message.DESCRIPTOR.fields:
        if field.name in ("sequence", "round", "width", "offset") and dice.random() < 0.7:
            setattr(message, field.name, dice.choice(NUMBERS))
        if field.name == "data":
            message.data = dice.randbytes(dice.choice([0, 3, 4, 4000]))
    if isinstance(message, pb.Piece):
        if dice.random() < 0.5:
            message.share.weight = dice.choice([0.0, -1.0, float("nan"), float("inf"), 1e300, 0.5])
        else:
            message.word.tag = "x" * dice.choice([0, 8, 10_000])
    return message.SerializeToString()


def noise(address: str, seed: int, over: threading.Event) -> int:
    """Raw bytes, bytes as messages, messages of other runs, and messages that are too large; how many were answered."""
    dice, answered = random.Random(seed), 0
    host, _, port = address.rpartition(":")
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        while not over.is_set():
            with suppress(OSError), socket.create_connection((host, int(port)), 2) as line:
                line.sendall(dice.choice([b"", PREFACE]) + dice.randbytes(dice.choice([1, 100, 10_000])))
            method = dice.choice([*KINDS, "Take", ""])
            service = dice.choice([SERVICE, SERVICE, SERVICE, "other.Service", "../.."])
            call = channel.unary_unary(f"/{service}/{method}")
            content = dice.randbytes(dice.choice([0, 5, 500, 5000]))
            if method in KINDS and dice.random() < 0.6:
                content = strange(dice, KINDS[method])
            elif dice.random() < 0.05:
                content = bytes(MAX_BYTES + 2**20)
            with suppress(grpc.RpcError):
                call(content, timeout=5)
                answered += 1
    return answered


def test_honest_peers_mix_as_if_nobody_made_noise() -> None:
    X, Y = starts(3, 300)
    over = threading.Event()
    with network("ring", 3, 300) as net:
        loud = [threading.Thread(target=noise, args=(net.listen[k % 3], k, over)) for k in range(4)]
        before = resident()
        try:
            for thread in loud:
                thread.start()
            x, y, _ = all_mix(net, X, Y, 150)
        finally:
            over.set()
            together([thread.join for thread in loud])
        a, b = product(net, X, Y, 150)
        reasons = {reason for wire in net.wires.values() for reason in wire.here.reasons}
        grown = resident() - before
    assert np.array_equal(x, a)
    assert np.array_equal(y, b)
    assert {"malformed", "unknown-peer", "wrong-run", "wrong-version"} <= reasons
    assert grown < 200  # nothing of what was claimed, nor of 4 MB messages without number, was kept
