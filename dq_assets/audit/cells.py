"""Candidates for the nearest neighbours of every vector, from random cells: the index behind `neighbors.neighbor_graph`.

Vectors are rotated to their PROJECTED main directions. A partition draws centres at random from the vectors, gives every vector to its
nearest centre, and compares each cell with the cells that its members are nearest to, in one matrix product. What one partition cuts
apart, the next, drawn independently, mostly does not. So partitions are added until a sample of rows, whose neighbours were found by
brute force, has the recall that was asked for. Centres at random and three partitions find as much as k-means and three, without its
training. Nothing here settles distances: the caller measures the candidates on the full vectors.

Which cell a vector is in depends on the vector and on `Cells` alone, so `Cells` can be stored and used for vectors that come later.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

VERSION = 2
"""Raised when the same `Cells` would put a vector elsewhere."""

PROJECTED = 128
"""Dimensions that are searched. On embeddings of photographs the 10 nearest are among the 30 nearest in these for .996."""

SEED = 20_261

SAMPLED = 512
"""Rows whose neighbours are found by brute force, to measure the recall: with k = 10 its standard error is below .005."""

MAX_PARTITIONS = 16

MOST_KEPT = 8
"""Candidates of a row, in units of k. Vectors without structure would want them all."""

OUTGROWN = 2
"""Cells are fitted anew for more than so many times the images that they were fitted on, or fewer than that part of them."""

_FIT_ROWS = 10_000
_VOTES = 16
_FEW_CENTRES = 1000
_DISTRICTS = 32
_PAGE = 1024
_NEAR_ROWS = 256
_SELECTED = 16
_ROWS = 8192


Take = Callable[[Ints], Floats]
"""Unit rows at positions: (m,) -> (m, d) float32."""

Best = tuple[NDArray[np.int32], Floats]
"""Candidates and their products, both (n, kept), in no order; -1 and -3 where there are fewer."""


@dataclass(frozen=True)
class Cells:
    """What is fitted. rotation: (d, p); centres: of each partition, (cells, p)."""

    rotation: Floats
    centres: tuple[Floats, ...] = ()

    def digest(self) -> str:
        """16 hex digits: equal means that every vector is in the same cells."""
        found = hashlib.sha256(str(VERSION).encode())
        for part in (self.rotation, *self.centres):
            found.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:16]


def outgrown(fitted_on: int, n: int) -> bool:
    """Whether cells that were fitted on so many vectors are too few or too many for n."""
    return n > OUTGROWN * fitted_on or fitted_on > OUTGROWN * n


@dataclass(frozen=True)
class Candidates:
    """positions: (n, m), in no order, -1 where there are fewer, never the row itself. order: (n,) rows, cell by cell.

    recall: share of the k nearest of a sample of rows that are among the candidates. cells: what was used, fitted or given.
    """

    positions: NDArray[np.int32]
    order: Ints
    recall: float
    cells: Cells


def candidates(
    take: Take,
    n: int,
    k: int,
    *,
    recall: float,
    cells: Cells | None = None,
    progress: Callable[[float], None] | None = None,
) -> Candidates:
    """Positions among which the k nearest of each of n rows are found with the given recall.

    take: gives distinct unit rows. recall: in (0, 1], of the k nearest over SAMPLED rows; partitions are added, later ones with a larger
    budget, until it is reached, or MAX_PARTITIONS are there. cells: of an earlier search; all its partitions are used before others are
    added, also where fewer would do, so that what is stored stays what is used.
    progress: called with the share done, an estimate. Deterministic; the number of threads changes nothing.
    """
    rng = np.random.default_rng(SEED)
    rotation = _rotation(take, n, rng) if cells is None else cells.rotation
    points = _project(take, n, rotation)
    sample = np.sort(rng.choice(n, min(SAMPLED, n), replace=False))
    nearest = _brute_force(take, n, sample, k)
    kept = _kept(points, sample, nearest, recall)
    size = max(64, int(n**0.5) // 4)
    given = () if cells is None else cells.centres
    used: list[Floats] = []
    best = np.full((n, kept), -1, np.int32), np.full((n, kept), -3, np.float32)
    reached, order = 0.0, np.arange(n)
    while len(used) < len(given) or (reached < recall and len(used) < MAX_PARTITIONS):
        number = len(used)
        centres = given[number] if number < len(given) else points[np.sort(rng.choice(n, max(1, n // size), replace=False))]
        # Three to five partitions suffice for embeddings of up to 200,000 images; vectors without structure need ever wider looks.
        budget = max(64 * size, 16 * kept) << max(0, (number - 3) // 2)
        order = _search(points, centres, budget, best)
        used.append(centres)
        reached = float((nearest[:, :, None] == best[0][sample][:, None, :]).any(axis=2).mean())
        if progress is not None:
            progress(min(0.95, reached / recall) if reached < recall else 1.0)
    return Candidates(best[0], order, reached, Cells(rotation, tuple(used)))


def _rotation(take: Take, n: int, rng: np.random.Generator) -> Floats:
    """(d, p): the eigenvectors of the second moment with the largest eigenvalues. Not centred, so that inner products are kept."""
    import torch

    rows = torch.from_numpy(take(np.sort(rng.choice(n, min(_FIT_ROWS, n), replace=False))))
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    found = vectors.flip(1)[:, :PROJECTED]
    # The sign of an eigenvector is a convention of the library.
    found = found * torch.sign(found.gather(0, found.abs().argmax(0, keepdim=True)))
    return np.ascontiguousarray(found.numpy())


def _project(take: Take, n: int, rotation: Floats) -> Floats:
    import torch

    found = np.empty((n, rotation.shape[1]), np.float32)

    def project(start: int) -> None:
        rows = np.arange(start, min(start + _ROWS, n))
        found[rows] = (torch.from_numpy(take(rows)) @ torch.from_numpy(rotation)).numpy()

    for _ in one_thread_each(project, range(0, n, _ROWS)):
        pass
    return found


def _brute_force(take: Take, n: int, sample: Ints, k: int) -> Ints:
    """(len(sample), k) nearest others of the sampled rows on all dimensions, by the largest inner product."""
    import torch

    queries = torch.from_numpy(take(sample))

    def search(start: int) -> tuple[Any, Any]:
        rows = np.arange(start, min(start + _ROWS, n))
        products = queries @ torch.from_numpy(take(rows)).T
        mine = np.flatnonzero((sample >= start) & (sample < start + len(rows)))
        products[mine, sample[mine] - start] = -3.0
        values, at = products.topk(min(k, len(rows)), dim=1)
        return values, at + start

    best = torch.full((len(sample), k), -3.0), torch.full((len(sample), k), -1)
    for values, numbers in one_thread_each(search, range(0, n, _ROWS)):
        top = torch.cat([best[0], values], 1).topk(k, dim=1)
        best = top.values, torch.cat([best[1], numbers], 1).gather(1, top.indices)
    found: Ints = best[1].numpy()
    return found


def _kept(points: Floats, sample: Ints, nearest: Ints, recall: float) -> int:
    """How many of the nearest in the projection must be kept so that the projection loses at most half of what may be lost."""
    import torch

    k, queries = nearest.shape[1], torch.from_numpy(points[sample])
    own = np.einsum("qd,qkd->qk", points[sample], points[nearest])

    def nearer(start: int) -> Ints:
        products = (queries @ torch.from_numpy(points[start : start + _ROWS]).T).numpy()
        return np.stack([(products > own[:, column, None]).sum(axis=1) for column in range(k)], axis=1)

    rank = sum(one_thread_each(nearer, range(0, len(points), _ROWS)), np.zeros(nearest.shape, np.int64))
    enough = int(np.quantile(rank, (1 + recall) / 2, method="higher")) + 1
    return int(min(max(enough, k + 8), MOST_KEPT * k, len(points) - 1))


def _search(points: Floats, centres: Floats, budget: int, best: Best) -> Ints:
    """The rows cell by cell, of one partition; best is improved in place."""
    import torch

    near = nearest_centres(points, centres)
    order = np.argsort(near[:, 0], kind="stable")
    count = np.bincount(near[:, 0], minlength=len(centres))
    ends = np.cumsum(count)
    by_cell = points[order]
    half = np.einsum("cd,cd->c", centres, centres) / 2
    held = threading.local()

    def search_cell(cell: int) -> None:
        mine = np.arange(ends[cell] - count[cell], ends[cell])
        if not len(mine):
            return
        apart = half - torch.mv(torch.from_numpy(centres), torch.from_numpy(centres[cell])).numpy()
        others = _cells_to_visit(near[order[mine]], apart, cell, count, budget)
        around = np.concatenate([np.arange(ends[other] - count[other], ends[other]) for other in others] or [np.empty(0, np.int64)])
        # Only a cell of rows with the same projection is larger than a page; it is not compared with itself as a whole.
        for start in range(0, len(mine), _PAGE):
            page = mine[start : start + _PAGE]
            compare(page, np.concatenate([page, around]))

    def compare(mine: Ints, there: Ints) -> None:
        rows, own = order[mine], torch.from_numpy(by_cell[mine])
        least = best[1][rows].min(axis=1)
        found: list[tuple[Ints, NDArray[np.int32], Floats]] = []
        for start in range(0, len(there), _PAGE):
            page = there[start : start + _PAGE]
            beside = _buffer(held, "rows", len(page), points.shape[1])
            np.take(by_cell, page, axis=0, out=beside, mode="clip")
            products = _buffer(held, "products", len(mine), len(page))
            torch.mm(own, torch.from_numpy(beside).T, out=torch.from_numpy(products))
            if not start:
                np.fill_diagonal(products, -3)
                if (least < -2).any():  # lists that are not full yet
                    least = np.maximum(least, _exceeded(products, best[0].shape[1]))
            # Few exceed the least of a full list, so they are sought by comparing: selecting 40 of 9,024 takes nine times as long.
            places = np.flatnonzero(products >= least[:, None])
            ends_of_rows = np.searchsorted(places, np.arange(1, len(mine) + 1) * len(page))
            row = np.repeat(np.arange(len(mine)), np.diff(ends_of_rows, prepend=0))
            found.append((row, order[page[places - row * len(page)]].astype(np.int32), products.ravel()[places]))
        _merge(best, rows, *_by_row(found, len(mine)))

    for _ in one_thread_each(search_cell, range(len(centres))):
        pass
    return order


def _buffer(held: threading.local, name: str, rows: int, columns: int) -> Floats:
    """(rows, columns) of memory that the thread has already: fresh pages for every cell took as long as the products in them."""
    flat: Floats | None = getattr(held, name, None)
    if flat is None or flat.size < rows * columns:
        flat = np.empty(rows * columns * 5 // 4, np.float32)
        setattr(held, name, flat)
    return flat[: rows * columns].reshape(rows, columns)


def _largest(values: Floats, count: int) -> Ints:
    """Columns of the `count` largest of each row, in no order. NumPy selects 40 of 4,096 in a quarter of the time of torch's topk."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    found = np.empty((len(values), count), np.int64)
    for start in range(0, len(values), _SELECTED):
        part = slice(start, start + _SELECTED)
        found[part] = np.argpartition(values[part], values.shape[1] - count, axis=1)[:, -count:]
    return found


