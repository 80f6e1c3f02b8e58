"""Ray's processes listen on every interface: whoever calls them without the run's token has nothing executed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from flower.launch import QUIET, processes, spawn, wait
from runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)

@ray.remote(num_cpus=0)
def work():
    return "code was executed"

print(ray.get(work.remote(), timeout=120))
"""
MARK = "FEDRL_TEST_OF_RAY"


def environments(mark: str) -> list[tuple[str, dict[str, str]]]:
    """Command line and environment of every process that descends from the run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            entries = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
            environ = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            if environ.get(MARK) == mark:
                found.append(((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(), environ))
    return found


@pytest.mark.slow
def test_a_stranger_has_nothing_executed_by_the_ray_of_a_run(tmp_path: Path) -> None:
    mark, run = str(tmp_path), tmp_path / "run"
    words = ["run", "conf/fedavg_cartpole.toml", "--engine", "ray", "--out", str(run)]
    words += ["--set", "agents=2", "--set", "rounds=1000000", "--set", "steps=0"]
    with processes() as started:
        log = tmp_path / "log"
        process = spawn([sys.executable, "-m", "cli.main", *words], log, QUIET | {MARK: mark}, ROOT)
        started.append(process)
        ledger = RunDirectory(run).metrics
        assert wait(lambda: ledger.exists() and ledger.stat().st_size > 0, 300), log.read_text()
        theirs = environments(mark)
        addresses = {found[1] for line, _ in theirs if (found := re.search(r"--gcs-address=(\S+)", line))}
        (address,) = addresses

        def call(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
            own = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
            return subprocess.run(
                [sys.executable, "-c", STRANGER, address], env=own | environ, cwd=tmp_path, capture_output=True,
                text=True, timeout=300, check=False,
            )  # fmt: skip

        refused = call({})
        assert refused.returncode != 0
        assert "code was executed" not in refused.stdout
        # The address is right: with the token of the run it works.
        (token,) = {environ["RAY_AUTH_TOKEN"] for line, environ in theirs if "/raylet " in line}
        done = call({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})
        assert "code was executed" in done.stdout, done.stderr
        process.send_signal(signal.SIGINT)
        assert wait(lambda: process.poll() is not None, 120), log.read_text()
