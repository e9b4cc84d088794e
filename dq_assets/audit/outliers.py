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
    label). An image without a label gets the mean share. Score exp(-d / median d) in [0, 1], 0 is worst; flagged beyond `_cut`.
    An image without such a neighbour has nulls: not checked. Where the median is 0 (more than half of the images coincide), the score
    is 1 at d = 0 and 0 elsewhere. Raises ValueError if a neighbour is not in image_id.
    """
    distance = _distance(image_id, neighbor_ids, distances, duplicate_group, label)
    known = distance[~np.isnan(distance)]
    if not known.size:
        empty = [None] * len(image_id)
        return pl.DataFrame({"image_id": image_id, "outlier_score": empty, "is_outlier_issue": empty}, schema=OUTLIERS_SCHEMA)
    median = np.median(known)
    score = np.exp(-distance / median) if median > 0 else np.where(distance > 0, 0.0, 1.0)
    flag = distance > _cut(known, settings.false_alarm_rate)
    frame = pl.DataFrame({"image_id": image_id, "outlier_score": score, "is_outlier_issue": flag}, schema_overrides=OUTLIERS_SCHEMA)
    checked = pl.Series(~np.isnan(distance))
    return frame.with_columns(pl.when(checked).then(pl.col(name)).alias(name) for name in ("outlier_score", "is_outlier_issue"))


def score_cut(scores: pl.Series, false_alarm_rate: float) -> float | None:
    """The outlier_score below which `outliers` flags, from the published scores (nulls are left out); None if nothing was checked.

    -log(score) is the distance in units of its median, which moves the cut by the same factor. 0 where nothing can be flagged: more
    than a twentieth of the scores are 0.
    """
    known = scores.drop_nulls().to_numpy().astype(np.float64)
    if not known.size:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # a score of 0 is infinitely far
        cut = _cut(-np.log(known), false_alarm_rate)
    return float(np.exp(-cut)) if np.isfinite(cut) else 0.0


def _cut(distance: NDArray[np.float64], false_alarm_rate: float) -> float:
    """The distance beyond which a regular image is expected with that probability.

    The logarithms of regular distances are taken to be normal above their third quartile. Mean and width come from the quantiles .75
    and .95, so up to 5 % of outliers move them little. Where the third quartile is 0, so that there is no logarithm: the quantile .95.
    """
    from scipy.special import ndtri

    third, high = np.quantile(distance, [0.75, 0.95])
    if not third > 0 or not np.isfinite(high):
        return float(high)
    steps = (ndtri(1 - false_alarm_rate) - ndtri(0.95)) / (ndtri(0.95) - ndtri(0.75))
    return float(high * (high / third) ** steps)


def _distance(
    image_id: NDArray[np.int64],
    neighbor_ids: NDArray[np.int64],
    distances: NDArray[np.float32],
    duplicate_group: NDArray[np.int64],
    label: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(n,) d of `outliers`; NaN without a neighbour outside the image's duplicate group."""
    total, other = np.zeros(len(image_id)), np.zeros(len(image_id), dtype=np.int64)
    used = np.zeros(len(image_id), dtype=np.int64)
    for column in range(neighbor_ids.shape[1]):  # column by column: no n x k copy
        ids = neighbor_ids[:, column]
        at = np.minimum(np.searchsorted(image_id, ids), max(len(image_id) - 1, 0))
        if not np.array_equal(image_id[at][ids >= 0], ids[ids >= 0]):
            raise ValueError("neighbor_ids holds ids that are not in image_id. Compute the neighbours of these images again.")
        copy = (duplicate_group >= 0) & (duplicate_group[at] == duplicate_group)
        usable = (ids >= 0) & ~copy
        total[usable] += np.maximum(distances[usable, column], 0.0)  # rounding leaves -1e-7 between equal vectors
        used += usable
        other += usable & (label[at] != label)
    missing = np.full(len(image_id), np.nan)
    mean: NDArray[np.float64] = np.divide(total, used, out=missing.copy(), where=used > 0)
    share = np.divide(other, used, out=missing, where=(used > 0) & (label >= 0))
    return mean * (1 + STRANGENESS * np.where(np.isnan(share), np.nanmean(share) if (~np.isnan(share)).any() else 0.0, share))
