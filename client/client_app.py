"""The ClientApp: what a stock SuperNode and Flower's simulation run when a message comes.

Both may answer each message of an agent in another process, so every training leaves a snapshot. Our own node
(client/node.py) keeps the agent instead, and does without.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from attacks.plan import Silence
from client.party import Party, run_name
from core.errors import Mistake
from flower.fleet import FAILED
from runs.config import Flat, allowed_plugins

_here: dict[tuple[Path, str, int], Party] = {}


def make_app(flat: Flat | None = None, state: Path | None = None) -> ClientApp:
    """A ClientApp; ``flat`` and ``state`` stand in for what Flower and the environment would say."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        config = context.run_config if flat is None else flat
        # Whoever gives the run by hand has named its plugins.
        party = _party(context, config, state or snapshots(), allowed_plugins() if flat is None else None)
        try:
            return Message(party.answer(message, keep=True), reply_to=message)
        except Silence as silence:  # Flower takes no silence from an app
            return Message(Error(FAILED, str(silence)), reply_to=message)

    app.train()(reply)
    app.evaluate()(reply)
    app.query()(reply)
    return app


def number_of(context: Context) -> int:
    """Which agent this node is."""
    if "partition-id" not in context.node_config:
        raise Mistake("the node does not say which agent it is: start it with --node-config 'partition-id=0'")
    return int(context.node_config["partition-id"])


def snapshots() -> Path:
    """Where this machine keeps the snapshots of agents: FEDRL_STATE, or beside the user's other temporary files."""
    return Path(os.environ.get("FEDRL_STATE") or Path(tempfile.gettempdir()) / f"fedrl-{os.getuid()}")


def _party(context: Context, config: Any, state: Path, allowed: list[str] | None) -> Party:
    number, name = number_of(context), run_name(config, context.run_id)
    key = (state, name, number)
    if key not in _here:
        for gone in [other for other in _here if other[:2] != key[:2]]:
            _here.pop(gone).close()
        _here[key] = Party(number, config, name, state, plugins=allowed)
    return _here[key]


app = make_app()
