"""The contract of a batch of worlds: K agents x n copies, stepped together, with separate randomness per agent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from core.options import option
from core.rows import Rows
from core.streams import Streams

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class WorldConfig:
    """The world, and how it differs between agents and over time."""

    id: str = option(
        "CartPole-v1", "Any Gymnasium id; CartPole-v1, Pendulum-v1 and BipedalWalker-v3 have chosen physics."
    )
    copies: int = option(1, "Copies of its world that each agent steps in parallel.", low=1)
    horizon: int = option(0, "Steps after which an episode is truncated; 0 is the world's own limit.", low=0)
    physics: dict[str, Any] = option(
        {}, "Physical quantities by name: a number, a list (one per agent), or a table (see docs/worlds.md)."
    )
    obstacles: dict[str, Any] = option({}, "BipedalWalker-v3 only: kinds, frequency and sizes (see docs/worlds.md).")
    options: dict[str, Any] = option({}, "Options that are passed to gymnasium.make.")
    workers: int = option(
        0, "Processes that step the world, at most one per copy; 0: none of its own. Useful for slow simulators.", low=0
    )


def draw_in_memory() -> None:
    """Let pygame render without a screen."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


class Step(NamedTuple):
    """The result of a step, each array with axes (agent, copy).

    ``next_obs`` is the true successor, also at an episode's end; ``obs`` is what to act on now: the same, except that a
    finished copy has already begun a new episode.
    """

    obs: F32
    reward: F32
    terminated: Bools
    truncated: Bools
    next_obs: F32


class Worlds(Rows):
    """K agents x n copies of one kind of world.

    Copies that are not ``active`` stay as they are, draw nothing and return zeros. ``steps`` counts an agent's own
    steps over all its copies and drives whatever changes in its world, so that a resume goes on where it was. A
    simulator whose state cannot be saved ends its episodes when ``state()`` is called, in the run that goes on as well.
    """

    agents: int
    copies: int
    horizon: int
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    obs: F32
    steps: NDArray[np.int64]
    streams: Streams
    exact: bool = True
    """Whether ``state()`` holds the episodes in progress, or ends them."""
    frozen: bool = False
    """Whether time stands still: nothing is counted, so nothing drifts or jumps. For worlds of evaluations."""
    fps: int = 30
    """Pictures per second of a recording that runs as fast as the world."""

    @property
    def compiled(self) -> tuple[Any, ...] | None:
        """The step for loops that are compiled themselves; None where there is none.

        (kernel, state, clock, physics, keys, counts, horizon), to be called as
        kernel(state, clock, physics, keys, counts, active, actions, horizon, obs, next_obs, reward, ends).
        """
        return None

    def reset(self) -> F32:
        """Begin a new episode in every copy."""
        raise NotImplementedError

    def settle(self) -> None:
        """End the episodes that ``state()`` cannot hold. Until the next step, ``state()`` then changes nothing."""

    def count(self, lived: NDArray[np.int64] | int) -> None:
        """Count these steps of the agents."""
        if not self.frozen:
            self.steps += lived

    def begin_anew(self, number: NDArray[np.int64]) -> None:
        """Seed the following episodes by the agent and this number, independently of earlier episodes."""
        self.streams.counts[...] = (number.astype(np.uint64) << np.uint64(32))[:, None]

    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Step:
        """Step every active copy. Finished copies begin a new episode by themselves."""
        raise NotImplementedError

    def render(self, agent: int = 0, copy: int = 0) -> NDArray[np.uint8]:
        """Return a picture of one copy, (height, width, 3)."""
        raise NotImplementedError

    def close(self) -> None:
        """Close processes and windows."""
