"""FedPG-Dec: policy gradients with SCSG's inner loop, over push-sum. No server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet, no_gradient
from agents.policy_gradient import PolicyGradientFleet
from agents.report import Report
from core.streams import generator
from strategies import scsg
from strategies.fedpg_br import FedPGConfig
from strategies.medium import F32, Medium
from strategies.method import Run, strategy
from strategies.peers import Notes, Session
from strategies.push_sum import Gossip


@strategy("fedpg-dec")
class FedPGDec(Gossip):
    """FedPG without a server: every peer runs SCSG's inner loop by itself, and gossips its progress.

    B_t and N_t are functions of the run's seed and the round, so all peers draw the same ones and none waits long for
    another. The guard may stop the inner loop of each peer at another step.
    """

    ROWS = (*Gossip.ROWS, "sampled", "picked")
    tables: ClassVar[Mapping[str, type[Any]]] = {**Gossip.tables, "fedpg": FedPGConfig}
    algorithms = ("policy-gradient",)
    bounded = False

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        run.of(FedPGConfig).check()

    def __init__(self, config: Run, session: Session, medium: Medium) -> None:
        super().__init__(config, session, medium)
        self.sampled = np.zeros(len(session.numbers), np.int64)
        self.picked = session.fleet.parts["policy"].copy()

    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        report, notes = super().round(number, settle)
        if generator(self.config.seed, number, "picked").random() < 1.0 / number:
            self.picked[...] = self.session.fleet.parts["policy"]
        return report, notes | {"trajectories": self.sampled.tolist()}

    def extra_weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the paper's output: the policies after a round that was picked uniformly."""
        return {"picked": {"policy": self.picked}}

    def learn(self, number: int, settle: bool) -> tuple[Report, Notes]:
        config, seed = self.config.of(FedPGConfig), self.config.seed
        batch = config.batch(seed, number)
        length = config.length(batch, seed, number)

        def act(fleet: Fleet, rows: NDArray[np.int64]) -> tuple[F32, Report]:
            assert isinstance(fleet, PolicyGradientFleet)
            report = Report(np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64))
            with report.acting():
                episodes = fleet.sample(fleet.policy, batch, report)
            self.sampled[rows] += batch

            def count(active: NDArray[np.int64], sampled: Any) -> None:
                report.steps[active] += sampled.used
                self.sampled[rows[active]] += config.own_batch

            with report.learning():
                report.updates += scsg.ascend(fleet, fleet.ascent(fleet.policy, episodes), length, config, count)
            fleet.progress += 1
            return no_gradient(fleet), report

        report = self.session.work(act, None, settle, number)[1]
        return report, {"batch": batch, "inner-steps": report.updates.tolist()}
