"""The meaning of a gRPC error from a SuperLink."""

from __future__ import annotations

import socket
import ssl

import grpc
from flwr.supercore.error import FlowerError

from flower.keys import Address

PROBE_S = 2.0  # timeout of the connection that finds out whether a port speaks TLS


class Unreachable(Exception):
    """The SuperLink does not answer, or answers something unexpected. It may recover."""


class Forgotten(Exception):
    """The SuperLink does not know this node: it was restarted, or the node was removed."""


class RunOver(Exception):
    """The run has ended, or this SuperLink never knew it."""


class TooLarge(Exception):
    """A message, or one object of it, is larger than the limit of this node."""


class Refused(Exception):
    """The SuperLink refused the call; ``code`` is Flower's reason, 0 if it gave none."""

    def __init__(self, code: int) -> None:
        self.code = code


def meaning(error: grpc.RpcError, address: Address) -> Exception:
    """Return the exception of this module that a gRPC error stands for."""
    code, details = error.code(), str(error.details() or "")
    match code:
        case grpc.StatusCode.PERMISSION_DENIED:
            return RunOver()
        case grpc.StatusCode.UNAUTHENTICATED if "timestamp" in details:
            return Unreachable("its clock and the clock of this machine differ by minutes")
        case grpc.StatusCode.UNAUTHENTICATED:
            return Forgotten()
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return TooLarge()
        case grpc.StatusCode.FAILED_PRECONDITION:
            known = FlowerError.from_json(details)
            return Refused(known.code if known else 0)
        case grpc.StatusCode.UNAVAILABLE:
            return Unreachable(_why_unavailable(details, address))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreachable("it does not answer in time")
    return Unreachable(f"it answered {code.name}: {_one_line(details)}")


def _why_unavailable(details: str, address: Address) -> str:
    """Return the reason in plain words, above all for errors of TLS."""
    if "CERTIFICATE_VERIFY_FAILED" in details or "certificate verify failed" in details.lower():
        roots = address.roots or "the root certificates of this system (name its CA with --root-certificates)"
        return f"its certificate does not verify against {roots}: {_one_line(details.rpartition('FAILED: ')[2])}"
    if "Hostname Verification" in details:
        return f"its certificate is not for the name {address.superlink.rpartition(':')[0]}"
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks plain text where TLS was expected: use --insecure on both sides, or on neither"
    if address.insecure and "refused" not in details and _speaks_tls(address):
        return "it speaks TLS: remove --insecure, and name its CA with --root-certificates"
    return _one_line(details.rpartition(": ")[2] if "last error" in details else details.partition(": [")[0])


def _speaks_tls(address: Address) -> bool:
    """Return whether the port speaks TLS. A TLS server answers plain text by closing the connection."""
    host, _, port = address.superlink.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as connection:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # a probe: no data is sent
            context.set_alpn_protocols(["h2"])
            context.wrap_socket(connection).close()
    except (OSError, ValueError):
        return False
    return True


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
