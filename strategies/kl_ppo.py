"""KL-penalised federated PPO: agents keep their own policies, with a penalty on the KL to their neighbours' policies.

In every round an agent receives the policies of its neighbours (C[k][j] > 0) as they were after the last round. It
sends its own policy if it is a neighbour of another agent. Value functions are never sent. The penalty itself is in
agents/ppo.py; this file decides which agent receives which policies.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from core.errors import Mistake
from core.moments import merged
from core.options import option
from core.rows import adopt
from strategies import messages
from strategies.fedavg import chosen_rule
from strategies.federation import Arrays, Config, Federation
from strategies.graphs.matrix import STAR, communication, names, spelled
from strategies.messages import Trained
from strategies.method import Parties, Run, strategy, widths
from strategies.rules.rule import Rule, TooFewError

Bools = NDArray[np.bool_]
AVERAGE = "average"
POLICY, OBSERVATIONS = "policy", messages.MOMENTS + "observations"

log = logging.getLogger("fedrl")


@dataclass(frozen=True)
class KLConfig:
    """kl-ppo: which agents are neighbours. The coefficient and the direction of the penalty are keys of ppo."""

    matrix: str = option(
        "complete",
        f"Neighbours of each agent: {', '.join(names()[:-1])}; {STAR}: the average for all; a list of rows, a table "
        "with edges = [[k, j, weight], ...], either of them as JSON, or a file that holds it.",
        json_too=True,
    )
    normalise: bool = option(
        True, "Scale the weights of an agent's neighbours to a sum of 1; false: use them as given."
    )
    max_age: int = option(
        3, "Rounds for which the last policy of a missing neighbour is used; then its weight is left out.", low=0
    )
    watch: bool = option(
        False,
        "Send every agent all policies, to measure all KLs; those of agents that are no neighbours have no weight.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", spelled(self.matrix))


@strategy("kl-ppo")
class KLPPO(Federation):
    """Keep the last policy of every agent that is a neighbour of others, and send it to them.

    ``moments`` is the width of the running moments of observations. Where it is not 0 they are added up over all linked
    agents, because a neighbour's policy must be given observations as the neighbour would normalise them.
    """

    tables: ClassVar[Mapping[str, type[Any]]] = {**Federation.tables, "kl": KLConfig}
    algorithms = ("ppo",)
    links = True
    personal = True

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        rules, config = run.federation, run.of(KLConfig)
        if rules.judges and config.matrix != STAR:
            raise Mistake(
                "in kl-ppo a rule makes the average of the star: 'federation.rule', 'federation.byzantine' and "
                f"'federation.mixing' mean nothing without kl.matrix = \"{STAR}\""
            )
        if rules.parts not in ("", POLICY):
            raise Mistake(f"kl-ppo exchanges policies and nothing else: 'federation.parts' cannot be '{rules.parts}'")
        if config.matrix != STAR:
            communication(config.matrix, run.agents, config.normalise)

    @classmethod
    def fits(cls, run: Run, parties: Parties) -> None:
        super().fits(run, parties)
        chosen_rule(run, run.agents)

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        # Reward scales stay with the agents, as value functions do; how observations are normalised is part of a
        # policy.
        own, rule = widths(parties.start), chosen_rule(run, run.agents)
        learner = run.options("agent", run.algorithm)
        pulls = learner.penalty and learner.penalty_coef > 0
        return cls(
            run.of(KLConfig), rule, own[POLICY], parties.layout, run.agents, parties.work, run.federation.wait_s,
            moments=own[OBSERVATIONS] if pulls and OBSERVATIONS in own else 0,
        )  # fmt: skip

    def __init__(
        self,
        config: KLConfig,
        rule: Rule,
        width: int,
        layout: int,
        agents: int,
        work: int,
        wait_s: float = 60.0,
        moments: int = 0,
    ) -> None:
        super().__init__({POLICY: width} | ({OBSERVATIONS: moments} if moments else {}), layout, agents, work, wait_s)
        self.config, self.rule, self.star = config, rule, config.matrix == STAR
        self.matrix = communication("complete" if self.star else config.matrix, agents, config.normalise)
        # The policies that each agent receives.
        self.handed: Bools = ~np.eye(agents, dtype=bool) if config.watch else self.matrix > 0
        self.heard: Bools = np.logical_or.reduce(self.handed, axis=0)
        self.linked: Bools = self.heard | np.logical_or.reduce(self.handed, axis=1)
        self.policies = np.zeros((agents, width), np.float32)
        # The round after which each policy was received; 0: never.
        self.since = np.zeros(agents, np.int64)
        self.moments = np.zeros(moments)

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        usable = self._usable(number)
        theirs = self._packed(usable)
        shared = messages.pack({OBSERVATIONS: self.moments.astype(np.float32)}) if self.moments.size else {}
        found = {}
        for k in agents:
            weights = self._weights(k, usable) if theirs else {}
            arrays = {messages.ARRAY + name: theirs[messages.ARRAY + name] for name in weights}
            arrays |= shared if self.linked[k] else {}
            found[k] = self.order(number, arrays, {**extra, **weights, "parts": list(self._sends(k))})
        return found

    def read(self, message: Message) -> Trained:
        return messages.trained(message, self._sends(messages.sender(message)), self.layout)

    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        near: Bools = self.matrix > 0
        usable = self._usable(number)
        old = usable & (self.since < number - 1)
        counts: dict[str, list[int | None]] = {
            name: [None] * self.agents for name in ("neighbours", "neighbours-stale", "neighbours-left-out")
        }
        for reply in replies:
            for name, which in zip(counts, (usable, old, ~usable), strict=True):
                counts[name][reply.agent] = int((near[reply.agent] & which).sum())
            if POLICY in reply.parts:
                self.policies[reply.agent], self.since[reply.agent] = reply.parts[POLICY], number
            if OBSERVATIONS in reply.parts:
                self.moments = merged(self.moments, reply.parts[OBSERVATIONS].astype(np.float64))
        return counts

    def evaluation_orders(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, RecordDict())

    def learned(self) -> Arrays:
        """The policies that are known here; of agents that sent none, nan."""
        found: Arrays = {POLICY: np.where(self.since[:, None] > 0, self.policies, np.float32(np.nan))}
        if self.moments.size:
            found |= {f"{OBSERVATIONS}.shared": self.moments[None].copy()}
            found |= {f"{OBSERVATIONS}.seen": np.zeros((1, len(self.moments)))}
        return found

    def state(self) -> Arrays:
        return {"policies": self.policies, "since": self.since, "moments": self.moments}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, mine in self.state().items():
            adopt(mine, state, name)

    def _sends(self, k: int) -> dict[str, int]:
        """What agent k sends, by name with its width."""
        heard, linked = (0 <= k < self.agents and bool(which[k]) for which in (self.heard, self.linked))
        wanted = {POLICY: heard, OBSERVATIONS: linked}
        return {name: width for name, width in self.widths.items() if wanted[name]}

    def _usable(self, number: int) -> Bools:
        """Whose policy is there, and not too old for this round."""
        return (self.since > 0) & (number - 1 - self.since <= self.config.max_age)

    def _packed(self, usable: Bools) -> dict[str, bytes]:
        """What may be handed out, by its entry in a message; every policy is packed once, whoever gets it."""
        members = np.flatnonzero(usable & self.heard)
        singly = self.config.watch or not self.star
        found = messages.pack({messages.NEIGHBOUR + str(j): self.policies[j] for j in members if singly})
        if self.star and len(members):
            try:
                verdict = self.rule(self.policies[members], np.ones(len(members)))
            except TooFewError as error:
                log.warning("nobody is pulled: %s", error)
                return {}
            if not verdict.kept.size:  # a rule that trusts nobody has no verdict
                return {}
            found |= messages.pack({messages.NEIGHBOUR + AVERAGE: verdict.row})
        return found

    def _weights(self, k: int, usable: Bools) -> dict[str, float]:
        """What agent k is handed, and how much each counts."""
        there = self.handed[k] & usable
        if not self.star:
            return {f"{messages.NEIGHBOUR}{j}": float(self.matrix[k, j]) for j in np.flatnonzero(there)}
        watched = {f"{messages.NEIGHBOUR}{j}": 0.0 for j in np.flatnonzero(there) if self.config.watch}
        return {messages.NEIGHBOUR + AVERAGE: 1.0} | watched
