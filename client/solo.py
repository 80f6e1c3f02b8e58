"""Fleets without a federation: every agent learns on its own. The baseline of everything else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from client.session import RunConfig, Session
from core.config import flatten
from runs import checkpoints
from runs.directory import RunDirectory
from runs.trackers import Trackers

Record = dict[str, Any]


def train_alone(config: RunConfig, session: Session, run: RunDirectory, tell: Callable[[Record], None]) -> Record:
    """Rounds of training and judging until every agent has done its steps; returns the summary.

    Picks up where the checkpoint is, if there is one. Ctrl-C finishes the round and leaves a resumable run; the second
    Ctrl-C stops at once.
    """
    fleet = session.fleet
    rounds, wall_before = resume(session, run)
    behind = int(np.mean(fleet.worlds.steps)) if rounds else 0
    trackers = Trackers(run.path, flatten(config), config.tensorboard, config.wandb, behind)
    begun = time.perf_counter()
    saved = True
    with closing(trackers), interruptible() as stop:
        while fleet.worlds.steps.min() < config.steps and not stop.asked:
            rounds += 1
            report = session.train(config.work)
            judging = time.perf_counter()
            totals: list[list[float]] = [[] for _ in range(fleet.agents)]
            for episode in report.episodes:
                totals[episode.agent].append(episode.total)
            learned = [float(np.mean(t)) if t else None for t in totals]
            judged = session.evaluate().mean(axis=1).tolist() if session.judges is not None else learned
            now = time.perf_counter()
            record = {
                "round": rounds,
                "steps": fleet.worlds.steps.tolist(),
                "updates": report.updates.tolist(),
                "return": judged,
                "training-return": learned,
                "episodes": [len(t) for t in totals],
                "acting_s": round(report.acting_s, 4),
                "learning_s": round(report.learning_s, 4),
                "judging_s": round(now - judging, 4),
                "wall_s": round(wall_before + now - begun, 3),
            } | {name: [round(float(v), 6) for v in values] for name, values in report.metrics.items()}
            record = clean(record)
            run.log(record)
            trackers.log(record)
            tell(record)
            # Not only before a checkpoint: so a run that is stopped after any round equals one that is not.
            fleet.settle()
            saved = rounds % config.checkpoint_every == 0
            if saved:
                save(session, run, rounds, record["wall_s"])
        if not saved:
            save(session, run, rounds, wall_before + time.perf_counter() - begun)
    return summary(run, interrupted=stop.asked)


def resume(session: Session, run: RunDirectory) -> tuple[int, float]:
    """Load the checkpoint if there is one: the rounds done and the seconds spent so far."""
    if not run.checkpoint.exists():
        run.rewind(0)
        return 0, 0.0
    arrays, meta = checkpoints.load(run.checkpoint)
    session.load_state(arrays)
    run.rewind(meta["round"])
    return int(meta["round"]), float(meta["wall_s"])


def save(session: Session, run: RunDirectory, rounds: int, wall_s: float) -> None:
    run.save(session.state(), {"round": rounds, "wall_s": wall_s})
    config = session.config
    run.save_weights(session.fleet.learned, {"algorithm": config.algorithm, "world": config.world.id})


def summary(run: RunDirectory, interrupted: bool) -> Record:
    """What a run comes to: means over agents."""
    records = run.read_metrics()
    returns = [float(np.mean([r for r in record["return"] if r is not None] or [np.nan])) for record in records]
    found: Record = clean(
        {
            "run_dir": str(run.path),
            "rounds": len(records),
            "env_steps": int(np.sum(records[-1]["steps"])) if records else 0,
            "final_return": returns[-1] if returns else None,
            "best_return": float(np.nanmax(returns)) if returns else None,
            "wall_s": records[-1]["wall_s"] if records else 0.0,
            "interrupted": interrupted,
        }
    )
    return found


def clean(value: Any) -> Any:
    """JSON has no nan: what was not measured is null."""
    if isinstance(value, dict):
        return {key: clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


class Stop:
    asked = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM asks to stop; after it the usual handler is back."""
    stop = Stop()
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop.asked = True
        for name, handler in before.items():
            signal.signal(name, handler)

    for name in before:
        signal.signal(name, ask)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
