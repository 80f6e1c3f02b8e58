"""The contract of a strategy with a server: the messages to agents, and how their replies are aggregated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from core.options import option
from strategies import messages
from strategies.messages import Trained
from strategies.method import Method, Parties, Run
from strategies.rules.rule import RuleConfig

Arrays = dict[str, NDArray[Any]]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class FederationConfig(RuleConfig):
    """A federation: which parts are exchanged, by which rule, and how long a round waits."""

    parts: str = option("", "Parts to exchange, such as actor,critic; empty: all parts of the learner.")
    fraction: float = option(1.0, "Share of the agents that are asked in a round.", above=0, high=1)
    evaluate_every: int = option(1, "Rounds between evaluations; the last round is always evaluated.", low=1)
    wait_s: float = option(
        60.0, "Seconds to wait for all agents; then the first round begins without the missing ones.", low=0
    )
    quorum: float = option(0.5, "Share of the asked agents whose replies a round needs.", above=0, high=1)
    deadline_s: float = option(
        60.0, "Seconds after which a round with a quorum goes on without the other replies.", low=0
    )
    give_up_s: float = option(
        600.0, "Seconds after which a round without a quorum ends the run, which can be resumed.", above=0
    )
    patience: int = option(3, "Rounds in a row without a valid reply after which an agent is left out.", low=1)
    leave_out: int = option(5, "Rounds for which such an agent is left out before it is asked again.", low=0)

    def asked(self, agents: int) -> int:
        """How many of so many agents a round asks."""
        return max(1, round(self.fraction * agents))


class Federation(Method, ABC):
    """K agents by number, a node for each, and what one round asks of them.

    ``widths`` are the arrays that travel and their lengths, ``layout`` is the number that says what they mean. Agents
    of a ``personal`` strategy keep weights of their own: where they live in this process, theirs are what a run leaves.
    """

    tables: ClassVar[Mapping[str, type[Any]]] = {"federation": FederationConfig}
    personal = False
    # Whether the round that is asked for next is evaluated.
    evaluated = False

    @classmethod
    @abstractmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        """Return the strategy of a run."""

    def __init__(self, widths: Mapping[str, int], layout: int, agents: int, work: int, wait_s: float = 60.0) -> None:
        self.widths, self.layout, self.agents, self.work = dict(widths), layout, agents, work
        self.wait_s = wait_s
        self.members: dict[int, int] = {}

    def admit(self, who: messages.Described) -> None:
        """Note a node's description of its agent, or refuse the node."""

    @abstractmethod
    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        """Return the message that each of these agents trains by; ``extra`` goes into every one."""

    @abstractmethod
    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        """Aggregate the accepted replies, in the order of the agents. Returns metrics for the ledger."""

    @abstractmethod
    def evaluation_orders(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        """Return the message that each of these agents is evaluated by."""

    @abstractmethod
    def learned(self) -> Arrays:
        """Return all that acting needs, a row per agent or one for all; empty where agents keep theirs."""

    def length(self, number: int) -> float:
        """Return how long a round's work is, in usual rounds."""
        return 1.0

    def passes(self, number: int, every: int) -> bool:
        """Return whether this round ends at or passes a multiple of ``every`` usual rounds (each is ``work`` long)."""
        return number % every == 0

    def extra_weights(self) -> dict[str, Arrays]:
        """Return other weights that a run leaves, each as a file of its name."""
        return {}

    @abstractmethod
    def state(self) -> Arrays:
        """Return everything that a resume needs, by name."""

    @abstractmethod
    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None: ...

    def read(self, message: Message) -> Trained:
        """Return what a reply says; raises RefusedError with a name and a reason."""
        return messages.trained(message, self.widths, self.layout)

    def order(self, number: int, arrays: Config, extra: Config) -> RecordDict:
        """Return the content of a train message: these weights, this much work, send the same parts back.

        ``extra`` overrides it, for a strategy that wants other work or gradients.
        """
        usual = {"round": number, "work": self.work, "layout": self.layout, "exchange": "weights", "pause": ""}
        return messages.content(arrays, usual, {"parts": list(self.widths)}, extra)
