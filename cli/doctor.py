"""``fedrl doctor``: what is installed, whether it fits, and what to do where it does not.

A check is a function of what it looks at, which the command hands in, so that a test can hand in something broken.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.errors import Failure

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("flwr", "grpcio", "protobuf", "torch", "numpy", "numba", "gymnasium", "ray")
PORTS = {9091: "ServerAppIo", 9092: "Fleet", 9093: "Control"}
ACTIVATE = ". ./activate"
THREADS = "_NUM_THREADS"
INSTALL = "pip install -c constraints.txt -e"
STYLE = {"ok": "green", "note": "yellow", "wrong": "bold red"}
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """A line of the report; the verdict is ok, note (works, but should be known) or wrong."""

    name: str
    found: str
    verdict: str = "ok"
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """What is installed here, whether it fits, and what to do where it does not."""
    from flower.launch import background, marks

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    findings = [
        check_python(project["requires-python"], ".".join(map(str, sys.version_info[:3]))),
        *check_packages(project, read_pins(ROOT / "constraints.txt"), installed),
        *check_extras(project["optional-dependencies"], installed),
        check_box2d(failure([sys.executable, "-c", WORLD])),
        check_cores(available_cores(), os.getloadavg()[0]),
        check_memory(available_memory()),
        check_disk("disk here", Path.cwd(), shutil.disk_usage(Path.cwd()).free),
        check_disk(
            "disk for temporary files", Path(tempfile.gettempdir()), shutil.disk_usage(tempfile.gettempdir()).free
        ),
        *(check_port(port, is_free, holder) for port in PORTS),
        check_path(shutil.which("flower-superlink"), Path(sys.executable).parent),
        *check_environment(os.environ, exported(ROOT / "activate"), available_cores()),
        *check_docker(shutil.which, failure),
        check_strays(marks(), is_alive),
        *check_background(background(), exported(ROOT / "activate")),
    ]
    wrong = [finding.name for finding in findings if finding.verdict == "wrong"]
    if as_json:
        print(json.dumps({"ok": not wrong, "wrong": wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        show(findings)
    if wrong:
        raise Failure(f"wrong here: {', '.join(wrong)}")


def show(findings: Iterable[Finding]) -> None:
    rows = Table("", "found", "", "what to do", box=None)
    for one in findings:
        rows.add_row(one.name, Text(one.found), Text(one.verdict, STYLE[one.verdict]), Text(one.remedy))
    Console().print(rows)


# What is installed.


def check_python(required: str, version: str) -> Finding:
    if Requirement(f"python{required}").specifier.contains(version):
        return Finding("Python", version)
    return Finding("Python", version, "wrong", f"fedrl needs Python {required}: make .venv with a newer one")


Installed = Callable[[str], metadata.Distribution | None]


def installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages(project: Mapping[str, Any], pins: Mapping[str, str], find: Installed) -> Iterator[Finding]:
    """Ourselves, and everything we require; what fits and is of no interest is left out."""
    us = find("fedrl")
    if us is None:
        yield Finding("fedrl", "not installed", "wrong", f"{INSTALL} .")
    elif us.version != project["version"]:
        yield Finding("fedrl", us.version, "note", f"this folder is {project['version']}: {INSTALL} .")
    else:
        yield Finding("fedrl", us.version)
    needed = [need for text in project["dependencies"] for need in with_extras(Requirement(text), find)]
    order = {name: k for k, name in enumerate(SHOWN)}
    for need in sorted(needed, key=lambda need: order.get(need.name, len(order))):
        finding = check_package(need, pins, find)
        if need.name in SHOWN or finding.verdict != "ok":
            yield finding


def check_package(need: Requirement, pins: Mapping[str, str], find: Installed) -> Finding:
    """One package against what we may be installed beside, and against what was tested."""
    have = find(need.name)
    if have is None:
        return Finding(need.name, "not installed", "wrong", f"{INSTALL} .")
    tested = pins.get(need.name)
    if not need.specifier.contains(have.version, prereleases=True):
        return Finding(need.name, have.version, "wrong", f"fedrl needs {need.specifier}: {INSTALL} .")
    if tested is not None and Version(have.version).public != tested:
        return Finding(need.name, have.version, "note", f"tested with {tested}")
    return Finding(need.name, have.version)


def with_extras(need: Requirement, find: Installed) -> Iterator[Requirement]:
    """A requirement, and those that its extras bring: flwr[simulation] is flwr and ray."""
    yield need
    have = find(need.name)
    for text in (have.requires or []) if have is not None else []:
        inner = Requirement(text)
        if inner.marker is None or inner.marker.evaluate({"extra": ""}):
            continue  # it comes along without an extra
        if any(inner.marker.evaluate({"extra": extra}) for extra in need.extras):
            yield inner


def check_extras(extras: Mapping[str, list[str]], find: Installed) -> Iterator[Finding]:
    """What an install may leave out."""
    for extra, texts in extras.items():
        needed = [need for text in texts for need in with_extras(Requirement(text), find)]
        bad = [need.name for need in needed if check_package(need, {}, find).verdict == "wrong"]
        if bad:
            yield Finding(
                f"extra {extra}", f"without {', '.join(bad)}", "note", f"if you want it: {INSTALL} '.[{extra}]'"
            )
        else:
            yield Finding(f"extra {extra}", "installed")


def read_pins(path: Path) -> dict[str, str]:
    """Name -> version of constraints.txt; none where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("==") for line in map(str.strip, lines) if "==" in line and not line.startswith("#"))


