"""Worlds in which the server itself evaluates: those that no agent trains in, or the one that it learns in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.session import Session
from core.errors import Mistake
from core.options import build, nested
from envs import WorldConfig
from runs.config import RunConfig
from runs.figures import median_return
from strategies.method import chosen


class Unseen:
    """The worlds of the table ``unseen``, each with the same episodes at every judgement; their time stands still.

    Without that table, a server that learns itself has one: the world that it learns in, under the name ``server``.
    """

    def __init__(self, config: RunConfig, session: Session) -> None:
        self._sessions: dict[str, Session] = {}
        for name, changes in config.unseen.items():
            if not isinstance(changes, Mapping):
                raise Mistake(f"'unseen.{name}' is a table of what differs from 'world', not {changes!r}")
            if not config.evaluate_episodes:
                raise Mistake("'unseen' worlds judge, and 'evaluate-episodes' is 0")
            world = build(WorldConfig, nested(config.world) | dict(changes), f"unseen.{name}.")
            self._sessions[name] = one = Session(replace(config, world=world), range(config.agents))
            mine, theirs = (where.worlds for where in (session, one))
            if (mine.observation_space, mine.action_space) != (theirs.observation_space, theirs.action_space):
                raise Mistake(f"'unseen.{name}' has other observations or actions than the world that agents train in")
        if chosen(config).server_learns and config.evaluate_episodes and not self._sessions:
            world = replace(config.world, copies=1, workers=0)  # nobody trains here
            self._sessions["server"] = Session(replace(config, world=world), [0])

    def judge(self, learned: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return what every agent's policy is worth in each world, or the one that all share, and the ``score`` of it.

        An agent whose policy the server does not have is None. The score is the mean over the worlds of the median over
        the agents; nan if the server has no policy at all. Without worlds of its own the server says nothing.
        """
        if not self._sessions:
            return {}
        known = np.full(1, bool(learned))
        for rows in learned.values():
            known = known & np.isfinite(rows).all(axis=1)
        if not known.any():
            return {"score": math.nan}
        found: dict[str, Any] = {}
        for name, session in self._sessions.items():
            session.fleet.load_learned({part: np.nan_to_num(rows) for part, rows in learned.items()})
            returns = session.evaluate().mean(axis=1)
            found[f"return.{name}"] = np.where(known, returns, np.nan).tolist()
        return found | {"score": float(np.mean([median_return(found, name) for name in found]))}

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
