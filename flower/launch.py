"""A federation on this machine: a stock SuperLink, and nodes of ours.

Whatever is started here is stopped here, on success, on an error and on Ctrl-C: SIGTERM, a bounded wait, SIGKILL.
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

START_S = 60.0  # until a SuperLink serves; 2 s on an idle machine
LEAVE_S = 4.0  # until a ServerApp whose run is over has left; it takes 1 s
FLOWER_END_S = 5.0  # until Flower's processes end when told to; 0.5 s, or never
END_S = 10.0  # until a node of ours has saved its state and ended

# Without these Flower reports home, looks for updates, and installs packages over those we were tested with.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
# Who started a SuperLink: process id, and a number. SuperExec and the ServerApps inherit it; each moves to a session of
# its own, so a process group would not find them.
MARK = "FEDRL_STARTED_BY"
# The file, below FLWR_HOME, that the SuperLink of a local simulation logs to.
LOCAL_LOG = "local-superlink/superlink.log"


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that serves: where it takes nodes (fleet) and runs (control)."""

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
    """A stock SuperLink until the end of the block; port 0 is a free one.

    ``home`` keeps the installed apps: with the same home, what an app compiled is there the next time. The ``log`` is
    home/superlink.log; the ports are read there, so SuperLinks of one time may share a home but not a log.
    ``options`` are flower-superlink's own, such as those of TLS and of node authentication.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    log = log or home / "superlink.log"
    binaries = Path(sys.executable).parent
    words = [
        str(binaries / "flower-superlink"), *options, "--fleet-api-address", fleet, "--control-api-address", control,
        "--serverappio-api-address", "127.0.0.1:0", "--health-server-address", "127.0.0.1:0",
    ]  # fmt: skip
    if database is not None:
        words += ["--database", str(database.resolve())]
    mark = f"{os.getpid()}:{time.monotonic_ns()}"
    # It starts its helpers by name, so ours must come first.
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
    before = log.stat().st_size if log.exists() else 0
    process = spawn(words, log, QUIET | {"FLWR_HOME": str(home), "PATH": path, MARK: mark})
    try:
        yield ready(process, log, before)
    finally:
        # A signal to a ServerApp that is leaving locks it up, in Flower's exit handlers.
        if sys.exc_info()[0] is not KeyboardInterrupt:
            wait(lambda: not any("flwr-serverapp" in command(pid) for pid in marked(mark)), LEAVE_S)
        end(lambda: marked(mark) | running([process]), FLOWER_END_S)


def ready(process: Popen[bytes], log: Path, before: int) -> SuperLink:
    """Waits until the SuperLink serves. It logs every port it binds, and its health service last."""

    def said() -> str:
        return re.sub(r"\x1b\[\d*m", "", log.read_bytes()[before:].decode(errors="replace"))

    wait(lambda: process.poll() is not None or "Starting gRPC health server" in said(), START_S)
    if process.poll() is not None or "Starting gRPC health server" not in said():
        lines = [line for line in said().splitlines() if line.strip()] or ["it said nothing"]
        codes = [k for k, line in enumerate(lines[:-1]) if "Exit Code: " in line]
        reason = lines[codes[-1] + 1 if codes else -1].strip()  # Flower's reason stands under the code, then a link
        late = f" within {START_S:.0f} s" if process.poll() is None else ""
        raise Failure(f"the SuperLink did not start{late}: {reason} (its log: {log})")
    fleet, control = (re.findall(rf"Starting {name} API.* on (\S+)", said())[-1] for name in ("Fleet", "Control"))
    return SuperLink(fleet, control, log, process)


def start_node(
    fleet: str, agents: Sequence[int], state: Path, log: Path, extra: Sequence[str] = (), *, secure: bool = False
) -> Popen[bytes]:
    """A long-lived node of ours that hosts these agents; ``extra`` are more options, those of TLS if ``secure``."""
    options = ["--superlink", fleet, "--agents", ",".join(map(str, agents)), "--state", str(state.resolve()), *extra]
    words = [sys.executable, "-m", "cli.main", "node", *options, *([] if secure else ["--insecure"])]
    return spawn(words, log, QUIET, Path(__file__).parents[1])


def start_peer(conf: Path, number: int, directory: Path, log: Path) -> Popen[bytes]:
    """A peer of a network without a server."""
    words = [sys.executable, "-m", "cli.main", "peer", str(conf), "--id", str(number), "--out", str(directory)]
    return spawn(words, log, QUIET, Path(__file__).parents[1])


@contextmanager
def processes() -> Iterator[list[Popen[bytes]]]:
    """Stops every process that was put into the list, and the workers that it left."""
    started: list[Popen[bytes]] = []
    try:
        yield started
    finally:
        try:
            # Only the process itself is told: its workers are its own to stop, after their state is saved.
            end(lambda: running(started), END_S)
        finally:
            for process in started:
                with suppress(ProcessLookupError, PermissionError):  # nobody is left
                    os.killpg(process.pid, signal.SIGKILL)


def spawn(words: Sequence[str], log: Path, environ: Mapping[str, str], cwd: Path | None = None) -> Popen[bytes]:
    """Starts a process in a session of its own: Ctrl-C in the terminal reaches only us. Its output goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            return Popen(
                words, cwd=cwd, env=os.environ | environ, start_new_session=True,
                stdin=DEVNULL, stdout=output, stderr=STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise Failure(f"'{words[0]}' cannot be started: {error.strerror}") from None


def running(started: Sequence[Popen[bytes]]) -> set[int]:
    """Those that have not ended yet, by process id."""
    return {process.pid for process in started if process.poll() is None}


def marked(mark: str) -> set[int]:
    """The processes whose environment holds this mark; none where there is no /proc, there they follow their parent."""
    return {pid for pid, found in marks().items() if found == mark}


def marks() -> dict[int, str]:
    """Every process of ours that descends from a SuperLink, and its mark."""
    found = {process: environment(process).get(MARK) for process in all_processes()}
    return {process: mark for process, mark in found.items() if mark is not None}


def background() -> dict[int, dict[str, str]]:
    """Return the environment of every local SuperLink of ours that `flwr run` has started and left, by process id."""
    lines = {process: command(process) for process in all_processes()}
    left = [process for process, line in lines.items() if "flower-superlink" in line and LOCAL_LOG in line]
    return {process: environ for process in left if (environ := environment(process))}


def all_processes() -> list[int]:
    """The ids of all processes; none where there is no /proc."""
    return [int(directory.name) for directory in Path("/proc").glob("[0-9]*")]


def environment(pid: int) -> dict[str, str]:
    """The environment that a process began with; empty when it has ended, or belongs to somebody else."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def command(pid: int) -> str:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def end(alive: Callable[[], set[int]], seconds: float) -> None:
    """Tells processes to stop, waits, and kills those that stay; a second Ctrl-C kills them at once."""
    try:
        send(alive(), signal.SIGTERM)
        wait(lambda: not alive(), seconds)
    finally:
        send(alive(), signal.SIGKILL)
        wait(lambda: not alive(), seconds)


def send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait(until: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_port() -> int:
    """A port that was free a moment ago; one that no connection is given by itself, which could take it meanwhile."""
    for port in random.SystemRandom().sample(range(16_384, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Failure("no port is free on this machine: end some of the servers on it")
