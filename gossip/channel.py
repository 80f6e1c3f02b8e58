"""The gRPC channel to another peer, and the reasons why it may not work."""

from __future__ import annotations

from typing import Any

import grpc

from gossip import gossip_pb2 as pb
from gossip.local import MAX_BYTES, REFUSED, VERSION, Identity, Tls, name


def open_channel(tls: Tls | None, number: int, address: str) -> grpc.Channel:
    """Open a channel to a peer, which TLS knows by its number and not by its address."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_BYTES),
        # Use a connection of its own with short pauses: gRPC's default backoff grows to two minutes.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if tls is None:
        return grpc.insecure_channel(address, options)
    override = ("grpc.ssl_target_name_override", f"peer-{number}")
    return grpc.secure_channel(address, tls.client(), [*options, override])


def explain(error: grpc.RpcError) -> str:
    """Return the reason why a peer was not reached."""
    code, details = error.code(), " ".join(str(error.details() or "").split())
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "it does not answer"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return f"its certificate does not verify: {details.rpartition('FAILED: ')[2][:100]}"
    if "Hostname Verification" in details or "Peer name" in details:
        return "its certificate is not for this peer"
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks plain text, and this peer TLS"
    if code is grpc.StatusCode.UNAVAILABLE and "refused" in details:
        return "nobody listens there"
    return f"{code.name.lower().replace('_', ' ')}: {details[:160]}"


def mismatch(me: Identity, number: int, answer: pb.Greeting) -> str:
    """Return the reason why the answer is not that of peer ``number`` of this run, or an empty string."""
    envelope = answer.envelope
    if envelope.version != VERSION:
        return f"it speaks version {envelope.version} of the protocol, not {VERSION}"
    if answer.conf != me.conf:
        return "its configuration is another one: all peers of a run are given the same conf"
    if answer.app != me.app:
        return f"it runs the code {answer.app[:12]!r}, this peer {me.app[:12]!r}: install the same on both"
    if answer.status >= REFUSED:
        return f"it refuses this peer ({name(answer.status)})"
    if (envelope.run, envelope.sender, envelope.recipient) != (me.run, number, me.number):
        return f"peer {envelope.sender} answers there, to peer {envelope.recipient}"
    return ""
