"""The keys of peers that learn without a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from client.gossip.topology import NAMES, spelled
from core.config import option


@dataclass(frozen=True)
class GossipConfig:
    """Gossip: who sends to whom; the rounds of DecByzPG; and peers that are processes."""

    topology: str = option(
        "complete",
        f"Who sends to whom: {', '.join(NAMES)}; JSON, or a file that holds it (docs/gossip.md).",
        json_too=True,
    )
    degree: int = option(4, "Neighbours of every peer: of regular ones, and of random ones in each round.", low=1)
    same_start: bool = option(True, "All peers begin with the weights of the first; false: with their own.")
    coin: float = option(0.2, "dec-byz-pg: how often a round is large; all peers throw the same coin.", above=0, high=1)
    large: int = option(50, "dec-byz-pg: trajectories of each peer in a large round.", low=1)
    small: int = option(4, "dec-byz-pg: trajectories in a small round, which corrects the last direction.", low=1)
    agreed: float = option(1e-5, "dec-byz-pg: weights that are so near to each other are agreed on.", above=0)
    turns: int = option(20, "dec-byz-pg: times that peers tell their weights to agree on them, at most.", low=1)
    roster: dict[str, Any] = option(
        {}, 'Peers that are processes: where each of them is reached, as 0 = "HOST:PORT", 1 = ...'
    )
    certificates: str = option(
        "", "The folder with ca.pem, peer-K.pem and peer-K.key (fedrl certs); none: plain text, on loopback only."
    )
    deadline_s: float = option(10.0, "Seconds that a peer waits for what others send in a turn.", above=0)
    dead_s: float = option(5.0, "Seconds without a sign of life after which a peer counts as dead.", above=0)
    beat_s: float = option(1.0, "Seconds between greetings, by which peers see that the others live.", above=0)
    call_s: float = option(5.0, "Seconds that one call to another peer may take.", above=0)
    start_s: float = option(60.0, "Seconds that a peer waits at its start for the others to be there.", above=0)
    end_s: float = option(60.0, "Seconds that a peer waits at its end for the others to have finished.", above=0)
    largest: float = option(1e6, "A vector with a larger number than this is refused as huge.", above=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "topology", spelled(self.topology))
