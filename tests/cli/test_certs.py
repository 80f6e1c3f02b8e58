"""Certificates and keys: what is made, what stays, and who is believed because of it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from cli.certificates import Authority
from cli.certs import certs
from core.errors import Mistake
from flower.keys import Key

DAY = timedelta(days=1)


def make(folder: Path, server: str | None = None, nodes: str = "", peers: str = "", **more: bool) -> None:
    certs(folder, server, nodes, peers, 30, more.get("force", False))


def pem(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(folder: Path, what: str, name: x509.GeneralName, when: datetime) -> None:
    """What a verifier of RFC 5280 says that knows nothing of how the certificate was made."""
    store = Store([pem(folder / "ca.pem")])
    PolicyBuilder().store(store).time(when).build_server_verifier(name).verify(pem(folder / f"{what}.pem"), [])


def test_what_is_made_verifies(tmp_path: Path) -> None:
    make(tmp_path / "keys", "superlink,10.1.2.3", "0,2", "0-1")
    folder, now = tmp_path / "keys", datetime.now(UTC)
    verify(folder, "server", x509.DNSName("superlink"), now)
    verify(folder, "server", x509.IPAddress(ip_address("10.1.2.3")), now)
    verify(folder, "peer-1", x509.DNSName("peer-1"), now)
    for what, name, when in (
        ("server", "other", now),
        ("peer-1", "peer-0", now),
        ("peer-1", "localhost", now),
        ("server", "superlink", now + 31 * DAY),
        ("server", "superlink", now - DAY),
    ):
        with pytest.raises(VerificationError):
            verify(folder, what, x509.DNSName(name), when)
    for path in folder.iterdir():
        secret = path.suffix == ".key" or path.name in ("node-0", "node-2")
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if secret else 0o644), path
    for number in (0, 2):
        private = Key.read(folder / f"node-{number}").private
        public = load_ssh_public_key((folder / f"node-{number}.pub").read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert private.public_key() == public


def test_what_is_there_stays(tmp_path: Path) -> None:
    make(tmp_path, nodes="0", peers="0")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make(tmp_path, nodes="0-1", peers="0-1")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"node-1", "node-1.pub", "peer-1.pem", "peer-1.key"}
    verify(tmp_path, "peer-1", x509.DNSName("peer-1"), datetime.now(UTC))
    make(tmp_path, nodes="0", force=True)
    forced = {path.name for path in tmp_path.iterdir() if path.read_bytes() != after[path.name]}
    assert forced == {"node-0", "node-0.pub"}


def test_a_node_is_added_without_a_word_about_the_server_and_its_certificate_renewed_without_one_about_nodes(
    tmp_path: Path,
) -> None:
    make(tmp_path, "server.example,192.0.2.10", nodes="0-2")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make(tmp_path, nodes="3")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"node-3", "node-3.pub"}
    make(tmp_path, "server.example,192.0.2.10", force=True)
    assert {path.name for path in tmp_path.iterdir() if path.read_bytes() != after[path.name]} == {
        "server.pem",
        "server.key",
    }
    verify(tmp_path, "server", x509.DNSName("server.example"), datetime.now(UTC))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="neither a host name nor an IP address"):
        make(tmp_path / "new", "two words")
    assert not (tmp_path / "new").exists()
    make(tmp_path)
    with pytest.raises(Mistake, match=r"server.pem is not for other: --force"):
        make(tmp_path, "localhost,other")
    Authority.read(tmp_path).issue(tmp_path / "server", ["localhost", "127.0.0.1"], -DAY)
    with pytest.raises(Mistake, match=r"server.pem expired on .*: --force"):
        make(tmp_path, "localhost")
    Authority.make(tmp_path)
    Authority.read(tmp_path).issue(tmp_path / "server", ["localhost", "127.0.0.1"], DAY)
    key, authority = (tmp_path / "ca.key").read_bytes(), (tmp_path / "ca.pem").read_bytes()
    Authority.make(tmp_path)
    with pytest.raises(Mistake, match=r"server.pem was signed by another authority: --force"):
        make(tmp_path, "localhost")
    (tmp_path / "ca.key").write_bytes(key)
    with pytest.raises(Mistake, match=r"ca.key is not the key of .*ca.pem"):
        make(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority)
    make(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(Mistake, match=r"ca.key cannot be read: No such file"):
        make(tmp_path)
    (tmp_path / "ca.key").write_text("no key")
    with pytest.raises(Mistake, match="is not in PEM format, or needs a password"):
        make(tmp_path)


@contextmanager
def served(folder: Path, what: str, *, mutual: bool) -> Iterator[int]:
    """A gRPC server with one of the certificates, and its port."""

    class Pong(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"pong")

    server = grpc.server(ThreadPoolExecutor(1), [Pong()])
    pair = (folder / f"{what}.key").read_bytes(), (folder / f"{what}.pem").read_bytes()
    roots = (folder / "ca.pem").read_bytes()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, mutual))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(5)


def ask(port: int, roots: Path | None, pair: Path | None = None, name: str = "", host: str = "127.0.0.1") -> bytes:
    options = [("grpc.ssl_target_name_override", name)] if name else []
    if roots is None:
        channel = grpc.insecure_channel(f"{host}:{port}", options)
    else:
        own = [pair.with_suffix(suffix).read_bytes() for suffix in (".key", ".pem")] if pair else [None, None]
        channel = grpc.secure_channel(f"{host}:{port}", grpc.ssl_channel_credentials(roots.read_bytes(), *own), options)
    with channel:
        reply: bytes = channel.unary_unary("/pong/Pong")(b"ping", timeout=10)
    return reply


def test_handshakes(tmp_path: Path) -> None:
    ours, strange = tmp_path / "ours", tmp_path / "strange"
    make(ours, peers="0,1")
    make(strange, peers="1")
    Authority.read(ours).issue(ours / "late", ["localhost", "127.0.0.1"], -DAY)
    roots = ours / "ca.pem"
    with served(ours, "server", mutual=False) as port:
        assert ask(port, roots) == b"pong"
        for refused in (strange / "ca.pem", None):
            with pytest.raises(grpc.RpcError):
                ask(port, refused)
    with served(ours, "late", mutual=False) as port, pytest.raises(grpc.RpcError, match="certificate has expired"):
        ask(port, roots)
    with served(ours, "peer-0", mutual=True) as port:
        assert ask(port, roots, ours / "peer-1.pem", "peer-0") == b"pong"
        for pair, name in ((None, "peer-0"), (strange / "peer-1.pem", "peer-0"), (ours / "peer-1.pem", "peer-1")):
            with pytest.raises(grpc.RpcError):
                ask(port, roots, pair, name)


def test_what_the_first_command_of_the_deployment_page_makes_verifies_on_the_server_itself(tmp_path: Path) -> None:
    """Its later steps dial 127.0.0.1 on the server: the control port is open to the machine itself only."""
    page = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
    line = re.search(r"^fedrl certs keys --server (\S+) --nodes (\S+)$", page, re.MULTILINE)
    assert line
    folder = tmp_path / "keys"
    make(folder, line[1], line[2])
    with served(folder, "server", mutual=False) as port:
        for host in ("127.0.0.1", "localhost"):
            assert ask(port, folder / "ca.pem", host=host) == b"pong"
        for name in line[1].split(","):
            assert ask(port, folder / "ca.pem", name=name) == b"pong"
        with pytest.raises(grpc.RpcError):
            ask(port, folder / "ca.pem", name="other.example")
    make(folder, line[1])  # a second time nothing is amiss


def test_a_certificate_that_was_made_without_loopback_names_stays(tmp_path: Path) -> None:
    Authority.make(tmp_path).issue(tmp_path / "server", ["server.example"], DAY)
    before = (tmp_path / "server.pem").read_bytes()
    make(tmp_path, "server.example", nodes="0")
    assert (tmp_path / "server.pem").read_bytes() == before
