"""Four agents x four CartPoles, each pulled towards the other three, beside four Stable-Baselines3 PPOs in turn.

Ours is the whole of it: rounds in the local engine, messages, ledger, pull. Theirs learn alone, which is less.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.ppo import CONFIG, COPIES, theirs
from benchmarks.timing import Row, interleaved, one_thread, report
from core.options import nested
from runs.config import configure
from runs.directory import RunDirectory
from server.engines import prepare
from server.federate import federate
from server.grids import LocalGrid

AGENTS, ROUNDS, WORK = 4, 4, 4


def ours(folder: Path, matrix: str, penalty: bool) -> Callable[[], float]:
    """Some rounds of a federation; every call goes on with the same run."""
    ppo = {"hidden": list(CONFIG.hidden), "rollout": CONFIG.rollout, "minibatches": CONFIG.minibatches}
    table = {
        "strategy": "kl-ppo" if matrix else "alone", "agents": AGENTS, "steps": 0, "work": WORK, "tensorboard": False,
        "evaluate-episodes": 0, "checkpoint-every": 10**6, "world": {"copies": COPIES},
        "ppo": ppo | {"epochs": CONFIG.epochs, "penalty": penalty}, "kl": {"matrix": matrix or "complete"},
    }  # fmt: skip
    numbers = count(1)

    def run() -> float:
        number = next(numbers)
        config = configure(table | {"rounds": ROUNDS})
        directory = RunDirectory.create(folder / f"{matrix}-{penalty}-{number}", nested(config))
        session = prepare(config)
        federate(config, LocalGrid(session), directory, session)
        return float(session.worlds.steps.sum())

    return run


def main() -> None:
    one_thread()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rates = interleaved(
            {
                "off": ours(folder, "complete", False),
                "pairs": ours(folder, "pairs", True),
                "complete": ours(folder, "complete", True),
                "sb3": theirs(),
            },
            rounds=7,
            least=0.5,
        )
    rows: list[Row] = [
        {
            "four agents": label,
            "steps/s, all agents": str(rates.of(name)),
            "beside Stable-Baselines3": str(rates.ratio(name, "sb3")),
            "beside no pull": str(rates.ratio(name, "off")),
        }
        for label, name in (
            ("no pull", "off"),
            ("pairs: one neighbour each", "pairs"),
            ("complete: three neighbours each", "complete"),
            ("four Stable-Baselines3 PPOs, one after another", "sb3"),
        )
    ]
    report("kl_ppo", "KL-penalised PPO on CartPole: 4 agents x 4 copies x 128 steps, 4 minibatches, 4 epochs", rows)


if __name__ == "__main__":
    main()
