"""Checks of ``fedrl doctor``: the path, environment variables, and Docker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cli.findings import ACTIVATE, THREADS, Finding


def check_path(found: str | None, binaries: Path) -> Finding:
    """Check the SuperLink that `flwr run .` would start; `fedrl` itself starts the one beside its own Python."""
    name = "flower-superlink"
    if found is None:
        return Finding(name, "not on PATH", "note", f"`flwr run .` needs it: {ACTIVATE}")
    if Path(found).parent != binaries:
        return Finding(name, found, "note", f"not the one in {binaries}: {ACTIVATE}")
    return Finding(name, found)


def exported(path: Path) -> dict[str, str]:
    """Return the variables that `activate` exports, by name; none if the file does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.removeprefix("export ").split("=") for line in lines if line.startswith("export "))


def check_environment(environ: Mapping[str, str], wanted: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """Check the variables that change what Flower, Ray and BLAS do."""
    for name, value in wanted.items():
        have = environ.get(name)
        if have == value:
            yield Finding(name, have)
        elif have is not None and name.endswith(THREADS):
            yield check_threads(name, have, cores)
        else:
            yield Finding(
                name, have or "not set", "note", f"must be {value} before you call flwr or Ray yourself: {ACTIVATE}"
            )
    for name in sorted(name for name in environ if name.startswith("RAY_") and name not in wanted):
        joins_cluster = name == "RAY_ADDRESS"
        remedy = "the engine ray will use that cluster; unset it to run here" if joins_cluster else ""
        yield Finding(name, environ[name], "note" if joins_cluster else "ok", remedy)


def check_threads(name: str, threads: str, cores: int) -> Finding:
    if not threads.isdecimal() or not int(threads):
        return Finding(name, threads, "wrong", f"it must be a number of threads, 1 or more: {ACTIVATE}")
    if int(threads) > cores:
        return Finding(name, threads, "note", f"more threads than cores ({cores}) are slower, not faster")
    return Finding(name, threads)


def check_docker(which: Callable[[str], str | None], error_of: Callable[[list[str]], str | None]) -> Iterator[Finding]:
    """Check Docker and Docker Compose; only the containers need them."""
    path = which("docker")
    if path is None:
        yield Finding("docker", "not found", "note", "only containers need it")
        return
    if error_of([path, "info"]) is None:
        yield Finding("docker", path)
    else:
        yield Finding(
            "docker", f"{path}, but no daemon answers", "note", "start it, or add your user to the group docker"
        )
    standalone = which("docker-compose")
    if error_of([path, "compose", "version"]) is None:
        yield Finding("docker compose", "found")
    elif standalone is not None and error_of([standalone, "version"]) is None:
        yield Finding("docker compose", f"{standalone}: type docker-compose where the documents say docker compose")
    else:
        yield Finding("docker compose", "not found", "note", "install its plugin (docker-compose-plugin)")
