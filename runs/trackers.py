"""Trackers: TensorBoard events, and Weights & Biases where the conf asks for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import Mistake


class Trackers:
    """Logs every metric of a round as its mean over the agents, and the return of the worst agent."""

    def __init__(self, path: Path, conf: Mapping[str, Any], tensorboard: bool, wandb: bool, since: int = 0) -> None:
        """``since`` is the steps per agent at which a resumed run continues; later events are discarded."""
        self._wandb = _start_wandb(path, conf) if wandb else None
        self._board: Any = None
        if tensorboard:
            # Imported here, since it takes time and most runs do without.
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._board = EventFileWriter(str(path / "tensorboard"))
            if since:
                from tensorboard.compat.proto.event_pb2 import Event, SessionLog

                self._board.add_event(Event(step=since + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one round, at the mean step count of the agents."""
        if self._board is None and self._wandb is None:
            return
        at, values = int(np.mean(record["steps"])), scalars(record)
        if self._board is not None:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._board.add_event(Event(wall_time=time.time(), step=at, summary=Summary(value=entries)))
        if self._wandb is not None:
            self._wandb.log(values | {"steps": at})

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a round by name, without metrics that no agent measured."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            numbers |= scalars(value, f"{prefix}{name}/")
            continue
        measured = [x for x in value if x is not None] if isinstance(value, list) else [value]
        if name.startswith("kl.") and isinstance(value, list):  # one number per edge; their mean would be meaningless
            numbers |= {f"{prefix}{name}/{k}": float(x) for k, x in enumerate(value) if x is not None}
        elif name not in ("round", "steps") and measured:
            numbers[prefix + name] = float(np.mean(measured))
    if returns := [x for x in record.get("return", []) if x is not None]:
        numbers["return-worst"] = float(np.min(returns))
    return numbers


def check(wandb: bool) -> None:
    """Refuse a tracker that is not installed, before anything starts."""
    if wandb and find_spec("wandb") is None:
        raise Mistake("'wandb' = true needs Weights & Biases: pip install -e '.[wandb]'")


def _start_wandb(path: Path, conf: Mapping[str, Any]) -> Any:
    import wandb  # type: ignore[import-not-found,unused-ignore]

    return wandb.init(project="fedrl", name=path.name, dir=str(path), config=dict(conf), resume="allow", id=path.name)
