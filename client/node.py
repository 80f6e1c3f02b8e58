"""The long-lived node: agents that stay in memory, and serve a SuperLink for as many runs as come.

One loop looks after every agent in turn: ask the SuperLink for a message, answer it, send the reply. One agent learns
at a time. A second thread only shows the SuperLink that the node lives, also while an agent learns for minutes.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Protocol

from flwr.app import Error, Message, RecordDict

from attacks.plan import Silence
from core.errors import Failure, Mistake
from flower.errors import Forgotten, RunOver, TooLarge, Unreachable
from flower.fleet import FAILED, HEARTBEAT_S, WRONG_APP, NodeConnection, Tree
from flower.keys import Address, Key
from runs import digest
from strategies.messages import RefusedError

Flat = Mapping[str, bool | int | float | str]

FAST_S = 0.005  # the shortest pause between two questions
SHARE = 0.1  # a pause is this share of the silence so far: a question costs the SuperLink as much as an object
EARLY = 0.75  # rounds are alike: nothing is to be expected before this share of the shortest of the last few silences
LIVE_S = 0.25  # the longest pause while a run is live
IDLE_S = 2.0  # and while none is
PROBE_S = 2.0  # how often a silent run is asked whether it has ended
LINGER_S = 1.0  # from a reply until we leave: of a node that is gone the SuperLink hands out none
AGAIN_S = 2.0  # the longest pause between two tries to reach a SuperLink


class Party(Protocol):
    """One agent in one run, as client/party.py has it; gossip/member.py answers some messages later."""

    def answer(self, message: Message) -> RecordDict | Future[RecordDict]: ...
    def save(self) -> None: ...
    def close(self) -> None: ...


class MakeParty(Protocol):
    def __call__(self, number: int, flat: Flat, run: str, state: Path) -> Party: ...


@dataclass
class Run:
    """A run as one agent knows it."""

    name: str
    flat: Flat
    refused: str = ""
    party: Party | None = None
    heard: float = field(default_factory=time.monotonic)  # when it was last known to live
    last: Message | None = None  # what the SuperLink still keeps for us


@dataclass
class Agent:
    """An agent that this node hosts: its place on the SuperLink, and its runs by Flower's number."""

    number: int
    link: NodeConnection
    runs: dict[int, Run] = field(default_factory=dict)
    later: dict[Future[RecordDict], tuple[Message, float]] = field(
        default_factory=dict
    )  # to be answered, and since when
    said: str = ""  # the last complaint, so that a thousand rounds do not repeat it


