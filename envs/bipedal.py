"""BipedalWalker with chosen obstacles.

Gymnasium knows two walks: BipedalWalker-v3 has no obstacles, BipedalWalkerHardcore-v3 has all of them at fixed sizes.
Here every number of the ground is open, and may differ from agent to agent and change over time. The ground is drawn in
Gymnasium's order, so that its numbers give its ground: the same seed is the same walk, step for step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import Box2D
import gymnasium
import numpy as np
from gymnasium.envs.box2d.bipedal_walker import (
    SCALE,
    TERRAIN_HEIGHT,
    TERRAIN_LENGTH,
    TERRAIN_STEP,
    BipedalWalker,
)
from gymnasium.envs.registration import EnvCreator
from numpy.typing import NDArray

from core.errors import Mistake
from envs.dynamics import Dynamics, Quantity
from envs.gym import Env, GymWorlds, make_one
from envs.worlds import WorldConfig

KINDS = ("stump", "stairs", "pit")  # in the order in which Gymnasium numbers them
IDS = ("BipedalWalker-v3", "BipedalWalkerHardcore-v3")
QUANTITIES = {
    "stump": Quantity(0, 0, "How often an obstacle is a stump, as a weight against the other kinds."),
    "stairs": Quantity(0, 0, "How often it is stairs."),
    "pit": Quantity(0, 0, "How often it is a pit."),
    "every-min": Quantity(5, 1, "Least flat steps between two obstacles.", 180, whole=True),
    "every-max": Quantity(9, 1, "Most flat steps between two obstacles.", 180, whole=True),
    "stump-width-min": Quantity(1, 1, "Narrowest stump.", 20, whole=True),
    "stump-width-max": Quantity(2, 1, "Widest stump.", 20, whole=True),
    "stump-height-min": Quantity(0, 0, "Lowest stump.", 10, whole=True),
    "stump-height-max": Quantity(0, 0, "Highest stump; 0 makes every stump as high as it is wide.", 10, whole=True),
    "pit-length-min": Quantity(3, 1, "Shortest pit.", 50, whole=True),
    "pit-length-max": Quantity(4, 1, "Longest pit.", 50, whole=True),
    "pit-depth": Quantity(4, 0.1, "How deep a pit is.", 7),
    "stairs-steps-min": Quantity(3, 1, "Fewest steps of stairs.", 20, whole=True),
    "stairs-steps-max": Quantity(4, 1, "Most steps of stairs: their cap.", 20, whole=True),
    "stairs-width-min": Quantity(4, 1, "Narrowest step of stairs.", 20, whole=True),
    "stairs-width-max": Quantity(4, 1, "Widest step of stairs.", 20, whole=True),
    "stairs-height": Quantity(1, 0.1, "Height of a step of stairs.", 5),
    "stairs-up": Quantity(0.5, 0, "How likely stairs lead up.", 1),
    "flat-start": Quantity(20, 14, "Length of the flat start; the walker stands on its first 13.", 190, whole=True),
    "roughness": Quantity(1, 0, "Unevenness of the grass; 0 is flat.", 10),
    "fall-reward": Quantity(-100, -np.inf, "Reward of a fall."),
}
_RANGES = ("every", "stump-width", "stump-height", "pit-length", "stairs-steps", "stairs-width")
_WITHOUT_OBSTACLES = {"flat-start", "roughness", "fall-reward"}
_PLAIN = {name: quantity.default for name, quantity in QUANTITIES.items()}
_BOX_COLOURS = (255, 255, 255), (153, 153, 153)


class Walker(BipedalWalker):
    """BipedalWalker on a ground whose numbers are given at reset, as ``options={"ground": {name: number}}``."""

    def __init__(self, render_mode: str | None = None, hardcore: bool = False) -> None:
        super().__init__(render_mode, hardcore)
        self.ground: Mapping[str, float] = _PLAIN | (dict.fromkeys(KINDS, 1) if hardcore else {})
        self.kinds: list[str] = []
        """The obstacles of this episode, from the start on."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options is not None and "ground" in options:
            self.ground = _PLAIN | options["ground"]
        self._destroy()  # type: ignore[no-untyped-call]
        self.world = Box2D.b2World()  # an old one orders contacts by its past: the last bits would differ
        seen, info = super().reset(seed=seed)
        return seen, info

    def step(self, action: NDArray[Any]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = super().step(action)
        if terminated and (self.game_over or self._place() < 0):
            reward = self.ground["fall-reward"]
        return seen, reward, terminated, truncated, info

    def _place(self) -> float:
        assert self.hull is not None
        return float(self.hull.position[0])

    def _generate_terrain(self, hardcore: bool) -> None:
        """Grass, an obstacle, grass, an obstacle, ... in steps of TERRAIN_STEP.

        A stretch begins ``fresh``, at the point where an obstacle puts up its boxes, and lasts until ``left`` is 0.
        """
        ground = self.ground
        self.terrain, self.kinds = [], []
        self.terrain_x, self.terrain_y = [i * TERRAIN_STEP for i in range(TERRAIN_LENGTH)], []
        start = int(ground["flat-start"])
        kind, fresh, left = "grass", False, start
        y = base = TERRAIN_HEIGHT
        slope, up, width, length = 0.0, 0, 0, 0
        for i, x in enumerate(self.terrain_x):
            if kind == "grass" and not fresh:
                slope = 0.8 * slope + 0.01 * np.sign(TERRAIN_HEIGHT - y)
                if i > start:
                    slope += ground["roughness"] * self.np_random.uniform(-1, 1) / SCALE
                y += slope
            elif kind == "stump" and fresh:
                left = self._whole("stump-width")
                self._box(x, y, left, self._whole("stump-height") if ground["stump-height-max"] else left)
            elif kind == "pit" and fresh:
                left = self._whole("pit-length")
                self._box(x, y, 1, -ground["pit-depth"])
                self._box(x + TERRAIN_STEP * left, y, 1, -ground["pit-depth"])
                left += 2  # the two edges
                base = y
            elif kind == "pit":
                y = base - (ground["pit-depth"] * TERRAIN_STEP if left > 1 else 0.0)
            elif kind == "stairs" and fresh:
                up = 1 if self.np_random.random() > 1.0 - ground["stairs-up"] else -1
                width = self._whole("stairs-width")
                steps = self._whole("stairs-steps")
                base, left = y, steps * width
                length = left
                rise = up * ground["stairs-height"]
                for s in range(steps):
                    self._stair(x, y, s, width, rise)
            elif kind == "stairs":
                y = base + ((length - left - up) / width * up * ground["stairs-height"]) * TERRAIN_STEP
            fresh = False
            self.terrain_y.append(y)
            left -= 1
            if left == 0:
                left = self._whole("every")
                kind, fresh = self._next_kind() if kind == "grass" else "grass", True
        self._lay_ground()

    def _whole(self, name: str) -> int:
        low, high = int(self.ground[f"{name}-min"]), int(self.ground[f"{name}-max"])
        return int(self.np_random.integers(max(low, 1), high + 1))

    def _next_kind(self) -> str:
        """Kinds of equal weight are drawn as Gymnasium draws them; others by their share."""
        weights = {kind: self.ground[kind] for kind in KINDS if self.ground[kind] > 0}
        if not weights:
            return "grass"
        if len(set(weights.values())) == 1:
            kind = list(weights)[self.np_random.integers(len(weights))]
        else:
            shares = np.cumsum(list(weights.values()))
            kind = list(weights)[int(np.searchsorted(shares / shares[-1], self.np_random.random(), side="right"))]
        self.kinds.append(kind)
        return kind

    def _box(self, x: float, y: float, width: int, height: float) -> None:
        """A box on the ground, or with a negative height in it."""
        right, end = x + width * TERRAIN_STEP, y + height * TERRAIN_STEP
        self._body(self.fd_polygon, [(x, y), (right, y), (right, end), (x, end)], *_BOX_COLOURS)

    def _stair(self, x: float, y: float, s: int, width: int, rise: float) -> None:
        """One step of stairs, thick enough to reach the one below."""
        left, right = x + (s * width) * TERRAIN_STEP, x + ((1 + s) * width) * TERRAIN_STEP
        top, end = y + (s * rise) * TERRAIN_STEP, y + (s * rise - max(abs(rise), 1.0)) * TERRAIN_STEP
        self._body(self.fd_polygon, [(left, top), (right, top), (right, end), (left, end)], *_BOX_COLOURS)

    def _lay_ground(self) -> None:
        """The line that is walked on, and the grass under it."""
        points = list(zip(self.terrain_x, self.terrain_y, strict=True))
        self.terrain_poly = []
        for i, (a, b) in enumerate(pairwise(points)):
            colour = (76, 255 if i % 2 == 0 else 204, 76)
            self._body(self.fd_edge, [a, b], colour, colour)
            self.terrain_poly.append(([a, b, (b[0], 0), (a[0], 0)], (102, 153, 76)))
        self.terrain.reverse()

    def _body(self, fixture: Any, corners: list[tuple[float, float]], inside: Any, edge: Any) -> None:
        fixture.shape.vertices = corners
        body = self.world.CreateStaticBody(fixtures=fixture)
        body.color1, body.color2 = inside, edge
        self.terrain.append(body)


def make_walker(config: WorldConfig, render: bool = False) -> Env:
    """One walker; without obstacles it is Gymnasium's own."""
    return make_one(config, render, replace(gymnasium.spec(config.id), entry_point=cast(EnvCreator, Walker)))


class Bipedal(GymWorlds):
    """Walkers, each agent's on its own ground; a change of the ground is seen from the next episode on."""

    def __init__(
        self,
        config: WorldConfig,
        seeds: Sequence[int],
        numbers: Sequence[int],
        render: bool = False,
        purpose: str = "world",
    ) -> None:
        self.dynamics = _dynamics(config, seeds, numbers) if config.obstacles else None
        super().__init__(config, seeds, render, purpose, make_walker)

    def _reset_options(self) -> Sequence[dict[str, Any] | None]:
        if self.dynamics is None:
            return super()._reset_options()
        grounds = self.dynamics.at(self.steps).tolist()
        return [{"ground": dict(zip(QUANTITIES, ground, strict=True))} for ground in grounds]

    def take(self, rows: Any) -> Bipedal:
        part = super().take(rows)
        assert isinstance(part, Bipedal)
        part.dynamics = self.dynamics.take(rows) if self.dynamics else None
        return part


def _dynamics(config: WorldConfig, seeds: Sequence[int], numbers: Sequence[int]) -> Dynamics:
    given = config.obstacles
    if config.id != IDS[0] or config.options.get("hardcore"):
        raise Mistake(
            f"'world.obstacles' is for {IDS[0]} without options.hardcore; stump=1, stairs=1, pit=1 is Hardcore"
        )
    dynamics = Dynamics(QUANTITIES, given, seeds, numbers, "world.obstacles")
    for name in _RANGES:
        dynamics.refuse_crossing(f"{name}-min", f"{name}-max")
    about = [name for name in given if name not in _WITHOUT_OBSTACLES]
    if about and not any(_ever_positive(given.get(kind, 0)) for kind in KINDS):
        raise Mistake(
            f"'world.obstacles' asks for obstacles ({', '.join(about)}) but the weights of {', '.join(KINDS)} "
            "sum to zero; give at least one of them a weight above 0"
        )
    return dynamics


def _ever_positive(weight: Any) -> bool:
    """Return whether a weight is above zero for any agent at any time, so that all processes decide alike."""
    if isinstance(weight, Mapping):
        return any(_ever_positive(weight[key]) for key in weight if key not in ("steps", "at", "period", "phase"))
    if isinstance(weight, list | tuple):
        return any(map(_ever_positive, weight))
    return bool(weight > 0)
