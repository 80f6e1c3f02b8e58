"""What worker processes gain: the same steps of the same worlds, in this process and in workers, in turns.

python -m benchmarks.workers --world BipedalWalker-v3 --copies 16 --workers 1 2

The clock says what was gained on this machine as busy as it was; the processor time of the caller and of the slowest
worker says what there is to gain where each has a core of its own (waking up not counted). Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
from gymnasium import spaces

from envs import WorldConfig, Worlds, make_worlds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="BipedalWalker-v3")
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=100, help="steps of the batch per turn")
    parser.add_argument("--turns", type=int, default=12)
    given = parser.parse_args()

    batches: dict[int, Worlds] = {}
    crews: dict[int, list[int]] = {}
    known: set[int] = set()
    for workers in (0, *given.workers):
        begin = time.perf_counter()
        batches[workers] = make_worlds(WorldConfig(id=given.world, copies=given.copies, workers=workers), [0])
        crews[workers] = [int(child.pid or 0) for child in multiprocessing.active_children() if child.pid not in known]
        known.update(crews[workers])
        print(f"{workers or 'no'} workers: started in {time.perf_counter() - begin:.2f} s")
    spans: dict[int, list[float]] = {workers: [] for workers in batches}
    busy = dict.fromkeys(batches, 0.0)
    rng = np.random.default_rng(0)
    for _ in range(given.turns):
        actions = [random_actions(batches[0], rng) for _ in range(given.steps)]
        for workers, batch in batches.items():
            begin, own, theirs = time.perf_counter(), time.process_time(), [worked(pid) for pid in crews[workers]]
            for action in actions:
                batch.step(action)
            spans[workers].append(time.perf_counter() - begin)
            slowest = max((worked(pid) - was for pid, was in zip(crews[workers], theirs, strict=True)), default=0.0)
            busy[workers] += time.process_time() - own + slowest
    print(f"{given.world}, {given.copies} copies, {os.cpu_count()} cores, {given.turns} turns in turn about:")
    for workers, span in spans.items():
        ratios = np.array(spans[0]) / np.array(span)
        rate = given.copies * given.steps / np.median(span)
        print(f"  {workers or 'no'} workers: {rate:7.0f} steps/s, {np.median(ratios):.2f} times in-process", end="")
        print(f" (quartiles {np.quantile(ratios, 0.25):.2f} to {np.quantile(ratios, 0.75):.2f});", end="")
        print(f" {busy[0] / busy[workers]:.2f} times by processor time")
    for batch in batches.values():
        batch.close()


def worked(pid: int) -> float:
    """Processor seconds of a process, in ticks of usually 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def random_actions(batch: Worlds, rng: np.random.Generator) -> np.ndarray:
    shape, space = (batch.agents, batch.copies), batch.action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, int(space.n), shape)
    assert isinstance(space, spaces.Box)
    return rng.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)


if __name__ == "__main__":
    main()
