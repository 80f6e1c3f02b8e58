"""An hour in the life of a federation: 200 rounds, eight nodes that are killed at random, a SuperLink that restarts."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flower.launch import (
    QUIET,
    SuperLink,
    command,
    marked,
    marks,
    processes,
    running,
    send,
    spawn,
    start_node,
    superlink,
    wait,
)
from runs.directory import RunDirectory

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("FEDRL_SOAK_ROUNDS", "200"))
NODES = 8
LONG_S = 600.0  # until a round is over, whatever happens
CONF = f"""
algorithm = "policy-gradient"
strategy = "fedavg"
agents = {NODES}
rounds = {ROUNDS}
steps = 0
work = 2
evaluate-episodes = 2
checkpoint-every = 1
tensorboard = false
[world]
id = "CartPole-v1"
copies = 8
[policy-gradient]
batch = 8
[federation]
deadline-s = 5
quorum = 0.5
evaluate-every = 5
"""


def megabytes(pid: int) -> float:
    """What a process holds in memory; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


class Memory(threading.Thread):
    """What each of some processes holds, every two seconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.watched: dict[str, Callable[[], Iterable[int]]] = {}
        self.seen: dict[str, list[float]] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(2):
            for name, pids in list(self.watched.items()):
                if held := sum(megabytes(pid) for pid in pids()):
                    self.seen.setdefault(name, []).append(held)

    def growth(self, name: str) -> tuple[float, float]:
        """The median of the second quarter of its life, and of the last."""
        seen = self.seen[name]
        quarter = max(1, len(seen) // 4)
        return statistics.median(seen[quarter : 2 * quarter] or seen), statistics.median(seen[-quarter:])


def here() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def session(pid: int) -> int:
    """Who leads the processes that this one belongs to; 0 where it has ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@pytest.fixture
def memory() -> Iterator[Memory]:
    thread = Memory()
    thread.start()
    yield thread
    thread.over.set()
    thread.join()


