"""The broadcasts of one peer: those that it sends, and those of the others that it still needs."""

from __future__ import annotations

from collections.abc import Mapping

from gossip.inbox import Broadcast, Vector
from gossip.local import LocalPeer
from gossip.neighbour import Neighbour
from strategies.medium import F32, Forged


class Broadcasts:
    """The broadcast in progress. Call its methods only while ``local.changed`` is held."""

    def __init__(self, local: LocalPeer, neighbours: Mapping[int, Neighbour]) -> None:
        self.local, self.neighbours = local, neighbours
        self._turn, self._finished_tags = (0, "", 0), set[str]()  # round, tag and turn; earlier tags of the round

    def enter_round(self, number: int) -> None:
        """Drop the broadcasts of the rounds before this one."""
        if self._turn[0] < number:
            self._turn, self._finished_tags = (number, "", 0), set()
            for neighbour in self.neighbours.values():
                neighbour.inbox.drop_before(number)

    def begin(self, number: int, tag: str, turn: int) -> None:
        """Begin a turn. With a new tag, the broadcasts of the tag before are finished."""
        if self._turn[1] not in ("", tag):
            self.finish(self._turn[1])
        self._turn = (number, tag, turn)

    def send(self, row: F32, final: bool, forged: Forged | None) -> None:
        """Send the vector of this turn to all peers."""
        number, tag, turn = self._turn
        for peer, neighbour in self.neighbours.items():
            sent = row if forged is None else forged(peer).get(0, row)
            vector = Vector(number, sent, broadcast=Broadcast(tag, turn, final))
            if neighbour.there and not neighbour.put(vector):
                self.local.counts["kept"] += 1

    def accept(self, neighbour: Neighbour, vector: Vector) -> bool:
        """Store a broadcast that is still needed. Returns whether it is."""
        about = vector.broadcast
        assert about is not None
        number, tag, turn = self._turn
        if vector.round < self.local.round or (vector.round == number and about.tag in self._finished_tags):
            return False
        if (vector.round, about.tag) == (number, tag) and about.turn < turn and not about.final:
            return False
        neighbour.inbox.broadcasts.append(vector)
        return True

    def missing(self) -> list[Neighbour]:
        """Return the peers whose broadcast of this turn has neither arrived nor been refused."""
        turn = self._turn
        return [
            one
            for one in self.neighbours.values()
            if one.inbox.find_broadcast(*turn) is None and one.inbox.spoiled != turn
        ]

    def collect(self) -> dict[int, F32]:
        """Return the broadcasts of this turn by sender, and drop those that no later turn needs."""
        rows: dict[int, F32] = {}
        for peer, neighbour in self.neighbours.items():
            row = neighbour.inbox.find_broadcast(*self._turn)
            if row is not None:
                rows[peer] = row
            neighbour.inbox.drop_used(*self._turn)
        return rows

    def finish(self, tag: str) -> None:
        """Drop the broadcasts of a tag, and take no more of them in this round."""
        self._finished_tags.add(tag)
        for neighbour in self.neighbours.values():
            neighbour.inbox.drop_tag(self._turn[0], tag)
