"""The server's own evaluation: in worlds that no agent trains in, or in the world that the server learns in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.session import Session
from core.errors import Mistake
from core.options import build, nested
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from runs.config import RunConfig
from runs.figures import median_return
from strategies.method import chosen


def unseen_worlds(config: RunConfig) -> dict[str, WorldConfig]:
    """Return the worlds of the table ``unseen`` by name; refuses what is no world."""
    found = {}
    for name, changes in config.unseen.items():
        if not isinstance(changes, Mapping):
            raise Mistake(f"'unseen.{name}' is a table of what differs from 'world', not {changes!r}")
        if not config.evaluate_episodes:
            raise Mistake("'unseen' worlds are for evaluation, and 'evaluate-episodes' is 0")
        found[name] = build(WorldConfig, nested(config.world) | dict(changes), f"unseen.{name}.")
    return found


def check_unseen(config: RunConfig, session: Session) -> None:
    """Refuse unseen worlds with other observations or actions than the agents'. Makes those of one agent only."""
    seeds, seen = agent_seeds(config.seed, [0]), session.worlds
    for name, world in unseen_worlds(config).items():
        with closing(make_worlds(replace(world, copies=1, workers=0), seeds, [0])) as unseen:
            if (seen.observation_space, seen.action_space) != (unseen.observation_space, unseen.action_space):
                raise Mistake(f"'unseen.{name}' has other observations or actions than the world that agents train in")


class Unseen:
    """The worlds of the table ``unseen``. Every evaluation has the same episodes, and time does not pass in them.

    Without that table, a server that learns has one such world: the one that it learns in, under the name ``server``.
    """

    def __init__(self, config: RunConfig, session: Session) -> None:
        self._sessions: dict[str, Session] = {}
        for name, world in unseen_worlds(config).items():
            self._sessions[name] = Session(replace(config, world=world), range(config.agents))
        if chosen(config).server_learns and config.evaluate_episodes and not self._sessions:
            world = replace(config.world, copies=1, workers=0)  # for evaluation only
            self._sessions["server"] = Session(replace(config, world=world), [0])

    def evaluate(self, learned: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Evaluate the policies of all agents, or the shared one; return the returns in each world, and the ``score``.

        An agent whose policy the server does not have is nan. The score is the mean over the worlds of the median over
        the agents; nan if the server has no policy at all. Without such worlds the result is empty.
        """
        if not self._sessions:
            return {}
        has_policy = np.full(1, bool(learned))
        for rows in learned.values():
            has_policy = has_policy & np.isfinite(rows).all(axis=1)
        if not has_policy.any():
            return {"score": math.nan}
        figures: dict[str, Any] = {}
        for name, session in self._sessions.items():
            session.fleet.load_learned({part: np.nan_to_num(rows) for part, rows in learned.items()})
            returns = session.evaluate().mean(axis=1)
            figures[f"return.{name}"] = np.where(has_policy, returns, np.nan).tolist()
        return figures | {"score": float(np.mean([median_return(figures, name) for name in figures]))}

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
