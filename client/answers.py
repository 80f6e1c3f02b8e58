"""What agents answer when the server asks. Messages that ask the same of many agents are one step of one fleet.

A node answers for one agent at a time, the local engine for all of them; both come here, so they do the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from numpy.typing import NDArray

from agents.fleet import Fleet
from agents.report import Report
from client.session import Session
from core.errors import Failure
from runs import digest
from strategies import messages

F32 = NDArray[np.float32]
Asked = Sequence[tuple[int, Message]]
# Weak: a node lives longer than its sessions, and a closed one holds a fleet with its replay.
_LAYOUTS: WeakKeyDictionary[Session, int] = WeakKeyDictionary()


class Reply(NamedTuple):
    """What an agent answers, and how many seconds late it is on purpose: infinitely many when it never goes."""

    content: RecordDict
    after: float = 0.0


def answer(session: Session, asked: Asked) -> list[Reply]:
    """The answers to messages of one kind and one config; each comes with its agent's row in the session's fleet."""
    kind = asked[0][1].metadata.message_type
    known = {MessageType.TRAIN: _train, MessageType.EVALUATE: _evaluate, MessageType.QUERY: _describe}
    if kind not in known:
        raise Failure(f"a message of the kind '{kind}' is not understood (known: {', '.join(known)})")
    return known[kind](session, asked)


def exchangeable(fleet: Fleet) -> dict[str, NDArray[Any]]:
    """Everything of a fleet that may travel, by its name in a message: parts, and what the moments have seen since."""
    return dict(fleet.parts) | {messages.MOMENTS + name: moments.seen for name, moments in fleet.moments.items()}


def layout(session: Session) -> int:
    """Return the number of what this session's weights mean; it stays the same for as long as the session lives."""
    if session not in _LAYOUTS:
        worlds, widths = session.worlds, {name: rows.shape[1] for name, rows in exchangeable(session.fleet).items()}
        observations, actions = worlds.observation_space, worlds.action_space
        _LAYOUTS[session] = messages.layout(session.config.algorithm, observations, actions, widths)
    return _LAYOUTS[session]


def _train(session: Session, asked: Asked) -> list[Reply]:
    """Train from the weights that came and send back the own, or measure a gradient there and send that."""
    begun = time.perf_counter()
    order, mine = messages.order(asked[0][1]), layout(session)
    if order.layout != mine:
        raise Failure(
            f"the run's weights have the layout {order.layout:012x}, this agent's {mine:012x}: "
            "its world has other observations or actions"
        )
    rows = [row for row, _ in asked]
    _link(session, asked, _load(session, asked, learning=True))
    if order.exchange == "weights":
        session.conduct.begin(rows, order.round, order.parts)
        report = session.train(order.work, rows, order.settle, order.round, order.pause)
        own, whole = exchangeable(session.fleet), rows == list(range(len(session.numbers)))
        honest = {name: own[name] if whole else own[name][rows] for name in order.parts}
    else:
        (part,) = order.parts
        gradient, report = session.measure(part, order.work, rows, order.settle, order.round)
        honest = {part: gradient}
    sent = session.conduct.sends(rows, order.round, honest)
    took = time.perf_counter() - begun
    found = measured(report)
    answers = []
    for at, row in enumerate(rows):
        arrays = messages.pack({name: matrix[at] for name, matrix in sent.items()})
        said = (session.numbers[row], mine, report.steps[at], session.worlds.steps[row], report.updates[at])
        known = {name: float(values[at]) for name, values in found.items() if not np.isnan(values[at])}
        account = messages.work_report(said, (report.acting_s, report.learning_s, took), known)
        answers.append(Reply(messages.content(arrays, account), session.conduct.delay(row, order.round)))
    return answers


