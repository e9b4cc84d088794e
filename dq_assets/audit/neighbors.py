"""Nearest neighbours by cosine distance: exact by brute force, or among the candidates of an index (`cell_search`).

float32 inner products find candidates; their order is then settled by half the squared difference, which has no such rounding noise: that
of an inner product (1e-7) would put copies of an image in any order and at distances other than 0. Among the candidates of the index only
distances below SMALL are settled so; beyond, the noise is a 5,000th at most. Brute force compares a row with all others where its
candidates cannot prove that they hold the answer, so its result is that of the definition, ties included. Its time grows with n squared;
the index misses a measured share of the neighbours instead, but never a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit.cell_search import candidates
from dq_assets.audit.cells import Cells
from dq_assets.audit.products import products_at
from dq_assets.audit.threads import one_thread_each

SPARE = 8
"""Candidates beyond k, so that a cut through rows that are nearly as far is rare."""

NOISE = 2e-6
"""Bound on the error of a float32 inner product of unit vectors; 2.4e-7 was the largest seen on 20,000 pairs at 1280 dimensions."""

CLOSE = 1e-6
"""Distances below are measured on rows that are rounded once: an error of 1e-7 in a length adds up to 7e-15, which is nothing beyond."""

COPY = 1e-13
"""Distances below are 0: rounding the vectors to float32 alone moves two of one direction up to 4e-15 apart."""

SMALL = 0.01
"""Distances below are measured by the difference of the rows, as all are by brute force: the noise is a 5,000th of those above."""

SETTLED = 512
"""Rows whose distances are settled together, cell by cell, since rows of one cell share candidates."""

RERANK_FLOATS = 400_000
"""Floats gathered at a time, by each thread, to settle distances: 1.6 MB, which stay in a core's cache while they are worked on."""

PRODUCTS = 32_000_000
"""Inner products held at a time: 128 MB."""

_ROWS = 2048


