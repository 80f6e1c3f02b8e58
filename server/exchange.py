"""One exchange of a round: a request to each agent, the replies so far, and how long to wait for the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message, MessageType, RecordDict

Answer = TypeVar("Answer")


@dataclass
class Exchange(Generic[Answer]):
    """A request of one kind to the agents of a round, and the replies so far.

    ``read`` checks a reply. ``quorum`` is how many replies are needed; an evaluation needs none, because a round that
    has been trained is not discarded for a missing return.
    """

    number: int
    kind: str
    asked: Sequence[int]
    contents: Mapping[int, RecordDict]
    read: Callable[[Message], Answer]
    quorum: int
    sent_to: set[int]
    begun: float
    replies: dict[int, Answer] = field(default_factory=dict)
    spoiled: set[int] = field(default_factory=set)  # agents with a refused reply
    arrivals: list[float] = field(default_factory=list)  # seconds from the request to each accepted reply

    @property
    def is_training(self) -> bool:
        return self.kind == MessageType.TRAIN

    @property
    def has_quorum(self) -> bool:
        return len(self.replies) >= self.quorum

    @property
    def missing(self) -> set[int]:
        return set(self.asked) - self.replies.keys()

    def pause(self, waited: float, due: Sequence[float]) -> float:
        """Return how long to sleep before the next poll; ``due`` are the expected arrivals of the replies."""
        count = len(self.replies)
        return pause(waited, due[count] if count < len(due) else 0.0, is_first=not count)


def pause(waited: float, due: float = 0.0, is_first: bool = True) -> float:
    """Return how long to sleep before the next poll: 5 ms to 50 ms, or longer if the first reply is not due soon.

    A poll costs the SuperLink milliseconds that the nodes need. So there is no poll long before the first reply is due,
    and polls become rarer the longer the next reply is overdue.
    """
    if is_first and waited < 0.75 * due - 0.005:
        return min(0.75 * due - waited, 0.5)
    return min(max((due - waited) / 2, (waited - due) / 10, 0.005), 0.05)


def named(agents: set[int]) -> str:
    """Return these agents as words: agent 3, or agents 1, 2."""
    return ("agent " if len(agents) == 1 else "agents ") + ", ".join(map(str, sorted(agents)))
