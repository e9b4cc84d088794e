"""Images far from all others, from the nearest-neighbour graph."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings

OUTLIERS_SCHEMA = {"image_id": pl.Int64, "outlier_score": pl.Float32, "is_outlier_issue": pl.Boolean}


def outliers(
    image_id: NDArray[np.int64],
    neighbor_ids: NDArray[np.int64],
    distances: NDArray[np.float32],
    duplicate_group: NDArray[np.int64],
    settings: settings.Outliers,
) -> pl.DataFrame:
    """Table outliers, one row per image in the order given.

    image_id: (n,) ascending. neighbor_ids: (n, k) image ids, -1 where there are fewer. distances: (n, k), cosine.
    duplicate_group: (n,) smallest image_id of the group, -1 for none.

    dbar is the mean distance to the neighbours outside the image's duplicate group: a copy must not hide an outlier. Score
    exp(-dbar / median dbar) in [0, 1], 0 is worst; flagged if dbar > Q3 + fence * IQR (the definitions of cleanlab's Datalab,
    fence 1.7). An image without such a neighbour has nulls: not checked. Where the median is 0 (more than half of the images
    coincide), the score is 1 at dbar 0 and 0 elsewhere.
    """
    mean = _mean_distance(image_id, neighbor_ids, distances, duplicate_group)
    known = mean[~np.isnan(mean)]
    if not known.size:
        empty = [None] * len(image_id)
        return pl.DataFrame({"image_id": image_id, "outlier_score": empty, "is_outlier_issue": empty}, schema=OUTLIERS_SCHEMA)
    first, median, third = np.quantile(known, [0.25, 0.5, 0.75])
    score = np.exp(-mean / median) if median > 0 else np.where(mean > 0, 0.0, 1.0)
    flag = mean > third + settings.fence * (third - first)
    frame = pl.DataFrame({"image_id": image_id, "outlier_score": score, "is_outlier_issue": flag}, schema_overrides=OUTLIERS_SCHEMA)
    checked = pl.Series(~np.isnan(mean))
    return frame.with_columns(pl.when(checked).then(pl.col(name)).alias(name) for name in ("outlier_score", "is_outlier_issue"))


def score_cut(scores: pl.Series, fence: float) -> float | None:
    """The outlier_score below which `outliers` flags, from the published scores (nulls are left out); None if nothing was checked.

    -log(score) is the mean distance in units of its median, so its quartiles give the same fence. 0 where nothing can be flagged
    by a fence: more than a quarter of the scores are 0.
    """
    known = scores.drop_nulls().to_numpy().astype(np.float64)
    if not known.size:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # a score of 0 is infinitely far
        first, third = np.quantile(-np.log(known), [0.25, 0.75])
    return float(np.exp(-(third + fence * (third - first)))) if np.isfinite(third) else 0.0


def _mean_distance(
    image_id: NDArray[np.int64], neighbor_ids: NDArray[np.int64], distances: NDArray[np.float32], duplicate_group: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n,) mean distance to the neighbours that are not in the image's duplicate group; NaN without one."""
    total = np.zeros(len(image_id))
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
    mean: NDArray[np.float64] = np.divide(total, used, out=np.full(len(image_id), np.nan), where=used > 0)
    return mean
