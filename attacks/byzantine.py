"""The attackers among some agents: how they act, what they send, and how late.

It has the methods of ``client.conduct.Honest``, which a session has where nobody attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet
from agents.report import Report, merge
from attacks.attack import About, AttackConfig, find
from attacks.forgeries import drawn_in, forge
from attacks.plan import NONE, Plan

F32 = NDArray[np.float32]
Act = Callable[[Fleet, NDArray[np.int64]], tuple[F32, Report]]


class Byzantine:
    """Agents with these numbers, of whom the plan says who attacks."""

    def __init__(
        self, config: AttackConfig, plan: Plan, fleet: Fleet, numbers: Sequence[int], agents: int,
        options: Callable[[str], Any],
    ) -> None:  # fmt: skip
        """``agents`` is how many the run has; ``options`` returns those of an attack by its name."""
        self.config, self.plan, self.fleet, self.numbers, self.agents = config, plan, fleet, numbers, agents
        self.options = options
        self._begin: dict[str, F32] = {}

    def is_honest(self, row: int) -> bool:
        return self.plan.honest(self.numbers[row])

    def delay(self, row: int, number: int) -> float:
        return self.plan.after(self.numbers[row], number)

    def act(self, fleet: Fleet, rows: NDArray[np.int64], number: int, act: Act) -> tuple[F32, Report]:
        """Let all agents act. Those whose attack is a false world act in groups of their own, in that world."""
        false = [kind if kind != NONE and find(kind).worlds else NONE for kind in self._kinds(rows, number)]
        if set(false) <= {NONE}:
            return act(fleet, rows)
        found: dict[int, F32] = {}
        whole = Report(np.zeros(fleet.agents, np.int64), np.zeros(fleet.agents, np.int64))
        for kind in sorted(set(false), key=lambda kind: (kind != NONE, kind)):
            group = np.flatnonzero([other == kind for other in false])
            part: Fleet = fleet.take(group)
            true = part.worlds
            if kind != NONE:
                streams = drawn_in(number, part.seeds, "attack", lanes=true.copies)
                part.worlds = find(kind).worlds(true, streams, self.options(kind))
            G, report = act(part, rows[group])
            part.worlds = true
            fleet.put(group, part)
            merge(whole, group, report, fleet.agents)
            found |= zip(group.tolist(), G, strict=True)
        return np.stack([found[row] for row in range(fleet.agents)]), whole

    def begin(self, rows: Sequence[int], number: int, parts: Sequence[str]) -> None:
        """A round begins: remember the weights that its updates start from, if somebody attacks in it."""
        kept = [name for name in self.fleet.parts if name in parts] if self.plan.attackers(number) else []
        self._begin = {name: self.fleet.shared(name)[rows] for name in kept}

    def sends(self, rows: Sequence[int], number: int, honest: Mapping[str, F32]) -> dict[str, list[F32]]:
        """Return what is sent of every part by every row; ``honest`` is what they learned."""
        sent = {name: list(matrix) for name, matrix in honest.items()}
        for name in self.fleet.parts.keys() & honest.keys():
            for at, row in self._forged(rows, number, name, honest[name], self._begin.get(name)).items():
                sent[name][at] = row
        self._begin = {}
        return sent

    def to_peers(
        self, number: int, honest: F32, start: F32 | None, where: Mapping[str, slice], tag: str
    ) -> Callable[[int], Mapping[int, F32]] | None:
        """Return a function from a recipient to the forged rows that it is sent, by position in ``honest``.

        ``where`` tells where each part lies in a row; ``tag`` tells apart what is sent of a part in one round. None
        where no row is forged in this round.
        """
        rows = range(len(self.numbers))
        attacks = [find(kind) for kind in set(self._kinds(rows, number)) - {NONE}]
        if not any(attack.forge for attack in attacks):
            return None

        def forged(recipient: int | None) -> dict[int, F32]:
            found: dict[int, list[F32]] = {}
            for name, at in where.items():
                begin = None if start is None else start[:, at]
                made = self._forged(rows, number, name, honest[:, at], begin, recipient, tag)
                for row, values in made.items():
                    found.setdefault(row, []).append(values)
            return {row: np.concatenate(values) for row, values in found.items()}

        if any(attack.per_recipient for attack in attacks):
            return cache(forged)
        everybody = forged(None)
        return lambda recipient: everybody

    def _forged(
        self, rows: Sequence[int], number: int, part: str, honest: F32, start: F32 | None,
        recipient: int | None = None, tag: str = "",
    ) -> dict[int, F32]:  # fmt: skip
        """Return the forged rows of a part by position in ``honest``. Those who make the same attack cooperate."""
        kinds = self._kinds(rows, number)
        found: dict[int, F32] = {}
        for kind in {kind for kind in kinds if kind != NONE and find(kind).forge}:
            group = [at for at, other in enumerate(kinds) if other == kind]
            group.sort(key=lambda at: self.numbers[rows[at]])
            seeds = [self.fleet.seeds[rows[at]] for at in group]
            about = About(
                self.agents, self.fleet.layers(part, honest.shape[1]), self.config, self.options(kind), recipient,
                f"{part}{tag}",
            )  # fmt: skip
            begin = start[group] if start is not None else None
            found |= zip(group, forge(kind, honest[group], seeds, number, about, begin), strict=True)
        return found

    def _kinds(self, rows: Sequence[int] | NDArray[np.int64], number: int) -> list[str]:
        return [self.plan.kind(self.numbers[row], number) for row in rows]
