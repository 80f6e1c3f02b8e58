"""The contract of messages: what each of them holds, packed and checked on both sides. ARCHITECTURE.md has the table.

A message is one ConfigRecord. It holds texts and numbers by name, and arrays: one flat vector per part, as raw
little-endian float32. Flower's cost is per object, not per byte: an ArrayRecord would add three objects to every
message, a MetricRecord one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

F32 = NDArray[np.float32]
# The name of a message's only record, and the prefix of entries that are arrays.
RECORD, ARRAY = "fedrl", "array."
# Prefix of arrays that are running moments (count, mean, M2), not weights.
MOMENTS = "moments."
# Prefix of other agents' policies. The number of the same name is the weight of its penalty, which may be 0.
NEIGHBOUR = "neighbour."
# Prefix of aggregated gradients. Agents that paused before a step take it with these.
GRADIENT = "gradient."
# Prefix of metrics of the algorithm: losses, shares, entropies.
MEASURED = "metric."
# The grid's errors for a reply that is too large or cannot be read. The reason of the error begins with the name.
OVERSIZED, MALFORMED = "oversized", "malformed"
MAX_SENTENCE = 1000
# The most metrics of a reply, and the limit of its counts: a float holds all whole numbers below it exactly.
MAX_METRICS, MAX_COUNT = 4096, 2**53
# The order of the entry `counts` of a reply (the work of an agent), and of `seconds` (the time of the whole answer).
COUNTS = ("party", "layout", "steps", "lived", "updates")
SECONDS = ("acting_s", "learning_s", "took_s")
# What an agent sends back: its weights after its work, or the gradient d loss / d W at the weights that it received.
EXCHANGES = ("weights", "gradients")


class RefusedError(ValueError):
    """A message that breaks the contract; ``reason`` is its name in the ledger."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence[:MAX_SENTENCE])  # it quotes the message, which can be long
        self.reason = reason


class Order(NamedTuple):
    """A train message, checked. The work pauses where the part ``pause`` is exchanged; empty: nowhere."""

    round: int
    work: int
    layout: int
    exchange: str
    parts: list[str]
    pause: str
    settle: bool
    save: bool


class Trained(NamedTuple):
    """The reply to a train message, checked."""

    agent: int
    parts: dict[str, F32]
    steps: int
    lived: int
    updates: float
    measured: dict[str, float]


class Evaluated(NamedTuple):
    """The reply to an evaluate message, checked."""

    agent: int
    value: float


class Described(NamedTuple):
    """The reply to a query, checked."""

    agent: int
    layout: int
    app: str
    entries: dict[str, Any]


def pack(parts: Mapping[str, F32]) -> dict[str, bytes]:
    """Return these arrays as entries of a message."""
    return {ARRAY + name: np.ascontiguousarray(row, "<f4").tobytes() for name, row in parts.items()}


def content(*entries: Mapping[str, Any]) -> RecordDict:
    """Return the content of a message with all these entries. Without entries it has no record."""
    merged = {name: value for group in entries for name, value in group.items()}
    return RecordDict({RECORD: ConfigRecord(merged)} if merged else {})


def entries(content: RecordDict) -> dict[str, Any]:
    """Return the entries of a message by name."""
    record = content.get(RECORD)
    return dict(record.items()) if isinstance(record, ConfigRecord) else {}


def arrays(content: RecordDict) -> dict[str, int]:
    """Return the size in bytes of every array of a message."""
    return {
        name.removeprefix(ARRAY): len(value)
        for name, value in entries(content).items()
        if name.startswith(ARRAY) and isinstance(value, bytes)
    }


def request_key(content: RecordDict) -> str:
    """Return a key of what a message asks for, without its weights. Agents with equal keys can be trained together."""
    return repr(sorted(item for item in entries(content).items() if not item[0].startswith((ARRAY, NEIGHBOUR))))


