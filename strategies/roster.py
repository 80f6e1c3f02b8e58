"""Weights go between agents only: the server says who is there and where, counts rounds, and gathers figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import Message, RecordDict

from core.errors import Mistake
from strategies import messages
from strategies.alone import Alone
from strategies.federation import Config
from strategies.messages import Described, Trained


class Roster(Alone):
    """Every order says who takes part and where each is reached: who comes, leaves or moves is known with the next.

    No array comes with an order or an answer: one that has any is refused. What all the words of a round's orders and
    answers weigh is counted (``words_down``, ``words_up``), and what agents sent each other (``peers.bytes_up``).
    """

    def __init__(self, layout: int, agents: int, work: int, wait_s: float = 60.0) -> None:
        super().__init__({}, layout, agents, work, wait_s)
        self.addresses: dict[int, str] = {}
        self._down, self._up = [0] * agents, [0] * agents

    def admit(self, who: Described) -> None:
        address = who.words.get("address")
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

    def combine(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        return {"words_up": self._up, "words_down": self._down}


def _size(content: RecordDict) -> int:
    """Bytes of what Flower carries of it."""
    return sum(len(record.deflate()) for record in content.config_records.values())
