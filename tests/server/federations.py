"""A federation as a test runs it: all agents in one fleet, or each a session of its own behind Flower's apps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

import client.client_app
from client.session import Session
from core.options import flatten
from runs.config import RunConfig
from runs.directory import RunDirectory
from server.engines import prepare
from server.federate import federate
from server.grids import LocalGrid
from server.server_app import app as server_app
from tests.server.test_apps import Here


def local(path: Path, given: RunConfig, session: Session | None = None) -> RunDirectory:
    session = session or prepare(given)
    run = RunDirectory.open(path) if (path / "conf.toml").exists() else RunDirectory.create(path, {})
    federate(given, LocalGrid(session), run, session)
    return run


def here(path: Path, given: RunConfig, monkeypatch: pytest.MonkeyPatch, grid: type[Here] = Here) -> RunDirectory:
    """As over gRPC: every agent a session of its own, every message through Flower's apps."""
    monkeypatch.setenv("FEDRL_STATE", str(path / "state"))
    client.client_app._here.clear()
    flat = flatten(given) | {"directory": str(path), "run": path.name}
    server_app(grid(given.agents, flat), Context(7, 0, {}, RecordDict(), flat, 7))
    return RunDirectory.open(path)


def column(run: RunDirectory, name: str) -> list[Any]:
    return [record.get(name) for record in run.read_metrics()]
