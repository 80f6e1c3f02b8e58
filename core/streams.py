"""Randomness as a pure function of (run seed, agent, purpose, lane, count).

A stream is a key and the count of numbers drawn: SplitMix64 at ``key + count * GOLDEN``. So a stream belongs to one
agent, does not depend on which agents share a process, is saved as one integer, and one call draws for a whole fleet.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from core.rows import Rows

U64 = NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


@njit(cache=True, inline="always")
def mix64(z):  # type: ignore[no-untyped-def]
    """Return SplitMix64's finaliser: every output bit depends on every input bit."""
    z = uint64(z)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@njit(cache=True, inline="always")
def uniform01(key, count):  # type: ignore[no-untyped-def]
    """Return the count-th number in [0, 1) of a stream."""
    bits = mix64(uint64(key) + uint64(count + uint64(1)) * uint64(_GOLDEN))
    return float(bits >> uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def _fill(keys, counts, out):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[k, j] = uniform01(keys[k], counts[k] + uint64(j))
        counts[k] += uint64(out.shape[1])


@njit(cache=True)
def _box_muller(pairs):  # type: ignore[no-untyped-def]
    """Turn pairs of uniform numbers (L, 2, h) into pairs of normal ones, in place."""
    for k in range(pairs.shape[0]):
        for j in range(pairs.shape[2]):
            radius = math.sqrt(-2.0 * math.log1p(-pairs[k, 0, j]))
            angle = 2.0 * math.pi * pairs[k, 1, j]
            pairs[k, 0, j], pairs[k, 1, j] = radius * math.cos(angle), radius * math.sin(angle)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def child(seed: int, name: str | int) -> int:
    """Return a child in the seed tree (run seed, agent, purpose). It depends only on its path."""
    label = name if isinstance(name, int) else zlib.crc32(name.encode()) + (1 << 32)
    return _mix((_mix(seed & _MASK) + (label + 1) * _GOLDEN) & _MASK)


def agent_seeds(seed: int, agents: Sequence[int]) -> list[int]:
    """Return the seeds of the agents with these numbers."""
    return [child(child(seed, "agent"), int(agent)) for agent in agents]


# Numbers that all agents of a run, or the server, draw in a round: each purpose, and its place in the seed tree.
PURPOSES = {"batch": 0, "inner-steps": 1, "picked": 2, "graph": 3, "coin": 4}


def generator(seed: int, number: int, purpose: str) -> np.random.Generator:
    """Return the generator of one purpose in round ``number``; it depends only on these and the run's seed."""
    return np.random.default_rng([seed, number, PURPOSES[purpose]])


def sampling(seed: int, number: int) -> np.random.Generator:
    """Return the generator that draws which agents take part in a round."""
    return np.random.default_rng(child(seed, number))


class Streams(Rows):
    """One stream per agent, or one per agent and lane (a lane is a copy of the world)."""

    ROWS = ("keys", "counts")

    def __init__(self, seeds: Sequence[int], purpose: str, lanes: int | None = None) -> None:
        own = [child(seed, purpose) for seed in seeds]
        paths = own if lanes is None else [[child(key, lane) for lane in range(lanes)] for key in own]
        self.keys: U64 = np.array(paths, dtype=np.uint64)
        self.counts: U64 = np.zeros_like(self.keys)

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """Draw numbers in [0, 1): one array of ``shape`` per stream."""
        out = np.empty((*self.keys.shape, *shape))
        counts = self.counts.reshape(-1)
        _fill(self.keys.reshape(-1), counts, out.reshape(self.keys.size, math.prod(shape)))
        self.counts[...] = counts.reshape(self.counts.shape)  # reshape copies a strided array
        return out

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """Draw standard normal numbers (Box-Muller)."""
        size = math.prod(shape)
        pairs = self.uniform(2, (size + 1) // 2)
        _box_muller(pairs.reshape(-1, *pairs.shape[-2:]))
        return pairs.reshape(*self.keys.shape, -1)[..., :size].reshape(*self.keys.shape, *shape)

    def integers(self, high: NDArray[np.int64] | int, *shape: int) -> NDArray[np.int64]:
        """Draw whole numbers in [0, high); ``high`` may differ per agent, or per agent and lane."""
        bound = np.asarray(high)
        if bound.ndim:
            bound = bound.reshape(bound.shape + (1,) * (self.keys.ndim + len(shape) - bound.ndim))
        drawn: NDArray[np.int64] = (self.uniform(*shape) * bound).astype(np.int64)
        return drawn

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Draw a random order of range(n) per stream."""
        return np.argsort(self.uniform(n), axis=-1, kind="stable")
