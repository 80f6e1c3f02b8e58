"""Certificates and keys of a deployment: an authority of one's own, what it vouches for, and the keys of nodes.

Elliptic curves throughout (P-256): a signature costs 0.1 ms. Private keys are readable by their owner only.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import Failure, Mistake

AUTHORITY_DAYS = 3650
SKEW = timedelta(hours=1)  # clocks that are a little behind take a certificate at once


@dataclass(frozen=True)
class Authority:
    """A certificate authority: whoever trusts ``certificate`` trusts what ``key`` signed."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one, as ca.pem and ca.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedrl CA {secrets.token_hex(4)}")])
        authority = cls(_signed(name, key.public_key(), name, key, None, timedelta(days=AUTHORITY_DAYS)), key)
        _write(folder / "ca.key", _pem(key), private=True)
        _write(folder / "ca.pem", authority.certificate.public_bytes(Encoding.PEM))
        return authority

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """The one that ``make`` left, or one's own: the same two files."""
        return cls(*_pair(folder / "ca"))

    def issue(self, path: Path, names: Sequence[str], lifetime: timedelta) -> None:
        """A certificate for whoever answers to these names and addresses, as PATH.pem, and its key, as PATH.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        signed = _signed(subject, key.public_key(), self.certificate.subject, self.key, names, lifetime)
        _write(path.with_name(f"{path.name}.key"), _pem(key), private=True)
        _write(path.with_name(f"{path.name}.pem"), signed.public_bytes(Encoding.PEM))

    def unfit(self, path: Path, names: Iterable[str]) -> str:
        """Why the certificate PATH.pem is not one of ours that serves for these names; empty where it is."""
        certificate, _ = _pair(path)
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return "was signed by another authority"
        if datetime.now(UTC) > certificate.not_valid_after_utc:
            return f"ended on {certificate.not_valid_after_utc:%d %B %Y}"
        missing = [name for name in names if general_name(name) not in _alternatives(certificate)]
        return f"is not for {', '.join(missing)}" if missing else ""


def node_key(path: Path) -> None:
    """A key that a node is known by: PATH as ssh-keygen writes it, and PATH.pub to be registered."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), private=True)
    _write(path.with_name(f"{path.name}.pub"), public + f" {path.name}\n".encode())


def general_name(name: str) -> x509.GeneralName:
    """A name or an address, as a certificate has it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if not name.isascii() or not all(label.replace("-", "").isalnum() for label in labels):
        raise Mistake(f"'{name}' is neither the name of a machine nor an address")
    return x509.DNSName(name)


def _pair(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """PATH.pem and PATH.key, which belong together."""
    pem, secret = (path.with_name(path.name + suffix) for suffix in (".pem", ".key"))
    try:
        certificate = x509.load_pem_x509_certificate(pem.read_bytes())
        key = load_pem_private_key(secret.read_bytes(), None)
    except OSError as error:
        raise Mistake(f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Mistake(f"{pem} or {secret} is not in PEM, or has a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Mistake(f"{secret} is not the key of {pem}, one of an elliptic curve")
    return certificate, key


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str] | None,
    lifetime: timedelta,
) -> x509.Certificate:
    """A certificate; of an authority where there are no names."""
    now, authority = datetime.now(UTC), names is None
    builder = (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if names is not None:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # a peer is both
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _alternatives(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Beside, then into place: never half a key, and never one that others could read for a moment."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(file, "wb") as out:
            out.write(content)
        beside.replace(path)
    except OSError as error:
        raise Failure(f"{path} could not be written: {error.strerror}") from None
