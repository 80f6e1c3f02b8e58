"""The network between processes: the Medium of one peer, which reaches its neighbours by gRPC.

A round sends all vectors before it waits, so no topology can deadlock. It waits for the peers that are there, count
this peer and are in a round nearby, but never beyond the deadline. Later shares are used in the next round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping

import numpy as np

from gossip import gossip_pb2 as pb
from gossip.endpoint import Endpoint
from gossip.inbox import Vector
from gossip.mixing import share
from strategies.medium import F32, F64, Bools, Forged, Received

FLUSH_S = 5.0  # for the last answers, when this peer is asked to stop
SETTLE_S = 1.0  # for the others to give up the vectors without an answer after that


class Wire(Endpoint):
    """One peer and its exchange with the others: push-sum and broadcasts."""

    _is_short = False  # whether a share was missed, or scant, since y was last half a peer's

    def mix(
        self, number: int, x: F32, y: F64, forged: Forged | None = None, refused: Bools | None = None
    ) -> tuple[F32, F64]:
        me, refused = self.peers[0], np.zeros((1, self.network), np.bool_) if refused is None else refused
        useless, refused[...] = set(np.flatnonzero(refused[0]).tolist()), False
        with self.local.changed:
            self._enter_round(number)
            self.local.broadcasting = False
            self._mark_useless(useless)
            if self.local.apart:
                return x, y
            deadline = self._delay(number) + self.patience.deadline
            edges = self.topology.edges(number, self.pace.present())
            parts = self._parts(edges.sent_by(me), float(y[0]), useless)
            shares = self._shares(number, x[0], float(y[0]), parts, forged)
            mine = [shares.pop(me), *self._send_shares(shares, number, deadline)]
            senders = [self.neighbours[peer] for peer in edges.senders_to(me) if peer != me]
            if self.pace.wait_for_vectors(
                lambda: [one for one in senders if not one.inbox.is_settled(number)], number, deadline
            ):
                self._is_short = True
            refused[0, [one.number for one in senders if one.inbox.has_refused(number)]] = True
            return self._add_up(x.shape[1], mine, number)

    def broadcast(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        me, is_last, broadcasts = self.peers[0], bool(final is not None and final.all()), self.broadcasts
        with self.local.changed:
            self._enter_round(number)
            self.local.broadcasting = True
            deadline = self._delay(number) + self.patience.deadline
            broadcasts.begin(number, tag, turn)
            if not self.local.apart:
                broadcasts.send(vectors[0], is_last, forged)
            if is_last:
                broadcasts.finish(tag)
                return [Received(np.empty(0, np.int64), vectors[:0])]
            self.pace.wait_for_vectors(broadcasts.missing, number, deadline)
            rows = {me: vectors[0]} | broadcasts.collect()
        senders = sorted(rows)
        return [Received(np.array(senders, np.int64), np.stack([rows[peer] for peer in senders]))]

    def finish(self, x: F32, y: F64) -> tuple[F32, F64]:
        """Hand over the vectors that are still in flight, wait for the others, and add the last shares.

        A peer that is asked to stop waits for nobody: the others go on without it. It takes no share after the last
        addition. A share that arrives later stays with its sender, or it would be in no checkpoint.
        """
        local, neighbours, pace = self.local, list(self.neighbours.values()), self.pace
        end = time.monotonic() + self.patience.end

        def handed_over() -> bool:
            return not any(one.there and one.outbox.is_busy for one in neighbours)

        with local.changed:
            pace.wait_until(lambda: handed_over() or pace.stop(), end)
            if pace.stop():
                pace.wait_until(handed_over, time.monotonic() + FLUSH_S)
            else:
                local.state = pb.STATE_FINISHED
                pace.greet_all()
                finished = pb.STATE_FINISHED
                pace.wait_until(
                    lambda: all(one.state == finished for one in neighbours if one.there) or pace.stop(), end
                )
            for neighbour in neighbours:
                neighbour.take_back()
            pace.wait_until(lambda: not any(one.is_unsettled for one in neighbours), time.monotonic() + SETTLE_S)
            local.closed = True
            if not x.shape[1]:
                return x, y
            return self._add_up(x.shape[1], [Vector(local.round, x[0], float(y[0]))], math.inf)

    def _enter_round(self, number: int) -> None:
        """Begin a round, or go on with it. Broadcasts of earlier rounds are dropped."""
        if number > self.local.round:
            self.local.round = number
            self._announce(number)
        self.broadcasts.enter_round(number)

    def _delay(self, number: int) -> float:
        """Wait if this peer attacks by delay. Returns the time after that."""
        now, after = time.monotonic(), self.after(number)
        if 0 < after < math.inf:
            self.pace.wait_until(self.pace.stop, now + after)
        return time.monotonic()

    def _mark_useless(self, useless: Collection[int]) -> None:
        """Mark the peers whose last share was refused, and tell them if that has changed."""
        for peer, neighbour in self.neighbours.items():
            was, neighbour.useless = neighbour.useless, peer in useless
            if neighbour.useless is not was:
                neighbour.greet_soon()

    def _parts(self, parts: Mapping[int, float], y: float, useless: Collection[int]) -> dict[int, float]:
        """Return the part of its mass that this peer sends to each. Useless peers are sent nothing.

        A peer that missed a share, or got a scant one, and has less than half of a peer's y since, sends only a
        fraction that shrinks with y. Behind a slow peer, where no shares arrive, y would otherwise halve in every
        round, and small steps would become large ones in x / y.
        """
        self._is_short &= y < 0.5
        me, fraction = self.peers[0], (2 * y) ** 4 if self._is_short else 1.0
        sent = {peer: fraction * part for peer, part in parts.items() if peer != me and peer not in useless}
        unchanged = fraction == 1 and len(sent) == len(parts) - 1
        return sent | {me: parts[me] if unchanged else 1 - sum(sent.values())}

    def _shares(
        self, number: int, x: F32, y: float, parts: Mapping[int, float], forged: Forged | None
    ) -> dict[int, Vector]:
        """Return the share of each peer, this one's own among them, which is never forged."""
        me = self.peers[0]
        rows = {part: share(x, part) for part in set(parts.values())}
        shares = {me: Vector(number, rows[parts[me]], parts[me] * y)}
        for peer, part in parts.items():
            if peer != me:
                shares[peer] = Vector(number, rows[part], part * y, scant=self._is_short)
                if forged is not None and 0 in (rows_for := forged(peer)):
                    shares[peer] = shares[peer]._replace(row=share(rows_for[0], part), honest=rows[part])
        return shares

    def _send_shares(self, shares: Mapping[int, Vector], number: int, deadline: float) -> list[Vector]:
        """Send shares. Returns those that stay here, because their recipient takes none or has no room in time.

        Peers with room come first, so that a slow peer does not delay the shares of the others.
        """
        left = {self.neighbours[peer]: one for peer, one in shares.items() if not self.neighbours[peer].put(one)}
        self.pace.wait_for(
            lambda: [one for one in left if one.outbox.is_full and one.exchanges and not one.slow], number, deadline
        )
        kept = [vector.kept for neighbour, vector in left.items() if not neighbour.put(vector)]
        if kept:
            self.local.counts["kept"] += len(kept)
        return kept

    def _add_up(self, width: int, mine: list[Vector], number: float) -> tuple[F32, F64]:
        """Add up all shares that belong to this peer now, in the order of their senders."""
        shares = [(self.peers[0], vector) for vector in mine]
        for neighbour in self.neighbours.values():
            due, returned = neighbour.inbox.pop_due(number), neighbour.outbox.returned
            self.local.counts["late"] += sum(vector.round < number for vector in due)
            self._is_short |= any(vector.scant for vector in due)
            self.local.counts["returned"] += len(returned)
            shares += [(neighbour.number, vector) for vector in due]
            shares += [(self.peers[0], vector) for vector in returned]
            neighbour.outbox.returned = []
        total, weight = np.zeros(width), 0.0
        for _, vector in sorted(shares, key=lambda item: item[0]):
            total += vector.row
            weight += vector.weight
        for neighbour in self.neighbours.values():
            # Subtract shares that were used and then withdrawn, but never more than half of the weight at once.
            for vector in list(neighbour.inbox.owed):
                if vector.weight <= weight / 2:
                    total -= vector.row
                    weight -= vector.weight
                    neighbour.inbox.owed.remove(vector)
        return total.astype(np.float32)[None], np.array([weight])
