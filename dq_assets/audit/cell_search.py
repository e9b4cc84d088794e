"""Candidates for the nearest neighbours of every vector, from random cells: the index behind `neighbors.neighbor_graph`.

Vectors are rotated to their main directions. A partition (`audit.cells`) gives every vector to a cell, and each cell is compared with the
cells that its members are nearest to, in matrix products. What one partition cuts apart, the next, drawn independently, mostly does not.
After each, a row is compared with the candidates of its candidates. Partitions are added until a sample of rows, whose neighbours were
found by brute force, has the recall that was asked for; what is missed then is mostly of rows far from all, and these are compared with
all. Nothing here settles distances: the caller measures the candidates on the full vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.cells import Cells, Floats, Ints, Take, drawn, fitted_rotation, largest, nearest_centres
from dq_assets.audit.products import products_at
from dq_assets.audit.threads import one_thread_each

SEED = 20_261

SAMPLED = 512
"""Rows whose neighbours are found by brute force, to measure the recall: with k = 10 its standard error is below .005."""

MAX_PARTITIONS = 16

AROUND = 10
"""Candidates of a row whose own candidates it is compared with, after each partition: a tenth of the partition's time."""

LOOSE = 0.02
"""Share of the rows, those with the farthest candidates, that are compared with all others: theirs is the lowest recall."""

LOOSE_PRODUCTS = 10**10
"""Most of these comparisons: 20 seconds on two cores."""

MOST_KEPT = 8
"""Candidates of a row, in units of k. Vectors without structure would want them all."""

_PAGE = 1024
_LOOSE_ROWS = 512
_AROUND_ROWS = 512
_ROWS = 8192

