"""What every strategy of ours is: a Flower Strategy whose replies are checked one by one, as they come.

Flower's own loop (``Strategy.start``) works, and is enough for a quick look. Ours (server/rounds.py) asks the same
object in finer steps, because it must know which replies count while it still waits for others.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from core.config import option
from strategies import messages
from strategies.messages import Judged, RefusedError, Trained
from strategies.robust import RuleConfig

Arrays = dict[str, NDArray[Any]]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class FederationConfig(RuleConfig):
    """A federation: what is exchanged, by which rule, and how long to wait for whom."""

    parts: str = option("", "Parts that are exchanged, such as actor,critic; empty: all parts of the fleet.")
    fraction: float = option(1.0, "Share of the agents that a round asks.", above=0, high=1)
    evaluate_every: int = option(1, "Rounds between judgements; the last round is always judged.", low=1)
    wait_s: float = option(60.0, "Seconds to wait for all agents before the first round begins without some.", low=0)
    quorum: float = option(0.5, "Share of the asked agents whose answers a round needs.", above=0, high=1)
    deadline_s: float = option(60.0, "Seconds after which a round that has its quorum goes on without the rest.", low=0)
    give_up_s: float = option(600.0, "Seconds after which a round without its quorum ends the run, resumable.", above=0)
    patience: int = option(3, "Rounds in a row that an agent may miss or spoil before it is left out.", low=1)
    leave_out: int = option(5, "Rounds that such an agent is left out before it is asked again.", low=0)

    def asked(self, agents: int) -> int:
        """How many of so many agents a round asks."""
        return max(1, round(self.fraction * agents))


class Federation(Strategy):
    """K agents by number, a node for each, and what one round asks of them.

    ``widths`` are the arrays that travel and their lengths, ``layout`` the number that says what they mean. Agents of a
    ``personal`` one keep weights of their own: where they live in this process, theirs are what a run leaves.
    """

    personal = False
    # Whether the round that is asked for next is judged.
    judged = False

    def __init__(self, widths: Mapping[str, int], layout: int, agents: int, work: int, wait_s: float = 60.0) -> None:
        self.widths, self.layout, self.agents, self.work = dict(widths), layout, agents, work
        self.wait_s = wait_s
        self.members: dict[int, int] = {}

    # What a round is made of ------------------------------------------------------------------------------------------

    def admit(self, who: messages.Described) -> None:
        """A party has said who it is: know what this strategy needs to know of it, or refuse it."""

    @abstractmethod
    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        """What each of these agents is sent to train with; ``extra`` goes into every config."""

    @abstractmethod
    def combine(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        """Make one of what many learned; returns what the ledger should know. Replies are checked, in agents' order."""

    @abstractmethod
    def exams(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        """What each of these agents is sent to be judged."""

    @abstractmethod
    def learned(self) -> Arrays:
        """All that acting needs, a row per agent or one for everybody; empty when agents keep theirs to themselves."""

    def length(self, number: int) -> float:
        """How long a round's work is beside that of a usual one."""
        return 1.0

    def passes(self, number: int, every: int) -> bool:
        """Whether this round ends at or passes a multiple of ``every`` usual rounds (a usual one is ``work`` long)."""
        return number % every == 0

    def keepsakes(self) -> dict[str, Arrays]:
        """Other weights that a run leaves, each as a file of its name."""
        return {}

    @abstractmethod
    def state(self) -> Arrays:
        """Everything a resume needs, by name."""

    @abstractmethod
    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None: ...

    def read(self, message: Message) -> Trained:
        """A reply to an order, or a refusal by name."""
        return messages.trained(message, self.widths, self.layout)

    def order(self, number: int, arrays: Config, extra: Config) -> RecordDict:
        """The content of a train message: these weights, this much work, send the same parts back.

        ``extra`` goes over it, as for a strategy that wants other work or gradients.
        """
        usual = {"round": number, "work": self.work, "layout": self.layout, "exchange": "weights", "pause": ""}
        return messages.content(arrays, usual, {"parts": list(self.widths)}, extra)

    # Flower's own loop ------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.adopt(arrays)
        if not self.members:
            self.meet(grid)
        return self._addressed(MessageType.TRAIN, self.orders(server_round, sorted(self.members), dict(config)))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        accepted: dict[int, Trained] = {}
        for reply in replies:
            try:
                found = self.read(reply)
                if found.agent in accepted:
                    raise RefusedError("duplicate-party", f"agent {found.agent} has already answered this round")
                accepted[found.agent] = found
            except RefusedError as error:
                log(WARNING, "a reply was refused (%s): %s", error.reason, error)
        if not accepted:
            return None, None
        self.combine(server_round, [accepted[agent] for agent in sorted(accepted)])
        steps = float(sum(reply.steps for reply in accepted.values()))
        return self.arrays(), MetricRecord({"replies": len(accepted), "steps": steps})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._addressed(MessageType.EVALUATE, self.exams(server_round, sorted(self.members)))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        found: list[Judged] = []
        for reply in replies:
            try:
                found.append(messages.judged(reply))
            except RefusedError as error:
                log(WARNING, "a judgement was refused (%s): %s", error.reason, error)
        return MetricRecord({"return": float(np.median([one.value for one in found]))}) if found else None

    def summary(self) -> None:
        log(INFO, "%s of %s over %d agents", type(self).__name__, ", ".join(self.widths) or "nothing", self.agents)

    def arrays(self) -> ArrayRecord:
        """The weights as Flower carries them from round to round; empty for strategies that have no global ones."""
        return ArrayRecord()

    def adopt(self, arrays: ArrayRecord) -> None:
        """Take over the weights that Flower's loop hands in."""

    def meet(self, grid: Grid) -> None:
        """Ask every node which agent it is, until all are there or the wait is over."""
        deadline = time.monotonic() + self.wait_s
        asked: set[int] = set()
        while len(self.members) < self.agents and time.monotonic() < deadline:
            new = sorted(set(grid.get_node_ids()) - asked)
            asked |= set(new)
            letters = [Message(RecordDict(), node, MessageType.QUERY) for node in new]
            for reply in grid.send_and_receive(letters, timeout=self.wait_s) if letters else ():
                try:
                    who = messages.described(reply)
                    self.admit(who)
                    self.members[who.agent] = reply.metadata.src_node_id
                except RefusedError as error:
                    log(WARNING, "a node was refused (%s): %s", error.reason, error)
            if not new:
                time.sleep(0.1)
        if not self.members:
            raise TimeoutError(f"no party came within {self.wait_s:g} s; start some, or raise federation.wait-s")

    def _addressed(self, kind: str, contents: Mapping[int, RecordDict]) -> list[Message]:
        return [Message(content, self.members[agent], kind) for agent, content in contents.items()]
