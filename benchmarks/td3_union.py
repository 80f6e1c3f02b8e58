"""How far FedAvg-TD3 that exchanges every gradient is from one TD3 with the union of all batches.

python -m benchmarks.td3_union

200 updates in float32. In exact arithmetic the two are the same. ``permuted`` is that one learner beside itself with
every batch in another order: what rounding alone does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from agents.replay import Batch
from agents.td3 import TD3Fleet
from benchmarks.timing import Row, one_thread, report
from client.session import Session
from core.options import override
from core.streams import agent_seeds
from runs.config import RunConfig, configure
from runs.directory import RunDirectory
from server.engines import prepare
from server.federate import federate
from server.grids import LocalGrid

UPDATES = 200
CONF: dict[str, Any] = {
    "algorithm": "td3", "strategy": "fedavg-td3", "steps": 1000 + UPDATES, "work": 100, "evaluate-episodes": 0,
    "tensorboard": False, "checkpoint-every": 10**6, "world": {"id": "Pendulum-v1"},
    "sync": {"critic-every": 1, "actor-every": 1, "exchange": "gradients"},
}  # fmt: skip
AGENTS = 2
SIZES = ((64, 64), (256, 256))
WEIGHTS = ("actor", "critic", "actor_target", "critic_target")
Update = tuple[Batch, Any]


def each(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """A batch whose arrays are all changed alike."""
    return Batch(**{name: change(x) for name, x in batch._asdict().items()})


def federated(config: RunConfig) -> tuple[TD3Fleet, list[Update]]:
    """All agents after a run, and what each critic update saw: the union of the batches, and the noise on actions."""
    seen: list[Update] = []
    honest = TD3Fleet.critic_gradient

    def watched(fleet: TD3Fleet, batch: Batch) -> Any:
        counts = fleet.noise.counts.copy()
        noise = fleet.noise.normal(batch.reward.shape[1], 1)
        fleet.noise.counts[...] = counts
        seen.append((each(batch, lambda x: np.concatenate(list(x))[None]), noise.reshape(1, -1, 1)))
        return honest(fleet, batch)

    with tempfile.TemporaryDirectory() as place, patch.object(TD3Fleet, "critic_gradient", watched):
        session = prepare(config)
        federate(config, LocalGrid(session), RunDirectory.create(Path(place) / "run", {}), session)
    assert isinstance(session.fleet, TD3Fleet)
    return session.fleet, seen


def alone(config: RunConfig, seen: list[Update], permuted: bool = False) -> TD3Fleet:
    """One learner after the same updates, each with the union batch."""
    one = Session(configure({"algorithm": "td3", "evaluate-episodes": 0, "world": {"id": config.world.id}}))
    fleet, draws = TD3Fleet(config.learner, one.worlds, agent_seeds(config.seed, [0])), np.random.default_rng(0)
    for batch, noise in seen:
        order = draws.permutation(batch.reward.shape[1]) if permuted else np.arange(batch.reward.shape[1])
        shuffled = each(batch, partial(np.take, indices=order, axis=1))
        with (
            patch.object(fleet.replay, "gather", lambda index, batch=shuffled: batch),
            patch.object(fleet.noise, "normal", lambda *shape, noise=noise[:, order]: noise),
        ):
            fleet.update()
    return fleet


def apart(one: TD3Fleet, other: TD3Fleet) -> float:
    """The largest difference of any weight of any agent."""
    return float(max(np.abs(getattr(one, name) - getattr(other, name)).max() for name in WEIGHTS))


def main() -> None:
    one_thread()
    rows: list[Row] = []
    for hidden in SIZES:
        settings = [f"agents={AGENTS}", f"td3.hidden={list(hidden)}", f"td3.batch={hidden[0]}"]
        config = configure(override(CONF, settings))
        fleet, seen = federated(config)
        one = alone(config, seen)
        assert one.updates[0] == UPDATES
        row: Row = {"hidden": "-".join(map(str, hidden)), "batch": str(hidden[0]), "agents": str(AGENTS)}
        row["federation and one learner"] = f"{apart(fleet, one):.1e}"
        row["one learner and itself, permuted"] = f"{apart(one, alone(config, seen, permuted=True)):.1e}"
        rows.append(row)
    title = f"FedAvg-TD3, gradients at N = L = 1: largest difference of a weight after {UPDATES} updates, float32"
    report("td3_union", title, rows)


if __name__ == "__main__":
    main()
