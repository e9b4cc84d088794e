"""Images far from all others, from the nearest-neighbour graph."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings

OUTLIERS_SCHEMA = {"image_id": pl.Int64, "outlier_score": pl.Float32, "is_outlier_issue": pl.Boolean}


STRANGENESS = 0.5
"""How much farther an image counts none of whose neighbours has its label. 1 ranked better still where labels are clean, but it ranks
label errors among the outliers; .25 gave half of the gain (15 sets, some with 5 to 8 % wrong labels)."""

TAIL_FROM = (0.9, 0.97)
"""Quantiles by which, with the third quartile, a regular tail is told: first .9, which a tenth of outliers leaves where it is, then .97 of
what is not evident by the first. From there a normal tail is less too long; alone it gives way to 3 % of outliers."""

ERRORS = 2.0
"""Standard errors by which a tail has to be longer than expected: the noise of 500 images is no outlier. With 3 the F1 of far
outliers was .01 to .07 lower, with 1 there were a quarter more false alarms."""


def outliers(
    image_id: NDArray[np.int64],
    neighbor_ids: NDArray[np.int64],
    distances: NDArray[np.float32],
    duplicate_group: NDArray[np.int64],
    label: NDArray[np.int64],
    settings: settings.Outliers,
) -> pl.DataFrame:
    """Table outliers, one row per image in the order given.

    image_id: (n,) ascending. neighbor_ids: (n, k) image ids, -1 where there are fewer. distances: (n, k), cosine.
    duplicate_group: (n,) smallest image_id of the group, -1 for none. label: (n,) codes, -1 for none.

    dbar is the mean distance to the neighbours outside the image's duplicate group: a copy must not hide an outlier. What belongs to no
    class is far, and its neighbours have other labels than it was given: d = dbar * (1 + STRANGENESS * share of these that have another
    label). Neighbours without a label are not counted; an image without one, or without labelled neighbours, gets the mean share.
    Score exp(-d / median d) in [0, 1], 0 is worst; flagged beyond `_cut`. An image without such a neighbour has nulls: not checked.
    Where the median is 0 (more than half of the images coincide), the score is 1 at d = 0 and 0 elsewhere.
    Raises ValueError if a neighbour is not in image_id.
    """
    dbar, share = _neighbourhood(image_id, neighbor_ids, distances, duplicate_group, label)
    told = share[~np.isnan(share)]
    distance = dbar * (1 + STRANGENESS * np.where(np.isnan(share), told.mean() if told.size else 0.0, share))
    checked = ~np.isnan(distance)
    known = distance[checked]
    if not known.size:
        empty = [None] * len(image_id)
        return pl.DataFrame({"image_id": image_id, "outlier_score": empty, "is_outlier_issue": empty}, schema=OUTLIERS_SCHEMA)
    median = np.median(known)
    score = np.exp(-distance / median) if median > 0 else np.where(distance > 0, 0.0, 1.0)
    strange = ~(share < 0.5 * _chance(label))  # also where the share is not known
    flag = distance > _cut(known, strange[checked], settings.false_alarm_rate)
    frame = pl.DataFrame({"image_id": image_id, "outlier_score": score, "is_outlier_issue": flag}, schema_overrides=OUTLIERS_SCHEMA)
    return frame.with_columns(pl.when(pl.Series(checked)).then(pl.col(name)).alias(name) for name in ("outlier_score", "is_outlier_issue"))


def score_cut(table: pl.DataFrame) -> float | None:
    """The highest outlier_score that a table of `outliers` flags; 0 if it flags none, None if nothing was checked."""
    scores = table.drop_nulls("outlier_score")
    highest = scores.filter("is_outlier_issue")["outlier_score"].max()
    return None if scores.is_empty() else float(highest or 0.0)  # type: ignore[arg-type]


def _cut(distance: NDArray[np.float64], strange: NDArray[np.bool_], false_alarm_rate: float) -> float:
    """The distance beyond which there are as many images as are evident outliers, and the share false_alarm_rate of the others.

    distance: (n,), none NaN. strange: (n,) whether an image's neighbours have other labels at least half as often as by chance.
    The adaptive cut of Gervini and Yohai (2002, Annals of Statistics 30, 583) and Filzmoser, Garrett and Reimann (2005, Computers &
    Geosciences 31, 579): what a tail has beyond that of a model is evident. The rate is added to it as a quantile, so with no outliers it
    is met whatever the tail, if that is not longer than the model's.
    """
    order = np.argsort(distance)
    ordered, strange, n, evident = distance[order], strange[order], len(order), 0.0
    for level in TAIL_FROM:
        evident = _evident(ordered, strange, evident, level)
    flagged = round(n * (evident + false_alarm_rate * (1 - evident)))
    return float(ordered[max(n - 1 - flagged, 0)])


def _evident(ordered: NDArray[np.float64], strange: NDArray[np.bool_], known: float, level: float) -> float:
    """The share of images that a regular tail does not explain: the most by which, anywhere in it, more strange ones are at least as far.

    ordered: (n,) ascending distances; strange: (n,) theirs. An image among its own class is far because it is rare, and not counted.
    known: share of the largest distances that is taken to be outliers. The others are taken to be normal beyond their third quartile,
    with mean and width by that and their quantile `level`.
    """
    from scipy.special import ndtr, ndtri

    n = len(ordered)
    third, high = np.quantile(ordered[: n - int(n * known)], [0.75, level])
    beyond = ordered > high
    with np.errstate(divide="ignore"):  # so many coincide that high is third: nothing is expected beyond
        steps = (ordered[beyond] - high) / (high - third)
    expected = (1 - known) * ndtr(-ndtri(level) - steps * (ndtri(level) - ndtri(0.75)))
    as_far = np.cumsum(strange[beyond][::-1])[::-1] / n
    return float((as_far - expected - ERRORS * np.sqrt(expected / n)).max(initial=0.0))


def _chance(label: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) share of the labelled images that have another label than the image; 0 for one without, and where there is one class alone."""
    counts = np.bincount(label[label >= 0], minlength=1)
    return np.where(label >= 0, 1 - counts[np.maximum(label, 0)] / max(counts.sum(), 1), 0.0)


def _neighbourhood(
    image_id: NDArray[np.int64],
    neighbor_ids: NDArray[np.int64],
    distances: NDArray[np.float32],
    duplicate_group: NDArray[np.int64],
    label: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) dbar of `outliers`, NaN without a neighbour outside the duplicate group, and (n,) the share of these with another label.

    The share is of the neighbours that have a label; NaN where there is none, or the image has none.
    """
    n = len(image_id)
    total, used, other, labelled = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    for column in range(neighbor_ids.shape[1]):  # column by column: no n x k copy
        ids = neighbor_ids[:, column]
        at = np.minimum(np.searchsorted(image_id, ids), max(n - 1, 0))
        if not np.array_equal(image_id[at][ids >= 0], ids[ids >= 0]):
            raise ValueError("neighbor_ids holds ids that are not in image_id. Compute the neighbours of these images again.")
        copy = (duplicate_group >= 0) & (duplicate_group[at] == duplicate_group)
        usable = (ids >= 0) & ~copy
        total[usable] += np.maximum(distances[usable, column], 0.0)  # rounding leaves -1e-7 between equal vectors
        used += usable
        told = usable & (label >= 0) & (label[at] >= 0)
        labelled += told
        other += told & (label[at] != label)
    mean: NDArray[np.float64] = np.divide(total, used, out=np.full(n, np.nan), where=used > 0)
    share: NDArray[np.float64] = np.divide(other, labelled, out=np.full(n, np.nan), where=labelled > 0)
    return mean, share
