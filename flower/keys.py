"""The address of a SuperLink, and the key that identifies a node there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from core.errors import Mistake


@dataclass(frozen=True)
class Address:
    """The address of a SuperLink, and the certificates that it is verified against."""

    superlink: str
    insecure: bool = False
    roots: Path | None = None  # None: the root certificates of the system
    max_bytes: int = 256 * 2**20

    def open(self) -> grpc.Channel:
        """Open a channel."""
        options = [
            ("grpc.max_receive_message_length", self.max_bytes),
            ("grpc.max_send_message_length", -1),
            # A connection of its own with a short backoff: the default backoff of gRPC grows to two minutes.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if self.insecure:
            return grpc.insecure_channel(self.superlink, options)
        return grpc.secure_channel(
            self.superlink, grpc.ssl_channel_credentials(self.roots and self.roots.read_bytes()), options
        )


@dataclass(frozen=True)
class Key:
    """The private key that identifies a node, and the file that it was read from."""

    private: ec.EllipticCurvePrivateKey
    path: Path | None

    @classmethod
    def read(cls, path: Path) -> Key:
        """Read a key from a file."""
        try:
            private = load_ssh_private_key(path.read_bytes(), None)
        except OSError as error:
            raise Mistake(f"the key {path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise Mistake(f"{path} is not the key of a node: create one with ssh-keygen -t ecdsa -b 256 -N '' -f FILE")
        return cls(private, path)

    @classmethod
    def fresh(cls) -> Key:
        """Generate a key on P-256: the SuperLink verifies a signature per call, in 0.1 ms (P-384, Flower's: 1 ms)."""
        return cls(ec.generate_private_key(ec.SECP256R1()), None)
