"""A party of a federation: finds its session again, message after message, process after process.

Flower may answer each message in another process (a stock SuperNode starts one per message, a simulation's nodes hop
between actors). So the session is kept in memory where it is fresh, and in a snapshot on disk where it is not; which of
the two holds is one number in Flower's own state.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context
from numpy.typing import NDArray

from agents.fleet import Fleet
from client.session import PartyConfig, Session
from core.config import build, unflatten
from core.errors import Failure, Mistake
from runs import checkpoints
from strategies import messages

_STATE = "fedrl"
_here: dict[tuple[int, int], tuple[int, Session]] = {}


def party_config(flat: Any) -> PartyConfig:
    """The configuration of a run out of Flower's flat one; what only the server reads is left out."""
    return build(
        PartyConfig, unflatten({key: value for key, value in flat.items() if not key.startswith("federation.")})
    )


def number_of(context: Context) -> int:
    """Which agent this node is."""
    if "partition-id" not in context.node_config:
        raise Mistake("the node does not say which agent it is: start it with --node-config 'partition-id=0'")
    number, agents = int(context.node_config["partition-id"]), int(context.run_config.get("agents", 1))
    if not 0 <= number < agents:
        raise Mistake(f"'partition-id' is {number}, and the run has the agents 0 to {agents - 1} (key 'agents')")
    return number


def party(context: Context) -> Session:
    """This node's session as the last message left it."""
    number, generation = number_of(context), _generation(context)
    kept = _here.get((context.run_id, number))
    if kept is not None and kept[0] == generation:
        return kept[1]
    session = Session(party_config(context.run_config), numbers=[number])
    if generation:
        path = _snapshot(context, number)
        arrays, meta = checkpoints.load(path)
        if meta["generation"] != generation:
            raise Failure(
                f"{path} is snapshot {meta['generation']}, the run is at {generation}: another node wrote it?"
            )
        session.load_state(arrays)
    _here[context.run_id, number] = (generation, session)
    return session


def remember(context: Context, session: Session) -> None:
    """Make what the session is now what the next message finds."""
    number, generation = number_of(context), _generation(context) + 1
    path = _snapshot(context, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(path, session.state(), {"generation": generation})
    context.state[_STATE] = ConfigRecord({"generation": generation})
    _here[context.run_id, number] = (generation, session)


def exchangeable(fleet: Fleet) -> dict[str, NDArray[Any]]:
    """Everything of a fleet that may travel, by its name in a message: parts, and what the moments have seen since."""
    return dict(fleet.parts) | {messages.MOMENTS + name: moments.seen for name, moments in fleet.moments.items()}


def _generation(context: Context) -> int:
    record = context.state.get(_STATE)
    return int(record["generation"]) if isinstance(record, ConfigRecord) else 0  # type: ignore[arg-type]


def _snapshot(context: Context, number: int) -> Path:
    """Snapshots live in FEDRL_STATE, or beside other temporary files of this machine."""
    root = Path(os.environ.get("FEDRL_STATE", Path(tempfile.gettempdir()) / "fedrl"))
    return root / f"run-{context.run_id}" / f"agent-{number}.npz"
