"""What is learned: batches of worlds. Knows nothing of agents or of federation."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import Mistake
from envs import bipedal
from envs.classic import CartPole, Pendulum
from envs.gym import GymWorlds
from envs.video import record
from envs.worlds import Step, WorldConfig, Worlds

__all__ = ["Step", "WorldConfig", "Worlds", "make_worlds", "record"]

_CLASSIC = {"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}


def make_worlds(
    config: WorldConfig,
    seeds: Sequence[int],
    numbers: Sequence[int] | None = None,
    render: bool = False,
    purpose: str = "world",
) -> Worlds:
    """One batch for the agents with these seeds; ``numbers`` are the agents' places in lists of the configuration.

    An agent's seed settles what its world is (physics drawn from a range); seed and ``purpose`` settle its episodes. So
    the worlds that judge an agent are its own with another purpose.
    """
    numbers = range(len(seeds)) if numbers is None else numbers
    if config.id in _CLASSIC:
        _refuse(config, "obstacles", f"is for {bipedal.IDS[0]}; '{config.id}' takes 'world.physics'")
        _refuse(config, "options", f"is not for '{config.id}': it is a compiled batch that takes 'world.physics'")
        _refuse(config, "workers", f"is not for '{config.id}': a step of the whole batch costs less than one message")
        return _CLASSIC[config.id](config, seeds, numbers, purpose)
    if config.id in bipedal.IDS:
        _refuse(config, "physics", f"is for {' and '.join(_CLASSIC)}; '{config.id}' takes 'world.obstacles'")
        return bipedal.Bipedal(config, seeds, numbers, render, purpose)
    _refuse(config, "physics", f"is for {' and '.join(_CLASSIC)}; '{config.id}' takes 'world.options'")
    _refuse(config, "obstacles", f"is for {bipedal.IDS[0]}, not for '{config.id}'")
    return GymWorlds(config, seeds, render, purpose)


def _refuse(config: WorldConfig, key: str, why: str) -> None:
    if getattr(config, key):
        raise Mistake(f"'world.{key}' {why}")
