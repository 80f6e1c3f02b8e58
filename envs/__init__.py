"""What is learned: batches of worlds. Knows nothing of agents or of federation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import gymnasium

from core import registry
from core.errors import Mistake
from envs import bipedal
from envs.classic import CartPole, Pendulum
from envs.gym import GymWorlds
from envs.video import record
from envs.worlds import Step, WorldConfig, Worlds

__all__ = ["Step", "WorldConfig", "Worlds", "make_worlds", "record", "world"]

Class = TypeVar("Class", bound=type[Any])
# Makes a batch: (config, seeds, numbers, render, purpose).
Maker = Callable[[WorldConfig, Sequence[int], Sequence[int], bool, str], Worlds]


def world(name: str, *, horizon: int = 0) -> Callable[[Class], Class]:
    """Register a world: a ``gymnasium.Env``, or a subclass of ``Worlds`` made as (config, seeds, numbers, purpose).

    ``horizon`` is the number of steps after which an episode of the environment is truncated.
    """

    def decorate(value: Class) -> Class:
        if inspect.isclass(value) and issubclass(value, gymnasium.Env):
            if not re.fullmatch(r"[\w.-]+-v\d+", name):
                raise Mistake(f"the world '{name}' has a version at its end, such as {name}-v0")
            # By its module, so that processes that step it can find it.
            _register(name, lambda config, seeds, numbers, render, purpose: GymWorlds(
                replace(config, id=f"{value.__module__}:{name}"), seeds, render, purpose
            ), value.__module__)  # fmt: skip
            gymnasium.register(id=name, entry_point=cast(Any, value), max_episode_steps=horizon or None)
        elif inspect.isclass(value) and issubclass(value, Worlds):
            make: Any = value
            _register(
                name,
                lambda config, seeds, numbers, render, purpose: make(config, seeds, numbers, purpose),
                value.__module__,
            )
        else:
            raise Mistake(f"the world '{name}' is neither a gymnasium.Env nor a subclass of fedrl.Worlds")
        return value

    return decorate


def _register(name: str, maker: Maker, home: str = registry.BUILT_IN) -> None:
    registry.register("world", name, maker, home=home)


def make_worlds(
    config: WorldConfig,
    seeds: Sequence[int],
    numbers: Sequence[int] | None = None,
    render: bool = False,
    purpose: str = "world",
) -> Worlds:
    """Return a batch for the agents with these seeds; ``numbers`` are their places in lists of the configuration.

    An agent's seed settles what its world is (physics drawn from a range); seed and ``purpose`` settle its episodes. So
    the worlds that evaluate an agent are its own with another purpose.
    """
    numbers = range(len(seeds)) if numbers is None else numbers
    if config.id in registry.names("world"):
        maker: Maker = registry.get("world", config.id).value
        return maker(config, seeds, numbers, render, purpose)
    _refuse(config, "physics", f"is for {' and '.join(_CLASSIC)}; '{config.id}' takes 'world.options'")
    _refuse(config, "obstacles", f"is for {bipedal.IDS[0]}, not for '{config.id}'")
    return GymWorlds(config, seeds, render, purpose)


def _classic(config: WorldConfig, seeds: Sequence[int], numbers: Sequence[int], render: bool, purpose: str) -> Worlds:
    _refuse(config, "obstacles", f"is for {bipedal.IDS[0]}; '{config.id}' takes 'world.physics'")
    _refuse(config, "options", f"is not for '{config.id}': it is a compiled batch that takes 'world.physics'")
    _refuse(config, "workers", f"is not for '{config.id}': a step of the whole batch costs less than one message")
    return _CLASSIC[config.id](config, seeds, numbers, purpose)


def _walker(config: WorldConfig, seeds: Sequence[int], numbers: Sequence[int], render: bool, purpose: str) -> Worlds:
    _refuse(config, "physics", f"is for {' and '.join(_CLASSIC)}; '{config.id}' takes 'world.obstacles'")
    return bipedal.Bipedal(config, seeds, numbers, render, purpose)


def _refuse(config: WorldConfig, key: str, why: str) -> None:
    if getattr(config, key):
        raise Mistake(f"'world.{key}' {why}")


_CLASSIC = {"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}
for _name in _CLASSIC:
    _register(_name, _classic)
for _name in bipedal.IDS:
    _register(_name, _walker)
