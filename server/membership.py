"""The members of a federation: which node hosts which agent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from flwr.app import Message

from core.errors import Mistake
from runs import digest
from runs.ledger import Ledger
from server.mailbox import Mailbox
from strategies import messages
from strategies.federation import Federation
from strategies.messages import RefusedError

LOOK_S = 1.0  # seconds between two looks at the connected nodes
ASK_AGAIN_S = 30.0  # seconds between two queries to a node that is not a member


class Membership:
    """Admits nodes as members, and removes those that are gone. A node hosts one agent, an agent has one node.

    ``misfits`` are the nodes that the strategy cannot admit, with the reason.
    """

    def __init__(self, strategy: Federation, mailbox: Mailbox, ledger: Ledger, say: Callable[[str], None]) -> None:
        self.strategy, self.mailbox, self.ledger, self.say = strategy, mailbox, ledger, say
        self.app = digest.installed()
        self.misfits: dict[int, Mistake] = {}
        self._queried: set[int] = set()  # nodes that were asked which agent they are
        self._last_node: dict[int, int] = {}  # the last node of every agent that was ever a member
        self._looked, self._asked_again = -math.inf, time.monotonic()

    @property
    def members(self) -> dict[int, int]:
        """The node of every agent that is there."""
        return self.strategy.members

    def look(self) -> None:
        """Remove members whose node is gone, and query new nodes. At most once per ``LOOK_S``."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        nodes = set(self.mailbox.grid.get_node_ids())
        gone = [agent for agent, node in self.members.items() if node not in nodes]
        for agent in gone:
            self.say(f"agent {agent} is gone")
            del self.members[agent]
        if gone or now - self._asked_again > ASK_AGAIN_S:
            # Ask again the nodes that were refused or did not reply: they may have been repaired, or their agent may
            # now be without a node.
            self._asked_again = now
            self._queried &= set(self.members.values())
        new = sorted(nodes - self._queried)
        self._queried = nodes
        self.mailbox.query(new)

    def register(self, node: int, reply: Message, number: int) -> int | None:
        """Make a node a member by its reply to a query; return its agent, None if it is refused or was a member."""
        try:
            described = messages.described(reply)
            agent = described.agent
            self._check(described)
            if self.members.get(agent) == node:
                return None  # it was queried twice
            self._check_seat(agent, node)
            self._admit(described, node)
        except RefusedError as error:
            self.say(f"a node was refused ({error.reason}): {error}")
            self.ledger.reasons[error.reason] += 1
            return None
        if (before := self._last_node.get(agent)) is not None:
            self.say(f"agent {agent} is back{', at another node' if before != node else ''}")
        elif number:
            self.say(f"agent {agent} has joined")
        self._last_node[agent] = self.members[agent] = node
        self.misfits.pop(node, None)
        return agent

    def _check(self, described: messages.Described) -> None:
        """Refuse an agent that the run does not have, and one with another layout of weights or other code."""
        agent = described.agent
        if not 0 <= agent < self.strategy.agents:
            raise RefusedError("unknown-agent", f"a node says it is agent {agent}")
        if described.layout != self.strategy.layout:
            raise RefusedError(
                "wrong-layout", f"agent {agent} has the layout {described.layout:012x}, not {self.strategy.layout:012x}"
            )
        if described.app != self.app:
            raise RefusedError("wrong-app", f"agent {agent} runs the code {described.app}, the server {self.app}")

    def _check_seat(self, agent: int, node: int) -> None:
        """Refuse a second node of an agent, and a second agent of a node.

        The node of an agent is the first one, until the SuperLink drops it. A node that owes a reply keeps its agent:
        an agent that learns for a minute owes one for a minute, and any other node could take its place.
        """
        if agent in self.members:
            raise RefusedError("taken", f"another node is agent {agent}, and is there")
        if node in self.members.values():
            (other,) = (other for other, its_node in self.members.items() if its_node == node)
            raise RefusedError("taken", f"the node of agent {other} says it is agent {agent} as well")

    def _admit(self, described: messages.Described, node: int) -> None:
        """Let the strategy admit a node. A misfit is refused; as many misfits as agents end the run."""
        try:
            self.strategy.admit(described)
        except Mistake as mistake:
            self.misfits[node] = mistake
            raise RefusedError("no-part", str(mistake)) from None
