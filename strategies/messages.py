"""What a message may hold, checked on both sides. The table of it stands in ARCHITECTURE.md.

A part travels as one flat float32 array: Flower's cost is per object, not per byte. Its bytes are NumPy's own file
format, so that Flower and anybody else can read them; writing and reading that one known header ourselves costs a
twentieth of going through a file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from numpy.typing import NDArray

F32 = NDArray[np.float32]
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
# Arrays with this beginning are running moments (count, mean, M2), not weights.
MOMENTS = "moments."
# Arrays with this beginning are policies of others; the metric of the same name says how much it pulls, maybe nothing.
NEIGHBOUR = "neighbour."
# Metrics with this beginning are what the algorithm measured: losses, shares, entropies.
MEASURED = "metric."
OVERSIZED = "oversized"
# What a party says of its work, and of the seconds of the answer that it was part of; each is a list in this order.
SAID = ("party", "layout", "steps", "lived", "updates")
SECONDS = ("acting_s", "learning_s", "took_s")
# What a party sends back: the weights it has after its work, or a gradient d loss / d W measured at those that came.
EXCHANGES = ("weights", "gradients")


class RefusedError(ValueError):
    """A message that breaks the contract; ``reason`` is its name in the ledger."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Order(NamedTuple):
    """What a train message asks for."""

    round: int
    work: int
    layout: int
    exchange: str
    parts: list[str]
    settle: bool
    save: bool


class Trained(NamedTuple):
    """What a party answers to a train message, checked."""

    agent: int
    parts: dict[str, F32]
    steps: int
    lived: int
    updates: float
    measured: dict[str, float]


class Judged(NamedTuple):
    """What a party answers to an evaluate message, checked."""

    agent: int
    value: float


class Described(NamedTuple):
    """What a party answers to a query, checked."""

    agent: int
    layout: int
    app: str
    words: dict[str, Any]


def pack(parts: Mapping[str, F32]) -> ArrayRecord:
    """One flat array per part."""
    return ArrayRecord({name: _array(row) for name, row in parts.items()})


def content(
    arrays: ArrayRecord | None = None, config: ConfigRecord | None = None, metrics: MetricRecord | None = None
) -> RecordDict:
    """A message's content with only the records that it has."""
    named = {ARRAYS: arrays, CONFIG: config, METRICS: metrics}
    return RecordDict({name: record for name, record in named.items() if record})


def account(said: Iterable[Any], seconds: Iterable[float], measured: Mapping[str, float]) -> MetricRecord:
    """The metrics of a reply to a train message: SAID and SECONDS as two lists, since Flower's cost is per entry."""
    lists: dict[str, Any] = {
        "said": [int(value) for value in said],
        "seconds": [round(float(value), 6) for value in seconds],
    }
    return MetricRecord(lists | {MEASURED + name: value for name, value in measured.items()})


def layout(algorithm: str, observations: object, actions: object, widths: Mapping[str, int]) -> int:
    """A number that two parties share exactly when their weights mean the same; it fits a metric."""
    words = f"{algorithm} {observations} {actions} {sorted(widths.items())}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:6], "big")


def unpack(message: Message, widths: Mapping[str, int]) -> dict[str, F32]:
    """The arrays of a message; refused unless they are exactly these, finite and float32."""
    _no_error(message)
    record = message.content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        if not widths:
            return {}
        raise RefusedError("no-arrays", f"the message has no '{ARRAYS}'")
    if set(record) != set(widths):
        raise RefusedError("wrong-parts", f"the message has the parts {sorted(record)}, expected {sorted(widths)}")
    return {name: _row(name, record[name], width) for name, width in widths.items()}


def order(message: Message) -> Order:
    """What a train message asks for, checked by the party that gets it."""
    record = message.content.get(CONFIG)
    given = dict(record) if isinstance(record, ConfigRecord) else {}
    kinds = {"round": int, "work": int, "layout": int, "exchange": str, "parts": list, "settle": bool, "save": bool}
    wrong = [name for name, kind in kinds.items() if type(given.get(name)) is not kind]
    if not wrong and given["exchange"] not in EXCHANGES:
        raise RefusedError("no-order", f"'exchange' is one of {', '.join(EXCHANGES)}, not {given['exchange']!r}")
    if wrong:
        raise RefusedError("no-order", f"the train message does not say its {', '.join(wrong)}")
    return Order(*(given[name] for name in Order._fields))  # type: ignore[arg-type]


def trained(message: Message, widths: Mapping[str, int], layout: int) -> Trained:
    """A reply to a train message, or a refusal by name."""
    parts = unpack(message, widths)
    metrics = _metrics(message)
    agent, means, steps, lived, updates = _numbers(metrics, "said", len(SAID))
    if means != layout:
        raise RefusedError("wrong-layout", f"agent {agent:g} answers for another layout than {layout:012x}")
    if min(steps, lived, updates) < 0:
        raise RefusedError("negative-work", f"agent {agent:g} says it did {steps:g} steps, {updates:g} updates")
    measured = {name[len(MEASURED) :]: _number(metrics, name) for name in metrics if name.startswith(MEASURED)}
    measured |= zip(SECONDS, _numbers(metrics, "seconds", len(SECONDS)), strict=True)
    return Trained(int(agent), parts, int(steps), int(lived), updates, measured)


