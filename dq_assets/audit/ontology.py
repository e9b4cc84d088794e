"""What the label issues say about the classes: how well each is labelled, and which pairs are confused.

Rates come from the joint of given and true label that also gave the error probabilities (`confident.label_noise`), read as in
cleanlab's class table and overlapping classes: noise_j = 1 - Q_jj / sum_k Q_jk, inverse noise_k = 1 - Q_kk / sum_j Q_jk,
overlap_jk = Q_jk + Q_kj. So a class's noise rate is the mean error probability of its checked images.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets.audit.confident import Double, label_noise
from dq_assets.audit.rows import Codes, Rows, Streamed

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


def class_report(
    given: Codes, probs: Rows | Streamed, issues: pl.DataFrame, *, class_names: list[str], learnable: NDArray[np.bool_]
) -> pl.DataFrame:
    """Table class_report: one row per class, sorted by name.

    given: (n,) codes of class_names, -1 for unlabelled. probs: (n, K) out-of-fold. issues: table label_issues of the same images.
    learnable: (K,). A class without checked images has null rates. noise_rate_low and _high are what the lowest and the highest
    estimate of the whole number give the class. Of equally frequent corrections the first by name is named.
    """
    n_classes = len(class_names)
    noise = label_noise(given, probs, learnable)
    joint = noise.joint(given)
    low, _, high = noise.rates(given)
    labelled = given >= 0
    counts = np.bincount(given[labelled], minlength=n_classes)
    right = np.bincount(given[noise.rows], noise.right, n_classes)
    checked = joint.sum(axis=1) > 0
    most_common = corrections(issues, len(issues)).unique("given_label", keep="first", maintain_order=True)
    report = pl.DataFrame(
        {
            "class_name": pl.Series(class_names, dtype=pl.String),
            "n": counts,
            "noise_rate": _off_diagonal(joint, axis=1),
            "noise_rate_low": pl.Series(values=low, nan_to_null=True),
            "noise_rate_high": pl.Series(values=high, nan_to_null=True),
            "inverse_noise_rate": pl.Series(_off_diagonal(joint, axis=0)).set(pl.Series(~checked), None),
            "accuracy": [r / c if ok else None for r, c, ok in zip(right.tolist(), counts.tolist(), checked.tolist(), strict=True)],
            "is_learnable": learnable,
        },
        strict=False,
    )
    named = most_common.rename({"given_label": "class_name", "suggested_label": "most_common_correction", "count": "n_corrections"})
    joined = report.join(named, on="class_name", how="left").with_columns(pl.col("n_corrections").fill_null(0))
    return joined.select(pl.col(name).cast(kind) for name, kind in CLASS_SCHEMA.items()).sort("class_name")


def ontology_report(given: Codes, probs: Rows | Streamed, issues: pl.DataFrame, *, class_names: list[str]) -> pl.DataFrame:
    """Table ontology_report: pairs of classes (a before b by name) with an overlap or a flagged image, sorted by a, b.

    given: (n,) codes of class_names, -1 for unlabelled. probs: (n, K) out-of-fold. issues: table label_issues of the same images.
    overlap: expected images on either off-diagonal cell of the joint, as a share of the checked images; a pair with less than
    0.01 expected images and no flagged one is left out: the posterior of a softmax is nowhere exactly 0.
    """
    checked = set(issues.filter(pl.col("error_probability").is_not_null())["given_label"].to_list())
    learnable = np.array([name in checked for name in class_names], dtype=bool)
    joint = label_noise(given, probs, learnable).joint(given)
    code = {name: number for number, name in enumerate(class_names)}
    moved = np.zeros(joint.shape, dtype=np.int64)
    for row in corrections(issues, len(issues)).iter_rows():
        moved[code[row[0]], code[row[1]]] = row[2]
    both = joint + joint.T
    first, second = np.nonzero(np.triu((both >= _LEAST_IMAGES) | (moved + moved.T > 0), k=1))
    total = max(joint.sum(), 1.0)
    pairs = pl.DataFrame(
        {
            "class_a": [class_names[a] for a in first],
            "class_b": [class_names[b] for b in second],
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
    flagged = issues.filter(pl.col("is_label_issue"))
    counted = flagged.group_by("given_label", "suggested_label").agg(pl.len().cast(pl.Int64).alias("count"))
    return counted.sort(["count", "given_label", "suggested_label"], descending=[True, False, False]).head(top)


def _off_diagonal(joint: Double, *, axis: int) -> list[float | None]:
    """Share of each row (axis 1) or column (axis 0) that is off the diagonal; None for a sum of 0."""
    total = joint.sum(axis=axis)
    return [None if t <= 0 else float(min(max(1 - d / t, 0.0), 1.0)) for d, t in zip(np.diag(joint), total, strict=True)]
