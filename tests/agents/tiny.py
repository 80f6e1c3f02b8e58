"""Worlds so small that learning in them takes seconds, and a recorder of what happened in a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from core.rows import Rows
from core.streams import Streams
from envs.worlds import Step, Worlds


class Tiny(Worlds):
    """Every step shows something new; an episode is ``horizon`` steps and then terminates, or is truncated."""

    ROWS = ("streams", "steps", "clock", "obs")

    def __init__(self, seeds: Sequence[int], copies: int = 1, horizon: int = 1, truncates: bool = False) -> None:
        self.agents, self.copies, self.horizon, self.truncates = len(seeds), copies, horizon, truncates
        self.streams = Streams(seeds, "tiny", lanes=copies)
        self.steps = np.zeros(self.agents, np.int64)
        self.clock = np.zeros((self.agents, copies), np.int64)
        self.obs = np.zeros((self.agents, copies, *self.observation_space.shape), np.float32)
        self.reset()

    chance = 0.0
    """How often a step ends its episode by terminating it."""

    def show(self, number: np.ndarray) -> np.ndarray:
        """An observation from a number in [0, 1)."""
        raise NotImplementedError

    def pay(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _new(self, active: np.ndarray) -> np.ndarray:
        before = self.streams.counts.copy()
        self.number = number = self.streams.uniform(1)[..., 0]
        self.streams.counts[~active] = before[~active]
        return np.where(active[..., None], self.show(number), self.obs).astype(np.float32)

    def reset(self) -> np.ndarray:
        self.clock[...] = 0
        self.obs = self._new(np.ones((self.agents, self.copies), np.bool_))
        return self.obs

    def step(self, actions: Any, active: Any = None) -> Step:
        active = np.ones((self.agents, self.copies), np.bool_) if active is None else active
        reward = np.where(active, self.pay(self.obs, actions), 0.0).astype(np.float32)
        self.steps += active.sum(axis=1)
        self.clock += active
        self.obs = next_obs = self._new(active)
        fallen = active & (self.number < self.chance)
        late = active & ~fallen & (self.clock >= self.horizon)
        ends = (fallen, late) if self.truncates else (fallen | late, np.zeros_like(late))
        over = fallen | late
        if over.any():
            self.clock[over] = 0
            self.obs = self._new(over)
        return Step(self.obs, reward, *ends, next_obs)

    def take(self, rows: Any) -> Any:
        part = super().take(rows)
        part.agents = len(part.steps)
        return part

    def close(self) -> None:
        pass


class Identity(Tiny):
    """Say what you see: one of four classes; the same action earns 1."""

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(4)

    def show(self, number: np.ndarray) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[(number * 4).astype(int)]

    def pay(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.take_along_axis(obs, actions[..., None], axis=-1)[..., 0]


class Echo(Tiny):
    """Answer a number with the same number; what an answer is off by is paid squared."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def show(self, number: np.ndarray) -> np.ndarray:
        return (2.0 * number - 1.0)[..., None]

    def pay(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return -((actions - obs)[..., 0] ** 2)


class Aim(Echo):
    """A bandit: one action is best, 0.6, whatever is seen."""

    def pay(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return -((actions[..., 0] - 0.6) ** 2)


class Wide(Tiny):
    """Two actions whose range no policy leaves; episodes terminate now and then, or are cut."""

    observation_space = spaces.Box(-5.0, 5.0, (3,), np.float32)
    action_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
    chance = 0.12

    def show(self, number: np.ndarray) -> np.ndarray:
        return np.stack([4.0 * number - 1.0, np.sin(9.0 * number), self.clock / 5.0], axis=-1)

    def pay(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return 1.0 - ((actions - obs[..., :2]) ** 2).sum(-1)


class Clock(Tiny):
    """Shows the phase of the episode, pays 1 a step: the value of every state is known."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def show(self, number: np.ndarray) -> np.ndarray:
        phase = self.clock / max(self.horizon, 1)
        return np.stack([np.ones_like(phase), phase], axis=-1)

    def pay(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.ones(actions.shape)


class Recorder(Rows):
    """A world that remembers what it showed, what was done, and what came of it."""

    ROWS = ("worlds",)
    compiled = None  # what a compiled loop does, nobody sees

    def __init__(self, worlds: Any) -> None:
        self.worlds = worlds
        self.seen: list[np.ndarray] = []
        self.done: list[np.ndarray] = []
        self.found: list[Step] = []

    def __getattr__(self, name: str) -> Any:
        if name == "worlds" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.worlds, name)

    def step(self, actions: Any, active: Any = None) -> Step:
        self.seen.append(self.worlds.obs.copy())
        self.done.append(np.array(actions))
        step = self.worlds.step(actions, active)
        self.found.append(Step(*(np.array(x) for x in step)))
        return step


def spread(shape: Sequence[int], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normal float32 numbers."""
    return (scale * np.random.default_rng(seed).standard_normal(tuple(shape))).astype(np.float32)
