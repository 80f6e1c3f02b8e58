"""The keys of peers that learn without a server."""

from __future__ import annotations

from dataclasses import dataclass

from client.gossip.topology import NAMES, spelled
from core.config import option


@dataclass(frozen=True)
class GossipConfig:
    """Gossip: who sends to whom; and the rounds of DecByzPG."""

    topology: str = option(
        "complete",
        f"Who sends to whom: {', '.join(NAMES)}; JSON, or a file that holds it (docs/gossip.md).",
    )
    degree: int = option(4, "Neighbours of every peer: of regular ones, and of random ones in each round.", low=1)
    same_start: bool = option(True, "All peers begin with the weights of the first; false: with their own.")
    coin: float = option(0.2, "dec-byz-pg: how often a round is large; all peers throw the same coin.", above=0, high=1)
    large: int = option(50, "dec-byz-pg: trajectories of each peer in a large round.", low=1)
    small: int = option(4, "dec-byz-pg: trajectories in a small round, which corrects the last direction.", low=1)
    agreed: float = option(1e-5, "dec-byz-pg: weights that are so near to each other are agreed on.", above=0)
    turns: int = option(20, "dec-byz-pg: times that peers tell their weights to agree on them, at most.", low=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "topology", spelled(self.topology))
