"""Running mean and variance per agent, in two samples: what the federation shares, and what was seen since.

Agents send only what they have seen since the last exchange. Samples are merged by the parallel-variance formula
(Chan 1979), so that nothing is counted twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.rows import Rows

F64 = NDArray[np.float64]


def merged(a: F64, b: F64) -> F64:
    """Return the moments (..., 1 + 2w) = (count, mean, M2) of the union of two samples.

    n = na + nb;  d = mb - ma;  m = ma + d nb / n;  M2 = M2a + M2b + d^2 na nb / n.
    """
    assert a.shape == b.shape and a.shape[-1] % 2 == 1, (a.shape, b.shape)
    w = a.shape[-1] // 2
    na, nb = a[..., :1], b[..., :1]
    n = np.maximum(na + nb, 1e-300)
    d = b[..., 1 : 1 + w] - a[..., 1 : 1 + w]
    mean = a[..., 1 : 1 + w] + d * nb / n
    m2 = a[..., 1 + w :] + b[..., 1 + w :] + d * d * na * nb / n
    return np.concatenate([na + nb, mean, m2], axis=-1)


def measured(x: NDArray[np.floating]) -> F64:
    """Return the moments of samples (K, samples, w)."""
    mean = x.mean(axis=1, dtype=np.float64)
    m2 = ((x - mean[:, None]) ** 2).sum(axis=1, dtype=np.float64)
    return np.concatenate([np.full((len(x), 1), float(x.shape[1])), mean, m2], axis=1)


class Moments(Rows):
    """The moments of a stream of vectors, one row (count, mean, M2) per agent."""

    ROWS = ("shared", "seen")

    def __init__(self, agents: int, width: int) -> None:
        self.width = width
        self.shared: F64 = np.zeros((agents, 1 + 2 * width))
        self.seen: F64 = np.zeros((agents, 1 + 2 * width))

    def add(self, x: NDArray[np.floating]) -> None:
        """Add samples (K, samples, w), some of each agent."""
        self.seen[...] = merged(self.seen, measured(x))

    def take_over(self, shared: F64) -> None:
        """Replace the shared moments, which include what this agent has sent, and begin a new sample."""
        self.shared[...] = shared
        self.seen[...] = 0.0

    @property
    def mean(self) -> F64:
        return merged(self.shared, self.seen)[:, 1 : 1 + self.width]

    @property
    def std(self) -> F64:
        """The population standard deviation; 1 before the first sample."""
        moments = merged(self.shared, self.seen)
        count = moments[:, :1]
        spread = np.sqrt(moments[:, 1 + self.width :] / np.maximum(count, 1.0))
        return np.where(count > 0, np.maximum(spread, 1e-4), 1.0)
