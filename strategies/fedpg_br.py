"""FedPG-BR (Fan 2021): policy gradients of many agents, a filter for attackers, variance reduction at the server.

Agents send gradients, never weights. The server aggregates them, and then takes several steps with trajectories of its
own, each corrected by the aggregated gradient (SCSG). The server holds the only Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from core.errors import Mistake
from core.options import option
from core.rows import adopt
from core.streams import generator
from strategies import messages, scsg
from strategies.federation import Arrays, Config, Federation, FederationConfig
from strategies.messages import Trained
from strategies.method import Parties, Run, strategy
from strategies.rules.fedpg import fedpg_filter
from strategies.rules.means import weighted_mean
from strategies.rules.robust import make_rule
from strategies.rules.rule import Rule, TooFewError, Verdict, number
from strategies.scsg import SCSGConfig

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class FedPGConfig(SCSGConfig):
    """The server of FedPG-BR: batches, inner loop, guard, and the radius of the filter."""

    margin: float = option(
        2.2, "sigma = auto: radius of the filter, in multiples of the usual distance of two honest gradients.", above=0
    )
    memory: float = option(0.5, "sigma = auto: share of the old estimate in the new one.", low=0, high=0.99)


class Learner(scsg.Learner, Protocol):
    """The server's own agent: a fleet of one with worlds of its own (agents/policy_gradient.py)."""

    worlds: Any

    def scatter(self, W: F32, found: Any) -> float: ...
    def state(self) -> Arrays: ...
    def load_state(self, state: Mapping[str, NDArray[Any]], where: str = "") -> None: ...


