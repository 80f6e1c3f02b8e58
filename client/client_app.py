"""The ClientApp: what a party does when the server asks. What messages hold stands in strategies/messages.py."""

from __future__ import annotations

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from client.party import exchangeable, number_of, party, remember
from client.session import Session
from strategies import messages

app = ClientApp()
Metrics = dict[str, int | float | list[int] | list[float]]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the weights that came, send back the own."""
    session = party(context)
    names = _load(session, message)
    work = message.content.config_records[messages.CONFIG]["work"]
    report = session.train(int(work))  # type: ignore[arg-type]
    remember(context, session)
    metrics: Metrics = {
        "party": number_of(context),
        "steps": int(report.steps[0]),
        "updates": int(report.updates[0]),
    }
    totals = [episode.total for episode in report.episodes]
    if totals:
        metrics["training-return"] = float(np.mean(totals))
    own = exchangeable(session.fleet)
    arrays = messages.pack({name: own[name][0] for name in names})
    return Message(messages.content(arrays, metrics=MetricRecord(metrics)), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the weights that came in this party's world; its own stay as they are."""
    session = party(context)
    own = {name: array.copy() for name, array in session.fleet.learned.items()}
    _load(session, message)
    metrics: Metrics = {"party": number_of(context), "return": float(session.evaluate().mean())}
    session.fleet.load_learned(own)
    return Message(messages.content(metrics=MetricRecord(metrics)), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Who this party is."""
    session = party(context)
    who: dict[str, int | str] = {
        "party": number_of(context),
        "algorithm": session.config.algorithm,
        "world": session.config.world.id,
    }
    widths = {f"width.{name}": matrix.shape[1] for name, matrix in exchangeable(session.fleet).items()}
    return Message(messages.content(config=ConfigRecord({**who, **widths})), reply_to=message)


def _load(session: Session, message: Message) -> list[str]:
    """Put the arrays of a message into the fleet; returns their names."""
    names, known = list(message.content.array_records[messages.ARRAYS]), exchangeable(session.fleet)
    widths = {name: known[name].shape[1] if name in known else -1 for name in names}
    for name, row in messages.unpack(message, widths).items():
        if name.startswith(messages.MOMENTS):
            session.fleet.moments[name.removeprefix(messages.MOMENTS)].take_over(row[None].astype(np.float64))
        else:
            known[name][0] = row
    return names
