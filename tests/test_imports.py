"""Imports run one way. Reads the source of every file, so an import inside a function counts as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOUNDATION = {"core", "runs", "strategies", "agents", "envs"}
# Which of our folders a folder may import, besides itself.
MAY: dict[str, set[str]] = {
    "core": set(),
    "envs": {"core"},
    "agents": {"core"},
    "strategies": {"core"},
    "runs": {"core"},
    "client": FOUNDATION,
    "server": FOUNDATION | {"client"},  # a server is a party with more to do: it has worlds and a fleet of its own
    "cli": FOUNDATION | {"client", "server"},
}
# Which packages of others a folder must do without. core stands under all of them, so it needs what they need.
NEVER: dict[str, set[str]] = {
    "core": {"torch", "flwr", "gymnasium"},
    "envs": {"torch", "flwr"},
    "agents": {"flwr"},
    "strategies": {"torch", "gymnasium"},
}


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
        ("strategies", "from agents.fleet import Fleet", "agents"),
        ("runs", "import agents", "agents"),
        ("client", "from server.rounds import loop", "server"),
        ("gossip", "import cli.main", "cli"),
        ("client", "from ..server import rounds", "relative"),
        ("gossip", "from ...server import rounds", "relative"),
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
        ("strategies", "import flwr\nfrom strategies.rules.robust import mean"),
        ("client", "from runs import checkpoints\nfrom strategies import robust\nimport agents, envs, core"),
        ("gossip", "from . import mixing\nfrom .. import session\nfrom .peer import Peer"),
        ("server", "import strategies, envs\ntorch = load('client')"),
        ("cli", "import client, server, runs"),
    ],
)
def test_what_is_allowed_passes(package: str, source: str) -> None:
    assert violations(source, package) == []
