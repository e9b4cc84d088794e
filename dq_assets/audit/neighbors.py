"""Exact nearest neighbours by cosine distance.

faiss finds candidates by float32 inner products; their order is then settled by a distance that has no rounding noise, because the
noise of an inner product (1e-7) would put copies of an image in any order and at distances other than 0. Where the candidates cannot
prove that they hold the answer, the row is compared with all others. So the result is that of brute force, ties included.
Time grows with n squared and is nearly all faiss: 50,000 x 1280 takes 80 to 270 CPU seconds, by the BLAS of its build.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SPARE = 8
"""Candidates beyond k, so that a cut through rows that are nearly as far is rare."""

NOISE = 2e-6
"""Bound on the error of faiss's float32 inner product of unit vectors; 2.4e-7 was the largest seen on 20,000 pairs at 1280 dimensions."""

COPY = 1e-13
"""Distances below are 0: rounding the vectors to float32 alone moves two of one direction up to 4e-15 apart."""

RERANK_FLOATS = 8_000_000
"""Floats gathered at a time to settle distances: 32 MB."""


def nearest_neighbors(
    vectors: NDArray[np.float32], k: int, *, block: int = 2048, progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest other rows of every row.

    vectors: (n, d) float32, any length but zero. Returns positions (n, k') int64 and cosine distances (n, k') float32 in [0, 2], with
    k' = min(k, n - 1): ascending, ties by position, never the row itself; its copies count, at distance exactly 0.
    Cosine distance is computed as half the squared distance of the unit vectors. block: rows per search; changes no result.
    progress: called with the number of rows done. Memory: one copy of the vectors and `block` rows of candidates.
    Raises ValueError that names the rows if any is zero or not finite.
    """
    n = len(vectors)
    width = max(0, min(k, n - 1))
    ids, distances = np.empty((n, width), np.int64), np.empty((n, width), np.float32)
    unit = _unit_rows(vectors)
    if width == 0:
        return ids, distances
    first, group = _distinct_rows(unit)
    distinct = unit if len(first) == n else unit[first]
    # Rows of each group of copies in ascending order; groups are numbered by their first row.
    members = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(first)))
    copies = np.split(members, ends[:-1])
    del unit
    found = 0
    for start in range(0, len(distinct), block):
        rows = np.arange(start, min(start + block, len(distinct)))
        near, far = _search(distinct, rows, min(k, len(distinct) - 1))
        _expand(rows, near, far, copies, ids, distances)
        found += sum(len(copies[row]) for row in rows)
        if progress is not None:
            progress(found)
    return ids, distances


def _unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """A contiguous copy with rows of length 1. The lengths are float64: float32 squares overflow from 1e19 on."""
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (n, d), not {vectors.shape}.")
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        shown = ", ".join(map(str, bad[:10])) + (" ..." if len(bad) > 10 else "")
        raise ValueError(f"{len(bad)} of {len(vectors)} vectors are zero or not finite (rows {shown}). Leave them out.")
    unit = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), 4096):
        unit[start : start + 4096] = vectors[start : start + 4096] / lengths[start : start + 4096, None]
    unit += 0.0  # -0.0 becomes 0.0, so that equal rows have equal bytes
    return unit


def _distinct_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First position of every distinct row (ascending), and for every row the number of its distinct row."""
    seen: dict[bytes, int] = {}
    group = np.empty(len(rows), np.int64)
    first: list[int] = []
    for i, row in enumerate(rows):
        group[i] = number = seen.setdefault(hashlib.blake2b(row.data, digest_size=16).digest(), len(seen))
        if number == len(first):
            first.append(i)
    return np.array(first, np.int64), group


def _search(points: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest other points of each row, settled: (len(rows), k) numbers and distances. Points are distinct unit rows."""
    asked = min(k + 1 + SPARE, len(points))
    products, candidates = _candidates(points[rows], points, asked)
    near, far = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
    step = max(1, RERANK_FLOATS // (asked * points.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        near[part], far[part] = _settle(points, rows[part], candidates[part], k)
    if asked < len(points):
        # A point that faiss left out is at least as far as its last candidate, up to the noise.
        for i in np.flatnonzero(far[:, -1:].max(axis=1, initial=0) >= (1 - products[:, -1]) - NOISE):
            everything = 1 - points @ points[rows[i]]
            everything[rows[i]] = np.inf
            limit = np.partition(everything, k - 1)[k - 1] + 2 * NOISE
            chosen = np.flatnonzero(everything <= limit)
            near[i], far[i] = (part[0] for part in _settle(points, rows[i : i + 1], chosen[None, :], k))
    return near, far


def _candidates(queries: NDArray[np.float32], points: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest inner products of each query, descending, and whose they are: flat search, without a second copy of the points."""
    import faiss

    products, numbers = faiss.knn(queries, points, count, metric=faiss.METRIC_INNER_PRODUCT)
    return products, numbers.astype(np.int64)


def _settle(
    points: NDArray[np.float32], rows: NDArray[np.int64], candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest of (m, c) candidates, the row itself excepted, by distance and then by number."""
    step = max(1, RERANK_FLOATS // (len(rows) * points.shape[1]))
    parts = [_distance(points[rows, None], points[candidates[:, at : at + step]]) for at in range(0, candidates.shape[1], step)]
    distances = np.concatenate(parts, axis=1)
    distances[candidates == rows[:, None]] = np.inf
    order = np.lexsort((candidates, distances), axis=1)[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)


def _distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of unit rows, broadcast over all but the last axis. Symmetric to the bit; without the cancellation of 1 - a.b."""
    difference = a - b
    result: NDArray[np.float32] = np.einsum("...d,...d->...", difference, difference)
    result *= np.float32(0.5)
    result[result < COPY] = 0
    return result.clip(0, 2)


def _expand(
    rows: NDArray[np.int64],
    near: NDArray[np.int64],
    far: NDArray[np.float32],
    copies: list[NDArray[np.int64]],
    ids: NDArray[np.int64],
    distances: NDArray[np.float32],
) -> None:
    """Write the answer for all copies of the distinct rows, from the neighbours among distinct rows."""
    width = ids.shape[1]
    for row, others, gaps in zip(rows, near, far, strict=True):
        groups = [copies[row], *(copies[other] for other in others)]
        everyone = np.concatenate(groups)
        gap = np.repeat(np.concatenate(([np.float32(0)], gaps)), [len(group) for group in groups])
        order = np.lexsort((everyone, gap))[: width + 1]  # one more than needed: the row itself is among them or behind them
        everyone, gap = everyone[order], gap[order]
        for member in copies[row]:
            kept = np.flatnonzero(everyone != member)[:width]
            ids[member], distances[member] = everyone[kept], gap[kept]
