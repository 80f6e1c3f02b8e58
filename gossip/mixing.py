"""The network in one process: all peers are here, and a round of push-sum is P @ X."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numba import njit

from strategies.graphs.topology import Links, Topology
from strategies.medium import F32, F64, I64, Bools, Forged, Received, flaw

# Links per peer up to which shares are added up one by one, in the order in which a wire adds them; beyond that a
# matrix product is faster.
_FEW = 32
_COUNTED = ("bytes_up", "bytes_down", "missed", "refused", "late")


def share(x: F32, part: float) -> F32:
    """What goes to one neighbour of a row, rounded once: the product is exact before."""
    return np.multiply(x, np.float64(part), dtype=np.float64).astype(np.float32)


def mixed(links: Links, x: F32, y: F64) -> tuple[F32, F64]:
    """(P x, P y) for all peers; those whom no link mentions keep what they have."""
    there = links.receivers[links.receivers == links.senders]  # everybody keeps a share
    if len(links.senders) > _FEW * len(there):
        mass: F64 = np.bincount(links.receivers, links.shares * y[links.senders], len(y)).astype(np.float64)
        if len(there) == len(x):
            product: F32 = _dense(links, len(x)) @ x
            return product, mass
        out, weight = x.copy(), y.copy()
        out[there] = _dense(links, len(x))[np.ix_(there, there)] @ x[there]
        weight[there] = mass[there]
        return out, weight
    out, weight = x.copy(), y.copy()
    edges = np.searchsorted(links.receivers, np.arange(len(x) + 1))
    _add_up(edges, links.senders, links.shares, x, y, out, weight)
    return out, weight


def _dense(links: Links, peers: int) -> F32:
    """P in float32, whose columns still add up to 1: what a peer keeps takes up what rounding left."""
    shares = links.shares.astype(np.float32)
    lost = 1.0 - np.bincount(links.senders, shares, peers)
    P = np.zeros((peers, peers), np.float32)
    P[links.receivers, links.senders] = shares
    np.fill_diagonal(P, (np.diag(P) + lost).astype(np.float32))
    return P


@njit(cache=True)
def _add_up(edges, senders, shares, x, y, out, weight):  # type: ignore[no-untyped-def]
    total = np.empty(x.shape[1])
    for i in range(len(edges) - 1):
        if edges[i] == edges[i + 1]:
            continue
        total[:] = 0.0
        mass = 0.0
        for at in range(edges[i], edges[i + 1]):
            k, part = senders[at], shares[at]
            mass += part * y[k]
            for j in range(x.shape[1]):
                total[j] += np.float32(part * np.float64(x[k, j]))
        for j in range(x.shape[1]):
            out[i, j] = total[j]
        weight[i] = mass


class Network:
    """All peers of a run in this process: the Medium of the local engine.

    ``silent`` says who is out of it in a round: others close around them. A number of x / y, or of a word, that is
    larger than ``largest`` is refused.
    """

    def __init__(
        self,
        topology: Topology,
        silent: Callable[[int], Collection[int]] = lambda number: (),
        largest: float = 1e6,
    ) -> None:
        self.topology, self.network, self.silent, self.largest = topology, topology.peers, silent, largest
        self.peers = range(topology.peers)
        self._reasons: Counter[str] = Counter()
        self._counts: dict[str, I64] = {}
        self.counts()

    def mix(
        self, number: int, x: F32, y: F64, forged: Forged | None = None, refused: Bools | None = None
    ) -> tuple[F32, F64]:
        links = self.topology.links(number, self._there(number))
        if refused is not None and refused.any():
            gone = refused[links.senders, links.receivers]
            np.add.at(self._counts["missed"], links.receivers[gone], 1)
            links = links.without(gone)
            refused[...] = False
        self._sent(links, 4 * x.shape[1] + 8)
        out, weight = mixed(links, x, y)
        # Rows that no neighbour takes, though nobody lies; nan is not below anything.
        sound = (x.max(axis=1, initial=0) <= self.largest * y) & (x.min(axis=1, initial=0) >= -self.largest * y)
        ill = {k: x[k] for k in np.flatnonzero(~sound).tolist()}
        back: list[tuple[int, int, float]] = []
        if forged is not None or ill:
            for peer in np.unique(links.receivers).tolist():
                told = ill | dict(forged(peer) if forged is not None else {})
                if false := {k: row for k, row in told.items() if k != peer}:
                    out[peer], weight[peer] = self._believing(links, peer, x, y, false, back)
        for peer, k, part in back:
            out[k] += share(x[k], part)
            weight[k] += part * y[k]
            if refused is not None:
                refused[peer, k] = True
        return out, weight

    def tell(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        there = np.array(self._there(number), np.int64)
        if final is not None and final.all():
            return [Received(there[:0], vectors[:0])] * len(vectors)
        nbytes = 4 * vectors.shape[1]
        self._counts["bytes_up"][there] += nbytes * (len(there) - 1)
        self._counts["bytes_down"] += nbytes * (len(there) - np.isin(self.peers, there))
        self._counts["missed"] += self.network - len(there)
        told = [forged(peer) if forged is not None else {} for peer in self.peers]
        heard: dict[tuple[int, int], Received] = {}
        found = []
        for peer, false in zip(self.peers, told, strict=True):
            # Those who are told the same hear the same; a liar hears itself say the truth.
            alike = (id(false) if false else 0, peer if peer in false else -1)
            if alike not in heard:
                heard[alike] = self._heard(peer, there, vectors, {k: v for k, v in false.items() if k != peer})
            found.append(heard[alike])
        return found

    def _heard(self, peer: int, there: I64, vectors: F32, false: Mapping[int, F32]) -> Received:
        said = {k: false.get(k, vectors[k]) for k in there.tolist()}
        good = [k for k, row in said.items() if not self._flawed(peer, row, vectors.shape[1], 1.0)]
        return Received(np.array(good, np.int64), np.stack([said[k] for k in good]) if good else vectors[:0])

    def _believing(
        self, links: Links, peer: int, x: F32, y: F64, false: Mapping[int, F32], back: list[tuple[int, int, float]]
    ) -> tuple[F32, float]:
        """What a peer adds up that is lied to. Shares that can be recognised as forged go ``back``: who refused whose,
        how much of it."""
        total, mass = np.zeros(x.shape[1]), 0.0
        mine = links.receivers == peer
        for k, part in zip(links.senders[mine].tolist(), links.shares[mine].tolist(), strict=True):
            row = share(false.get(k, x[k]), part)
            if k != peer and self._flawed(peer, row, x.shape[1], part * y[k]):
                back.append((peer, k, part))
            else:
                total += row
                mass += part * y[k]
        return total.astype(np.float32), mass

    def _flawed(self, peer: int, row: F32, width: int, weight: float) -> bool:
        reason = flaw(row, width, self.largest * weight)
        if reason:
            self._counts["refused"][peer] += 1
            self._reasons[reason] += 1
        return bool(reason)

    def _there(self, number: int) -> list[int]:
        silent = self.silent(number)
        return [peer for peer in self.peers if peer not in silent]

    def _sent(self, links: Links, nbytes: int) -> None:
        away = links.receivers != links.senders
        for name, ends in (("bytes_up", links.senders), ("bytes_down", links.receivers)):
            self._counts[name] += nbytes * np.bincount(ends[away], minlength=self.network)

    def join(self, number: int) -> tuple[int, F32 | None]:
        """All are here."""
        return number, None

    def next(self, number: int, weights: F32) -> int:
        return number

    def finish(self, x: F32, y: F64) -> tuple[F32, F64]:
        """Nothing is on its way."""
        return x, y

    def counts(self) -> dict[str, list[int]]:
        found = {name: row.tolist() for name, row in self._counts.items()}
        self._counts = {name: np.zeros(self.network, np.int64) for name in _COUNTED}
        return found

    def reasons(self) -> dict[str, int]:
        return dict(self._reasons)

    def close(self) -> None:
        """Nothing is open."""
