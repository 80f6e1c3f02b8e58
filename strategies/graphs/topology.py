"""Gossip topologies: in every round a matrix P (K, K) whose entry P[i][k] is the share of peer k that peer i receives.

Every column adds up to 1, which is all that push-sum needs: edges may be directed and change from round to round. Rows
need not add up to 1. Peers that are gone are left out and the topology closes around them: a ring of the rest is a
ring. So a registered graph is a function of how many peers there are, not of which.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from core import registry
from core.errors import Mistake
from core.streams import generator
from strategies.graphs import parse

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

KEY = "gossip.topology"
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Round:
    """What a graph may depend on besides the number of peers."""

    number: int
    degree: int = 4
    seed: int = 0

    @property
    def generator(self) -> np.random.Generator:
        """A generator that is the same for all peers of a run in this round."""
        return generator(self.seed, self.number, "graph")


@dataclass(frozen=True)
class Graph:
    """A registered graph. ``edges(n, round)`` are the positions (receivers, senders) of all edges of n peers.

    ``period`` is the number of rounds after which n peers see the same edges again; 0: never. A graph that is not known
    to be ``connected`` is checked before a run.
    """

    edges: Callable[[int, Round], tuple[Any, Any]]
    period: Callable[[int], int]
    degreed: bool = False
    connected: bool = False


def topology(
    name: str, *, period: int | Callable[[int], int] = 1, degreed: bool = False, connected: bool = False
) -> Callable[[T], T]:
    """Register a topology: a function ``(n, round)`` that returns the receivers and the senders of all edges.

    ``period``: rounds after which it repeats, a number or a function of n; 0: never. ``degreed``: it reads
    ``round.degree``. ``connected``: every peer reaches every other over the rounds, so that no check is needed.
    """

    def decorate(function: T) -> T:
        if len(inspect.signature(function).parameters) != 2:
            raise Mistake(f"the topology '{name}' takes (n, round), not {inspect.signature(function)}")
        every = period if callable(period) else lambda n: period
        registry.register("topology", name, Graph(function, every, degreed, connected), home=function.__module__)
        return function

    return decorate


def graph(name: str) -> Graph:
    """Return a registered graph."""
    result: Graph = registry.get("topology", name, KEY).value
    return result


def names() -> tuple[str, ...]:
    return registry.names("topology")


def fixed() -> tuple[str, ...]:
    """Return the graphs that do not change: neither from round to round nor with the degree."""
    return tuple(name for name in names() if graph(name).period(4) == 1 and not graph(name).degreed and name != "star")


class Edges(NamedTuple):
    """The entries of P, sorted by receiver and then by sender. The shares that peers keep are among them."""

    receivers: I64
    senders: I64
    shares: F64

    def matrix(self, peers: int) -> F64:
        P = np.zeros((peers, peers))
        P[self.receivers, self.senders] = self.shares
        return P

    def sent_by(self, peer: int) -> dict[int, float]:
        """Return the share of every receiver of a peer, the share that it keeps among them."""
        mine = self.senders == peer
        return dict(zip(self.receivers[mine].tolist(), self.shares[mine].tolist(), strict=True))

    def senders_to(self, peer: int) -> list[int]:
        """Return the peers that send to this one, itself among them, in ascending order."""
        senders: list[int] = self.senders[self.receivers == peer].tolist()
        return senders

    def without(self, gone: Bools) -> Edges:
        """Remove the given edges, none of them to the sender itself. A sender keeps the share of a removed edge."""
        shares, away = self.shares.copy(), self.receivers != self.senders
        for peer in np.unique(self.senders[gone]).tolist():
            mine = self.senders == peer
            shares[mine & ~away] = 1 - sum(shares[mine & away & ~gone].tolist())
        return Edges(self.receivers[~gone], self.senders[~gone], shares[~gone])


class Topology:
    """The edges of every round. ``text`` is a name of ``names()`` or JSON, whose form ``spelled`` describes."""

    def __init__(self, text: str, peers: int, degree: int = 4, seed: int = 0) -> None:
        self.text, self.peers, self.degree, self.seed = text, peers, degree, seed
        self._cached = lru_cache(maxsize=64)(self._build)
        self._given: list[F64] = []
        if text not in names():
            self._given = _given(text, peers)
            return
        self._graph = graph(text)
        if self._graph.degreed and not 0 < degree < max(peers, 2):
            raise Mistake(f"'gossip.degree' = {degree}: in '{text}' each of {peers} peers can have 1 to {peers - 1}")
        if text == "regular" and degree % 2 and peers % 2 and peers > 1:
            raise Mistake(
                f"'gossip.degree' = {degree}: {peers} peers cannot all have an odd number of neighbours; "
                f"take {degree - 1 or 2} or {degree + 1}"
            )
        if text == "regular" and degree == 1 and peers > 2:
            raise Mistake(
                "'gossip.degree' = 1: with one neighbour each, pairs of peers have no path to the rest; take 2 or more"
            )
        if not self._graph.connected:
            _refuse_unconnected([self.matrix(number) > 0 for number in range(1, (self.period() or 16) + 1)])

    def edges(self, number: int, alive: Sequence[int] | None = None) -> Edges:
        """Return the edges of round ``number`` among the peers that are alive. None stands for all peers."""
        there = tuple(range(self.peers)) if alive is None else tuple(sorted(alive))
        return self._cached(self._phase(number, len(there)), there)

    def matrix(self, number: int, alive: Sequence[int] | None = None) -> F64:
        """Return P (K, K). The columns of peers that are gone are empty."""
        return self.edges(number, alive).matrix(self.peers)

    def period(self, alive: int | None = None) -> int:
        """Return the rounds after which the edges repeat; 0: never."""
        if self._given:
            return len(self._given)
        return self._graph.period(self.peers if alive is None else alive)

    def rate(self, rounds: int = 16) -> float:
        """Return the factor by which the distance from consensus shrinks per round, in the long run.

        This is the modulus of the second eigenvalue of the product of a period's matrices, as a geometric mean per
        round. A topology that never repeats is measured over ``rounds`` rounds.
        """
        period = self.period() or rounds
        product = np.eye(self.peers)
        for number in range(1, period + 1):
            product = self.matrix(number) @ product
        second = np.sort(np.abs(np.linalg.eigvals(product)))[-2] if self.peers > 1 else 0.0
        return float(second ** (1.0 / period))

    def _phase(self, number: int, alive: int) -> int:
        """Return the phase of a round. Rounds of one phase have the same edges, which are built once."""
        period = self.period(alive)
        return number % period if period else number

    def _build(self, phase: int, alive: tuple[int, ...]) -> Edges:
        members = np.array(alive, np.int64)
        if self._given:
            P = self._given[phase - 1][np.ix_(members, members)]
            receivers, senders = np.nonzero(P)
            return Edges(members[receivers], members[senders], (P / P.sum(axis=0))[receivers, senders])
        receivers, senders = self._positions(len(members), phase)
        own = np.arange(len(members))
        to, of = np.concatenate([receivers, own]), np.concatenate([senders, own])
        at = np.unique(to * len(members) + of)
        to, of = at // max(len(members), 1), at % max(len(members), 1)
        return Edges(members[to], members[of], (1.0 / np.bincount(of, minlength=len(members)))[of])

    def _positions(self, n: int, phase: int) -> tuple[I64, I64]:
        if n < 2:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        # Fewer peers may be left than the degree asks for.
        receivers, senders = self._graph.edges(n, Round(phase, min(self.degree, n - 1), self.seed))
        edges = np.asarray(receivers, np.int64), np.asarray(senders, np.int64)
        if any(ends.ndim != 1 or (ends.size and not 0 <= ends.min() <= ends.max() < n) for ends in edges):
            raise Mistake(f"the topology '{self.text}' returned an edge to a peer outside 0 to {n - 1}")
        return edges


# Named topologies ----------------------------------------------------------------------------------------------------


@topology("ring", connected=True)
def ring(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """Every peer exchanges with the next and the one before; the first and the last are neighbours."""
    return _beside(n, [-1, 1])


@topology("directed-ring", connected=True)
def directed_ring(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """Every peer sends to the next one."""
    return _beside(n, [1])


@topology("line", connected=True)
def line(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """A ring without the edge between the last and the first."""
    low = np.arange(n - 1)
    return np.concatenate([low, low + 1]), np.concatenate([low + 1, low])


@topology("star", connected=True)
def star(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """All peers exchange with the first."""
    others, first = np.arange(1, n), np.zeros(n - 1, np.int64)
    return np.concatenate([others, first]), np.concatenate([first, others])


@topology("complete", connected=True)
def complete(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """Every peer exchanges with every other."""
    return _beside(n, list(range(1, n)))


def hops(n: int) -> int:
    """Return the rounds in which the exponential topology connects all peers."""
    return max((n - 1).bit_length(), 1)


@topology("exponential", period=hops, connected=True)
def exponential(n: int, round: Round) -> tuple[I64, I64]:
    """One neighbour per round: peer k sends to k + 1, k + 2, k + 4, ..., and then again (Ying 2021)."""
    return _beside(n, [1 << (round.number % hops(n))])


@topology("regular", degreed=True, connected=True)
def regular(n: int, round: Round) -> tuple[I64, I64]:
    """``degree`` neighbours each: the nearest on both sides, and with an odd degree the opposite peer.

    An odd number of peers has no opposite peer. There each sends to the peer half a ring ahead, in one direction.
    """
    degree = round.degree
    near = [step for away in range(1, degree // 2 + 1) for step in (away, -away)]
    return _beside(n, near + ([n // 2] if degree % 2 else []))


@topology("random", period=0, degreed=True, connected=True)
def random(n: int, round: Round) -> tuple[I64, I64]:
    """Every peer sends to ``degree`` others, drawn anew: those with the smallest of its n - 1 random numbers."""
    degree = round.degree
    drawn = np.argpartition(round.generator.random((n, n - 1)), degree - 1, axis=1)[:, :degree]
    senders = np.repeat(np.arange(n), degree)
    return (senders + 1 + drawn.reshape(-1)) % n, senders


def _beside(n: int, steps: Sequence[int]) -> tuple[I64, I64]:
    """Each peer k sends to k + step (mod n). A step of 0 (mod n) is skipped."""
    senders = np.repeat(np.arange(n), len(steps))
    receivers = (senders + np.tile(np.array(steps, np.int64), n)) % n
    away = receivers != senders
    return receivers[away], senders[away]


@topology("pairs")
def pairs(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """0 and 1, 2 and 3, and so on; of an odd number the last has no neighbour. For communication matrices."""
    low = np.arange(0, n - 1, 2)
    return np.concatenate([low, low + 1]), np.concatenate([low + 1, low])


# From a file ---------------------------------------------------------------------------------------------------------


def spelled(text: str) -> str:
    """A topology's name or its JSON.

    JSON is a matrix (K rows), {"edges": [[i, k, weight], ...]}, read as "k sends to i", or {"rounds": [one of these,
    ...]}, round after round and then again. Weights are relative: all shares of a sender, with the share that it
    keeps, are divided by their sum. A kept share that is not given has the weight 1.
    """
    return parse.spelled(text, KEY, names())


def inlined(text: str) -> str:
    """Return the JSON of a topology as a person wrote it: the name of a file becomes its content."""
    return parse.inlined(text, KEY, names())


def _given(text: str, peers: int) -> list[F64]:
    """Return the column-stochastic matrices that JSON describes, one per round."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"'gossip.topology' is neither a registered name nor valid JSON: {error}") from None
    rounds = value["rounds"] if isinstance(value, dict) and set(value) == {"rounds"} else [value]
    if not isinstance(rounds, list) or not rounds:
        raise Mistake("'gossip.topology': \"rounds\" is a list of matrices or edges, with one at least")
    matrices = []
    for one in rounds:
        W = parse.weights(one, peers, KEY, own=True)
        own = np.diag(W)
        np.fill_diagonal(W, np.where(own > 0, own, 1.0))
        matrices.append(W / W.sum(axis=0))
    _refuse_unconnected([P > 0 for P in matrices])
    return matrices


def _refuse_unconnected(edges: Sequence[Bools]) -> None:
    for receiver, sender in _unreachable(np.logical_or.reduce(edges)):
        raise Mistake(f"'{KEY}': nothing of peer {sender} ever reaches peer {receiver}")


def _unreachable(edges: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield pairs of a receiver and a sender between which there is no path."""
    for reach, swap in ((edges, False), (edges.T, True)):
        reached = np.zeros(len(edges), np.bool_)
        reached[0] = True
        while (grown := reached | reach[:, reached].any(axis=1)).sum() > reached.sum():
            reached = grown
        for peer in np.flatnonzero(~reached).tolist():
            yield (0, peer) if swap else (peer, 0)
