"""False worlds: another action is executed than the agent chose, or another reward comes back.

The agent records the action that its policy chose, with that action's log-probability, and the reward that it is given.
In the published code of FedPG-BR an agent that acts at random takes the log-probability of the action that it executed:
that is another attack, which is not here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.fleet import Bools, Worlds
from attacks.attack import attack
from core.rows import Rows
from core.streams import Streams

F32 = NDArray[np.float32]
# Rewards of a copy among which reward-shuffle draws.
_KEPT = 64


class FalseWorlds(Rows):
    """A batch of worlds that executes other actions or returns other rewards; a subclass says which.

    It has no compiled step, so that rollouts call ``step`` for every step.
    """

    ROWS: ClassVar[tuple[str, ...]] = ("inner", "streams")
    compiled = None

    def __init__(self, inner: Worlds, streams: Streams, options: Any = None) -> None:
        """``streams`` has a lane per copy; ``options`` are those of the attack."""
        self.inner, self.streams, self.options = inner, streams, options
        self._mirror()

    def executed(self, actions: NDArray[Any], where: Bools) -> NDArray[Any]:
        """Return the actions that are executed instead; ``where`` tells which copies step."""
        return actions

    def rewarded(self, reward: F32, where: Bools) -> F32:
        """Return the rewards that the agent is given instead."""
        return reward

    def _mirror(self) -> None:
        inner = self.inner
        self.agents, self.copies, self.horizon, self.exact = inner.agents, inner.copies, inner.horizon, inner.exact
        self.observation_space, self.action_space = inner.observation_space, inner.action_space
        self.obs, self.steps = inner.obs, inner.steps

    def reset(self) -> F32:
        self.obs = self.inner.reset()
        return self.obs

    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Any:
        where = np.ones((self.agents, self.copies), np.bool_) if active is None else active
        step = self.inner.step(self.executed(actions, where), active)
        self.obs = self.inner.obs
        return step._replace(reward=self.rewarded(step.reward, where))

    def uniform(self, where: Bools, *shape: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1) per copy. Copies that do not step draw none: who else plays must not matter."""
        before = self.streams.counts.copy()
        drawn = self.streams.uniform(*shape)
        self.streams.counts[~where] = before[~where]
        return drawn

    def settle(self) -> None:
        self.inner.settle()
        self.obs = self.inner.obs

    def count(self, lived: NDArray[np.int64] | int) -> None:
        self.inner.count(lived)

    def take(self, rows: Any) -> Any:
        part = super().take(rows)
        part._mirror()
        return part

    def put(self, rows: Any, part: Any) -> None:
        super().put(rows, part)
        self.obs = self.inner.obs

    def close(self) -> None:
        self.inner.close()


@attack("random-action")
class RandomAction(FalseWorlds):
    """Executes an action drawn uniformly."""

    def executed(self, actions: NDArray[Any], where: Bools) -> NDArray[Any]:
        space = self.action_space
        if isinstance(space, spaces.Box):
            drawn = space.low + self.uniform(where, *actions.shape[2:]) * (space.high - space.low)
        else:
            assert isinstance(space, spaces.Discrete)
            drawn = np.floor(self.uniform(where) * space.n)
        executed: NDArray[Any] = drawn.astype(actions.dtype)
        return executed


@attack("constant-action")
class ConstantAction(FalseWorlds):
    """Executes the first action, or the lowest of a range."""

    def executed(self, actions: NDArray[Any], where: Bools) -> NDArray[Any]:
        first = self.action_space.low if isinstance(self.action_space, spaces.Box) else 0
        return np.broadcast_to(np.asarray(first, actions.dtype), actions.shape).copy()


@attack("reward-flip")
class RewardFlip(FalseWorlds):
    """Returns -r."""

    def rewarded(self, reward: F32, where: Bools) -> F32:
        return -reward


@attack("reward-shuffle")
class RewardShuffle(FalseWorlds):
    """Returns one of the last rewards of the same copy, this one among them, drawn uniformly."""

    ROWS: ClassVar[tuple[str, ...]] = (*FalseWorlds.ROWS, "kept", "seen")

    def __init__(self, inner: Worlds, streams: Streams, options: Any = None) -> None:
        super().__init__(inner, streams, options)
        self.kept = np.zeros((inner.agents, inner.copies, _KEPT), np.float32)
        self.seen = np.zeros((inner.agents, inner.copies), np.int64)

    def rewarded(self, reward: F32, where: Bools) -> F32:
        k, i = np.nonzero(where)
        self.kept[k, i, self.seen[k, i] % _KEPT] = reward[k, i]
        self.seen[k, i] += 1
        which = (self.uniform(where) * np.minimum(self.seen, _KEPT)).astype(np.int64)
        shuffled = np.zeros_like(reward)
        shuffled[k, i] = self.kept[k, i, which[k, i]]
        return shuffled
