"""Central learning with TD3: one learner that has the transitions of all agents. A baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from core.errors import Mistake
from core.streams import agent_seeds
from strategies.alone import Alone
from strategies.fedavg_td3 import FedAvgTD3
from strategies.federation import Federation, FederationConfig
from strategies.method import Parties, Run, ended, strategy
from strategies.rules.means import weighted_mean


@strategy("central")
class Central(FedAvgTD3):
    """Exchanges every gradient of everything. Where all agents live in one process, one learner needs no exchange."""

    tables: ClassVar[Mapping[str, type[Any]]] = {"federation": FederationConfig}

    @classmethod
    def check(cls, run: Run) -> None:
        cls.check_algorithm(run)
        if run.federation.fraction < 1:
            raise Mistake("central is one learner with the transitions of all agents: leave 'federation.fraction' at 1")
        if run.federation.rule not in ("auto", "mean", "weighted-mean"):
            raise Mistake("central has no rows for a rule to aggregate: leave out 'federation.rule'")
        if run.attack.byzantine or run.attack.agents or run.attack.kind != "none":
            raise Mistake("central is one learner, and nobody in it could attack: leave 'attack' away")
        if run.engine == "local":
            return
        if run.unseen:
            raise Mistake(
                "central exchanges gradients, and weights come from the nodes at the end only: evaluate in unseen "
                "worlds with fedrl eval then, or take the engine local"
            )
        copies, rate = run.world.copies, run.options("agent", run.algorithm).updates_per_step
        if rate * copies != 1:
            raise Mistake(
                "central exchanges every update, so a step of all copies is one: 'td3.updates-per-step' times "
                f"'world.copies' must be 1, not {rate * copies:g}"
            )
        cls.schedule_of(run)

    @classmethod
    def warnings(cls, run: Run) -> list[str]:
        return []

    @classmethod
    def prepare(cls, run: Run, fleet: Any, whole: bool) -> None:
        fleet.begin_alike(agent_seeds(run.seed, [0])[0], one=whole)

    @classmethod
    def over(cls, run: Run, number: int, lived: Sequence[int]) -> bool:
        return ended(run, number, lived) if run.engine == "local" else super().over(run, number, lived)

    @classmethod
    def shortest_round(cls, run: Run) -> int:
        return 0 if run.engine == "local" else super().shortest_round(run)

    @classmethod
    def exchanges_gradients(cls, run: Run) -> bool:
        return True

    @classmethod
    def intervals(cls, run: Run) -> tuple[int, int]:
        return run.world.copies, run.world.copies

    @classmethod
    def fits(cls, run: Run, parties: Parties) -> None:
        """Any learner of the right algorithm fits."""

    @classmethod
    def build(cls, run: Run, parties: Parties) -> Federation:
        if run.engine == "local":
            return Alone({}, parties.layout, run.agents, parties.work)
        start = {name: row for name, row in parties.start.items() if name in parties.parts}
        return cls(
            cls.schedule_of(run), True, start, parties.layout, run.agents, parties.work, weighted_mean,
            run.federation.wait_s,
        )  # fmt: skip
