"""The long-lived node: it keeps its agents in memory, and serves all runs of a SuperLink.

One loop looks after every agent in turn: ask the SuperLink for a message, answer it, send the reply. One agent learns
at a time. A second thread sends heartbeats, also while an agent learns for minutes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from types import FrameType

from client.hosted import LINGER_S, Flat, HostedAgent, MakeAgent, Shared
from core.errors import Failure, Mistake
from flower.errors import Unreachable
from flower.fleet import HEARTBEAT_S
from flower.keys import Address, Key
from runs import digest

FAST_S = 0.005  # the shortest pause between two polls
SHARE = 0.1  # a pause is this share of the silence so far: a poll costs the SuperLink as much as an object
EARLY = (
    0.75  # rounds are alike: the next message is not expected before this share of the shortest of the last silences
)
LIVE_S = 0.25  # the longest pause while a run is live
IDLE_S = 2.0  # the longest pause while no run is live
BACKOFF_S = 2.0  # the longest pause between two tries to reach a SuperLink


class _GraceOver(BaseException):
    """The message in progress took longer than the grace period of a node that was asked to leave."""


class Node:
    """A process that hosts agents until it is asked to stop. ``say`` prints a line."""

    def __init__(
        self,
        address: Address,
        agents: Sequence[int],
        make_agent: MakeAgent,
        run_name: Callable[[Flat, int], str],
        state: Path,
        keys: Sequence[Key] = (),
        *,
        give_up: float = 0.0,
        grace: float = 5.0,
        alive: Path | None = None,
        say: Callable[[str], None] = print,
        debug: bool = False,
        app: str = "",
    ) -> None:
        """``app`` is the digest of the code that runs must carry; empty: that of the installed code."""
        if keys and len(keys) != len(agents):
            raise Mistake(
                f"--key needs one key per agent, as each is a node of its own: {len(agents)}, not {len(keys)}"
            )
        self.give_up, self.grace, self.alive, self.say = give_up, grace, alive, say
        self.shared = Shared(address, make_agent, run_name, state, say, debug, app or digest.installed())
        self.stop = self.shared.stop
        self.agents = [HostedAgent(number, key, self.shared) for number, key in zip_longest(agents, keys)]
        self._unreachable_since: float | None = None

    def serve(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises ``Failure`` if the SuperLink refuses the node or is away too long."""
        self.say(f"app {self.shared.app[:12]}, agents {', '.join(str(agent.number) for agent in self.agents)}")
        with self._signals():
            threading.Thread(target=self._send_heartbeats, name="heartbeats", daemon=True).start()
            try:
                self._loop()
            except _GraceOver as late:
                self.say(f"agent {late}: the message in progress took longer than {self.grace:g} s and was dropped")
            finally:
                self.stop.set()
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._leave()

    def _loop(self) -> None:
        last_message, silences, tries = time.monotonic(), deque([0.0] * 4, maxlen=4), 0
        while not self.stop():
            polled = time.monotonic()
            try:
                busy = [agent.look_after() for agent in self.agents if not self.stop()]
            except Unreachable as error:
                self._note_unreachable(str(error))
                tries += 1
                self.stop.wait(min(0.1 * 2 ** min(tries, 10), BACKOFF_S))
                continue
            tries = 0
            self._note_reached()
            if any(busy):
                silences.append(polled - last_message)
                last_message = time.monotonic()
            silence = time.monotonic() - last_message
            longest = LIVE_S if any(agent.runs for agent in self.agents) else IDLE_S
            self.stop.wait(min(max(FAST_S, SHARE * silence, EARLY * min(silences) - silence), longest))

    def _note_unreachable(self, reason: str) -> None:
        since, self._unreachable_since = self._unreachable_since, self._unreachable_since or time.monotonic()
        where = self.shared.address.superlink
        if since is None:
            self.say(f"no SuperLink serves us at {where}: {reason}; trying until it does")
        elif self.give_up and time.monotonic() - since > self.give_up:
            raise Failure(f"no SuperLink served us at {where} within {self.give_up:g} s: {reason}")
        for agent in self.agents:
            agent.connection.reopen()

    def _note_reached(self) -> None:
        if self._unreachable_since is not None:
            self.say(f"the SuperLink at {self.shared.address.superlink} serves us")
            self._unreachable_since = None

    def _send_heartbeats(self) -> None:
        """Send the heartbeats of all agents until the node leaves. Touch the file ``alive`` if all were received."""
        while not self.stop():
            received = [agent.connection.heartbeat() for agent in self.agents]
            if self.alive is not None and all(received):
                with suppress(OSError):
                    self.alive.touch()
            self.stop.wait(HEARTBEAT_S / 3)

    def _leave(self) -> None:
        saved = [agent.forget(list(agent.runs)) for agent in self.agents]
        replied = max((agent.replied for agent in self.agents), default=-LINGER_S)
        time.sleep(max(replied + LINGER_S - time.monotonic(), 0.0))
        for agent in self.agents:
            agent.connection.leave()
        if not all(saved):
            raise Failure("the node has left, but not every agent's state could be saved")
        self.say("left")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop at the first signal, exit at the second. An alarm ends the message in progress after ``grace``."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stop():
                os._exit(128 + number)
            self.stop.set()
            signal.setitimer(signal.ITIMER_REAL, self.grace)

        def end_grace(number: int, frame: FrameType | None) -> None:
            for agent in self.agents:
                if agent.is_busy:
                    raise _GraceOver(agent.number)

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGALRM: end_grace}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
