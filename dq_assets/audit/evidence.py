"""The evidence on a flagged label: the images most like it that have the given label, and those that have the suggested one.

Only images that are not flagged themselves. The stored graph is asked first. Of an image under a wrong label it knows few that have
this label (most of its neighbours have the right one), so what it lacks is searched among the images of the class: for flagged
images only, and at most MOST of a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets.audit.neighbors import RERANK_FLOATS, UnitRows, cosine_distance, largest_products, unit_rows

Codes = NDArray[np.int64]

PER_LABEL = 3
"""Images that are named under each of the two labels."""

MOST = 16_384
"""Images of a class that a flagged image is compared with: all of a smaller class, evenly spaced ones of a larger. So the work grows
with the number of flagged images and no faster; 10,000 flagged images take 0.4 TFLOP at 1280 dimensions, about 10 s of one core."""

ROLES = ("given", "suggested")

EVIDENCE_SCHEMA = {
    "image_id": pl.Int64,
    "role": pl.String,
    "rank": pl.Int32,
    "label": pl.String,
    "neighbor_id": pl.Int64,
    "distance": pl.Float32,
}

_SPARE = 4
_ROWS = 262_144
_QUERIES = 32_768
_PRODUCTS = 16_000_000


@dataclass(frozen=True)
class Flagged:
    """Flagged images. rows: (f,) positions, ascending. suggested: (f,) codes. neighbors, distances: (f, k) of the graph, positions."""

    rows: Codes
    suggested: Codes
    neighbors: Codes
    distances: NDArray[np.float32]


@dataclass(frozen=True)
class _Task:
    """One class to search for some flagged images. members: positions of its images. places: (q,) of `Flagged`. role: of ROLES."""

    role: int
    members: Codes
    places: Codes


def label_evidence(
    image_id: Codes,
    given: Codes,
    duplicate_group: Codes,
    flagged: Flagged,
    take: Callable[[Codes], NDArray[np.float32]],
    class_names: list[str],
) -> pl.DataFrame:
    """Table label_evidence, by image, role and rank.

    image_id, given: (n,), codes of class_names, -1 for unlabelled. duplicate_group: (n,) smallest image_id of the group, -1 for none.
    take: (m, d) vectors of ascending positions, called with at most some 300,000 at a time.

    Up to PER_LABEL images for each label, nearest first by cosine distance, ties by image_id. Flagged images are left out: the nearest
    image of a wrong label is often one that is wrong in the same way. So are copies of the image, which are no evidence of their own; of
    a group of duplicates one is named, the nearest that the graph knows or else its first. Exact for classes of at most MOST different
    pictures; of larger ones the nearest of MOST and of those that the graph knows. A class without another such picture has no rows.
    Raises ValueError if a vector is zero or not finite.
    """
    picture = np.where(duplicate_group >= 0, duplicate_group, -1 - np.arange(len(given)))
    wanted = (given[flagged.rows], flagged.suggested)
    credible = given.copy()
    credible[flagged.rows] = -1
    known = _nearest(pl.concat([_from_graph(role, wanted[role], credible, picture, flagged) for role in range(len(ROLES))]), picture)
    n_known = np.zeros((len(ROLES), flagged.rows.size), dtype=np.int64)
    np.add.at(n_known, (known["role"].to_numpy(), known["place"].to_numpy()), 1)
    searched = [_search(chunk, picture, flagged, take) for chunk in _chunks(_tasks(wanted, credible, picture, n_known < PER_LABEL))]
    found = _nearest(pl.concat([known, *searched]), picture)
    names = pl.Series(class_names, dtype=pl.String)
    ids = pl.Series(image_id)
    table = pl.DataFrame(
        {
            "image_id": ids.gather(flagged.rows[found["place"].to_numpy()]),
            "role": pl.Series(ROLES).gather(found["role"]),
            "rank": found.select(pl.int_range(1, pl.len() + 1).over("place", "role")).to_series(),
            "label": names.gather(given[found["neighbor"].to_numpy()]),
            "neighbor_id": ids.gather(found["neighbor"]),
            "distance": found["distance"],
        }
    )
    return table.cast(EVIDENCE_SCHEMA)  # type: ignore[arg-type]


def n_nearer_suggested(table: pl.DataFrame) -> int:
    """How many flagged images are nearer to an image of the suggested label than to any of the given one. table: label_evidence."""
    nearest = table.filter(pl.col("rank") == 1).group_by("image_id").agg(
        *(pl.col("distance").filter(pl.col("role") == role).min().fill_null(np.inf).alias(role) for role in ROLES)
    )  # fmt: skip
    return nearest.filter(pl.col("suggested") < pl.col("given")).height


def _frame(role: int, place: Codes, neighbor: Codes, distance: NDArray[np.float32]) -> pl.DataFrame:
    roles = np.full(place.size, role, dtype=np.int64)
    return pl.DataFrame({"place": place, "role": roles, "neighbor": neighbor, "distance": distance})


def _from_graph(role: int, wanted: Codes, credible: Codes, picture: Codes, flagged: Flagged) -> pl.DataFrame:
    """The neighbours with the wanted label, (f,), that are no copies of the image."""
    near = flagged.neighbors
    usable = (credible[near] == wanted[:, None]) & (picture[near] != picture[flagged.rows][:, None])
    place, column = np.nonzero(usable)
    return _frame(role, place, near[place, column], flagged.distances[place, column])


def _nearest(found: pl.DataFrame, picture: Codes) -> pl.DataFrame:
    """The PER_LABEL nearest different pictures of each image and role, in order."""
    keyed = found.with_columns(picture=picture[found["neighbor"].to_numpy()]).sort("place", "role", "distance", "neighbor")
    distinct = keyed.unique(["place", "role", "picture"], keep="first", maintain_order=True)
    return distinct.group_by("place", "role", maintain_order=True).head(PER_LABEL).select(found.columns)


def _tasks(wanted: tuple[Codes, Codes], credible: Codes, picture: Codes, lacking: NDArray[np.bool_]) -> Iterator[_Task]:
    """What to search, class by class; nothing for a class without a credible image. lacking: (2, f)."""
    order = np.argsort(credible, kind="stable")
    in_order = credible[order]
    for code in np.unique(np.concatenate([codes[some] for codes, some in zip(wanted, lacking, strict=True)])):
        own = order[slice(*np.searchsorted(in_order, (code, code + 1)))]
        if not own.size:
            continue
        members = own[np.sort(np.unique(picture[own], return_index=True)[1])]
        if members.size > MOST:
            members = members[np.linspace(0, members.size - 1, MOST).astype(np.int64)]
        for role, codes in enumerate(wanted):
            asking = np.flatnonzero(lacking[role] & (codes == code))
            for start in range(0, asking.size, _QUERIES):
                yield _Task(role, members, asking[start : start + _QUERIES])


def _chunks(tasks: Iterator[_Task]) -> Iterator[list[_Task]]:
    """Tasks whose vectors are held at a time, _ROWS of them or a little more. Those of one class share its vectors."""
    chunk: list[_Task] = []
    held = 0
    for task in tasks:
        held += task.places.size + (0 if chunk and chunk[-1].members is task.members else task.members.size)
        chunk.append(task)
        if held >= _ROWS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _search(chunk: list[_Task], picture: Codes, flagged: Flagged, take: Callable[[Codes], NDArray[np.float32]]) -> pl.DataFrame:
    needed = np.unique(np.concatenate([part for task in chunk for part in (task.members, flagged.rows[task.places])]))
    unit = unit_rows(take(needed))
    return pl.concat([_search_class(task, unit, needed, picture, flagged.rows) for task in chunk])


def _search_class(task: _Task, unit: UnitRows, needed: Codes, picture: Codes, rows: Codes) -> pl.DataFrame:
    """The nearest members of a class, with some to spare: the rounding of an inner product may put them in another order."""
    points = unit(np.searchsorted(needed, task.members))
    count = min(PER_LABEL + 1 + _SPARE, task.members.size)  # one may be the image itself, or its copy
    step = max(1, min(_PRODUCTS // task.members.size, RERANK_FLOATS // (count * points.shape[1])))
    parts = []
    for start in range(0, task.places.size, step):
        places = task.places[start : start + step]
        own = unit(np.searchsorted(needed, rows[places]))
        _, column = largest_products(own, points, count)
        distance = cosine_distance(own[:, None], points[column])
        near = task.members[column]
        at, place = np.nonzero(picture[near] != picture[rows[places]][:, None])
        parts.append(_frame(task.role, places[at], near[at, place], distance[at, place]))
    return pl.concat(parts)
