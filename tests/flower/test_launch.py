"""A stock SuperLink as a process, runs through its control API, and nothing left of either afterwards."""

from __future__ import annotations

import datetime
import ipaddress
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flwr.cli.build import build_fab_from_disk

from core.errors import Failure, Mistake
from flower import launch
from flower.control import Control, Status, bundle
from flower.launch import free_port, marks, processes, running, send, spawn, start_node, superlink, wait

# Flower asks pathspec for a pattern by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROOT = Path(__file__).parents[2]
PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "tiny.app:app"
clientapp = "tiny.app:client"
[tool.flwr.app.config]
what = "finish"
file = ""
"""
APP = """
import time
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
app, client = ServerApp(), ClientApp()

@app.main()
def main(grid, context):
    print("I am to", context.run_config["what"], flush=True)
    Path(context.run_config["file"]).write_text(context.run_config["what"])
    if context.run_config["what"] == "raise":
        raise ValueError("the reason")
    while context.run_config["what"] == "sleep":
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project")
    (path / "tiny").mkdir()
    (path / "pyproject.toml").write_text(PROJECT)
    (path / "tiny" / "app.py").write_text(APP)
    return path


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.SuperLink]:
    home = tmp_path_factory.mktemp("home")
    with superlink(home) as link:
        yield link
    assert not of(home)


