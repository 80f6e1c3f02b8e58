"""The pending requests of a server: each is sent once, and its reply is found by the id of the request."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from runs.ledger import Ledger

NOBODY = -1  # the agent of a query: the node has not yet said which agent it is


class Request(NamedTuple):
    """A pending request. ``kind`` is a message type, ``sent`` a time of the monotonic clock."""

    number: int
    kind: str
    agent: int
    node: int
    sent: float


class Mailbox:
    """Sends requests over a grid, and pairs replies with them."""

    def __init__(self, grid: Grid, ledger: Ledger) -> None:
        self.grid, self.ledger = grid, ledger
        self._pending: dict[str, Request] = {}

    def send(
        self, number: int, kind: str, contents: Mapping[int, RecordDict], members: Mapping[int, int], lifetime: float
    ) -> None:
        """Send each agent its message. A node that receives it after ``lifetime`` seconds ignores it."""
        now, agents = time.monotonic(), list(contents)
        sent = [Message(contents[agent], members[agent], kind, ttl=lifetime) for agent in agents]
        for agent, name in zip(agents, self.grid.push_messages(sent) if sent else (), strict=True):
            if name:
                self._pending[name] = Request(number, kind, agent, members[agent], now)
        self.ledger.sent(kind, contents)

    def query(self, nodes: Sequence[int]) -> None:
        """Ask nodes which agent they are."""
        now = time.monotonic()
        sent = [Message(RecordDict(), node, MessageType.QUERY, ttl=3600.0) for node in nodes]
        for node, name in zip(nodes, self.grid.push_messages(sent) if sent else (), strict=True):
            if name:
                self._pending[name] = Request(0, MessageType.QUERY, NOBODY, node, now)

    def receive(self, expiry_s: float) -> list[tuple[Request, Message]]:
        """Return the replies that have arrived, each with its request. Requests older than ``expiry_s`` are dropped."""
        if not self._pending:
            return []
        with self.ledger.timing("waiting_s"):
            replies = list(self.grid.pull_messages(list(self._pending)))
        pairs = [(self._pending.pop(reply.metadata.reply_to_message_id, None), reply) for reply in replies]
        oldest = time.monotonic() - expiry_s
        for name in [name for name, request in self._pending.items() if request.sent < oldest]:
            del self._pending[name]
        return [(request, reply) for request, reply in pairs if request is not None]

    def owing(self, number: int, kind: str, members: Mapping[int, int]) -> list[int]:
        """Return the agents that owe a reply of this exchange and whose node is still there."""
        return [
            request.agent
            for request in self._pending.values()
            if (request.number, request.kind) == (number, kind) and members.get(request.agent) == request.node
        ]
