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
from client.session import Session, limit_threads
from core.errors import Failure, Mistake
from runs.config import RunConfig, allowed_plugins, from_flower, written
from runs.directory import RunDirectory
from runs.report import describe, finish
from server.federate import check, federate, refuse_certificates
from strategies.method import chosen

app = ServerApp()

# Bytes of a reply that are not weights: metrics, names, Flower's own.
_WORDS = 1_000_000
# The longest that a ServerApp lives on when it is told to go, or its SuperLink is gone.
LEAVE_S = 10.0


def _fit(grid: Grid, session: Session, config: RunConfig) -> Grid:
    """Behind a SuperLink, ours, and an end that comes in time; in a simulation or a test, the one that is there."""
    # Here and not above: a database's library comes with it, two seconds that nobody else need wait.
    from flower.grid import behind_superlink

    found = behind_superlink(grid, limit(session, config), min(config.federation.deadline_s, 30.0))
    if found is None:
        return grid
    leave_in_time(LEAVE_S)
    return found


def limit(session: Session, config: RunConfig) -> int:
    """The bytes that one reply may hold."""
    exchanged = {} if chosen(config).serverless else exchangeable(session.fleet)  # peers send theirs to each other
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
    config = from_flower(flat, allowed_plugins())
    if config.engine == "local":  # whatever the configuration says, agents are elsewhere
        config = replace(config, engine="grpc")
    refuse_certificates(config)
    check(config)
    limit_threads(config.threads)
    session = Session(config, numbers=[0])
    where = str(flat.get("directory") or "")
    directory = RunDirectory(Path(where or f"out/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id}"))
    if not where or not directory.conf.exists():
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
        # Whoever submitted the run looks here: what Flower reports of an error is cut short.
        directory.leave_word(error)
        raise
    show(f"the run is over; its curve and summary are in {directory.path.resolve()}")