def of(home: Path) -> set[int]:
    """The processes that belong to this home."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                found.add(int(directory.name))
        except OSError:
            continue
    return found


def until(control: Control, run: int, reached: Callable[[Status], bool], seconds: float = 40) -> Status:
    assert wait(lambda: reached(control.status(run)), seconds), control.status(run)
    return control.status(run)


def test_a_run_that_finishes(link: launch.SuperLink, project: Path, tmp_path: Path) -> None:
    with Control(link.control) as control:
        run = control.submit(project, {"file": str(tmp_path / "file")})
        assert until(control, run, lambda status: status.over) == ("finished", "completed", "")
        assert (tmp_path / "file").read_text() == "finish"
        control.stop(run)  # it has ended already: nothing to do


def test_a_run_that_raises_says_why(link: launch.SuperLink, project: Path, tmp_path: Path) -> None:
    with Control(link.control) as control:
        run = control.submit(project, {"file": str(tmp_path / "file"), "what": "raise"})
        status = until(control, run, lambda status: status.over)
        assert status.sub_status == "failed" and "the reason" in status.details


def test_a_run_is_stopped(link: launch.SuperLink, project: Path, tmp_path: Path) -> None:
    with Control(link.control) as control:
        run = control.submit(project, {"file": str(tmp_path / "file"), "what": "sleep"})
        until(control, run, lambda status: (tmp_path / "file").exists())
        control.stop(run)
        assert until(control, run, lambda status: status.over).sub_status == "stopped"


def test_an_installed_app_is_kept_for_the_next_run(link: launch.SuperLink, project: Path, tmp_path: Path) -> None:
    """What numba compiled lies beside the source, so it must not be written again."""
    with Control(link.control) as control:
        for name in ("one", "two"):
            run = control.submit(project, {"file": str(tmp_path / name)})
            until(control, run, lambda status: status.over)
            (app,) = (link.log.parent / "apps").iterdir()
            if name == "one":
                (app / "tiny" / "__pycache__").mkdir(exist_ok=True)
                (app / "tiny" / "__pycache__" / "compiled.nbc").write_text("kept")
        assert (app / "tiny" / "__pycache__" / "compiled.nbc").read_text() == "kept"


def test_what_flower_refuses_is_one_sentence(link: launch.SuperLink, project: Path) -> None:
    with Control(link.control) as control:
        with pytest.raises(Failure, match=f"{link.control}"):
            control.submit(project, {"unknown": 1})
        with pytest.raises(Failure, match=r"refused: .*not found"):
            control.status(1)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(Failure, match=rf"did not start: Port .*:{port} is already in use"),
            superlink(tmp_path / "home", fleet=f"127.0.0.1:{port}"),
        ):
            pass
    assert not of(tmp_path / "home")


def test_flowers_own_reason_is_found(tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match=r"did not start: .*supernode-auth. flag requires encrypted TLS"),
        superlink(tmp_path / "home", options=["--insecure", "--enable-supernode-auth"]),
    ):
        pass


def test_a_superlink_that_is_not_there(project: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with Control(address) as control:
        for call in (lambda: control.submit(project, {}), lambda: control.status(1), lambda: control.stop(1)):
            with pytest.raises(Failure, match=f"no SuperLink answers at {address}"):
                call()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP384R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    today = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, today, today + datetime.timedelta(1), [])
    signed = builder.add_extension(here, critical=False).sign(key, hashes.SHA256())
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def test_tls_and_authentication_of_nodes(project: Path, tmp_path: Path) -> None:
    public, secret = certificate(tmp_path)
    options = [
        "--ssl-ca-certfile",
        public,
        "--ssl-certfile",
        public,
        "--ssl-keyfile",
        secret,
        "--enable-supernode-auth",
    ]
    with superlink(tmp_path / "home", options=list(map(str, options))) as link:
        with Control(link.control, public) as control:
            run = control.submit(project, {"file": str(tmp_path / "file")})
            assert until(control, run, lambda status: status.over).sub_status == "completed"
        with Control(link.control) as control, pytest.raises(Failure, match=r"answers at .* \(without TLS\)"):
            control.status(run)


def test_ctrl_c_leaves_nothing_not_even_a_serverapp(project: Path, tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "file"
    script = (
        "import sys, time; from pathlib import Path; from flower.control import Control\n"
        "from flower.launch import superlink\n"
        "home, project, file = sys.argv[1:]\n"
        "with superlink(Path(home)) as link, Control(link.control) as control:\n"
        "    control.submit(Path(project), {'what': 'sleep', 'file': file})\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(home), str(project), str(file)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert wait(file.exists, 40)
            # SuperLink, SuperExec, ServerApp; a library of theirs may run a short child of its own meanwhile.
            assert wait(lambda: len(of(home)) == 3, 20)
            assert {mark.split(":")[0] for pid, mark in marks().items() if pid in of(home)} == {str(process.pid)}
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not of(home)


def test_processes_end_with_their_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that listens, one that does not, and a worker that its parent left behind."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}])"
    log, environ = tmp_path / "log", {"FLWR_HOME": str(tmp_path)}
    monkeypatch.setattr(launch, "END_S", 0.5)
    with suppress(KeyError), processes() as started:
        for code in ("import time; print('ready', flush=True); time.sleep(60)", deaf, parent):
            started.append(spawn([sys.executable, "-c", code], log, environ))
        assert wait(lambda: log.read_text().count("ready") == 3, 20)
        raise KeyError
    assert [process.returncode for process in started] == [-signal.SIGTERM, -signal.SIGKILL, 0]
    assert wait(lambda: not of(tmp_path), 5)


def test_a_node_is_started_from_the_installed_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for secure in (False, True):
        with processes() as started:
            started.append(start_node("127.0.0.1:9092", [0, 3], Path("state"), Path("log"), ["--x"], secure=secure))
            command = started[0].args
        assert isinstance(command, list)
        words = ["--superlink", "127.0.0.1:9092", "--agents", "0,3", "--state", str(tmp_path / "state"), "--x"]
        assert command[1:] == ["-m", "cli.main", "node", *words, *([] if secure else ["--insecure"])]
    assert not running(started)


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"'/no/such' cannot be started: No such file"):
        spawn(["/no/such"], tmp_path / "log", {})


def test_the_bundle_is_flowers_and_takes_no_walk_through_what_is_ignored(project: Path) -> None:
    for name in (
        ".venv/lib/x.py",
        "out/run/conf.toml",
        ".ci/x.yml",
        "deep/out/x.py",
        "tiny/test_x.py",
        "tiny/notes.md",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / ".gitignore").write_text("/out/\n*.json\n")
    assert bundle(project) == build_fab_from_disk(project)
    begun = time.monotonic()
    ours = bundle(ROOT)
    assert time.monotonic() - begun < 3  # Flower's own takes 5 s beside a virtual environment
    assert len(ours) < 5 * 2**20  # half of what Flower takes
    with pytest.raises(Mistake, match="cannot be bundled as a Flower app"):
        bundle(project / "tiny")


@pytest.mark.slow
def test_a_superlink_killed_and_restarted_on_its_database(project: Path, tmp_path: Path) -> None:
    """The run that was going fails a minute later, one that had not begun begins, and new runs work."""
    home = tmp_path / "home"
    files = [tmp_path / name for name in ("going", "waiting", "new")]
    with superlink(home, database=tmp_path / "state.db") as link, Control(link.control) as control:
        going = control.submit(project, {"what": "sleep", "file": str(files[0])})
        until(control, going, lambda status: files[0].exists())
        (serverapp,) = (pid for pid in of(home) if "flwr-serverapp" in launch.command(pid))
        waiting = control.submit(project, {"file": str(files[1])})
        link.process.kill()
        link.process.wait()  # a zombie would still count as a parent
        # Each looks for its parent five times a second; the ServerApp then spends 10 s on last words to nobody.
        assert wait(lambda: serverapp not in of(home), 40)
    assert not of(home)
    again = superlink(home, database=tmp_path / "state.db", fleet=link.fleet, control=link.control)
    with again as link, Control(link.control) as control:
        assert control.status(going) == ("running", "", "")  # nobody is there, and nobody will be
        until(control, waiting, lambda status: status.over, 100)
        new = control.submit(project, {"file": str(files[2])})
        assert until(control, new, lambda status: status.over).sub_status == "completed"
        assert until(control, going, lambda status: status.over, 80) == (
            "finished", "failed", "No heartbeat received from the task",
        )  # fmt: skip
    assert files[1].exists() and files[2].exists()


@pytest.mark.slow
def test_a_serverapp_that_is_killed_is_missed_after_a_minute(
    link: launch.SuperLink, project: Path, tmp_path: Path
) -> None:
    with Control(link.control) as control:
        run = control.submit(project, {"file": str(tmp_path / "file"), "what": "sleep"})
        until(control, run, lambda status: (tmp_path / "file").exists())
        send({pid for pid in of(link.log.parent) if "flwr-serverapp" in launch.command(pid)}, signal.SIGKILL)
        assert control.status(run).status == "running"
        assert until(control, run, lambda status: status.over, 90).details == "No heartbeat received from the task"
