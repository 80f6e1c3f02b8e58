"""An agent of a node as a peer, in a run under a server whose weights travel between nodes only.

The server names the peers that learn together and their addresses, and counts the rounds. Shares go from node to node,
as among peers without a server. The replies to the server hold metrics. The weights stay on the node, in a run
directory of the agent.
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
from client.session import Session, limit_threads
from core.errors import Failure, Mistake
from gossip.endpoint import COUNTED
from gossip.local import Tls
from gossip.peer import loopback, serving, wired
from gossip.run import Learning
from gossip.wire import FLUSH_S
from runs.config import Flat, from_flower, written
from runs.directory import RunDirectory
from runs.peers import PEERS
from strategies import messages
from strategies.messages import SECONDS, RefusedError
from strategies.method import chosen

Record = Mapping[str, Any]
SAVE_S = FLUSH_S + 3.0  # for the current round and the vectors in flight, when the agent is asked to leave
# Keys of a record that the server knows by itself, or receives under another name.
KNOWN = ("round", "peers", "return", "steps", "updates", "left-out", *SECONDS)
# Keys that the server also counts, for its own messages. The peers' counts are prefixed.
PREFIXED = {*COUNTED, "reasons", "exchanging_s"}


@dataclass(frozen=True)
class Door:
    """The address, HOST:PORT, at which peers of other nodes reach an agent of this node, and the certificates for it.

    Port 0 is a free one. ``listen`` is the address to serve at, if it is another one.
    """

    address: str
    listen: str = ""
    certificates: Path | None = None
    insecure: bool = False

    def check(self, *others: str) -> None:
        """Refuse plain text beyond loopback, for this address and the others."""
        is_safe = self.certificates is not None or self.insecure
        addresses = (self.address, self.listen or self.address, *others)
        if remote := [address for address in addresses if not is_safe and not loopback(address)]:
            raise Mistake(
                f"peers on more than one machine speak TLS, and one is at {remote[0]}: start the nodes with "
                "--certificates, or with --insecure if the network between them is private"
            )

    def tls(self, number: int) -> Tls | None:
        """Return the certificate of the agent, or None without certificates."""
        return Tls.read(self.certificates, number) if self.certificates is not None else None


def make_party(
    number: int, flat: Flat, run: str, state: Path, attack: str = "", modules: Sequence[str] | None = None,
    doors: Mapping[int, Door] | None = None, plugins: Sequence[str] | None = None,
) -> Party:  # fmt: skip
    """Return an agent of a run. An agent with a door is a member if weights travel between nodes."""
    if doors and chosen(from_flower(flat, plugins)).serverless:
        party: Party = Member(number, flat, run, state, attack, modules, plugins, door=doors[number])
    else:
        party = Party(number, flat, run, state, attack, modules, plugins)
    limit_threads(party.config.threads)
    return party


class Member(Party):
    """An agent that answers rounds later, from a thread, so that the node can serve other agents meanwhile."""

    def __init__(
        self, number: int, flat: Flat, run: str, state: Path, attack: str = "", modules: Sequence[str] | None = None,
        plugins: Sequence[str] | None = None, *, door: Door,
    ) -> None:  # fmt: skip
        self._door = door
        self._requests: SimpleQueue[tuple[int, Message, Future[RecordDict]] | None] = SimpleQueue()
        self._newest, self._joined, self._leaving = 0, False, False
        self._last = (0, RecordDict())  # the last round here, and the reply to it
        self._trouble: Exception | None = None
        super().__init__(number, flat, run, state, attack, modules, plugins)

    def answer(self, message: Message, keep: bool = False) -> RecordDict | Future[RecordDict]:  # type: ignore[override]
        """Answer a query at once, and an order for a round or an evaluation later."""
        kind = message.metadata.message_type
        if kind == MessageType.QUERY:
            (reply,) = answer(self.session, [(0, message)])
            return messages.content(messages.entries(reply.content), {"address": self.address})
        if kind == MessageType.TRAIN:
            order, roster = messages.order(message), messages.roster(message)
            if order.layout != layout(self.session):
                raise Failure(
                    "the run's weights have another layout than this agent's: give the node the same world as the run"
                )
            self._door.check(*roster.values())
            number, self._newest = order.round, max(self._newest, order.round)
            self.wire.expect(roster)
        else:
            number = self._newest
        future: Future[RecordDict] = Future()
        self._requests.put((number, message, future))
        return future

    def save(self) -> None:
        """Finish the current round, hand over the vectors in flight, and write a checkpoint."""
        self._leaving = True
        self._requests.put(None)
        self._thread.join(SAVE_S)
        if self._thread.is_alive():
            raise Failure(f"a round takes longer than {SAVE_S:g} s: the agent resumes from its last checkpoint")
        if self._trouble is not None:
            raise self._trouble

    def close(self) -> None:
        """Ask the thread to end. It closes everything."""
        self._leaving = True
        self._requests.put(None)

    def _open(self) -> None:
        self._door.check()
        listen, tls = self._door.listen or self._door.address, self._door.tls(self.number)
        path = self.path.parent / PEERS / str(self.number)
        directory = RunDirectory(path) if path.exists() else RunDirectory.create(path, {})
        directory.write_conf(written(self.config))
        with ExitStack() as open_:
            open_.enter_context(directory.held())
            self.session = open_.enter_context(closing(Session(self.config, numbers=[self.number])))
            unknown = dict.fromkeys(range(self.config.agents), "")
            self.wire = wired(self.config, self.session, unknown, tls, directory.note, lambda: self._leaving)
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
            while (request := self._requests.get()) is not None:
                number, message, future = request
                try:
                    if number < self._newest:
                        raise RefusedError("late", f"round {number} is over: the server is in round {self._newest}")
                    train = message.metadata.message_type == MessageType.TRAIN
                    future.set_result(self._round(message) if train else self._evaluate(message))
                except Exception as error:
                    future.set_exception(error)
            try:
                self.learning.finish()
            except Exception as error:
                self._trouble = error

    def _evaluate(self, message: Message) -> RecordDict:
        (reply,) = answer(self.session, [(0, message)])
        return reply.content

    def _round(self, message: Message) -> RecordDict:
        order = messages.order(message)
        if order.round == self._last[0]:  # a server repeats the order after it lost the connection
            return self._last[1]
        if not self._joined:
            self.learning.rewind(order.round - 1)
            self.learning.join()
            self._joined = True
        before = int(self.session.worlds.steps[0])
        record = self.learning.round(order.round, evaluate=False, save=order.save)
        now = int(self.session.worlds.steps[0])
        result = (self.number, order.layout, now - before, now, record["updates"][0])
        seconds = (record["acting_s"], record["learning_s"], record["round_s"])
        self._last = order.round, messages.content(messages.work_report(result, seconds, figures(record)))
        return self._last[1]


def figures(record: Record) -> dict[str, float]:
    """Return the numbers of a record, by name."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if name in KNOWN or (name.endswith("_s") and name != "exchanging_s"):
            continue
        key = f"peers.{name}" if name in PREFIXED else name
        if isinstance(value, dict):
            numbers |= {f"{key}.{inner}": float(number) for inner, number in value.items()}
        else:
            number = value[0] if isinstance(value, list) else value
            numbers |= {key: float(number)} if number is not None else {}
    return numbers
