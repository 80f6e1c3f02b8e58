"""The means, with and without weights, and the mixing before another rule."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from strategies.rules.geometry import F32, I64, Cloud
from strategies.rules.rule import Rule, Verdict, enough


def weighted_mean(rows: F32, weights: NDArray[np.float64]) -> Verdict:
    """Return sum_k p_k w_k with p_k = n_k / n, added up in float64. Shares are equal if no agent did any work."""
    assert weights.shape == (len(rows),), (rows.shape, weights.shape)
    enough("weighted-mean", len(rows), 0)
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise ValueError("weights of a mean are finite and not negative")
    most = weights.max()
    parts = weights / most if most > 0 else np.ones(len(rows))
    cloud = Cloud(rows, ties=np.argsort(weights))
    return Verdict(cloud.mix((parts / math.fsum(parts))[cloud.order]), np.arange(len(rows)), {})


def mean(rows: F32) -> Verdict:
    """Aggregate with equal shares, whatever work an agent reports."""
    enough("mean", len(rows), 0)
    return mean_of(Cloud(rows), np.arange(len(rows)), {})


def mean_of(cloud: Cloud, members: I64, notes: dict[str, float]) -> Verdict:
    """Return the mean of these members as a verdict."""
    return Verdict(cloud.mean(members), cloud.names(members), notes)


def after_mixing(rule: Rule, f: int) -> Rule:
    """The rule on mixed rows: each the mean of the n - f nearest to it, itself among them (Allouah 2023).

    The kept rows are those in the mixtures that the rule kept.
    """

    def mixed(rows: F32, weights: NDArray[np.float64]) -> Verdict:
        n = len(rows)
        enough("mixing", n, f)
        cloud = Cloud(rows)
        nearest = np.argsort(cloud.squared(), axis=1, kind="stable")[:, : n - f]
        member = np.zeros((n, n), dtype=bool)
        np.put_along_axis(member, nearest, True, axis=1)
        verdict = rule(cloud.means(member), weights[cloud.order])
        return verdict._replace(kept=cloud.names(np.flatnonzero(member[verdict.kept].any(axis=0))))

    return mixed