Best = tuple[NDArray[np.int32], Floats]
"""Candidates and their products, both (n, kept), in no order; -1 and -3 where there are fewer."""


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
    rotation = fitted_rotation(take, n, rng) if cells is None else cells.rotation
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
        centres = given[number] if number < len(given) else drawn(points, size, rng)
        # Two or three partitions suffice for embeddings of up to 200,000 images; vectors without structure need ever wider looks.
        budget = max(64 * size, 16 * kept) << max(0, (number - 3) // 2)
        order = _search(points, centres, budget, best)
        used.append(centres)
        reached = _recall(nearest, best[0][sample])
        if reached < recall:
            _search_around(points, order, best)
            reached = _recall(nearest, best[0][sample])
        if reached >= recall - LOOSE / 2:
            _search_loose(points, best)
            reached = _recall(nearest, best[0][sample])
        if progress is not None:
            progress(min(1.0, reached / recall))
    return Candidates(best[0], order, reached, Cells(rotation, tuple(used)))


def _recall(nearest: Ints, found: NDArray[np.int32]) -> float:
    """Share of (q, k) that are among (q, m)."""
    return float((nearest[:, :, None] == found[:, None, :]).any(axis=2).mean())


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
    """How many of the nearest in the projection must be kept so that the projection loses at most a quarter of what may be lost."""
    import torch

    k, queries = nearest.shape[1], torch.from_numpy(points[sample])
    own = np.einsum("qd,qkd->qk", points[sample], points[nearest])

    def nearer(start: int) -> Ints:
        products = (queries @ torch.from_numpy(points[start : start + _ROWS]).T).numpy()
        return np.stack([(products > own[:, column, None]).sum(axis=1) for column in range(k)], axis=1)

    rank = sum(one_thread_each(nearer, range(0, len(points), _ROWS)), np.zeros(nearest.shape, np.int64))
    enough = int(np.quantile(rank, (3 + recall) / 4, method="higher")) + 1
    return int(min(max(enough, k + 8), MOST_KEPT * k, len(points) - 1))


def _search(points: Floats, centres: Floats, budget: int, best: Best) -> Ints:
    """The rows cell by cell, of one partition; best is improved in place."""
    import torch

    near = nearest_centres(points, centres)
    order = np.argsort(near[:, 0], kind="stable")
    count = np.bincount(near[:, 0], minlength=len(centres))
    ends = np.cumsum(count)
    by_cell = _Compared(points[order], order, best)
    half = np.einsum("cd,cd->c", centres, centres) / 2

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
            by_cell.compare(page, np.concatenate([page, around]))

    for _ in one_thread_each(search_cell, range(len(centres))):
        pass
    return order


def _search_around(points: Floats, order: Ints, best: Best) -> None:
    """Compare each row with the nearest candidates of its nearest candidates; best is improved in place.

    order: (n,) rows in an order in which what is near lies together.
    """
    n = len(points)
    near = np.empty((n, min(AROUND, best[0].shape[1])), np.int32)

    def choose(start: int) -> None:
        part = slice(start, start + _ROWS)
        near[part] = np.take_along_axis(best[0][part], largest(best[1][part], near.shape[1]), axis=1)

    def search(start: int) -> None:
        rows = order[start : start + _AROUND_ROWS]
        ids = near[near[rows]].reshape(len(rows), -1)  # a list that is not full names -1, the last row, which does no harm
        values = products_at(points[rows], points, np.maximum(ids, 0))
        values[(ids < 0) | (ids == rows[:, None])] = -3
        _merge(best, rows, ids, values)

    for work, step in ((choose, _ROWS), (search, _AROUND_ROWS)):
        for _ in one_thread_each(work, range(0, n, step)):
            pass


def _search_loose(points: Floats, best: Best) -> None:
    """Compare the rows whose candidates are farthest with all rows; best is improved in place."""
    n = len(points)
    count = min(int(LOOSE * n), LOOSE_PRODUCTS // n)
    loose = np.sort(np.argpartition(best[1].mean(axis=1), count)[:count])
    compared = _Compared(points, np.arange(n), best)

    def search(start: int) -> None:
        mine = loose[start : start + _LOOSE_ROWS]
        compared.compare(mine, np.concatenate([mine, np.delete(compared.rows, mine)]))

    for _ in one_thread_each(search, range(0, count, _LOOSE_ROWS)):
        pass


@dataclass(frozen=True)
class _Compared:
    """points: (n, p), in an order in which those that are compared lie together; rows: (n,) whose they are; best: the lists of all rows."""

    points: Floats
    rows: Ints
    best: Best
    held: threading.local = field(default_factory=threading.local)

    def compare(self, mine: Ints, there: Ints) -> None:
        """Put what is nearer of the points at `there` into the lists of those at `mine`, with which `there` begins."""
        import torch

        rows, own = self.rows[mine], torch.from_numpy(self.points[mine])
        least = self.best[1][rows].min(axis=1)
        found: list[tuple[Ints, NDArray[np.int32], Floats]] = []
        for start in range(0, len(there), _PAGE):
            page = there[start : start + _PAGE]
            beside = _buffer(self.held, "rows", len(page), self.points.shape[1])
            np.take(self.points, page, axis=0, out=beside, mode="clip")
            products = _buffer(self.held, "products", len(mine), len(page))
            torch.mm(own, torch.from_numpy(beside).T, out=torch.from_numpy(products))
            if not start:
                np.fill_diagonal(products, -3)
                if (least < -2).any():  # lists that are not full yet
                    least = np.maximum(least, _exceeded(products, self.best[0].shape[1]))
            # Few exceed the least of a full list, so they are sought by comparing: selecting 40 of 9,024 takes nine times as long.
            places = np.flatnonzero(products >= least[:, None])
            ends_of_rows = np.searchsorted(places, np.arange(1, len(mine) + 1) * len(page))
            row = np.repeat(np.arange(len(mine)), np.diff(ends_of_rows, prepend=0))
            found.append((row, self.rows[page[places - row * len(page)]].astype(np.int32), products.ravel()[places]))
        _merge(self.best, rows, *_by_row(found, len(mine)))


def _buffer(held: threading.local, name: str, rows: int, columns: int) -> Floats:
    """(rows, columns) of memory that the thread has already: fresh pages for every cell took as long as the products in them."""
    flat: Floats | None = getattr(held, name, None)
    if flat is None or flat.size < rows * columns:
        flat = np.empty(rows * columns * 5 // 4, np.float32)
        setattr(held, name, flat)
    return flat[: rows * columns].reshape(rows, columns)


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
    highest = values[:, : values.shape[1] // groups * groups].reshape(len(values), -1, groups).max(axis=1)
    return np.partition(highest, groups - count, axis=1)[:, groups - count]


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
