"""A warning for worlds that cannot be saved: short rounds end their episodes early."""

from __future__ import annotations

import math

from client.session import Session
from runs.config import RunConfig
from strategies.method import chosen


def cut(config: RunConfig, session: Session) -> list[str]:
    """Return a warning if rounds end episodes early, else an empty list.

    Saving the state ends episodes as well. Checkpoints do so, and Flower's simulation saves after every message.
    """
    worlds, name = session.worlds, f"'{config.world.id}'"
    longest, steps = worlds.horizon * worlds.copies, session.fleet.steps_of(session.round_work)
    if worlds.exact or not steps:
        return []
    least = math.ceil(longest / session.fleet.steps_of(1))
    advice = f"set 'work' to at least {least}"
    if config.engine != "ray":
        advice += f", or both 'settle-every' and 'checkpoint-every' to at least {math.ceil(longest / steps)}"
        steps *= min(config.settle_every, config.checkpoint_every)
    elif shortest := chosen(config).shortest_round(config):
        steps = shortest
        advice = "take the engine local or grpc, or exchange as seldom with 'sync.critic-every' and 'sync.actor-every'"
    if steps >= longest:
        return []
    return [
        f"EPISODES ARE CUT: the state of {name} cannot be saved, so rounds and checkpoints end an episode after "
        f"{steps / worlds.copies:g} of its {worlds.horizon} steps. Agents never learn what comes later. Episodes last "
        f"until their own end if you {advice}."
    ]
