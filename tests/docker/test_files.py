"""What containers are made of, read and run without Docker."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_no_container_has_a_volume_without_a_name() -> None:
    """At a scale-down Compose removes containers and leaves their anonymous volumes, which `down` does not find."""
    assert not re.search(r"^VOLUME", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source, _, target = volume.rpartition("}")[2].partition(":")
            assert target or source.startswith(":"), f"{name}: {volume}"
            assert volume.startswith("${OUT:-./out}:") or source in COMPOSE["volumes"], f"{name}: {volume}"


def test_nodes_and_peers_may_hold_many_connections() -> None:
    for name in ("client", "client-tls", "superlink", "superlink-tls", "peer-0", "peer-3"):
        assert COMPOSE["services"][name]["ulimits"] == {"nofile": 16384}


ME = os.geteuid() or 1000


def run(script: Path, *words: str | Path, cwd: Path = Path("/"), **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user without rights, whatever its own folder lets others read."""
    return subprocess.run(
        ["sh", "-c", script.read_text(), script.name, *map(str, words)],
        cwd=cwd, env=os.environ | env, user=ME if os.geteuid() == 0 else None, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that others can reach, and that belongs to the user of ``run``."""
    ours = Path(tempfile.gettempdir()).resolve()
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to(ours) and parent != ours:
            parent.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(tmp_path, ME, ME)
    return tmp_path


def test_a_folder_that_can_be_written_or_is_not_there_yet_is_no_fault(folder: Path) -> None:
    done = run(ROOT / "docker/writable.sh", folder, folder / "later", OUT="./out")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_of_root_is_named_with_its_owner_and_what_to_do(folder: Path) -> None:
    done = run(ROOT / "docker/writable.sh", folder, "/usr", OUT="./runs")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"/usr (OUT=./runs on the host) belongs to user 0, and user {ME}, as which this container")
    assert f"sudo chown -R {ME} ./runs" in line
    assert "FEDRL_UID" not in line  # an image for root is not the way


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_another_user_may_also_have_an_image_for_that_user(folder: Path) -> None:
    os.chown(folder, 4321, 4321)
    done = run(ROOT / "docker/writable.sh", folder, OUT="./runs")
    assert done.returncode == 2
    assert "belongs to user 4321" in done.stderr
    assert "FEDRL_UID=4321 docker compose up --build" in done.stderr


@pytest.mark.parametrize("script", ["launch.sh", "introduce.sh"])
@pytest.mark.parametrize("code", [0, 2])
def test_no_work_begins_where_the_folder_cannot_be_written(script: str, code: int, folder: Path) -> None:
    (folder / "docker").mkdir()
    stubs = {
        "docker/writable.sh": f'test "$1" = /out || exit 9; exit {code}',
        "fedrl": "touch called; exit 1",
        "getent": "echo 10.0.0.2 STREAM client",
    }
    for name, text in stubs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = run(ROOT / "docker" / script, cwd=folder, PATH=path, CONF="c", ATTACKERS="0", SEED="0", SET="", RUN="first")
    assert (done.returncode, (folder / "called").exists()) == ((2, False) if code else (1, True)), done.stderr
