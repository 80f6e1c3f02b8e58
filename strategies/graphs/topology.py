"""Who sends to whom, and how much: in every round a matrix P (K, K) whose entry P[i][k] is the share of k that i gets.

Every column adds up to 1, which is all that push-sum needs: links may go one way and change from round to round. Rows
need not add up to 1. Peers that are gone are left out and the topology closes around them: a ring of the rest is a
ring. So every named topology is a function of how many there are, not of who they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake
from strategies.graphs import matrix
from strategies.graphs.matrix import weights

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

# The positions (receivers, senders) of all links of so many peers in a round, none to itself.
KEY = "gossip.topology"
Graph = Callable[[int, int], tuple[I64, I64]]


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
        if text not in NAMES:
            self._given = _given(text, peers)
            return
        if text in DEGREED and not 0 < degree < max(peers, 2):
            raise Mistake(f"'gossip.degree' = {degree}: in '{text}' each of {peers} peers can have 1 to {peers - 1}")
        if text == "regular" and degree % 2 and peers % 2 and peers > 1:
            raise Mistake(
                f"'gossip.degree' = {degree}: {peers} peers cannot all have an odd number of neighbours; "
                f"take {degree - 1 or 2} or {degree + 1}"
            )
        if text == "regular" and degree == 1 and peers > 2:
            raise Mistake("'gossip.degree' = 1: with one neighbour each, peers are pairs that never hear of the rest")

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
        n = self.peers if alive is None else alive
        return {"exponential": hops(n), "random": 0}.get(self.text, 1)

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
        names = np.array(alive, np.int64)
        if self._given:
            P = self._given[phase - 1][np.ix_(names, names)]
            receivers, senders = np.nonzero(P)
            return Links(names[receivers], names[senders], (P / P.sum(axis=0))[receivers, senders])
        receivers, senders = self._graph(len(names), phase)
        own = np.arange(len(names))
        to, of = np.concatenate([receivers, own]), np.concatenate([senders, own])
        at = np.unique(to * len(names) + of)
        to, of = at // max(len(names), 1), at % max(len(names), 1)
        return Links(names[to], names[of], (1.0 / np.bincount(of, minlength=len(names)))[of])

    def _graph(self, n: int, phase: int) -> tuple[I64, I64]:
        # Of those who are left there may be fewer than the degree asks for.
        degree = min(self.degree, n - 1)
        if n < 2:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if self.text == "regular":
            return regular(n, degree)
        if self.text == "random":
            return random(n, degree, np.random.default_rng([self.seed, phase, 3]))
        return NAMES[self.text](n, phase)


# Named topologies ----------------------------------------------------------------------------------------------------


def ring(n: int, phase: int = 0) -> tuple[I64, I64]:
    """Both beside one's own number, the first and the last beside each other."""
    return _beside(n, [-1, 1])


def directed_ring(n: int, phase: int = 0) -> tuple[I64, I64]:
    """Everybody sends to the next one."""
    return _beside(n, [1])


def line(n: int, phase: int = 0) -> tuple[I64, I64]:
    """A ring that was cut between the last and the first."""
    low = np.arange(n - 1)
    return np.concatenate([low, low + 1]), np.concatenate([low + 1, low])


def star(n: int, phase: int = 0) -> tuple[I64, I64]:
    """All exchange with the first."""
    others, first = np.arange(1, n), np.zeros(n - 1, np.int64)
    return np.concatenate([others, first]), np.concatenate([first, others])


def complete(n: int, phase: int = 0) -> tuple[I64, I64]:
    """All exchange with all."""
    return _beside(n, list(range(1, n)))


def exponential(n: int, phase: int = 0) -> tuple[I64, I64]:
    """One neighbour per round, 1, 2, 4, ... places on, and then again (Ying 2021)."""
    return _beside(n, [1 << (phase % hops(n))])


def hops(n: int) -> int:
    """Rounds of the exponential topology in which everybody hears of everybody."""
    return max((n - 1).bit_length(), 1)


def regular(n: int, degree: int) -> tuple[I64, I64]:
    """``degree`` neighbours each: the nearest on both sides, and of an odd number the one opposite.

    An odd number of peers has no opposite; there the one half round goes one way.
    """
    near = [step for away in range(1, degree // 2 + 1) for step in (away, -away)]
    return _beside(n, near + ([n // 2] if degree % 2 else []))


def random(n: int, degree: int, generator: np.random.Generator) -> tuple[I64, I64]:
    """Everybody sends to ``degree`` others, drawn anew: of n - 1 random numbers each, those with the smallest."""
    drawn = np.argpartition(generator.random((n, n - 1)), degree - 1, axis=1)[:, :degree]
    senders = np.repeat(np.arange(n), degree)
    return (senders + 1 + drawn.reshape(-1)) % n, senders


def _beside(n: int, steps: Sequence[int]) -> tuple[I64, I64]:
    """Everybody sends so many places on; steps that lead home are none."""
    senders = np.repeat(np.arange(n), len(steps))
    receivers = (senders + np.tile(np.array(steps, np.int64), n)) % n
    away = receivers != senders
    return receivers[away], senders[away]


def _special(n: int, phase: int) -> tuple[I64, I64]:
    raise NotImplementedError("it is made with its degree")


NAMES: dict[str, Graph] = {
    "ring": ring,
    "directed-ring": directed_ring,
    "line": line,
    "star": star,
    "complete": complete,
    "exponential": exponential,
    "regular": _special,
    "random": _special,
}
DEGREED = ("regular", "random")

# From a file ---------------------------------------------------------------------------------------------------------


def spelled(text: str) -> str:
    """A topology's name or its JSON.

    JSON is a matrix (K rows), {"edges": [[i, k, weight], ...]}, read as "i hears from k", or {"rounds": [one of these,
    ...]}, round after round and then again. Weights are relative: all that a peer gives, its own share among it, is
    divided by their sum. An own share that is not given has the weight 1.
    """
    return matrix.spelled(text, KEY, tuple(NAMES))


def inlined(text: str) -> str:
    """The same of what a person wrote: a file's name becomes what the file holds."""
    return matrix.inlined(text, KEY, tuple(NAMES))


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
        W = weights(one, peers, "gossip.topology", own=True)
        own = np.diag(W)
        np.fill_diagonal(W, np.where(own > 0, own, 1.0))
        matrices.append(W / W.sum(axis=0))
    for deaf, unheard in _strangers(np.logical_or.reduce([P > 0 for P in matrices])):
        raise Mistake(f"'gossip.topology': nothing of peer {unheard} ever comes to peer {deaf}")
    return matrices


def _strangers(heard: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs of which the first never hears of the second, however long it takes."""
    for reach, swap in ((heard, False), (heard.T, True)):
        known = np.zeros(len(heard), np.bool_)
        known[0] = True
        while (grown := known | reach[:, known].any(axis=1)).sum() > known.sum():
            known = grown
        for stranger in np.flatnonzero(~known).tolist():
            yield (0, stranger) if swap else (stranger, 0)
