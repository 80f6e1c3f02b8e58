"""FedAvg-TD3 with delayed actor sync: the critics are averaged every N steps, the actor every M*L.

A round is the stretch between two exchanges (strategies/schedule.py). It carries one part up, and the result of the
exchange before it down: agents load that and go on, so an exchange is one round trip. Agents begin with the same
weights by the run's seed, so nothing travels before something was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from core.errors import Mistake
from core.options import option
from core.rows import adopt
from core.streams import agent_seeds
from strategies import messages
from strategies.fedavg import FedAvg, chosen_rule
from strategies.federation import Arrays, Config, Federation
from strategies.messages import Trained
from strategies.method import Parties, Run, strategy
from strategies.rules.rule import Rule
from strategies.schedule import ACTOR, Schedule

# The file of the actors that agents last had of their own.
OWN = "own"


@dataclass(frozen=True)
class SyncConfig:
    """fedavg-td3: what is exchanged, and how often."""

    critic_every: int = option(100, "N: steps of an agent between exchanges of the critics.", low=1)
    actor_every: int = option(
        100,
        "L: actor updates between exchanges of the actor, at one critic update per step; so every L * td3.policy-delay "
        "steps.",
        low=1,
    )
    exchange: str = option(
        "parameters",
        "What is averaged: parameters, or the gradients of the step that an exchange falls on.",
        choices=("parameters", "gradients"),
    )


@strategy("fedavg-td3")
class FedAvgTD3(FedAvg):
    """Knows which agent has which average of which part, so that only what is new travels.

    With gradients each agent's weights are its own, and equal where every step is exchanged. They are sent to the
    server at the end."""

    tables: ClassVar[Mapping[str, type[Any]]] = {**FedAvg.tables, "sync": SyncConfig}
    algorithms = ("td3",)
    anchors = True

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        cls.schedule_of(run)
        if not cls.exchanges_gradients(run):
            return
        if run.federation.fraction < 1:
            raise Mistake(
                "an agent that misses an exchange of gradients is apart for good: leave 'federation.fraction' at 1, or "
                "exchange parameters"
            )
        if run.unseen and run.engine != "local":
            raise Mistake(
                "where gradients are exchanged, weights come from the nodes at the end only: evaluate in unseen worlds "
                "with fedrl eval then, or take the engine local"
            )

    @classmethod
    def warnings(cls, run: Run) -> list[str]:
        sync, td3, found = run.of(SyncConfig), run.options("agent", run.algorithm), []
        N, M, ML = sync.critic_every, td3.policy_delay, sync.actor_every * td3.policy_delay
        if ML % N:
            found.append(
                f"the actor is exchanged every {ML} steps, no multiple of the {N} of the critics: targets then move "
                "to critics that are an average of different ages"
            )
        if td3.learning_starts % M:
            found.append(
                f"'td3.learning-starts' is no multiple of td3.policy-delay, {M}: the actor is exchanged between its "
                "updates"
            )
        if cls.exchanges_gradients(run) and max(N, sync.actor_every) * td3.updates_per_step > 1:
            found.append(
                "only the steps at exchanges are shared, between them agents take their own: their weights drift apart"
            )
        return found

    @classmethod
    def prepare(cls, run: Run, fleet: Any, whole: bool) -> None:
        fleet.begin_alike(agent_seeds(run.seed, [0])[0])

    @classmethod
    def over(cls, run: Run, number: int, lived: Sequence[int]) -> bool:
        """Return whether the schedule has no further round."""
        schedule = cls.schedule_of(run)
        return number >= min(rounds for rounds in (run.rounds, schedule.rounds) if rounds)

    @classmethod
    def shortest_round(cls, run: Run) -> int:
        schedule = cls.schedule_of(run)
        return min(schedule.critic_every, schedule.actor_every)

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        rule = chosen_rule(run, run.federation.asked(run.agents))
        start = {name: row for name, row in parties.start.items() if name in parties.parts}
        return cls(
            cls.schedule_of(run), cls.exchanges_gradients(run), start, parties.layout, run.agents, parties.work, rule,
            run.federation.wait_s,
        )  # fmt: skip

    @classmethod
    def exchanges_gradients(cls, run: Run) -> bool:
        return run.of(SyncConfig).exchange == "gradients"

    @classmethod
    def intervals(cls, run: Run) -> tuple[int, int]:
        """Return N and L: steps between exchanges of the critics, actor updates between exchanges of the actor."""
        sync = run.of(SyncConfig)
        return sync.critic_every, sync.actor_every

    @classmethod
    def schedule_of(cls, run: Run) -> Schedule:
        """Return when what is exchanged; refuses steps that the copies of a world cannot meet."""
        if run.federation.parts:
            raise Mistake(f"{run.strategy} exchanges the actor and the critics: leave out 'federation.parts'")
        N, L = cls.intervals(run)
        copies, delay = run.world.copies, run.options("agent", run.algorithm).policy_delay
        for key, every in (("sync.critic-every", N), ("sync.actor-every times td3.policy-delay", L * delay)):
            if every % copies:
                raise Mistake(f"{key} is {every} steps, and {copies} copies step at once: make it a multiple of them")
        return Schedule(N, L * delay, run.steps)

    def __init__(
        self,
        schedule: Schedule,
        gradients: bool,
        start: Mapping[str, NDArray[Any]],
        layout: int,
        agents: int,
        work: int,
        rule: Rule,
        wait_s: float = 60.0,
    ) -> None:
        super().__init__(start, layout, agents, work, rule, wait_s)
        self.schedule, self.personal, self.names = schedule, gradients, list(start)
        if gradients:
            self.rows = {name: np.full((agents, width), np.nan, np.float32) for name, width in self.widths.items()}
        self.gradients: Arrays = {name: np.zeros(width, np.float32) for name, width in self.widths.items()}
        # Each agent's own last actor, before it was averaged.
        self.actors = np.full((agents, self.widths[ACTOR]), np.nan, np.float32)
        # The number of averages of each part, the last that each agent has, and the last that it was sent.
        self.made = np.zeros(len(self.names), np.int64)
        self.has, self.sent = (np.zeros((agents, len(self.names)), np.int64) for _ in range(2))
        # The updates of each agent since each part was exchanged, and its steps so far.
        self.worked = np.zeros((agents, len(self.names)))
        self.lived = np.zeros(agents, np.int64)
        self._asked: list[str] = []

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        stretch = self.schedule.stretch(number)
        self._asked = [stretch.part] if stretch.part else self.names if self.personal else []
        asked: dict[str, Any] = {"work": stretch.end - stretch.begin, "parts": self._asked, "pause": stretch.part}
        if self.personal and stretch.part:
            asked["exchange"] = "gradients"
        alike: dict[tuple[str, ...], RecordDict] = {}
        for k in agents:
            names = self._lacks(k, number)
            if names not in alike:
                down = (
                    {messages.GRADIENT + name: self.gradients[name] for name in names}
                    if self.personal
                    else {name: self.rows[name] for name in names}
                )
                alike[names] = self.order(number, messages.pack(down), {**extra, **asked})
            self.sent[k] = self.made
        return {k: alike[self._lacks(k, number)] for k in agents}

    def read(self, message: Message) -> Trained:
        return messages.trained(message, {name: self.widths[name] for name in self._asked}, self.layout)

    def evaluation_orders(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        shared = {} if self.personal else {ACTOR: self.rows[ACTOR]}
        return dict.fromkeys(agents, messages.content(messages.pack(shared)))

    def aggregate(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        agents = [reply.agent for reply in replies]
        for reply in replies:
            k = reply.agent
            # An agent that reports fewer steps than before restarted, or loaded an old snapshot: send it everything.
            self.has[k] = self.sent[k] if reply.lived - reply.steps >= self.lived[k] else -1
            self.lived[k] = reply.lived
            self.worked[k] += reply.updates
        part = self.schedule.stretch(number).part
        if not part:
            for reply in replies:
                for name in self._asked:
                    self.rows[name][reply.agent] = reply.parts[name]
            return {}
        at, into = self.names.index(part), self.gradients if self.personal else self.rows
        if part == ACTOR and not self.personal:
            self.actors[agents] = [reply.parts[part] for reply in replies]
        before = into[part]
        notes = self.aggregate_part(number, part, replies, self.worked[agents, at], into)
        self.worked[agents, at] = 0
        # Without an aggregated gradient no agent takes this step: the old gradient must not be used twice.
        if self.personal and into[part] is before:
            return notes
        self.made[at] += 1
        away: list[float | None] = [None] * self.agents
        for reply in replies:
            away[reply.agent] = float(np.linalg.norm(reply.parts[part].astype(np.float64) - into[part]))
        return notes | {f"distance.{messages.GRADIENT if self.personal else ''}{part}": away}

    def learned(self) -> Arrays:
        if not self.personal:
            return super().learned()
        return dict(self.rows) if all(np.isfinite(rows).all() for rows in self.rows.values()) else {}

    def length(self, number: int) -> float:
        stretch = self.schedule.stretch(number)
        return (stretch.end - stretch.begin) / max(self.work, 1)

    def passes(self, number: int, every: int) -> bool:
        usual = max(self.work * every, 1)
        return self._done(number) // usual > self._done(number - 1) // usual

    def extra_weights(self) -> dict[str, Arrays]:
        return {} if self.personal else {OWN: {ACTOR: self.actors}}

    def state(self) -> Arrays:
        counts = {name: getattr(self, name) for name in ("actors", "made", "has", "worked", "lived")}
        return super().state() | counts | {f"gradient.{name}": row for name, row in self.gradients.items()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, mine in self.state().items():
            adopt(mine, state, name)
        self._packed = {}

    def _done(self, number: int) -> int:
        """Return the steps up to this round whose exchanges are complete."""
        end = self.schedule.stretch(number).end if number else 0
        return end - (self.schedule.stretch(number + 1).end == end)

    def _lacks(self, k: int, number: int) -> tuple[str, ...]:
        """Return the parts that agent k lacks. Of gradients it needs the last one only."""
        names = [name for at, name in enumerate(self.names) if self.has[k, at] < self.made[at]]
        if self.personal:
            last = self.schedule.stretch(number - 1).part if number > 1 else ""
            names = [name for name in names if name == last]
        return tuple(names)
