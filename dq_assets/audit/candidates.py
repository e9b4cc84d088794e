"""The classes that an image may be of: the given one and the most probable others, in one pass over the probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.rows import Codes, Float, Rows, blocks, map_blocks


def top_classes(given: Codes, probs: Rows, rows: Codes, learnable: Codes, width: int) -> tuple[NDArray[np.int32], Float]:
    """(c, width) classes and their probabilities: the given one, then the most probable other learnable ones, descending.

    given: (n,) codes; those of `rows`, (c,) ascending, are learnable. probs: (n, K). learnable: ascending class codes, at least
    `width`. Classes of equal probability stand in their order; which of them is left out is not defined, but the same each time.
    """
    import torch

    classes = np.full((rows.size, width), -1, dtype=np.int32)
    top = np.zeros((rows.size, width), dtype=np.float32)
    others = np.setdiff1d(np.arange(probs.shape[1]), learnable)

    def one(part: slice) -> None:
        block = np.array(probs[rows[part]])
        own = given[rows[part]]
        at = np.arange(own.size)
        classes[part, 0], top[part, 0] = own, block[at, own]
        block[at, own] = -1.0
        block[:, others] = -1.0
        if width > 1:
            # 4 us per row of 1,000 classes; NumPy's argpartition takes 7.
            values, found = (t.numpy() for t in torch.topk(torch.from_numpy(block), width - 1, dim=1, sorted=False))
            order = np.lexsort((found, -values), axis=1)
            classes[part, 1:], top[part, 1:] = np.take_along_axis(found, order, 1), np.take_along_axis(values, order, 1)

    for _ in map_blocks(one, blocks(rows.size, probs.shape[1])):
        pass
    return classes, top
