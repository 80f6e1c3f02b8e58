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
        """The same for all peers of a run in this round."""
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
    ``round.degree``. ``connected``: every peer hears from every other in time, so that nobody need check it.
    """

    def decorate(function: T) -> T:
        if len(inspect.signature(function).parameters) != 2:
            raise Mistake(f"the topology '{name}' takes (n, round), not {inspect.signature(function)}")
        every = period if callable(period) else lambda n: period
        registry.register("topology", name, Graph(function, every, degreed, connected), home=function.__module__)
        return function

    return decorate


def graph(name: str) -> Graph:
    found: Graph = registry.get("topology", name, KEY).value
    return found


def names() -> tuple[str, ...]:
    return registry.names("topology")


def fixed() -> tuple[str, ...]:
    """Return the graphs that do not change: neither from round to round nor with the degree."""
    return tuple(name for name in names() if graph(name).period(4) == 1 and not graph(name).degreed and name != "star")


class Links(NamedTuple):
    """P as a list of its entries, by receiver and then by sender; what peers keep for themselves is among them."""

    receivers: I64
    senders: I64
    shares: F64

    def matrix(self, peers: int) -> F64:
        P = np.zeros((peers, peers))
        P[self.receivers, self.senders] = self.shares
        return P

    def sent_by(self, peer: int) -> dict[int, float]:
        """What a peer sends to whom; its own share is among it."""
        mine = self.senders == peer
        return dict(zip(self.receivers[mine].tolist(), self.shares[mine].tolist(), strict=True))

    def heard_by(self, peer: int) -> list[int]:
        """From whom a peer gets something, ascending, itself among them."""
        found: list[int] = self.senders[self.receivers == peer].tolist()
        return found

    def without(self, gone: Bools) -> Links:
        """Without some of them, none of them to oneself: who would have sent there keeps that."""
        shares, away = self.shares.copy(), self.receivers != self.senders
        for peer in np.unique(self.senders[gone]).tolist():
            mine = self.senders == peer
            shares[mine & ~away] = 1 - sum(shares[mine & away & ~gone].tolist())
        return Links(self.receivers[~gone], self.senders[~gone], shares[~gone])


class Topology:
    """The links of every round. ``text`` is a name of ``NAMES`` or JSON (``spelled`` has what it may hold)."""

    def __init__(self, text: str, peers: int, degree: int = 4, seed: int = 0) -> None:
        self.text, self.peers, self.degree, self.seed = text, peers, degree, seed
        self._links = lru_cache(maxsize=64)(self._made)
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
            raise Mistake("'gossip.degree' = 1: with one neighbour each, peers are pairs that never hear of the rest")
        if not self._graph.connected:
            _refuse_unconnected([self.matrix(number) > 0 for number in range(1, (self.period() or 16) + 1)])

    def links(self, number: int, alive: Sequence[int] | None = None) -> Links:
        """Who sends how much to whom in round ``number``, among the peers that are alive (all of them for None)."""
        there = tuple(range(self.peers)) if alive is None else tuple(sorted(alive))
        return self._links(self._phase(number, len(there)), there)

    def matrix(self, number: int, alive: Sequence[int] | None = None) -> F64:
        """P (K, K); the columns of peers that are gone are empty."""
        return self.links(number, alive).matrix(self.peers)

    def period(self, alive: int | None = None) -> int:
        """Rounds after which it begins again; 0: never."""
        if self._given:
            return len(self._given)
        return self._graph.period(self.peers if alive is None else alive)

    def rate(self, rounds: int = 16) -> float:
        """By how much the distance from consensus shrinks per round, in the long run.

        It is the second eigenvalue of the product of a period's matrices, of its modulus the root per round; where the
        topology never repeats, of so many rounds.
        """
        period = self.period() or rounds
        product = np.eye(self.peers)
        for number in range(1, period + 1):
            product = self.matrix(number) @ product
        second = np.sort(np.abs(np.linalg.eigvals(product)))[-2] if self.peers > 1 else 0.0
        return float(second ** (1.0 / period))

    def _phase(self, number: int, alive: int) -> int:
        """Rounds that are alike have the same number here, so that their links are made once."""
        period = self.period(alive)
        return number % period if period else number

    def _made(self, phase: int, alive: tuple[int, ...]) -> Links:
        members = np.array(alive, np.int64)
        if self._given:
            P = self._given[phase - 1][np.ix_(members, members)]
            receivers, senders = np.nonzero(P)
            return Links(members[receivers], members[senders], (P / P.sum(axis=0))[receivers, senders])
        receivers, senders = self._edges(len(members), phase)
        own = np.arange(len(members))
        to, of = np.concatenate([receivers, own]), np.concatenate([senders, own])
        at = np.unique(to * len(members) + of)
        to, of = at // max(len(members), 1), at % max(len(members), 1)
        return Links(members[to], members[of], (1.0 / np.bincount(of, minlength=len(members)))[of])

    def _edges(self, n: int, phase: int) -> tuple[I64, I64]:
        if n < 2:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        # Of those who are left there may be fewer than the degree asks for.
        receivers, senders = self._graph.edges(n, Round(phase, min(self.degree, n - 1), self.seed))
        found = np.asarray(receivers, np.int64), np.asarray(senders, np.int64)
        if any(ends.ndim != 1 or (ends.size and not 0 <= ends.min() <= ends.max() < n) for ends in found):
            raise Mistake(f"the topology '{self.text}' returned an edge to a peer that is none of 0 to {n - 1}")
        return found


# Named topologies ----------------------------------------------------------------------------------------------------


@topology("ring", connected=True)
def ring(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """Both beside one's own number, the first and the last beside each other."""
    return _beside(n, [-1, 1])


