"""A grid whose nodes do what a test says: answer, stay silent, come late, lie, die and come back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid

from runs import digest
from strategies import messages
from strategies.fedavg import FedAvg

LAYOUT = 77
# Entries of a reply that are none of ours, by the name that a script gives them.
ODD: dict[str, dict[str, Any]] = {
    "says-words": {"counts": ["a"] * 5},
    "says-halves": {"counts": [0.5] * 5},
    "says-a-word": {"counts": "abcde"},
    "says-bytes": {"counts": b"abcde"},
    "says-too-much": {"counts": [0, LAYOUT, 10, 2**62, 1]},
    "seconds-of-words": {"seconds": ["a"] * 3},
    "measures-words": {messages.MEASURED + "loss": "a"},
    "measures-lists": {messages.MEASURED + "loss": [1.0]},
    "measures-at-length": {messages.MEASURED + "x" * 1000: 1.0},
}
# What a node does with a train message of a round: "answer", "silent", "error", "nan", ... or seconds until it answers.
Script = Callable[[int], str | float]


def always(what: str | float = "answer") -> Script:
    return lambda number: what


def fedavg(agents: int, **given: Any) -> FedAvg:
    return FedAvg({"policy": np.zeros(3, np.float32)}, LAYOUT, agents, 1, **given)


class Scripted(Grid):
    """Nodes by id; each is an agent with a script."""

    def __init__(self, nodes: dict[int, tuple[int, Script]], backwards: bool = False) -> None:
        self.nodes, self.backwards = nodes, backwards
        self.app, self.layout = digest.installed(), LAYOUT
        self._due: dict[str, tuple[float, Message]] = {}
        self._ids = map(str, itertools.count())
        self.trained: list[tuple[int, int]] = []  # (round, agent) of every train message that was handed out

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages_: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages_]

    def _push(self, message: Message) -> str:
        name, node = next(self._ids), message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = name
        if node not in self.nodes:
            return ""
        agent, script = self.nodes[node]
        kind, delay = message.metadata.message_type, 0.0
        if kind == MessageType.QUERY:
            who = {"party": agent, "layout": self.layout, "app": self.app}
            reply = Message(messages.content(who), reply_to=message)
        elif kind == MessageType.EVALUATE:
            judged = {"party": agent, "return": float(agent)}
            reply = Message(messages.content(judged), reply_to=message)
        else:
            number = messages.order(message).round
            self.trained.append((number, agent))
            what = script(number)
            if what == "silent":
                return name
            delay, what = (what, "answer") if isinstance(what, float) else (0.0, what)
            reply = self._trained(message, agent, what)
        self._due[name] = (time.monotonic() + delay, reply)
        return name

    def _trained(self, message: Message, agent: int, what: str) -> Message:
        if what == "error":
            return Message(Error(0, "boom"), reply_to=message)
        if what == "malformed":
            return Message(Error(0, "malformed: DecodeError"), reply_to=message)
        row = messages.unpack(message, {"policy": 3})["policy"] + np.float32(agent)
        said: list[Any] = [agent, LAYOUT, 10, 10, 1]
        entries: dict[str, Any] = {}
        if what == "nan":
            row = np.full(3, np.nan, np.float32)
        elif what == "wide":
            row = np.zeros(4, np.float32)
        elif what == "other-layout":
            said[1] += 1
        elif what == "other-name":
            said[0] += 1
        elif what.startswith("claims-"):
            said[2:] = {"claims-no-step": [0, 0, 1], "claims-a-step": [11, 11, 1], "claims-updates": [10, 10, 2]}[what]
        elif what == "measures-a-round":
            entries = {f"{messages.MEASURED}{name}": 5.0 for name in ("round", "return", "steps", "wall_s", "missed")}
        elif what in ODD:
            entries = ODD[what]
        arrays = messages.pack({"policy": row}) if what != "empty" else {}
        account = messages.work_report(said, [0, 0, 0], {})
        return Message(messages.content(arrays, account | entries), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        now = time.monotonic()
        ready = [name for name in message_ids if name in self._due and self._due[name][0] <= now]
        replies = [self._due.pop(name)[1] for name in ready]
        return replies[::-1] if self.backwards else replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    set_run = run = create_message = None  # type: ignore[assignment]
