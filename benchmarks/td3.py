"""TD3 updates: 256-256, batch 256, BipedalWalker's observations and actions; and the most this core can do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from agents.td3 import TD3Fleet
from agents.td3_config import TD3Config
from benchmarks.timing import Row, interleaved, one_thread, report
from core.streams import agent_seeds

OBS, ACT, STORED, UPDATES = 24, 4, 20_000, 10
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (ACT,), np.float32)
SQUARES = np.random.default_rng(0).standard_normal((3, 256, 256)).astype(np.float32)
CONFIG = TD3Config(hidden=(256, 256), batch=256, policy_delay=2, capacity=STORED)


def transitions() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.standard_normal((1, STORED, OBS)).astype(np.float32),
        "action": rng.uniform(-1, 1, (1, STORED, ACT)).astype(np.float32),
        "reward": rng.standard_normal((1, STORED)).astype(np.float32),
        "terminated": rng.random((1, STORED)) < 0.01,
        "truncated": np.zeros((1, STORED), np.bool_),
        "next_obs": rng.standard_normal((1, STORED, OBS)).astype(np.float32),
    }


def ours(
    precision: str, agents: int = 1, hidden: tuple[int, ...] = (256, 256), batch: int = 256
) -> Callable[[], float]:
    config = TD3Config(**{**vars(CONFIG), "precision": precision, "hidden": hidden, "batch": batch})
    worlds: Any = SimpleNamespace(agents=agents, copies=1, observation_space=OBSERVATIONS, action_space=ACTIONS)
    fleet = TD3Fleet(config, worlds, agent_seeds(0, range(agents)))
    fleet.replay.add(**{name: np.repeat(array, agents, axis=0) for name, array in transitions().items()})

    def run() -> float:
        for _ in range(UPDATES):
            fleet.update()
        return float(UPDATES * agents)

    return run


class Nowhere(gymnasium.Env[Any, Any]):
    """A world of the right shape that is never stepped."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def reset(self, **_: Any) -> Any:
        return np.zeros(OBS, np.float32), {}


def theirs(hidden: tuple[int, ...] = (256, 256), batch: int = 256) -> Callable[[], float]:
    from stable_baselines3 import TD3
    from stable_baselines3.common.logger import configure

    model = TD3(
        "MlpPolicy", Nowhere(), device="cpu", seed=0, buffer_size=STORED, learning_rate=CONFIG.learning_rate,
        gamma=CONFIG.gamma, tau=CONFIG.tau, policy_delay=CONFIG.policy_delay, target_policy_noise=CONFIG.smoothing,
        target_noise_clip=CONFIG.smoothing_clip, policy_kwargs={"net_arch": list(hidden)},
    )  # fmt: skip
    model.set_logger(configure(None, []))
    some, buffer = transitions(), model.replay_buffer
    assert buffer is not None
    buffer.observations[:], buffer.next_observations[:] = some["obs"][0][:, None], some["next_obs"][0][:, None]
    buffer.actions[:], buffer.rewards[:] = some["action"][0][:, None], some["reward"][0][:, None]
    buffer.dones[:], buffer.full = some["terminated"][0][:, None], True

    def run() -> float:
        model.train(UPDATES, batch)
        return float(UPDATES)

    return run


def operations() -> float:
    """Multiplications and additions of the matrix products of one update, averaged over the policy delay."""
    actor, critic = (OBS, *CONFIG.hidden, ACT), (OBS + ACT, *CONFIG.hidden, 1)

    def forward(sizes: tuple[int, ...]) -> int:
        return sum(a * b for a, b in pairwise(sizes))

    def backward(sizes: tuple[int, ...]) -> int:
        """By the weights, and by what every layer but the first was given."""
        return forward(sizes) + forward(sizes[1:])

    learn_critics = forward(actor) + 2 * forward(critic) + 2 * (forward(critic) + backward(critic))
    learn_actor = forward(actor) + forward(critic) + forward(critic) + backward(actor)  # through Q1 back to its input
    return 2.0 * CONFIG.batch * (learn_critics + learn_actor / CONFIG.policy_delay)


def product() -> float:
    """256 x 256 x 256 by numpy's BLAS, in updates' worth of arithmetic: nothing but products, in the cache."""
    for _ in range(20):
        np.matmul(SQUARES[0], SQUARES[1], out=SQUARES[2])
    return 20 * 2.0 * 256**3 / operations()


def main() -> None:
    one_thread()
    rates = interleaved(
        {
            "float32": ours("float32"), "bf16": ours("bf16"), "sb3": theirs(),
            "limit": product,
        },
        rounds=15,
    )  # fmt: skip
    labels = {
        "float32": "ours, float32", "bf16": "ours, bf16 key", "sb3": "Stable-Baselines3",
        "limit": "limit: this core's matrix product",
    }  # fmt: skip
    rows: list[Row] = [
        {
            "learner": label,
            "updates/s": str(rates.of(name)),
            "ratio": str(rates.ratio(name, "sb3")),
            "share of the limit": str(rates.ratio(name, "limit")),
            "GFLOP/s": rates.of(name).median * operations() / 1e9,
        }
        for name, label in labels.items()
    ]
    report("td3", f"TD3, 256-256, batch 256, policy delay 2: {operations() / 1e6:.0f} MFLOP an update", rows)

    rates = interleaved(
        {
            "one": ours("float32", 1, (64, 64), 64),
            "ten": ours("float32", 10, (64, 64), 64),
            "sb3": theirs((64, 64), 64),
        },
        rounds=5,
    )
    rows = [
        {"learner": label, "updates/s, all agents": str(rates.of(name)), "ratio": str(rates.ratio(name, "sb3"))}
        for label, name in (("ours, one agent", "one"), ("ours, a fleet of ten", "ten"), ("Stable-Baselines3", "sb3"))
    ]
    report("td3_small", "TD3, 64-64, batch 64", rows)


if __name__ == "__main__":
    main()
