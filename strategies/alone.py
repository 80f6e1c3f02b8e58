"""No federation: every agent learns on its own, and nothing travels. The baseline of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from strategies.federation import Arrays, Config, Federation
from strategies.messages import Trained


class Alone(Federation):
    """Agents are told to train and to be judged as they are."""

    personal = True

    def orders(self, number: int, agents: Sequence[int], extra: Config) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, self.order(number, {}, extra))

    def exams(self, number: int, agents: Sequence[int]) -> dict[int, RecordDict]:
        return dict.fromkeys(agents, RecordDict())

    def combine(self, number: int, replies: Sequence[Trained]) -> dict[str, Any]:
        return {}

    def learned(self) -> Arrays:
        return {}

    def state(self) -> Arrays:
        return {}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """There is none."""
