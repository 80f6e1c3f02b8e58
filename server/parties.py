"""What a strategy knows of the agents before the first round, from the server's own session."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from client.answers import exchangeable, layout
from client.session import Session, make_fleet
from core.streams import agent_seeds
from envs import make_worlds


class SessionParties:
    """The implementation of ``strategies.method.Parties``."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def layout(self) -> int:
        return layout(self.session)

    @property
    def work(self) -> int:
        return self.session.round_work

    @property
    def parts(self) -> list[str]:
        return list(self.session.fleet.parts)

    @property
    def start(self) -> dict[str, NDArray[Any]]:
        return {name: rows[0] for name, rows in exchangeable(self.session.fleet).items()}

    def server_agent(self, copies: int) -> Any:
        """Return an agent for the server: the world and the weights of the first agent, and a seed of its own."""
        config = self.session.config
        seeds = agent_seeds(config.seed, [config.agents])
        worlds = make_worlds(replace(config.world, copies=copies, workers=0), seeds, [0], purpose="server")
        fleet = make_fleet(config, worlds, seeds)
        for name, row in self.session.first_weights().items():
            fleet.parts[name][...] = row
        return fleet
