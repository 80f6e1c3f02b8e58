"""What a message may hold, checked on both sides. The table of it stands in ARCHITECTURE.md.

A message is one ConfigRecord: words and numbers under their names, and arrays, one flat vector per part, as raw
little-endian float32. Flower's cost is per object, not per byte: an ArrayRecord would be three objects more in every
message, a MetricRecord one more.
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
# A message's one record, and the beginning of those of its entries that are arrays.
RECORD, ARRAY = "fedrl", "array."
# Arrays with this beginning are running moments (count, mean, M2), not weights.
MOMENTS = "moments."
# Arrays with this beginning are policies of others; the number of the same name says how much it pulls, maybe nothing.
NEIGHBOUR = "neighbour."
# Arrays with this beginning are gradients of all: the step that agents paused before is taken down them.
GRADIENT = "gradient."
# Numbers with this beginning are what the algorithm measured: losses, shares, entropies.
MEASURED = "metric."
# What the grid says of a reply that it could not take, or not read; a message's reason begins with it.
OVERSIZED, MALFORMED = "oversized", "malformed"
SENTENCE = 1000
# So many figures an algorithm may have measured, and so far a party may have counted: a float holds it exactly.
MOST_MEASURED, MOST = 4096, 2**53
# What a party says of its work, and of the seconds of the answer that it was part of; each is a list in this order.
SAID = ("party", "layout", "steps", "lived", "updates")
SECONDS = ("acting_s", "learning_s", "took_s")
# What a party sends back: the weights it has after its work, or a gradient d loss / d W measured at those that came.
EXCHANGES = ("weights", "gradients")


class RefusedError(ValueError):
    """A message that breaks the contract; ``reason`` is its name in the ledger."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence[:SENTENCE])  # it quotes what came, which is as long as its sender likes
        self.reason = reason


class Order(NamedTuple):
    """What a train message asks for; work ends at the exchange of the part ``pause``, or with whole updates."""

    round: int
    work: int
    layout: int
    exchange: str
    parts: list[str]
    pause: str
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


def pack(parts: Mapping[str, F32]) -> dict[str, bytes]:
    """The entries of these arrays."""
    return {ARRAY + name: np.ascontiguousarray(row, "<f4").tobytes() for name, row in parts.items()}


def content(*entries: Mapping[str, Any]) -> RecordDict:
    """A message's content with all these entries; without a record when there are none."""
    whole = {name: value for some in entries for name, value in some.items()}
    return RecordDict({RECORD: ConfigRecord(whole)} if whole else {})


def entries(content: RecordDict) -> dict[str, Any]:
    """What a message holds, by name."""
    record = content.get(RECORD)
    return dict(record.items()) if isinstance(record, ConfigRecord) else {}


def arrays(content: RecordDict) -> dict[str, int]:
    """The arrays of a message and their bytes."""
    return {
        name.removeprefix(ARRAY): len(value)
        for name, value in entries(content).items()
        if name.startswith(ARRAY) and isinstance(value, bytes)
    }


def question(content: RecordDict) -> str:
    """What a message asks, apart from the weights that come with it: equal for agents that can be answered at once."""
    return repr(sorted(one for one in entries(content).items() if not one[0].startswith((ARRAY, NEIGHBOUR))))


def account(said: Iterable[Any], seconds: Iterable[float], measured: Mapping[str, float]) -> dict[str, Any]:
    """What a reply to a train message says: SAID and SECONDS as two lists, since Flower's cost is per entry too."""
    lists: dict[str, Any] = {
        "said": [int(value) for value in said],
        "seconds": [round(float(value), 6) for value in seconds],
    }
    return lists | {MEASURED + name: value for name, value in measured.items()}


def layout(algorithm: str, observations: object, actions: object, widths: Mapping[str, int]) -> int:
    """A number that two parties share exactly when their weights mean the same; it fits a metric."""
    words = f"{algorithm} {observations} {actions} {sorted(widths.items())}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:6], "big")


def unpack(message: Message, widths: Mapping[str, int]) -> dict[str, F32]:
    """The arrays of a message; refused unless they are exactly these, finite and float32."""
    given = _said(message)
    if widths and not any(name.startswith(ARRAY) for name in given):
        raise RefusedError("no-arrays", "the message has no arrays")
    names = {name.removeprefix(ARRAY) for name in given if name.startswith(ARRAY)}
    if names != set(widths):
        raise RefusedError("wrong-parts", f"the message has the parts {sorted(names)}, expected {sorted(widths)}")
    return {name: _row(name, given[ARRAY + name], width) for name, width in widths.items()}


def order(message: Message) -> Order:
    """What a train message asks for, checked by the party that gets it."""
    given = entries(message.content)
    kinds = {"round": int, "work": int, "layout": int, "exchange": str, "parts": list, "pause": str}
    kinds |= {"settle": bool, "save": bool}
    wrong = [name for name, kind in kinds.items() if type(given.get(name)) is not kind]
    if not wrong and given["exchange"] not in EXCHANGES:
        raise RefusedError("no-order", f"'exchange' is one of {', '.join(EXCHANGES)}, not {given['exchange']!r}")
    if wrong:
        raise RefusedError("no-order", f"the train message does not say its {', '.join(wrong)}")
    return Order(*(given[name] for name in Order._fields))


