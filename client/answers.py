"""The answers of agents to the server. Equal requests to many agents are answered by one step of one fleet.

A node answers for one agent at a time, the local engine for all agents. Both use this file, so both give equal answers.
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
Requests = Sequence[tuple[int, Message]]  # each with its agent's row in the fleet of the session
# Weak references: a node outlives its sessions, and a closed session still holds a fleet with its replay.
_LAYOUTS: WeakKeyDictionary[Session, int] = WeakKeyDictionary()


class Reply(NamedTuple):
    """The content of a reply, and by how many seconds an attack delays it; infinite: it is never sent."""

    content: RecordDict
    after: float = 0.0


def answer(session: Session, requests: Requests) -> list[Reply]:
    """Return the answers to requests of one kind and one configuration."""
    kind = requests[0][1].metadata.message_type
    kinds = {MessageType.TRAIN: _train, MessageType.EVALUATE: _evaluate, MessageType.QUERY: _describe}
    if kind not in kinds:
        raise Failure(f"a message of the kind '{kind}' is not understood (known: {', '.join(kinds)})")
    return kinds[kind](session, requests)


def exchangeable(fleet: Fleet) -> dict[str, NDArray[Any]]:
    """Return the rows of a fleet that may be exchanged, by name: its parts, and the new data of its running moments."""
    return dict(fleet.parts) | {messages.MOMENTS + name: moments.seen for name, moments in fleet.moments.items()}


def layout(session: Session) -> int:
    """Return the number that identifies the layout of this session's weights. It does not change during the session."""
    if session not in _LAYOUTS:
        worlds, widths = session.worlds, {name: rows.shape[1] for name, rows in exchangeable(session.fleet).items()}
        observations, actions = worlds.observation_space, worlds.action_space
        _LAYOUTS[session] = messages.layout(session.config.algorithm, observations, actions, widths)
    return _LAYOUTS[session]


def _train(session: Session, requests: Requests) -> list[Reply]:
    """Train from the received weights and return the new weights, or measure a gradient there and return it."""
    begun = time.perf_counter()
    order, local_layout = messages.order(requests[0][1]), layout(session)
    if order.layout != local_layout:
        raise Failure(
            f"the run's weights have the layout {order.layout:012x}, this agent's {local_layout:012x}: "
            "its world has other observations or actions"
        )
    rows = [row for row, _ in requests]
    _link(session, requests, _load(session, requests, learning=True))
    if order.exchange == "weights":
        session.conduct.begin(rows, order.round, order.parts)
        report = session.train(order.work, rows, order.settle, order.round, order.pause)
        matrices, whole = exchangeable(session.fleet), rows == list(range(len(session.numbers)))
        honest = {name: matrices[name] if whole else matrices[name][rows] for name in order.parts}
    else:
        (part,) = order.parts
        gradient, report = session.measure(part, order.work, rows, order.settle, order.round)
        honest = {part: gradient}
    sent = session.conduct.sends(rows, order.round, honest)
    took = time.perf_counter() - begun
    metrics = measured(report)
    answers = []
    for at, row in enumerate(rows):
        arrays = messages.pack({name: matrix[at] for name, matrix in sent.items()})
        work = (session.numbers[row], local_layout, report.steps[at], session.worlds.steps[row], report.updates[at])
        figures = {name: float(values[at]) for name, values in metrics.items() if not np.isnan(values[at])}
        account = messages.work_report(work, (report.acting_s, report.learning_s, took), figures)
        answers.append(Reply(messages.content(arrays, account), session.conduct.delay(row, order.round)))
    return answers


def _evaluate(session: Session, requests: Requests) -> list[Reply]:
    """Evaluate the received weights in each agent's world; the agent keeps its own weights. No attack changes this."""
    before = {name: array.copy() for name, array in session.fleet.learned.items()}
    try:
        _load(session, requests)
        rows = [row for row, _ in requests]
        returns = session.evaluate(rows).mean(axis=1)
    finally:
        session.fleet.load_learned(before)
    return [
        Reply(messages.content({"party": session.numbers[row], "return": float(value)}))
        for row, value in zip(rows, returns, strict=True)
    ]


def _describe(session: Session, requests: Requests) -> list[Reply]:
    """Describe each agent: number, world, layout of its weights, digest of its code."""
    worlds = session.worlds
    widths = {f"width.{name}": matrix.shape[1] for name, matrix in exchangeable(session.fleet).items()}
    description: dict[str, Any] = {
        "algorithm": session.config.algorithm,
        "world": session.config.world.id,
        "observations": str(worlds.observation_space),
        "actions": str(worlds.action_space),
        "layout": layout(session),
        "app": digest.installed(),
    }
    answers = []
    for row, _ in requests:
        number = session.numbers[row]
        agent = {"party": number, "attack-free": session.conduct.is_honest(row)}
        answers.append(Reply(messages.content(agent, description, widths)))
    return answers


def _load(session: Session, requests: Requests, learning: bool = False) -> dict[str, F32]:
    """Load the arrays of messages into the fleet; return the policies of other agents among them.

    With ``learning`` the fleet treats loaded parts as shared ones. In one process many messages share one content,
    which is read once.
    """
    fleet = session.fleet
    matrices, others = exchangeable(session.fleet), dict[str, F32]()
    sharing: dict[int, tuple[Message, list[int]]] = {}
    for row, message in requests:
        sharing.setdefault(id(message.content), (message, []))[1].append(row)
    for message, rows in sharing.values():
        names = list(messages.arrays(message.content))
        targets = {
            name: "policy" if name.startswith(messages.NEIGHBOUR) else name.removeprefix(messages.GRADIENT)
            for name in names
        }
        widths = {name: matrices[targets[name]].shape[1] if targets[name] in matrices else -1 for name in names}
        for name, weights in messages.unpack(message, widths).items():
            if name.startswith(messages.NEIGHBOUR):
                others[name] = weights
            elif name.startswith(messages.GRADIENT):
                fleet.shared_step(targets[name], weights, rows)
            elif name.startswith(messages.MOMENTS):
                moments = fleet.moments[name.removeprefix(messages.MOMENTS)]
                part = moments.take(rows)
                part.take_over(np.repeat(weights[None].astype(np.float64), len(rows), axis=0))
                moments.put(rows, part)
            else:
                matrices[name][rows] = weights
                if learning:
                    fleet.share(name, rows)
    return others


def _link(session: Session, requests: Requests, others: Mapping[str, F32]) -> None:
    """Let the received policies pull, with the weights in each agent's message, until the next message."""
    fleet, names = session.fleet, list(others)
    if not fleet.linkable:
        if names:
            raise Failure(f"policies of other agents were received, and {session.config.algorithm} does not use them")
        return
    width = fleet.parts["policy"].shape[1]
    policies = np.stack([others[name] for name in names]) if names else np.empty((0, width), np.float32)
    matrix = np.full((fleet.agents, len(names)), np.nan, np.float32)
    for row, message in requests:
        for name, weight in messages.neighbours(message).items():
            matrix[row, names.index(name)] = weight
    known = ~np.isnan(matrix)
    labels = [name.removeprefix(messages.NEIGHBOUR) for name in names]
    fleet.link(policies, np.where(known, matrix, np.float32(0)), known, labels)


def measured(report: Report) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of a training report, per agent."""
    agents = len(report.steps)
    totals, episodes = np.zeros(agents), np.zeros(agents)
    for episode in report.episodes:
        totals[episode.agent] += episode.total
        episodes[episode.agent] += 1
    with np.errstate(invalid="ignore"):
        mean = totals / episodes
    return {"training-return": mean, "episodes": episodes} | report.metrics
