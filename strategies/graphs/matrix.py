"""Communication matrices: C[k][j] is how much agent k is pulled towards agent j.

C is directed, not negative, and has nothing on its diagonal. It is a registered graph that does not change, or JSON:
all of it, or {"edges": [[k, j, weight], ...]}, which is read as "k learns from j"."""

from __future__ import annotations

import json

import numpy as np

from core.errors import Mistake
from strategies.graphs import parse, topology
from strategies.graphs.parse import F64

# In a star every agent is pulled towards the average of all: its one neighbour is no agent.
STAR = "star"
KEY = "kl.matrix"


def names() -> tuple[str, ...]:
    """Return what a matrix may be called: the graphs that do not change from round to round, and the star."""
    return (*topology.fixed(), STAR)


def spelled(text: str) -> str:
    """Return a matrix's name or its JSON; refuses anything else."""
    return parse.spelled(text, KEY, names())


def inlined(text: str) -> str:
    """Return the same of what a user wrote, with the content of a file in place of its name."""
    return parse.inlined(text, KEY, names())


def communication(text: str, agents: int, normalise: bool) -> F64:
    """Return the matrix (K, K) of so many agents; normalised, a row that is not zero adds up to 1."""
    C = _named(text, agents) if text in topology.fixed() else _from_json(text, agents)
    sums = C.sum(axis=1, keepdims=True)
    return C / np.where(sums > 0, sums, 1.0) if normalise else C


def _named(text: str, agents: int) -> F64:
    C = np.zeros((agents, agents))
    receivers, senders = topology.graph(text).edges(agents, topology.Round(1))
    C[receivers, senders] = 1.0
    return C


def _from_json(text: str, agents: int) -> F64:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"'{KEY}' is no JSON: {error}") from None
    return parse.weights(found, agents, KEY)