@dataclass(frozen=True)
class Graph:
    """positions (n, k') int64 and distances (n, k') float32 as of `nearest_neighbors`; of an index within NOISE from SMALL on.

    recall: 1 if exact, else the share of the true neighbours found for a sample of rows. cells: the index; None if there was none.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float32]
    recall: float = 1.0
    cells: Cells | None = None


class UnitRows:
    """Rows of length 1, made when they are taken: a second copy of a million vectors would be 6.5 GB.

    vectors: (n, d) float32. lengths: (n,) float64; float32 squares overflow from 1e19 on. chosen: the rows that are numbered 0, 1 ...
    """

    def __init__(self, vectors: NDArray[np.float32], lengths: NDArray[np.float64], chosen: NDArray[np.int64] | None = None) -> None:
        self._vectors, self._lengths, self._chosen = vectors, lengths, chosen
        least, most = lengths.min(initial=1.0), lengths.max(initial=1.0)
        self._factor = (1 / lengths).astype(np.float32) if least > 1e-37 and most < 1e37 else None
        self._regular = least > 1e-15 and most < 1e15  # products neither vanish nor overflow

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(..., d) for numbers (...), of a length within 1e-7 of 1: `exact` takes four times as long."""
        at = self._at(rows)
        return self._scaled(self._vectors[at], at)

    def exact(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(..., d) for numbers (...), each entry rounded once."""
        at = self._at(rows)
        return (self._vectors[at] / self._lengths[at][..., None]).astype(np.float32)

    def nearest(self, rows: NDArray[np.int64], found: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `_settle`, but distances from SMALL on are 1 less a product, which takes a fifth of the time."""
        if not self._regular:
            return _settle(self, rows, found, k)
        distances = self._from_products(rows, found)
        distances[(found < 0) | (found == rows[:, None])] = np.inf
        count = min(k + SPARE, found.shape[1])
        top = np.argpartition(distances, count - 1, axis=1)[:, :count]
        found, distances = np.take_along_axis(found, top, axis=1), np.take_along_axis(distances, top, axis=1)
        small = np.argwhere(distances < SMALL)
        step = max(1, RERANK_FLOATS // self.width)
        for start in range(0, len(small), step):
            at = tuple(small[start : start + step].T)
            distances[at] = cosine_distance(self(rows[at[0]]), self(found[at]))
        return _ranked(self, rows, found, distances, k)

    def _from_products(self, rows: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.float32]:
        """(m, c) cosine distances to the rows of these numbers, (m, c), within NOISE and symmetric to the bit."""
        at, beside = self._at(rows), self._at(np.maximum(found, 0))
        products = products_at(self._vectors[at], self._vectors, beside)
        distances = 1 - products / (self._lengths[at][:, None] * self._lengths[beside])
        return distances.astype(np.float32)

    def _at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows if self._chosen is None else self._chosen[rows]

    def _scaled(self, found: NDArray[np.float32], at: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of `vectors` at these places to length 1, in place."""
        if self._factor is not None:
            found *= self._factor[at][..., None]
        else:  # the factor would be no regular float32
            found[...] = found / self._lengths[at][..., None]
        found += 0.0  # -0.0 becomes 0.0, so that equal rows have equal bytes
        return found

    @property
    def width(self) -> int:
        """d."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors) if self._chosen is None else len(self._chosen)


def nearest_neighbors(
    vectors: NDArray[np.float32], k: int, *, block: int = 2048, progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest other rows of every row, exact.

    vectors: (n, d) float32, any length but zero. Returns positions (n, k') int64 and cosine distances (n, k') float32 in [0, 2], with
    k' = min(k, n - 1): ascending, ties by position, never the row itself; its copies count, at distance exactly 0.
    Cosine distance is computed as half the squared distance of the unit vectors. block: rows per search; changes no result.
    progress: called with the number of rows done. Memory: one copy of the vectors and `block` rows of candidates.
    Raises ValueError that names the rows if any is zero or not finite.
    """
    points, copies = _distinct(vectors)
    found = _Answer(len(vectors), k, copies)
    if not found.width:
        return found.positions, found.distances
    everything = points(np.arange(len(points)))
    block = max(1, min(block, PRODUCTS // max(1, len(points))))
    for start in range(0, len(points), block):
        rows = np.arange(start, min(start + block, len(points)))
        found.add(rows, *_search(points, everything, rows, min(k, len(points) - 1)))
        if progress is not None:
            progress(found.done)
    return found.positions, found.distances


def neighbor_graph(
    vectors: NDArray[np.float32],
    options: settings.Neighbors,
    *,
    cells: Cells | None = None,
    progress: Callable[[int], None] | None = None,
) -> Graph:
    """The options.k nearest others of every row: exact up to options.exact_up_to rows, else from cells with options.recall.

    vectors, progress and errors as of `nearest_neighbors`. Copies count once in the search, so all of them are found. cells: of an
    earlier search, used as far as they go. Memory beyond the vectors: some 3 kB a row.
    """
    if len(vectors) <= options.exact_up_to:
        return Graph(*nearest_neighbors(vectors, options.k, progress=progress))
    points, copies = _distinct(vectors)
    n, k = len(points), min(options.k, len(points) - 1)
    if n <= max(options.exact_up_to, 20 * options.k):  # mostly copies, or nearly all rows would be candidates
        return Graph(*nearest_neighbors(vectors, options.k, progress=progress))
    half = len(vectors) // 2
    near = candidates(points, n, k, recall=options.recall, cells=cells, progress=lambda share: progress and progress(int(share * half)))
    found = _Answer(len(vectors), options.k, copies)

    def settle(start: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        rows = near.order[start : start + SETTLED]
        return rows, *points.nearest(rows, near.positions[rows].astype(np.int64), k)

    for rows, ids, distances in one_thread_each(settle, range(0, n, SETTLED)):
        found.add(rows, ids, distances)
        if progress is not None:
            progress(half + int(found.done / len(vectors) * (len(vectors) - half)))
    return Graph(found.positions, found.distances, near.recall, near.cells)


def unit_rows(vectors: NDArray[np.float32]) -> UnitRows:
    """The rows of (n, d) vectors, of length 1 when they are taken. Raises ValueError that names the rows if any is zero or not finite."""
    return UnitRows(vectors, _lengths(vectors))


@dataclass(frozen=True)
class Copies:
    """Rows that are equal, by the number of the distinct row. members: (n,) rows, ascending within a number. ends: (u,) where each ends."""

    members: NDArray[np.int64]
    ends: NDArray[np.int64]

    def of(self, number: int) -> NDArray[np.int64]:
        """The rows that are this distinct row, ascending."""
        return self.members[self.ends[number - 1] if number else 0 : self.ends[number]]


def _distinct(vectors: NDArray[np.float32]) -> tuple[UnitRows, Copies]:
    """The distinct unit rows, numbered by their first row, and the rows that equal each."""
    lengths = _lengths(vectors)
    first, group = _distinct_rows(UnitRows(vectors, lengths))
    copies = Copies(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=len(first))))
    return UnitRows(vectors, lengths, None if len(first) == len(vectors) else first), copies


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (n, d), not {vectors.shape}.")

    def measure(start: int) -> NDArray[np.float64]:
        part = vectors[start : start + _ROWS]
        squares: NDArray[np.float64] = np.einsum("ij,ij->i", part, part, dtype=np.float64)
        return squares

    lengths: NDArray[np.float64] = np.sqrt(np.concatenate([np.empty(0), *one_thread_each(measure, range(0, len(vectors), _ROWS))]))
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        shown = ", ".join(map(str, bad[:10])) + (" ..." if len(bad) > 10 else "")
        raise ValueError(f"{len(bad)} of {len(vectors)} vectors are zero or not finite (rows {shown}). Leave them out.")
    return lengths


def _distinct_rows(points: UnitRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First position of every distinct row (ascending), and for every row the number of its distinct row."""
    seen: dict[bytes, int] = {}
    group = np.empty(len(points), np.int64)
    first: list[int] = []

    def digests(start: int) -> list[bytes]:
        rows = points(np.arange(start, min(start + _ROWS, len(points))))
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]

    for start, found in zip(range(0, len(points), _ROWS), one_thread_each(digests, range(0, len(points), _ROWS)), strict=True):
        for i, digest in enumerate(found, start):
            group[i] = number = seen.setdefault(digest, len(seen))
            if number == len(first):
                first.append(i)
    return np.array(first, np.int64), group


def _search(unit: UnitRows, points: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest other points of each row, settled: (len(rows), k) numbers and distances. points: all of `unit`, which are distinct."""
    asked = min(k + 1 + SPARE, len(points))
    products, found = largest_products(points[rows], points, asked)
    near, far = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
    step = max(1, RERANK_FLOATS // (asked * points.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        near[part], far[part] = _settle(unit, rows[part], found[part], k)
    if asked < len(points):
        # A point that was left out is at least as far as the last candidate, up to the noise.
        for i in np.flatnonzero(far[:, -1:].max(axis=1, initial=0) >= (1 - products[:, -1]) - NOISE):
            everything = 1 - points @ points[rows[i]]
            everything[rows[i]] = np.inf
            limit = np.partition(everything, k - 1)[k - 1] + 2 * NOISE
            chosen = np.flatnonzero(everything <= limit)
            near[i], far[i] = (part[0] for part in _settle(unit, rows[i : i + 1], chosen[None, :], k))
    return near, far


def largest_products(
    queries: NDArray[np.float32], points: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest inner products of each query, descending, and whose they are. torch: faiss's product took five times as long here."""
    import torch

    top = (torch.from_numpy(queries) @ torch.from_numpy(points).T).topk(count, dim=1)
    return top.values.numpy(), top.indices.numpy()


def _settle(points: UnitRows, rows: NDArray[np.int64], found: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest of (m, c) candidates, the row itself and -1 excepted, by distance and then by number."""
    own = points(rows)[:, None]
    step = max(1, RERANK_FLOATS // own.size)
    parts = [cosine_distance(own, points(found[:, at : at + step])) for at in range(0, found.shape[1], step)]
    return _ranked(points, rows, found, np.concatenate(parts, axis=1), k)


def _ranked(
    points: UnitRows, rows: NDArray[np.int64], found: NDArray[np.int64], distances: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`_settle`, of known distances, which are changed."""
    distances[(found == rows[:, None]) | (found < 0)] = np.inf
    close = np.argwhere(distances < CLOSE)
    step = max(1, RERANK_FLOATS // points.width)
    for start in range(0, len(close), step):
        at = tuple(close[start : start + step].T)
        distances[at] = cosine_distance(points.exact(rows[at[0]]), points.exact(found[at]))
    order = np.lexsort((found, distances), axis=1)[:, :k]
    return np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)


def cosine_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of unit rows, broadcast over all but the last axis. Symmetric to the bit; without the cancellation of 1 - a.b."""
    difference = a - b
    result: NDArray[np.float32] = np.vecdot(difference, difference)
    result *= np.float32(0.5)
    result[result < COPY] = 0
    return result.clip(0, 2)


class _Answer:
    """Neighbours of all rows, filled from those of the distinct rows. done: rows answered so far."""

    def __init__(self, n: int, k: int, copies: Copies) -> None:
        self.width, self.done = max(0, min(k, n - 1)), 0
        self.positions, self.distances = np.empty((n, self.width), np.int64), np.empty((n, self.width), np.float32)
        self._copies = copies
        counts = np.diff(copies.ends, prepend=0)
        self._first, self._several = copies.members[copies.ends - counts], counts > 1

    def add(self, rows: NDArray[np.int64], near: NDArray[np.int64], far: NDArray[np.float32]) -> None:
        """Answer for all copies of the distinct rows, from their neighbours among distinct rows."""
        alone = ~self._several[rows] & ~self._several[near].any(axis=1)
        if near.shape[1] == self.width:
            at = self._first[rows[alone]]
            self.positions[at], self.distances[at] = self._first[near[alone]], far[alone]
            self.done += len(at)
        else:
            alone[:] = False
        for i in np.flatnonzero(~alone):
            self._expand(int(rows[i]), near[i], far[i])

    def _expand(self, row: int, near: NDArray[np.int64], far: NDArray[np.float32]) -> None:
        groups = [self._copies.of(row), *(self._copies.of(other) for other in near.tolist())]
        everyone = np.concatenate(groups)
        gap = np.repeat(np.concatenate(([np.float32(0)], far)), [len(group) for group in groups])
        order = np.lexsort((everyone, gap))[: self.width + 1]  # one more than needed: the row itself is among them or behind them
        everyone, gap = everyone[order], gap[order]
        for member in groups[0]:
            kept = np.flatnonzero(everyone != member)[: self.width]
            self.positions[member], self.distances[member] = everyone[kept], gap[kept]
        self.done += len(groups[0])
