"""Where a run's metrics go besides metrics.jsonl: TensorBoard events, and Weights & Biases behind a key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import Mistake


class Trackers:
    """Every metric of a round as its mean over the agents, and the worst agent's return."""

    def __init__(self, path: Path, conf: Mapping[str, Any], tensorboard: bool, wandb: bool, since: int = 0) -> None:
        """``since``: steps per agent that a resumed run has behind it; what was written past them is void."""
        self._wandb = _started(path, conf) if wandb else None
        self._board: Any = None
        if tensorboard:
            # Here and not above: a run without it need not wait for it.
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._board = EventFileWriter(str(path / "tensorboard"))
            if since:
                from tensorboard.compat.proto.event_pb2 import Event, SessionLog

                self._board.add_event(Event(step=since + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, record: Mapping[str, Any]) -> None:
        """One round, at the agents' mean step count."""
        if self._board is None and self._wandb is None:
            return
        at, found = int(np.mean(record["steps"])), scalars(record)
        if self._board is not None:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=name, simple_value=value) for name, value in found.items()]
            self._board.add_event(Event(wall_time=time.time(), step=at, summary=Summary(value=values)))
        if self._wandb is not None:
            self._wandb.log(found | {"steps": at})

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def scalars(record: Mapping[str, Any], where: str = "") -> dict[str, float]:
    """The numbers of a round, by name; what nobody measured is left out."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{where}{name}/")
            continue
        measured = [x for x in value if x is not None] if isinstance(value, list) else [value]
        if name.startswith("kl.") and isinstance(value, list):  # a number per edge, where a mean would say nothing
            found |= {f"{where}{name}/{k}": float(x) for k, x in enumerate(value) if x is not None}
        elif name not in ("round", "steps") and measured:
            found[where + name] = float(np.mean(measured))
    if known := [x for x in record.get("return", []) if x is not None]:
        found["return-worst"] = float(np.min(known))
    return found


def check(wandb: bool) -> None:
    """Refuse what is asked for and not installed, before anything starts."""
    if wandb and find_spec("wandb") is None:
        raise Mistake("'wandb' = true needs the extra: pip install -e '.[wandb]'")


def _started(path: Path, conf: Mapping[str, Any]) -> Any:
    import wandb  # type: ignore[import-not-found,unused-ignore]

    return wandb.init(project="fedrl", name=path.name, dir=str(path), config=dict(conf), resume="allow", id=path.name)
