"""FedAvg (McMahan 2017) over any part of any fleet: the mean of what agents learned, weighted by their work."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from core.moments import merged
from core.rows import adopt
from strategies import messages
from strategies.federation import Arrays, Config, Federation
from strategies.messages import Trained
from strategies.method import Parties, Run, exchanged, strategy
from strategies.rules.means import weighted_mean
from strategies.rules.robust import make_rule
from strategies.rules.rule import F32, Rule, TooFewError, Verdict

log = logging.getLogger("fedrl")


@strategy("fedavg")
class FedAvg(Federation):
    """Every round agents train from the same weights and send theirs back; a rule aggregates them.

    Arrays named ``moments...`` hold what an agent has seen since the last exchange. They are added up by the
    parallel-variance formula. The others are parts, and go to the rule.
    """

    @classmethod
    def fits(cls, run: Run, parties: Parties) -> None:
        super().fits(run, parties)
        chosen_rule(run, run.federation.asked(run.agents))

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        rule = chosen_rule(run, run.federation.asked(run.agents))
        start = start_of(run, parties)
        return cls(start, parties.layout, run.agents, parties.work, rule, run.federation.wait_s)

    def __init__(
        self,
        start: Mapping[str, NDArray[Any]],
        layout: int,
        agents: int,
        work: int,
        rule: Rule = weighted_mean,
        wait_s: float = 60.0,
    ) -> None:
        super().__init__({name: len(row) for name, row in start.items()}, layout, agents, work, wait_s)
        self.rule = rule
        # Moments are sums over the whole run: float32 would stop counting after 16 million steps.
        self.rows: Arrays = {
            name: np.array(row, np.float64 if name.startswith(messages.MOMENTS) else np.float32)
            for name, row in start.items()
        }
        self._packed: dict[str, bytes] = {}
        # The rows are gathered here: fresh memory of this size costs more than the mean of it.
        self._sent = {
            name: np.empty((agents, width), np.float32)
            for name, width in self.widths.items()
            if not name.startswith(messages.MOMENTS)
        }

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, self.order(number, self._entries(), extra))

    def evaluation_orders(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, messages.content(self._entries()))

    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        weights = np.array([reply.updates for reply in replies])
        notes: dict[str, Any] = {}
        for name in self.widths:
            if name.startswith(messages.MOMENTS):
                for reply in replies:
                    self.rows[name] = merged(self.rows[name], reply.parts[name].astype(np.float64))
            else:
                notes |= self.aggregate_part(number, name, replies, weights, self.rows)
        self._packed = {}
        return notes

    def aggregate_part(
        self, number: int, name: str, replies: Sequence[Trained], weights: NDArray[np.float64], into: Arrays
    ) -> dict[str, Any]:
        """Aggregate one part with the rule. Returns the agents whose rows were used."""
        try:
            rows = np.stack([reply.parts[name] for reply in replies], out=self._sent[name][: len(replies)])
            verdict = self.aggregate_rows(name, rows, weights)
        except TooFewError as error:
            log.warning("round %d keeps what it had of '%s': %s", number, name, error)
            return {}
        if verdict.kept.size:  # a rule that trusts nobody has no verdict
            into[name] = verdict.row
        kept: list[int | None] = [None] * self.agents
        for k, reply in enumerate(replies):
            kept[reply.agent] = int(k in verdict.kept)
        return {f"kept.{name}": kept} | {f"{key}.{name}": value for key, value in verdict.notes.items()}

    def aggregate_rows(self, part: str, rows: F32, weights: NDArray[np.float64]) -> Verdict:
        """Return one row of a part out of many (n, d); a strategy of a user's may override this."""
        return self.rule(rows, weights)

    def learned(self) -> Arrays:
        found: Arrays = {}
        for name, row in self.rows.items():
            if name.startswith(messages.MOMENTS):
                found |= {f"{name}.shared": row[None].copy(), f"{name}.seen": np.zeros((1, len(row)))}
            else:
                found[name] = row[None].copy()
        return found

    def state(self) -> Arrays:
        return dict(self.rows)

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, row in self.rows.items():
            adopt(row, state, name)
        self._packed = {}

    def _entries(self) -> dict[str, bytes]:
        self._packed = self._packed or messages.pack(self.rows)
        return self._packed


def chosen_rule(run: Run, parties: int, measured: Rule | None = None) -> Rule:
    """Return the rule of a run for so many parties."""
    config = run.federation
    options = None if config.rule == "auto" else run.options("rule", config.rule)
    return make_rule(config, parties, measured, options)


def start_of(run: Run, parties: Parties) -> Arrays:
    """Return what travels, as it is at the start: the first agent's weights of the chosen parts, and empty moments."""
    names = exchanged(run, parties.parts)
    moments = [name for name in parties.start if name not in parties.parts]
    return {name: parties.start[name].copy() for name in (*names, *moments)}
