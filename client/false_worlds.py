"""Worlds that lie to the agent who learns in them: other actions are executed, or other rewards come back.

The agent records the action that its policy chose, with that action's log-probability, and the reward that it is shown.
In the published code of FedPG-BR an agent that acts at random takes the log-probability of the action that it executed:
that is another attack, which is not here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.fleet import Bools, Worlds
from core.rows import Rows
from core.streams import Streams

F32 = NDArray[np.float32]
# Rewards of a copy among which reward-shuffle draws.
_KEPT = 64


class FalseWorlds(Rows):
    """Another batch of worlds, seen through a lie. Without a compiled step, so that rollouts come by for every one.

    random-action: an action drawn uniformly. constant-action: the first, or the lowest of a range. reward-flip: -r.
    reward-shuffle: one of the last rewards of the same copy, this one among them, drawn uniformly.
    """

    ROWS = ("inner", "streams", "kept", "seen")
    compiled = None

    def __init__(self, inner: Worlds, kind: str, streams: Streams) -> None:
        """``streams`` has a lane per copy."""
        self.inner, self.kind, self.streams = inner, kind, streams
        self.kept = np.zeros((inner.agents, inner.copies, _KEPT), np.float32)
        self.seen = np.zeros((inner.agents, inner.copies), np.int64)
        self._mirror()

    def _mirror(self) -> None:
        inner = self.inner
        self.agents, self.copies, self.horizon, self.exact = inner.agents, inner.copies, inner.horizon, inner.exact
        self.observation_space, self.action_space = inner.observation_space, inner.action_space
        self.obs, self.steps = inner.obs, inner.steps

    def reset(self) -> F32:
        self.obs = self.inner.reset()
        return self.obs

    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Any:
        where = np.ones(self.seen.shape, np.bool_) if active is None else active
        step = self.inner.step(self._executed(actions, where), active)
        self.obs = self.inner.obs
        return step._replace(reward=self._told(step.reward, where))

    def _executed(self, actions: NDArray[Any], where: Bools) -> NDArray[Any]:
        space = self.action_space
        if self.kind == "constant-action":
            first = space.low if isinstance(space, spaces.Box) else 0
            return np.broadcast_to(np.asarray(first, actions.dtype), actions.shape).copy()
        if self.kind != "random-action":
            return actions
        if isinstance(space, spaces.Box):
            drawn = space.low + self._uniform(where, *actions.shape[2:]) * (space.high - space.low)
        else:
            assert isinstance(space, spaces.Discrete)
            drawn = np.floor(self._uniform(where) * space.n)
        executed: NDArray[Any] = drawn.astype(actions.dtype)
        return executed

    def _told(self, reward: F32, where: Bools) -> F32:
        if self.kind == "reward-flip":
            return -reward
        if self.kind != "reward-shuffle":
            return reward
        k, i = np.nonzero(where)
        self.kept[k, i, self.seen[k, i] % _KEPT] = reward[k, i]
        self.seen[k, i] += 1
        which = (self._uniform(where) * np.minimum(self.seen, _KEPT)).astype(np.int64)
        told = np.zeros_like(reward)
        told[k, i] = self.kept[k, i, which[k, i]]
        return told

    def _uniform(self, where: Bools, *shape: int) -> NDArray[np.float64]:
        """Numbers in [0, 1) per copy. Copies that stand still draw none: who else plays must not matter."""
        before = self.streams.counts.copy()
        drawn = self.streams.uniform(*shape)
        self.streams.counts[~where] = before[~where]
        return drawn

    def settle(self) -> None:
        self.inner.settle()
        self.obs = self.inner.obs

    def count(self, lived: NDArray[np.int64] | int) -> None:
        self.inner.count(lived)

    def take(self, rows: Any) -> FalseWorlds:
        part = super().take(rows)
        part._mirror()
        return part

    def put(self, rows: Any, part: FalseWorlds) -> None:
        for name in ("inner", "streams"):
            getattr(self, name).put(rows, getattr(part, name))
        self.kept[rows], self.seen[rows] = part.kept, part.seen
        self.obs = self.inner.obs

    def close(self) -> None:
        self.inner.close()