WORLD = "import Box2D; world = Box2D.b2World(); world.CreateDynamicBody().CreateCircleFixture(radius=1)"


def failure(words: list[str]) -> str | None:
    """Why a command fails: the last line it says. None if it works."""
    try:
        done = subprocess.run(words, capture_output=True, timeout=20, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.splitlines() or ["it crashed"])[-1] if done.returncode else None


def check_box2d(why: str | None) -> Finding:
    """It is compiled: it may be installed and not run, or crash, so it is tried in a process of its own."""
    if why is not None:
        return Finding("Box2D", why, "wrong", f"{INSTALL} . --force-reinstall --no-deps box2d")
    return Finding("Box2D", "makes a world")


# The machine.


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(cores: int, load: float) -> Finding:
    found = f"{cores}, load {load:.1f}"
    if load > 0.5 * cores + 0.5:
        return Finding("cores", found, "note", "others are at work: runs and measurements will be slower")
    return Finding("cores", found)


def available_memory() -> int | None:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def check_memory(free: int | None) -> Finding:
    if free is None:
        return Finding("memory", "unknown")
    found = f"{free / GIB:.1f} GiB free"
    if free < GIB / 2:
        return Finding("memory", found, "wrong", "a node alone takes 0.5 GiB: end something")
    if free < 2 * GIB:
        return Finding("memory", found, "note", "a node takes 0.5 GiB, a run in Ray 2 GiB")
    return Finding("memory", found)


def check_disk(name: str, path: Path, free: int) -> Finding:
    found = f"{free / GIB:.1f} GiB free in {path}"
    if free < GIB / 4:
        return Finding(name, found, "wrong", "checkpoints will not fit: make room")
    if free < 2 * GIB:
        return Finding(name, found, "note", "replays of large fleets take gigabytes")
    return Finding(name, found)


