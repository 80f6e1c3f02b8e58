"""The cost of a round without learning: 300 KB of weights in both directions, no evaluation.

In this process, in Flower's simulation, over gRPC on loopback with our nodes, and with stock flower-supernodes; and
what a short federation takes from the command line, in this process and in Flower's simulation. Seconds are those of
the clock: most of a round is waiting.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Row, Spread, report
from core.options import flatten, nested
from flower.control import Control
from flower.launch import processes, spawn, superlink
from runs.config import configure
from runs.directory import RunDirectory

ROOT = Path(__file__).parents[1]
IDLE = {
    "algorithm": "policy-gradient", "strategy": "fedavg", "steps": 0, "work": 0, "evaluate-episodes": 0,
    "checkpoint-every": 10_000, "tensorboard": False, "policy-gradient": {"hidden": [272, 268]},
}  # fmt: skip
LEARNING = {
    "algorithm": "policy-gradient", "strategy": "fedavg", "agents": 10, "steps": 0, "rounds": 20, "work": 5,
    "world": {"id": "CartPole-v1", "copies": 16},
}  # fmt: skip


def run(folder: Path, conf: dict[str, Any], *arguments: str) -> tuple[list[dict[str, Any]], float]:
    """The records of a run from the command line, and the seconds of the whole command."""
    import tomli_w

    folder.mkdir()
    (folder / "conf.toml").write_text(tomli_w.dumps(conf))
    command = [sys.executable, "-m", "cli.main", "run", str(folder / "conf.toml"), "--out", str(folder / "run")]
    begun = time.perf_counter()
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    took = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(done.stderr)
    return RunDirectory.open(folder / "run").read_metrics(), took


def stock(folder: Path, conf: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the same federation with flower-supernodes."""
    config = configure(conf | {"engine": "grpc"})
    directory = RunDirectory.create(folder / "run", nested(config))
    flat = flatten(config) | {"directory": str(directory.path), "run": directory.name}
    node = str(Path(sys.executable).parent / "flower-supernode")
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FEDRL_STATE": str(folder / "state"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_HOME": str(folder / "home"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    with superlink(folder / "home") as link, processes() as started, Control(link.control) as control:
        for k in range(config.agents):
            about = ["--node-config", f"partition-id={k}", "--clientappio-api-address", "127.0.0.1:0"]
            started.append(spawn([node, "--insecure", "--superlink", link.fleet, *about], folder / f"{k}.log", quiet))
        number = control.submit(ROOT, flat)
        while not control.status(number).over:
            time.sleep(1)
        if control.status(number).sub_status != "completed":
            raise RuntimeError(link.log.read_text()[-4000:])
    return directory.read_metrics()


def line(name: str, records: list[dict[str, Any]]) -> Row:
    """A round's milliseconds, and where they went; the first rounds compile and connect."""
    settled = records[min(5, len(records) // 2) :]
    row: Row = {"engine": name, "rounds": len(settled)}
    row["ms a round"] = str(Spread.of([1000 * record["round_s"] for record in settled]))
    for part in ("serialising", "waiting", "working", "aggregating"):
        row[part] = round(float(np.median([1000 * record[f"{part}_s"] for record in settled])), 2)
    return row


@contextmanager
def place() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    with place() as folder:
        rows: list[Row] = []
        for name, agents, rounds, arguments in (
            ("local, 10 agents, 300 KB", 10, 400, ()),
            ("grpc, 2 of our nodes", 2, 100, ("--engine", "grpc")),
            ("grpc, 8 of our nodes", 8, 60, ("--engine", "grpc")),
            ("ray, 2 agents", 2, 40, ("--engine", "ray")),
        ):
            rows.append(line(name, run(folder / name, IDLE | {"agents": agents, "rounds": rounds}, *arguments)[0]))
        small = IDLE | {"agents": 10, "rounds": 400, "policy-gradient": {"hidden": [16, 16]}}
        rows.insert(0, line("local, 10 agents, 1.5 KB", run(folder / "small", small)[0]))
        rows.append(line("grpc, 2 stock nodes", stock(folder / "stock", IDLE | {"agents": 2, "rounds": 4})))
    report("rounds", "A round without learning, milliseconds", rows)

    with place() as folder:
        found: dict[str, list[float]] = {"local": [], "ray": []}
        for index in range(3):
            for engine, seconds in found.items():
                seconds.append(run(folder / f"{engine}-{index}", LEARNING, "--engine", engine)[1])
    ratio = Spread.of([ray / local for ray, local in zip(found["ray"], found["local"], strict=True)])
    rows = [{"engine": engine, "seconds": str(Spread.of(seconds))} for engine, seconds in found.items()]
    rows.append({"engine": "ray / local", "seconds": str(ratio)})
    report("local_ray", "10 agents, 20 rounds of CartPole, the whole command", rows)


if __name__ == "__main__":
    main()
