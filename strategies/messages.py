"""What a message may hold, checked on both sides.

train     ->  arrays: one float32 vector per exchanged part or moments;  config: work (int)
          <-  arrays: the same, moments holding what was seen since;
              metrics: party, steps, updates (the weights of the mean), training-return
evaluate  ->  arrays: one float32 vector per exchanged part
          <-  metrics: party, return
query     ->  nothing
          <-  arrays: none;  config: party, algorithm, world, and the width of every part
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

F32 = NDArray[np.float32]
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
# Arrays with this beginning are running moments (count, mean, M2), not weights.
MOMENTS = "moments."


class RefusedError(ValueError):
    """A message that breaks the contract; ``reason`` is its name in the ledger."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def pack(parts: Mapping[str, F32]) -> ArrayRecord:
    """One flat array per part: Flower's cost is per object, not per byte."""
    return ArrayRecord({name: Array(np.ascontiguousarray(row, dtype=np.float32)) for name, row in parts.items()})


def content(
    arrays: ArrayRecord | None = None, config: ConfigRecord | None = None, metrics: MetricRecord | None = None
) -> RecordDict:
    """A message's content with only the records that it has."""
    named = {ARRAYS: arrays, CONFIG: config, METRICS: metrics}
    return RecordDict({name: record for name, record in named.items() if record is not None})


def unpack(message: Message, widths: Mapping[str, int]) -> dict[str, F32]:
    """The parts of a message; refused unless they are exactly these, finite and float32."""
    if message.has_error():
        raise RefusedError("error-reply", f"the party answered with an error: {message.error.reason}")
    record = message.content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise RefusedError("no-arrays", f"the message has no '{ARRAYS}'")
    if set(record) != set(widths):
        raise RefusedError("wrong-parts", f"the message has the parts {sorted(record)}, expected {sorted(widths)}")
    parts: dict[str, F32] = {}
    for name, width in widths.items():
        array = record[name]
        if array.dtype != "float32" or tuple(array.shape) != (width,):
            given = f"{array.dtype}{list(array.shape)}"
            raise RefusedError("wrong-layout", f"'{name}' is {given}, expected float32[{width}]")
        try:
            row = array.numpy()
        except (ValueError, EOFError, OSError) as error:
            raise RefusedError("unreadable", f"'{name}' cannot be read: {error}") from None
        # The header of the bytes is the sender's too: believe what came, not what was announced.
        if row.dtype != np.float32 or row.shape != (width,):
            raise RefusedError(
                "wrong-layout", f"'{name}' holds {row.dtype}{list(row.shape)}, expected float32[{width}]"
            )
        if not np.isfinite(row).all():
            raise RefusedError("not-finite", f"'{name}' holds nan or infinity")
        if name.startswith(MOMENTS) and (row[0] < 0 or (row[1 + width // 2 :] < 0).any()):
            raise RefusedError("bad-moments", f"'{name}' holds a negative count or spread")
        parts[name] = row
    return parts


def number(message: Message, name: str) -> float:
    """A finite number among a reply's metrics."""
    if message.has_error():
        raise RefusedError("error-reply", f"the party answered with an error: {message.error.reason}")
    record = message.content.get(METRICS)
    value = record.get(name) if isinstance(record, MetricRecord) else None
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise RefusedError("no-metric", f"the reply's metric '{name}' is {value!r}, expected a finite number")
    return float(value)