def work_report(counts: Iterable[Any], seconds: Iterable[float], metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the entries of a reply to a train message. Two lists are cheaper in Flower than eight entries."""
    lists: dict[str, Any] = {
        "counts": [int(value) for value in counts],
        "seconds": [round(float(value), 6) for value in seconds],
    }
    return lists | {MEASURED + name: value for name, value in metrics.items()}


def layout(algorithm: str, observations: object, actions: object, widths: Mapping[str, int]) -> int:
    """Return a number that two agents share exactly when their weights mean the same. It fits a metric."""
    text = f"{algorithm} {observations} {actions} {sorted(widths.items())}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def unpack(message: Message, widths: Mapping[str, int]) -> dict[str, F32]:
    """Return the arrays of a message. Refuses other parts, other lengths, and numbers that are not finite."""
    given = _entries_of(message)
    if widths and not any(name.startswith(ARRAY) for name in given):
        raise RefusedError("no-arrays", "the message has no arrays")
    names = {name.removeprefix(ARRAY) for name in given if name.startswith(ARRAY)}
    if names != set(widths):
        raise RefusedError("wrong-parts", f"the message has the parts {sorted(names)}, expected {sorted(widths)}")
    return {name: _row(name, given[ARRAY + name], width) for name, width in widths.items()}


def order(message: Message) -> Order:
    """Return a train message, checked by the agent that receives it."""
    given = entries(message.content)
    kinds = {"round": int, "work": int, "layout": int, "exchange": str, "parts": list, "pause": str}
    kinds |= {"settle": bool, "save": bool}
    wrong = [name for name, kind in kinds.items() if type(given.get(name)) is not kind]
    if not wrong and given["exchange"] not in EXCHANGES:
        raise RefusedError("no-order", f"'exchange' must be one of {', '.join(EXCHANGES)}, not {given['exchange']!r}")
    if wrong:
        raise RefusedError("no-order", f"the train message lacks {', '.join(wrong)}, or their type is wrong")
    return Order(*(given[name] for name in Order._fields))


def trained(message: Message, widths: Mapping[str, int], layout: int) -> Trained:
    """Return the reply to a train message, checked. Raises RefusedError."""
    parts = unpack(message, widths)
    given = _entries_of(message)
    agent, own_layout, steps, lived, updates = _counts(given)
    if own_layout != layout:
        raise RefusedError("wrong-layout", f"the weights of agent {agent} have another layout than {layout:012x}")
    if min(steps, lived, updates) < 0:
        raise RefusedError(
            "negative-work",
            f"agent {agent} reports {steps} steps, {lived} in all and {updates} updates; none may be below 0",
        )
    measured = {name[len(MEASURED) :]: _number(given, name) for name in given if name.startswith(MEASURED)}
    if len(measured) > MAX_METRICS or any(len(name) > 60 for name in measured):
        raise RefusedError(
            "no-number",
            f"agent {agent} sends {len(measured):,} metrics, or one whose name is longer than 60 letters; at most "
            f"{MAX_METRICS:,} are allowed",
        )
    measured |= zip(SECONDS, _seconds(given), strict=True)
    return Trained(agent, parts, steps, lived, updates, measured)


def is_address(value: object) -> bool:
    """Return whether this is an address HOST:PORT of a peer."""
    if not isinstance(value, str):
        return False
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/,%\[\]]{1,253}):(\d{1,5})", value)
    return match is not None and 0 < int(match[2]) < 65536


def roster(message: Message) -> dict[int, str]:
    """Return the peers that a train message names, and the address of each."""
    given = entries(message.content)
    peers, addresses = given.get("peers"), given.get("addresses")
    if not isinstance(peers, list) or not isinstance(addresses, list) or len(peers) != len(addresses):
        raise RefusedError("no-order", "the train message lacks its peers, or an address for each of them")
    if not all(type(peer) is int and peer >= 0 for peer in peers) or not all(map(is_address, addresses)):
        raise RefusedError("no-order", "the peers of the train message are no numbers, or their addresses no HOST:PORT")
    return dict(zip(peers, addresses, strict=True))


def sender(message: Message) -> int:
    """Return the agent that a reply to a train message claims to come from."""
    return _counts(_entries_of(message))[0]


def neighbours(message: Message) -> dict[str, float]:
    """Return the weight of each neighbour's policy in a train message, by the name of its array."""
    given, weights = entries(message.content), {}
    for name in arrays(message.content):
        if name.startswith(NEIGHBOUR):
            weights[name] = float(_number(given, name))
            if weights[name] < 0:
                raise RefusedError("no-number", f"'{name}' has the weight {weights[name]:g}; weights are at least 0")
    return weights


def evaluated(message: Message) -> Evaluated:
    """Return the reply to an evaluate message, checked. Raises RefusedError."""
    given = _entries_of(message)
    agent = given.get("party")
    if type(agent) is not int:
        raise RefusedError("no-number", f"the message's 'party' is {_shown(agent)}, expected a whole number")
    return Evaluated(agent, _number(given, "return"))


def described(message: Message) -> Described:
    """Return the reply to a query, checked. Raises RefusedError."""
    given = _entries_of(message)
    wanted = {"party": int, "layout": int, "app": str}
    wrong = [name for name, kind in wanted.items() if type(given.get(name)) is not kind]
    if wrong:
        raise RefusedError("no-description", f"the reply to the query lacks {', '.join(wrong)}, or their type is wrong")
    return Described(given["party"], given["layout"], given["app"], given)


def _entries_of(message: Message) -> dict[str, Any]:
    """Return the entries of a reply. Raises RefusedError for an error."""
    if message.has_error():
        reason = message.error.reason or ""
        # A reply that is too large or cannot be read arrives as an error of the grid.
        name = next((name for name in (OVERSIZED, MALFORMED) if reason.startswith(f"{name}:")), "error-reply")
        raise RefusedError(name, f"the agent replied with an error: {reason}")
    return entries(message.content)


def _is_number(value: object) -> bool:
    """Return whether this is a finite number. The type is checked first: isfinite raises for a text."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _number(given: Mapping[str, Any], name: str) -> float:
    """Return a finite number of a message."""
    value = given.get(name)
    if not _is_number(value):
        raise RefusedError("no-number", f"the message's '{name}' is {_shown(value)}, expected a finite number")
    return float(value)  # type: ignore[arg-type]


def _counts(given: Mapping[str, Any]) -> list[int]:
    """Return the counts of a reply: whole numbers in the order of COUNTS."""
    return _list(given, "counts", len(COUNTS), _is_count, "whole numbers")


def _seconds(given: Mapping[str, Any]) -> list[float]:
    return _list(given, "seconds", len(SECONDS), _is_number, "numbers")


def _list(given: Mapping[str, Any], name: str, length: int, fits: Callable[[object], bool], kind: str) -> list[Any]:
    """Return a list of a message. Refuses another length, and values that do not fit."""
    values = given.get(name)
    if type(values) is not list or len(values) != length or not all(map(fits, values)):
        raise RefusedError("no-number", f"the message's '{name}' is {_shown(values)}, expected {length} {kind}")
    return values


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < MAX_COUNT


def _shown(value: object) -> str:
    """Return a value as an error message quotes it, cut to 60 letters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _row(name: str, value: object, width: int) -> F32:
    if not isinstance(value, bytes) or len(value) != 4 * width:
        actual = f"{len(value):,} bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"
        raise RefusedError("wrong-layout", f"'{name}' is {actual}, expected {4 * width:,} bytes, {width:,} float32")
    row = np.frombuffer(value, "<f4")
    if not np.isfinite(row).all():
        raise RefusedError("not-finite", f"'{name}' holds nan or infinity")
    if name.startswith(MOMENTS) and (row[0] < 0 or (row[1 + width // 2 :] < 0).any()):
        raise RefusedError("bad-moments", f"'{name}' holds a negative count or spread")
    return row
