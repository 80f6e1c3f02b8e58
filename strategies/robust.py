"""Rules that make one row of many: (n, d), weights (n,) -> (d,)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Rule = Callable[[F32, NDArray[np.float64]], F32]


def weighted_mean(rows: F32, weights: NDArray[np.float64]) -> F32:
    """sum_k p_k w_k with p_k = n_k / n, added up in float64; equal shares when nobody did any work."""
    assert rows.ndim == 2 and weights.shape == (len(rows),), (rows.shape, weights.shape)
    if len(rows) == 0:
        raise ValueError("a mean needs at least one row")
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise ValueError("weights of a mean are finite and not negative")
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(len(rows), 1.0 / len(rows))
    mean: F32 = (shares @ rows.astype(np.float64)).astype(np.float32)
    return mean
