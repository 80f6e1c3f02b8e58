"""Checks of ``fedrl doctor``: Python and the installed packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from cli.findings import Finding

SHOWN = ("flwr", "grpcio", "protobuf", "torch", "numpy", "numba", "gymnasium", "ray")
INSTALL = "pip install -c constraints.txt -e"

Installed = Callable[[str], metadata.Distribution | None]


def check_python(required: str, version: str) -> Finding:
    """Check the version of Python against the one that fedrl requires."""
    if Requirement(f"python{required}").specifier.contains(version):
        return Finding("Python", version)
    return Finding("Python", version, "wrong", f"fedrl needs Python {required}: make .venv with a newer one")


def installed(name: str) -> metadata.Distribution | None:
    """Return an installed package, or None."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages(project: Mapping[str, Any], pins: Mapping[str, str], find: Installed) -> Iterator[Finding]:
    """Check fedrl and everything it requires; packages that fit are left out unless they are in ``SHOWN``."""
    fedrl = find("fedrl")
    if fedrl is None:
        yield Finding("fedrl", "not installed", "wrong", f"{INSTALL} .")
    elif fedrl.version != project["version"]:
        yield Finding("fedrl", fedrl.version, "note", f"this folder is {project['version']}: {INSTALL} .")
    else:
        yield Finding("fedrl", fedrl.version)
    needed = [need for text in project["dependencies"] for need in with_extras(Requirement(text), find)]
    order = {name: k for k, name in enumerate(SHOWN)}
    for need in sorted(needed, key=lambda need: order.get(need.name, len(order))):
        finding = check_package(need, pins, find)
        if need.name in SHOWN or finding.verdict != "ok":
            yield finding


def check_package(need: Requirement, pins: Mapping[str, str], find: Installed) -> Finding:
    """Check one package against the versions that fedrl allows and the version that was tested."""
    package = find(need.name)
    if package is None:
        return Finding(need.name, "not installed", "wrong", f"{INSTALL} .")
    tested = pins.get(need.name)
    if not need.specifier.contains(package.version, prereleases=True):
        return Finding(need.name, package.version, "wrong", f"fedrl needs {need.specifier}: {INSTALL} .")
    if tested is not None and Version(package.version).public != tested:
        return Finding(need.name, package.version, "note", f"tested with {tested}")
    return Finding(need.name, package.version)


def with_extras(need: Requirement, find: Installed) -> Iterator[Requirement]:
    """Yield a requirement and those of its extras: flwr[simulation] is flwr and ray."""
    yield need
    package = find(need.name)
    for text in (package.requires or []) if package is not None else []:
        inner = Requirement(text)
        if inner.marker is None or inner.marker.evaluate({"extra": ""}):
            continue  # it is installed without an extra as well
        if any(inner.marker.evaluate({"extra": extra}) for extra in need.extras):
            yield inner


def check_extras(extras: Mapping[str, list[str]], find: Installed) -> Iterator[Finding]:
    """Check the optional extras."""
    for extra, texts in extras.items():
        needed = [need for text in texts for need in with_extras(Requirement(text), find)]
        missing = [need.name for need in needed if check_package(need, {}, find).verdict == "wrong"]
        if missing:
            yield Finding(
                f"extra {extra}", f"without {', '.join(missing)}", "note", f"to install it: {INSTALL} '.[{extra}]'"
            )
        else:
            yield Finding(f"extra {extra}", "installed")


def read_pins(path: Path) -> dict[str, str]:
    """Return the versions in constraints.txt by package; none if the file does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("==") for line in map(str.strip, lines) if "==" in line and not line.startswith("#"))


BOX2D_WORLD = "import Box2D; world = Box2D.b2World(); world.CreateDynamicBody().CreateCircleFixture(radius=1)"


def check_box2d(error: str | None) -> Finding:
    """Check Box2D, of which ``error`` is why it failed in a process of its own: compiled code may crash."""
    if error is not None:
        return Finding("Box2D", error, "wrong", f"{INSTALL} . --force-reinstall --no-deps box2d")
    return Finding("Box2D", "makes a world")
