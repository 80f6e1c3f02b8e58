"""Means of rows whose length, or whose distance from a centre, is limited."""

from __future__ import annotations

import math

import numpy as np

from strategies.rules.geometry import F32, F64, Cloud
from strategies.rules.rule import Verdict, enough


def centered_clipping(rows: F32, f: int, radius: float = 0.0, steps: int = 3, start: F32 | None = None) -> Verdict:
    """v + mean_i of (x_i - v) clipped to length ``radius``, again and again (Karimireddy 2021).

    The paper begins at its previous result. Here the caller may pass it (``start``). Without it the rule
    begins at the median of every column. No attacker can move that far, and it needs no memory: there is nothing to
    save, and nothing that an earlier attack could have left behind.
    """
    enough("centered-clipping", len(rows), f)
    cloud = Cloud(rows)
    v: F64 = (cloud.centre if start is None else start).astype(np.float64)
    assert v.shape == rows.shape[1:], (v.shape, rows.shape)
    limit, clipped = radius, 0
    for _ in range(steps):
        distances = cloud.distances_to(v)
        limit = radius or float(np.median(distances))
        shares, clipped = _clipped(distances, limit)
        v = (1 - math.fsum(shares)) * v + cloud.blend(shares)
    return Verdict(v.astype(np.float32), np.arange(len(rows)), {"radius": limit, "clipped": clipped})


def norm_clipping(rows: F32, f: int, radius: float = 0.0) -> Verdict:
    """The mean of the rows, those longer than ``radius`` shortened to it."""
    enough("norm-clipping", len(rows), f)
    cloud = Cloud(rows)
    lengths = cloud.distances_to(np.zeros(rows.shape[1]))
    limit = radius or float(np.median(lengths))
    shares, clipped = _clipped(lengths, limit)
    return Verdict(cloud.mix(shares), np.arange(len(rows)), {"radius": limit, "clipped": clipped})


def _clipped(lengths: F64, limit: float) -> tuple[F64, int]:
    """Return the share of every row in a mean of rows clipped to the limit, and the number of clipped rows."""
    long = lengths > limit
    return np.where(long, limit / np.where(long, lengths, 1.0), 1.0) / len(lengths), int(long.sum())
