"""The grid of the local engine. A grid is how a server reaches its agents."""

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
    """All agents in this process. Equal requests are answered by one step of one fleet."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._pending: dict[str, Message] = {}
        self._late: dict[str, tuple[float, Message]] = {}  # replies that an attack delays, and until when
        self._ids = map(str, itertools.count(1))

    def get_node_ids(self) -> list[int]:
        return [number + 1 for number in self.session.numbers]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = next(self._ids)
            message.metadata.__dict__["_message_id"] = name
            self._pending[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = list(message_ids)
        pending = [self._pending.pop(name) for name in names if name in self._pending]
        groups: dict[Any, list[Message]] = {}
        keys: dict[int, Any] = {}  # by content: most messages of a round share one
        for message in pending:
            content = id(message.content)
            if content not in keys:
                question = messages.request_key(message.content) if message.has_content() else ""
                keys[content] = message.metadata.message_type, question
            groups.setdefault(keys[content], []).append(message)
        replies = [reply for group in groups.values() for reply in self._answer(group)]
        due = [name for name in names if name in self._late and self._late[name][0] <= time.monotonic()]
        return replies + [self._late.pop(name)[1] for name in due]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        names, begun = self.push_messages(messages), time.monotonic()
        replies = self.pull_messages(names)
        while any(name in self._late for name in names) and (timeout is None or time.monotonic() - begun < timeout):
            time.sleep(0.01)
            replies += self.pull_messages(names)
        return replies

    def _answer(self, requests: list[Message]) -> list[Message]:
        """Return the immediate replies. Replies that an attack delays are kept until they are due."""
        rows = [self.session.numbers.index(message.metadata.dst_node_id - 1) for message in requests]
        answers, now = answer(self.session, list(zip(rows, requests, strict=True))), time.monotonic()
        replies = []
        for (content, after), message in zip(answers, requests, strict=True):
            if not after:
                replies.append(Message(content, reply_to=message))
            elif math.isfinite(after):
                self._late[message.metadata.message_id] = now + after, Message(content, reply_to=message)
        return replies

    def set_run(self, run: Any) -> None:
        raise NotImplementedError("a local grid does not belong to a run of Flower")

    @property
    def run(self) -> Any:
        raise NotImplementedError("a local grid does not belong to a run of Flower")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("use Message(...)")
