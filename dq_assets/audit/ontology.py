"""What the label issues say about the classes: how well each is labelled, and which pairs are confused.

Rates come from sums over the images, which are stored as table label_noise, among them the joint Q of given and true label that goes
with the error probabilities (`confident.label_noise`). It is read as in cleanlab's class table and overlapping classes:
noise_j = 1 - Q_jj / sum_k Q_jk, inverse noise_k = 1 - Q_kk / sum_j Q_jk, overlap_jk = Q_jk + Q_kj. So a class's noise rate is the mean
error probability of its checked images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets.audit.confident import Double, LabelNoise, class_thresholds
from dq_assets.audit.rows import Codes

NOISE_SCHEMA: dict[str, Any] = {
    "class_name": pl.String,
    "n": pl.Int64,
    "n_checked": pl.Int64,
    "n_agreed": pl.Int64,
    "threshold": pl.Float64,
    "expected_wrong": pl.Float64,
    "expected_wrong_low": pl.Float64,
    "expected_wrong_high": pl.Float64,
    "joint": pl.List(pl.Float32),
    "is_learnable": pl.Boolean,
}
CLASS_SCHEMA = {
    "class_name": pl.String,
    "n": pl.Int64,
    "noise_rate": pl.Float32,
    "noise_rate_low": pl.Float32,
    "noise_rate_high": pl.Float32,
    "inverse_noise_rate": pl.Float32,
    "accuracy": pl.Float32,
    "most_common_correction": pl.String,
    "n_corrections": pl.Int64,
    "is_learnable": pl.Boolean,
}
PAIR_SCHEMA = {"class_a": pl.String, "class_b": pl.String, "n_a_to_b": pl.Int64, "n_b_to_a": pl.Int64, "overlap": pl.Float64}
_LEAST_IMAGES = 0.01


def class_sums(noise: LabelNoise, given: Codes, *, class_names: list[str], learnable: NDArray[np.bool_]) -> pl.DataFrame:
    """Table label_noise: a row per class with the sums that the reports are read from.

    noise: of the images that given is of: (n,) codes of class_names, -1 for unlabelled. class_names: sorted. learnable: (K,).
    """
    n_classes = len(class_names)
    own = given[noise.rows]
    checked = np.bincount(own, minlength=n_classes)
    low, middle, high = noise.expected_wrong(given)
    thresholds = class_thresholds(own, noise.probs[:, 0], n_classes)
    joint = noise.joint().astype(np.float32)
    sums = {
        "class_name": pl.Series(class_names, dtype=pl.String),
        "n": np.bincount(given[given >= 0], minlength=n_classes),
        "n_checked": checked,
        "n_agreed": np.bincount(own[noise.right], minlength=n_classes),
        "threshold": pl.Series(thresholds).set(pl.Series(checked == 0), None),
        "expected_wrong": middle,
        "expected_wrong_low": low,
        "expected_wrong_high": high,
        "joint": pl.Series(joint, dtype=pl.Array(pl.Float32, n_classes)) if n_classes else [],
        "is_learnable": learnable,
    }
    return pl.DataFrame(sums).select(pl.col(name).cast(kind) for name, kind in NOISE_SCHEMA.items())


def class_report(sums: pl.DataFrame, issues: pl.DataFrame) -> pl.DataFrame:
    """Table class_report: one row per class, sorted by name.

    sums: table label_noise, and issues: table label_issues, of the same images. A class without checked images has null rates.
    noise_rate_low and _high are what the lowest and the highest estimate of the whole number give the class. Of equally frequent
    corrections the first by name is named.
    """
    joint = _joint(sums)
    checked = pl.col("n_checked") > 0
    most_common = corrections(issues, len(issues)).unique("given_label", keep="first", maintain_order=True)
    report = sums.select(
        "class_name",
        "n",
        pl.Series("noise_rate", _off_diagonal(joint, axis=1)),
        pl.when(checked).then(pl.col("expected_wrong_low") / pl.col("n_checked")).alias("noise_rate_low"),
        pl.when(checked).then(pl.col("expected_wrong_high") / pl.col("n_checked")).alias("noise_rate_high"),
        pl.when(checked).then(pl.Series("inverse_noise_rate", _off_diagonal(joint, axis=0))),
        pl.when(checked).then(pl.col("n_agreed") / pl.col("n")).alias("accuracy"),
        "is_learnable",
    )
    named = most_common.rename({"given_label": "class_name", "suggested_label": "most_common_correction", "count": "n_corrections"})
    joined = report.join(named, on="class_name", how="left").with_columns(pl.col("n_corrections").fill_null(0))
    return joined.select(pl.col(name).cast(kind) for name, kind in CLASS_SCHEMA.items()).sort("class_name")


def ontology_report(sums: pl.DataFrame, issues: pl.DataFrame) -> pl.DataFrame:
    """Table ontology_report: pairs of classes (a before b by name) with an overlap or a flagged image, sorted by a, b.

    sums: table label_noise, and issues: table label_issues, of the same images.
    overlap: expected images on either off-diagonal cell of the joint, as a share of the checked images; a pair with less than
    0.01 expected images and no flagged one is left out: the posterior of a softmax is nowhere exactly 0.
    """
    joint = _joint(sums)
    code = {name: number for number, name in enumerate(sums["class_name"])}
    moved = np.zeros(joint.shape, dtype=np.int64)
    for row in corrections(issues, len(issues)).iter_rows():
        moved[code[row[0]], code[row[1]]] = row[2]
    both = joint + joint.T
    first, second = np.nonzero(np.triu((both >= _LEAST_IMAGES) | (moved + moved.T > 0), k=1))
    total = max(joint.sum(), 1.0)
    pairs = pl.DataFrame(
        {
            "class_a": sums["class_name"].gather(first),
            "class_b": sums["class_name"].gather(second),
            "n_a_to_b": moved[first, second],
            "n_b_to_a": moved[second, first],
            "overlap": np.minimum(both[first, second] / total, 1.0),
        },
        schema=PAIR_SCHEMA,
    )
    return pairs.sort("class_a", "class_b")


def noise_estimate(issues: pl.DataFrame) -> float | None:
    """Estimated share of wrong labels: the mean error_probability of the checked images; None if none was checked."""
    checked = issues["error_probability"].drop_nulls()
    return float(checked.cast(pl.Float64).mean()) if len(checked) else None  # type: ignore[arg-type]


def corrections(issues: pl.DataFrame, top: int) -> pl.DataFrame:
    """The most frequent (given_label, suggested_label, count) of the flagged images, at most `top`, most frequent first."""
    flagged = issues.select("given_label", "suggested_label", "is_label_issue").filter("is_label_issue")
    counted = flagged.group_by("given_label", "suggested_label").agg(pl.len().cast(pl.Int64).alias("count"))
    return counted.sort(["count", "given_label", "suggested_label"], descending=[True, False, False]).head(top)


def _joint(sums: pl.DataFrame) -> Double:
    """(K, K) expected number of checked images with given label j (row) and true label k (column)."""
    return sums["joint"].explode().drop_nulls().to_numpy().astype(np.float64).reshape(len(sums), len(sums))


def _off_diagonal(joint: Double, *, axis: int) -> list[float | None]:
    """Share of each row (axis 1) or column (axis 0) that is off the diagonal; None for a sum of 0."""
    total = joint.sum(axis=axis)
    return [None if t <= 0 else float(min(max(1 - d / t, 0.0), 1.0)) for d, t in zip(np.diag(joint), total, strict=True)]
