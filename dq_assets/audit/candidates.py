"""The classes that an image may be of: the given one and the most probable others, in one pass over the probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.rows import Codes, Float, Rows, Streamed, blocks, map_rows

GROUPS = 100
"""Maxima of so many groups of columns bound the top classes from below; for 12 of 1,000 columns the bound leaves 13 to sort."""
CACHED_CELLS = 250_000
"""Cells that are worked on at a time: 1 MB, which stays in the core's own cache from one step to the next."""


@dataclass(frozen=True)
class Candidates:
    """What one pass keeps of each of c rows: `classes` and `probs`, (c, width), and whether the given class is the most probable, (c,)."""

    classes: NDArray[np.int32]
    probs: Float
    right: NDArray[np.bool_]


def top_classes(given: Codes, probs: Rows | Streamed, rows: Codes, learnable: Codes, width: int) -> Candidates:
    """The given class, then the most probable other learnable ones, descending; of equal ones the lowest class first.

    given: (n,) codes; those of `rows`, (c,) ascending, are learnable. probs: (n, K), none negative. learnable: ascending class codes, at
    least `width`. `right` looks at all classes; of equal ones the lowest is the most probable.
    """
    classes = np.full((rows.size, width), -1, dtype=np.int32)
    top = np.zeros((rows.size, width), dtype=np.float32)
    right = np.zeros(rows.size, dtype=bool)
    n_classes = probs.shape[1]
    excluded = np.setdiff1d(np.arange(n_classes), learnable)

    def one(part: slice, block: Float) -> None:
        low, high = np.searchsorted(rows, (part.start, part.stop))
        for piece in blocks(int(high - low), n_classes, CACHED_CELLS):
            place = slice(low + piece.start, low + piece.stop)
            chosen = rows[place]
            own = given[chosen]
            values = block[piece] if high - low == len(block) else block[chosen - part.start]
            values = np.ascontiguousarray(values, np.float32)
            p, found = _highest(values, own, learnable, excluded, width)
            classes[place], top[place] = found, p
            if excluded.size or width < 2:
                right[place] = values.argmax(axis=1) == own
            else:
                right[place] = (p[:, 0] > p[:, 1]) | ((p[:, 0] == p[:, 1]) & (own < found[:, 1]))

    for _ in map_rows(one, probs):
        pass
    return Candidates(classes, top, right)


def _highest(block: Float, own: Codes, learnable: Codes, excluded: Codes, width: int) -> tuple[Float, Codes]:
    """(b, width) the value of the own column of each row, then the highest others, descending, and their columns.

    1,000 columns take 2 us per row. block: (b, K), C order.
    """
    n, n_columns = block.shape
    if n_columns < 4 * GROUPS or width > GROUPS // 4:
        return _sorted(block, own, learnable, width)
    at, every = np.arange(n), block
    if excluded.size:
        block = block.copy()
        block[:, excluded] = -1
    grouped = block[:, : n_columns // GROUPS * GROUPS].reshape(n, -1, GROUPS)
    maxima = grouped.max(axis=1)
    # One group fewer, that of the own column, bounds the others: at least width - 1 of them reach the bound.
    maxima[at, own % GROUPS] = np.inf
    reached = block >= np.partition(maxima, GROUPS - width, axis=1)[:, GROUPS - width, None]
    reached[at, own] = True
    flat = np.flatnonzero(reached)
    first = np.searchsorted(flat, np.arange(n + 1) * n_columns)
    counts = np.diff(first)
    if counts.max() > 4 * width:  # equal values, such as zeros
        many = counts > 4 * width
        values, found = np.empty((n, width), np.float32), np.empty((n, width), np.int64)
        values[many], found[many] = _sorted(every[many], own[many], learnable, width)
        if not many.all():
            values[~many], found[~many] = _highest(every[~many], own[~many], learnable, excluded, width)
        return values, found
    row = np.repeat(at, counts)
    column = flat - row * n_columns
    bits = n_columns.bit_length()
    keys = _keys(block.ravel()[flat], column, bits)
    keys[column == own[row]] = 0
    keys |= row << (31 + bits)
    keys.sort()
    return _values(keys[first[:-1, None] + np.arange(width)], block, own, bits)


def _sorted(block: Float, own: Codes, learnable: Codes, width: int) -> tuple[Float, Codes]:
    """As `_highest`, by keys of all columns."""
    bits = block.shape[1].bit_length()
    keys = _keys(block if learnable.size == block.shape[1] else block[:, learnable], learnable, bits)
    keys[np.arange(len(block)), np.searchsorted(learnable, own)] = 0
    if width < learnable.size:
        keys = np.partition(keys, width - 1, axis=1)[:, :width]
    keys.sort(axis=1)
    return _values(keys, block, own, bits)


_INFINITY = 0x7F800000  # its bits as a whole number: no other float32 that is not negative has more


def _keys(values: Float, columns: Codes, bits: int) -> Codes:
    """Whole numbers that ascend where the values descend, and with the columns where they are equal; the column is in the last bits."""
    result: Codes = ((_INFINITY - (values.view(np.int32) & 0x7FFFFFFF)).astype(np.int64) << bits) | columns
    return result


def _values(keys: Codes, block: Float, own: Codes, bits: int) -> tuple[Float, Codes]:
    """Values and columns of the sorted keys (b, width), whose first is that of the own column."""
    columns = keys & ((1 << bits) - 1)
    values = (_INFINITY - ((keys >> bits) & 0x7FFFFFFF)).astype(np.int32).view(np.float32)
    columns[:, 0], values[:, 0] = own, block[np.arange(len(block)), own]
    return values, columns
