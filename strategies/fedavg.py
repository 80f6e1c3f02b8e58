"""FedAvg (McMahan 2017) over any part of any fleet: the mean of what the parties learned, weighted by their work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from core.moments import merged
from strategies import messages
from strategies.messages import RefusedError
from strategies.robust import Rule, weighted_mean

Record = dict[str, Any]


class FedAvg(Strategy):
    """Every round all parties train from the same weights and send theirs back; a rule makes them one.

    ``widths`` are the exchanged arrays and their lengths. Those named ``moments...`` hold what a party has seen since
    the last exchange, and are added up by the parallel-variance formula; the others are parts, and go to the rule. A
    reply that breaks the message contract is refused with a named reason, counted, and never reaches the rule.
    ``tell`` gets a record of every round.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        parties: int,
        wait_s: float = 60.0,
        rule: Rule = weighted_mean,
        tell: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.widths, self.parties, self.wait_s, self.rule, self.tell = dict(widths), parties, wait_s, rule, tell
        self.refused: Counter[str] = Counter()
        self.steps: Counter[int] = Counter()
        self._began = time.perf_counter()
        self.moments = {name: np.zeros(width) for name, width in widths.items() if name.startswith(messages.MOMENTS)}
        self._round: Record = {}

    def summary(self) -> None:
        log(INFO, "FedAvg of %s over %d parties", ", ".join(self.widths), self.parties)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._round = {"round": server_round, "began": time.perf_counter()}
        content = messages.content(arrays, config)
        return [Message(content, node, MessageType.TRAIN) for node in self._nodes(grid)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        accepted: list[tuple[int, float, float, dict[str, Any]]] = []
        known: set[float] = set()
        for reply in replies:
            try:
                parts = messages.unpack(reply, self.widths)
                party, steps, updates = (messages.number(reply, name) for name in ("party", "steps", "updates"))
                if updates < 0 or steps < 0:
                    raise RefusedError(
                        "negative-work", f"party {party:g} says it did {steps:g} steps, {updates:g} updates"
                    )
                if party in known:
                    raise RefusedError("duplicate-party", f"party {party:g} has already answered this round")
                known.add(party)
                accepted.append((int(party), steps, updates, parts))
            except RefusedError as error:
                self._refuse(error)
        if not accepted:
            return None, None
        # By party, so that the sum does not depend on the order in which replies arrive.
        accepted.sort(key=lambda reply: reply[0])
        weights = np.array([updates for _, _, updates, _ in accepted])
        merged_row: dict[str, Any] = {}
        for name in self.widths:
            rows = [parts[name] for *_, parts in accepted]
            if name in self.moments:
                for seen in rows:
                    self.moments[name] = merged(self.moments[name], seen.astype(np.float64))
            merged_row[name] = self.moments[name] if name in self.moments else self.rule(np.stack(rows), weights)
        self._round |= {
            "parties": [party for party, *_ in accepted],
            "steps": [self._lived(party, steps) for party, steps, *_ in accepted],
            "updates": weights.tolist(),
            "bytes_up": 4 * len(accepted) * sum(self.widths.values()),
        }
        return messages.pack(merged_row), MetricRecord(
            {"replies": len(accepted), "steps": float(sum(steps for _, steps, *_ in accepted))}
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        content = messages.content(arrays, config)
        return [Message(content, node, MessageType.EVALUATE) for node in self._nodes(grid)]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        returns: dict[int, float] = {}
        for reply in replies:
            try:
                returns[int(messages.number(reply, "party"))] = messages.number(reply, "return")
            except RefusedError as error:
                self._refuse(error)
        now = time.perf_counter()
        began = self._round.pop("began", now)
        ordered = [returns[party] for party in sorted(returns)]
        self.tell(
            self._round
            | {
                "return": ordered,
                "refused": dict(self.refused),
                "round_s": round(now - began, 4),
                "wall_s": round(now - self._began, 3),
            }
        )
        return MetricRecord({"return": float(np.mean(ordered))}) if ordered else None

    def _lived(self, party: int, steps: float) -> int:
        """All steps of a party so far."""
        self.steps[party] += int(steps)
        return self.steps[party]

    def _refuse(self, error: RefusedError) -> None:
        self.refused[error.reason] += 1
        log(WARNING, "a reply was refused (%s): %s", error.reason, error)

    def _nodes(self, grid: Grid) -> list[int]:
        """The parties that are there once enough are, or once the wait is over."""
        deadline = time.monotonic() + self.wait_s
        while True:
            nodes = sorted(grid.get_node_ids())
            if len(nodes) >= self.parties:
                return nodes[: self.parties]
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if not nodes:
            raise TimeoutError(f"no party came within {self.wait_s:g} s; start some, or raise federation.wait-s")
        log(
            WARNING,
            "%d of %d parties are here after %g s: the round goes on with them",
            len(nodes),
            self.parties,
            self.wait_s,
        )
        return nodes
