"""The ServerApp, which `flwr run` starts in Flower's simulation and behind a SuperLink."""

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
from client.session import Session, limit_threads
from core.errors import Failure, Mistake
from runs.config import RunConfig, allowed_plugins, from_flower, written
from runs.directory import RunDirectory
from runs.report import describe, finish
from server.federate import check, check_agents, federate, refuse_certificates
from strategies.method import chosen

app = ServerApp()

# The most bytes of a reply that are not weights: metrics, names, Flower's own.
_OVERHEAD = 1_000_000
# How long a ServerApp may live after a signal, or after its SuperLink is gone.
LEAVE_S = 10.0


def _fit(grid: Grid, session: Session, config: RunConfig) -> Grid:
    """Return our grid behind a SuperLink, and the given grid in a simulation or a test."""
    # A late import: it loads a database library, which takes two seconds that only a ServerApp needs.
    from flower.grid import behind_superlink

    fast = behind_superlink(grid, limit(session, config), min(config.federation.deadline_s, 30.0))
    if fast is None:
        return grid
    leave_in_time(LEAVE_S)
    return fast


def limit(session: Session, config: RunConfig) -> int:
    """Return the most bytes of one reply."""
    exchanged = (
        {} if chosen(config).serverless else exchangeable(session.fleet)
    )  # peers send weights to each other only
    return _OVERHEAD + sum(4 * int(rows.shape[1]) for rows in exchanged.values())


def leave_in_time(seconds: float) -> None:
    """Exit at most so many seconds after SIGINT or SIGTERM, so that the process does not hold the run any longer.

    Flower joins its threads first. These may wait for the lock of the very call that the signal interrupted.
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


def show(line: str) -> None:
    """Print to the log of the ServerApp. Flower's log level filters its logger, but not what is printed."""
    print(line, flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation with the configuration of Flower's context."""
    flat = context.run_config
    config = from_flower(flat, allowed_plugins())
    if config.engine == "local":  # the agents are elsewhere, also if the configuration says local
        config = replace(config, engine="grpc")
    refuse_certificates(config)
    check(config)
    limit_threads(config.threads)
    session = Session(config, numbers=[0])
    check_agents(config, session)
    path = str(flat.get("directory") or "")
    directory = RunDirectory(Path(path or f"out/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id}"))
    if not path or not directory.conf.exists():
        directory = RunDirectory.create(directory.path, written(config))
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
        # The submitter of the run reads the error here: Flower cuts its report of an error short.
        directory.leave_word(error)
        raise
    show(f"the run is over; its curve and summary are in {directory.path.resolve()}")
