"""SCSG (Lei 2017) for policies: a few steps on a few fresh trajectories each, corrected by what a large batch saw.

It is the inner loop of FedPG-BR at the server, and of FedPG-Dec at every peer. A learner may be many agents: each
takes its own steps, and stops by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake
from core.options import option
from core.streams import generator

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class SCSGConfig:
    """Batches, inner loop, guard."""

    batch_min: int = option(12, "Trajectories per agent and round, at least; drawn anew each round.", low=1)
    batch_max: int = option(20, "Trajectories per agent and round, at most.", low=1)
    own_batch: int = option(4, "b: trajectories that are sampled for each inner step.", low=2)
    inner: str = option(
        "scsg",
        "Inner loop: scsg, a geometric number of steps (mean 1 + B/b); svrpg, always three; none, one.",
        choices=("scsg", "svrpg", "none"),
    )
    guard: float = option(0.005, "The inner loop stops when the mean importance weight is so far from 1.", above=0)

    def check(self) -> None:
        if self.batch_min > self.batch_max:
            raise Mistake(f"'fedpg.batch-min' = {self.batch_min} is above 'fedpg.batch-max' = {self.batch_max}")

    def batch(self, seed: int, number: int) -> int:
        """B_t: the same for all parties of a round."""
        return int(generator(seed, number, "batch").integers(self.batch_min, self.batch_max + 1))

    def length(self, batch: int, seed: int, number: int) -> int:
        """N_t: geometric with support from 1 and mean 1 + B/b for SCSG."""
        if self.inner != "scsg":
            return {"svrpg": 3, "none": 1}[self.inner]
        b = self.own_batch
        return int(generator(seed, number, "inner-steps").geometric(b / (batch + b)))


class Learner(Protocol):
    """Agents with worlds of their own (agents/policy_gradient.py)."""

    policy: F32

    def sample(self, W: F32, batch: int, report: Any = None) -> Any: ...
    def ascent(self, W: F32, found: Any, weight: F32 | None = None) -> F32: ...
    def progress_since(self, then: F32, found: Any) -> tuple[F32, F64]: ...
    def apply(self, part: str, G: F32) -> None: ...
    def take(self, rows: Any) -> Any: ...
    def put(self, rows: Any, part: Any) -> None: ...


def ascend(
    learner: Learner,
    mu: F32 | None,
    length: int,
    config: SCSGConfig,
    look: Callable[[I64, Any], None] = lambda rows, found: None,
) -> I64:
    """The inner loop from theta_0: how many steps every agent took.

    ``mu`` is what the large batch says at theta_0; without it every step follows its own trajectories alone. ``look``
    is shown which agents sampled what.
    """
    then, taken = learner.policy.copy(), np.zeros(len(learner.policy), np.int64)
    going, here = np.arange(len(taken)), learner
    for n in range(length):
        if n == 0 and mu is not None:
            direction = mu  # g(theta_0) - g_w(theta_0) is nothing
        else:
            found = here.sample(here.policy, config.own_batch)
            look(going, found)
            if mu is None:
                direction = here.ascent(here.policy, found)
            else:
                change, weight = here.progress_since(then[going], found)
                direction, sure = change + mu[going], np.abs(weight - 1.0) <= config.guard
                if not sure.all():
                    if here is not learner:
                        learner.put(going, here)
                    going, direction = going[sure], direction[sure]
                    if not going.size:
                        return taken
                    here = learner.take(going)
        here.apply("policy", -direction)
        taken[going] += 1
    if here is not learner:
        learner.put(going, here)
    return taken
