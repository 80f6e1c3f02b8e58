"""The measurements of the rules: lengths, distances, sorted columns, mixtures of rows.

Three things are easy to get wrong, and are settled here for all rules:

- **Close rows.** |x|² + |y|² - 2xy is noise when x and y differ by a thousandth of their length. So distances are taken
  around a centre, and the centre is the median of every column: an attacker moves a mean without limit, and the honest
  rows would look alike from there. What the centre does not cure is measured again, more exactly (``squared``).
- **Huge rows.** 1e30 squared is no float32. Such sums are found out in the same way and taken in float64.
- **Order.** Sums of floats depend on the order of the terms, and so would ties. So rows are put in an order that comes
  from what they hold alone, that of their bytes: parties may answer in any order, the result is the same bit for bit.
  Equal rows are measured once, so that they tie exactly.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.rules import kernels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_CHUNK = 4096  # columns at a time: what is made on the way stays small beside the rows
# A squared distance is believed when it is at least this share of the squared lengths it was made from: its own error
# is then below 1e-4 of it in float32 (usually below 1e-6), and below 1e-6 in float64. And a number whose square is no
# normal float32 any more says nothing there: the least that a column must bring.
_BELIEVED = ((np.dtype(np.float32), 1e-2, 1e-30), (np.dtype(np.float64), 1e-9, 0.0))


class Cloud:
    """An (n, d) matrix with its rows sorted by content, so that results do not depend on the order of arrival.

    Members are indices into the sorted order. ``ties`` is the order of equal rows.
    """

    def __init__(self, rows: F32, ties: I64 | None = None) -> None:
        assert rows.ndim == 2 and rows.dtype == np.float32, (rows.shape, rows.dtype)
        self.rows = np.ascontiguousarray(rows)
        bad = np.flatnonzero(kernels.not_finite(self.rows))
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
        """Return the indices of these members in the original order, ascending."""
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
        kernels.column_means(self.rows.view(np.int32), kernels.network(len(self), first, last), first, last, out)
        return out

    def middle_mean(self, members: I64, count: int) -> F32:
        """Of every column, the mean of those ``count`` entries of these members that lie nearest to their median."""
        chosen = np.ascontiguousarray(self.rows[self.order[members]]).view(np.int32)
        out = np.empty(self.rows.shape[1], dtype=np.float32)
        kernels.middle_means(chosen, kernels.network(len(members), 0, len(members)), count, out)
        return out

    def blend(self, shares: F64) -> F64:
        """sum_i shares_i x_i in float64; a row without a share is not read."""
        assert shares.shape == (len(self),), shares.shape
        blended: F64 = kernels.mix(self.rows, self.order, shares)
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
        squares: F64 = kernels.squares_to(self.rows, point.astype(np.float64))[self.order]
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
            found = kernels.pair_squares(self.rows, self.order[self._heads][pairs])
            distances[pairs[:, 0], pairs[:, 1]] = distances[pairs[:, 1], pairs[:, 0]] = found
        np.fill_diagonal(distances, 0.0)
        return self._spread(distances)

    def _central_row(self) -> F32:
        """The row nearest to the median of a thousand columns: a centre good enough for most clouds, and cheap."""
        sample = np.ascontiguousarray(self.rows[:, :: max(1, self.rows.shape[1] // 1024)][self.order])
        median = np.empty(sample.shape[1], dtype=np.float32)
        middle = (len(self) - 1) // 2, len(self) // 2 + 1
        kernels.column_means(sample.view(np.int32), kernels.network(len(self), *middle), *middle, median)
        row: F32 = self.rows[self.order[np.argmin(kernels.squares_to(sample, median.astype(np.float64)))]]
        return row

    def _gram(self, around: F32, kind: np.dtype[Any]) -> F64:
        """The product of the distinct rows around a point, summed up over chunks of columns in float64."""
        members, d = self.order[self._heads], self.rows.shape[1]
        gram = np.zeros((len(members), len(members)))
        space, point = np.empty(len(members) * min(_CHUNK, d), dtype=kind), around.astype(kind)
        for begin in range(0, d, _CHUNK):
            end = min(begin + _CHUNK, d)
            near = space[: len(members) * (end - begin)].reshape(len(members), -1)
            kernels.shift(self.rows, members, point, begin, near)
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