def nearest_centres(points: Floats, centres: Floats) -> NDArray[np.int32]:
    """(n, at most _VOTES) cells of the nearest centres, nearest first.

    Of many centres a row looks only at those that have its own district among the _DISTRICTS nearest to them; the districts are some of the
    centres. That finds 98 % of the first and 95 % of 16 of 9,000, in a third of the time. The first is repeated where a row has fewer.
    """
    if len(centres) <= _FEW_CENTRES:
        return _nearest(points, centres, _VOTES)
    step = int(len(centres) ** 0.5) // 2
    near = _nearest(centres, centres[::step], _DISTRICTS)
    by_district = np.argsort(near.ravel(), kind="stable")
    ends = np.searchsorted(near.ravel()[by_district], np.arange(1, len(centres[::step])))
    listed = np.split(by_district // near.shape[1], ends)
    home = _nearest(points, centres[::step], 1)[:, 0]
    order = np.argsort(home, kind="stable")
    rows = np.split(order, np.searchsorted(home[order], np.arange(1, len(listed))))
    found = np.empty((len(points), _VOTES), np.int32)

    def search(district: int) -> None:
        # With itself: of many equal centres 32 others may be as near.
        around = np.union1d(listed[district], district * step).astype(np.int32)
        for start in range(0, len(rows[district]), _ROWS):
            own = rows[district][start : start + _ROWS]
            nearest = around[_nearest_few(points[own], centres[around], _VOTES)]
            found[own, : nearest.shape[1]], found[own, nearest.shape[1] :] = nearest, nearest[:, :1]

    for _ in one_thread_each(search, range(len(listed))):
        pass
    return found


def _nearest(points: Floats, centres: Floats, count: int) -> NDArray[np.int32]:
    """(n, count) numbers of the nearest centres, nearest first; as many as there are."""
    found = np.empty((len(points), min(count, len(centres))), np.int32)

    def search(start: int) -> None:
        found[start : start + _NEAR_ROWS] = _nearest_few(points[start : start + _NEAR_ROWS], centres, count)

    for _ in one_thread_each(search, range(0, len(points), _NEAR_ROWS)):
        pass
    return found


def _nearest_few(points: Floats, centres: Floats, count: int) -> NDArray[np.int32]:
    """`_nearest` of one block."""
    import torch

    middle = torch.from_numpy(centres)
    values = torch.from_numpy(points) @ middle.T
    values -= (middle * middle).sum(1) / 2
    found = values.numpy()
    top = found.argmax(axis=1)[:, None] if count == 1 else _largest(found, min(count, len(centres)))
    order = np.lexsort((top, -np.take_along_axis(found, top, axis=1)), axis=1)
    nearest: NDArray[np.int32] = np.take_along_axis(top, order, axis=1).astype(np.int32)
    return nearest


def _cells_to_visit(near: NDArray[np.int32], apart: Floats, cell: int, count: Ints, budget: int) -> Ints:
    """Other cells by how many members have them near, then by the distance of the centres, until `budget` rows are looked at.

    apart: (cells,) rises with the distance of their centres from this one's.
    """
    weight = np.broadcast_to(1 / np.arange(1, near.shape[1] + 1), near.shape)
    votes = np.bincount(near.ravel(), weights=weight.ravel(), minlength=len(count)) - 2e-3 * apart
    votes[cell] = -np.inf
    votes[count == 0] = -np.inf
    wanted = min(len(count) - 1, 8 * budget // max(1, int(count.sum()) // len(count)))
    first = np.argpartition(-votes, wanted)[:wanted] if wanted < len(count) - 1 else np.arange(len(count))
    first = first[np.isfinite(votes[first])]
    first = first[np.lexsort((first, -votes[first]))]
    return first[: 1 + int(np.searchsorted(np.cumsum(count[first]), budget - count[cell]))]


def one_thread_each(function: Callable[[int], T], places: range) -> Iterator[T]:
    """function of each place, in order: a worker per core, each of which computes alone, as single products are too small to share.

    As many answers wait at a time as there are workers, times four.
    """
    import torch

    before, n_workers = torch.get_num_threads(), os.cpu_count() or 1
    with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            waiting: deque[Future[T]] = deque()
            for place in places:
                waiting.append(pool.submit(function, place))
                if len(waiting) > 4 * n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            torch.set_num_threads(before)


def _by_row(found: list[tuple[Ints, NDArray[np.int32], Floats]], n: int) -> tuple[NDArray[np.int32], Floats]:
    """Ids and values (n, most of a row), -1 and -3 where there are fewer, of lists of rows, ids and values."""
    row, ids, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    by = np.argsort(row.astype(np.int16), kind="stable")
    counts = np.bincount(row, minlength=n)
    at = row[by], np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((n, counts.max()), -1, np.int32), np.full((n, counts.max()), -3, np.float32)
    table[0][at], table[1][at] = ids[by], values[by]
    return table


def _exceeded(values: Floats, count: int) -> Floats:
    """(rows,) what at least `count` values of each row reach, and few more: the largest of groups of columns tell.

    -inf where a row has fewer.
    """
    if values.shape[1] < count:
        return np.full(len(values), -np.inf, np.float32)
    groups = 8 * count
    if values.shape[1] <= 2 * groups:
        return np.partition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count]
    largest = values[:, : values.shape[1] // groups * groups].reshape(len(values), -1, groups).max(axis=1)
    return np.partition(largest, groups - count, axis=1)[:, groups - count]


def _merge(best: Best, rows: Ints, ids: NDArray[np.int32], values: Floats) -> None:
    """Put what is better into these rows of best, each candidate once. A second table of candidates would take 1.2 GB for a million.

    Both sorts are of whole numbers that hold candidate and product: sorting these takes a third of the time that sorting places does.
    """
    kept = best[0].shape[1]
    ids, values = np.concatenate([best[0][rows], ids], axis=1), np.concatenate([best[1][rows], values], axis=1)
    keys = (ids.astype(np.int64) << 32) | values.view(np.uint32)
    keys.sort(axis=1)
    ids, values = (keys >> 32).astype(np.int32), keys.astype(np.uint32).view(np.float32)
    again = ids[:, 1:] == ids[:, :-1]
    ids[:, 1:][again], values[:, 1:][again] = -1, -3
    keys = (_ascending(values.view(np.int32)).astype(np.int64) << 32) | ids.view(np.uint32)
    keys.partition(keys.shape[1] - kept, axis=1)
    keys = keys[:, -kept:]
    best[0][rows] = keys.astype(np.uint32).view(np.int32)
    best[1][rows] = _ascending((keys >> 32).astype(np.int32)).view(np.float32)


def _ascending(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Whole numbers in the order of the float32 that have these bits, and back."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
