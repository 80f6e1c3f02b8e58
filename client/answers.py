"""What agents answer when the server asks. Messages that ask the same of many agents are one step of one fleet.

A node answers for one agent at a time, the local engine for all of them; both come here, so they do the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from agents.fleet import Fleet, Report
from client import digest
from client.session import Session
from core.errors import Failure
from strategies import messages

Asked = Sequence[tuple[int, Message]]


def answer(session: Session, asked: Asked) -> list[RecordDict]:
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
    """The number of what this session's weights mean."""
    worlds, widths = session.worlds, {name: rows.shape[1] for name, rows in exchangeable(session.fleet).items()}
    return messages.layout(session.config.algorithm, worlds.observation_space, worlds.action_space, widths)


def _train(session: Session, asked: Asked) -> list[RecordDict]:
    """Train from the weights that came and send back the own, or measure a gradient there and send that."""
    begun = time.perf_counter()
    order, mine = messages.order(asked[0][1]), layout(session)
    if order.layout != mine:
        raise Failure(
            f"the run's weights have the layout {order.layout:012x}, this agent's {mine:012x}: "
            "its world has other observations or actions"
        )
    _load(session, asked)
    rows = [row for row, _ in asked]
    if order.exchange == "weights":
        report = session.train(order.work, rows, order.settle)
        own = exchangeable(session.fleet)
        sent = {name: own[name][rows] for name in order.parts}
    else:
        (part,) = order.parts
        gradient, report = session.measure(part, order.work, rows, order.settle)
        sent = {part: gradient}
    took = time.perf_counter() - begun
    measured = _measured(report, took)
    answers = []
    for at, row in enumerate(rows):
        arrays = messages.pack({name: matrix[at] for name, matrix in sent.items()})
        metrics: dict[str, Any] = {
            "party": session.numbers[row],
            "layout": mine,
            "steps": int(report.steps[at]),
            "lived": int(session.worlds.steps[row]),
            "updates": int(report.updates[at]),
        } | {
            messages.MEASURED + name: float(values[at]) for name, values in measured.items() if values[at] == values[at]
        }
        answers.append(messages.content(arrays, metrics=MetricRecord(metrics)))
    return answers


def _evaluate(session: Session, asked: Asked) -> list[RecordDict]:
    """Judge the weights that came in each agent's world; its own stay as they are."""
    own = {name: array.copy() for name, array in session.fleet.learned.items()}
    try:
        _load(session, asked)
        rows = [row for row, _ in asked]
        returns = session.evaluate(rows).mean(axis=1)
    finally:
        session.fleet.load_learned(own)
    return [
        messages.content(metrics=MetricRecord({"party": session.numbers[row], "return": float(value)}))
        for row, value in zip(rows, returns, strict=True)
    ]


def _describe(session: Session, asked: Asked) -> list[RecordDict]:
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
        "attack-free": True,
    }
    return [messages.content(config=ConfigRecord({"party": session.numbers[row], **who, **widths})) for row, _ in asked]


def _load(session: Session, asked: Asked) -> None:
    """Put the arrays of messages into the fleet. In one process many messages share one content: it is read once."""
    known = exchangeable(session.fleet)
    sharing: dict[int, tuple[Message, list[int]]] = {}
    for row, message in asked:
        sharing.setdefault(id(message.content), (message, []))[1].append(row)
    for message, rows in sharing.values():
        names = list(message.content.get(messages.ARRAYS, ()))
        widths = {name: known[name].shape[1] if name in known else -1 for name in names}
        for name, weights in messages.unpack(message, widths).items():
            if name.startswith(messages.MOMENTS):
                moments = session.fleet.moments[name.removeprefix(messages.MOMENTS)]
                part = moments.take(rows)
                part.take_over(np.repeat(weights[None].astype(np.float64), len(rows), axis=0))
                moments.put(rows, part)
            else:
                known[name][rows] = weights


def _measured(report: Report, took: float) -> dict[str, NDArray[np.float64]]:
    """What a stretch of training measured, per agent; times are those of the answer that the agents shared."""
    agents = len(report.steps)
    totals, episodes = np.zeros(agents), np.zeros(agents)
    for episode in report.episodes:
        totals[episode.agent] += episode.total
        episodes[episode.agent] += 1
    with np.errstate(invalid="ignore"):
        mean = totals / episodes
    times = {"acting_s": report.acting_s, "learning_s": report.learning_s, "took_s": took}
    shared = {name: np.full(agents, round(seconds, 6)) for name, seconds in times.items()}
    return {"training-return": mean, "episodes": episodes} | shared | report.metrics