def is_free(port: int) -> bool:
    """Tried as a SuperLink would."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def holder(port: int) -> tuple[int, str] | None:
    """Process and command that listen on a port; None if it is somebody else's, or this is not Linux."""
    from flower.launch import command

    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:  # 0A: it listens
                    sockets.add(f"socket:[{words[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) in sockets:
                pid = int(descriptor.parts[2])
                return pid, command(pid)
    return None


def check_port(port: int, free: Callable[[int], bool], who: Callable[[int], tuple[int, str] | None]) -> Finding:
    """`fedrl run` takes free ports; a SuperLink that is started by hand takes these."""
    name = f"port {port} ({PORTS.get(port, 'ours')})"
    if free(port):
        return Finding(name, "free")
    held = who(port)
    if held is None:
        return Finding(name, "in use, by whom is not ours to see", "wrong", elsewhere(port))
    pid, words = held
    if "flower-superlink" in words:
        return Finding(name, f"a SuperLink, process {pid}", "note", "nodes and runs may use it")
    return Finding(name, f"in use by process {pid}: {words[:60]}", "wrong", f"end it, or {elsewhere(port)}")


def elsewhere(port: int) -> str:
    option = {9091: "serverappio", 9092: "fleet", 9093: "control"}.get(port, "fleet")
    return f"give flower-superlink another --{option}-api-address"


def check_path(found: str | None, binaries: Path) -> Finding:
    """`flwr run .` starts a SuperLink by this name. `fedrl` itself looks beside its own Python."""
    name = "flower-superlink"
    if found is None:
        return Finding(name, "not on PATH", "note", f"`flwr run .` needs it: {ACTIVATE}")
    if Path(found).parent != binaries:
        return Finding(name, found, "note", f"not the one in {binaries}: {ACTIVATE}")
    return Finding(name, found)


def exported(path: Path) -> dict[str, str]:
    """Name -> value of the variables that `activate` exports; none where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.removeprefix("export ").split("=") for line in lines if line.startswith("export "))


def check_environment(environ: Mapping[str, str], wanted: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """The variables that change what Flower, Ray and the numerics do."""
    for name, value in wanted.items():
        have = environ.get(name)
        if have == value:
            yield Finding(name, have)
        elif have is not None and name.endswith(THREADS):
            yield check_threads(name, have, cores)
        else:
            yield Finding(name, have or "not set", "note", f"should be {value} for flwr and Ray by hand: {ACTIVATE}")
    for name in sorted(name for name in environ if name.startswith("RAY_") and name not in wanted):
        joins = name == "RAY_ADDRESS"
        remedy = "the engine ray will join that cluster; unset it to run here" if joins else ""
        yield Finding(name, environ[name], "note" if joins else "ok", remedy)


def check_threads(name: str, threads: str, cores: int) -> Finding:
    if not threads.isdecimal() or not int(threads):
        return Finding(name, threads, "wrong", f"it must be a number of threads, 1 or more: {ACTIVATE}")
    if int(threads) > cores:
        return Finding(name, threads, "note", f"more threads than cores ({cores}) are slower, not faster")
    return Finding(name, threads)


def check_docker(which: Callable[[str], str | None], why: Callable[[list[str]], str | None]) -> Iterator[Finding]:
    """Needed by nothing but the containers."""
    path = which("docker")
    if path is None:
        yield Finding("docker", "not found", "note", "only containers need it")
        return
    if why([path, "info"]) is None:
        yield Finding("docker", path)
    else:
        yield Finding("docker", f"{path}, but no daemon answers", "note", "start it, or join its group")
    older = which("docker-compose")
    if why([path, "compose", "version"]) is None:
        yield Finding("docker compose", "found")
    elif older is not None and why([older, "version"]) is None:
        yield Finding("docker compose", f"{older}: where the documents say docker compose, say docker-compose")
    else:
        yield Finding("docker compose", "not found", "note", "install its plugin (docker-compose-plugin)")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_strays(marks: Mapping[int, str], alive: Callable[[int], bool]) -> Finding:
    """SuperLinks and what they started, whose `fedrl` is gone: it was killed before it could end them."""
    strays = [pid for pid, mark in marks.items() if not alive(int(mark.split(":")[0]))]
    if strays:
        numbers = " ".join(map(str, sorted(strays)))
        return Finding("left behind", f"{len(strays)} processes of a SuperLink of ours", "wrong", f"kill {numbers}")
    return Finding("left behind", f"nothing, {len(marks)} at work" if marks else "nothing")


def check_background(found: Mapping[int, Mapping[str, str]], wanted: Mapping[str, str]) -> Iterator[Finding]:
    """The SuperLink that `flwr run .` starts for a simulation. It stays, and its SuperExec ends with it."""
    name = "left by flwr run"
    if not found:
        yield Finding(name, "nothing")
    for pid, environ in sorted(found.items()):
        words = f"a SuperLink and its SuperExec, process {pid}"
        without = [
            variable
            for variable, value in wanted.items()
            if environ.get(variable) != value and not variable.endswith(THREADS)
        ]
        if without:
            remedy = f"it was started without {', '.join(without)}: kill {pid}, then {ACTIVATE} before flwr"
            yield Finding(name, words, "wrong", remedy)
        else:
            yield Finding(name, words, "note", f"the next `flwr run .` uses it; to end it: kill {pid}")