@topology("directed-ring", connected=True)
def directed_ring(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """Everybody sends to the next one."""
    return _beside(n, [1])


@topology("line", connected=True)
def line(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """A ring that was cut between the last and the first."""
    low = np.arange(n - 1)
    return np.concatenate([low, low + 1]), np.concatenate([low + 1, low])


@topology("star", connected=True)
def star(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """All exchange with the first."""
    others, first = np.arange(1, n), np.zeros(n - 1, np.int64)
    return np.concatenate([others, first]), np.concatenate([first, others])


@topology("complete", connected=True)
def complete(n: int, round: Round | None = None) -> tuple[I64, I64]:
    """All exchange with all."""
    return _beside(n, list(range(1, n)))


def hops(n: int) -> int:
    """Rounds of the exponential topology in which everybody hears of everybody."""
    return max((n - 1).bit_length(), 1)


@topology("exponential", period=hops, connected=True)
def exponential(n: int, round: Round) -> tuple[I64, I64]:
    """One neighbour per round, 1, 2, 4, ... places on, and then again (Ying 2021)."""
    return _beside(n, [1 << (round.number % hops(n))])


@topology("regular", degreed=True, connected=True)
def regular(n: int, round: Round) -> tuple[I64, I64]:
    """``degree`` neighbours each: the nearest on both sides, and of an odd number the one opposite.

    An odd number of peers has no opposite; there the one half round goes one way.
    """
    degree = round.degree
    near = [step for away in range(1, degree // 2 + 1) for step in (away, -away)]
    return _beside(n, near + ([n // 2] if degree % 2 else []))


@topology("random", period=0, degreed=True, connected=True)
def random(n: int, round: Round) -> tuple[I64, I64]:
    """Everybody sends to ``degree`` others, drawn anew: of n - 1 random numbers each, those with the smallest."""
    degree = round.degree
    drawn = np.argpartition(round.generator.random((n, n - 1)), degree - 1, axis=1)[:, :degree]
    senders = np.repeat(np.arange(n), degree)
    return (senders + 1 + drawn.reshape(-1)) % n, senders


def _beside(n: int, steps: Sequence[int]) -> tuple[I64, I64]:
    """Everybody sends so many places on; steps that lead home are none."""
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

    JSON is a matrix (K rows), {"edges": [[i, k, weight], ...]}, read as "i hears from k", or {"rounds": [one of these,
    ...]}, round after round and then again. Weights are relative: all that a peer gives, its own share among it, is
    divided by their sum. An own share that is not given has the weight 1.
    """
    return parse.spelled(text, KEY, names())


def inlined(text: str) -> str:
    """The same of what a person wrote: a file's name becomes what the file holds."""
    return parse.inlined(text, KEY, names())


def _given(text: str, peers: int) -> list[F64]:
    """The column-stochastic matrices of JSON, one after the other."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"'gossip.topology' is no JSON: {error}") from None
    rounds = found["rounds"] if isinstance(found, dict) and set(found) == {"rounds"} else [found]
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
    for deaf, unheard in _strangers(np.logical_or.reduce(edges)):
        raise Mistake(f"'{KEY}': nothing of peer {unheard} ever reaches peer {deaf}")


def _strangers(heard: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs of which the first never hears of the second, however long it takes."""
    for reach, swap in ((heard, False), (heard.T, True)):
        known = np.zeros(len(heard), np.bool_)
        known[0] = True
        while (grown := known | reach[:, known].any(axis=1)).sum() > known.sum():
            known = grown
        for stranger in np.flatnonzero(~known).tolist():
            yield (0, stranger) if swap else (stranger, 0)