def party(message: Message) -> int:
    """Which agent a reply to a train message says it is from."""
    return int(_numbers(_metrics(message), "said", len(SAID))[0])


def neighbours(message: Message) -> dict[str, float]:
    """How much each policy of others that came with a train message pulls, by its array's name."""
    record, found = _metrics(message), {}
    for name in message.content.get(ARRAYS, ()):
        if name.startswith(NEIGHBOUR):
            found[name] = float(_number(record, name))
            if found[name] < 0:
                raise RefusedError("no-metric", f"'{name}' has the weight {found[name]:g}, and none is below 0")
    return found


def judged(message: Message) -> Judged:
    """A reply to an evaluate message, or a refusal by name."""
    said = _metrics(message)
    return Judged(int(_number(said, "party")), _number(said, "return"))


def described(message: Message) -> Described:
    """A reply to a query, or a refusal by name."""
    _no_error(message)
    record = message.content.get(CONFIG)
    words = dict(record) if isinstance(record, ConfigRecord) else {}
    wanted = {"party": int, "layout": int, "app": str}
    wrong = [name for name, kind in wanted.items() if not isinstance(words.get(name), kind)]
    if wrong:
        raise RefusedError("no-description", f"the party does not say its {', '.join(wrong)}")
    return Described(words["party"], words["layout"], words["app"], words)  # type: ignore[arg-type]


def _metrics(message: Message) -> dict[str, Any]:
    _no_error(message)
    record = message.content.get(METRICS)
    return dict(record) if isinstance(record, MetricRecord) else {}


def _number(said: Mapping[str, Any], name: str) -> float:
    """A finite number among a reply's metrics."""
    value = said.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedError("no-metric", f"the reply's metric '{name}' is {value!r}, expected a finite number")
    return value


def _numbers(said: Mapping[str, Any], name: str, count: int) -> list[float]:
    """A list of so many finite numbers among a reply's metrics."""
    values = said.get(name)
    if not isinstance(values, list) or len(values) != count or not all(map(math.isfinite, values)):
        raise RefusedError("no-metric", f"the reply's metric '{name}' is {values!r}, expected {count} finite numbers")
    return values


def _no_error(message: Message) -> None:
    if message.has_error():
        # What was too large to be pulled comes as an error of the grid's own.
        name = OVERSIZED if OVERSIZED in (message.error.reason or "") else "error-reply"
        raise RefusedError(name, f"the party answered with an error: {message.error.reason}")


@lru_cache(maxsize=64)
def _header(width: int) -> bytes:
    """What NumPy's file format writes before a float32 vector of this width: padded to 64 bytes, version 1.0."""
    words = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({width},), }}"
    padding = -(len(words) + 11) % 64
    text = (words + " " * padding + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _array(row: F32) -> Array:
    assert row.ndim == 1, row.shape
    data = np.ascontiguousarray(row, dtype="<f4").tobytes()
    return Array(dtype="float32", shape=(len(row),), stype=SType.NUMPY, data=_header(len(row)) + data)


def _row(name: str, array: Array, width: int) -> F32:
    expected = f"expected float32[{width}]"
    if array.dtype != "float32" or tuple(array.shape) != (width,):
        raise RefusedError("wrong-layout", f"'{name}' is {array.dtype}{list(array.shape)}, {expected}")
    header, data = _header(width), array.data
    # A header may be longer than ours, not without bound; the size is looked at before anything is read.
    if len(data) > len(header) + 4 * width + 1024:
        raise RefusedError(OVERSIZED, f"'{name}' has {len(data):,} bytes, {expected}")
    if data.startswith(header) and len(data) == len(header) + 4 * width:
        row = np.frombuffer(data, "<f4", offset=len(header))
    else:
        try:
            row = array.numpy()
        except (ValueError, EOFError, OSError) as error:
            raise RefusedError("unreadable", f"'{name}' cannot be read: {error}") from None
        # The header of the bytes is the sender's too: believe what came, not what was announced.
        if row.dtype != np.float32 or row.shape != (width,):
            raise RefusedError("wrong-layout", f"'{name}' holds {row.dtype}{list(row.shape)}, {expected}")
    if not np.isfinite(row).all():
        raise RefusedError("not-finite", f"'{name}' holds nan or infinity")
    if name.startswith(MOMENTS) and (row[0] < 0 or (row[1 + width // 2 :] < 0).any()):
        raise RefusedError("bad-moments", f"'{name}' holds a negative count or spread")
    return row
