"""The ServerApp: what `flwr run` starts, in Flower's simulation and behind a SuperLink."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client.answers import exchangeable
from client.gossip.peers import STRATEGIES
from client.party import ABOUT_THE_RUN, run_config
from client.session import RunConfig, Session
from core.config import flatten, nested
from core.errors import Failure, Mistake
from runs.directory import RunDirectory
from runs.report import describe, finish
from server.federate import check, federate

app = ServerApp()

# Bytes of a reply that are not weights: metrics, names, Flower's own.
_WORDS = 1_000_000
# The longest that a ServerApp lives on when it is told to go, or its SuperLink is gone.
LEAVE_S = 10.0


def app_config() -> dict[str, bool | int | float | str]:
    """Every key that Flower's run_config may hold, with its default: what stands in pyproject.toml."""
    return flatten(RunConfig(strategy="fedavg", engine="grpc", rounds=10, steps=0)) | ABOUT_THE_RUN


def _fit(grid: Grid, session: Session, config: RunConfig) -> Grid:
    """Behind a SuperLink, ours, and an end that comes in time; in a simulation or a test, the one that is there."""
    # Here and not above: a database's library comes with it, two seconds that nobody else need wait.
    from flwr.superlink.grid import GrpcGrid

    from server.link_grid import LinkGrid

    if not isinstance(grid, GrpcGrid):
        return grid
    leave_in_time(LEAVE_S)
    return LinkGrid(grid, limit(session, config), min(config.federation.deadline_s, 30.0))


def limit(session: Session, config: RunConfig) -> int:
    """The bytes that one reply may hold."""
    exchanged = {} if config.strategy in STRATEGIES else exchangeable(session.fleet)  # peers send theirs to each other
    return _WORDS + sum(4 * int(rows.shape[1]) for rows in exchanged.values())


def leave_in_time(seconds: float) -> None:
    """Whoever is told to go is gone so much later, and holds no run.

    Flower first joins threads of its own, and these may wait for the lock of the very call that the signal interrupted.
    """

    def force() -> None:
        time.sleep(seconds)
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        if not callable(before):
            continue

        def leave(signum: int, frame: FrameType | None, before: Callable[..., object] = before) -> None:
            threading.Thread(target=force, daemon=True).start()
            before(signum, frame)

        signal.signal(number, leave)


def show(words: str) -> None:
    """Print to the log of the ServerApp. Flower's log level holds back its logger, and never what is printed."""
    print(words, flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from the configuration that Flower hands over."""
    flat = context.run_config
    config = run_config(flat)
    if config.engine == "local":  # whatever the configuration says, agents are elsewhere
        config = replace(config, engine="grpc")
    session = Session(config, numbers=[0])
    check(config, session)
    if config.gossip.certificates:
        raise Mistake(
            "nodes have certificates of their own (fedrl node --certificates): leave 'gossip.certificates' away"
        )
    where = str(flat.get("directory") or "")
    directory = RunDirectory(Path(where or f"out/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id}"))
    if not where or not directory.conf.exists():
        directory = RunDirectory.create(directory.path, nested(config))
    show(f"the run is in {directory.path.resolve()}")
    try:
        summary = federate(
            config,
            _fit(grid, session, config),
            directory,
            session,
            lambda record: show(describe(record, config.rounds, config.steps, reported=True)),
            directory.stop_asked,
            show,
        )
        finish(directory, summary, config.algorithm, config.world.id)
    except (Mistake, Failure, OSError) as error:
        # Whoever submitted the run looks here: what Flower reports of an error is cut short.
        directory.leave_word(error)
        raise
    show(f"the run is over; its curve and summary are in {directory.path.resolve()}")
