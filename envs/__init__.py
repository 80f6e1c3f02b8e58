"""What is learned: batches of worlds. Knows nothing of agents or of federation."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import Mistake
from envs.classic import CartPole, Pendulum
from envs.gym import GymWorlds, make_one
from envs.worlds import Step, WorldConfig, Worlds

__all__ = ["Step", "WorldConfig", "Worlds", "make_worlds"]

_CLASSIC = {"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}


def make_worlds(
    config: WorldConfig, seeds: Sequence[int], numbers: Sequence[int] | None = None, render: bool = False
) -> Worlds:
    """One batch for the agents with these seeds; ``numbers`` are the agents' places in lists of the configuration."""
    numbers = range(len(seeds)) if numbers is None else numbers
    if config.id in _CLASSIC:
        return _CLASSIC[config.id](config, seeds, numbers)
    if config.physics:
        raise Mistake(f"'world.physics' is for {' and '.join(_CLASSIC)}; '{config.id}' takes 'world.options'")
    return GymWorlds(lambda: make_one(config, render), config.horizon, seeds, config.copies)
