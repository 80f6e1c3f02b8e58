"""A session: a fleet, its worlds, and the worlds in which it is evaluated."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from agents.fleet import F32, Fleet, Worlds, no_gradient
from agents.report import Report
from attacks.byzantine import Byzantine
from attacks.plan import Plan
from client.conduct import Act, Conduct, Honest
from core import registry
from core.errors import Failure, Mistake
from core.rows import Array, Rows
from core.streams import agent_seeds
from envs import make_worlds
from runs.config import RunConfig
from strategies.method import chosen


class Session(Rows):
    """A fleet with its worlds. Its ``state()`` holds everything that a resumed run needs."""

    ROWS = ("fleet",)

    def __init__(self, config: RunConfig, numbers: Sequence[int] | None = None, render: bool = False) -> None:
        self.config = config
        self.numbers = list(range(config.agents)) if numbers is None else list(numbers)
        seeds = agent_seeds(config.seed, self.numbers)
        self.worlds = make_worlds(config.world, seeds, self.numbers, render)
        self.fleet: Fleet = make_fleet(config, self.worlds, seeds)
        chosen(config).prepare(config, self.fleet, whole=len(self.numbers) == config.agents)
        self.conduct = conduct(config, self.fleet, self.numbers)
        self.round_work = self.fleet.usual_work if config.work is None else config.work
        self.evaluation = None
        if config.evaluate_episodes:
            evaluated = replace(config.world, copies=config.evaluate_episodes, workers=0)
            self.evaluation = make_worlds(evaluated, seeds, self.numbers, purpose="judge")
            self.evaluation.frozen = True

    def train(
        self, work: int, rows: Sequence[int] | None = None, settle: bool = False, number: int = 0, pause: str = ""
    ) -> Report:
        """Train all agents, or those of some rows. ``settle`` ends episodes that a saved state could not hold.

        With ``pause`` the last update stops before the exchange of that part.
        """

        def act(fleet: Fleet, rows: NDArray[np.int64]) -> tuple[F32, Report]:
            return no_gradient(fleet), fleet.train_to(pause, work) if pause else fleet.train(work)

        return self.work(act, rows, settle, number)[1]

    def measure(
        self, part: str, work: int, rows: Sequence[int] | None = None, settle: bool = False, number: int = 0
    ) -> tuple[F32, Report]:
        """Measure a gradient of a part for all agents, or those of some rows, on fresh data."""
        return self.work(lambda fleet, rows: fleet.measure(part, work), rows, settle, number)

    def work(
        self, act: Act, rows: Sequence[int] | None = None, settle: bool = False, number: int = 0
    ) -> tuple[F32, Report]:
        """Run one step of all agents, or those of some rows, in round ``number``."""
        rows = range(len(self.numbers)) if rows is None else rows
        whole = len(rows) == len(self.numbers)
        fleet: Fleet = self.fleet if whole else self.fleet.take(rows)
        result = self.conduct.act(fleet, np.asarray(rows, np.int64), number, act)
        if settle:
            fleet.settle()
        if not whole:
            self.fleet.put(rows, fleet)
        return result

    def first_weights(self) -> dict[str, F32]:
        """Return the initial weights (d,) of the first agent of the run, by part."""
        if self.numbers[0] == 0:
            return {name: rows[0].copy() for name, rows in self.fleet.parts.items()}
        with closing(Session(replace(self.config, evaluate_episodes=0), [0])) as first:
            return {name: rows[0].copy() for name, rows in first.fleet.parts.items()}

    def evaluate(self, rows: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Evaluate in each agent's world as it is at the agent's step; return the returns (agents, episodes).

        An evaluation changes nothing: time does not pass in its worlds. Its episodes depend on an agent's progress.
        """
        if self.evaluation is None:
            raise Mistake("'evaluate-episodes' is 0: there are no worlds to evaluate in")
        self.evaluation.steps[...] = self.worlds.steps
        self.evaluation.begin_anew(self.fleet.progress)
        fleet, worlds = self.fleet, self.evaluation
        if rows is not None and len(rows) < len(self.numbers):
            fleet, worlds = fleet.take(rows), worlds.take(rows)
        return fleet.evaluate(worlds, explore=self.config.evaluate == "sampled")

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        """Load a state; refuse one with arrays that this session does not have."""
        unknown = sorted(set(state) - {where + name for name in self.state()})
        if unknown:
            raise Failure(f"the checkpoint has '{unknown[0]}', which this run does not: another configuration wrote it")
        super().load_state(state, where)

    def close(self) -> None:
        self.worlds.close()
        if self.evaluation is not None:
            self.evaluation.close()


def make_fleet(config: RunConfig, worlds: Worlds, seeds: Sequence[int]) -> Fleet:
    """Return a fleet of the configured algorithm over these worlds."""
    fleet = registry.get("agent", config.algorithm, "algorithm").value(config.learner, worlds, seeds)
    assert isinstance(fleet, Fleet)
    return fleet


def conduct(config: RunConfig, fleet: Fleet, numbers: Sequence[int]) -> Conduct:
    """Return how these agents act and send: honestly, unless the run has attackers."""
    plan = Plan(config.attack, config.agents)
    if not plan.schedules():
        return Honest()
    return Byzantine(config.attack, plan, fleet, numbers, config.agents, lambda kind: config.options("attack", kind))


def limit_threads(count: int) -> None:
    """Set the number of threads of BLAS and torch. For entry points: the setting holds for the whole process."""
    threadpool_limits(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
    os.environ.setdefault("OMP_NUM_THREADS", str(count))  # for a torch that is imported later
