"""What every strategy has: how agents learn together, as a conf names it.

There are two kinds: with a server (``strategies.federation.Federation``), and among peers (``strategies.peers.Peers``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet
from core import registry
from core.counts import reached
from core.errors import Mistake

T = TypeVar("T")
Class = TypeVar("Class", bound=type[Any])


class Run(Protocol):
    """What a strategy may ask of a run's configuration (``runs.config.RunConfig``)."""

    @property
    def algorithm(self) -> str: ...
    @property
    def strategy(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def agents(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def work(self) -> int | None: ...
    @property
    def rounds(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def unseen(self) -> Mapping[str, Any]: ...
    @property
    def world(self) -> Any: ...
    @property
    def attack(self) -> Any: ...
    @property
    def federation(self) -> Any: ...

    def of(self, kind: type[T]) -> T:
        """Return the options of this type."""

    def options(self, kind: str, name: str) -> Any:
        """Return the options of a registered thing, or None where it has none."""


class Method:
    """A strategy by its class: what it needs of a run, and what it refuses.

    ``tables`` are the options that it reads, by the name of their table. ``algorithms`` are the learners that it works
    with; none means all.
    """

    tables: ClassVar[Mapping[str, type[Any]]] = {}
    algorithms: ClassVar[tuple[str, ...]] = ()
    # Without a server: weights go from agent to agent.
    serverless: ClassVar[bool] = False
    # The server has a learner of its own, so it can evaluate the shared policy by itself.
    server_learns: ClassVar[bool] = False
    # The work of a round bounds the steps and updates that an agent can report.
    bounded: ClassVar[bool] = True
    # Agents remember the last weights that all shared, so that a learner can be pulled towards them.
    anchors: ClassVar[bool] = False
    # Agents are handed the policies of others, so that a learner can be pulled towards those.
    links: ClassVar[bool] = False

    @classmethod
    def check(cls, run: Run) -> None:
        """Refuse a configuration that this strategy cannot run. Builds nothing."""
        cls.check_algorithm(run)

    @classmethod
    def check_algorithm(cls, run: Run) -> None:
        if cls.algorithms and run.algorithm not in cls.algorithms:
            raise Mistake(
                f"the strategy {run.strategy} is for {' and '.join(cls.algorithms)}, not for {run.algorithm}: set "
                "'algorithm', or another strategy"
            )

    @classmethod
    def fits(cls, run: Run, parties: Parties) -> None:
        """Refuse agents that this strategy cannot work with, before anything starts. Builds nothing."""
        exchanged(run, parties.parts)

    @classmethod
    def warnings(cls, run: Run) -> list[str]:
        """Return sentences on what is allowed and has a price."""
        return []

    @classmethod
    def prepare(cls, run: Run, fleet: Fleet, whole: bool) -> None:
        """Prepare a fleet that was just made; ``whole``: all agents of the run are in it."""

    @classmethod
    def shortest_round(cls, run: Run) -> int:
        """Return the steps of the shortest round, where the strategy and not 'work' decides it; else 0."""
        return 0

    @classmethod
    def over(cls, run: Run, number: int, lived: Sequence[int]) -> bool:
        """Return whether a run has ended, after so many rounds and so many steps of each agent."""
        return ended(run, number, lived)


def ended(run: Run, number: int, lived: Sequence[int]) -> bool:
    """Return whether a run has all its rounds, or enough of its agents their steps.

    Steps count when half of the agents have them, or a quorum if that is fewer. So fewer attackers than that cannot end
    a run early, and they, or agents that are gone, cannot keep it from ending."""
    enough = reached(lived, min(0.5, run.federation.quorum))
    return bool(run.rounds and number >= run.rounds) or bool(run.steps and enough >= run.steps)


class Parties(Protocol):
    """The agents of a run, as a strategy with a server sees them before the first round."""

    @property
    def layout(self) -> int:
        """The number that says what weights mean; parties with another one are refused."""

    @property
    def work(self) -> int:
        """The training of a round, in the learner's unit."""

    @property
    def parts(self) -> Sequence[str]:
        """The names of the parts that a rule may aggregate."""

    @property
    def start(self) -> Mapping[str, NDArray[Any]]:
        """All that may travel, by name: the row of the first agent. Moments are named ``moments.NAME``."""

    def server_agent(self, copies: int) -> Any:
        """An agent of the server's own, with the weights of the first agent and so many copies of its world."""


def strategy(name: str) -> Callable[[Class], Class]:
    """Register a strategy: a subclass of ``Federation`` or ``Peers``, with ``build``."""

    def decorate(value: Class) -> Class:
        if not (inspect.isclass(value) and issubclass(value, Method)):
            raise Mistake(f"the strategy '{name}' is no subclass of fedrl.Federation, fedrl.FedAvg or fedrl.Peers")
        if missing := sorted(getattr(value, "__abstractmethods__", ())):
            raise Mistake(f"the strategy '{name}' lacks the method {', '.join(missing)}")
        config = vars(value).get("Config")
        own = {name: config} if config else {}
        value.tables = {**value.tables, **own}
        registry.register("strategy", name, value, value.tables, value.__module__)
        return value

    return decorate


def chosen(run: Run) -> type[Any]:
    """Return the class of the run's strategy."""
    found: type[Any] = registry.get("strategy", run.strategy, "strategy").value
    return found


def exchanged(run: Run, known: Sequence[str]) -> list[str]:
    """Return the parts that 'federation.parts' names; all of them where it names none."""
    names = [name.strip() for name in run.federation.parts.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise Mistake(f"'federation.parts' names '{name}'; {run.algorithm} has {', '.join(known)}")
    return names


def widths(rows: Mapping[str, NDArray[np.generic]]) -> dict[str, int]:
    return {name: row.shape[-1] for name, row in rows.items()}
