"""One agent that a node hosts: its connection to the SuperLink, and the runs that it takes part in."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flwr.app import Error, Message, RecordDict

from attacks.plan import Silence
from client.stop import Stop
from core.errors import Failure, Mistake
from flower.errors import Forgotten, RunOver, TooLarge, Unreachable
from flower.fleet import FAILED, WRONG_APP, NodeConnection, Tree
from flower.keys import Address, Key
from runs import digest
from strategies.messages import RefusedError

Flat = Mapping[str, bool | int | float | str]

PROBE_S = 2.0  # how often a node asks whether a silent run has ended
LINGER_S = 1.0  # from the last reply until the node leaves: the SuperLink drops the replies of a node that has left


class RunAgent(Protocol):
    """What a node needs of an agent in one run (``client.party.Party``). A Future is a reply that follows later."""

    def answer(self, message: Message) -> RecordDict | Future[RecordDict]: ...
    def save(self) -> None: ...
    def close(self) -> None: ...


class MakeAgent(Protocol):
    def __call__(self, number: int, flat: Flat, run: str, state: Path) -> RunAgent: ...


@dataclass
class Shared:
    """What all agents of a node share. ``say`` prints a line; ``app`` is the digest of the installed code."""

    address: Address
    make_agent: MakeAgent
    run_name: Callable[[Flat, int], str]
    state: Path
    say: Callable[[str], None]
    debug: bool
    app: str
    stop: Stop = field(default_factory=Stop)


@dataclass
class HostedRun:
    """A run as one agent sees it."""

    name: str
    flat: Flat
    refusal: str = ""
    agent: RunAgent | None = None
    last_seen: float = field(default_factory=time.monotonic)  # when the run was last known to be live
    unconfirmed: Message | None = None  # the last message; the SuperLink still keeps it


class HostedAgent:
    """An agent that a node hosts. Each agent is a node of its own for the SuperLink."""

    def __init__(self, number: int, key: Key | None, shared: Shared) -> None:
        self.number, self.shared = number, shared
        self.connection = NodeConnection(shared.address, key, shared.stop, shared.stop.wait)
        self.runs: dict[int, HostedRun] = {}  # by Flower's id
        self.is_busy = False  # a message is in progress
        self.replied = -LINGER_S  # when it sent its last reply
        self._pending: dict[Future[RecordDict], tuple[Message, float]] = {}  # replies that follow, and since when
        self._answering: RunAgent | None = None  # computes an answer: its state must not be saved now
        self._complaint = ""  # the last one, so that it is printed once and not in every round

    def look_after(self) -> bool:
        """Handle one message at most; return whether there was one."""
        try:
            if not self.connection.connected:
                self.connection.connect()
                self._say(f"agent {self.number} is node {self.connection.node_id} of {self.shared.address.superlink}")
            replied = self._send_pending()
            received = self.connection.receive()
            if received is None:
                self._probe()
                return replied
            self.is_busy = True
            self._handle(*received)
        except Forgotten:
            node = self.connection.node_id
            self._say(f"agent {self.number}: the SuperLink does not know node {node} any more; joining anew")
            self.forget(list(self.runs))
            self.connection.forget()
        except TooLarge:  # an announcement is small: no SuperLink sends one that is this large
            raise Unreachable("it answers with more than a node takes (--max-message-mb)") from None
        finally:
            self.is_busy = False
        return True

    def forget(self, run_ids: Sequence[int]) -> bool:
        """Save and close the agents of these runs; return whether all could be saved."""
        saved = True
        for run_id in run_ids:
            self._pending = {
                future: about for future, about in self._pending.items() if about[0].metadata.run_id != run_id
            }
            run = self.runs.pop(run_id, None)
            if run is None:
                continue
            ends = f"agent {self.number}: {run.name} ends"
            try:
                if run.agent is not None and run.agent is not self._answering:
                    run.agent.save()
                    run.agent.close()
                    ends += ", its state is saved"
            except Exception as error:
                saved, ends = False, f"{ends}, and its state could not be saved: {error}"
                if self.shared.debug:
                    traceback.print_exc()
            self._say(ends)
        return saved

    def _say(self, line: str) -> None:
        self.shared.say(line)

    # Messages.

    def _handle(self, message: Message, tree: Tree) -> None:
        begun, run_id = time.perf_counter(), message.metadata.run_id
        try:
            reply = self._reply(message, tree)
            if reply is not None:
                self._send(reply, begun)
            # The server may still be sending objects of this message that the node does not need. So the message is
            # confirmed only when the next one has arrived.
            if (run := self.runs.get(run_id)) is not None:
                before, run.unconfirmed = run.unconfirmed, message
                if before is not None:
                    self.connection.confirm(before)
        except RunOver:
            self.forget([run_id])
        else:
            if run_id in self.runs:
                self.runs[run_id].last_seen = time.monotonic()

    def _send(self, reply: Message, begun: float) -> None:
        if not self.connection.reply(reply, time.perf_counter() - begun):
            self._say(f"agent {self.number}: a reply was not taken, it came too late")
        self.replied = time.monotonic()

    def _send_pending(self) -> bool:
        """Send the replies that finished since the last call; return whether there were any."""
        done = [future for future in self._pending if future.done()]
        for future in done:
            message, begun = self._pending.pop(future)
            try:
                reply, self._complaint = Message(future.result(), reply_to=message), ""
            except Exception as error:
                reply = self._error_reply(message, error)
            try:
                self._send(reply, begun)
            except RunOver:
                self.forget([message.metadata.run_id])
        return bool(done)

    def _reply(self, message: Message, tree: Tree) -> Message | None:
        """Return the agent's reply, or an error reply; None if the reply follows later, or never."""
        try:
            run = self._run(message.metadata.run_id)
            if run.refusal:
                return self._refusal(message, run.refusal, WRONG_APP)
            return self._answer(run, self.connection.fetch(message, tree))
        except (Unreachable, Forgotten, RunOver):
            raise
        except Silence:
            reply = None
        except TooLarge:
            size = self.shared.address.max_bytes >> 20
            reply = self._refusal(message, f"the message is larger than {size} MB, this node's --max-message-mb")
        except Exception as error:
            reply = self._error_reply(message, error)
        self._answering = None
        return reply

    def _answer(self, run: HostedRun, message: Message) -> Message | None:
        """Return the reply to a message; None if it follows later."""
        agent = run.agent or self._open(run)
        self._answering = agent
        content = agent.answer(message)
        self._answering = None
        self._complaint = ""
        if isinstance(content, Future):
            self._pending[content] = message, time.perf_counter()
            content.add_done_callback(lambda _: self.shared.stop.wake())
            return None
        return Message(content, reply_to=message)

    def _error_reply(self, message: Message, error: Exception) -> Message:
        is_expected = isinstance(error, Mistake | Failure | RefusedError)
        if self.shared.debug and not is_expected:
            traceback.print_exception(error)
        reason = str(error) if is_expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
        return self._refusal(message, reason)

    def _refusal(self, message: Message, reason: str, code: int = FAILED) -> Message:
        """Return an error reply of one sentence. A repeated reason is printed once."""
        if reason != self._complaint:
            self._say(f"agent {self.number}: {reason}")
            self._complaint = reason
        return Message(Error(code, reason[:1000]), reply_to=message)

    # Runs.

    def _run(self, run_id: int) -> HostedRun:
        """Return a run. It is fetched from the SuperLink with its first message."""
        if run_id not in self.runs:
            described = self.connection.run(run_id)
            app = self.connection.app(described)
            carried, installed = digest.of_bundle(app.content), self.shared.app
            if carried == installed:
                flat = self.connection.config(app, described)
                run = HostedRun(self.shared.run_name(flat, run_id), flat)
                self._say(f"agent {self.number}: {run.name} begins (Flower's run {run_id})")
            else:
                both = f"this node runs app {installed[:12]}, the run carries {carried[:12]}"
                run = HostedRun(f"run {run_id}", {}, f"{both}: install the same code on both, and restart the node")
            self.runs[run_id] = run
        return self.runs[run_id]

    def _open(self, run: HostedRun) -> RunAgent:
        # A resumed run keeps its name under another id: its former state must be on disk first. And an agent that other
        # nodes reach has one port: a run that is over must release it.
        others = [(run_id, other) for run_id, other in self.runs.items() if other is not run]
        over = [run_id for run_id, other in others if other.name == run.name or self.connection.is_over(run_id)]
        self.forget(over)
        run.agent = self.shared.make_agent(self.number, run.flat, run.name, self.shared.state)
        return run.agent

    def _probe(self) -> None:
        """Forget the silent runs that have ended."""
        for run_id, run in list(self.runs.items()):
            if time.monotonic() - run.last_seen > PROBE_S:
                run.last_seen = time.monotonic()
                if self.connection.is_over(run_id):
                    self.forget([run_id])
