"""Checks of ``fedrl doctor``: cores, memory, disk, ports, and processes that were left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cli.findings import ACTIVATE, THREADS, Finding

PORTS = {9091: "ServerAppIo", 9092: "Fleet", 9093: "Control"}
GIB = 2**30


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(cores: int, load: float) -> Finding:
    """Check whether other processes keep the cores busy."""
    found = f"{cores}, load {load:.1f}"
    if load > 0.5 * cores + 0.5:
        return Finding("cores", found, "note", "other processes use the cores: runs and measurements will be slower")
    return Finding("cores", found)


def available_memory() -> int | None:
    """Return the free memory in bytes; None where it is unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def check_memory(free: int | None) -> Finding:
    """Check whether the free memory is enough for a node."""
    if free is None:
        return Finding("memory", "unknown")
    found = f"{free / GIB:.1f} GiB free"
    if free < GIB / 2:
        return Finding("memory", found, "wrong", "a node alone needs 0.5 GiB: end other processes")
    if free < 2 * GIB:
        return Finding("memory", found, "note", "a node needs 0.5 GiB, a run in Ray 2 GiB")
    return Finding("memory", found)


def check_disk(name: str, path: Path, free: int) -> Finding:
    """Check whether the free space is enough for checkpoints."""
    found = f"{free / GIB:.1f} GiB free in {path}"
    if free < GIB / 4:
        return Finding(name, found, "wrong", "checkpoints will not fit: free some space")
    if free < 2 * GIB:
        return Finding(name, found, "note", "replay buffers of large fleets need gigabytes")
    return Finding(name, found)


def is_free(port: int) -> bool:
    """Return whether a SuperLink could listen on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def holder(port: int) -> tuple[int, str] | None:
    """Return process id and command that listen on a port; None for another user's process, or outside Linux."""
    from flower.launch import command as command_of

    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: the state LISTEN
                    sockets.add(f"socket:[{fields[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) in sockets:
                pid = int(descriptor.parts[2])
                return pid, command_of(pid)
    return None


def check_port(port: int, free: Callable[[int], bool], find: Callable[[int], tuple[int, str] | None]) -> Finding:
    """Check a port that a SuperLink started by hand uses; `fedrl run` takes free ports."""
    name = f"port {port} ({PORTS.get(port, 'fedrl')})"
    if free(port):
        return Finding(name, "free")
    holding = find(port)
    if holding is None:
        return Finding(name, "in use by a process of another user", "wrong", elsewhere(port))
    pid, command = holding
    if "flower-superlink" in command:
        return Finding(name, f"a SuperLink, process {pid}", "note", "nodes and runs may use it")
    return Finding(name, f"in use by process {pid}: {command[:60]}", "wrong", f"end it, or {elsewhere(port)}")


def elsewhere(port: int) -> str:
    """Return how to start a SuperLink on another port."""
    option = {9091: "serverappio", 9092: "fleet", 9093: "control"}.get(port, "fleet")
    return f"give flower-superlink another --{option}-api-address"


def is_alive(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_strays(marks: Mapping[int, str], alive: Callable[[int], bool]) -> Finding:
    """Check for SuperLinks and their processes whose `fedrl` was killed before it could end them."""
    strays = [pid for pid, mark in marks.items() if not alive(int(mark.split(":")[0]))]
    if strays:
        numbers = " ".join(map(str, sorted(strays)))
        return Finding(
            "left behind", f"{len(strays)} processes of a SuperLink that fedrl started", "wrong", f"kill {numbers}"
        )
    return Finding("left behind", f"nothing, {len(marks)} in use" if marks else "nothing")


def check_background(found: Mapping[int, Mapping[str, str]], wanted: Mapping[str, str]) -> Iterator[Finding]:
    """Check the SuperLink that `flwr run .` started for a simulation: it stays until it is killed."""
    name = "left by flwr run"
    if not found:
        yield Finding(name, "nothing")
    for pid, environ in sorted(found.items()):
        process = f"a SuperLink and its SuperExec, process {pid}"
        unset = [
            variable
            for variable, value in wanted.items()
            if environ.get(variable) != value and not variable.endswith(THREADS)
        ]
        if unset:
            remedy = f"it was started without {', '.join(unset)}: kill {pid}, then {ACTIVATE} before flwr"
            yield Finding(name, process, "wrong", remedy)
        else:
            yield Finding(name, process, "note", f"the next `flwr run .` uses it; to end it: kill {pid}")