def test_two_hundred_rounds(tmp_path: Path, memory: Memory) -> None:
    random.seed(int(os.environ.get("FEDRL_SOAK_SEED", "0")))
    conf, run = tmp_path / "conf.toml", RunDirectory(tmp_path / "run")
    conf.write_text(CONF)
    home, database = tmp_path / "flower", tmp_path / "fleet.sqlite"
    begun, told = time.monotonic(), {"killed": 0, "superlink restarts": 0}

    def records() -> list[dict[str, Any]]:
        return run.read_metrics() if run.metrics.exists() else []

    def reach(number: int, launcher: subprocess.Popen[bytes]) -> None:
        wait(lambda: len(records()) >= number or launcher.poll() is not None, LONG_S)
        assert len(records()) >= number, (tmp_path / "run.log").read_text()[-3000:]

    with processes() as started:

        @contextmanager
        def serving(before: SuperLink | None) -> Iterator[tuple[SuperLink, subprocess.Popen[bytes]]]:
            """A SuperLink, the one before on the same state; and the launcher of the run, which goes on."""
            at = {"fleet": before.fleet, "control": before.control} if before else {}
            log = tmp_path / f"superlink-{told['superlink restarts']}.log"
            with superlink(home, database=database, log=log, **at) as link:
                there = ["--superlink", link.control]
                which = ["--resume", str(run.path)] if before else [str(conf), "--out", str(run.path)]
                words = [sys.executable, "-m", "cli.main", "run", *which, *there]
                started.append(spawn(words, tmp_path / "run.log", QUIET, ROOT))
                number, mark = told["superlink restarts"], marks()[link.process.pid]
                memory.watched[f"superlink {number}"] = lambda: [link.process.pid]
                memory.watched[f"serverapp {number}"] = lambda: serverapps(mark)
                yield link, started[-1]

        def serverapps(mark: str) -> list[int]:
            return [pid for pid in marked(mark) if "flwr-serverapp" in command(pid)]

        def left(mark: str) -> list[str]:
            """What is still there of all that was started: by what started it, by its session, by its words."""
            running(started)  # those that have ended are no more than a number until they are asked
            ours, sessions = marked(mark), {process.pid for process in started}
            found = [pid for pid in here() if pid in ours or session(pid) in sessions or str(tmp_path) in command(pid)]
            return [f"{pid} {command(pid)}" for pid in found]

        def node(agent: int) -> subprocess.Popen[bytes]:
            started.append(start_node(link.fleet, [agent], tmp_path / f"state-{agent}", tmp_path / f"{agent}.log"))
            return started[-1]

        def disturb(until: int, launcher: subprocess.Popen[bytes]) -> None:
            """Every few rounds a node dies, any but the first, and comes back after a while."""
            dead: list[tuple[float, int]] = []
            while len(records()) < until:
                reach(min(len(records()) + random.randint(2, 5), until), launcher)
                for when, agent in list(dead):
                    if time.monotonic() > when:
                        dead.remove((when, agent))
                        nodes[agent] = node(agent)
                if len(dead) < 3 and len(records()) < until - 5:
                    agent = random.choice([k for k in range(1, NODES) if nodes[k].poll() is None])
                    nodes[agent].kill()
                    nodes[agent].wait()
                    dead.append((time.monotonic() + random.uniform(0, 20), agent))
                    told["killed"] += 1
            for _, agent in dead:
                nodes[agent] = node(agent)

        with serving(None) as (link, launcher):
            nodes = [node(agent) for agent in range(NODES)]
            memory.watched["node 0"] = lambda: [nodes[0].pid]
            disturb(ROUNDS // 2, launcher)
            before = records()
            mark = marks()[link.process.pid]
            # All that it started goes with it, as systemd and containers have it: a ServerApp that is left may hang.
            send(marked(mark), signal.SIGKILL)
            assert wait(lambda: not marked(mark), 60)
            assert launcher.wait(LONG_S) == 1
            told["superlink restarts"] += 1
            # A round is acknowledged by its checkpoint; of the one in progress the line may be there already.
            acknowledged = records()[: max(run.saved_rounds())]
            assert len(before) - 1 <= len(acknowledged) and len(records()) - 1 <= len(acknowledged)
        with serving(link) as (link, launcher):
            reach(len(acknowledged) + 1, launcher)
            disturb(ROUNDS, launcher)
            assert launcher.wait(LONG_S) == 0, (tmp_path / "run.log").read_text()[-3000:]
            living = [process.poll() is None for process in nodes]
            # As systemd stops services, and before anything is killed: each ends by itself, and all that it started.
            mark = marks()[link.process.pid]
            assert wait(lambda: not serverapps(mark), 60), "a ServerApp whose run is over has left"
            send(marked(mark) | running(started), signal.SIGTERM)
            assert wait(lambda: not left(mark), 60), left(mark)

    after = records()
    assert [record["round"] for record in after] == list(range(1, ROUNDS + 1))
    assert after[: len(acknowledged)] == acknowledged
    assert all(living)
    steps = [[record["steps"][agent] for record in after] for agent in range(NODES)]
    assert all(later >= sooner for agent in steps for sooner, later in itertools.pairwise(agent))
    assert max(record["missed"][0] for record in after[: len(before)]) == 0  # who was not killed is never missed
    told |= {
        "rounds": len(after),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "missed": sum(sum(record["missed"]) for record in after),
        "refused": sum(sum(record["refused"]) for record in after),
    }
    held = {name: memory.growth(name) for name in memory.seen}
    print(json.dumps(told | {f"MB of {name}": [round(value, 1) for value in both] for name, both in held.items()}))
    for name, (sooner, later) in held.items():
        assert later < 1.2 * sooner + 10, f"{name} grew from {sooner:.0f} to {later:.0f} MB"
