"""After how many rounds episodes end where a world cannot be saved, and whether any lasts until its own end."""

from __future__ import annotations

import math

from client.session import Session
from runs.config import RunConfig
from strategies.method import chosen


def settle_every(config: RunConfig, session: Session) -> int:
    """Return the rounds after which episodes end; ``auto`` leaves time for the longest one."""
    if config.settle_every is not None:
        return config.settle_every
    return 1 if session.worlds.exact else _rounds(session)


def cut(config: RunConfig, session: Session) -> list[str]:
    """Return a warning when rounds end episodes before their own end, or nothing.

    A saved state ends episodes as well: checkpoints do, and in Flower's simulation every message is followed by one.
    """
    worlds, name = session.worlds, f"'{config.world.id}'"
    longest, steps = worlds.horizon * worlds.copies, session.fleet.steps_of(session.round_work)
    if worlds.exact or not steps:
        return []
    least = math.ceil(longest / session.fleet.steps_of(1))
    advice = f"set 'work' to at least {least}"
    if config.engine != "ray":
        steps *= min(settle_every(config, session), config.checkpoint_every)
        advice += f", or both 'settle-every' and 'checkpoint-every' to at least {_rounds(session)}"
    elif shortest := chosen(config).shortest_round(config):
        steps = shortest
        advice = "take the engine local or grpc, or exchange as seldom with 'sync.critic-every' and 'sync.actor-every'"
    if steps >= longest:
        return []
    return [
        f"EPISODES ARE CUT: the state of {name} cannot be saved, so every episode ends after {steps / worlds.copies:g} "
        f"of its {worlds.horizon} steps. Agents never learn what comes later. Every episode can last until its own end "
        f"if you {advice}."
    ]


def _rounds(session: Session) -> int:
    """The rounds that the longest episode can last."""
    longest, steps = session.worlds.horizon * session.worlds.copies, session.fleet.steps_of(session.round_work)
    return max(1, math.ceil(longest / steps)) if steps else 1
