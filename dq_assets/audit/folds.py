"""Which images must stay together in cross-validation, which fold each component gets, and which classes can be learnt.

Two copies of one image in different folds would let the model see the image that it is asked about, with the label that is
in doubt; so duplicate groups and the user's groups never straddle folds. Folds are kept for ever: a stored component keeps
its fold, so that appended data moves no image that was scored before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings

FOLDS_SCHEMA = {"image_id": pl.Int64, "component_id": pl.Int64, "fold": pl.Int32}


def assign_folds(
    image_id: NDArray[np.int64],
    given_label: Sequence[str | None],
    group: Sequence[str | None],
    duplicate_group: NDArray[np.int64],
    *,
    previous: pl.DataFrame,
    settings: settings.Folds,
) -> pl.DataFrame:
    """Table folds: (image_id, component_id, fold), one row per image, in the order of image_id.

    image_id: (n,) ascending and unique. given_label, group: (n,), None where there is none. duplicate_group: (n,), -1 for none.
    previous: the stored table (image_id, component_id, fold), maybe empty; it may hold images that are gone.

    A component is a connected component over duplicate group and user's group; its id is its smallest image_id. A component
    with a stored image keeps that image's fold, of the oldest (smallest image_id) if several merge. A new one gets, in order
    of component_id, the fold with the fewest images of its class so far (the class most of its images have; the first by name
    on a tie), then the fewest images at all, then the lowest number. Hash folds would leave an empty fold in half of all
    10-image classes.

    Raises ValueError if image_id is not ascending or a stored fold is not below `settings.n_folds`.
    """
    ids = np.asarray(image_id, dtype=np.int64)
    if ids.size and not bool(np.all(np.diff(ids) > 0)):
        raise ValueError("image_id is not ascending and unique. Sort the rows by image_id.")
    component = _components(duplicate_group, group)
    codes, n_classes = _codes(given_label)
    first = np.full(int(component.max(initial=-1)) + 1, -1, dtype=np.int64)
    first[component[::-1]] = np.arange(ids.size - 1, -1, -1)  # ids ascend, so the first row has the smallest id
    fold = _stored_folds(ids, component, first.size, previous, settings.n_folds)
    _fill_new(fold, first, component, codes, n_classes=n_classes, n_folds=settings.n_folds)
    return pl.DataFrame({"image_id": ids, "component_id": ids[first[component]], "fold": fold[component]}, schema=FOLDS_SCHEMA)


def learnable_classes(labels: Sequence[str | None], component_id: NDArray[np.int64], min_components: int) -> set[str]:
    """Names of the classes whose images come from at least `min_components` distinct components.

    labels: (n,), None for unlabelled. component_id: (n,). Ten copies of one photo are one component: they teach nothing more.
    """
    frame = pl.DataFrame({"label": pl.Series(labels, dtype=pl.String), "component": component_id}).drop_nulls("label")
    counts = frame.group_by("label").agg(pl.col("component").n_unique())
    return set(counts.filter(pl.col("component") >= min_components)["label"].to_list())


def _components(duplicate_group: NDArray[np.int64], group: Sequence[str | None]) -> NDArray[np.int64]:
    """(n,) component number of each row: images and groups are the nodes of a graph, membership its edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    duplicates = np.asarray(duplicate_group, dtype=np.int64)
    n = duplicates.size
    has_duplicates = np.flatnonzero(duplicates >= 0)
    duplicate_nodes, duplicate_codes = np.unique(duplicates[has_duplicates], return_inverse=True)
    group_codes, n_groups = _codes(group)
    has_group = np.flatnonzero(group_codes >= 0)
    rows = np.concatenate([has_duplicates, has_group])
    nodes = np.concatenate([n + duplicate_codes, n + duplicate_nodes.size + group_codes[has_group]])
    size = n + duplicate_nodes.size + n_groups
    graph = coo_array((np.ones(rows.size, dtype=np.int8), (rows, nodes)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    result: NDArray[np.int64] = np.unique(component[:n], return_inverse=True)[1].astype(np.int64)
    return result


def _codes(values: Sequence[str | None]) -> tuple[NDArray[np.int64], int]:
    """(n,) position of each value among the sorted distinct ones, -1 for None; and how many there are."""
    series = pl.Series("value", values, dtype=pl.String)
    names = series.drop_nulls().unique().sort()
    if names.is_empty():
        return np.full(len(series), -1, dtype=np.int64), 0
    codes = series.replace_strict(names, pl.arange(names.len(), eager=True), default=None, return_dtype=pl.Int64)
    return codes.fill_null(-1).to_numpy().astype(np.int64), names.len()


def _stored_folds(
    ids: NDArray[np.int64], component: NDArray[np.int64], n_components: int, previous: pl.DataFrame, n_folds: int
) -> NDArray[np.int32]:
    """(n_components,) fold of the oldest stored image of each component, -1 where none is stored."""
    fold = np.full(n_components, -1, dtype=np.int32)
    if previous.is_empty():
        return fold
    if int(previous.select(pl.col("fold").max()).item()) >= n_folds:
        raise ValueError(f"A stored fold is not below n_folds={n_folds}. Start from an empty table to change the number of folds.")
    stored = previous.select("image_id", "fold").sort("image_id")
    stored_ids = stored["image_id"].to_numpy()
    at = np.minimum(np.searchsorted(stored_ids, ids), stored_ids.size - 1)
    known = np.flatnonzero(stored_ids[at] == ids)[::-1]  # reversed: the last write, the oldest image, wins
    fold[component[known]] = stored["fold"].to_numpy()[at[known]]
    return fold


def _fill_new(
    fold: NDArray[np.int32],
    first: NDArray[np.int64],
    component: NDArray[np.int64],
    codes: NDArray[np.int64],
    *,
    n_classes: int,
    n_folds: int,
) -> None:
    """Give every component without a fold one, in place."""
    sizes = np.bincount(component, minlength=fold.size)
    # Row n_classes counts the unlabelled, which are spread like a class of their own.
    classes = np.where(codes < 0, n_classes, codes)
    pairs, counts = np.unique(component * (n_classes + 1) + classes, return_counts=True)
    pair_component, pair_class = np.divmod(pairs, n_classes + 1)
    majority = np.full(fold.size, n_classes, dtype=np.int64)
    labelled = pair_class < n_classes
    order = np.lexsort((-pair_class[labelled], counts[labelled], pair_component[labelled]))
    majority[pair_component[labelled][order]] = pair_class[labelled][order]  # the last write has the highest count
    stored = fold[pair_component] >= 0
    table = np.zeros((n_classes + 1, n_folds), dtype=np.int64)
    np.add.at(table, (pair_class[stored], fold[pair_component[stored]]), counts[stored])

    by_class: list[list[int]] = table.tolist()
    total: list[int] = table.sum(axis=0).tolist()
    members = _members(pair_component, pair_class, counts, fold.size)
    # The first row of a component has its smallest id, so this is the order of component_id.
    new = np.flatnonzero(fold < 0)
    for number in new[np.argsort(first[new], kind="stable")].tolist():
        row = by_class[majority[number]]
        best = min(range(n_folds), key=lambda f, row=row: (row[f], total[f]))  # type: ignore[misc]
        fold[number] = best
        total[best] += int(sizes[number])
        for a_class, count in members(number):
            by_class[a_class][best] += count


def _members(pair_component: NDArray[np.int64], pair_class: NDArray[np.int64], counts: NDArray[np.int64], n_components: int) -> Any:
    """A function from a component to its (class, number of images), over pairs sorted by component."""
    starts = np.searchsorted(pair_component, np.arange(n_components + 1)).tolist()
    classes, numbers = pair_class.tolist(), counts.tolist()

    def members(number: int) -> list[tuple[int, int]]:
        return [(classes[i], numbers[i]) for i in range(starts[number], starts[number + 1])]

    return members
