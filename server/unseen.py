"""Worlds that no agent trains in: how the policies of a run do where none of them has been."""

from __future__ import annotations

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


class Unseen:
    """The worlds of the table ``unseen``, each with the same episodes at every judgement; their time stands still."""

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

    def judge(self, learned: Mapping[str, NDArray[Any]]) -> dict[str, list[float]]:
        """The return of every agent's policy, or of the one that all share, in each world."""
        if not learned or not all(np.isfinite(rows).all() for rows in learned.values()):
            return {}  # somebody's have never come
        found = {}
        for name, session in self._sessions.items():
            session.fleet.load_learned(learned)
            found[f"return.{name}"] = session.evaluate().mean(axis=1).tolist()
        return found

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
