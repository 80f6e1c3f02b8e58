"""Worlds that go wrong, each in one way; made by ids such as "tests.envs.strange:Raises-v0"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Plain(gymnasium.Env[Any, Any]):
    """Counts its steps; what it sees is the count and the last action."""

    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return self.see(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self.see(action), float(self.count), False, False, {}

    def see(self, action: Any) -> Any:
        return np.array([self.count, np.sum(action)], np.float32)


class Raises(Plain):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.count == 3:
            raise ZeroDivisionError("the wheel came off")
        return super().step(action)


class Nan(Plain):
    def see(self, action: Any) -> Any:
        return np.array([np.nan if self.count == 3 else 0.0, 0.0], np.float32)


class NanReward(Plain):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.see(action), float("nan"), False, False, {}


class Offset(Plain):
    action_space = spaces.Discrete(3, start=5)


class Vector(Plain):
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Endless(Plain):
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Many(Plain):
    action_space = spaces.MultiDiscrete([2, 3])


class Nested(Plain):
    observation_space = spaces.Dict(
        {"a": spaces.Discrete(3), "b": spaces.Tuple((spaces.Box(0, 255, (2, 2), np.uint8), spaces.Discrete(2)))}
    )

    def see(self, action: Any) -> Any:
        return {"a": self.count % 3, "b": (np.full((2, 2), self.count, np.uint8), 1)}


class Graph(Plain):
    observation_space = spaces.Sequence(spaces.Discrete(2))


class Fussy(Plain):
    def __init__(self, render_mode: str | None = None, size: int = 0) -> None:
        super().__init__(render_mode)
        if size > 3:
            raise ValueError("size is at most 3")


class BothEnds(Plain):
    """Terminated and out of time in the same step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, _, _, info = super().step(action)
        return seen, reward, self.count == 5, self.count == 5, info


for kind in (Raises, Nan, NanReward, Offset, Vector, Endless, Many, Nested, Graph, Fussy, BothEnds):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=10)
gymnasium.register("Unlimited-v0", Plain)


class Sleeps:
    """A stage whose second step takes for ever."""

    def __init__(self, which: Sequence[int]) -> None:
        self.steps = 0

    def step(self, which: Any, actions: Any) -> tuple[Any, Any, Any]:
        self.steps += 1
        if self.steps == 2 and which[0] == 2:
            time.sleep(3600)
        return np.zeros((len(which), 1)), np.zeros(len(which)), np.zeros((2, len(which)), np.bool_)

    def close(self) -> None:
        pass
