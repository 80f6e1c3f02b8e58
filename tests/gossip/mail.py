"""A medium for tests: every peer is a thread with one row, and reads what the others post.

It is slow, and shares no code with the real media. Both must give the same results.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from strategies.graphs.topology import Topology
from strategies.medium import F32, F64, Bools, Forged, Received, refusal

PATIENCE_S = 60.0
LARGEST = 1e6


class Post:
    """A store of letters by subject, recipient and sender."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._letters: dict[Any, dict[int, Any]] = defaultdict(dict)
        self._changed = threading.Condition()

    def send(self, about: Any, to: int, of: int, what: Any) -> None:
        with self._changed:
            self._letters[about, to][of] = what
            self._changed.notify_all()

    def wait(self, about: Any, to: int, senders: Sequence[int]) -> dict[int, Any]:
        with self._changed:
            there = self._changed.wait_for(lambda: set(senders) <= self._letters[about, to].keys(), PATIENCE_S)
            assert there, (about, to, senders, self._letters[about, to].keys())
            return {k: self._letters[about, to][k] for k in sorted(senders)}


class Mail:
    """The Medium of one peer."""

    def __init__(self, post: Post, peer: int) -> None:
        self.post, self.peers, self.network = post, [peer], post.topology.peers

    def mix(
        self, number: int, x: F32, y: F64, forged: Forged | None = None, refused: Bools | None = None
    ) -> tuple[F32, F64]:
        (me,), edges = self.peers, self.post.topology.edges(number)
        kept = 0.0
        for to, part in edges.sent_by(me).items():
            row, useless = x[0] if forged is None or to == me else forged(to).get(0, x[0]), False
            if refused is not None and refused[0, to]:
                kept, useless = kept + part, True
            share = None if useless else ((np.float64(part) * row).astype(np.float32), part * y[0])
            self.post.send((number, "share"), to, me, share)
        total, mass = kept * x[0].astype(np.float64), kept * float(y[0])
        for of, received in self.post.wait((number, "share"), me, edges.senders_to(me)).items():
            bad = received is not None and bool(refusal(received[0], x.shape[1], LARGEST * received[1]))
            if received is not None and not bad:
                total, mass = total + received[0], mass + received[1]
            if refused is not None:
                refused[0, of] = bad
        return total.astype(np.float32)[None], np.array([mass])

    def broadcast(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        (me,) = self.peers
        is_last = final is not None and bool(final[0])
        for to in range(self.network):
            row = vectors[0] if forged is None or to == me else forged(to).get(0, vectors[0])
            # A final broadcast stands for all later turns.
            for later in range(turn, turn + 50 if is_last else turn + 1):
                self.post.send((number, tag, later), to, me, row.copy())
        if is_last:
            return [Received(np.empty(0, np.int64), vectors[:0])]
        received = self.post.wait((number, tag, turn), me, range(self.network))
        good = [k for k, row in received.items() if not refusal(row, vectors.shape[1], LARGEST)]
        return [Received(np.array(good), np.stack([received[k] for k in good]))]

    def counts(self) -> dict[str, list[int]]:
        return {}

    def reasons(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Do nothing: no channel is open."""


def together(act: Callable[[int], Any], peers: int) -> list[Any]:
    """Run all peers at once. Raises the first error of one of them."""
    found: list[Any] = [None] * peers

    def run(peer: int) -> None:
        try:
            found[peer] = act(peer)
        except BaseException as error:
            found[peer] = error

    threads = [threading.Thread(target=run, args=(peer,), daemon=True) for peer in range(peers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found
