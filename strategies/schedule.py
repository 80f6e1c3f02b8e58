"""Which part is exchanged at which step: the critics every N, the actor every M*L, merged.

Time is counted in environment steps of one agent. At one critic update per step, and M critic updates per actor update,
N is critic updates and M*L is L actor updates; at other rates it is still steps that count.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

CRITIC, ACTOR = "critic", "actor"


class Stretch(NamedTuple):
    """A round: from one exchange to the next. ``part`` is exchanged at its end; none is in the last."""

    begin: int
    end: int
    part: str


@dataclass(frozen=True)
class Schedule:
    """The exchanges of ``steps`` steps (0: for ever), the critics before the actor where both are due.

    Between two exchanges at the same step lies a round without steps: the actor's update on the new critic. The last
    round exchanges nothing. It brings home what came of the last exchange, and whatever steps are left.
    """

    critic_every: int
    actor_every: int
    steps: int = 0

    @property
    def rounds(self) -> int:
        """How many rounds there are; 0: they never end."""
        return self._until(self.steps) + 1 if self.steps else 0

    @lru_cache(maxsize=64)  # noqa: B019 (it is a handful of numbers, and asked for many times a round)
    def stretch(self, number: int) -> Stretch:
        """The round with this number, from 1."""
        if self.steps and number >= self.rounds:
            return Stretch(self._at(self.rounds - 1), self.steps, "")
        begin, end = self._at(number - 1), self._at(number)
        first = number == self._until(end - 1) + 1
        return Stretch(begin, end, CRITIC if first and end % self.critic_every == 0 else ACTOR)

    def _until(self, step: int) -> int:
        """How many exchanges there are up to a step."""
        return step // self.critic_every + step // self.actor_every

    def _at(self, number: int) -> int:
        """The step of an exchange."""
        latest = number * min(self.critic_every, self.actor_every)
        return bisect_left(range(latest + 1), number, key=self._until)
