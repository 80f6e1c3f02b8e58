"""Imports run one way. Reads the source of every file, so an import inside a function counts as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Our folders from the lowest to the highest: a folder may import those before it, but for what APART says.
ROOMS = (
    "core", "envs", "agents", "attacks", "strategies", "runs", "flower", "client", "gossip", "server", "fedrl", "cli",
)  # fmt: skip
# Rooms that do without each other although one stands before the other.
APART: dict[str, set[str]] = {
    "agents": {"envs"},
    "attacks": {"envs"},
    "strategies": {"envs", "attacks"},
    "flower": {"envs", "agents", "attacks", "runs"},
}
MAY: dict[str, set[str]] = {room: set(ROOMS[:at]) - APART.get(room, set()) for at, room in enumerate(ROOMS)}
# Which packages of others a folder must do without. core stands under all of them, so it needs what they need.
NEVER: dict[str, set[str]] = {
    "core": {"torch", "flwr", "gymnasium"},
    "envs": {"torch", "flwr"},
    "agents": {"flwr"},
    "attacks": {"flwr", "torch"},
    "strategies": {"torch", "gymnasium"},
}
# What any room may import from Flower; everything else is for flower/ alone.
OPEN_DOORS = ("flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation")


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of everything that a module of ``package`` imports, also by a literal name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the module's own package; more dots than packages above it leave the folder.
            if node.level > len(package.split(".")):
                yield node.lineno, "(a relative import that leaves its folder)"
            elif not node.level:
                yield node.lineno, (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value.split(".")[0]


def violations(source: str, package: str) -> list[str]:
    """Every import that a module of this package (``gossip``) must not have."""
    folder = package.split(".")[0]
    refused = (set(MAY) - MAY[folder] - {folder}) | NEVER.get(folder, set()) | {"tests", "benchmarks"}
    return [
        f"line {line}: {folder} must not import {name}"
        for line, name in imported(source, package)
        if name in refused or name.startswith("(")
    ]


def modules() -> list[Path]:
    return sorted(path for folder in MAY for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    assert violations(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts)) == []


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that is imported, ``from x import y`` as x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def private(source: str) -> list[str]:
    """The imports from Flower that are none of its open doors."""
    return [
        f"line {line}: {name} is for flower/ alone"
        for line, name in names_of(source)
        if name.split(".")[0] == "flwr" and not f"{name}.".startswith(tuple(f"{door}." for door in OPEN_DOORS))
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_private_names_of_flower_stay_in_their_room(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "flower":
        assert private(path.read_text()) == []


def test_a_private_name_is_found() -> None:
    source = "from flwr.app import Message\nfrom flwr.common import log\nimport flwr.proto.fleet_pb2\nimport flwr.app"
    assert private(source) == [
        "line 2: flwr.common.log is for flower/ alone",
        "line 3: flwr.proto.fleet_pb2 is for flower/ alone",
    ]


def edges() -> dict[str, set[str]]:
    """Every module of ours, and the modules of ours that it imports; not those that only a type checker sees."""
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in modules()}
    found: dict[str, set[str]] = {}
    for path in modules():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = {name for _, name in names_of(path.read_text())}
        both = names | {name.rpartition(".")[0] for name in names}
        found[module] = {name for name in both if name in known and name != module}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of modules that leads back to its beginning; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            # A package is there before its modules; that they import each other is how packages work.
            family = module.startswith(f"{other}.") or other.startswith(f"{module}.")
            if not family and (found := visit(other, [*path, module])):
                return found
        done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module, []):
            return found
    return []


def test_files_import_each_other_in_no_circle() -> None:
    assert circle(edges()) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_folder_with_python_has_its_rule() -> None:
    aside = {"tests", "benchmarks", "docs", "docker"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and any(path.glob("*.py"))}
    assert found - aside <= set(MAY)


def test_proto_holds_no_python() -> None:
    """A package of that name would hide proto-plus."""
    assert [path for path in (ROOT / "proto").rglob("*") if path.suffix in (".py", ".pyi", ".pyc")] == []


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("core", "import envs", "envs"),
        ("core", "from runs.directory import RunDirectory", "runs"),
        ("envs", "import torch.nn as nn", "torch"),
        ("agents", "from envs import make_worlds", "envs"),
        ("agents", "def late():\n    from flwr.app import Message", "flwr"),
        ("agents", "if TYPE_CHECKING:\n    import envs.worlds", "envs"),
        ("strategies", "import numpy, torch", "torch"),
        ("strategies", "from gymnasium import spaces", "gymnasium"),
        ("strategies", "from attacks.plan import Plan", "attacks"),
        ("strategies", "from runs.config import RunConfig", "runs"),
        ("runs", "import client", "client"),
        ("client", "from server.rounds import loop", "server"),
        ("gossip", "import cli.main", "cli"),
        ("attacks", "from client.session import Session", "client"),
        ("client", "from gossip.peer import peer", "gossip"),
        ("client", "from ..server import rounds", "relative"),
        ("gossip", "from ..server import rounds", "relative"),
        ("server", "import importlib\nimportlib.import_module('cli.main')", "cli"),
        ("server", "__import__('cli')", "cli"),
        ("cli", "import tests.help", "tests"),
    ],
)
def test_a_violation_is_found(package: str, source: str, name: str) -> None:
    (found,) = violations(source, package)
    assert name in found


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("core", "import numpy\nfrom core.errors import Mistake"),
        ("agents", "import torch\nfrom gymnasium import spaces\nfrom core.rows import Rows\nfrom agents import adam"),
        ("strategies", "import flwr\nfrom strategies.rules.means import mean\nfrom agents.fleet import Fleet"),
        ("client", "from runs import checkpoints\nfrom strategies import robust\nimport agents, envs, core"),
        ("gossip", "from . import mixing\nfrom .peer import Peer\nfrom client import session"),
        ("server", "import strategies, envs\ntorch = load('client')"),
        ("cli", "import client, server, runs"),
    ],
)
def test_what_is_allowed_passes(package: str, source: str) -> None:
    assert violations(source, package) == []
