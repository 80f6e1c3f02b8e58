"""The compiled loops of the rules: sorted columns, mixtures of rows, distances, Krum's rounds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

LANES = 128  # columns sorted side by side: a vector instruction each, all rows of them in the nearest cache


@lru_cache(maxsize=64)
def network(n: int, first: int, last: int) -> NDArray[np.uint64]:
    """Comparators that put the entries ``first`` to ``last`` of n in their sorted places (Batcher's merge exchange).

    Which numbers are compared does not depend on the numbers, so many columns are sorted by the same instructions.
    Comparators that the wanted entries do not depend on are left out.
    """
    found: list[tuple[int, int]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p:
        q, r, distance = top, 0, p
        while True:
            found += [(i, i + distance) for i in range(n - distance) if i & p == r]
            if q == p:
                break
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    wanted, kept = set(range(first, last)), []
    for low, high in reversed(found):
        if low in wanted or high in wanted:
            kept.append((low, high))
            wanted |= {low, high}
    return np.array(kept[::-1], dtype=np.uint64).reshape(-1, 2)


@njit(cache=True, error_model="numpy")
def _turn(bits):  # type: ignore[no-untyped-def]
    """The bits of a float as a whole number that compares as the float does, and back. Whole numbers have a minimum
    that compiles to one instruction, and -0 and 0 have an order."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(cache=True, error_model="numpy")
def _sort_block(bits, begin, width, network, first, last, block):  # type: ignore[no-untyped-def]
    for i in range(bits.shape[0]):
        row = bits[i, begin : begin + width]
        for c in range(width):
            block[i, c] = _turn(row[c])
    for k in range(network.shape[0]):
        low, high = network[k, 0], network[k, 1]
        for c in range(block.shape[1]):
            a, b = block[low, c], block[high, c]
            block[low, c] = min(a, b)
            block[high, c] = max(a, b)
    for i in range(first, last):
        for c in range(width):
            block[i, c] = _turn(block[i, c])


@njit(cache=True, error_model="numpy")
def column_means(bits, network, first, last, out):  # type: ignore[no-untyped-def]
    block = np.zeros((bits.shape[0], LANES), np.int32)
    values = block.view(np.float32)
    total = np.empty(LANES)
    for begin in range(0, bits.shape[1], LANES):
        width = min(LANES, bits.shape[1] - begin)
        _sort_block(bits, begin, width, network, first, last, block)
        total[:] = 0.0
        for i in range(first, last):
            for c in range(width):
                total[c] += values[i, c]
        for c in range(width):
            out[begin + c] = np.float32(total[c] / (last - first))


@njit(cache=True, error_model="numpy")
def middle_means(bits, network, count, out):  # type: ignore[no-untyped-def]
    """The entries nearest to a median are neighbours among the sorted ones; of two as near, the smaller is in."""
    n = bits.shape[0]
    block = np.zeros((n, LANES), np.int32)
    values = block.view(np.float32)
    for begin in range(0, bits.shape[1], LANES):
        width = min(LANES, bits.shape[1] - begin)
        _sort_block(bits, begin, width, network, 0, n, block)
        for c in range(width):
            median = (np.float64(values[(n - 1) // 2, c]) + np.float64(values[n // 2, c])) / 2
            low = 0
            while low + count < n and median - values[low, c] > values[low + count, c] - median:
                low += 1
            total = 0.0
            for i in range(low, low + count):
                total += values[i, c]
            out[begin + c] = np.float32(total / count)


@njit(cache=True, error_model="numpy")
def not_finite(rows):  # type: ignore[no-untyped-def]
    found = np.zeros(rows.shape[0], np.bool_)
    bits = rows.view(np.int32)
    for i in range(rows.shape[0]):
        worst = np.int32(0)
        for c in range(rows.shape[1]):
            worst = max(worst, bits[i, c] & np.int32(0x7FFFFFFF))
        found[i] = worst >= np.int32(0x7F800000)
    return found


@njit(cache=True, error_model="numpy")
def mix(rows, order, shares):  # type: ignore[no-untyped-def]
    d = rows.shape[1]
    total = np.zeros(d)
    for begin in range(0, d, 1024):
        to = total[begin : begin + 1024]
        for k in range(order.shape[0]):
            if shares[k] != 0.0:
                row, share = rows[order[k], begin : begin + 1024], shares[k]
                for c in range(to.shape[0]):
                    to[c] += share * row[c]
    return total


@njit(cache=True, error_model="numpy")
def shift(rows, members, around, begin, out):  # type: ignore[no-untyped-def]
    """A chunk of columns, minus a point; in float64 where that is."""
    end = begin + out.shape[1]
    point = around[begin:end]
    for k in range(members.shape[0]):
        row, to = rows[members[k], begin:end], out[k]
        for c in range(to.shape[0]):
            to[c] = row[c] - point[c]


# Sums of squares may be added up in any order: it is the same order for the same row, whoever stands beside it.
@njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _squares(row, point):  # type: ignore[no-untyped-def]
    total = 0.0
    for c in range(row.shape[0]):
        difference = np.float64(row[c]) - np.float64(point[c])
        total += difference * difference
    return total


@njit(cache=True, error_model="numpy")
def squares_to(rows, point):  # type: ignore[no-untyped-def]
    out = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        out[i] = _squares(rows[i], point)
    return out


@njit(cache=True, error_model="numpy")
def pair_squares(rows, pairs):  # type: ignore[no-untyped-def]
    out = np.empty(pairs.shape[0])
    for k in range(pairs.shape[0]):
        out[k] = _squares(rows[pairs[k, 0]], rows[pairs[k, 1]])
    return out


@njit(cache=True, error_model="numpy")
def krum_rounds(distances, nearest, rounds, f):  # type: ignore[no-untyped-def]
    """Krum again and again among those it has not chosen yet. ``nearest``: per row, the others by distance.

    A score is the sum of the r - f - 2 smallest squared distances among the r that remain, at least of one. It is added
    up anew every time: taking away what was added leaves nothing beside a forged row of 1e30.
    """
    n = distances.shape[0]
    left, chosen = np.ones(n, np.bool_), np.empty(rounds, np.int64)
    for t in range(rounds):
        count = max(n - t - f - 2, min(1, n - t - 1))
        best, least = -1, np.inf
        for i in range(n):
            if not left[i]:
                continue
            score, seen, k = 0.0, 0, 0
            while seen < count:
                other = nearest[i, k]
                if left[other] and other != i:
                    score += distances[i, other]
                    seen += 1
                k += 1
            if best < 0 or score < least:
                best, least = i, score
        chosen[t], left[best] = best, False
    return chosen
