"""The network between processes: the Medium of one peer, whose neighbours are at the other end of gRPC.

A round sends everything first and then waits, so no topology locks up; it waits for those who are there, who count this
peer, and who are about as far, and never beyond the deadline. What comes later is used in the next round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import grpc
import numpy as np

from core.errors import Failure
from gossip import gossip_pb2 as pb
from gossip.here import Here, Identity, Patience, Report, Tls
from gossip.inbox import AHEAD, Parcel, Word
from gossip.link import Link
from gossip.mixing import share
from gossip.service import Service
from strategies.graphs.topology import Topology
from strategies.medium import F32, F64, Bools, Forged, Received

COUNTED = ("bytes_up", "bytes_down", "missed", "refused", "late", "duplicates", "stale", "held", "kept", "returned")
CLOSE_S = 2.0  # for saying goodbye
FLUSH_S = 5.0  # for what is on its way to be answered, when this peer is told to stop
SETTLE_S = 1.0  # for the others to give up what was not answered by then


class Wire:
    """One peer and its links to the others. ``roster`` has the addresses of all, this peer's own among them; those that
    are not known yet are empty, and come by ``expect``.

    ``stop`` says whether somebody wants it to leave, ``after`` by how many seconds its attack makes it late in a round;
    infinite is silence. It says that much, as one who is silent in one process is known to be: others must not send it
    what never comes back.
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
        say: Callable[[str], None] = lambda words: None,
        stop: Callable[[], bool] = lambda: False,
        after: Callable[[int], float] = lambda number: 0.0,
    ) -> None:
        self.after = after
        self.peers: Sequence[int] = [identity.number]
        self.network, self.topology, self.patience, self.stop = identity.network, topology, patience, stop
        self.here = Here(identity, patience, largest, tls, Report(identity.number, say))
        self.links = {
            number: Link(self.here, number, address)
            for number, address in sorted(roster.items())
            if number != identity.number
        }
        self.service = Service(self.here, self.links, self._keep)
        self._ahead = False  # whether it was far ahead of most others when its last round began
        self._lacks = False  # whether a share was missed, or scant, since y was last that of half a peer
        self._guided = False  # whether somebody else looks after who is there
        self._turn, self._passed = (0, "", 0), set[str]()  # what is being told, and the tags done with in this round

    # Beginning and end.

    def open(self, listen: str) -> int:
        """Serve, and look for the others; returns the port."""
        self._stand(1)
        port = self.service.start(listen)
        for link in self.links.values():
            link.start()
        return port

    def expect(self, roster: Mapping[int, str]) -> None:
        """These are the ones that learn together now, and there they are; the topology is that of those.

        Who says so may be wrong about one that has just died, so the others begin without those who do not come.
        """
        with self.here.changed:
            self._guided = True
            for number, link in self.links.items():
                link.expect(roster.get(number, ""))

    def gather(self) -> bool:
        """Wait for the others; whether they are at work already, and this peer has to catch up."""
        here, begun = self.here, time.monotonic()
        with here.changed:
            while True:
                others = [link for link in self.links.values() if link.expected]
                known = [link for link in others if link.life]
                running = [link for link in known if link.began_without_us]
                # Of a network at work some may be dead for ever; the others are reached in the first moments.
                settled = time.monotonic() - begun > 2 * self.patience.beat
                if len(known) == len(others) or (settled and 2 * len(running) > len(known)):
                    break
                left = begun + self.patience.start - time.monotonic()
                if left <= 0:
                    absent = [link for link in others if not link.life]
                    words = "; ".join(f"peer {one.number} ({one.address}: {one.trouble})" for one in absent)
                    if self._guided and known:
                        here.say(f"after {self.patience.start:g} s it begins without {words}")
                        break
                    me = here.identity.number
                    raise Failure(f"after {self.patience.start:g} s peer {me} is still without {words}")
                if self.stop():
                    return False
                here.changed.wait(min(left, 0.2))
            return 2 * len(running) > len(known)

    def begin(self, number: int = 0, *, late: bool = False) -> None:
        """Take part from the next round on: with all those who are known now, or late, with those who are at work."""
        here = self.here
        with here.changed:
            if not late:
                here.founders = {link.number: link.life for link in self.links.values() if link.life}
            here.state, here.round = pb.STATE_LEARNING, max(number, here.round)
            for link in self.links.values():
                link.refresh()
                link.greet_soon()

    def join(self, number: int) -> tuple[int, F32 | None]:
        self._stand(number + 1)
        late = self.gather()
        there, row = self.catch_up() if late else (number, None)
        self.begin(there, late=late)
        if late:
            self.here.say(f"the others are at work: caught up with them after round {there}")
        return there, None if row is None else row[None]

    def catch_up(self) -> tuple[int, F32]:
        """The round that most others are in, and what they have learned, number by number the middle of it.

        So a minority that forged decides nothing.
        """
        links = [link for link in self.links.values() if link.life]
        found = [one for one in map(self._read, links) if one is not None]
        if not found:
            raise Failure(f"peer {self.peers[0]} came late, and nobody told it what was learned so far")
        rounds = sorted(number for number, _ in found)
        return rounds[(len(rounds) - 1) // 2], np.median([row for _, row in found], axis=0).astype(np.float32)

    def next(self, number: int, weights: F32) -> int:
        with self.here.changed:
            self.here.published = (number - 1, weights[0].astype("<f4"))
            self._wait_for_most()
            # Who was held up is behind by what it has waited, and nobody should have to wait for that.
            held_up = 0 < self.here.held_up == number - 1
            if held_up:
                self._ask_where_all_are()
            middle = self._middle(lambda link: link.round)
            return middle if middle > number + (0 if held_up else AHEAD) else number

    def finish(self, x: F32, y: F64) -> tuple[F32, F64]:
        """All rounds are done: hand over what is on its way, wait for the others, and add up what came last.

        Who was asked to stop waits for nobody: the others go on without this peer. No share is taken from the last
        addition on: a share that comes later stays its sender's, or it would be in no checkpoint.
        """
        here, links = self.here, list(self.links.values())
        end = time.monotonic() + self.patience.end

        def handed_over() -> bool:
            return not any(link.there and link.busy for link in links)

        with here.changed:
            self._until(lambda: handed_over() or self.stop(), end)
            if self.stop():
                self._until(handed_over, time.monotonic() + FLUSH_S)
            else:
                here.state = pb.STATE_FINISHED
                self._greet_all()
                finished = pb.STATE_FINISHED
                self._until(lambda: all(one.state == finished for one in links if one.there) or self.stop(), end)
            for link in links:
                link.take_back()
            self._until(lambda: not any(link.unsettled for link in links), time.monotonic() + SETTLE_S)
            here.closed = True
            if not x.shape[1]:
                return x, y
            return self._added(x.shape[1], [(self.peers[0], Parcel(here.round, x[0], float(y[0])))], math.inf)

    def close(self) -> None:
        with self.here.changed:
            self.here.state, self.here.closing = pb.STATE_LEAVING, True
            self.here.changed.notify_all()
        deadline = time.monotonic() + CLOSE_S
        for link in self.links.values():
            link.close(deadline)
        self.service.stop()

    # The medium.

    def mix(
        self, number: int, x: F32, y: F64, forged: Forged | None = None, refused: Bools | None = None
    ) -> tuple[F32, F64]:
        me, refused = self.peers[0], np.zeros((1, self.network), np.bool_) if refused is None else refused
        useless, refused[...] = set(np.flatnonzero(refused[0]).tolist()), False
        with self.here.changed:
            self._enter(number)
            self.here.tells = False
            for peer, link in self.links.items():
                was, link.useless = link.useless, peer in useless
                if link.useless is not was:
                    link.greet_soon()
            if self.here.apart:
                return x, y
            deadline = self._late(number) + self.patience.deadline
            links = self.topology.links(number, self._there())
            parts = self._given(links.sent_by(me), float(y[0]), useless)
            own = {part: share(x[0], part) for part in set(parts.values())}
            mine = [(me, Parcel(number, own[parts[me]], parts[me] * float(y[0])))]
            to = {}
            for peer, part in parts.items():
                if peer != me:
                    to[peer] = Parcel(number, own[part], part * float(y[0]), scant=self._lacks)
                    if forged is not None and 0 in (false := forged(peer)):
                        to[peer] = to[peer]._replace(row=share(false[0], part), true=own[part])
            # Those who have room first: who is slow delays nobody else's share.
            left = {self.links[peer]: parcel for peer, parcel in to.items() if not self.links[peer].put(parcel)}
            self._hold(lambda: [one for one in left if one.full and one.exchanges and not one.slow], number, deadline)
            for link, parcel in left.items():
                if not link.put(parcel):
                    mine.append((me, parcel.kept))
                    self.here.counts["kept"] += 1
            senders = [self.links[peer] for peer in links.heard_by(me) if peer != me]
            if self._wait(lambda: [link for link in senders if not link.inbox.has(number)], number, deadline):
                self._lacks = True
            refused[0, [link.number for link in senders if link.inbox.refused(number)]] = True
            return self._added(x.shape[1], mine, number)

    def tell(
        self, number: int, tag: str, turn: int, vectors: F32, forged: Forged | None = None, final: Bools | None = None
    ) -> list[Received]:
        me, last = self.peers[0], bool(final is not None and final.all())
        with self.here.changed:
            self._enter(number)
            self.here.tells = True
            deadline = self._late(number) + self.patience.deadline
            if self._turn[1] not in ("", tag):
                self._done_with(self._turn[1])
            self._turn = (number, tag, turn)
            for peer, link in self.links.items():
                if self.here.apart:
                    break
                row = vectors[0] if forged is None else forged(peer).get(0, vectors[0])
                if link.there and not link.put(Parcel(number, row, word=Word(tag, turn, last))):
                    self.here.counts["kept"] += 1
            if last:
                self._done_with(tag)
                return [Received(np.empty(0, np.int64), vectors[:0])]
            links = list(self.links.values())

            def missing() -> list[Link]:
                spoiled = (number, tag, turn)
                return [one for one in links if one.inbox.said(*spoiled) is None and one.inbox.spoiled != spoiled]

            self._wait(missing, number, deadline)
            heard = {me: vectors[0]}
            for link in links:
                row = link.inbox.said(number, tag, turn)
                if row is not None:
                    heard[link.number] = row
                link.inbox.words = [one for one in link.inbox.words if not _heard(one, number, tag, turn)]
        senders = sorted(heard)
        return [Received(np.array(senders, np.int64), np.stack([heard[peer] for peer in senders]))]

    def counts(self) -> dict[str, list[int]]:
        with self.here.changed:
            found, self.here.counts = self.here.counts, type(self.here.counts)()
        return {name: [found[name]] for name in COUNTED}

    def reasons(self) -> dict[str, int]:
        with self.here.changed:
            return dict(self.here.reasons)

    # Within.

    def _there(self) -> list[int]:
        return sorted([self.peers[0], *(link.number for link in self.links.values() if link.exchanges)])

    def _greet_all(self) -> None:
        """What is new about this peer is said to the others at once."""
        for link in self.links.values():
            link.greet_soon()

    def _stand(self, number: int) -> None:
        """Tell the others whether this peer stands apart in a round, if it did not in the one before."""
        with self.here.changed:
            apart, self.here.apart = self.here.apart, math.isinf(self.after(number))
            if apart is not self.here.apart:
                self._greet_all()

    def _enter(self, number: int) -> None:
        """A round begins, or goes on; words of earlier ones are not heard any more."""
        if number > self.here.round:
            self.here.round = number
            self._stand(number)
        if self._turn[0] < number:
            self._turn, self._passed = (number, "", 0), set()
            for link in self.links.values():
                link.inbox.words = [one for one in link.inbox.words if one.round >= number]

    def _keep(self, link: Link, parcel: Parcel) -> bool:
        """Whether a word that came is still wanted; it is kept then."""
        assert parcel.word is not None
        number, tag, turn = self._turn
        if parcel.round < self.here.round or (parcel.round == number and parcel.word.tag in self._passed):
            return False
        if (parcel.round, parcel.word.tag) == (number, tag) and parcel.word.turn < turn and not parcel.word.final:
            return False
        link.inbox.words.append(parcel)
        return True

    def _done_with(self, tag: str) -> None:
        """Words of this tag are not listened to any more in this round; who is ahead tells them of the next one."""
        self._passed.add(tag)
        over = (self._turn[0], tag)
        for link in self.links.values():
            words = link.inbox.words
            link.inbox.words = [one for one in words if one.word is None or (one.round, one.word.tag) != over]

    def _given(self, parts: Mapping[int, float], y: float, useless: Collection[int]) -> dict[int, float]:
        """What goes to whom; nothing goes to those whose own cannot be used.

        Who has missed a share, or got a scant one, and has less than half of a peer's y since, gives away little of it,
        and ever less: behind a slow peer, where nothing comes, y would be halved in every round, and x / y make large
        steps of small ones.
        """
        self._lacks &= y < 0.5
        me, spare = self.peers[0], (2 * y) ** 4 if self._lacks else 1.0
        given = {peer: spare * part for peer, part in parts.items() if peer != me and peer not in useless}
        as_ever = spare == 1 and len(given) == len(parts) - 1
        return given | {me: parts[me] if as_ever else 1 - sum(given.values())}

    def _wait(self, missing: Callable[[], list[Link]], number: int, deadline: float) -> int:
        """Until nobody is missing of those who can be expected to send, or the deadline; how many were missed."""
        here = self.here
        here.due.setdefault(number, deadline)
        while len(here.due) > AHEAD:
            del here.due[min(here.due)]
        self._hold(lambda: [one for one in missing() if self._will_send(one, number)], number, deadline)
        missed = len(missing())
        here.counts["missed"] += missed
        return missed

    def _hold(self, lagging: Callable[[], list[Link]], number: int, deadline: float) -> None:
        """Wait until nobody lags, or the deadline. Half way to it tell the other peers, so that they do not wait along.

        Every second is charged to those who lag. A peer that has used up a deadline, in one round or in many, is not
        waited for again until something of it comes in time.
        """
        half = (time.monotonic() + deadline) / 2
        while (late := lagging()) and not self.stop() and (now := time.monotonic()) < deadline:
            if now >= half and self.here.held_up != number:
                self.here.held_up = number
                self._greet_all()
            self.here.changed.wait(min((half if now < half else deadline) - now, 0.5))
            for link in late:
                link.waited_for(time.monotonic() - now)
        if not self.stop():
            for link in late:
                link.slow = True

    def _wait_for_most(self) -> None:
        """Where more than half of the others are far behind it is this peer that is ahead, and waits a deadline."""
        lead = self._middle(lambda link: link.behind)
        if lead >= AHEAD and not self._ahead:
            self.here.say(f"{lead} rounds ahead of most others: waits for them before its next ones")
        self._ahead = lead >= AHEAD
        self._until(lambda: self._middle(lambda link: link.behind) < AHEAD, time.monotonic() + self.patience.deadline)

    def _ask_where_all_are(self) -> None:
        """Who does not answer at once was heard of a beat ago."""
        asked = time.monotonic()
        there = [link for link in self.links.values() if link.there]
        self._greet_all()
        self._until(lambda: all(link.heard > asked for link in there), asked + self.patience.beat)

    def _middle(self, of: Callable[[Link], int]) -> int:
        """The middle of the others, of those whom nobody waits for in vain; what a few pretend does not move it."""
        found = sorted(of(link) for link in self.links.values() if link.there and not (link.slow or link.waits))
        return found[(len(found) - 1) // 2] if found else 0

    def _late(self, number: int) -> float:
        """The time when what this peer has to say may go: now, unless it attacks by delay."""
        now, after = time.monotonic(), self.after(number)
        if 0 < after < math.inf:
            self._until(self.stop, now + after)
        return time.monotonic()

    def _will_send(self, link: Link, number: int) -> bool:
        """Whether something of this round can be expected of a peer, and soon."""
        near = abs(link.round - number) <= AHEAD
        # Who is held up in an earlier round comes late; but those who are held up together go on together.
        held_up = link.waits and link.held_up < number and link.held_up != self.here.held_up
        if not (link.exchanges and link.counts_us and near) or link.slow or held_up:
            return False
        # Who saw somebody come or go before we did may have gone on, and sent its share to another neighbour.
        return link.round <= number or link.number in self.topology.links(number, self._there()).heard_by(self.peers[0])

    def _until(self, true: Callable[[], bool], deadline: float) -> None:
        """Until something is true, or the deadline; a signal is noticed within half a second."""
        while not true() and (left := deadline - time.monotonic()) > 0:
            self.here.changed.wait(min(left, 0.5))

    def _added(self, width: int, mine: list[tuple[int, Parcel]], number: float) -> tuple[F32, F64]:
        """The sum of all that belongs to this peer now, in the order of the senders."""
        parcels = list(mine)
        for link in self.links.values():
            came = link.inbox.due(number)
            self.here.counts["late"] += sum(one.round < number for one in came)
            self._lacks |= any(one.scant for one in came)
            self.here.counts["returned"] += len(link.returned)
            parcels += [(link.number, one) for one in came]
            parcels += [(self.peers[0], one) for one in link.returned]
            link.returned = []
        total, weight = np.zeros(width), 0.0
        for _, parcel in sorted(parcels, key=lambda one: one[0]):
            total += parcel.row
            weight += parcel.weight
        for link in self.links.values():
            # What was used and must be given up; never so much that what is left says little.
            for one in list(link.inbox.owed):
                if one.weight <= weight / 2:
                    total -= one.row
                    weight -= one.weight
                    link.inbox.owed.remove(one)
        return total.astype(np.float32)[None], np.array([weight])

    def _read(self, link: Link) -> tuple[int, F32] | None:
        """What a peer has published: asked again while it looks who asks, or publishes something new meanwhile."""
        until = time.monotonic() + 3 * self.patience.beat
        found, status = None, pb.STATUS_UNKNOWN
        while found is None and status in (pb.STATUS_UNKNOWN, pb.STATUS_STALE, pb.STATUS_NOTHING):
            if time.monotonic() > until:
                return None
            try:
                found, status = self._read_once(link)
            except grpc.RpcError:
                return None
            if found is None:
                time.sleep(0.05)
        return found

    def _read_once(self, link: Link) -> tuple[tuple[int, F32] | None, pb.Status]:
        """Piece by piece."""
        row: F32 | None = None
        number, done = 0, 0
        while row is None or done < len(row):
            with self.here.changed:
                envelope = self.here.envelope(link.number, link.life)
            answer = link.stub.Ask(
                pb.Question(envelope=envelope, round=number, offset=done), timeout=self.patience.call
            )
            if answer.status != pb.STATUS_TAKEN:
                return None, answer.status
            # Nothing larger is taken than what this peer would publish itself.
            fits = answer.width == self.here.identity.width and answer.layout == self.here.identity.layout
            piece = np.frombuffer(answer.data[: len(answer.data) // 4 * 4], "<f4")
            whole = 0 < len(piece) <= answer.width - done and bool(np.isfinite(piece).all())
            if not fits or not whole or answer.offset != done:
                return None, self.here.refuse(pb.STATUS_WRONG_LAYOUT, link.number)
            if row is None:
                row, number = np.empty(answer.width, np.float32), answer.round
            row[done : done + len(piece)] = piece
            done += len(piece)
        return (number, row), pb.STATUS_TAKEN


def _heard(one: Parcel, number: int, tag: str, turn: int) -> bool:
    """Whether a word has been heard and is not needed again."""
    word = one.word
    return word is not None and (one.round, word.tag) == (number, tag) and word.turn <= turn and not word.final
