"""Replay for K agents: a ring per agent. Terminated and truncated are kept apart; there is no ``done``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from core.rows import Array, Rows, adopt

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Batch(NamedTuple):
    """Transitions of every agent, (K, b, ...)."""

    obs: F32
    action: F32
    reward: F32
    terminated: Bools
    truncated: Bools
    next_obs: F32


class Replay(Rows):
    """The last ``capacity`` transitions of each agent. A part of a fleet shares the memory of the whole."""

    ROWS = ("obs", "action", "reward", "terminated", "truncated", "next_obs", "stored")

    def __init__(self, agents: int, capacity: int, obs_width: int, action_width: int) -> None:
        self.capacity = capacity
        self.obs: F32 = np.zeros((agents, capacity, obs_width), np.float32)
        self.next_obs: F32 = np.zeros((agents, capacity, obs_width), np.float32)
        self.action: F32 = np.zeros((agents, capacity, action_width), np.float32)
        self.reward: F32 = np.zeros((agents, capacity), np.float32)
        self.terminated: Bools = np.zeros((agents, capacity), np.bool_)
        self.truncated: Bools = np.zeros((agents, capacity), np.bool_)
        self.stored = np.zeros(agents, np.int64)
        self._rows = np.arange(agents)

    @property
    def size(self) -> NDArray[np.int64]:
        """How many transitions each agent can sample from."""
        return np.minimum(self.stored[self._rows], self.capacity)

    def add(self, obs: F32, action: F32, reward: F32, terminated: Bools, truncated: Bools, next_obs: F32) -> None:
        """One transition of each agent and copy, (K, n, ...)."""
        arrays = (self.obs, self.action, self.reward, self.terminated, self.truncated, self.next_obs, self.stored)
        _add(self._rows, *arrays, obs, action, reward, terminated, truncated, next_obs)

    def gather(self, index: NDArray[np.int64]) -> Batch:
        """The transitions at these places, (K, b)."""
        shape = index.shape
        batch = Batch(
            np.empty((*shape, self.obs.shape[2]), np.float32),
            np.empty((*shape, self.action.shape[2]), np.float32),
            np.empty(shape, np.float32),
            np.empty(shape, np.bool_),
            np.empty(shape, np.bool_),
            np.empty((*shape, self.next_obs.shape[2]), np.float32),
        )
        memory = (self.obs, self.action, self.reward, self.terminated, self.truncated, self.next_obs)
        _gather(self._rows, index, *memory, *batch)
        return batch

    @property
    def _own(self) -> Any:
        """Where this fleet's agents are in the memory: all of it (a view), or the rows of a part."""
        return slice(None) if len(self._rows) == len(self.stored) else self._rows

    def state(self) -> dict[str, Array]:
        """Only what is filled: a checkpoint is as large as what was lived through, not as what there is room for."""
        own, stored = self._own, self.stored[self._own]
        filled = int(stored.max(initial=0))
        return {name: getattr(self, name)[own, :filled] for name in Batch._fields} | {"stored": stored}

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        stored = self.stored[self._own]
        adopt(stored, state, f"{where}stored")
        self.stored[self._own] = stored
        filled = int(stored.max(initial=0))
        for name in Batch._fields:
            found = np.empty_like(getattr(self, name)[self._own, :filled])
            adopt(found, state, where + name)
            getattr(self, name)[self._own, :filled] = found

    def take(self, rows: Any) -> Replay:
        part = object.__new__(Replay)
        part.__dict__ |= self.__dict__ | {"_rows": self._rows[rows]}
        return part

    def put(self, rows: Any, part: Replay) -> None:
        """Nothing to do: the memory is shared."""


@njit(cache=True)
def _add(rows, obs, action, reward, terminated, truncated, next_obs, stored, o, a, r, te, tr, no):  # type: ignore[no-untyped-def]
    capacity = obs.shape[1]
    for j in range(len(rows)):
        k = rows[j]
        for i in range(r.shape[1]):
            at = stored[k] % capacity
            obs[k, at] = o[j, i]
            action[k, at] = a[j, i]
            reward[k, at] = r[j, i]
            terminated[k, at] = te[j, i]
            truncated[k, at] = tr[j, i]
            next_obs[k, at] = no[j, i]
            stored[k] += 1


@njit(cache=True)
def _gather(rows, index, obs, action, reward, terminated, truncated, next_obs, o, a, r, te, tr, no):  # type: ignore[no-untyped-def]
    for j in range(len(rows)):
        k = rows[j]
        for i in range(index.shape[1]):
            at = index[j, i]
            o[j, i] = obs[k, at]
            a[j, i] = action[k, at]
            r[j, i] = reward[k, at]
            te[j, i] = terminated[k, at]
            tr[j, i] = truncated[k, at]
            no[j, i] = next_obs[k, at]
