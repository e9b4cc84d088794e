"""The classes that an image may be of: the given one and the most probable others, in one pass over the probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.rows import Codes, Float, Rows, Streamed, map_rows

GROUPS = 100
"""Maxima of so many groups of columns bound the top classes from below; for 12 of 1,000 columns the bound leaves 13 to sort."""


@dataclass(frozen=True)
class Candidates:
    """What one pass keeps of each of c rows: `classes` and `probs`, (c, width), and whether the given class is the most probable, (c,)."""

    classes: NDArray[np.int32]
    probs: Float
    right: NDArray[np.bool_]


def top_classes(given: Codes, probs: Rows | Streamed, rows: Codes, learnable: Codes, width: int) -> Candidates:
    """The given class, then the most probable other learnable ones, descending.

    given: (n,) codes; those of `rows`, (c,) ascending, are learnable. probs: (n, K). learnable: ascending class codes, at least
    `width`. Classes of equal probability stand in their order; which of them is left out is not defined, but the same each time.
    `right` looks at all classes; of equal ones the lowest is the most probable.
    """
    classes = np.full((rows.size, width), -1, dtype=np.int32)
    top = np.zeros((rows.size, width), dtype=np.float32)
    right = np.zeros(rows.size, dtype=bool)
    every = learnable.size == probs.shape[1]

    def one(part: slice, block: Float) -> None:
        low, high = np.searchsorted(rows, (part.start, part.stop))
        chosen = rows[low:high]
        own, at = given[chosen], np.arange(chosen.size)
        if chosen.size < len(block):
            block = block[chosen - part.start]
        if not chosen.size:
            return
        p_own = block[at, own]
        values, found = _highest(block if every else block[:, learnable], width)
        found = found if every else learnable[found]
        if every:
            ahead = p_own == values[:, 0]
            alike = np.flatnonzero(ahead & (values[:, 1:2] == p_own[:, None]).any(axis=1))
            ahead[alike] = block[alike].argmax(axis=1) == own[alike]
            right[low:high] = ahead
        else:
            right[low:high] = block.argmax(axis=1) == own
        # The given class first: taken from its place, or else in the place of the last.
        same = found == own[:, None]
        place = np.where(same.any(axis=1), same.argmax(axis=1), width - 1)
        columns = np.arange(width)
        source = columns - (columns <= place[:, None])
        classes[low:high], top[low:high] = np.take_along_axis(found, source, 1), np.take_along_axis(values, source, 1)
        classes[low:high, 0], top[low:high, 0] = own, p_own

    for _ in map_rows(one, probs):
        pass
    return Candidates(classes, top, right)


def _highest(block: Float, width: int) -> tuple[Float, NDArray[np.int64]]:
    """(b, width) the highest values of each row, descending, and their columns, ascending among equal ones.

    1,000 columns take 2 us per row; torch.topk takes 4, NumPy's argpartition 7.
    """
    n, n_columns = block.shape
    if n_columns < 4 * GROUPS or width > GROUPS // 4:
        return _sorted(block, width)
    size = n_columns // GROUPS
    maxima = block[:, : size * GROUPS].reshape(n, size, GROUPS).max(axis=1)
    # At least `width` columns reach the bound, so the highest ones are among those that do.
    bound = np.partition(maxima, GROUPS - width, axis=1)[:, GROUPS - width]
    row, column = np.divmod(np.flatnonzero(block >= bound[:, None]), n_columns)
    counts = np.bincount(row, minlength=n)
    many = counts > 4 * width
    if many.any():  # equal values, such as zeros
        few = ~many
        values, found = np.empty((n, width), np.float32), np.empty((n, width), np.int64)
        values[many], found[many] = _sorted(block[many], width)
        if few.any():
            values[few], found[few] = _highest(block[few], width)
        return values, found
    place = np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)
    packed, columns = np.full((n, int(counts.max())), np.inf, np.float32), np.zeros((n, int(counts.max())), np.int64)
    packed[row, place], columns[row, place] = -block[row, column], column
    order = np.argsort(packed, axis=1, kind="stable")[:, :width]
    return -np.take_along_axis(packed, order, 1), np.take_along_axis(columns, order, 1)


def _sorted(block: Float, width: int) -> tuple[Float, NDArray[np.int64]]:
    import torch

    # torch warns of arrays that it might write to and must not, as those of the lake.
    owned = np.require(block, requirements=["C", "W"])
    values, found = (t.numpy() for t in torch.topk(torch.from_numpy(owned), width, dim=1, sorted=False))
    order = np.lexsort((found, -values), axis=1)
    return np.take_along_axis(values, order, 1), np.take_along_axis(found, order, 1)
