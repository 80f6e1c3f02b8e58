"""What the rules measure: lengths, distances, sorted columns, mixtures of rows. The only place with loops over numbers.

Three things are easy to get wrong, and are settled here for all rules:

- **Close rows.** |x|² + |y|² - 2xy is noise when x and y differ by a thousandth of their length. So distances are taken
  around a centre, and the centre is the median of every column: a liar moves a mean as far as it likes, and the honest
  rows would look alike from there. What the centre does not cure is measured again, more exactly (``squared``).
- **Huge rows.** 1e30 squared is no float32. Such sums are found out in the same way and taken in float64.
- **Order.** Sums of floats depend on the order of the terms, and so would ties. So rows are put in an order that comes
  from what they hold alone, that of their bytes: parties may answer in any order, the result is the same bit for bit.
  Equal rows are measured once, so that they tie exactly.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_LANES = 128  # columns sorted side by side: a vector instruction each, all rows of them in the nearest cache
_CHUNK = 4096  # columns at a time: what is made on the way stays small beside the rows
# A squared distance is believed when it is at least this share of the squared lengths it was made from: its own error
# is then below 1e-4 of it in float32 (usually below 1e-6), and below 1e-6 in float64. And a number whose square is no
# normal float32 any more says nothing there: the least that a column must bring.
_BELIEVED = ((np.dtype(np.float32), 1e-2, 1e-30), (np.dtype(np.float64), 1e-9, 0.0))


class Cloud:
    """n rows of d numbers, in an order of their own; members of a cloud are positions in that order.

    ``ties`` decides where the order of the bytes does not: it is an order in which equal rows stay.
    """

    def __init__(self, rows: F32, ties: I64 | None = None) -> None:
        assert rows.ndim == 2 and rows.dtype == np.float32, (rows.shape, rows.dtype)
        self.rows = np.ascontiguousarray(rows)
        bad = np.flatnonzero(_not_finite(self.rows))
        if bad.size:
            raise ValueError(f"rows with a nan or an infinity: {', '.join(map(str, bad))}")
        first = range(len(rows)) if ties is None else ties.tolist()
        groups = _by_bytes(self.rows, list(first), 0, 16)
        self.order: I64 = np.array([i for group in groups for i in group], dtype=np.int64)
        self.group: I64 = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        self._heads: I64 = np.searchsorted(self.group, np.arange(len(groups)))
        self._centre: F32 | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, members: I64) -> I64:
        """Where these members stand among the rows as they came, ascending."""
        return np.sort(self.order[members])

    @property
    def centre(self) -> F32:
        """The median of every column."""
        if self._centre is None:
            self._centre = self.sorted_mean((len(self) - 1) // 2, len(self) // 2 + 1)
        return self._centre

    def sorted_mean(self, first: int, last: int) -> F32:
        """Of every column, sorted, the mean of the entries ``first`` to ``last``, without the last."""
        out = np.empty(self.rows.shape[1], dtype=np.float32)
        _sorted_mean(self.rows.view(np.int32), network(len(self), first, last), first, last, out)
        return out

    def middle_mean(self, members: I64, count: int) -> F32:
        """Of every column, the mean of those ``count`` entries of these members that lie nearest to their median."""
        chosen = np.ascontiguousarray(self.rows[self.order[members]]).view(np.int32)
        out = np.empty(self.rows.shape[1], dtype=np.float32)
        _middle_mean(chosen, network(len(members), 0, len(members)), count, out)
        return out

    def blend(self, shares: F64) -> F64:
        """sum_i shares_i x_i in float64; a row without a share is not read."""
        assert shares.shape == (len(self),), shares.shape
        blended: F64 = _mix(self.rows, self.order, shares)
        return blended

    def mix(self, shares: F64) -> F32:
        return self.blend(shares).astype(np.float32)

    def mean(self, members: I64) -> F32:
        shares = np.zeros(len(self))
        shares[members] = 1.0 / len(members)
        return self.mix(shares)

    def means(self, member: NDArray[np.bool_]) -> F32:
        """One mean per row of ``member``, (n, n): of the members that are true in it."""
        shares = member / member.sum(axis=1, keepdims=True)
        out = np.empty_like(self.rows)
        for begin in range(0, out.shape[1], _CHUNK):
            part = slice(begin, begin + _CHUNK)
            out[:, part] = shares @ self.rows[self.order, part].astype(np.float64)
        return out

    def distances_to(self, point: NDArray[np.floating]) -> F64:
        """|x_i - point| of every member, difference by difference."""
        squares: F64 = _distances_to(self.rows, point.astype(np.float64))[self.order]
        return np.sqrt(squares)

    def gram(self) -> F64:
        """(x_i - centre)(x_j - centre) in float64, (n, n)."""
        return self._spread(self._gram(self.centre, np.dtype(np.float64)))

    def squared(self) -> F64:
        """|x_i - x_j|², (n, n): by a product in float32; where that says too little, in float64; then pair by pair."""
        for kind, share, least in _BELIEVED:
            around = self._central_row() if kind == np.float32 else self.centre
            gram = self._gram(around, kind)
            lengths = np.diag(gram)[:, None] + np.diag(gram)
            with np.errstate(invalid="ignore"):  # inf - inf, of huge rows in float32, is no distance to believe
                distances = lengths - 2.0 * gram
                unsure = ~(distances > share * lengths + least * self.rows.shape[1]) | np.isinf(lengths)
            np.fill_diagonal(unsure, False)
            if not unsure.any():
                break
        else:
            pairs = np.argwhere(np.triu(unsure))
            found = _pairs(self.rows, self.order[self._heads][pairs])
            distances[pairs[:, 0], pairs[:, 1]] = distances[pairs[:, 1], pairs[:, 0]] = found
        np.fill_diagonal(distances, 0.0)
        return self._spread(distances)

    def _central_row(self) -> F32:
        """The row nearest to the median of a thousand columns: a centre good enough for most clouds, and cheap."""
        sample = np.ascontiguousarray(self.rows[:, :: max(1, self.rows.shape[1] // 1024)][self.order])
        median = np.empty(sample.shape[1], dtype=np.float32)
        middle = (len(self) - 1) // 2, len(self) // 2 + 1
        _sorted_mean(sample.view(np.int32), network(len(self), *middle), *middle, median)
        row: F32 = self.rows[self.order[np.argmin(_distances_to(sample, median.astype(np.float64)))]]
        return row

    def _gram(self, around: F32, kind: np.dtype[Any]) -> F64:
        """The product of the distinct rows around a point, summed up over chunks of columns in float64."""
        members, d = self.order[self._heads], self.rows.shape[1]
        gram = np.zeros((len(members), len(members)))
        space, point = np.empty(len(members) * min(_CHUNK, d), dtype=kind), around.astype(kind)
        for begin in range(0, d, _CHUNK):
            end = min(begin + _CHUNK, d)
            near = space[: len(members) * (end - begin)].reshape(len(members), -1)
            _shift(self.rows, members, point, begin, near)
            with np.errstate(over="ignore", invalid="ignore"):
                gram += near @ near.T
        return gram

    def _spread(self, table: F64) -> F64:
        """A table of the distinct rows as one of all members."""
        return table if len(table) == len(self) else table[np.ix_(self.group, self.group)]


def _by_bytes(rows: F32, members: list[int], start: int, width: int) -> list[list[int]]:
    """Groups of equal rows in the order of their bytes; a few numbers tell most rows apart, so few are looked at."""
    if start:  # rows that begin alike are mostly equal
        bits = rows[:, start:].view(np.int32)
        if all(np.array_equal(bits[i], bits[members[0]]) for i in members[1:]):
            return [members]
    text = {i: rows[i, start : start + width].tobytes() for i in members}
    groups = [list(group) for _, group in groupby(sorted(members, key=text.__getitem__), text.__getitem__)]
    if start + width >= rows.shape[1]:
        return groups
    del text
    longer = [[group] if len(group) == 1 else _by_bytes(rows, group, start + width, 8 * width) for group in groups]
    return [group for several in longer for group in several]


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
def _sorted_mean(bits, network, first, last, out):  # type: ignore[no-untyped-def]
    block = np.zeros((bits.shape[0], _LANES), np.int32)
    values = block.view(np.float32)
    total = np.empty(_LANES)
    for begin in range(0, bits.shape[1], _LANES):
        width = min(_LANES, bits.shape[1] - begin)
        _sort_block(bits, begin, width, network, first, last, block)
        total[:] = 0.0
        for i in range(first, last):
            for c in range(width):
                total[c] += values[i, c]
        for c in range(width):
            out[begin + c] = np.float32(total[c] / (last - first))


@njit(cache=True, error_model="numpy")
def _middle_mean(bits, network, count, out):  # type: ignore[no-untyped-def]
    """The entries nearest to a median are neighbours among the sorted ones; of two as near, the smaller is in."""
    n = bits.shape[0]
    block = np.zeros((n, _LANES), np.int32)
    values = block.view(np.float32)
    for begin in range(0, bits.shape[1], _LANES):
        width = min(_LANES, bits.shape[1] - begin)
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
def _not_finite(rows):  # type: ignore[no-untyped-def]
    found = np.zeros(rows.shape[0], np.bool_)
    bits = rows.view(np.int32)
    for i in range(rows.shape[0]):
        worst = np.int32(0)
        for c in range(rows.shape[1]):
            worst = max(worst, bits[i, c] & np.int32(0x7FFFFFFF))
        found[i] = worst >= np.int32(0x7F800000)
    return found


@njit(cache=True, error_model="numpy")
def _mix(rows, order, shares):  # type: ignore[no-untyped-def]
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
def _shift(rows, members, around, begin, out):  # type: ignore[no-untyped-def]
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
def _distances_to(rows, point):  # type: ignore[no-untyped-def]
    out = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        out[i] = _squares(rows[i], point)
    return out


@njit(cache=True, error_model="numpy")
def _pairs(rows, pairs):  # type: ignore[no-untyped-def]
    out = np.empty(pairs.shape[0])
    for k in range(pairs.shape[0]):
        out[k] = _squares(rows[pairs[k, 0]], rows[pairs[k, 1]])
    return out


@njit(cache=True, error_model="numpy")
def krum_rounds(distances, nearest, rounds, f):  # type: ignore[no-untyped-def]
    """Krum again and again among those it has not chosen yet. ``nearest``: per row, the others by distance.

    A score is the sum of the r - f - 2 smallest squared distances among the r that remain, at least of one. It is added
    up anew every time: taking away what was added leaves nothing beside a liar at 1e30.
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