@strategy("fedpg-br")
class FedPG(Federation):
    """In every round agents measure a gradient at the same policy. The server filters them, and takes the steps."""

    tables: ClassVar[Mapping[str, type[Any]]] = {**Federation.tables, "fedpg": FedPGConfig}
    algorithms = ("policy-gradient",)
    server_learns = True

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        rules = run.federation
        run.of(FedPGConfig).check()
        if rules.batch != type(rules).batch:
            raise Mistake(
                "in fedpg-br 'fedpg.batch-min' and 'fedpg.batch-max' set the batch: leave out 'federation.batch'"
            )
        if rules.parts not in ("", "policy"):
            raise Mistake(f"fedpg-br has the part policy and no other: 'federation.parts' cannot be '{rules.parts}'")

    @classmethod
    def fits(cls, run: Run, parties: Parties) -> None:
        super().fits(run, parties)
        # The filter is not used here: only what a rule refuses by the number of agents and attackers.
        make_rule(run.federation, run.federation.asked(run.agents), weighted_mean, cls.rule_options(run))
        if run.federation.sigma != "auto":
            number(run.federation.sigma)

    @classmethod
    def rule_options(cls, run: Run) -> Any:
        return None if run.federation.rule == "auto" else run.options("rule", run.federation.rule)

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        config, options = run.of(FedPGConfig), cls.rule_options(run)
        learner = parties.server_agent(config.own_batch)
        return cls(learner, config, run.federation, parties.layout, run.agents, run.seed, options)

    def __init__(
        self, learner: Learner, config: FedPGConfig, rules: FederationConfig, layout: int, agents: int, seed: int,
        options: Any = None,
    ) -> None:  # fmt: skip
        """``options`` are those of a plugin's rule."""
        super().__init__({"policy": learner.policy.shape[1]}, layout, agents, config.batch_max, rules.wait_s)
        self.learner, self.config, self.rules, self.seed = learner, config, rules, seed
        self.options = options
        self.filters = rules.rule in ("auto", "fedpg")
        self.sigma = None if rules.sigma == "auto" else number(rules.sigma)
        self.asked = rules.asked(agents)
        self._rule(config.batch_max)  # refuses impossible rules before the run
        # The variance of one trajectory's gradient, summed over the weights; negative: not measured yet.
        self.variance = np.full((1, 1), -1.0)
        self.picked = learner.policy.copy()
        # Trajectories of a party, on average, and of the server.
        self.sampled = np.zeros((1, 2))

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        asked = {**extra, "work": self.config.batch(self.seed, number), "exchange": "gradients"}
        return dict.fromkeys(agents, self.order(number, self._entries(), asked))

    def evaluation_orders(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, messages.content(self._entries()))

    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        batch = self.config.batch(self.seed, number)
        lived = int(self.learner.worlds.steps[0])
        auto = self.filters and self.sigma is None
        if auto and self.variance[0, 0] < 0:
            # One trajectory has no variance, and what is measured is that of one, however many a batch holds.
            self._calibrate([self._scatter(batch if batch > 1 else self.config.own_batch)])
        rows = np.stack([reply.parts["policy"] for reply in replies])
        verdict, notes = self._aggregated(rows, np.array([reply.updates for reply in replies]), batch)
        mu = -verdict.row[None] if verdict is not None else None
        steps, scatters = self._ascend(mu, batch, number)
        if auto:
            self._calibrate(scatters or [self._scatter(self.config.own_batch)])
        self.sampled += [[batch * self.asked / self.agents, 0.0]]
        if generator(self.seed, number, "picked").random() < 1.0 / number:
            self.picked[...] = self.learner.policy
        kept: list[int | None] = [None] * self.agents
        for k, reply in enumerate(replies):
            kept[reply.agent] = int(verdict is not None and k in verdict.kept)
        own, others = self.sampled[0, 1], self.sampled[0, 0]
        per_agent = (self.agents * others + own) / (self.agents + 1)
        return notes | {
            "kept.policy": kept,
            "batch": batch,
            "inner-steps": steps,
            "server-steps": int(self.learner.worlds.steps[0]) - lived,
            "trajectories": [per_agent] * self.agents,
        }

    def learned(self) -> Arrays:
        return {"policy": self.learner.policy.copy()}

    def extra_weights(self) -> dict[str, Arrays]:
        """The paper's output: the policy after a round that was picked uniformly."""
        return {"picked": {"policy": self.picked}}

    def state(self) -> Arrays:
        own = {"variance": self.variance, "picked": self.picked, "sampled": self.sampled}
        return own | {f"server.{name}": array for name, array in self.learner.state().items()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name in ("variance", "picked", "sampled"):
            adopt(getattr(self, name), state, name)
        self.learner.load_state(state, "server.")

    def _entries(self) -> dict[str, bytes]:
        return messages.pack({"policy": self.learner.policy[0]})

    def _aggregated(self, rows: F32, weights: NDArray[np.float64], batch: int) -> tuple[Verdict | None, dict[str, Any]]:
        """Return one gradient of many, or None if the rule keeps no row."""
        try:
            verdict = self._rule(batch)(rows, weights)
        except TooFewError:
            return None, {}
        notes: dict[str, Any] = {f"{key}.policy": value for key, value in verdict.notes.items()}
        if self.filters:
            notes["sigma"] = self._sigma()
        return (verdict if verdict.kept.size else None), notes

    def _rule(self, batch: int) -> Rule:
        """Return the rule for gradients of ``batch`` trajectories each. K counts all asked agents, also silent ones."""

        def measured(rows: F32, weights: NDArray[np.float64]) -> Verdict:
            return fedpg_filter(rows, self.asked, batch, self._sigma(), self.rules.delta, self.rules.alpha)

        return make_rule(self.rules, self.asked, measured, self.options)

    def _ascend(self, mu: F32 | None, batch: int, number: int) -> tuple[int, list[float]]:
        """The inner loop from theta_0: how many steps it took, and how far its trajectories' gradients scatter."""
        scatters: list[float] = []

        def look(rows: Any, found: Any) -> None:
            self.sampled += [[0.0, self.config.own_batch]]
            scatters.append(self.learner.scatter(self.learner.policy, found))

        length = self.config.length(batch, self.seed, number)
        return int(scsg.ascend(self.learner, mu, length, self.config, look)[0]), scatters

    def _scatter(self, batch: int) -> float:
        found = self.learner.sample(self.learner.policy, batch)
        self.sampled += [[0.0, batch]]
        return self.learner.scatter(self.learner.policy, found)

    def _calibrate(self, scatters: Sequence[float]) -> None:
        """Update the estimate of the variance from the server's own trajectories, which agents cannot forge."""
        now, memory = float(np.mean(scatters)), self.config.memory
        self.variance[...] = now if self.variance[0, 0] < 0 else memory * self.variance + (1 - memory) * now

    def _sigma(self) -> float:
        """The one given; else that whose threshold is ``margin`` times the usual distance of two honest gradients.

        That distance is sqrt(2 s^2 / B) with s^2 the variance of one trajectory's gradient; T = 2 sigma sqrt(V / B).
        """
        if self.sigma is not None:
            return self.sigma
        V = 2 * math.log(2 * self.asked / self.rules.delta)
        return self.config.margin * math.sqrt(float(self.variance[0, 0]) / (2 * V))
