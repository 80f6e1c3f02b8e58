"""The server's part where weights go between agents only: it hands out addresses, counts rounds, gathers figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import Message, RecordDict

from core.errors import Mistake
from strategies import messages
from strategies.alone import Alone
from strategies.federation import Config, Federation
from strategies.messages import Described, Trained
from strategies.method import Parties, Run


class Roster(Alone):
    """Every order says which agents take part and where each is reached.

    No array travels with an order or a reply: a reply that has one is refused. The bytes of orders and replies are
    counted (``words_down``, ``words_up``), and those that agents sent each other (``peers.bytes_up``).
    """

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        return cls(parties.layout, run.agents, parties.work, run.federation.wait_s)

    def __init__(self, layout: int, agents: int, work: int, wait_s: float = 60.0) -> None:
        super().__init__({}, layout, agents, work, wait_s)
        self.addresses: dict[int, str] = {}
        self._down, self._up = [0] * agents, [0] * agents

    def admit(self, who: Described) -> None:
        address = who.entries.get("address")
        if not messages.is_address(address):
            raise Mistake(
                f"agent {who.agent} does not say where others reach it, and in this run weights go from node to node: "
                "start every node with fedrl node --peers HOST (a SuperNode of Flower's, and the engine ray, keep no "
                "agent that others could reach), or take the engine local or gossip"
            )
        self.addresses[who.agent] = str(address)

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        there = [agent for agent in agents if agent in self.members]
        roster = {"peers": there, "addresses": [self.addresses[agent] for agent in there]}
        order = self.order(number, {}, {**extra, **roster})
        size, self._up = _size(order), [0] * self.agents
        self._down = [size if agent in there else 0 for agent in range(self.agents)]
        return dict.fromkeys(agents, order)

    def read(self, message: Message) -> Trained:
        found = messages.trained(message, {}, self.layout)
        if 0 <= found.agent < self.agents:
            self._up[found.agent] = _size(message.content)
        return found

    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        return {"words_up": self._up, "words_down": self._down}


def _size(content: RecordDict) -> int:
    """Bytes of what Flower carries of it."""
    return sum(len(record.deflate()) for record in content.config_records.values())
