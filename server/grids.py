"""The grid of the local engine. A grid is how a server reaches its parties: Flower's strategies talk to one."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from client.answers import answer
from client.session import Session
from strategies import messages


class LocalGrid(Grid):
    """All agents in this process. The messages that ask the same are answered by one step of one fleet."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._open: dict[str, Message] = {}
        self._late: dict[str, tuple[float, Message]] = {}  # answers that an attack keeps back, and until when
        self._ids = map(str, itertools.count(1))

    def get_node_ids(self) -> list[int]:
        return [number + 1 for number in self.session.numbers]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = next(self._ids)
            message.metadata.__dict__["_message_id"] = name
            self._open[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = list(message_ids)
        asked = [self._open.pop(name) for name in names if name in self._open]
        alike: dict[Any, list[Message]] = {}
        known: dict[int, Any] = {}  # most messages of a round share one content
        for message in asked:
            content = id(message.content)
            if content not in known:
                asks = messages.request_key(message.content) if message.has_content() else ""
                known[content] = message.metadata.message_type, asks
            alike.setdefault(known[content], []).append(message)
        found = [reply for group in alike.values() for reply in self._answer(group)]
        due = [name for name in names if name in self._late and self._late[name][0] <= time.monotonic()]
        return found + [self._late.pop(name)[1] for name in due]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        names, begun = self.push_messages(messages), time.monotonic()
        found = self.pull_messages(names)
        while any(name in self._late for name in names) and (timeout is None or time.monotonic() - begun < timeout):
            time.sleep(0.01)
            found += self.pull_messages(names)
        return found

    def _answer(self, asked: list[Message]) -> list[Message]:
        """The answers that go at once; those that an attack delays are kept back, and silence is no answer."""
        rows = [self.session.numbers.index(message.metadata.dst_node_id - 1) for message in asked]
        answers, now = answer(self.session, list(zip(rows, asked, strict=True))), time.monotonic()
        found = []
        for (content, after), message in zip(answers, asked, strict=True):
            if not after:
                found.append(Message(content, reply_to=message))
            elif math.isfinite(after):
                self._late[message.metadata.message_id] = now + after, Message(content, reply_to=message)
        return found

    def set_run(self, run: Any) -> None:
        raise NotImplementedError("a local grid belongs to no run of Flower's")

    @property
    def run(self) -> Any:
        raise NotImplementedError("a local grid belongs to no run of Flower's")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("use Message(...)")
