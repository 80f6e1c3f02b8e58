"""Gossip: push-sum over a topology carries what agents of any kind learn. No server."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from agents.report import Report
from core.errors import Mistake
from strategies.medium import F32, Medium
from strategies.method import Run, strategy
from strategies.peers import Notes, Peers, Session, timing


@strategy("gossip")
class Gossip(Peers):
    """Push-sum of what agents learn: each adds its progress to the biased x, and acts by z = x / y.

    The biased x is carried on. Restarting each round from z would lose the mass of each peer, and the sum of all x
    would no longer be the progress of all peers."""

    ROWS: ClassVar[tuple[str, ...]] = ("x", "y", "refused")

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        if run.federation.judges:
            raise Mistake(
                f"{run.strategy} adds up every share, whoever sent it: 'federation.rule', 'federation.byzantine' and "
                "'federation.mixing' are for strategies that survive attackers, here dec-byz-pg"
            )

    def __init__(self, config: Run, session: Session, medium: Medium) -> None:
        super().__init__(config, session, medium)
        self.x, self.y = self.weights, np.ones(len(session.numbers))
        # The senders whose share each row refused in the last round.
        self.refused = np.zeros((len(self.x), config.agents), np.bool_)

    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        start, began = self.x.copy(), self.weights
        report, notes = self.learn(number, settle)
        self.x += self.weights - began
        forged = self.forged(number, self.x, start, "")
        with timing(notes):
            self.x[...], self.y[...] = self.medium.mix(number, self.x, self.y, forged, self.refused)
        self._debias()
        return report, notes

    def learn(self, number: int, settle: bool) -> tuple[Report, Notes]:
        """Train for a round. Returns a report of the work, and metrics for the ledger."""
        return self.session.train(self.session.round_work, None, settle, number), {}

    def join(self, weights: F32) -> None:
        self.load(weights)
        self.x[...], self.y[...], self.refused[...] = weights, 1.0, False

    def finish(self) -> None:
        self.x[...], self.y[...] = self.medium.finish(self.x, self.y)
        self._debias()

    def _debias(self) -> None:
        self.load((self.x / self.y[:, None]).astype(np.float32))
