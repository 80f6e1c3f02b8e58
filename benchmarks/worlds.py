"""Steps per second of the batched worlds, beside Gymnasium's scalar environment and its vector entry point."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np

from benchmarks.timing import Row, interleaved, one_thread, report
from envs import WorldConfig, make_worlds

CALLS = 200


def ours(name: str, copies: int) -> Callable[[], float]:
    worlds = make_worlds(WorldConfig(id=name, copies=copies), [0])
    rng = np.random.default_rng(0)
    shape = (CALLS, 1, copies) if name == "CartPole-v1" else (CALLS, 1, copies, 1)
    actions = rng.integers(0, 2, shape) if name == "CartPole-v1" else rng.uniform(-2, 2, shape).astype(np.float32)

    def run() -> float:
        for action in actions:
            worlds.step(action)
        return float(CALLS * copies)

    return run


def scalar(name: str) -> Callable[[], float]:
    env = gymnasium.make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(CALLS)]

    def run() -> float:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return float(CALLS)

    return run


def vector(name: str, copies: int) -> Callable[[], float]:
    """The numpy batch where Gymnasium ships one (CartPole), its loop over environments where not."""
    entry = gymnasium.spec(name).vector_entry_point
    env = gymnasium.make_vec(name, copies, vectorization_mode="vector_entry_point" if entry else "sync")
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(CALLS)]

    def run() -> float:
        for action in actions:
            env.step(action)
        return float(CALLS * copies)

    return run


def main() -> None:
    one_thread()
    rows: list[Row] = []
    for name in ("CartPole-v1", "Pendulum-v1"):
        for copies in (1, 16, 128):
            contenders = {"ours": ours(name, copies), "vector": vector(name, copies), "scalar": scalar(name)}
            rates = interleaved(contenders, rounds=5, least=0.1)
            rows.append(
                {
                    "world": name,
                    "copies": copies,
                    "ours, steps/s": rates.of("ours").median,
                    "Gymnasium scalar": rates.of("scalar").median,
                    "Gymnasium vector": rates.of("vector").median,
                    "ours / scalar": str(rates.ratio("ours", "scalar")),
                    "ours / vector": str(rates.ratio("ours", "vector")),
                }
            )
    report("worlds", "Steps of the worlds", rows)


if __name__ == "__main__":
    main()
