"""CartPole and Pendulum as compiled batches with physics per agent.

With the default physics they are Gymnasium's own, step for step: the order of operations is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numba import cfunc, float32, float64, int64, njit, types, uint64
from numpy.typing import NDArray

from core.streams import Streams, uniform01
from envs.dynamics import Dynamics, Quantity
from envs.worlds import F32, Bools, Step, WorldConfig, Worlds, draw_in_memory

_X_LIMIT = 2.4
_THETA_LIMIT = 12 * 2 * np.pi / 360
_TINY = 1e-6


@njit(cache=True)
def _cartpole(state, clock, physics, keys, counts, active, actions, horizon, obs, next_obs, reward, ends):  # type: ignore[no-untyped-def]
    for k in range(state.shape[0]):
        gravity, cart, pole, length, force_mag = (
            physics[k, 0],
            physics[k, 1],
            physics[k, 2],
            physics[k, 3],
            physics[k, 4],
        )
        total = pole + cart
        moment = pole * length
        for i in range(state.shape[1]):
            if not active[k, i]:
                continue
            s = state[k, i]
            x, x_dot, theta, theta_dot = s[0], s[1], s[2], s[3]
            force = force_mag if actions[k, i] == 1 else -force_mag
            cos, sin = np.cos(theta), np.sin(theta)
            temp = (force + moment * (theta_dot * theta_dot) * sin) / total
            theta_acc = (gravity * sin - cos * temp) / (length * (4.0 / 3.0 - pole * (cos * cos) / total))
            x_acc = temp - moment * theta_acc * cos / total
            s[0] = x + 0.02 * x_dot
            s[1] = x_dot + 0.02 * x_acc
            s[2] = theta + 0.02 * theta_dot
            s[3] = theta_dot + 0.02 * theta_acc
            clock[k, i] += 1
            reward[k, i] = 1.0
            fallen = abs(s[0]) > _X_LIMIT or abs(s[2]) > _THETA_LIMIT
            ends[0, k, i] = fallen
            ends[1, k, i] = not fallen and clock[k, i] >= horizon
            for j in range(4):
                next_obs[k, i, j] = s[j]
            if fallen or clock[k, i] >= horizon:
                _cartpole_begin(s, keys[k, i], counts[k, i])
                counts[k, i] += uint64(4)
                clock[k, i] = 0
            for j in range(4):
                obs[k, i, j] = s[j]


@njit(cache=True, inline="always")
def _cartpole_begin(s, key, count):  # type: ignore[no-untyped-def]
    for j in range(4):
        s[j] = 0.1 * uniform01(key, count + uint64(j)) - 0.05


@njit(cache=True)
def _cartpole_reset(state, keys, counts, obs):  # type: ignore[no-untyped-def]
    for k in range(state.shape[0]):
        for i in range(state.shape[1]):
            _cartpole_begin(state[k, i], keys[k, i], counts[k, i])
            counts[k, i] += uint64(4)
            for j in range(4):
                obs[k, i, j] = state[k, i, j]


@njit(cache=True)
def _pendulum(state, clock, physics, keys, counts, active, actions, horizon, obs, next_obs, reward, ends):  # type: ignore[no-untyped-def]
    for k in range(state.shape[0]):
        g, m, length, torque, speed = physics[k, 0], physics[k, 1], physics[k, 2], physics[k, 3], physics[k, 4]
        for i in range(state.shape[1]):
            if not active[k, i]:
                continue
            s = state[k, i]
            th, th_dot = s[0], s[1]
            # Gymnasium multiplies a float32 command in float32, and in 200 steps the difference is seen.
            u = np.float32(min(max(float(actions[k, i, 0]), -2.0), 2.0)) * np.float32(torque / 2.0)
            angle = (th + np.pi) % (2 * np.pi) - np.pi
            reward[k, i] = -(angle**2 + 0.1 * th_dot**2 + np.float32(0.001) * (u * u))
            new = th_dot + (3 * g / (2 * length) * np.sin(th) + np.float32(3.0 / (m * length**2)) * u) * 0.05
            s[1] = min(max(new, -speed), speed)
            s[0] = th + s[1] * 0.05
            clock[k, i] += 1
            over = clock[k, i] >= horizon
            ends[0, k, i] = False
            ends[1, k, i] = over
            _pendulum_see(s, next_obs[k, i])
            if over:
                _pendulum_begin(s, keys[k, i], counts[k, i])
                counts[k, i] += uint64(2)
                clock[k, i] = 0
            _pendulum_see(s, obs[k, i])


@njit(cache=True, inline="always")
def _pendulum_begin(s, key, count):  # type: ignore[no-untyped-def]
    s[0] = np.pi * (2.0 * uniform01(key, count) - 1.0)
    s[1] = 2.0 * uniform01(key, count + uint64(1)) - 1.0


@njit(cache=True, inline="always")
def _pendulum_see(s, obs):  # type: ignore[no-untyped-def]
    obs[0], obs[1], obs[2] = np.cos(s[0]), np.sin(s[0]), s[1]


@njit(cache=True)
def _pendulum_reset(state, keys, counts, obs):  # type: ignore[no-untyped-def]
    for k in range(state.shape[0]):
        for i in range(state.shape[1]):
            _pendulum_begin(state[k, i], keys[k, i], counts[k, i])
            counts[k, i] += uint64(2)
            _pendulum_see(state[k, i], obs[k, i])


@functools.cache
def _pointer(kernel: Any, discrete: bool) -> Any:
    """A kernel as a function pointer: the same compiled loop takes any of them, so it can be kept on disk."""
    actions = int64[:, ::1] if discrete else float32[:, :, ::1]
    state, seen, numbers = float64[:, :, ::1], float32[:, :, ::1], types.uint64[:, ::1]
    signature = types.void(
        state, int64[:, ::1], float64[:, ::1], numbers, numbers, types.boolean[:, ::1], actions, int64,
        seen, seen, float32[:, ::1], types.boolean[:, :, ::1],
    )  # fmt: skip
    return cfunc(signature, cache=True)(kernel.py_func)


class Classic(Worlds):
    """A batch whose whole state is an array: it is saved exactly, episodes in progress included."""

    ROWS = ("state_", "clock", "streams", "steps", "obs")
    QUANTITIES: ClassVar[dict[str, Quantity]]
    WIDTH: ClassVar[int]
    _kernel: ClassVar[Any]
    _begin: ClassVar[Any]
    _attributes: ClassVar[tuple[str, ...]]

    def __init__(
        self, config: WorldConfig, seeds: Sequence[int], numbers: Sequence[int], purpose: str = "world"
    ) -> None:
        self.config, self.agents, self.copies = config, len(seeds), config.copies
        spec = gymnasium.spec(config.id)
        self.horizon = config.horizon or spec.max_episode_steps or 0
        with gymnasium.make(config.id) as one:
            assert isinstance(one.observation_space, spaces.Box)
            self.observation_space, self.action_space = one.observation_space, one.action_space
            self.fps = int(one.metadata["render_fps"])
        self.dynamics = Dynamics(self.QUANTITIES, config.physics, seeds, numbers)
        self.streams = Streams(seeds, purpose, lanes=self.copies)
        self.state_: NDArray[np.float64] = np.zeros((self.agents, self.copies, self.WIDTH))
        self.clock = np.zeros((self.agents, self.copies), dtype=np.int64)
        self.steps = np.zeros(self.agents, dtype=np.int64)
        self.obs: F32 = np.zeros((self.agents, self.copies, self.observation_space.shape[0]), dtype=np.float32)
        self._everyone = np.ones((self.agents, self.copies), dtype=np.bool_)
        self._physics = self.dynamics.at(self.steps)
        self._camera: gymnasium.Env[Any, Any] | None = None
        self.reset()

    @property
    def physics(self) -> NDArray[np.float64]:
        """(agents, quantities) as they are now."""
        if self.dynamics.changing:
            self._physics = self.dynamics.at(self.steps)
        return self._physics

    @property
    def compiled(self) -> tuple[Any, ...] | None:
        if self.dynamics.changing:  # physics are looked up again at every step
            return None
        streams = self.streams
        kernel = _pointer(self._kernel, isinstance(self.action_space, spaces.Discrete))
        return kernel, self.state_, self.clock, self.physics, streams.keys, streams.counts, self.horizon

    def reset(self) -> F32:
        self.obs = np.empty_like(self.obs)
        self._begin(self.state_, self.streams.keys, self.streams.counts, self.obs)
        self.clock[...] = 0
        return self.obs

    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Step:
        if active is None:
            obs, next_obs, reward = (
                np.empty_like(self.obs),
                np.empty_like(self.obs),
                np.empty(self.clock.shape, np.float32),
            )
            ends = np.empty((2, *self.clock.shape), np.bool_)
            physics = self.physics
            active = self._everyone
            self.count(self.copies)
        else:
            obs, next_obs, reward = self.obs.copy(), np.zeros_like(self.obs), np.zeros(self.clock.shape, np.float32)
            ends = np.zeros((2, *self.clock.shape), np.bool_)
            physics = self.physics
            self.count(active.sum(axis=1))
        keys, counts = self.streams.keys, self.streams.counts
        self._kernel(
            self.state_, self.clock, physics, keys, counts, active, actions, self.horizon, obs, next_obs, reward, ends
        )
        self.obs = obs
        return Step(obs, reward, ends[0], ends[1], next_obs)

    def take(self, rows: Any) -> Classic:
        part = super().take(rows)
        part.dynamics, part._everyone = self.dynamics.take(rows), self._everyone[rows]
        part.agents, part._physics = len(part.steps), part.dynamics.at(part.steps)
        return part

    def render(self, agent: int = 0, copy: int = 0) -> NDArray[np.uint8]:
        if self._camera is None:
            draw_in_memory()
            self._camera = gymnasium.make(self.config.id, render_mode="rgb_array", disable_env_checker=True)
            self._camera.reset()
        bare: Any = self._camera.unwrapped
        bare.state = self.state_[agent, copy].copy()
        for name, value in zip(self._attributes, self.physics[agent], strict=True):
            setattr(bare, name, float(value))
        return np.asarray(self._camera.render(), dtype=np.uint8)

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None


class CartPole(Classic):
    """CartPole-v1: balance a pole on a cart. Reward 1 a step; terminates when the pole or the cart leaves its range."""

    WIDTH = 4
    QUANTITIES = {
        "gravity": Quantity(9.8, 0.0, "m/s^2."),
        "cart-mass": Quantity(1.0, _TINY, "kg."),
        "pole-mass": Quantity(0.1, _TINY, "kg."),
        "length": Quantity(0.5, _TINY, "Half the pole's length, m."),
        "force": Quantity(10.0, 0.0, "What a push is worth, N."),
    }
    _kernel = staticmethod(_cartpole)
    _begin = staticmethod(_cartpole_reset)
    _attributes = ("gravity", "masscart", "masspole", "length", "force_mag")


class Pendulum(Classic):
    """Pendulum-v1: swing up and stay. The command is always in [-2, 2]; ``torque`` is what a command of 2 is worth."""

    WIDTH = 2
    QUANTITIES = {
        "gravity": Quantity(10.0, 0.0, "m/s^2."),
        "mass": Quantity(1.0, _TINY, "kg."),
        "length": Quantity(1.0, _TINY, "m."),
        "torque": Quantity(2.0, 0.0, "Torque at full command, Nm."),
        "speed-limit": Quantity(8.0, _TINY, "Largest angular speed, rad/s."),
    }
    _kernel = staticmethod(_pendulum)
    _begin = staticmethod(_pendulum_reset)
    _attributes = ("g", "m", "l", "max_torque", "max_speed")
