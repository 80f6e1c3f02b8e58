"""No federation: every agent learns alone. The baseline of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from core.errors import Mistake
from core.rows import adopt
from strategies import messages
from strategies.federation import Arrays, Config, Federation
from strategies.messages import Trained
from strategies.method import Parties, Run, strategy, widths


@strategy("alone")
class Alone(Federation):
    """Agents train and are evaluated as they are.

    Nothing travels for learning. Where agents live elsewhere, the ``widths`` of what they learn are given. Whenever
    they save a snapshot or are evaluated they send it to the server as well, for the run's directory."""

    personal = True

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        if run.federation.rule not in ("auto", "mean", "weighted-mean"):
            raise Mistake(f"{run.strategy} aggregates nothing: leave out 'federation.rule'")

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        away = {} if run.engine == "local" else widths(parties.start)
        return cls(away, parties.layout, run.agents, parties.work)

    def __init__(self, widths: Mapping[str, int], layout: int, agents: int, work: int, wait_s: float = 60.0) -> None:
        super().__init__(widths, layout, agents, work, wait_s)
        self.rows: Arrays = {name: np.full((agents, width), np.nan, np.float32) for name, width in widths.items()}
        self._asked: list[str] = []

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        self._asked = list(self.widths) if extra.get("save") or self.evaluated else []
        return dict.fromkeys(agents, self.order(number, {}, {**extra, "parts": self._asked}))

    def read(self, message: Message) -> Trained:
        return messages.trained(message, {name: self.widths[name] for name in self._asked}, self.layout)

    def evaluation_orders(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, RecordDict())

    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        for reply in replies:
            for name, row in reply.parts.items():
                self.rows[name][reply.agent] = row
        return {}

    def learned(self) -> Arrays:
        found: Arrays = {}
        if not self._asked:  # the rows of an earlier round are out of date
            return found
        for name, rows in self.rows.items():
            if name.startswith(messages.MOMENTS):
                found |= {f"{name}.shared": np.zeros_like(rows, np.float64), f"{name}.seen": rows.astype(np.float64)}
            else:
                found[name] = rows
        return found

    def state(self) -> Arrays:
        return dict(self.rows)

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, mine in self.rows.items():
            adopt(mine, state, name)