def _evaluate(session: Session, asked: Asked) -> list[Reply]:
    """Judge the weights that came in each agent's world; its own stay as they are. Liars are honest here."""
    own = {name: array.copy() for name, array in session.fleet.learned.items()}
    try:
        _load(session, asked)
        rows = [row for row, _ in asked]
        returns = session.evaluate(rows).mean(axis=1)
    finally:
        session.fleet.load_learned(own)
    return [
        Reply(messages.content({"party": session.numbers[row], "return": float(value)}))
        for row, value in zip(rows, returns, strict=True)
    ]


def _describe(session: Session, asked: Asked) -> list[Reply]:
    """Who each agent is."""
    worlds = session.worlds
    widths = {f"width.{name}": matrix.shape[1] for name, matrix in exchangeable(session.fleet).items()}
    who: dict[str, Any] = {
        "algorithm": session.config.algorithm,
        "world": session.config.world.id,
        "observations": str(worlds.observation_space),
        "actions": str(worlds.action_space),
        "layout": layout(session),
        "app": digest.installed(),
    }
    answers = []
    for row, _ in asked:
        number = session.numbers[row]
        own = {"party": number, "attack-free": session.conduct.is_honest(row)}
        answers.append(Reply(messages.content(own, who, widths)))
    return answers


def _load(session: Session, asked: Asked, learning: bool = False) -> dict[str, F32]:
    """Put the arrays of messages into the fleet, where it is to learn from them as what all share; returns the policies
    of others among them.

    In one process many messages share one content: it is read once.
    """
    fleet = session.fleet
    known, others = exchangeable(session.fleet), dict[str, F32]()
    sharing: dict[int, tuple[Message, list[int]]] = {}
    for row, message in asked:
        sharing.setdefault(id(message.content), (message, []))[1].append(row)
    for message, rows in sharing.values():
        names = list(messages.arrays(message.content))
        meant = {
            name: "policy" if name.startswith(messages.NEIGHBOUR) else name.removeprefix(messages.GRADIENT)
            for name in names
        }
        widths = {name: known[meant[name]].shape[1] if meant[name] in known else -1 for name in names}
        for name, weights in messages.unpack(message, widths).items():
            if name.startswith(messages.NEIGHBOUR):
                others[name] = weights
            elif name.startswith(messages.GRADIENT):
                fleet.shared_step(meant[name], weights, rows)
            elif name.startswith(messages.MOMENTS):
                moments = fleet.moments[name.removeprefix(messages.MOMENTS)]
                part = moments.take(rows)
                part.take_over(np.repeat(weights[None].astype(np.float64), len(rows), axis=0))
                moments.put(rows, part)
            else:
                known[name][rows] = weights
                if learning:
                    fleet.share(name, rows)
    return others


def _link(session: Session, asked: Asked, others: Mapping[str, F32]) -> None:
    """What came of others pulls from now on, each agent by what its own message says: links last until the next one."""
    fleet, names = session.fleet, list(others)
    if not fleet.linkable:
        if names:
            raise Failure(f"policies of other agents were received, and {session.config.algorithm} is pulled by none")
        return
    width = fleet.parts["policy"].shape[1]
    policies = np.stack([others[name] for name in names]) if names else np.empty((0, width), np.float32)
    matrix = np.full((fleet.agents, len(names)), np.nan, np.float32)
    for row, message in asked:
        for name, weight in messages.neighbours(message).items():
            matrix[row, names.index(name)] = weight
    known = ~np.isnan(matrix)
    called = [name.removeprefix(messages.NEIGHBOUR) for name in names]
    fleet.link(policies, np.where(known, matrix, np.float32(0)), known, called)


def measured(report: Report) -> dict[str, NDArray[np.float64]]:
    """What a stretch of training measured, per agent."""
    agents = len(report.steps)
    totals, episodes = np.zeros(agents), np.zeros(agents)
    for episode in report.episodes:
        totals[episode.agent] += episode.total
        episodes[episode.agent] += 1
    with np.errstate(invalid="ignore"):
        mean = totals / episodes
    return {"training-return": mean, "episodes": episodes} | report.metrics
