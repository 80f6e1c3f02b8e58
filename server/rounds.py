"""The rounds of a federation: which agents are asked, which replies are accepted, and how long a round waits.

An agent may be slow, gone, back at another node, or wrong. So every wait has an end, and every reply is checked when it
arrives. A reply that is not accepted is counted by name: ``late``, ``missed``, or the reason of the refusal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from agents.report import Bounds
from core.errors import Failure
from core.streams import sampling
from runs.ledger import Ledger
from server.exchange import Exchange, named, pause
from server.health import Health
from server.mailbox import Mailbox, Request
from server.membership import Membership
from strategies import messages
from strategies.federation import Federation, FederationConfig
from strategies.messages import RefusedError, Trained

Answer = TypeVar("Answer")
STOP_S = 10.0  # the most seconds that a round in progress still gets after a stop request


class QuorumError(Failure):
    """Too few agents replied for too long."""


class Interrupted(Exception):
    """A stop was requested while the round was waiting."""


class Rounds:
    """The rounds of one federation on one grid."""

    def __init__(
        self,
        grid: Grid,
        strategy: Federation,
        config: FederationConfig,
        seed: int,
        ledger: Ledger,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
        bounds: Callable[[int, bool], Bounds] | None = None,
    ) -> None:
        """``stop`` returns whether a stop was requested; ``say`` prints a line.

        ``bounds`` returns the least and the most that an order can take (``Fleet.bounds``). Without it the steps and
        updates that agents report are not checked.
        """
        self.strategy, self.config, self.seed = strategy, config, seed
        self.ledger, self.stop, self.say, self.bounds = ledger, stop, say, bounds
        self.health = Health()
        self.mailbox = Mailbox(grid, ledger)
        self.membership = Membership(strategy, self.mailbox, ledger, say)
        # Arrivals of the replies of the last exchange of a kind, scaled to work of the usual length.
        self._usual: dict[str, list[float]] = {}

    @property
    def members(self) -> dict[int, int]:
        """The node of every agent that is there."""
        return self.strategy.members

    def gather_parties(self) -> None:
        """Wait for all agents before the first round; after ``wait-s`` for a quorum of them."""
        begun, warned = time.monotonic(), False
        while len(self.members) < self.strategy.agents:
            self.membership.look()
            for request, reply in self._received():
                self._sort(request, reply, 0)
            if len(self.membership.misfits) >= self.strategy.agents:
                raise next(iter(self.membership.misfits.values()))
            waited = time.monotonic() - begun
            missing = named(set(range(self.strategy.agents)) - set(self.members))
            if waited > self.config.wait_s:
                if len(self.members) >= self._quorum(self.strategy.agents):
                    self.say(f"after {self.config.wait_s:g} s the run begins without {missing}")
                    return
                if waited > self.config.wait_s + self.config.give_up_s:
                    raise QuorumError(f"no quorum within {waited:.0f} s: {missing} did not come")
            if waited > 2 and not warned:
                self.say(f"waiting for {missing}")
                warned = True
            if self.stop():
                raise Interrupted
            time.sleep(pause(waited))

    def round(self, number: int, extra: Mapping[str, Any], judge: bool) -> dict[str, Any]:
        """Train, aggregate, evaluate if ``judge``; return the record of the round."""
        ledger, strategy = self.ledger, self.strategy
        ledger.begin(number)
        self.membership.look()
        asked = self._sampled(number)
        trained = self._gather(
            number, MessageType.TRAIN, asked, lambda agents: strategy.orders(number, agents, extra), strategy.read
        )
        ledger.trained(trained)
        with ledger.timing("aggregating_s"):
            notes = strategy.aggregate(number, [trained[agent] for agent in sorted(trained)])
        ledger.note(notes)
        if judge:
            with ledger.timing("judging_s"):
                evaluated = self._gather(
                    number, MessageType.EVALUATE, asked, lambda agents: strategy.evaluation_orders(number, agents),
                    messages.evaluated,
                )  # fmt: skip
            ledger.judged(evaluated)
        return ledger.end()

    def _sampled(self, number: int) -> list[int]:
        """Return the agents of this round: a share drawn from the run's seed, without those that fail often."""
        agents = self.strategy.agents
        count = self.config.asked(agents)
        sample = list(range(agents))
        if count < agents:
            drawn = sampling(self.seed, number).choice(agents, count, replace=False)
            sample = sorted(int(agent) for agent in drawn)
        out = self.health.left_out(number) & set(sample)
        if len(sample) - len(out) < self._quorum(len(sample)):
            out = set()  # an unreliable agent is better than no quorum
        self.ledger.left_out(out)
        return [agent for agent in sample if agent not in out]

    def _quorum(self, asked: int) -> int:
        return max(1, math.ceil(self.config.quorum * asked - 1e-9))

    # One exchange.

    def _gather(
        self,
        number: int,
        kind: str,
        asked: Sequence[int],
        make: Callable[[Sequence[int]], Mapping[int, RecordDict]],
        read: Callable[[Message], Answer],
    ) -> dict[int, Answer]:
        """Send these agents a request, and wait for the replies; return the accepted replies by agent."""
        with self.ledger.timing("serialising_s"):
            contents = make(asked)
            self._send(number, kind, {agent: contents[agent] for agent in asked if agent in self.members})
        owing = set(self.mailbox.owing(number, kind, self.members))
        is_training = kind == MessageType.TRAIN
        quorum = self._quorum(len(asked)) if is_training else 0
        exchange = Exchange(number, kind, asked, contents, read, quorum, owing, time.monotonic())
        length = self.strategy.length(number) if is_training else 1.0
        self._wait(exchange, [seconds * length for seconds in self._usual.get(kind, ())])
        if length:
            self._usual[kind] = [seconds / length for seconds in exchange.arrivals]
        if is_training:
            self._update_health(exchange)
        return exchange.replies

    def _wait(self, exchange: Exchange[Any], due: Sequence[float]) -> None:
        """Receive replies until all have arrived, or the deadline has passed with a quorum."""
        deadline_s, warned = self.config.deadline_s, False
        while True:
            self._receive(exchange)
            waited = time.monotonic() - exchange.begun
            is_over = waited > deadline_s or not self.mailbox.owing(exchange.number, exchange.kind, self.members)
            if exchange.has_quorum and is_over:
                return
            missing, count = named(exchange.missing), len(exchange.replies)
            if waited > max(self.config.give_up_s, deadline_s):
                raise QuorumError(
                    f"round {exchange.number} has {count} of the {exchange.quorum} answers that it needs after "
                    f"{waited:.0f} s: no valid answer from {missing}"
                )
            if waited > deadline_s and not warned:
                self.say(f"round {exchange.number}: {count} of {exchange.quorum} needed answers; waiting for {missing}")
                warned = True
            if self.stop() and waited > min(deadline_s, STOP_S):
                raise Interrupted
            self.membership.look()
            with self.ledger.timing("waiting_s"):
                time.sleep(exchange.pause(waited, due))

    def _receive(self, exchange: Exchange[Any]) -> None:
        """Accept or refuse the replies that have arrived. An agent that has just joined is sent its request."""
        # The arrival is the time of the poll: fetching the replies takes time of its own.
        arrival = time.monotonic() - exchange.begun
        for request, reply in self._received():
            if (request.number, request.kind) != (exchange.number, exchange.kind):
                joined = self._sort(request, reply, exchange.number)
                if joined is not None and joined in exchange.contents and joined not in exchange.replies:
                    self._send(exchange.number, exchange.kind, {joined: exchange.contents[joined]})
                    exchange.sent_to.add(joined)
                continue
            try:
                if request.agent in exchange.replies:
                    raise RefusedError("duplicate", "it has already answered from another node")
                with self.ledger.timing("serialising_s"):
                    answer = self._checked(request, reply, exchange.read)
                if isinstance(answer, Trained):
                    self._check_work(answer, messages.entries(exchange.contents[request.agent]))
                exchange.replies[request.agent] = answer
                exchange.arrivals.append(arrival)
            except RefusedError as error:
                exchange.spoiled.add(request.agent)
                self.ledger.refuse(request.agent, error.reason)
                self.say(f"an answer of agent {request.agent} was refused ({error.reason}): {error}")

    def _sort(self, request: Request, reply: Message, number: int) -> int | None:
        """Handle a reply of another exchange; return the agent if it has just joined."""
        if request.kind != MessageType.QUERY:
            if not reply.has_error():
                self.ledger.count("late", request.agent)
            return None
        agent = self.membership.register(request.node, reply, number)
        if agent is not None:
            self.health.forgive(agent)
        return agent

    def _send(self, number: int, kind: str, contents: Mapping[int, RecordDict]) -> None:
        # A node that receives an expired request does not begin it.
        lifetime = max(self.config.give_up_s, self.config.deadline_s) + 60
        self.mailbox.send(number, kind, contents, self.members, lifetime)

    def _received(self) -> list[tuple[Request, Message]]:
        return self.mailbox.receive(2 * (self.config.give_up_s + self.config.deadline_s))

    def _update_health(self, exchange: Exchange[Any]) -> None:
        """Count the agents without an accepted reply as missed or failed, and forgive the others."""
        for agent in exchange.asked:
            if agent in exchange.replies:
                self.health.forgive(agent)
                continue
            if agent not in exchange.spoiled:
                self.ledger.count("missed", agent)
            if agent in exchange.sent_to and self.health.failed(agent, exchange.number, self.config):
                self.say(f"agent {agent} failed too often: left out until round {self.health.back_at[agent]}")

    # Checks of replies.

    def _checked(self, request: Request, reply: Message, read: Callable[[Message], Any]) -> Any:
        """Read a reply; refuse one in the name of another agent."""
        answer = read(reply)
        if answer.agent != request.agent:
            raise RefusedError("wrong-agent", f"agent {request.agent} answers in the name of agent {answer.agent}")
        return answer

    def _check_work(self, answer: Trained, order: Mapping[str, Any]) -> None:
        """Refuse impossible steps and updates: steps can end a run, updates are weights in a mean."""
        if self.bounds is None:
            return
        fewest, most, updates = self.bounds(order["work"], order["exchange"] == "gradients")
        if not fewest <= answer.steps <= most or answer.updates > updates:
            steps = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
            raise RefusedError(
                "impossible-work",
                f"agent {answer.agent} reports {answer.steps:,} steps and {answer.updates:,} updates; its order takes "
                f"{steps} steps and at most {updates:,} updates",
            )
