"""The plan of an attack: who attacks, with what, from which round on."""

from __future__ import annotations

import math
import re

import attacks.false_worlds
import attacks.forgeries  # noqa: F401 (registers its attacks)
from attacks.attack import Attack, AttackConfig, find
from core import registry
from core.errors import Mistake

NONE = "none"
registry.register("attack", "silence", Attack(delay=lambda config: math.inf))
registry.register("attack", "delay", Attack(delay=lambda config: config.delay_s))


class Silence(Exception):
    """An agent that sends no reply."""


class Plan:
    """What each agent of a run does in each round; refuses a configuration that makes no sense."""

    def __init__(self, config: AttackConfig, agents: int) -> None:
        self.config, self._kinds = config, schedules(config.kind, "'attack.kind'")
        if config.byzantine and config.agents:
            raise Mistake("'attack.byzantine' says how many attack, 'attack.agents' says who: give one of them")
        if config.byzantine > agents:
            raise Mistake(f"'attack.byzantine' is {config.byzantine}, and the run has {agents} agents")
        chosen = set(config.agents) | set(range(agents - config.byzantine, agents))
        named = {agent for agent in self._kinds if agent is not None}
        for agent in sorted(chosen | named):
            if agent >= agents:
                key = "attack.kind" if agent in named else "attack.agents"
                raise Mistake(f"'{key}' names agent {agent}: the run has the agents 0 to {agents - 1}")
        if None in self._kinds and not chosen and set(self._kinds[None].values()) != {NONE}:
            raise Mistake(f"nobody makes the attack '{config.kind}': set attack.byzantine, or attack.agents")
        if None not in self._kinds and chosen - named:
            raise Mistake(f"'attack.kind' says nothing about agent {min(chosen - named)}, which is to attack")
        self._agents = chosen | named
        if idle := sorted(agent for agent in chosen if self.honest(agent)):
            key = "attack.byzantine" if config.byzantine else "attack.agents"
            raise Mistake(
                f"'{key}' lets agent {idle[0]} attack, and 'attack.kind' is '{config.kind}', which names no attack for "
                f"it: set attack.kind to an attack ({', '.join(registry.names('attack'))}), or leave {key} away"
            )

    def kind(self, agent: int, number: int) -> str:
        """Return the attack that an agent makes in a round, or ``none``."""
        begun = {first: kind for first, kind in self._schedule(agent).items() if first <= number}
        return begun[max(begun)] if begun else NONE

    def honest(self, agent: int) -> bool:
        """Whether an agent never attacks."""
        return set(self._schedule(agent).values()) <= {NONE}

    def after(self, agent: int, number: int) -> float:
        """Return the seconds by which a reply is late; infinite where none is sent."""
        kind = self.kind(agent, number)
        delay = None if kind == NONE else find(kind).delay
        return delay(self.config) if delay is not None else 0.0

    def attackers(self, number: int) -> set[int]:
        """Return the agents whose rows of a round do not come from honest work: a filter should find them."""
        kinds = {agent: self.kind(agent, number) for agent in self._agents}
        return {agent for agent, kind in kinds.items() if kind != NONE and not _only_late(find(kind), self.config)}

    def schedules(self) -> list[dict[int, str]]:
        """Return what each attacker does, by the round in which it begins."""
        return [self._schedule(agent) for agent in sorted(self._agents)]

    def _schedule(self, agent: int) -> dict[int, str]:
        if agent not in self._agents:
            return {}
        return self._kinds.get(agent) or self._kinds[None]


def _only_late(attack: Attack, config: AttackConfig) -> bool:
    return attack.delay is not None and math.isfinite(attack.delay(config))


def schedules(text: str, where: str) -> dict[int | None, dict[int, str]]:
    """Parse ``[AGENT:]ATTACK[@ROUND],...``: attacks by the round in which they begin, by agent.

    The key None holds those of all agents that are not named. An attack without a round begins with the first.
    """
    found: dict[int | None, dict[int, str]] = {}
    for entry in text.split(","):
        match = re.fullmatch(r"(?:(\d+):)?([a-z][\w.-]*)(?:@(\d+))?", entry.strip())
        if match is None:
            raise Mistake(
                f"{where} is a list of [AGENT:]ATTACK[@ROUND], such as zero or 0:sign-flip,3:zero@10, not '{text}'"
            )
        agent, kind, first = int(match[1]) if match[1] else None, match[2], int(match[3] or 1)
        if kind != NONE:
            registry.get("attack", kind, where.strip("'"))
        if first < 1:
            raise Mistake(f"{where}: the first round is 1, not '{entry.strip()}'")
        if first in found.setdefault(agent, {}):
            whom = "all" if agent is None else f"agent {agent}"
            raise Mistake(f"{where} says twice what {whom} should do from round {first} on")
        found[agent][first] = kind
    return found
