"""A node whose agents echo: ``python -m tests.client.echo SUPERLINK AGENTS STATE [APP [OPTION=VALUE...]]``.

APP is the digest that it claims to be installed with: that of a test's own small app, which holds none of our packages.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from cli.node import parse_agents
from client.node import Node
from core.errors import Failure, Mistake
from flower.keys import Address, Key


class Echo:
    """An agent that sends arrays back, does what a message asks for, and counts messages, also on disk."""

    def __init__(self, number: int, flat: Any, run: str, state: Path) -> None:
        self.number, self.path = number, state / f"{run}-{number}"
        self.count = int(self.path.read_text()) if self.path.exists() else 0

    def answer(self, message: Message) -> RecordDict:
        do, _, what = str(message.content.config_records["ask"]["do"]).partition(":")
        if do == "sleep":
            time.sleep(float(what))
        if do == "refuse":
            raise Mistake(what)
        if do == "break":
            raise KeyError(what)
        self.count += 1
        echo = ConfigRecord({"agent": self.number, "count": self.count})
        return RecordDict({"echo": echo, **message.content.array_records})

    def save(self) -> None:
        self.path.write_text(str(self.count))

    def close(self) -> None:
        pass


def main(superlink: str, agents: str, state: str, app: str = "", *options: str) -> None:
    given = {name: json.loads(value) for name, _, value in (option.partition("=") for option in options)}
    roots, keys = given.pop("roots", None), [Key.read(Path(name)) for name in given.pop("keys", [])]
    limit = given.pop("max_bytes", 256 * 2**20)
    address = Address(superlink, given.pop("insecure", roots is None), roots and Path(roots), limit)
    node = Node(
        address,
        parse_agents(agents),
        Echo,
        lambda flat, run_id: str(flat["name"]),
        Path(state),
        keys,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        app=app,
        **given,
    )
    node.serve()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Failure as failure:
        print(failure, file=sys.stderr)
        sys.exit(1)
