"""The ClientApp, which a stock SuperNode and Flower's simulation run for every message.

Both may answer each message of an agent in another process, so every training saves a snapshot. Our own node
(client/node.py) keeps the agent in memory and needs none.
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
from client.session import limit_threads
from core.errors import Mistake
from flower.fleet import FAILED
from runs.config import Flat, allowed_plugins

_here: dict[tuple[Path, str, int], Party] = {}


def make_app(flat: Flat | None = None, state: Path | None = None) -> ClientApp:
    """Return a ClientApp; ``flat`` replaces Flower's configuration, ``state`` the folder of the environment."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        config = context.run_config if flat is None else flat
        # Whoever gives the run by hand has named its plugins.
        party = _party(context, config, state or snapshots(), allowed_plugins() if flat is None else None)
        try:
            return Message(party.answer(message, keep=True), reply_to=message)
        except Silence as silence:  # Flower requires a reply from an app
            return Message(Error(FAILED, str(silence)), reply_to=message)

    app.train()(reply)
    app.evaluate()(reply)
    app.query()(reply)
    return app


def number_of(context: Context) -> int:
    """Return the number of the agent that a node hosts."""
    if "partition-id" not in context.node_config:
        raise Mistake("the node has no agent: name one with --node-config 'partition-id=0'")
    return int(context.node_config["partition-id"])


def snapshots() -> Path:
    """Return the folder of this machine's snapshots: FEDRL_STATE, or one among the user's temporary files."""
    return Path(os.environ.get("FEDRL_STATE") or Path(tempfile.gettempdir()) / f"fedrl-{os.getuid()}")


def _party(context: Context, config: Any, state: Path, allowed: list[str] | None) -> Party:
    number, name = number_of(context), run_name(config, context.run_id)
    key = (state, name, number)
    if key not in _here:
        for old in [other for other in _here if other[:2] != key[:2]]:
            _here.pop(old).close()
        _here[key] = Party(number, config, name, state, plugins=allowed)
        limit_threads(_here[key].config.threads)
    return _here[key]


app = make_app()
