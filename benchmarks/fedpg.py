"""The whole federation of FedPG-BR, ten agents and their server, beside the usual way to take its steps.

Ours is a run as a user starts it, from the first round to the last: making the fleet, rounds, messages, filter, the
server's inner loop, ledger, checkpoint. The peer is a pool of ten processes, each with one scalar environment, a torch
forward a step and an autograd gradient per trajectory, at a good policy, where episodes are long and its gradients are
cheapest. It has no filter and no server. What its processes spend counts as much as what this one does.
Linux only.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.policy_gradient import peer
from benchmarks.timing import Row, interleaved, one_thread, report
from benchmarks.workers import worked
from core.options import nested, override
from runs.config import configure
from runs.directory import RunDirectory, read_toml
from server import engines

CONF = Path(__file__).parents[1] / "conf" / "fedpg_cartpole.toml"


def federation(*settings: str) -> Callable[[], float]:
    """A run of the conf; returns the environment steps of all agents and of the server."""
    config = configure(override(read_toml(CONF), ["evaluate-episodes=0", *settings]))

    def run() -> float:
        with TemporaryDirectory() as place:
            session = engines.prepare(config)
            directory = RunDirectory.create(Path(place) / "run", nested(config))
            engines.run(config, session, directory, lambda record: None, lambda words: None, lambda: False)
            session.close()
            records = directory.read_metrics()
        return float(sum(records[-1]["steps"]) + sum(record["server-steps"] for record in records))

    return run


class Pool:
    """The peer's workers: all play a trajectory at a time, and are waited for."""

    def __init__(self, workers: int) -> None:
        # Forked before anything here has a thread: ten times the imports would be no part of the work.
        context = multiprocessing.get_context("fork")
        self.ends, self.pids = list[Connection](), list[int]()
        for _ in range(workers):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            self.ends.append(mine)
            self.pids.append(int(process.pid or 0))

    def __call__(self) -> float:
        for end in self.ends:
            end.send(None)
        return float(sum(end.recv() for end in self.ends))

    def clock(self) -> float:
        """Processor seconds of this process and of all workers."""
        return time.process_time() + sum(map(worked, self.pids))


def serve(end: Connection) -> None:
    one_thread()
    play = peer(1)
    while True:
        end.recv()
        end.send(play())


def main() -> None:
    pool = Pool(10)
    one_thread()
    contenders: dict[str, Callable[[], float]] = {
        "federation": federation(),
        "attackers": federation("attack.byzantine=3", "attack.kind=sign-flip"),
        "peer": pool,
    }
    rates = interleaved(contenders, rounds=5, clock=pool.clock)
    rows: list[Row] = [
        {
            "work": work,
            "steps per core-second": str(rates.of(name)),
            "ratio to the peer": str(rates.ratio(name, "peer")),
        }
        for work, name in (
            ("10 agents and their server, 92 rounds from a random policy", "federation"),
            ("the same, three of them flip signs", "attackers"),
            ("peer: 10 processes, each one scalar environment, one torch forward a step, good policy", "peer"),
        )
    ]
    report("fedpg", "FedPG-BR on CartPole, whole runs", rows)


if __name__ == "__main__":
    main()
