"""Memory: a full replay of a million BipedalWalker transitions, and a thousand agents that learn in one process."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agents.policy_gradient import PolicyGradientConfig, PolicyGradientFleet
from agents.replay import Replay
from benchmarks.timing import Row, one_thread, report
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds

CAPACITY, OBS, ACT, AT_ONCE = 1_000_000, 24, 4, 10_000


def resident_mb() -> float:
    """What this process holds now, in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)


def replay() -> dict[str, float]:
    before = resident_mb()
    memory = Replay(1, CAPACITY, OBS, ACT)
    obs, action = np.ones((1, AT_ONCE, OBS), np.float32), np.ones((1, AT_ONCE, ACT), np.float32)
    reward, ends = np.ones((1, AT_ONCE), np.float32), np.zeros((1, AT_ONCE), np.bool_)
    memory.add(obs, action, reward, ends, ends, obs)  # compiles, which takes memory too
    compiled = resident_mb() - before - AT_ONCE * 214 / 1e6
    for _ in range(CAPACITY // AT_ONCE - 1):
        memory.add(obs, action, reward, ends, ends, obs)
    arrays = sum(array.nbytes for array in vars(memory).values() if isinstance(array, np.ndarray))
    return {"arrays, MB": arrays / 1e6, "grown by, MB": resident_mb() - before - compiled, "peak, MB": peak_mb()}


def thousand() -> dict[str, float]:
    """Ten batches of 16 trajectories each, for every one of a thousand agents."""
    one_thread()
    seeds = agent_seeds(0, range(1000))
    fleet = PolicyGradientFleet(PolicyGradientConfig(), make_worlds(WorldConfig(copies=16), seeds), seeds)
    before = resident_mb()
    fleet.train(1)
    begin = time.process_time()
    steps = fleet.train(9).steps.sum()
    rate = float(steps) / (time.process_time() - begin)
    return {"steps/s": rate, "grown by, MB": resident_mb() - before, "peak, MB": peak_mb()}


def thousand_good() -> dict[str, float]:
    """One batch of 16 trajectories of 500 steps each, for every one of a thousand agents: as long as episodes get."""
    from benchmarks.policy_gradient import fleet

    one_thread()
    made = fleet(1000, 16)
    before = resident_mb()
    begin = time.process_time()
    steps = made.train(1).steps.sum()
    rate = float(steps) / (time.process_time() - begin)
    return {"steps/s": rate, "grown by, MB": resident_mb() - before, "peak, MB": peak_mb()}


def alone(job: Callable[[], dict[str, float]]) -> dict[str, float]:
    """In a process of its own, so that the peak is the job's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job)


def main() -> None:
    rows: list[Row] = [
        {"what": "replay: 1M transitions, full", **alone(replay)},
        {"what": "1,000 agents x 16 trajectories, from the start", **alone(thousand)},
        {"what": "1,000 agents x 16 trajectories of 500 steps", **alone(thousand_good)},
    ]
    report("memory", "Memory of a process", rows)


if __name__ == "__main__":
    main()
