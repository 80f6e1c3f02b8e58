"""A peer whom a server tells what a roster would: the agent of a node, in a run where weights go between nodes only.

The server says who learns together and where they are, and counts the rounds. Shares go from node to node, as among
peers without a server; what comes back to it are figures. What is learned stays here, in a run directory of the agent's
own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flwr.app import Message, MessageType, RecordDict

from client.answers import answer, layout
from client.party import Party
from client.session import Session
from core.errors import Failure, Mistake
from gossip.here import Tls
from gossip.peer import loopback, serving, wired
from gossip.run import Learning
from gossip.wire import COUNTED, FLUSH_S
from runs.config import Flat, from_flower, written
from runs.directory import RunDirectory
from runs.peers import PEERS
from strategies import messages
from strategies.messages import SECONDS, RefusedError
from strategies.method import chosen

Record = Mapping[str, Any]
SAVE_S = FLUSH_S + 3.0  # for the round in progress when the agent is asked to leave, and for what is on its way
# What the server knows by itself of a round, or is told under another name.
KNOWN = ("round", "peers", "return", "steps", "updates", "left-out", *SECONDS)
# What it counts as well, of its own messages.
OWN = {*COUNTED, "reasons", "exchanging_s"}


@dataclass(frozen=True)
class Door:
    """Where the peers of other nodes reach an agent of this one, HOST:PORT, and what proves who they are.

    Port 0 is a free one. ``listen`` is where it serves, if that is not where it is reached.
    """

    address: str
    listen: str = ""
    certificates: Path | None = None
    insecure: bool = False

    def check(self, *others: str) -> None:
        """Plain text is for loopback: refuses to serve, or to speak with these, where somebody could listen."""
        private = self.certificates is not None or self.insecure
        places = (self.address, self.listen or self.address, *others)
        if far := [place for place in places if not private and not loopback(place)]:
            raise Mistake(
                f"peers on more than one machine speak TLS, and one is at {far[0]}: start the nodes with "
                "--certificates, or with --insecure where the line between them is private"
            )

    def tls(self, number: int) -> Tls | None:
        """What proves that the agent behind this door is that one."""
        return Tls.read(self.certificates, number) if self.certificates is not None else None


def make_party(
    number: int, flat: Flat, run: str, state: Path, attack: str = "", modules: Sequence[str] | None = None,
    doors: Mapping[int, Door] | None = None, plugins: Sequence[str] | None = None,
) -> Party:  # fmt: skip
    """Return an agent of a run. One that has a door is a member where weights go between nodes."""
    if doors and chosen(from_flower(flat, plugins)).serverless:
        return Member(number, flat, run, state, attack, modules, plugins, door=doors[number])
    return Party(number, flat, run, state, attack, modules, plugins)


class Member(Party):
    """Rounds are answered later, from a thread: while one waits for its shares the node looks after other agents."""

    def __init__(
        self, number: int, flat: Flat, run: str, state: Path, attack: str = "", modules: Sequence[str] | None = None,
        plugins: Sequence[str] | None = None, *, door: Door,
    ) -> None:  # fmt: skip
        self._door = door
        self._asked: SimpleQueue[tuple[int, Message, Future[RecordDict]] | None] = SimpleQueue()
        self._newest, self._joined, self._leaving = 0, False, False
        self._said = (0, RecordDict())  # the last round here, and what was answered
        self._trouble: Exception | None = None
        super().__init__(number, flat, run, state, attack, modules, plugins)

    def answer(self, message: Message, keep: bool = False) -> RecordDict | Future[RecordDict]:  # type: ignore[override]
        """Who and where it is, at once; what came of a round, or what it is worth, when it is known."""
        kind = message.metadata.message_type
        if kind == MessageType.QUERY:
            (found,) = answer(self.session, [(0, message)])
            return messages.content(messages.entries(found.content), {"address": self.address})
        if kind == MessageType.TRAIN:
            order, roster = messages.order(message), messages.roster(message)
            if order.layout != layout(self.session):
                raise Failure("the run's weights have another layout than this agent's: its world is another one")
            self._door.check(*roster.values())
            number, self._newest = order.round, max(self._newest, order.round)
            self.wire.expect(roster)
        else:
            number = self._newest
        future: Future[RecordDict] = Future()
        self._asked.put((number, message, future))
        return future

    def save(self) -> None:
        """The last round is done, what is on its way is handed over, and the checkpoint is that of now."""
        self._leaving = True
        self._asked.put(None)
        self._thread.join(SAVE_S)
        if self._thread.is_alive():
            raise Failure(f"a round takes longer than {SAVE_S:g} s; the last checkpoint stands")
        if self._trouble is not None:
            raise self._trouble

    def close(self) -> None:
        """Everything is closed by the thread, when it ends."""
        self._leaving = True
        self._asked.put(None)

    def _open(self) -> None:
        self._door.check()
        listen, tls = self._door.listen or self._door.address, self._door.tls(self.number)
        path = self.path.parent / PEERS / str(self.number)
        directory = RunDirectory(path) if path.exists() else RunDirectory.create(path, {})
        directory.write_conf(written(self.config))
        with ExitStack() as open_:
            open_.enter_context(directory.held())
            self.session = open_.enter_context(closing(Session(self.config, numbers=[self.number])))
            nowhere = dict.fromkeys(range(self.config.agents), "")
            self.wire = wired(self.config, self.session, nowhere, tls, directory.note, lambda: self._leaving)
            self.learning = open_.enter_context(closing(Learning(self.config, self.session, self.wire, directory)))
            port = open_.enter_context(serving(self.wire, listen))
            self._all = open_.pop_all()
        host, _, given = self._door.address.rpartition(":")
        self.address = f"{host}:{given if int(given) else port}"
        self._thread = threading.Thread(target=self._work, name=f"peer {self.number}", daemon=True)
        self._thread.start()

    # The thread.

    def _work(self) -> None:
        with self._all:
            while (asked := self._asked.get()) is not None:
                number, message, future = asked
                try:
                    if number < self._newest:
                        raise RefusedError("late", f"round {number} is over: the server is in round {self._newest}")
                    train = message.metadata.message_type == MessageType.TRAIN
                    future.set_result(self._round(message) if train else self._judged(message))
                except Exception as error:
                    future.set_exception(error)
            try:
                self.learning.finish()
            except Exception as error:
                self._trouble = error

    def _judged(self, message: Message) -> RecordDict:
        (found,) = answer(self.session, [(0, message)])
        return found.content

    def _round(self, message: Message) -> RecordDict:
        order = messages.order(message)
        if order.round == self._said[0]:  # asked again, by a server that had lost sight of us
            return self._said[1]
        if not self._joined:
            self.learning.rewind(order.round - 1)
            self.learning.join()
            self._joined = True
        lived = int(self.session.worlds.steps[0])
        record = self.learning.round(order.round, judge=False, save=order.save)
        now = int(self.session.worlds.steps[0])
        said = (self.number, order.layout, now - lived, now, record["updates"][0])
        seconds = (record["acting_s"], record["learning_s"], record["round_s"])
        self._said = order.round, messages.content(messages.work_report(said, seconds, figures(record)))
        return self._said[1]


def figures(record: Record) -> dict[str, float]:
    """The numbers of a round, by name."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in KNOWN or (name.endswith("_s") and name != "exchanging_s"):
            continue
        whole = f"peers.{name}" if name in OWN else name
        if isinstance(value, dict):
            found |= {f"{whole}.{inner}": float(number) for inner, number in value.items()}
        else:
            number = value[0] if isinstance(value, list) else value
            found |= {whole: float(number)} if number is not None else {}
    return found
