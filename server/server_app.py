"""The ServerApp: what `flwr run` starts, in Flower's simulation and behind a SuperLink."""

from __future__ import annotations

import time
from dataclasses import replace
from logging import INFO
from pathlib import Path

from flwr.app import Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from client.party import ABOUT_THE_RUN, run_config
from client.session import RunConfig, Session
from core.config import flatten, nested
from core.errors import Failure, Mistake
from runs.directory import RunDirectory
from server.federate import check, federate
from server.grids import quicken

app = ServerApp()


def app_config() -> dict[str, bool | int | float | str]:
    """Every key that Flower's run_config may hold, with its default: what stands in pyproject.toml."""
    return flatten(RunConfig(strategy="fedavg", engine="grpc", rounds=10, steps=0)) | ABOUT_THE_RUN


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from the configuration that Flower hands over."""
    flat = context.run_config
    config = run_config(flat)
    if config.engine == "local":  # whatever the configuration says, agents are elsewhere
        config = replace(config, engine="grpc")
    session = Session(config, numbers=[0])
    check(config, session)
    where = str(flat.get("directory") or "")
    directory = RunDirectory(Path(where or f"out/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id}"))
    if not where or not directory.conf.exists():
        directory = RunDirectory.create(directory.path, nested(config))
    try:
        quicken(grid, session.fleet, min(config.federation.deadline_s, 30.0))
        federate(config, grid, directory, session, stop=directory.stop_asked)
    except (Mistake, Failure, OSError) as error:
        # Whoever submitted the run looks here: what Flower reports of an error is cut short.
        directory.leave_word(error)
        raise
    log(INFO, "the run is in %s", directory.path)
