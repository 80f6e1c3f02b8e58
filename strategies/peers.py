"""The base of every strategy without a server: the rounds of the peers of a process, over a medium.

A strategy is written once. It runs with one peer per process, or with all peers of a run in one.
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
from strategies.messages import MOMENTS
from strategies.method import Method, Parties, Run, exchanged

Notes = dict[str, Any]
Act = Callable[[Any, NDArray[np.int64]], tuple[F32, Report]]


@dataclass(frozen=True)
class GossipConfig:
    """Gossip: the topology, the rounds of DecByzPG, and peers that are processes."""

    topology: str = option(
        "complete",
        f"Which peer sends to which: {', '.join(names())}; JSON, or a file that holds it (docs/gossip.md).",
        json_too=True,
    )
    degree: int = option(4, "Neighbours of every peer in the topologies regular and random.", low=1)
    same_start: bool = option(True, "All peers begin with the weights of the first; false: each with its own.")
    coin: float = option(
        0.2, "dec-byz-pg: the probability of a large round; all peers draw the same coin.", above=0, high=1
    )
    large: int = option(50, "dec-byz-pg: trajectories of each peer in a large round.", low=1)
    small: int = option(
        4, "dec-byz-pg: trajectories of each peer in a small round, which corrects the last direction.", low=1
    )
    agreed: float = option(1e-5, "dec-byz-pg: peers agree when the diameter of their weights is below this.", above=0)
    turns: int = option(20, "dec-byz-pg: the most broadcasts of weights in one agreement.", low=1)
    roster: dict[str, Any] = option({}, 'Peers that are processes: the address of each, as 0 = "HOST:PORT", 1 = ...')
    certificates: str = option(
        "", "The folder with ca.pem, peer-K.pem and peer-K.key (fedrl certs); empty: plain text, on loopback only."
    )
    deadline_s: float = option(10.0, "Seconds that a peer waits for the shares or broadcasts of a turn.", above=0)
    dead_s: float = option(5.0, "Seconds without a sign of life after which a peer counts as dead.", above=0)
    beat_s: float = option(1.0, "Seconds between heartbeats.", above=0)
    call_s: float = option(5.0, "Seconds that one call to another peer may take.", above=0)
    start_s: float = option(60.0, "Seconds that a peer waits at its start for the others to start.", above=0)
    end_s: float = option(60.0, "Seconds that a peer waits at its end for the others to finish.", above=0)
    largest: float = option(1e6, "A vector with a larger number than this is refused as huge.", above=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "topology", spelled(self.topology))


class Conduct(Protocol):
    """The vectors that agents send, honest or forged (``client.conduct``)."""

    def to_peers(
        self, number: int, honest: F32, start: F32 | None, where: Mapping[str, slice], tag: str
    ) -> Forged | None: ...


class Session(Protocol):
    """The agents of this process, as a strategy sees them (``client.session.Session``)."""

    numbers: list[int]
    fleet: Fleet
    round_work: int

    @property
    def conduct(self) -> Conduct: ...

    def train(self, work: int, rows: Sequence[int] | None, settle: bool, number: int) -> Report: ...
    def work(self, act: Act, rows: Sequence[int] | None, settle: bool, number: int) -> tuple[F32, Report]: ...
    def first_weights(self) -> Mapping[str, F32]:
        """Return the weights (d,) that the first agent of the run begins with, by part."""


class Peers(Method, Rows):
    """The peers of this process: their agents, their exchange, and the arrays that a checkpoint needs (``ROWS``)."""

    tables: ClassVar[Mapping[str, type[Any]]] = {"federation": FederationConfig, "gossip": GossipConfig}
    serverless = True

    @classmethod
    def check(cls, run: Run) -> None:
        super().check(run)
        if run.federation.fraction < 1:
            raise Mistake("'gossip.topology' decides which peers exchange: leave 'federation.fraction' at 1")
        if run.unseen:
            raise Mistake(f"'unseen' is for runs with a server, and {run.strategy} has none: evaluate with fedrl eval")
        topology(run)

    @classmethod
    def fits(cls, run: Run, parties: Parties) -> None:
        super().fits(run, parties)
        refuse_moments(run, [name.removeprefix(MOMENTS) for name in parties.start if name not in parties.parts])

    def __init__(self, config: Run, session: Session, medium: Medium) -> None:
        assert list(medium.peers) == session.numbers, (medium.peers, session.numbers)
        refuse_moments(config, list(session.fleet.moments))
        self.config, self.session, self.medium = config, session, medium
        self.options = config.of(GossipConfig)
        self.parts = slices(config, session.fleet)
        if self.options.same_start:
            for name, first in session.first_weights().items():
                session.fleet.parts[name][...] = first

    @abstractmethod
    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        """Learn and exchange. Returns a report of the work, and metrics for the record."""

    def extra_weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return other weights that the run saves, each in a file of its name."""
        return {}

    def join(self, weights: F32) -> None:
        """Start again from the weights of neighbours (rows, d)."""
        self.load(weights)

    def finish(self) -> None:
        """Add the shares that are in flight after the last round. This strategy has none, so the vectors are empty."""
        weights = np.zeros(len(self.session.numbers))
        self.medium.finish(self.weights[:, :0], weights)

    @property
    def weights(self) -> F32:
        """A copy of the exchanged parts, a row per agent (rows, d)."""
        return np.concatenate([self.session.fleet.parts[name] for name in self.parts], axis=1)

    def load(self, weights: F32) -> None:
        for name, where in self.parts.items():
            self.session.fleet.parts[name][...] = weights[:, where]

    def forged(self, number: int, honest: F32, start: F32 | None, tag: str) -> Forged | None:
        """Return what attackers among these peers send in place of ``honest`` rows; None where nobody attacks."""
        return self.session.conduct.to_peers(number, honest, start, self.parts, tag)


def refuse_moments(run: Run, names: Sequence[str]) -> None:
    """Refuse a learner with running moments: gossip averages weights, and moments would differ between peers."""
    if names:
        raise Mistake(
            f"gossip mixes weights, and {run.algorithm} also keeps running moments ({', '.join(names)}), which would "
            "differ between peers: turn its normalisation off"
        )


def slices(run: Run, fleet: Fleet) -> dict[str, slice]:
    """Return the exchanged parts and their slices of a row."""
    where, begin = dict[str, slice](), 0
    for name in exchanged(run, list(fleet.parts)):
        width = fleet.parts[name].shape[1]
        where[name], begin = slice(begin, begin + width), begin + width
    return where


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
