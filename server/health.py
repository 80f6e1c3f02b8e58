"""The reliability of agents: which of them a round leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strategies.federation import FederationConfig


@dataclass
class Health:
    """Failed rounds per agent. A checkpoint holds it, so that a resumed run goes on with it."""

    strikes: Counter[int] = field(default_factory=Counter)  # failed rounds in a row
    back_at: dict[int, int] = field(default_factory=dict)  # the round in which an agent is asked again

    def failed(self, agent: int, number: int, config: FederationConfig) -> bool:
        """Count a failed round of an agent; return whether the agent is left out from now on."""
        self.strikes[agent] += 1
        if self.strikes[agent] < config.patience or not config.leave_out:
            return False
        self.back_at[agent] = number + config.leave_out + 1
        # Once the agent is back, one more failure is enough.
        self.strikes[agent] = config.patience - 1
        return True

    def left_out(self, number: int) -> set[int]:
        """Return the agents that round ``number`` leaves out."""
        return {agent for agent, back in self.back_at.items() if number < back}

    def forgive(self, agent: int) -> None:
        """Forget the failures of an agent."""
        self.strikes.pop(agent, None)
        self.back_at.pop(agent, None)

    def saved(self) -> dict[str, list[tuple[int, int]]]:
        return {"strikes": list(self.strikes.items()), "back_at": list(self.back_at.items())}

    def load(self, saved: Mapping[str, Any]) -> None:
        self.strikes, self.back_at = Counter(dict(saved["strikes"])), dict(saved["back_at"])
