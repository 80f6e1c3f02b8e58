"""Certificates and keys of a deployment: a certificate authority, the certificates that it signs, and node keys.

All keys are on the elliptic curve P-256: a signature costs 0.1 ms. Only their owner can read private keys.
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
SKEW = timedelta(hours=1)  # accept a new certificate at once on machines whose clock is a little behind


@dataclass(frozen=True)
class Authority:
    """A certificate authority: trusting ``certificate`` means trusting whatever ``key`` has signed."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Create an authority, as ca.pem and ca.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedrl CA {secrets.token_hex(4)}")])
        authority = cls(_signed(name, key.public_key(), name, key, None, timedelta(days=AUTHORITY_DAYS)), key)
        _write(folder / "ca.key", _pem(key), private=True)
        _write(folder / "ca.pem", authority.certificate.public_bytes(Encoding.PEM))
        return authority

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """Read an authority from ca.pem and ca.key, which ``make`` or the user wrote."""
        return cls(*_pair(folder / "ca"))

    def issue(self, path: Path, names: Sequence[str], lifetime: timedelta) -> None:
        """Write a certificate for these names and addresses, as PATH.pem, and its key, as PATH.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        signed = _signed(subject, key.public_key(), self.certificate.subject, self.key, names, lifetime)
        _write(path.with_name(f"{path.name}.key"), _pem(key), private=True)
        _write(path.with_name(f"{path.name}.pem"), signed.public_bytes(Encoding.PEM))

    def unfit(self, path: Path, names: Iterable[str]) -> str:
        """Return why the certificate PATH.pem is not valid for these names; empty if it is."""
        certificate, _ = _pair(path)
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return "was signed by another authority"
        if datetime.now(UTC) > certificate.not_valid_after_utc:
            return f"expired on {certificate.not_valid_after_utc:%d %B %Y}"
        missing = [name for name in names if general_name(name) not in _alternatives(certificate)]
        return f"is not for {', '.join(missing)}" if missing else ""


def node_key(path: Path) -> None:
    """Write the key of a node: PATH in the format of ssh-keygen, and PATH.pub to be registered."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), private=True)
    _write(path.with_name(f"{path.name}.pub"), public + f" {path.name}\n".encode())


def general_name(name: str) -> x509.GeneralName:
    """Return a host name or an IP address in the form that a certificate holds."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if not name.isascii() or not all(label.replace("-", "").isalnum() for label in labels):
        raise Mistake(f"'{name}' is neither a host name nor an IP address")
    return x509.DNSName(name)


def _pair(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the certificate PATH.pem and its key PATH.key; refuses files that do not belong together."""
    pem, secret = (path.with_name(path.name + suffix) for suffix in (".pem", ".key"))
    try:
        certificate = x509.load_pem_x509_certificate(pem.read_bytes())
        key = load_pem_private_key(secret.read_bytes(), None)
    except OSError as error:
        raise Mistake(f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Mistake(f"{pem} or {secret} is not in PEM format, or needs a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Mistake(f"{secret} is not the key of {pem}, or not an elliptic-curve key")
    return certificate, key


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str] | None,
    lifetime: timedelta,
) -> x509.Certificate:
    """Return a signed certificate; that of an authority if ``names`` is None."""
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
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # a peer is server and client
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
    """Write a file beside and move it into place: it is never incomplete, and a key is never readable by others."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(file, "wb") as out:
            out.write(content)
        beside.replace(path)
    except OSError as error:
        raise Failure(f"{path} could not be written: {error.strerror}") from None
