"""DecByzPG: policy gradients among peers that may attack, with agreement on weights. No server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet
from agents.policy_gradient import PolicyGradientFleet
from agents.report import Report
from core.errors import Mistake
from core.streams import generator
from strategies.medium import F32, Medium, Received
from strategies.method import Run, strategy
from strategies.peers import GossipConfig, Notes, Peers, Session, timing
from strategies.rules.diameter import minimum_diameter
from strategies.rules.robust import make_rule
from strategies.rules.rule import TooFewError, Verdict


@strategy("dec-byz-pg")
class DecByzPG(Peers):
    """Policy gradients among connected peers of whom up to f attack, each in the same way to all (Jordan 2024).

    A common coin makes a round large, with a gradient of many trajectories, or small, with a few that correct the last
    direction (PAGE). Gradients are broadcast, and every peer aggregates them by a rule that survives f attackers. After
    its step of Adam it agrees with the others on weights: they are broadcast, and the mean of the n - f that are
    nearest to each other is kept, again and again until their diameter is small."""

    ROWS = ("then", "direction", "known", "sampled")
    algorithms = ("policy-gradient",)
    bounded = False

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        if (graph := run.of(GossipConfig).topology) != "complete":
            raise Mistake(f"in dec-byz-pg every peer broadcasts to all: set 'gossip.topology' to complete, not {graph}")
        rules = run.federation
        make_rule(cls.rules(run), run.agents, options=cls.rule_options(run))
        make_rule(replace(rules, rule="minimum-diameter"), run.agents)

    @classmethod
    def rules(cls, run: Run) -> Any:
        rules = run.federation
        return replace(rules, rule="geometric-median") if rules.rule == "auto" else rules

    @classmethod
    def rule_options(cls, run: Run) -> Any:
        return run.options("rule", cls.rules(run).rule)

    def __init__(self, config: Run, session: Session, medium: Medium) -> None:
        super().__init__(config, session, medium)
        rules = self.rules(config)
        self.rule, self.attackers = make_rule(rules, config.agents, options=self.rule_options(config)), rules.byzantine
        policy = session.fleet.parts["policy"]
        # The weights at which the last direction was measured, and that direction. Peers that took part know it.
        self.then, self.direction = policy.copy(), np.zeros_like(policy)
        self.known = np.zeros(len(policy), np.bool_)
        self.sampled = np.zeros(len(policy), np.int64)

    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        fleet, config = self.session.fleet, self.options
        policy = fleet.parts["policy"]
        coin = generator(self.config.seed, number, "coin").random() < config.coin
        large = coin or number == 1
        start, notes = policy.copy(), Notes(large=int(large))
        measured, report = self._measure(config.large if large else config.small, large, settle, number)
        with timing(notes):
            forged = self.forged(number, measured, None, ".gradient")
            received = self.medium.broadcast(number, "gradient", 0, measured, forged)
        for row, verdict in enumerate(self._aggregated(received, lambda rows: self.rule(rows, np.ones(len(rows))))):
            self.direction[row] = measured[row] if verdict is None else verdict.row
        self.then[...], self.known[...] = start, True
        fleet.apply("policy", -self.direction)
        with timing(notes):
            notes |= self._agree(number, start)
        return report, notes | {"trajectories": self.sampled.tolist()}

    def join(self, weights: F32) -> None:
        self.load(weights)
        self.known[...] = False

    def _measure(self, batch: int, large: bool, settle: bool, number: int) -> tuple[F32, Report]:
        """Return the ascent direction of every peer, corrected from the last one where that is known."""

        def act(fleet: Fleet, rows: NDArray[np.int64]) -> tuple[F32, Report]:
            assert isinstance(fleet, PolicyGradientFleet)
            report = Report(np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64))
            with report.acting():
                episodes = fleet.sample(fleet.policy, batch, report)
            with report.learning():
                if large:
                    v = fleet.ascent(fleet.policy, episodes)
                else:
                    change, weight = fleet.correction(self.then[rows], episodes)
                    own = fleet.ascent(fleet.policy, episodes)
                    v = np.where(self.known[rows, None], change + self.direction[rows], own)
                    report.metrics["page-weight"] = weight
            self.sampled[rows] += batch
            fleet.progress += 1
            return v, report

        return self.session.work(act, None, settle, number)

    def _agree(self, number: int, start: F32) -> Notes:
        """Agree on weights by averaging. A peer that is done broadcasts its last weights as final."""
        W, config = self.session.fleet.parts["policy"], self.options
        done, diameters = np.zeros(len(W), np.bool_), np.full(len(W), np.nan)
        turns = 0
        for turn in range(config.turns):
            forged = self.forged(number, W, start, f".{turn}")
            received = self.medium.broadcast(number, "weights", turn, W.copy(), forged, done.copy())
            if done.all():
                break
            turns = turn + 1
            verdicts = self._aggregated(received, lambda rows: minimum_diameter(rows, self.attackers))
            for row, verdict in enumerate(verdicts):
                if verdict is not None and not done[row]:
                    W[row], diameters[row] = verdict.row, verdict.notes["diameter"]
            done |= diameters < config.agreed
        return {"turns": turns, "diameter": [None if np.isnan(d) else float(d) for d in diameters]}

    def _aggregated(self, received: list[Received], rule: Callable[[F32], Verdict]) -> Iterator[Verdict | None]:
        """Aggregate what each peer received; peers that received the same share one result."""
        results: dict[int, Verdict | None] = {}
        for _, rows in received:
            if id(rows) not in results:
                try:
                    results[id(rows)] = rule(rows)
                except TooFewError:
                    results[id(rows)] = None
            yield results[id(rows)]