def trained(message: Message, widths: Mapping[str, int], layout: int) -> Trained:
    """A reply to a train message, or a refusal by name."""
    parts = unpack(message, widths)
    given = _said(message)
    agent, means, steps, lived, updates = _counts(given)
    if means != layout:
        raise RefusedError("wrong-layout", f"agent {agent} answers for another layout than {layout:012x}")
    if min(steps, lived, updates) < 0:
        raise RefusedError("negative-work", f"agent {agent} says it did {steps} steps, {updates} updates")
    measured = {name[len(MEASURED) :]: _number(given, name) for name in given if name.startswith(MEASURED)}
    if len(measured) > MOST_MEASURED or any(len(name) > 60 for name in measured):
        raise RefusedError(
            "no-number",
            f"agent {agent} measured {len(measured):,} figures, or one whose name is longer than 60 letters",
        )
    measured |= zip(SECONDS, _seconds(given), strict=True)
    return Trained(agent, parts, steps, lived, updates, measured)


def is_address(said: object) -> bool:
    """Whether it is HOST:PORT, as a peer is reached at."""
    found = (
        re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/,%\[\]]{1,253}):(\d{1,5})", said) if isinstance(said, str) else None
    )
    return found is not None and 0 < int(found[2]) < 65536


def roster(message: Message) -> dict[int, str]:
    """Who learns together with whom comes with a train message, and where they are reached."""
    given = entries(message.content)
    who, where = given.get("peers"), given.get("addresses")
    if not isinstance(who, list) or not isinstance(where, list) or len(who) != len(where):
        raise RefusedError("no-order", "the train message does not say its peers and their addresses")
    if not all(type(one) is int and one >= 0 for one in who) or not all(map(is_address, where)):
        raise RefusedError("no-order", "the train message's peers are no numbers, or their addresses no HOST:PORT")
    return dict(zip(who, where, strict=True))


def party(message: Message) -> int:
    """Which agent a reply to a train message says it is from."""
    return _counts(_said(message))[0]


def neighbours(message: Message) -> dict[str, float]:
    """How much each policy of others that came with a train message pulls, by its array's name."""
    given, found = entries(message.content), {}
    for name in arrays(message.content):
        if name.startswith(NEIGHBOUR):
            found[name] = float(_number(given, name))
            if found[name] < 0:
                raise RefusedError("no-number", f"'{name}' has the weight {found[name]:g}, and none is below 0")
    return found


def judged(message: Message) -> Judged:
    """A reply to an evaluate message, or a refusal by name."""
    given = _said(message)
    agent = given.get("party")
    if type(agent) is not int:
        raise RefusedError("no-number", f"the message's 'party' is {_shown(agent)}, expected a whole number")
    return Judged(agent, _number(given, "return"))


def described(message: Message) -> Described:
    """A reply to a query, or a refusal by name."""
    words = _said(message)
    wanted = {"party": int, "layout": int, "app": str}
    wrong = [name for name, kind in wanted.items() if type(words.get(name)) is not kind]
    if wrong:
        raise RefusedError("no-description", f"the party does not say its {', '.join(wrong)}")
    return Described(words["party"], words["layout"], words["app"], words)


def _said(message: Message) -> dict[str, Any]:
    if message.has_error():
        reason = message.error.reason or ""
        # What cannot be taken or read comes as an error of the grid's own.
        name = next((name for name in (OVERSIZED, MALFORMED) if reason.startswith(f"{name}:")), "error-reply")
        raise RefusedError(name, f"the party answered with an error: {reason}")
    return entries(message.content)


def _is_number(value: object) -> bool:
    """Whether it is a number, and a finite one; its type comes first, as a text has no size."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _number(said: Mapping[str, Any], name: str) -> float:
    """A finite number of a message."""
    value = said.get(name)
    if not _is_number(value):
        raise RefusedError("no-number", f"the message's '{name}' is {_shown(value)}, expected a finite number")
    return float(value)  # type: ignore[arg-type]


def _counts(said: Mapping[str, Any]) -> list[int]:
    """What a party says of its work: whole numbers in the order of SAID."""
    return _list(said, "said", len(SAID), _is_count, "whole numbers")


def _seconds(said: Mapping[str, Any]) -> list[float]:
    return _list(said, "seconds", len(SECONDS), _is_number, "numbers")


def _list(said: Mapping[str, Any], name: str, length: int, fits: Callable[[object], bool], words: str) -> list[Any]:
    """A list of a message, of this length and of nothing else than what fits."""
    values = said.get(name)
    if type(values) is not list or len(values) != length or not all(map(fits, values)):
        raise RefusedError("no-number", f"the message's '{name}' is {_shown(values)}, expected {length} {words}")
    return values


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < MOST


def _shown(value: object) -> str:
    """A value as a sentence quotes it, however long it is."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _row(name: str, value: object, width: int) -> F32:
    if not isinstance(value, bytes) or len(value) != 4 * width:
        found = f"{len(value):,} bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"
        raise RefusedError("wrong-layout", f"'{name}' is {found}, expected {4 * width:,} bytes, {width:,} float32")
    row = np.frombuffer(value, "<f4")
    if not np.isfinite(row).all():
        raise RefusedError("not-finite", f"'{name}' holds nan or infinity")
    if name.startswith(MOMENTS) and (row[0] < 0 or (row[1 + width // 2 :] < 0).any()):
        raise RefusedError("bad-moments", f"'{name}' holds a negative count or spread")
    return row
