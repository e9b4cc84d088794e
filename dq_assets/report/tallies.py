"""The numbers behind the charts: frames of findings in, small frames of counts out. How they are drawn is in `charts`."""

from __future__ import annotations

import numpy as np
import polars as pl

NO_LABEL = "(no label)"

BIN_WIDTH = 0.02
"""Width of a score histogram's bins, about: the cut is always an edge, so that every bar is flagged as a whole or not at all."""


def class_sizes(manifest: pl.DataFrame) -> pl.DataFrame:
    """(class_name, split, n) of the readable images; split is null where there is none.

    manifest: given_label, split, status.
    """
    fine = manifest.filter(pl.col("status") == "ok")
    counted = fine.group_by(pl.col("given_label").fill_null(NO_LABEL).alias("class_name"), "split").agg(n=pl.len().cast(pl.Int64))
    return counted.sort("class_name", "split")


def curation_changes(manifest: pl.DataFrame, curated: pl.DataFrame) -> pl.DataFrame:
    """(class_name, side, part, n): the images of each class before curation by given label, and after it by final label.

    manifest: image_id, given_label. curated: image_id, final_label, action. side: before or after. part: kept, review, relabelled
    (before: to another class; after: from another class) or dropped (before only).
    """
    part = pl.col("action").replace_strict({"keep": "kept", "relabel": "relabelled", "drop": "dropped", "review": "review"})
    rows = manifest.select("image_id", "given_label").join(curated.select("image_id", "final_label", "action"), on="image_id")
    before = rows.select(class_name="given_label", side=pl.lit("before"), part=part)
    after = rows.filter(pl.col("action") != "drop").select(class_name="final_label", side=pl.lit("after"), part=part)
    counted = pl.concat([before, after]).with_columns(pl.col("class_name").fill_null(NO_LABEL))
    return counted.group_by("class_name", "side", "part").agg(n=pl.len().cast(pl.Int64)).sort("class_name", "side", "part")


def score_bins(scores: pl.Series, cut: float) -> pl.DataFrame:
    """(low, high, n, beyond) over [0, 1], about BIN_WIDTH wide, with an edge at the cut; nulls are left out.

    beyond: "above" or "below" the cut. A score that equals the cut is counted below it.
    """
    inside = min(max(cut, 0.0), 1.0)
    below = np.linspace(0, inside, max(round(inside / BIN_WIDTH), 1) + 1) if inside > 0 else np.zeros(1)
    above = np.linspace(inside, 1, max(round((1 - inside) / BIN_WIDTH), 1) + 1)[1:] if inside < 1 else np.empty(0)
    edges = np.concatenate([below, above])
    known = scores.drop_nulls().to_numpy().astype(np.float64)
    # float32 scores against a float64 cut: compared as the audit compares them, in float32.
    at = np.clip(np.searchsorted(edges.astype(np.float32), known.astype(np.float32), side="left") - 1, 0, len(edges) - 2)
    n = np.bincount(at, minlength=len(edges) - 1)
    side = np.where(edges[1:] <= inside, "below", "above")
    return pl.DataFrame({"low": edges[:-1], "high": edges[1:], "n": n, "beyond": side})
