"""The parser of graphs: a name, rows, or edges. For gossip topologies and communication matrices."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import Mistake

F64 = NDArray[np.float64]
JSON = ("[", "{")


def spelled(text: str, key: str, names: tuple[str, ...]) -> str:
    """Return a graph's name or its JSON, and nothing else: a node that is sent a configuration opens no file for it."""
    text = text.strip()
    if text in names or text.startswith(JSON):
        return text
    raise Mistake(f"'{key}' is {', '.join(names)}, or JSON; files are read where a conf is: not '{text[:200]}'")


def inlined(text: str, key: str, names: tuple[str, ...]) -> str:
    """Return the same of what a user wrote, with the content of a file in place of its name."""
    text = text.strip()
    if text in names or text.startswith(JSON):
        return text
    try:
        if not Path(text).is_file():  # a device never ends, and a pipe waits
            raise OSError
        return json.dumps(json.loads(Path(text).read_text()), separators=(",", ":"))
    except (OSError, UnicodeDecodeError):
        raise Mistake(f"'{key}' is {', '.join(names)}, JSON, or a file that holds it, not '{text}'") from None
    except (ValueError, RecursionError) as error:
        raise Mistake(f"'{key}' = {text} holds no JSON: {error}") from None


def weights(found: Any, agents: int, key: str, own: bool = False) -> F64:
    """Return the matrix (K, K) that JSON holds: rows, or edges. ``own``: edges from an agent to itself are allowed."""
    if isinstance(found, dict):
        if set(found) != {"edges"} or not isinstance(found["edges"], list):
            raise Mistake(f"'{key}' is {{\"edges\": [[k, j, weight], ...]}}, or a list of rows")
        C = _edges(found["edges"], agents, key)
    else:
        C = _rows(found, agents, key)
    for k in np.flatnonzero(np.diag(C)):
        if not own:
            raise Mistake(f"'{key}' links agent {k} to itself")
    return C


def _edges(edges: list[Any], agents: int, key: str) -> F64:
    C, seen = np.zeros((agents, agents)), set()
    for edge in edges:
        if not isinstance(edge, list) or len(edge) != 3:
            raise Mistake(f"'{key}' has an edge {json.dumps(edge)}, and one is [k, j, weight]")
        for index in edge[:2]:
            if type(index) is not int or not 0 <= index < agents:
                raise Mistake(f"'{key}' has an edge {json.dumps(edge)}, and agents go from 0 to {agents - 1}")
        k, j, weight = edge
        if (k, j) in seen:
            raise Mistake(f"'{key}' has the edge from {k} to {j} twice")
        seen.add((k, j))
        C[k, j] = _weight(weight, k, j, key)
    return C


def _rows(rows: Any, agents: int, key: str) -> F64:
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise Mistake(f"'{key}' is a list of rows, each a list of weights")
    if any(len(row) != len(rows) for row in rows):
        widths = ", ".join(map(str, sorted({len(row) for row in rows})))
        raise Mistake(f"'{key}' is not square: {len(rows)} rows with {widths} weights")
    if len(rows) != agents:
        raise Mistake(f"'{key}' is for {len(rows)} agents, and the run has {agents}")
    C = [[_weight(weight, k, j, key) for j, weight in enumerate(row)] for k, row in enumerate(rows)]
    return np.array(C, np.float64).reshape(agents, agents)


def _weight(value: Any, k: int, j: int, key: str) -> float:
    where = f"'{key}' has the weight {json.dumps(value)} from {k} to {j}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Mistake(f"{where}, and a weight is a number")
    if not math.isfinite(value):
        raise Mistake(f"{where}, and weights are finite")
    if value < 0:
        raise Mistake(f"{where}: negative, it would push apart without end")
    return float(value)