class Stop:
    """Set by a signal, waited for with a deadline. An Event is neither: a handler may find its lock taken."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self.asked = False

    def set(self) -> None:
        self.asked = True
        self.wake()

    def wake(self) -> None:
        """Whoever waits looks again, once."""
        os.write(self._in, b"!")

    def wait(self, seconds: float) -> None:
        woken, _, _ = select.select([self._out], [], [], seconds)
        if woken and not self.asked:
            with suppress(BlockingIOError):  # another thread was woken as well
                os.read(self._out, 4096)
            if self.asked:
                self.wake()

    def __call__(self) -> bool:
        return self.asked


class _GraceOver(BaseException):
    """The message in progress took too long for a node that is asked to leave."""


class Node:
    """Hosts agents until it is told to stop. ``say`` takes a line for people."""

    def __init__(
        self,
        address: Address,
        agents: Sequence[int],
        make_party: MakeParty,
        run_name: Callable[[Flat, int], str],
        state: Path,
        keys: Sequence[Key] = (),
        *,
        give_up: float = 0.0,
        grace: float = 5.0,
        alive: Path | None = None,
        say: Callable[[str], None] = print,
        debug: bool = False,
    ) -> None:
        if keys and len(keys) != len(agents):
            raise Mistake(
                f"--key needs one key per agent, as each is a node of its own: {len(agents)}, not {len(keys)}"
            )
        self.address, self.make_party, self.run_name, self.state = address, make_party, run_name, state
        self.give_up, self.grace, self.say, self.debug = give_up, grace, say, debug
        self.alive = alive
        self.stop = Stop()
        self.app = digest.installed()
        self.agents = [
            Agent(number, NodeConnection(address, key, self.stop, self.stop.wait))
            for number, key in zip_longest(agents, keys)
        ]
        self._busy: Agent | None = None  # whose message is in progress
        self._answering: Party | None = None  # who is between two states, not fit to be saved
        self._silent_since: float | None = None
        self._replied = -LINGER_S  # when it last sent a reply

    def serve(self) -> None:
        """Until SIGTERM or SIGINT; a Failure if it can never work, or the SuperLink stays away for too long."""
        self.say(f"app {self.app[:12]}, agents {', '.join(str(agent.number) for agent in self.agents)}")
        with self._signals():
            threading.Thread(target=self._live, name="heartbeats", daemon=True).start()
            try:
                self._loop()
            except _GraceOver as late:
                self.say(f"agent {late}: the message in progress took longer than {self.grace:g} s and was dropped")
            finally:
                self.stop.set()
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._leave()

    # The loop.

    def _loop(self) -> None:
        heard, silences, tries = time.monotonic(), deque([0.0] * 4, maxlen=4), 0
        while not self.stop():
            asked = time.monotonic()
            try:
                busy = [self._look_after(agent) for agent in self.agents if not self.stop()]
            except Unreachable as error:
                self._unreachable(str(error))
                tries += 1
                self.stop.wait(min(0.1 * 2 ** min(tries, 10), AGAIN_S))
                continue
            tries = 0
            self._reached()
            if any(busy):
                silences.append(asked - heard)
                heard = time.monotonic()
            quiet = time.monotonic() - heard
            longest = LIVE_S if any(agent.runs for agent in self.agents) else IDLE_S
            self.stop.wait(min(max(FAST_S, SHARE * quiet, EARLY * min(silences) - quiet), longest))

    def _look_after(self, agent: Agent) -> bool:
        """One message of an agent at most; whether there was one."""
        link = agent.link
        try:
            if not link.connected:
                link.connect()
                self.say(f"agent {agent.number} is node {link.node_id} of {self.address.superlink}")
            answered = self._answer_late(agent)
            received = link.receive()
            if received is None:
                self._probe(agent)
                return answered
            self._busy = agent
            self._handle(agent, *received)
        except Forgotten:
            self.say(f"agent {agent.number}: the SuperLink does not know node {link.node_id} any more; joining anew")
            self._forget(agent, list(agent.runs))
            link.forget()
        except TooLarge:  # what announces a message is small; whoever sends this is no SuperLink of ours
            raise Unreachable("it answers with more than a node takes (--max-message-mb)") from None
        finally:
            self._busy = None
        return True

    def _handle(self, agent: Agent, message: Message, tree: Tree) -> None:
        begun, run_id = time.perf_counter(), message.metadata.run_id
        try:
            reply = self._reply(agent, message, tree)
            if reply is not None:
                self._send(agent, reply, begun)
            # The server may still be sending what we did not wait for: what is over is the message before.
            if (run := agent.runs.get(run_id)) is not None:
                before, run.last = run.last, message
                if before is not None:
                    agent.link.confirm(before)
        except RunOver:
            self._forget(agent, [run_id])
        else:
            if run_id in agent.runs:
                agent.runs[run_id].heard = time.monotonic()

    def _send(self, agent: Agent, reply: Message, begun: float) -> None:
        if not agent.link.reply(reply, time.perf_counter() - begun):
            self.say(f"agent {agent.number}: a reply was not taken, it came too late")
        self._replied = time.monotonic()

    def _answer_late(self, agent: Agent) -> bool:
        """Send what has been answered since; whether there was anything."""
        done = [future for future in agent.later if future.done()]
        for future in done:
            message, begun = agent.later.pop(future)
            try:
                reply, agent.said = Message(future.result(), reply_to=message), ""
            except Exception as error:
                reply = self._excuse(agent, message, error)
            try:
                self._send(agent, reply, begun)
            except RunOver:
                self._forget(agent, [message.metadata.run_id])
        return bool(done)

    def _reply(self, agent: Agent, message: Message, tree: Tree) -> Message | None:
        """The party's answer, or one sentence on why there is none; None where it comes later, or never."""
        try:
            run = self._run(agent, message.metadata.run_id)
            if not run.refused:
                whole = agent.link.fetch(message, tree)
                party = run.party or self._open(agent, run)
                self._answering = party
                content = party.answer(whole)
                self._answering = None
                agent.said = ""
                if isinstance(content, Future):
                    agent.later[content] = whole, time.perf_counter()
                    content.add_done_callback(lambda _: self.stop.wake())
                    return None
                return Message(content, reply_to=message)
            return self._refusal(agent, message, run.refused, WRONG_APP)
        except (Unreachable, Forgotten, RunOver):
            raise
        except Silence:
            self._answering = None
            return None
        except TooLarge:
            size = self.address.max_bytes >> 20
            reply = self._refusal(agent, message, f"the message is larger than {size} MB, this node's --max-message-mb")
        except Exception as error:
            reply = self._excuse(agent, message, error)
        self._answering = None
        return reply

    def _excuse(self, agent: Agent, message: Message, error: Exception) -> Message:
        expected = isinstance(error, Mistake | Failure | RefusedError)
        if self.debug and not expected:
            traceback.print_exception(error)
        words = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
        return self._refusal(agent, message, words)

    def _refusal(self, agent: Agent, message: Message, reason: str, code: int = FAILED) -> Message:
        """One sentence instead of an answer; people are told it once."""
        if reason != agent.said:
            self.say(f"agent {agent.number}: {reason}")
            agent.said = reason
        return Message(Error(code, reason[:1000]), reply_to=message)

    # Runs.

    def _run(self, agent: Agent, run_id: int) -> Run:
        """A run, asked for when its first message comes."""
        if run_id not in agent.runs:
            flower = agent.link.run(run_id)
            app = agent.link.app(flower)
            carried = digest.of_bundle(app.content)
            if carried == self.app:
                flat = agent.link.config(app, flower)
                run = Run(self.run_name(flat, run_id), flat)
                self.say(f"agent {agent.number}: {run.name} begins (Flower's run {run_id})")
            else:
                both = f"this node runs app {self.app[:12]}, the run carries {carried[:12]}"
                run = Run(f"run {run_id}", {}, f"{both}: install the same code on both, and start the node again")
            agent.runs[run_id] = run
        return agent.runs[run_id]

    def _open(self, agent: Agent, run: Run) -> Party:
        # A resumed run keeps its name under another number: what it was before must be on disk first. And an agent that
        # others reach has one port: what is over gives it back.
        others = [(number, old) for number, old in agent.runs.items() if old is not run]
        self._forget(agent, [number for number, old in others if old.name == run.name or agent.link.is_over(number)])
        run.party = self.make_party(agent.number, run.flat, run.name, self.state)
        return run.party

    def _probe(self, agent: Agent) -> None:
        """Forget the silent runs that have ended."""
        for run_id, run in list(agent.runs.items()):
            if time.monotonic() - run.heard > PROBE_S:
                run.heard = time.monotonic()
                if agent.link.is_over(run_id):
                    self._forget(agent, [run_id])

    def _forget(self, agent: Agent, numbers: Sequence[int]) -> bool:
        """Save and close parties; whether all could be saved."""
        saved = True
        for number in numbers:
            agent.later = {one: about for one, about in agent.later.items() if about[0].metadata.run_id != number}
            run = agent.runs.pop(number, None)
            if run is None:
                continue
            ends = f"agent {agent.number}: {run.name} ends"
            try:
                if run.party is not None and run.party is not self._answering:
                    run.party.save()
                    run.party.close()
                    ends += ", its state is saved"
            except Exception as error:
                saved, ends = False, f"{ends}, and its state could not be saved: {error}"
                if self.debug:
                    traceback.print_exc()
            self.say(ends)
        return saved

    # The SuperLink goes away, comes back; we come and go.

    def _unreachable(self, reason: str) -> None:
        since, self._silent_since = self._silent_since, self._silent_since or time.monotonic()
        where = self.address.superlink
        if since is None:
            self.say(f"no SuperLink serves us at {where}: {reason}; trying until it does")
        elif self.give_up and time.monotonic() - since > self.give_up:
            raise Failure(f"no SuperLink served us at {where} within {self.give_up:g} s: {reason}")
        for agent in self.agents:
            agent.link.reopen()

    def _reached(self) -> None:
        if self._silent_since is not None:
            self.say(f"the SuperLink at {self.address.superlink} serves us")
            self._silent_since = None

    def _live(self) -> None:
        """Heartbeats of every agent, until the node leaves; those who watch it look at the time of a file."""
        while not self.stop():
            heard = [agent.link.heartbeat() for agent in self.agents]
            if self.alive is not None and all(heard):
                with suppress(OSError):
                    self.alive.touch()
            self.stop.wait(HEARTBEAT_S / 3)

    def _leave(self) -> None:
        saved = [self._forget(agent, list(agent.runs)) for agent in self.agents]
        time.sleep(max(self._replied + LINGER_S - time.monotonic(), 0.0))
        for agent in self.agents:
            agent.link.leave()
        if not all(saved):
            raise Failure("the node has left, but not every agent's state could be saved")
        self.say("left")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal asks, the second is obeyed at once; an alarm ends what takes longer than the grace."""

        def told(number: int, frame: FrameType | None) -> None:
            if self.stop():
                os._exit(128 + number)
            self.stop.set()
            signal.setitimer(signal.ITIMER_REAL, self.grace)

        def late(number: int, frame: FrameType | None) -> None:
            if self._busy is not None:
                raise _GraceOver(self._busy.number)

        handlers = {signal.SIGTERM: told, signal.SIGINT: told, signal.SIGALRM: late}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
