"""Any Gymnasium id as a batch of K agents x n copies, stepped one by one in this process.

A simulator's inner state cannot be saved in general. So ``state()`` ends the episodes in progress and begins new ones,
in the run that goes on as well as in the one that is resumed: both then see the same worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from core.errors import Mistake
from core.rows import Array
from core.streams import Streams, child
from envs.worlds import Bools, F32, Step, WorldConfig, Worlds

Make = Callable[[], gymnasium.Env[Any, Any]]


def make_one(config: WorldConfig, render: bool = False) -> gymnasium.Env[Any, Any]:
    """One Gymnasium environment with a flat observation; raises ``Mistake`` when there is no such world here."""
    options = dict(config.options) | ({"render_mode": "rgb_array"} if render else {})
    try:
        env = gymnasium.make(config.id, max_episode_steps=config.horizon or None, disable_env_checker=True, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "mujoco" if "mujoco" in str(error).lower() else ""
        hint = f"pip install 'fedrl[{extra}]' (or pip install -e '.[{extra}]' in a checkout)" if extra else str(error)
        raise Mistake(f"the world '{config.id}' needs a package that is not installed: {hint}") from None
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise Mistake(f"there is no world '{config.id}': {error}") from None
    except TypeError as error:
        raise Mistake(f"'world.options' does not fit '{config.id}': {error}") from None
    return fitted(env, config.id)


def fitted(env: gymnasium.Env[Any, Any], name: str) -> gymnasium.Env[Any, Any]:
    """A flat float32 observation; an action is one number of a set, or a bounded vector."""
    space = env.observation_space
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype == np.float32):
        if not spaces.utils.is_space_dtype_shape_equiv(space, space) or not space.is_np_flattenable:
            raise Mistake(f"the observations of '{name}' cannot be made a flat vector: {space}")
        env = gymnasium.wrappers.DtypeObservation(gymnasium.wrappers.FlattenObservation(env), np.float32)
    action = env.action_space
    if isinstance(action, spaces.Discrete):
        return env
    if isinstance(action, spaces.Box) and len(action.shape) == 1 and np.isfinite([action.low, action.high]).all():
        return env
    raise Mistake(f"the actions of '{name}' are {action}; Discrete and bounded one-dimensional Box are supported")


class GymWorlds(Worlds):
    """A list of Gymnasium environments behind the batched interface."""

    ROWS = ("streams", "steps")

    def __init__(self, make: Make, horizon: int, seeds: Sequence[int], copies: int) -> None:
        self.agents, self.copies = len(seeds), copies
        self.envs = [[make() for _ in range(copies)] for _ in seeds]
        one = self.envs[0][0]
        assert isinstance(one.observation_space, spaces.Box)
        self.observation_space, self.action_space = one.observation_space, one.action_space
        self.horizon = horizon or (one.spec.max_episode_steps if one.spec else None) or 0
        self.streams = Streams(seeds, "world", lanes=copies)
        self.steps = np.zeros(self.agents, dtype=np.int64)
        self.obs: F32 = np.zeros((self.agents, copies, self.observation_space.shape[0]), dtype=np.float32)
        self.reset()

    def reset(self) -> F32:
        self.obs = np.empty_like(self.obs)
        for k, i in np.ndindex(self.agents, self.copies):
            self._begin(k, i)
        return self.obs

    def _begin(self, k: int, i: int) -> None:
        """A new episode; its seed depends on the agent, the copy and how many episodes the copy has begun."""
        seed = child(int(self.streams.keys[k, i]), int(self.streams.counts[k, i])) & 0x7FFFFFFF
        self.streams.counts[k, i] += np.uint64(1)
        self.obs[k, i] = self.envs[k][i].reset(seed=seed)[0]

    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Step:
        shape = (self.agents, self.copies)
        self.obs, next_obs = self.obs.copy(), np.zeros_like(self.obs)
        reward, ends = np.zeros(shape, np.float32), np.zeros((2, *shape), np.bool_)
        discrete = isinstance(self.action_space, spaces.Discrete)
        for k, i in np.ndindex(shape):
            if active is not None and not active[k, i]:
                continue
            action = int(actions[k, i]) if discrete else actions[k, i]
            seen, reward[k, i], ends[0, k, i], truncated, _ = self.envs[k][i].step(action)
            ends[1, k, i] = truncated and not ends[0, k, i]
            next_obs[k, i] = self.obs[k, i] = seen
            self.steps[k] += 1
            if ends[:, k, i].any():
                self._begin(k, i)
        return Step(self.obs, reward, ends[0], ends[1], next_obs)

    def state(self) -> dict[str, Array]:
        self.reset()
        return super().state()

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        super().load_state(state, where)
        self.streams.counts -= np.uint64(1)
        self.reset()

    def take(self, rows: Any) -> GymWorlds:
        part = super().take(rows)
        chosen = np.arange(self.agents)[rows]
        part.envs, part.agents, part.obs = [self.envs[k] for k in chosen], len(chosen), self.obs[rows]
        return part

    def put(self, rows: Any, part: GymWorlds) -> None:  # type: ignore[override]
        super().put(rows, part)
        self.obs = self.obs.copy()
        self.obs[rows] = part.obs

    def render(self, agent: int = 0, copy: int = 0) -> NDArray[np.uint8]:
        return np.asarray(self.envs[agent][copy].render(), dtype=np.uint8)

    def close(self) -> None:
        for env in (env for row in self.envs for env in row):
            env.close()
