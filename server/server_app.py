"""The ServerApp: configuration -> strategy -> rounds -> run directory. What `flwr run` starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from logging import INFO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from client.party import exchangeable, party_config
from client.session import PartyConfig, Session
from core.config import build, flatten, nested, option, unflatten
from core.errors import Mistake
from runs.directory import RunDirectory
from strategies import messages
from strategies.fedavg import FedAvg

app = ServerApp()


@dataclass(frozen=True)
class FederationConfig:
    """A federation: what is exchanged, how often, how long to wait."""

    rounds: int = option(10, "Rounds of the federation.", low=1)
    parts: str = option("", "Parts that are exchanged, such as actor,critic; empty: all parts of the fleet.")
    wait_s: float = option(60.0, "Seconds to wait for all parties before a round goes on with those present.", above=0)
    timeout_s: float = option(600.0, "Seconds after which a round stops waiting for replies.", above=0)
    out: str = option("out/federation", "Where run directories are made.")


def app_config() -> dict[str, bool | int | float | str]:
    """Every key that Flower's run_config may hold, with its default: what stands in pyproject.toml."""
    return flatten(PartyConfig()) | flatten(FederationConfig(), "federation.")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from the configuration that Flower hands over."""
    config = party_config(context.run_config)
    given = unflatten(context.run_config).get("federation", {})
    federation = build(FederationConfig, given, "federation.")
    if not config.evaluate_episodes:
        raise Mistake("a federation judges what it made: 'evaluate-episodes' must be at least 1")
    first = Session(config, numbers=[0])
    chosen = exchanged(federation.parts, first)
    path = Path(federation.out) / f"{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id % 10_000:04d}"
    run = RunDirectory.create(path, nested(config) | {"federation": nested(federation)})
    strategy = FedAvg({name: len(row) for name, row in chosen.items()}, config.agents, federation.wait_s, tell=run.log)
    result = strategy.start(
        grid,
        messages.pack(chosen),
        federation.rounds,
        federation.timeout_s,
        train_config=ConfigRecord({"work": config.work}),
    )
    final: dict[str, NDArray[Any]] = {}
    for name, array in result.arrays.items():
        row = array.numpy()[None]
        if name.startswith(messages.MOMENTS):
            final |= {f"{name}.shared": row.astype(float), f"{name}.seen": np.zeros(row.shape)}
        else:
            final[name] = row
    run.save_weights(final, {"algorithm": config.algorithm, "world": config.world.id})
    log(INFO, "the run is in %s", path)


def exchanged(parts: str, session: Session) -> dict[str, NDArray[Any]]:
    """What travels, as it is at the start: the first agent's weights of the chosen parts, and empty moments."""
    known = session.fleet.parts
    names = [name.strip() for name in parts.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise Mistake(f"'federation.parts' names '{name}'; {session.config.algorithm} has {', '.join(known)}")
    moments = {name: row for name, row in exchangeable(session.fleet).items() if name not in known}
    return {name: row[0].copy() for name, row in ({name: known[name] for name in names} | moments).items()}
