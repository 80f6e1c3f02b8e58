"""The filter of FedPG-BR."""

from __future__ import annotations

import math

import numpy as np

from strategies.rules.geometry import F32, Cloud
from strategies.rules.means import mean_of
from strategies.rules.rule import Verdict


def fedpg_filter(rows: F32, parties: int, batch: int, sigma: float, delta: float = 0.6, alpha: float = 0.4) -> Verdict:
    """Aggregate with the filter of FedPG-BR (Fan 2021): the mean of the rows near to a central one.

    The central row is near to more than half of all rows. A row is near to itself. K is ``parties``, also
    when some of them are silent: half means half of all.
    """
    K = parties
    assert len(rows) <= K and batch > 0, (len(rows), K, batch)
    V = 2 * math.log(2 * K / delta)
    threshold = 2 * sigma * math.sqrt(V / batch)
    notes = {"threshold": threshold, "wide-threshold": 2 * sigma}
    if len(rows):
        cloud = Cloud(rows)
        squared = cloud.squared()
        for regime, radius in ((1, threshold), (2, 2 * sigma)):
            near = squared <= radius**2
            S = np.flatnonzero(2 * near.sum(axis=1) > K)
            if not S.size:
                continue
            # |x - mean(S)|² is the mean of |x - y|² over y in S, less what is the same for every x.
            mom = S[np.argmin(np.sort(squared[np.ix_(S, S)], axis=1).sum(axis=1))]
            good = np.flatnonzero(near[mom])
            if regime == 2 or len(good) >= (1 - alpha) * K - 1e-9:
                return mean_of(cloud, good, notes | {"regime": regime, "radius": radius})
    # With neither radius is any row near to more than half of the rows.
    empty = np.full(rows.shape[1], np.nan, dtype=np.float32)
    return Verdict(empty, np.arange(0), notes | {"regime": 0, "radius": 2 * sigma})
