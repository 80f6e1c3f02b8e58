"""The long-lived node, as a process, before a stock SuperLink on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import RegisterNodeRequest

from cli.certificates import Authority, node_key
from cli.certs import certs
from cli.node import parse_agents
from client.node import Node
from core.errors import Failure, Mistake
from flower.control import Control
from flower.keys import Address, Key
from flower.launch import QUIET, SuperLink, free_port, marks, processes, send, spawn, superlink, wait
from runs import digest
from tests.client import sender
from tests.client.echo import Echo

# Flower asks pathspec for a pattern by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROOT = Path(__file__).parents[2]
NO_CODE = hashlib.sha256().hexdigest()  # the digest of an app that holds none of our packages
LONG_S = 40.0  # far more than anything here takes


# Helpers: nodes and runs.


class Process:
    """An ``echo`` node as a process, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def log(self) -> str:
        return self._log.read_text()

    def says(self, words: str, times: int = 1) -> None:
        assert wait(lambda: len(re.findall(words, self.log())) >= times, LONG_S), f"not printed: {words}\n{self.log()}"

    def ends(self) -> int:
        try:
            return self.process.wait(LONG_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node did not end:\n{self.log()}") from None


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a node that hosts these agents; all of them end with the test."""
    with processes() as started:

        def node(address: str, agents: str = "0", app: str = NO_CODE, **options: Any) -> Process:
            given = [f"{name}={json.dumps(value)}" for name, value in options.items()]
            command = [sys.executable, "-m", "tests.client.echo", address, agents, str(tmp_path), app, *given]
            log = tmp_path / f"node-{len(started)}.log"
            started.append(spawn(command, log, QUIET, ROOT))
            return Process(started[-1], log)

        yield node


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with superlink(tmp_path_factory.mktemp("plain")) as running:
        yield running
        crash(running)


def crash(link: SuperLink) -> None:
    """Kill a SuperLink and all that it started; ending it politely takes it 5 s."""
    mark = marks()[link.process.pid]
    send({pid for pid, found in marks().items() if found == mark}, signal.SIGKILL)


@contextmanager
def run(link: SuperLink, folder: Path, *steps: dict[str, Any], nodes: int = 1) -> Iterator[Callable[[int], Any]]:
    """Submit a run with these steps; yield a function that waits for its first records."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(sender.PROJECT)
    shutil.copy(sender.__file__, folder)
    out = folder / "records.json"

    def records(count: int) -> Any:
        found: list[Any] = []

        def there() -> bool:
            found[:] = json.loads(out.read_text()) if out.exists() else []
            return len(found) >= count

        assert wait(there, LONG_S), f"{len(found)} of {count} rounds: {found}"
        return found[:count]

    with Control(link.control) as control:
        config: dict[str, bool | int | float | str] = {
            "name": "first",
            "nodes": nodes,
            "steps": json.dumps(steps),
            "out": str(out),
        }
        number = control.submit(folder, config)
        try:
            yield records
        finally:
            if not control.status(number).over:
                control.stop(number)


# Messages, signals, restarts.


def test_a_node_answers_refuses_and_lives_on(link: SuperLink, start: Callable[..., Process], tmp_path: Path) -> None:
    two = start(link.fleet, "0-1", max_bytes=1_000_000)
    other = start(link.fleet, "2", app="")
    echo = {"do": "echo", "times": 2}
    large, refused, broken = {"do": "echo", "size": 500_000}, {"do": "refuse:no, and why"}, {"do": "break:deep"}
    with run(link, tmp_path / "run", echo, large, refused, broken, {"do": "echo", "size": 3}, nodes=3) as records:
        rounds = records(6)
    both = []
    for record in rounds:
        by_node = {reply["node"]: reply for reply in record["replies"]}
        assert len(by_node) == 3
        (other_app,) = [reply for reply in by_node.values() if "this node runs app" in reply.get("error", "")]
        assert other_app["code"] == 7
        assert f"runs app {digest.installed()[:12]}, the run carries {NO_CODE[:12]}: install" in other_app["error"]
        both.append([reply for reply in by_node.values() if reply is not other_app])
    for record, count in ((both[0], 1), (both[1], 2), (both[5], 3)):
        assert sorted(reply["agent"] for reply in record) == [0, 1]
        assert all(reply["same"] and reply["count"] == count for reply in record)
    assert {reply["error"] for reply in both[2]} == {"the message is larger than 0 MB, this node's --max-message-mb"}
    assert {reply["error"] for reply in both[3]} == {"no, and why"}
    assert {reply["error"] for reply in both[4]} == {"KeyError: 'deep'"}
    # The run is over: its agents are saved without being asked, and a signal finds nothing left to do.
    two.says("first ends, its state is saved", times=2)
    assert [(tmp_path / f"first-{number}").read_text() for number in (0, 1)] == ["3", "3"]
    assert len(re.findall("this node runs app", other.log())) == 1
    two.process.terminate()
    assert two.ends() == 0
    assert two.log().endswith("left\n")
    assert "Traceback" not in two.log()


def test_a_signal_saves_and_leaves(link: SuperLink, start: Callable[..., Process], tmp_path: Path) -> None:
    """The message in progress is finished within the grace, dropped after it, left alone at the second signal."""
    (tmp_path / "first-0").write_text("7")
    # More steps than nodes: a node that leaves may receive one more request until the SuperLink knows.
    steps = [{"do": "sleep:1.5"}, *[{"do": "sleep:40"}] * 5]
    patient = start(link.fleet, debug=True)
    with run(link, tmp_path / "run", *steps) as records:
        patient.says("first begins")
        time.sleep(0.5)
        patient.process.send_signal(signal.SIGTERM)
        (reply,) = records(1)[0]["replies"]
        assert reply["count"] == 8
        assert patient.ends() == 0
        assert (tmp_path / "first-0").read_text() == "8"

        hasty = start(link.fleet, grace=0.3)
        hasty.says("first begins")
        time.sleep(0.5)
        (tmp_path / "first-0").unlink()
        hasty.process.send_signal(signal.SIGINT)
        assert hasty.ends() == 0
        assert "took longer than 0.3 s and was dropped" in hasty.log()
        assert not (tmp_path / "first-0").exists()  # an agent between two states is not saved

        # A node that leaves says so: the server knows at once, and asks the next node.
        records(2)
        stubborn = start(link.fleet, grace=60)
        stubborn.says("first begins")
        time.sleep(1)  # the message has come whole: one that has not is left with the server
        stubborn.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert stubborn.process.poll() is None
        stubborn.process.send_signal(signal.SIGTERM)
        assert stubborn.ends() == 128 + signal.SIGTERM


def test_a_superlink_that_comes_late_goes_and_comes_back(start: Callable[..., Process], tmp_path: Path) -> None:
    fleet = f"127.0.0.1:{free_port()}"
    node = start(fleet)
    node.says("no SuperLink serves us")
    with superlink(tmp_path / "home", fleet=fleet) as first:
        node.says("agent 0 is node")
        with suppress(Failure), run(first, tmp_path / "one", {"do": "echo", "times": 10_000}) as records:
            records(3)
            crash(first)
        node.says("no SuperLink serves us", times=2)
    with superlink(tmp_path / "home", fleet=fleet) as second:
        node.says("first ends, its state is saved")
        node.says("agent 0 is node", times=2)
        before = int((tmp_path / "first-0").read_text())
        assert before >= 3
        with run(second, tmp_path / "two", {"do": "echo"}) as records:
            assert records(1)[0]["replies"][0]["count"] == before + 1
        # Down and up again: each is printed once, however often the node retried.
        assert len(re.findall("no SuperLink serves us", node.log())) == 2
        assert len(re.findall("joining anew", node.log())) == 1
        node.process.terminate()
        assert node.ends() == 0
        crash(second)


# Which nodes the SuperLink admits.


def register(control: Control, public: Path) -> None:
    """As `flwr supernode register` does."""
    key = load_ssh_public_key(public.read_bytes())
    content = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    control.stub.RegisterNode(RegisterNodeRequest(public_key=content), timeout=20)


def closed(home: Path, keys: Path, server: str = "server") -> AbstractContextManager[SuperLink]:
    """A SuperLink with TLS that admits registered nodes only."""
    options = [
        "--ssl-ca-certfile", str(keys / "ca.pem"), "--ssl-certfile", str(keys / f"{server}.pem"),
        "--ssl-keyfile", str(keys / f"{server}.key"), "--enable-supernode-auth",
    ]  # fmt: skip
    return superlink(home, options=options)


def test_tls_and_keys(start: Callable[..., Process], link: SuperLink, tmp_path: Path) -> None:
    ours, strange = tmp_path / "ours", tmp_path / "strange"
    certs(ours, "", nodes="0-1")
    certs(strange)
    for name, days in (("server", 1), ("late", -1)):  # for one name: `certs` would add localhost
        Authority.read(ours).issue(ours / name, ["127.0.0.1"], timedelta(days=days))
    with closed(tmp_path / "home", ours) as running, closed(tmp_path / "late", ours, "late") as late:
        fleet, roots = running.fleet, {"roots": str(ours / "ca.pem")}
        with Control(running.control, ours / "ca.pem") as control:
            register(control, ours / "node-0.pub")
        known = start(fleet, **roots, keys=[str(ours / "node-0")])
        ends = {
            "plain text": (start(fleet, insecure=True, give_up=0.5), "it speaks TLS"),
            "strange CA": (start(fleet, roots=str(strange / "ca.pem"), give_up=0.5), "its certificate does not verify"),
            "expired": (start(late.fleet, **roots, give_up=0.5), "certificate has expired"),
            "another name": (start(fleet.replace("127.0.0.1", "localhost"), **roots, give_up=0.5), "not for the name"),
            "no key": (start(fleet, **roots), "admits registered nodes only"),
            "unknown": (start(fleet, **roots, keys=[str(ours / "node-1")], give_up=0.5), "does not admit the key"),
            "TLS": (start(link.fleet, **roots, give_up=0.5), "it speaks plain text where TLS was expected"),
        }
        for name, (node, words) in ends.items():
            assert node.ends() == 1, f"{name}:\n{node.log()}"
            assert words in node.log().splitlines()[-1], f"{name}:\n{node.log()}"
            assert "Traceback" not in node.log()
        known.says("agent 0 is node")
        known.process.terminate()
        assert known.ends() == 0
        crash(running)
        crash(late)


def test_a_key_per_agent(tmp_path: Path) -> None:
    node_key(tmp_path / "one")
    with pytest.raises(Mistake, match="one key per agent"):
        Node(Address("127.0.0.1:1"), [0, 1], Echo, lambda flat, run_id: "", tmp_path, [Key.read(tmp_path / "one")])
    (tmp_path / "none").write_text("no key")
    for name, words in (("none", "ssh-keygen"), ("absent", "cannot be read")):
        with pytest.raises(Mistake, match=words):
            Key.read(tmp_path / name)


def test_agents_are_read() -> None:
    assert parse_agents("0,2-4") == [0, 2, 3, 4]
    for wrong in ("", "a", "-1", "3-1", "0,,1", "0,0", "1-", "0-2,2"):
        with pytest.raises(Mistake):
            parse_agents(wrong)


# Which code runs.


def test_digest_on_disk_is_the_digest_of_the_bundle(tmp_path: Path) -> None:
    """Of the repository, with everything in it that Flower leaves out of a bundle."""
    for package in digest.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / "app" / package)
    app = tmp_path / "app"
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, app)
    (app / ".gitignore").write_text("__pycache__/\nscratch.py\n")
    before = digest.of_tree(app)
    for name in (
        "core/scratch.py",
        "agents/test_x.py",
        "agents/x_test.py",
        "cli.py",
        "envs/__pycache__/y.py",
        "tests/z.py",
    ):
        (app / name).parent.mkdir(exist_ok=True)
        (app / name).write_text("x = 1\n")
    (app / "core/link.py").symlink_to(app / "core/errors.py")
    assert digest.of_tree(app) == before == digest.of_bundle(build_fab_from_disk(app))
    (app / "core/new.py").write_text("")
    assert digest.of_tree(app) != before
    assert digest.of_tree(app) == digest.of_bundle(build_fab_from_disk(app))


def bundle(files: list[tuple[str, bytes]]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return written.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_hostile_bundle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "MAX_MEMBERS", 10)
    monkeypatch.setattr(digest, "MAX_BYTES", 10_000)
    many = [(f"core/{number}.py", b"") for number in range(11)]
    good = bundle([("core/a.py", b"x" * 1000)])
    broken = bytearray(good)
    broken[40] ^= 255
    for content, why in (
        (bundle([("core/a.py", bytes(10_001))]), "larger"),
        (bundle(many), "larger"),
        (bundle([("core/a.py", b"1"), ("core/a.py", b"2")]), "twice"),
        (b"no zip", "cannot be read"),
        (bytes(broken), "cannot be read"),
        (good[:-10], "cannot be read"),
    ):
        with pytest.raises(Failure, match=why):
            digest.of_bundle(content)
    digest.of_bundle(bundle([("core/../../a.py", b""), ("/core/b.py", b""), ("core/", b"")]))


def test_digest_depends_on_where_a_file_ends() -> None:
    assert digest.of_bundle(bundle([("core/a.py", b"xy")])) != digest.of_bundle(bundle([("core/a.pyx", b"y")]))
    assert os.path.commonpath([digest.__file__, ROOT]) == str(ROOT)
