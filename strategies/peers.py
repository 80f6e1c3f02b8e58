"""What every strategy without a server is: what the peers of a process do in a round, over a medium.

It is written once, for one peer of a process or for all peers of a run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet
from agents.report import Report
from core.errors import Mistake
from core.options import option
from core.rows import Rows
from strategies.federation import FederationConfig
from strategies.graphs.topology import Topology, names, spelled
from strategies.medium import F32, Forged, Medium
from strategies.method import Method, Run, exchanged

Notes = dict[str, Any]
Act = Callable[[Any, NDArray[np.int64]], tuple[F32, Report]]


@dataclass(frozen=True)
class GossipConfig:
    """Gossip: who sends to whom; the rounds of DecByzPG; and peers that are processes."""

    topology: str = option(
        "complete",
        f"Which peer sends to which: {', '.join(names())}; JSON, or a file that holds it (docs/gossip.md).",
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


class Conduct(Protocol):
    """How agents send, honest or not (``client.conduct``)."""

    def to_peers(
        self, number: int, honest: F32, start: F32 | None, where: Mapping[str, slice], tag: str
    ) -> Forged | None: ...


class Session(Protocol):
    """The agents of this process, as a strategy sees them (``client.session.Session``)."""

    numbers: list[int]
    fleet: Fleet
    conduct: Any
    round_work: int

    def train(self, work: int, rows: Sequence[int] | None, settle: bool, number: int) -> Report: ...
    def work(self, act: Act, rows: Sequence[int] | None, settle: bool, number: int) -> tuple[F32, Report]: ...
    def first_weights(self) -> Mapping[str, F32]:
        """Return the weights (d,) that the first agent of the run begins with, by part."""


class Peers(Method, Rows):
    """The peers of this process: their agents, what they exchange, and what of it a resume needs (``ROWS``)."""

    tables: ClassVar[Mapping[str, type[Any]]] = {"federation": FederationConfig, "gossip": GossipConfig}
    serverless = True

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        if run.federation.fraction < 1:
            raise Mistake("'gossip.topology' says which peers exchange: leave 'federation.fraction' at 1")
        if run.unseen:
            raise Mistake(f"'unseen' is for runs with a server, and {run.strategy} has none: evaluate with fedrl eval")
        topology(run)

    def __init__(self, config: Run, session: Session, medium: Medium) -> None:
        assert list(medium.peers) == session.numbers, (medium.peers, session.numbers)
        if moments := session.fleet.moments:
            raise Mistake(
                f"gossip mixes weights, and {config.algorithm} also keeps running moments ({', '.join(moments)}), "
                "which would differ between peers: turn its normalisation off"
            )
        self.config, self.session, self.medium = config, session, medium
        self.options = config.of(GossipConfig)
        self.parts = slices(config, session.fleet)
        if self.options.same_start:
            for name, first in session.first_weights().items():
                session.fleet.parts[name][...] = first

    @abstractmethod
    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        """Learn and exchange. Returns a report of the work, and metrics for the ledger."""

    def extra_weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return other weights that a run leaves, each as a file of its name."""
        return {}

    def join(self, weights: F32) -> None:
        """Start again from the weights of neighbours (rows, d)."""
        self.load(weights)

    def finish(self) -> None:
        """Add what was still in flight after the last round."""
        nothing_left = np.zeros(len(self.session.numbers))
        self.medium.finish(self.weights[:, :0], nothing_left)

    @property
    def weights(self) -> F32:
        """A copy of the exchanged parts, a row per agent (rows, d)."""
        return np.concatenate([self.session.fleet.parts[name] for name in self.parts], axis=1)

    def load(self, weights: F32) -> None:
        for name, where in self.parts.items():
            self.session.fleet.parts[name][...] = weights[:, where]

    def forged(self, number: int, honest: F32, start: F32 | None, tag: str) -> Forged | None:
        """Return what attackers among these peers send in place of ``honest`` rows; None where nobody attacks."""
        found: Forged | None = self.session.conduct.to_peers(number, honest, start, self.parts, tag)
        return found


def slices(run: Run, fleet: Fleet) -> dict[str, slice]:
    """Return the parts that are exchanged, and where they lie in a row."""
    found, begin = dict[str, slice](), 0
    for name in exchanged(run, list(fleet.parts)):
        width = fleet.parts[name].shape[1]
        found[name], begin = slice(begin, begin + width), begin + width
    return found


def topology(run: Run) -> Topology:
    """Return the topology of a run."""
    options = run.of(GossipConfig)
    return Topology(options.topology, run.agents, options.degree, run.seed)


@contextmanager
def timing(notes: Notes) -> Iterator[None]:
    """Add the seconds of the block to ``exchanging_s``."""
    begun = perf_counter()
    yield
    notes["exchanging_s"] = notes.get("exchanging_s", 0.0) + perf_counter() - begun
