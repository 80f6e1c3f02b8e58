"""One peer among the others from its start to its end: it serves, finds the others, catches up and leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from core.errors import Failure
from gossip import gossip_pb2 as pb
from gossip.broadcasts import Broadcasts
from gossip.inbox import AHEAD
from gossip.local import Identity, LocalPeer, Patience, Reporter, Tls
from gossip.neighbour import Neighbour
from gossip.pace import Pace
from gossip.published import read_published
from gossip.service import Service
from strategies.graphs.topology import Topology
from strategies.medium import F32

COUNTED = ("bytes_up", "bytes_down", "missed", "refused", "late", "duplicates", "stale", "held", "kept", "returned")
CLOSE_S = 2.0  # for the goodbyes


class Endpoint:
    """A peer, its service, and its neighbours.

    ``roster`` has the addresses of all peers, this one among them. An address that is not known yet is empty;
    ``expect`` sets it later. ``stop`` returns whether the user wants the peer to leave.

    ``after`` returns the seconds by which an attack delays this peer in a round; infinity is silence. A silent peer
    announces that it stands apart, or its neighbours would send it mass that never comes back.
    """

    def __init__(
        self,
        identity: Identity,
        topology: Topology,
        roster: Mapping[int, str],
        patience: Patience = Patience(),  # noqa: B008 - frozen
        *,
        largest: float = 1e6,
        tls: Tls | None = None,
        say: Callable[[str], None] = lambda note: None,
        stop: Callable[[], bool] = lambda: False,
        after: Callable[[int], float] = lambda number: 0.0,
    ) -> None:
        self.after = after
        self.peers: Sequence[int] = [identity.number]
        self.network, self.topology, self.patience = identity.network, topology, patience
        self.local = LocalPeer(identity, patience, largest, tls, Reporter(identity.number, say))
        self.neighbours = {
            number: Neighbour(self.local, number, address)
            for number, address in sorted(roster.items())
            if number != identity.number
        }
        self.pace = Pace(self.local, self.neighbours, topology, stop)
        self.broadcasts = Broadcasts(self.local, self.neighbours)
        self.service = Service(self.local, self.neighbours, self.broadcasts.accept)
        self._has_server = False  # whether a server says who takes part

    def open(self, listen: str) -> int:
        """Serve, and look for the others. Returns the port."""
        self._announce(1)
        port = self.service.start(listen)
        for neighbour in self.neighbours.values():
            neighbour.start()
        return port

    def expect(self, roster: Mapping[int, str]) -> None:
        """Take the roster of a server: the peers that learn together now, and their addresses.

        The server may name a peer that has just died, so the others begin without a peer that does not come.
        """
        with self.local.changed:
            self._has_server = True
            for number, neighbour in self.neighbours.items():
                neighbour.expect(roster.get(number, ""))

    def gather(self) -> bool:
        """Wait for the others. Returns whether they are at work already, so that this peer has to catch up."""
        begun = time.monotonic()
        with self.local.changed:
            while True:
                others = [one for one in self.neighbours.values() if one.expected]
                known = [one for one in others if one.life]
                running = [one for one in known if one.began_without_us]
                # In a network at work some peers may be dead for good; the others answer in the first moments.
                settled = time.monotonic() - begun > 2 * self.patience.beat
                if len(known) == len(others) or (settled and 2 * len(running) > len(known)):
                    break
                left = begun + self.patience.start - time.monotonic()
                if left <= 0:
                    self._begin_without([one for one in others if not one.life], has_any=bool(known))
                    break
                if self.pace.stop():
                    return False
                self.local.changed.wait(min(left, 0.2))
            return 2 * len(running) > len(known)

    def _begin_without(self, absent: Sequence[Neighbour], has_any: bool) -> None:
        """Report the absent peers, or fail: only peers under a server begin without some of the others."""
        peers = "; ".join(f"peer {one.number} ({one.address}: {one.trouble})" for one in absent)
        if not (self._has_server and has_any):
            me = self.local.identity.number
            raise Failure(f"after {self.patience.start:g} s peer {me} is still without {peers}")
        self.local.say(f"after {self.patience.start:g} s it begins without {peers}")

    def begin(self, number: int = 0, *, late: bool = False) -> None:
        """Take part from the next round on: with all peers that are known now, or ``late`` in a network at work."""
        local = self.local
        with local.changed:
            if not late:
                local.founders = {one.number: one.life for one in self.neighbours.values() if one.life}
            local.state, local.round = pb.STATE_LEARNING, max(number, local.round)
            for neighbour in self.neighbours.values():
                neighbour.refresh()
                neighbour.greet_soon()

    def join(self, number: int) -> tuple[int, F32 | None]:
        self._announce(number + 1)
        late = self.gather()
        done, row = self.catch_up() if late else (number, None)
        self.begin(done, late=late)
        if late:
            self.local.say(f"the others are at work: caught up with them after round {done}")
        return done, None if row is None else row[None]

    def catch_up(self) -> tuple[int, F32]:
        """Return the median round of the others, and the element-wise median of the weights that they publish.

        The median bounds the influence of a minority that forges its answers.
        """
        neighbours = [one for one in self.neighbours.values() if one.life]
        published = [one for one in (read_published(self.local, peer) for peer in neighbours) if one is not None]
        if not published:
            raise Failure(
                f"peer {self.peers[0]} came late, and no other peer answered with the weights learned so far: start it "
                "again while the others are at work"
            )
        rounds = sorted(number for number, _ in published)
        weights = np.median([row for _, row in published], axis=0).astype(np.float32)
        return rounds[(len(rounds) - 1) // 2], weights

    def next(self, number: int, weights: F32) -> int:
        with self.local.changed:
            self.local.published = (number - 1, weights[0].astype("<f4"))
            self.pace.wait_for_most(self.patience.deadline)
            # A peer that was held up is behind by the time that it waited. Others should not have to wait for that.
            held_up = 0 < self.local.held_up == number - 1
            if held_up:
                self.pace.ask_rounds(self.patience.beat)
            middle = self.pace.median(lambda neighbour: neighbour.round)
            return middle if middle > number + (0 if held_up else AHEAD) else number

    def close(self) -> None:
        with self.local.changed:
            self.local.state, self.local.closing = pb.STATE_LEAVING, True
            self.local.changed.notify_all()
        deadline = time.monotonic() + CLOSE_S
        for neighbour in self.neighbours.values():
            neighbour.close(deadline)
        self.service.stop()

    def counts(self) -> dict[str, list[int]]:
        with self.local.changed:
            counts, self.local.counts = self.local.counts, type(self.local.counts)()
        return {name: [counts[name]] for name in COUNTED}

    def reasons(self) -> dict[str, int]:
        with self.local.changed:
            return dict(self.local.reasons)

    def _announce(self, number: int) -> None:
        """Tell the others whether this peer stands apart in a round, if that has changed."""
        with self.local.changed:
            apart, self.local.apart = self.local.apart, math.isinf(self.after(number))
            if apart is not self.local.apart:
                self.pace.greet_all()
