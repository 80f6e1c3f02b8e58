"""The network of peers that share one process: a round of push-sum is P @ X."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numba import njit

from strategies.graphs.topology import Edges, Topology
from strategies.medium import F32, F64, I64, Bools, Forged, Received, refusal

# Up to this many edges per peer, shares are added up one by one, in the order in which gossip/wire.py adds them. With
# more edges a matrix product is faster.
_FEW = 32
_COUNTED = ("bytes_up", "bytes_down", "missed", "refused", "late")


def share(x: F32, part: float) -> F32:
    """Return the share of a row, rounded once: the product before is exact."""
    return np.multiply(x, np.float64(part), dtype=np.float64).astype(np.float32)


def mixed(edges: Edges, x: F32, y: F64) -> tuple[F32, F64]:
    """Return (P x, P y) for all peers. A peer without edges keeps its row."""
    present = edges.receivers[edges.receivers == edges.senders]  # every peer keeps a share
    if len(edges.senders) > _FEW * len(present):
        mass: F64 = np.bincount(edges.receivers, edges.shares * y[edges.senders], len(y)).astype(np.float64)
        if len(present) == len(x):
            product: F32 = _dense(edges, len(x)) @ x
            return product, mass
        out, weight = x.copy(), y.copy()
        out[present] = _dense(edges, len(x))[np.ix_(present, present)] @ x[present]
        weight[present] = mass[present]
        return out, weight
    out, weight = x.copy(), y.copy()
    starts = np.searchsorted(edges.receivers, np.arange(len(x) + 1))
    _add_up(starts, edges.senders, edges.shares, x, y, out, weight)
    return out, weight


def _dense(edges: Edges, peers: int) -> F32:
    """Return P in float32. What rounding takes from a column is added to the share that its peer keeps."""
    shares = edges.shares.astype(np.float32)
    lost = 1.0 - np.bincount(edges.senders, shares, peers)
    P = np.zeros((peers, peers), np.float32)
    P[edges.receivers, edges.senders] = shares
    np.fill_diagonal(P, (np.diag(P) + lost).astype(np.float32))
    return P


@njit(cache=True)
def _add_up(starts, senders, shares, x, y, out, weight):  # type: ignore[no-untyped-def]
    total = np.empty(x.shape[1])
    for i in range(len(starts) - 1):
        if starts[i] == starts[i + 1]:
            continue
        total[:] = 0.0
        mass = 0.0
        for at in range(starts[i], starts[i + 1]):
            k, part = senders[at], shares[at]
            mass += part * y[k]
            for j in range(x.shape[1]):
                total[j] += np.float32(part * np.float64(x[k, j]))
        for j in range(x.shape[1]):
            out[i, j] = total[j]
        weight[i] = mass


class Network:
    """The Medium of the local engine: all peers of a run in this process.

    ``silent`` returns the peers that take no part in a round; the topology closes around them. A number of x / y, or of
    a broadcast, that is larger than ``largest`` is refused.
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
        edges = self.topology.edges(number, self._present(number))
        if refused is not None and refused.any():
            removed = refused[edges.senders, edges.receivers]
            np.add.at(self._counts["missed"], edges.receivers[removed], 1)
            edges = edges.without(removed)
            refused[...] = False
        self._count_bytes(edges, 4 * x.shape[1] + 8)
        out, weight = mixed(edges, x, y)
        # An honest row may be refused as well, if its numbers are too large; nan fails both comparisons.
        sound = (x.max(axis=1, initial=0) <= self.largest * y) & (x.min(axis=1, initial=0) >= -self.largest * y)
        unsound = {k: x[k] for k in np.flatnonzero(~sound).tolist()}
        returned: list[tuple[int, int, float]] = []
        if forged is not None or unsound:
            for peer in np.unique(edges.receivers).tolist():
                rows = unsound | dict(forged(peer) if forged is not None else {})
                if from_others := {k: row for k, row in rows.items() if k != peer}:
                    out[peer], weight[peer] = self._add_up_forged(edges, peer, x, y, from_others, returned)
        for peer, k, part in returned:
            out[k] += share(x[k], part)
            weight[k] += part * y[k]
            if refused is not None:
                refused[peer, k] = True
        return out, weight

    def broadcast(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        present = np.array(self._present(number), np.int64)
        if final is not None and final.all():
            return [Received(present[:0], vectors[:0])] * len(vectors)
        nbytes = 4 * vectors.shape[1]
        self._counts["bytes_up"][present] += nbytes * (len(present) - 1)
        self._counts["bytes_down"] += nbytes * (len(present) - np.isin(self.peers, present))
        self._counts["missed"] += self.network - len(present)
        tables = [forged(peer) if forged is not None else {} for peer in self.peers]
        results: dict[tuple[int, int], Received] = {}
        received = []
        for peer, table in zip(self.peers, tables, strict=True):
            # Peers with the same table receive the same rows. An attacker receives its own honest row.
            key = (id(table) if table else 0, peer if peer in table else -1)
            if key not in results:
                results[key] = self._receive(peer, present, vectors, {k: v for k, v in table.items() if k != peer})
            received.append(results[key])
        return received

    def _receive(self, peer: int, present: I64, vectors: F32, table: Mapping[int, F32]) -> Received:
        rows = {k: table.get(k, vectors[k]) for k in present.tolist()}
        good = [k for k, row in rows.items() if not self._refuses(peer, row, vectors.shape[1], 1.0)]
        return Received(np.array(good, np.int64), np.stack([rows[k] for k in good]) if good else vectors[:0])

    def _add_up_forged(
        self, edges: Edges, peer: int, x: F32, y: F64, table: Mapping[int, F32], returned: list[tuple[int, int, float]]
    ) -> tuple[F32, float]:
        """Add up the shares of a peer, some of which are forged.

        Shares that the peer refuses are appended to ``returned``, as (receiver, sender, part).
        """
        total, mass = np.zeros(x.shape[1]), 0.0
        mine = edges.receivers == peer
        for k, part in zip(edges.senders[mine].tolist(), edges.shares[mine].tolist(), strict=True):
            row = share(table.get(k, x[k]), part)
            if k != peer and self._refuses(peer, row, x.shape[1], part * y[k]):
                returned.append((peer, k, part))
            else:
                total += row
                mass += part * y[k]
        return total.astype(np.float32), mass

    def _refuses(self, peer: int, row: F32, width: int, weight: float) -> bool:
        """Return whether a peer refuses a row, and count the refusal."""
        reason = refusal(row, width, self.largest * weight)
        if reason:
            self._counts["refused"][peer] += 1
            self._reasons[reason] += 1
        return bool(reason)

    def _present(self, number: int) -> list[int]:
        silent = self.silent(number)
        return [peer for peer in self.peers if peer not in silent]

    def _count_bytes(self, edges: Edges, nbytes: int) -> None:
        away = edges.receivers != edges.senders
        for name, ends in (("bytes_up", edges.senders), ("bytes_down", edges.receivers)):
            self._counts[name] += nbytes * np.bincount(ends[away], minlength=self.network)

    def join(self, number: int) -> tuple[int, F32 | None]:
        """Return at once: all peers are in this process."""
        return number, None

    def next(self, number: int, weights: F32) -> int:
        return number

    def finish(self, x: F32, y: F64) -> tuple[F32, F64]:
        """Return x and y: no share is in flight."""
        return x, y

    def counts(self) -> dict[str, list[int]]:
        counts = {name: row.tolist() for name, row in self._counts.items()}
        self._counts = {name: np.zeros(self.network, np.int64) for name in _COUNTED}
        return counts

    def reasons(self) -> dict[str, int]:
        return dict(self._reasons)

    def close(self) -> None:
        """Do nothing: no channel is open."""
