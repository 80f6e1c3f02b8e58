"""The processes of a federation on this machine: a stock SuperLink, nodes, peers.

Every process that is started here is stopped here, on success, on an error and on Ctrl-C: SIGTERM, a bounded wait,
SIGKILL.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen

from core.errors import Failure

START_S = 60.0  # for a SuperLink to serve; 2 s on an idle machine
LEAVE_S = 4.0  # for a ServerApp to exit after its run; it takes 1 s
FLOWER_END_S = 5.0  # for Flower's processes to exit after SIGTERM; they take 0.5 s, or never do
END_S = 10.0  # for a node to save its state and exit

# Without these Flower sends telemetry, checks for updates, and replaces installed packages.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
# Marks the descendants of a SuperLink: the process id of its starter, and a number. SuperExec and the ServerApps
# inherit the variable. They move to sessions of their own, so a process group would not find them.
MARK = "FEDRL_STARTED_BY"
# The log of the SuperLink of a local simulation, below FLWR_HOME.
LOCAL_LOG = "local-superlink/superlink.log"


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink: its addresses for nodes (fleet) and for runs (control)."""

    fleet: str
    control: str
    log: Path
    process: Popen[bytes]


@contextmanager
def superlink(
    home: Path,
    *,
    fleet: str = "127.0.0.1:0",
    control: str = "127.0.0.1:0",
    database: Path | None = None,
    options: Sequence[str] = ("--insecure",),
    log: Path | None = None,
) -> Iterator[SuperLink]:
    """Run a stock SuperLink until the end of the block; port 0 means a free port.

    ``home`` keeps the installed apps, so the next SuperLink with this home reuses what numba compiled for them. The
    ``log`` is home/superlink.log by default. The ports are read from it, so concurrent SuperLinks may share a home but
    not a log. ``options`` are those of flower-superlink, such as those of TLS and of node authentication.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    log = log or home / "superlink.log"
    binaries = Path(sys.executable).parent
    arguments = [
        str(binaries / "flower-superlink"), *options, "--fleet-api-address", fleet, "--control-api-address", control,
        "--serverappio-api-address", "127.0.0.1:0", "--health-server-address", "127.0.0.1:0",
    ]  # fmt: skip
    if database is not None:
        arguments += ["--database", str(database.resolve())]
    mark = f"{os.getpid()}:{time.monotonic_ns()}"
    # It starts its helpers by name, so the folder of this Python must come first.
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
    before = log.stat().st_size if log.exists() else 0
    process = spawn(arguments, log, QUIET | {"FLWR_HOME": str(home), "PATH": path, MARK: mark})
    try:
        yield ready(process, log, before)
    finally:
        # A signal to a ServerApp that is exiting can deadlock Flower's exit handlers.
        if sys.exc_info()[0] is not KeyboardInterrupt:
            wait(lambda: not any("flwr-serverapp" in command(pid) for pid in marked(mark)), LEAVE_S)
        end(lambda: marked(mark) | running([process]), FLOWER_END_S)


def ready(process: Popen[bytes], log: Path, before: int) -> SuperLink:
    """Wait until the SuperLink serves. It logs every port that it binds, and its health service last."""

    def output() -> str:
        return re.sub(r"\x1b\[\d*m", "", log.read_bytes()[before:].decode(errors="replace"))

    wait(lambda: process.poll() is not None or "Starting gRPC health server" in output(), START_S)
    if process.poll() is not None or "Starting gRPC health server" not in output():
        lines = [line for line in output().splitlines() if line.strip()] or ["it printed nothing"]
        codes = [k for k, line in enumerate(lines[:-1]) if "Exit Code: " in line]
        reason = lines[codes[-1] + 1 if codes else -1].strip()  # Flower prints the reason below the code, then a link
        late = f" within {START_S:.0f} s" if process.poll() is None else ""
        raise Failure(f"the SuperLink did not start{late}: {reason} (its log: {log})")
    fleet, control = (re.findall(rf"Starting {name} API.* on (\S+)", output())[-1] for name in ("Fleet", "Control"))
    return SuperLink(fleet, control, log, process)


def start_node(
    fleet: str, agents: Sequence[int], state: Path, log: Path, extra: Sequence[str] = (), *, secure: bool = False
) -> Popen[bytes]:
    """Start a node that hosts these agents; ``extra`` are more options, those of TLS if ``secure``."""
    options = ["--superlink", fleet, "--agents", ",".join(map(str, agents)), "--state", str(state.resolve()), *extra]
    arguments = [sys.executable, "-m", "cli.main", "node", *options, *([] if secure else ["--insecure"])]
    return spawn(arguments, log, QUIET, Path(__file__).parents[1])


def start_peer(conf: Path, number: int, directory: Path, log: Path) -> Popen[bytes]:
    """Start a peer of a network without a server."""
    arguments = [sys.executable, "-m", "cli.main", "peer", str(conf), "--id", str(number), "--out", str(directory)]
    return spawn(arguments, log, QUIET, Path(__file__).parents[1])


@contextmanager
def processes() -> Iterator[list[Popen[bytes]]]:
    """Stop every process that was added to the list, and the workers that it left behind."""
    started: list[Popen[bytes]] = []
    try:
        yield started
    finally:
        try:
            # Signal only the process itself: it stops its own workers, after their state is saved.
            end(lambda: running(started), END_S)
        finally:
            for process in started:
                with suppress(ProcessLookupError, PermissionError):  # the group has ended
                    os.killpg(process.pid, signal.SIGKILL)


def spawn(arguments: Sequence[str], log: Path, environ: Mapping[str, str], cwd: Path | None = None) -> Popen[bytes]:
    """Start a process whose output goes to ``log``, in its own session: Ctrl-C in the terminal does not reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            return Popen(
                arguments, cwd=cwd, env=os.environ | environ, start_new_session=True,
                stdin=DEVNULL, stdout=output, stderr=STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise Failure(f"'{arguments[0]}' cannot be started: {error.strerror}") from None


def running(started: Sequence[Popen[bytes]]) -> set[int]:
    """Return the ids of the processes that have not ended."""
    return {process.pid for process in started if process.poll() is None}


def marked(mark: str) -> set[int]:
    """Return the processes with this mark; none on a system without /proc, where they end with their parent."""
    return {pid for pid, other in marks().items() if other == mark}


def marks() -> dict[int, str]:
    """Return every process that descends from a SuperLink of ours, and its mark."""
    by_process = {process: environment(process).get(MARK) for process in all_processes()}
    return {process: mark for process, mark in by_process.items() if mark is not None}


def background() -> dict[int, dict[str, str]]:
    """Return the environment of every local SuperLink of ours that `flwr run` has started and left, by process id."""
    lines = {process: command(process) for process in all_processes()}
    left = [process for process, line in lines.items() if "flower-superlink" in line and LOCAL_LOG in line]
    return {process: environ for process in left if (environ := environment(process))}


def all_processes() -> list[int]:
    """Return the ids of all processes; none on a system without /proc."""
    return [int(directory.name) for directory in Path("/proc").glob("[0-9]*")]


def environment(pid: int) -> dict[str, str]:
    """Return the initial environment of a process; empty if it has ended or belongs to another user."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def command(pid: int) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def end(alive: Callable[[], set[int]], seconds: float) -> None:
    """Terminate processes, wait, and kill those that remain; a second Ctrl-C kills them at once."""
    try:
        send(alive(), signal.SIGTERM)
        wait(lambda: not alive(), seconds)
    finally:
        send(alive(), signal.SIGKILL)
        wait(lambda: not alive(), seconds)


def send(pids: set[int], number: signal.Signals) -> None:
    """Send a signal to processes; those that have ended are skipped."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait(until: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; return whether it did in time."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_port() -> int:
    """Return a free port, outside the range from which the system takes ports for outgoing connections."""
    for port in random.SystemRandom().sample(range(16_384, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Failure("no port is free on this machine: end some of the servers on it")
