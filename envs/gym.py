"""Any Gymnasium id as a batch of K agents x n copies.

A simulator's inner state cannot be saved in general. So ``state()`` ends the episodes in progress and begins new ones
in new environments, in the run that goes on as well as in the one that is resumed: both then see the same worlds. The
environments are new because some simulators remember earlier episodes (Box2D its order of contacts, for one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import DtypeObservation, FlattenObservation, TransformAction
from numpy.typing import NDArray

from core import modules
from core.errors import Failure, Mistake
from core.rows import Array
from core.streams import Streams, child
from envs.workers import Crew
from envs.worlds import F32, Bools, Step, WorldConfig, Worlds, draw_in_memory

Env = gymnasium.Env[Any, Any]
Numbers = NDArray[np.int64]
_OURS = {"max_episode_steps": "world.horizon", "render_mode": "a recording (it chooses the mode itself)"}


def make_one(config: WorldConfig, render: bool = False, spec: str | EnvSpec = "") -> Env:
    """One Gymnasium environment with a flat observation; raises ``Mistake`` when there is no such world here."""
    for name, instead in _OURS.items():
        if name in config.options:
            raise Mistake(f"'world.options.{name}' is not yours to give; use {instead}")
    if module := config.id.rpartition(":")[0]:
        modules.find(module, f"'world.id' = '{config.id}'")
    options = dict(config.options) | ({"render_mode": "rgb_array"} if render else {})
    if render:
        draw_in_memory()
    try:
        env = gymnasium.make(
            spec or config.id, max_episode_steps=config.horizon or None, disable_env_checker=True, **options
        )
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "mujoco" if "mujoco" in str(error).lower() else ""
        hint = f"pip install -e '.[{extra}]' in the checkout of fedrl" if extra else str(error)
        why = f" ({error.__cause__})" if error.__cause__ else ""
        raise Mistake(f"the world '{config.id}' needs a package that is missing{why}: {hint}") from None
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, ImportError) as error:
        raise Mistake(f"there is no world '{config.id}' here: {error}") from None
    except Exception as error:  # whatever a constructor of someone else raises, the user chose the id and its options
        given = f" with world.options {config.options}" if config.options else ""
        raise Mistake(f"the world '{config.id}' cannot be made{given}: {type(error).__name__}: {error}") from None
    if render and not (env.render_mode == "rgb_array" in env.metadata.get("render_modes", ())):
        raise Mistake(f"the world '{config.id}' cannot be filmed: it draws no pictures (rgb_array)")
    return fitted(env, config.id)


def fitted(env: Env, name: str) -> Env:
    """A flat float32 observation; an action is a number from 0 on, or a bounded vector."""
    space = env.observation_space
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype == np.float32):
        if not space.is_np_flattenable:
            raise Mistake(f"the observations of '{name}' cannot be made a flat vector: {space}")
        env = DtypeObservation(FlattenObservation(env), np.float32)
    action = env.action_space
    if isinstance(action, spaces.Discrete):
        first = int(action.start)
        return TransformAction(env, lambda chosen: chosen + first, spaces.Discrete(int(action.n))) if first else env
    if isinstance(action, spaces.Box) and len(action.shape) == 1 and np.isfinite([action.low, action.high]).all():
        return env
    raise Mistake(f"the actions of '{name}' are {action}; Discrete and bounded one-dimensional Box are supported")


class Stage(Protocol):
    """Where environments stand, by number: in this process or in others."""

    def begin(self, which: Numbers, seeds: Sequence[int], options: Sequence[dict[str, Any] | None]) -> F32:
        """A new episode in each; their observations (m, o)."""

    def step(self, which: Numbers, actions: NDArray[Any]) -> tuple[F32, F32, Bools]:
        """Observations (m, o), rewards (m,), and terminated and truncated (2, m)."""

    def renew(self, which: Numbers) -> None:
        """Replace them by new ones, which remember nothing."""

    def render(self, number: int) -> NDArray[np.uint8] | None:
        """A picture of one, or None where there is none."""

    def close(self) -> None: ...


class Here:
    """Environments stepped one by one in this process."""

    def __init__(self, make: Callable[[], Env], which: Iterable[int]) -> None:
        self._make = make
        self._envs = {int(number): make() for number in which}

    def begin(self, which: Numbers, seeds: Sequence[int], options: Sequence[dict[str, Any] | None]) -> F32:
        begun = [
            self._envs[number].reset(seed=seed, options=chosen)[0]
            for number, seed, chosen in zip(which.tolist(), seeds, options, strict=True)
        ]
        return np.array(begun, dtype=np.float32)

    def step(self, which: Numbers, actions: NDArray[Any]) -> tuple[F32, F32, Bools]:
        discrete = actions.ndim == 1
        seen, reward, ends = [], np.empty(len(which), np.float32), np.empty((2, len(which)), np.bool_)
        for j, number in enumerate(which.tolist()):
            action = int(actions[j]) if discrete else actions[j]
            obs, reward[j], ends[0, j], ends[1, j], _ = self._envs[number].step(action)
            seen.append(obs)
        return np.array(seen, dtype=np.float32), reward, ends

    def renew(self, which: Numbers) -> None:
        for number in which.tolist():
            self._envs[number].close()
            self._envs[number] = self._make()

    def render(self, number: int) -> NDArray[np.uint8] | None:
        env = self._envs[number]
        return None if env.render_mode is None else np.asarray(env.render(), dtype=np.uint8)

    def close(self) -> None:
        for env in self._envs.values():
            env.close()


class GymWorlds(Worlds):
    """Gymnasium environments behind the batched interface."""

    ROWS = ("streams", "steps")
    exact = False

    def __init__(
        self,
        config: WorldConfig,
        seeds: Sequence[int],
        render: bool = False,
        purpose: str = "world",
        make: Callable[[WorldConfig, bool], Env] = make_one,
    ) -> None:
        self.config, self.agents, self.copies = config, len(seeds), config.copies
        with make(config, render) as one:
            assert isinstance(one.observation_space, spaces.Box)
            self.observation_space, self.action_space = one.observation_space, one.action_space
            self.horizon = config.horizon or (one.spec.max_episode_steps if one.spec else None) or 0
            self.fps = int(one.metadata.get("render_fps") or Worlds.fps)
        if not self.horizon:
            raise Mistake(f"episodes of '{config.id}' may last for ever; set 'world.horizon' to a number of steps")
        self.streams = Streams(seeds, purpose, lanes=config.copies)
        self.steps = np.zeros(self.agents, dtype=np.int64)
        self.obs: F32 = np.zeros((self.agents, self.copies, self.observation_space.shape[0]), dtype=np.float32)
        self._cells: Numbers = np.arange(self.agents * self.copies).reshape(self.agents, self.copies)
        fresh = partial(make, config, render)
        self._stage: Stage = self._crew(fresh) if config.workers else Here(fresh, self._cells.ravel().tolist())
        self.reset()
        self._settled = True

    def _crew(self, fresh: Callable[[], Env]) -> Crew:
        count, one = self._cells.size, np.asarray(self.action_space.sample())
        actions = np.empty((count, *one.shape), one.dtype)
        return Crew(partial(Here, fresh), self.obs.reshape(count, -1), actions, self.config.workers, self.config.id)

    def reset(self) -> F32:
        self.obs = np.empty_like(self.obs)
        self._begin(np.ones((self.agents, self.copies), np.bool_))
        return self.obs

    def _begin(self, where: Bools) -> None:
        """New episodes; a seed depends on the agent, the copy and how many episodes the copy has begun."""
        keys, counts = self.streams.keys[where].tolist(), self.streams.counts[where].tolist()
        seeds = [child(key, count) & 0x7FFFFFFF for key, count in zip(keys, counts, strict=True)]
        self.streams.counts[where] += np.uint64(1)
        options = self._reset_options()
        seen = self._stage.begin(self._cells[where], seeds, [options[k] for k in np.nonzero(where)[0].tolist()])
        self._refuse_nan(where, np.isfinite(seen).all(axis=1))
        self.obs[where] = seen

    def _reset_options(self) -> Sequence[dict[str, Any] | None]:
        """What each agent's next episode is begun with."""
        return [None] * self.agents

    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Step:
        where = np.ones((self.agents, self.copies), np.bool_) if active is None else active
        obs, next_obs = self.obs.copy(), np.zeros_like(self.obs)
        reward, ends = np.zeros(where.shape, np.float32), np.zeros((2, *where.shape), np.bool_)
        self.obs = obs
        if where.any():
            seen, reward[where], ends[:, where] = self._stage.step(self._cells[where], self._allowed(actions)[where])
            self._refuse_nan(where, np.isfinite(seen).all(axis=1) & np.isfinite(reward[where]))
            obs[where] = next_obs[where] = seen
            ends[1] &= ~ends[0]
            self.count(where.sum(axis=1))
            self._settled = False
            ended = ends[0] | ends[1]
            if ended.any():
                self._begin(ended)
        return Step(obs, reward, ends[0], ends[1], next_obs)

    def _allowed(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions as the world takes them: whole numbers, or vectors inside its bounds."""
        space = self.action_space
        if isinstance(space, spaces.Box):
            within: NDArray[Any] = np.clip(actions, space.low, space.high, dtype=space.dtype)
            return within
        return np.asarray(actions, dtype=np.int64)

    def _refuse_nan(self, where: Bools, fine: Any) -> None:
        """One number that is not finite would reach every weight of an agent, and at the next average every agent."""
        if not fine.all():
            agent, copy = np.argwhere(where)[~fine][0]
            raise Failure(
                f"'{self.config.id}' returned an observation or a reward that is not finite (row {agent}, copy {copy})"
            )

    def settle(self) -> None:
        if not self._settled:
            self._renew()

    def state(self) -> dict[str, Array]:
        self.settle()
        return super().state()

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        super().load_state(state, where)
        self.streams.counts -= np.uint64(1)
        self._renew()

    def _renew(self) -> None:
        self._stage.renew(self._cells.ravel())
        self.reset()
        self._settled = True

    def take(self, rows: Any) -> GymWorlds:
        part = super().take(rows)
        part._cells, part.obs = self._cells[rows], self.obs[rows]
        part.agents = len(part._cells)
        return part

    def put(self, rows: Any, part: GymWorlds) -> None:
        super().put(rows, part)
        self._settled = False
        self.obs = self.obs.copy()
        self.obs[rows] = part.obs

    def render(self, agent: int = 0, copy: int = 0) -> NDArray[np.uint8]:
        picture = self._stage.render(int(self._cells[agent, copy]))
        if picture is None:
            raise Mistake(
                f"these worlds of '{self.config.id}' draw no pictures: make them with make_worlds(render=True)"
            )
        return picture

    def close(self) -> None:
        self._stage.close()
