"""The waiting of a peer: for which other peers it waits, and for how long.

No peer waits longer than a deadline. A slow peer is charged with the seconds that it costs, so that it holds up its
neighbours for one deadline in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from gossip.inbox import AHEAD
from gossip.local import LocalPeer
from gossip.neighbour import Neighbour
from strategies.graphs.topology import Topology


class Pace:
    """The waiting of one peer. ``stop`` returns whether the user wants the peer to leave.

    Call its methods only while ``local.changed`` is held: waiting releases it.
    """

    def __init__(
        self, local: LocalPeer, neighbours: Mapping[int, Neighbour], topology: Topology, stop: Callable[[], bool]
    ) -> None:
        self.local, self.neighbours, self.topology, self.stop = local, neighbours, topology, stop
        self._is_ahead = False  # whether it was far ahead of most others when its last round began

    def present(self) -> list[int]:
        """Return the peers that exchange shares now, this one among them, in ascending order."""
        others = [number for number, one in self.neighbours.items() if one.exchanges]
        return sorted([self.local.identity.number, *others])

    def greet_all(self) -> None:
        """Tell all peers at once that the state of this one has changed."""
        for neighbour in self.neighbours.values():
            neighbour.greet_soon()

    def wait_until(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait until a condition holds or the deadline passes. Signals are noticed within half a second."""
        while not condition() and (left := deadline - time.monotonic()) > 0:
            self.local.changed.wait(min(left, 0.5))

    def wait_for(self, lagging: Callable[[], list[Neighbour]], number: int, deadline: float) -> None:
        """Wait until no peer lags or the deadline passes.

        At half time, tell the other peers that this one is held up, so that they do not wait for it. Every second is
        charged to the peers that lag. A peer that has used up a deadline, in one round or in many, is not waited for
        again until it sends a vector in time.
        """
        half = (time.monotonic() + deadline) / 2
        while (late := lagging()) and not self.stop() and (now := time.monotonic()) < deadline:
            if now >= half and self.local.held_up != number:
                self.local.held_up = number
                self.greet_all()
            self.local.changed.wait(min((half if now < half else deadline) - now, 0.5))
            for neighbour in late:
                neighbour.charge(time.monotonic() - now)
        if not self.stop():
            for neighbour in late:
                neighbour.slow = True

    def wait_for_vectors(self, missing: Callable[[], list[Neighbour]], number: int, deadline: float) -> int:
        """Wait for the missing vectors of all peers that can be expected to send them. Returns how many are missing."""
        deadlines = self.local.deadlines
        deadlines.setdefault(number, deadline)
        while len(deadlines) > AHEAD:
            del deadlines[min(deadlines)]
        self.wait_for(lambda: [one for one in missing() if self._will_send(one, number)], number, deadline)
        missed = len(missing())
        self.local.counts["missed"] += missed
        return missed

    def wait_for_most(self, seconds: float) -> None:
        """Wait up to a deadline if this peer is far ahead of more than half of the others."""
        lead = self.median(lambda neighbour: neighbour.behind)
        if lead >= AHEAD and not self._is_ahead:
            self.local.say(f"{lead} rounds ahead of most others: waits for them before its next ones")
        self._is_ahead = lead >= AHEAD
        self.wait_until(lambda: self.median(lambda neighbour: neighbour.behind) < AHEAD, time.monotonic() + seconds)

    def ask_rounds(self, seconds: float) -> None:
        """Ask all peers for their rounds. Use the last heartbeat of a peer that does not reply at once."""
        asked = time.monotonic()
        there = [neighbour for neighbour in self.neighbours.values() if neighbour.there]
        self.greet_all()
        self.wait_until(lambda: all(one.round_seen > asked for one in there), asked + seconds)

    def median(self, of: Callable[[Neighbour], int]) -> int:
        """Return the lower median over the peers that are neither slow nor held up.

        A minority that reports false rounds does not move it.
        """
        values = sorted(of(one) for one in self.neighbours.values() if one.there and not (one.slow or one.waits))
        return values[(len(values) - 1) // 2] if values else 0

    def _will_send(self, neighbour: Neighbour, number: int) -> bool:
        """Return whether a peer can be expected to send a vector of this round soon."""
        is_near = abs(neighbour.round - number) <= AHEAD
        # A peer that is held up in an earlier round comes late. Peers held up in the same round go on together.
        held_up = neighbour.waits and neighbour.held_up < number and neighbour.held_up != self.local.held_up
        if not (neighbour.exchanges and neighbour.counts_us and is_near) or neighbour.slow or held_up:
            return False
        if neighbour.round <= number:
            return True
        # A peer that noticed a death or a return earlier may have gone on, and sent its share to another neighbour.
        edges = self.topology.edges(number, self.present())
        return neighbour.number in edges.senders_to(self.local.identity.number)
