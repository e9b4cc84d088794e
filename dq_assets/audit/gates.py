"""The policy gates: may this data be trained on? Pure functions from tables to verdicts.

Integrity (types, keys, ranges, completeness) is not here but in `audit.integrity`: a table that breaks it stops the audit.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from dq_assets import settings as st


@dataclass(frozen=True)
class Gate:
    """One verdict. `not_run` (there was nothing to measure) is not passed. Advisory gates have blocking=False."""

    check_name: str
    verdict: str
    blocking: bool
    value: float | None
    limit_value: float | None
    reason: str


GATES = {
    "tables_consistent": "Every table of the audit was computed from the newest version of its inputs and settings.",
    "unreadable_share": "Share of files that could not be read, at most gates.max_unreadable_share.",
    "class_minimum": "Images of the smallest class in the curated data, at least gates.min_class_images.",
    "noise_estimate": "Estimated share of wrong labels in the data as given, at most gates.max_noise_rate.",
    "split_leakage": "Duplicate groups that stand in two splits of the curated data, at most gates.max_leaks.",
    "unlearnable_classes": "Classes with too few independent images to be checked; advisory.",
}
"""Every gate and what it holds; all but the last are blocking."""

ADVISORY = frozenset({"unlearnable_classes"})


def evaluate_gates(
    *,
    manifest: pl.DataFrame,
    curated: pl.DataFrame,
    label_issues: pl.DataFrame,
    near_dups: pl.DataFrame,
    class_report: pl.DataFrame,
    stale: list[str],
    limits: st.Gates,
) -> list[Gate]:
    """All gates of GATES, in its order. Frames are the tables of the same names; stale names tables that are outdated."""
    left = curated.filter(pl.col("action") != "drop").join(manifest.select("image_id", "split"), on="image_id")
    return [
        _at_most("tables_consistent", float(len(stale)), 0, f"outdated: {', '.join(stale)}" if stale else "all tables fit together"),
        _unreadable(manifest, limits.max_unreadable_share),
        _class_minimum(manifest, left, limits.min_class_images),
        _noise(label_issues, limits.max_noise_rate),
        _leakage(left, near_dups, limits.max_leaks),
        _unlearnable(class_report),
    ]


def _at_most(name: str, value: float, limit: float, text: str) -> Gate:
    return Gate(name, "passed" if value <= limit else "failed", name not in ADVISORY, float(value), float(limit), text)


def _unreadable(manifest: pl.DataFrame, limit: float) -> Gate:
    if manifest.is_empty():
        return Gate("unreadable_share", "not_run", True, None, limit, "the dataset has no files")
    n_bad = manifest.filter(pl.col("status") != "ok").height
    share = n_bad / manifest.height
    return _at_most(
        "unreadable_share", share, limit, f"{n_bad} of {manifest.height} files could not be read ({share:.2%}, limit {limit:.2%})"
    )


def _class_minimum(manifest: pl.DataFrame, left: pl.DataFrame, limit: int) -> Gate:
    """A class of the manifest that curation emptied counts as 0; a class that only curation knows counts too."""
    counts = left.group_by(label="final_label").agg(n=pl.len())
    names = pl.concat([manifest.select(label="given_label"), left.select(label="final_label")]).drop_nulls().unique()
    every = names.join(counts, on="label", how="left").select("label", pl.col("n").fill_null(0))
    if every.is_empty():
        return Gate("class_minimum", "not_run", True, None, float(limit), "no image has a label")
    name, n = every.sort("n", "label").row(0)
    text = f"smallest class {name!r} has {n} images in the curated data (limit {limit})"
    return Gate("class_minimum", "passed" if n >= limit else "failed", True, float(n), float(limit), text)


def _noise(label_issues: pl.DataFrame, limit: float) -> Gate:
    checked = label_issues["error_probability"].drop_nulls().drop_nans()
    if checked.is_empty():
        return Gate("noise_estimate", "not_run", True, None, limit, "no label could be checked (fewer than two learnable classes)")
    rate = float(checked.mean())  # type: ignore[arg-type]
    text = f"an estimated {rate:.2%} of {len(checked)} checked labels are wrong (limit {limit:.2%})"
    return _at_most("noise_estimate", rate, limit, text)


def _leakage(left: pl.DataFrame, near_dups: pl.DataFrame, limit: int) -> Gate:
    """An image without a split counts as train: it is trained on."""
    in_use = left.filter(pl.col("split").ne_missing("unused"))
    if in_use["split"].is_null().all():
        return _at_most("split_leakage", 0, limit, "the dataset has no splits")
    groups = near_dups.filter(pl.col("group_id").is_not_null()).select("image_id", "group_id")
    parts = in_use.join(groups, on="image_id").group_by("group_id").agg(n=pl.col("split").fill_null("train").n_unique())
    leaks = parts.filter(pl.col("n") > 1).height
    return _at_most("split_leakage", leaks, limit, f"{leaks} duplicate groups stand in two splits of the curated data (limit {limit})")


def _unlearnable(class_report: pl.DataFrame) -> Gate:
    names = class_report.filter(~pl.col("is_learnable"))["class_name"].to_list()
    text = f"not checked: {', '.join(map(repr, names[:5]))}" if names else "every class has enough independent images"
    return _at_most("unlearnable_classes", len(names), 0, text)
