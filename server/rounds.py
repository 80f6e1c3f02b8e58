"""The rounds of a federation: who is there, who is asked, whose answers count, and for how long to wait.

A party may be slow, gone, back under another name, or wrong. So every wait has an end, every answer is checked when it
comes, and what does not count has a name: ``late``, ``missed``, or the reason of a refusal.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from agents.report import Bounds
from core.errors import Failure, Mistake
from core.streams import sampling
from runs import digest
from runs.ledger import Ledger
from strategies import messages
from strategies.federation import Federation, FederationConfig
from strategies.messages import RefusedError, Trained

Answer = TypeVar("Answer")


class QuorumError(Failure):
    """Too few agents answered for too long."""


class Interrupted(Exception):
    """Somebody asked to stop while the round was waiting."""


class _Letter(NamedTuple):
    """A message that is on its way."""

    number: int
    kind: str
    agent: int
    node: int
    sent: float


@dataclass
class Health:
    """How reliable an agent has been: what a resumed run must still know."""

    strikes: Counter[int] = field(default_factory=Counter)
    back_at: dict[int, int] = field(default_factory=dict)

    def failed(self, agent: int, number: int, config: FederationConfig) -> bool:
        """One more round missed or spoiled; true when the agent is left out from now on."""
        self.strikes[agent] += 1
        if self.strikes[agent] < config.patience or not config.leave_out:
            return False
        self.back_at[agent] = number + config.leave_out + 1
        # Once back, one more failure is enough.
        self.strikes[agent] = config.patience - 1
        return True

    def left_out(self, number: int) -> set[int]:
        return {agent for agent, back in self.back_at.items() if number < back}

    def forgive(self, agent: int) -> None:
        self.strikes.pop(agent, None)
        self.back_at.pop(agent, None)

    def saved(self) -> dict[str, list[tuple[int, int]]]:
        return {"strikes": list(self.strikes.items()), "back_at": list(self.back_at.items())}

    def load(self, saved: Mapping[str, Any]) -> None:
        self.strikes, self.back_at = Counter(dict(saved["strikes"])), dict(saved["back_at"])


class Rounds:
    """One federation on one grid, round after round."""

    def __init__(
        self,
        grid: Grid,
        strategy: Federation,
        config: FederationConfig,
        seed: int,
        ledger: Ledger,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda words: None,
        bounds: Callable[[int, bool], Bounds] | None = None,
    ) -> None:
        """``stop`` says whether somebody wants an end, ``say`` is told what people should know.

        ``bounds`` says what so much work can take of an agent that trains, or measures a gradient (``Fleet.bounds``).
        Without it the work that agents report is not checked.
        """
        self.grid, self.strategy, self.config, self.seed = grid, strategy, config, seed
        self.ledger, self.stop, self.say, self.bounds = ledger, stop, say, bounds
        self.app = digest.installed()
        self.health = Health()
        self._open: dict[str, _Letter] = {}
        # Seconds after which the answers of the last exchange of a kind came, had its work been of the usual length.
        self._usual: dict[str, list[float]] = {}
        self._asked_who: set[int] = set()
        self._misfits: dict[int, Mistake] = {}  # nodes that can have no part, and why
        self._met: dict[int, int] = {}  # agents that were here, if only once, and at which node they were last
        self._looked, self._asked_again = -math.inf, time.monotonic()

    def gather_parties(self) -> None:
        """Before the first round: wait for all agents, then for as many as a quorum needs."""
        begun, told = time.monotonic(), False
        while len(self.members) < self.strategy.agents:
            self._look()
            for letter, reply in self._arrived():
                self._sort(letter, reply, 0)
            if len(self._misfits) >= self.strategy.agents:
                raise next(iter(self._misfits.values()))
            waited = time.monotonic() - begun
            missing = self._words(set(range(self.strategy.agents)) - set(self.members))
            if waited > self.config.wait_s:
                if len(self.members) >= self._quorum(self.strategy.agents):
                    self.say(f"after {self.config.wait_s:g} s the run begins without {missing}")
                    return
                if waited > self.config.wait_s + self.config.give_up_s:
                    raise QuorumError(f"no quorum within {waited:.0f} s: {missing} did not come")
            if waited > 2 and not told:
                self.say(f"waiting for {missing}")
                told = True
            if self.stop():
                raise Interrupted
            time.sleep(_pause(waited))

    def round(self, number: int, extra: Mapping[str, Any], judge: bool) -> dict[str, Any]:
        """One round: train, combine, judge; returns its record."""
        ledger, strategy = self.ledger, self.strategy
        ledger.begin(number)
        self._look()
        asked = self._chosen(number)
        got = self._gather(
            number, MessageType.TRAIN, asked, lambda agents: strategy.orders(number, agents, extra), strategy.read
        )
        ledger.trained(got)
        with ledger.timing("aggregating_s"):
            notes = strategy.aggregate(number, [got[agent] for agent in sorted(got)])
        ledger.note(notes)
        if judge:
            with ledger.timing("judging_s"):
                judged = self._gather(
                    number, MessageType.EVALUATE, asked, lambda agents: strategy.evaluation_orders(number, agents),
                    messages.evaluated,
                )  # fmt: skip
            ledger.judged(judged)
        return ledger.end()

    @property
    def members(self) -> dict[int, int]:
        return self.strategy.members

    def _chosen(self, number: int) -> list[int]:
        """The agents of this round: a share drawn from the run's seed, without those that fail often."""
        agents = self.strategy.agents
        count = self.config.asked(agents)
        everybody = list(range(agents))
        if count < agents:
            drawn = sampling(self.seed, number).choice(agents, count, replace=False)
            everybody = sorted(int(agent) for agent in drawn)
        out = self.health.left_out(number) & set(everybody)
        if len(everybody) - len(out) < self._quorum(len(everybody)):
            out = set()  # better an unreliable agent than no quorum
        self.ledger.left_out(out)
        return [agent for agent in everybody if agent not in out]

    def _quorum(self, asked: int) -> int:
        return max(1, math.ceil(self.config.quorum * asked - 1e-9))

    def _gather(
        self,
        number: int,
        kind: str,
        asked: Sequence[int],
        contents: Callable[[Sequence[int]], Mapping[int, RecordDict]],
        read: Callable[[Message], Answer],
    ) -> dict[int, Answer]:
        """Ask these agents; returns the answers that count, by agent."""
        ledger, training = self.ledger, kind == MessageType.TRAIN
        with ledger.timing("serialising_s"):
            letters = contents(asked)
            self._post(number, kind, {agent: letters[agent] for agent in asked if agent in self.members})
        got: dict[int, Answer] = {}
        spoiled: set[int] = set()
        posted = set(self._expected(number, kind))
        # Judging needs no quorum: a round whose learning is done is not thrown away for want of a figure.
        quorum = self._quorum(len(asked)) if training else 0
        begun, told = time.monotonic(), False
        length = self.strategy.length(number) if training else 1.0
        due, came = [seconds * length for seconds in self._usual.get(kind, ())], list[float]()
        while True:
            asked_at = time.monotonic()
            for letter, reply in self._arrived():
                if (letter.number, letter.kind) != (number, kind):
                    back = self._sort(letter, reply, number)
                    if back is not None and back in letters and back not in got:
                        self._post(number, kind, {back: letters[back]})
                        posted.add(back)
                    continue
                try:
                    if letter.agent in got:
                        raise RefusedError("duplicate", "it has already answered from another node")
                    with ledger.timing("serialising_s"):
                        found = self._checked(letter, reply, read)
                    if isinstance(found, Trained):
                        self._check_work(found, messages.entries(letters[letter.agent]))
                    got[letter.agent] = found
                    came.append(asked_at - begun)  # when we asked: fetching what has come takes its own time
                except RefusedError as error:
                    spoiled.add(letter.agent)
                    self._refuse(letter.agent, error)
            waited = time.monotonic() - begun
            if len(got) >= quorum and (waited > self.config.deadline_s or not self._expected(number, kind)):
                break
            missing = self._words(set(asked) - got.keys())
            if waited > max(self.config.give_up_s, self.config.deadline_s):
                raise QuorumError(
                    f"round {number} has {len(got)} of the {quorum} answers that it needs after {waited:.0f} s: "
                    f"no valid answer from {missing}"
                )
            if waited > self.config.deadline_s and not told:
                self.say(f"round {number}: {len(got)} of {quorum} needed answers; waiting for {missing}")
                told = True
            if self.stop() and waited > min(self.config.deadline_s, _STOP_S):
                raise Interrupted
            self._look()
            with ledger.timing("waiting_s"):
                time.sleep(_pause(waited, due[len(got)] if len(got) < len(due) else 0.0, first=not got))
        if length:
            self._usual[kind] = [seconds / length for seconds in came]
        if training:
            self._settle_accounts(number, asked, posted, got.keys(), spoiled)
        return got

    def _expected(self, number: int, kind: str) -> list[int]:
        """The agents that still owe an answer and have a node that may give it."""
        return [
            letter.agent
            for letter in self._open.values()
            if (letter.number, letter.kind) == (number, kind) and self.members.get(letter.agent) == letter.node
        ]

    def _settle_accounts(
        self, number: int, asked: Sequence[int], posted: set[int], got: Any, spoiled: set[int]
    ) -> None:
        for agent in asked:
            if agent in got:
                self.health.forgive(agent)
                continue
            if agent not in spoiled:
                self.ledger.count("missed", agent)
            if agent in posted and self.health.failed(agent, number, self.config):
                self.say(f"agent {agent} failed too often: left out until round {self.health.back_at[agent]}")

    def _post(self, number: int, kind: str, contents: Mapping[int, RecordDict]) -> None:
        """Send each agent its message."""
        now = time.monotonic()
        agents = list(contents)
        # A node that comes too late for it should not even begin.
        lifetime = max(self.config.give_up_s, self.config.deadline_s) + 60
        sent = [Message(contents[agent], self.members[agent], kind, ttl=lifetime) for agent in agents]
        for agent, name in zip(agents, self.grid.push_messages(sent) if sent else (), strict=True):
            if name:
                self._open[name] = _Letter(number, kind, agent, self.members[agent], now)
        self.ledger.sent(kind, contents)

    def _arrived(self) -> list[tuple[_Letter, Message]]:
        """The replies that have come, whatever they answer."""
        if not self._open:
            return []
        with self.ledger.timing("waiting_s"):
            replies = list(self.grid.pull_messages(list(self._open)))
        found = [(self._open.pop(reply.metadata.reply_to_message_id, None), reply) for reply in replies]
        # What nobody asked for any more is dropped, so that the list of open letters stays short.
        oldest = time.monotonic() - 2 * (self.config.give_up_s + self.config.deadline_s)
        for name in [name for name, letter in self._open.items() if letter.sent < oldest]:
            del self._open[name]
        return [(letter, reply) for letter, reply in found if letter is not None]

    def _sort(self, letter: _Letter, reply: Message, number: int) -> int | None:
        """A reply that is not of the exchange in progress; returns the agent if it is one that has just come."""
        if letter.kind != MessageType.QUERY:
            if not reply.has_error():
                self.ledger.count("late", letter.agent)
            return None
        try:
            who = messages.described(reply)
            if not 0 <= who.agent < self.strategy.agents:
                raise RefusedError("unknown-agent", f"a node says it is agent {who.agent}")
            if who.layout != self.strategy.layout:
                raise RefusedError(
                    "wrong-layout",
                    f"agent {who.agent} has the layout {who.layout:012x}, not {self.strategy.layout:012x}",
                )
            if who.app != self.app:
                raise RefusedError("wrong-app", f"agent {who.agent} runs the code {who.app}, the server {self.app}")
            if self.members.get(who.agent) == letter.node:
                return None  # it was asked twice
            self._seat_is_free(who.agent, letter.node)
            self._admit(who, letter.node)
        except RefusedError as error:
            self.say(f"a node was refused ({error.reason}): {error}")
            self.ledger.reasons[error.reason] += 1
            return None
        if (before := self._met.get(who.agent)) is not None:
            self.say(f"agent {who.agent} is back{', at another node' if before != letter.node else ''}")
        elif number:
            self.say(f"agent {who.agent} has joined")
        self._met[who.agent] = letter.node
        self._misfits.pop(letter.node, None)
        self.members[who.agent] = letter.node
        self.health.forgive(who.agent)
        return who.agent

    def _seat_is_free(self, agent: int, node: int) -> None:
        """A node speaks for one agent, and an agent's node is the one that came first, until the SuperLink drops it.

        That it owes an answer frees no seat: whoever learns for a minute does, and would lose it to any node that asks.
        """
        if agent in self.members:
            raise RefusedError("taken", f"another node is agent {agent}, and is there")
        if node in self.members.values():
            (other,) = (other for other, its in self.members.items() if its == node)
            raise RefusedError("taken", f"the node of agent {other} says it is agent {agent} as well")

    def _admit(self, who: messages.Described, node: int) -> None:
        """What cannot be is the affair of the one who comes; of as many nodes as there are agents it is a mistake."""
        try:
            self.strategy.admit(who)
        except Mistake as mistake:
            self._misfits[node] = mistake
            raise RefusedError("no-part", str(mistake)) from None

    def _checked(self, letter: _Letter, reply: Message, read: Callable[[Message], Answer]) -> Answer:
        found = read(reply)
        agent = found.agent  # type: ignore[attr-defined]
        if agent != letter.agent:
            raise RefusedError("wrong-agent", f"agent {letter.agent} answers in the name of agent {agent}")
        return found

    def _check_work(self, found: Trained, order: Mapping[str, Any]) -> None:
        """Refuse steps and updates that the order cannot have taken: they end a run by steps, and weigh in a mean."""
        if self.bounds is None:
            return
        fewest, most, updates = self.bounds(order["work"], order["exchange"] == "gradients")
        if not fewest <= found.steps <= most or found.updates > updates:
            steps = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
            raise RefusedError(
                "impossible-work",
                f"agent {found.agent} reports {found.steps:,} steps and {found.updates:,} updates; its order takes "
                f"{steps} steps and at most {updates:,} updates",
            )

    def _refuse(self, agent: int, error: RefusedError) -> None:
        self.ledger.refuse(agent, error.reason)
        self.say(f"an answer of agent {agent} was refused ({error.reason}): {error}")

    def _look(self) -> None:
        """See who is there; ask who is new which agent it is. Not more often than every second."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        nodes = set(self.grid.get_node_ids())
        gone = [agent for agent, node in self.members.items() if node not in nodes]
        for agent in gone:
            self.say(f"agent {agent} is gone")
            del self.members[agent]
        if gone or now - self._asked_again > _ASK_AGAIN_S:
            # Who was refused, or has not answered, may have been mended since, or may find its seat free now.
            self._asked_again = now
            self._asked_who &= set(self.members.values())
        new = sorted(nodes - self._asked_who)
        self._asked_who = nodes
        letters = [Message(RecordDict(), node, MessageType.QUERY, ttl=3600.0) for node in new]
        for node, name in zip(new, self.grid.push_messages(letters) if letters else (), strict=True):
            if name:
                self._open[name] = _Letter(0, MessageType.QUERY, -1, node, now)

    @staticmethod
    def _words(agents: set[int]) -> str:
        return ("agent " if len(agents) == 1 else "agents ") + ", ".join(map(str, sorted(agents)))


# Seconds between looks at who is there, between questions to those who are nobody yet, and that a round in progress is
# given when somebody asks to stop.
_LOOK_S, _ASK_AGAIN_S, _STOP_S = 1.0, 30.0, 10.0


def _pause(waited: float, due: float = 0.0, first: bool = True) -> float:
    """Until the next answer, so far as the last exchange tells when it is due; 5 ms to 50 ms.

    Each look costs a SuperLink milliseconds that the nodes are waiting for: none is made long before the first answer,
    and fewer the further the next one is from when it was due.
    """
    if first and waited < 0.75 * due - 0.005:
        return min(0.75 * due - waited, 0.5)
    return min(max((due - waited) / 2, (waited - due) / 10, 0.005), 0.05)
