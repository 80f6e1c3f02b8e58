"""Rules that make one row of many: (n, d), weights (n,) -> a verdict, which is a row and who had a say in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.config import option
from core.errors import Mistake

F32 = NDArray[np.float32]


class Verdict(NamedTuple):
    """What a rule decided. Nobody kept is no verdict: the row is nan then, so that nobody takes it for one."""

    row: F32
    kept: NDArray[np.int64]  # which rows had a say, ascending
    notes: dict[str, float]  # for the ledger: a radius, a number of steps, ...


Rule = Callable[[F32, NDArray[np.float64]], Verdict]
RULES = ("weighted-mean", "mean")


class TooFewError(ValueError):
    """Fewer rows than a rule needs to survive its liars."""


@dataclass(frozen=True)
class RuleConfig:
    """How the rows of the parties become one."""

    rule: str = option("weighted-mean", "how the rows of the parties become one", choices=RULES)
    byzantine: int = option(0, "how many liars the rule must survive", low=0)


def weighted_mean(rows: F32, weights: NDArray[np.float64]) -> Verdict:
    """sum_k p_k w_k with p_k = n_k / n, added up in float64; equal shares when nobody did any work."""
    assert rows.ndim == 2 and weights.shape == (len(rows),), (rows.shape, weights.shape)
    if len(rows) == 0:
        raise TooFewError("a mean needs at least one row")
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise ValueError("weights of a mean are finite and not negative")
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(len(rows), 1.0 / len(rows))
    return Verdict((shares @ rows.astype(np.float64)).astype(np.float32), np.arange(len(rows)), {})


def mean(rows: F32, weights: NDArray[np.float64]) -> Verdict:
    """Every row the same share, whatever its party says it did."""
    return weighted_mean(rows, np.ones(len(rows)))


def make_rule(config: RuleConfig, parties: int) -> Rule:
    """The rule of a configuration, for this many parties."""
    if parties < 1:
        raise Mistake(f"'{config.rule}' needs at least one party")
    return mean if config.rule == "mean" else weighted_mean
