"""FedAvg-TD3 with delayed actor sync: the critics become one every N steps, the actor every M*L.

A round is the stretch between two exchanges (strategies/schedule.py). It carries one part up, and down what came of the
exchange before it: agents load that and go on, so an exchange is one round trip. Agents begin with the same weights by
the run's seed, so nothing travels before there is something to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from core.options import option
from core.rows import adopt
from strategies import messages
from strategies.fedavg import FedAvg
from strategies.federation import Arrays, Config
from strategies.messages import Trained
from strategies.rules.robust import Rule
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


class FedAvgTD3(FedAvg):
    """Knows who has which average of which part, so that only what is new travels.

    With gradients each agent's weights are its own, and equal when every step is exchanged. They come home at the end.
    """

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
        # The actor that each agent last had of its own, before it became one with the others'.
        self.actors = np.full((agents, self.widths[ACTOR]), np.nan, np.float32)
        # How many averages of each part there were, which of them each agent has, and which it was sent last.
        self.made = np.zeros(len(self.names), np.int64)
        self.has, self.sent = (np.zeros((agents, len(self.names)), np.int64) for _ in range(2))
        # What each agent has learned since each part was exchanged, in updates; and its steps so far.
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

    def exams(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        shared = {} if self.personal else {ACTOR: self.rows[ACTOR]}
        return dict.fromkeys(agents, messages.content(messages.pack(shared)))

    def combine(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        agents = [reply.agent for reply in replies]
        for reply in replies:
            k = reply.agent
            # One who tells of fewer steps than it had taken began anew, or from an old snapshot: it lacks everything.
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
        notes = self.unite(number, part, replies, self.worked[agents, at], into)
        self.worked[agents, at] = 0
        # Without a verdict nobody takes this step, least of all down an old gradient.
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

    def keepsakes(self) -> dict[str, Arrays]:
        return {} if self.personal else {OWN: {ACTOR: self.actors}}

    def state(self) -> Arrays:
        counts = {name: getattr(self, name) for name in ("actors", "made", "has", "worked", "lived")}
        return super().state() | counts | {f"gradient.{name}": row for name, row in self.gradients.items()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, mine in self.state().items():
            adopt(mine, state, name)
        self._packed = {}

    def _done(self, number: int) -> int:
        """The steps that are over with all that is exchanged at their end."""
        end = self.schedule.stretch(number).end if number else 0
        return end - (self.schedule.stretch(number + 1).end == end)

    def _lacks(self, k: int, number: int) -> tuple[str, ...]:
        """What agent k is sent: averages that it has not got; of gradients the last one only, nobody needs old ones."""
        names = [name for at, name in enumerate(self.names) if self.has[k, at] < self.made[at]]
        if self.personal:
            last = self.schedule.stretch(number - 1).part if number > 1 else ""
            names = [name for name in names if name == last]
        return tuple(names)
