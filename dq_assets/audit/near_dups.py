"""The verdict on duplicate groups: which label of a conflict is right, which groups leak over splits, which copy to keep.

How the groups come about is in `duplicates`; what is done with the verdict is in `curation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets.audit.rows import Rows, Streamed, take_rows

LABEL_PRIOR = 0.9
"""Probability that a given label is right, before the model is asked; the rest is shared by the other classes."""

LEAKING_SPLITS = ("train", "validation", "test")
"""A group in two of these leaks. The order is that of keepers, last first: dropping a test image changes what is measured."""

NEAR_DUPS_SCHEMA = {
    "image_id": pl.Int64,
    "group_id": pl.Int64,
    "kind": pl.String,
    "near_duplicate_score": pl.Float32,
    "is_near_duplicate_issue": pl.Boolean,
    "label_conflict": pl.Boolean,
    "crosses_split": pl.Boolean,
    "is_wrong_label": pl.Boolean,
    "resolved_label": pl.String,
    "confidence": pl.Float32,
    "is_keeper": pl.Boolean,
}

_FLOOR = 1e-6
_BLOCK = 4096


def near_dups(manifest: pl.DataFrame, groups: pl.DataFrame, probs: Rows | Streamed, class_names: Sequence[str]) -> pl.DataFrame:
    """Table near_dups, one row per image of the manifest, in its order.

    manifest: (image_id, given_label, split, width, height, bytes), sorted by image_id. groups: table duplicate_groups.
    probs: (n, K) out-of-fold, row for row with the manifest, of a model that saw no copy of the image; the rows of the groups are
    held in memory. class_names: K names.

    label_conflict: the group holds more than one given label; an image without label takes no part. resolved_label: the one given
    label where there is no conflict, else the most probable class: each member votes with its given label, which is right with
    LABEL_PRIOR, and the model once, with the mean of its log-probabilities (copies are one picture, not several opinions).
    confidence: the probability of resolved_label; null for all if there are no classes. Keeper, one per group: test before validation
    before train before the rest, then right label, most pixels, most bytes, smallest image_id.
    Raises ValueError where rows do not fit or a label of a group has no class.
    """
    if probs.shape != (manifest.height, len(class_names)):
        raise ValueError(f"probs {probs.shape} does not fit {manifest.height} images and {len(class_names)} classes.")
    rows = manifest.with_row_index("row").join(groups, on="image_id", how="left", maintain_order="left")
    members = rows.filter(pl.col("group_id").is_not_null())
    if members.height != groups.height:
        raise ValueError(f"{groups.height - members.height} images of duplicate_groups are not in the manifest.")
    own = members.get_column("row").to_numpy().astype(np.int64)
    members = _with_verdict(members.with_columns(row=np.arange(own.size)), take_rows(probs, own), list(class_names))
    found = rows.select("image_id", "group_id", "kind", "distance").join(members, on="image_id", how="left", maintain_order="left")
    grouped = pl.col("group_id").is_not_null()
    return found.select(
        "image_id",
        "group_id",
        "kind",
        near_duplicate_score=pl.when(~grouped).then(1.0).when(pl.col("kind") == "near").then("distance").otherwise(0.0),
        is_near_duplicate_issue=grouped,
        label_conflict=pl.col("label_conflict").fill_null(False),
        crosses_split=pl.col("crosses_split").fill_null(False),
        is_wrong_label=pl.col("is_wrong_label").fill_null(False),
        resolved_label=pl.col("resolved_label"),
        confidence=pl.col("confidence"),
        is_keeper=pl.col("is_keeper").fill_null(True),
    ).cast(NEAR_DUPS_SCHEMA)  # type: ignore[arg-type]


def _with_verdict(members: pl.DataFrame, probs: NDArray[np.float32], class_names: list[str]) -> pl.DataFrame:
    """Members of groups with label_conflict, crosses_split, resolved_label, confidence, is_wrong_label, is_keeper."""
    label, split = pl.col("given_label"), pl.col("split")
    members = members.with_columns(
        label_conflict=label.drop_nulls().n_unique().over("group_id") > 1,
        crosses_split=split.filter(split.is_in(LEAKING_SPLITS)).n_unique().over("group_id") > 1,
    )
    members = members.join(_resolved(members, probs, class_names), on="group_id", how="left", maintain_order="left")
    # A label that is missing is not a wrong one.
    members = members.with_columns(is_wrong_label=(pl.col("label_conflict") & (label != pl.col("resolved_label"))).fill_null(False))
    ranked = members.select(
        "image_id",
        "group_id",
        "is_wrong_label",
        split=split.replace_strict(dict(zip(LEAKING_SPLITS, (1, 2, 3), strict=True)), default=0, return_dtype=pl.Int8).fill_null(0),
        pixels=(pl.col("width").cast(pl.Int64) * pl.col("height").cast(pl.Int64)).fill_null(0),
        bytes=pl.col("bytes").fill_null(0),
    ).sort("split", "is_wrong_label", "pixels", "bytes", "image_id", descending=[True, False, True, True, False])
    keepers = ranked.group_by("group_id", maintain_order=True).first().get_column("image_id")
    return members.with_columns(is_keeper=pl.col("image_id").is_in(keepers.implode())).select(
        "image_id", "label_conflict", "crosses_split", "is_wrong_label", "resolved_label", "confidence", "is_keeper"
    )


def _resolved(members: pl.DataFrame, probs: NDArray[np.float32], class_names: list[str]) -> pl.DataFrame:
    """(group_id, resolved_label, confidence) of each group."""
    schema = {"group_id": pl.Int64, "resolved_label": pl.String, "confidence": pl.Float32}
    members = members.sort("group_id", "image_id")
    ids, start = np.unique(members.get_column("group_id").to_numpy(), return_index=True)
    if not class_names or not len(ids):
        return pl.DataFrame({"group_id": ids, "resolved_label": [None] * len(ids), "confidence": [None] * len(ids)}, schema=schema)
    codes = {name: code for code, name in enumerate(class_names)}
    given = members.get_column("given_label")
    label = given.replace_strict(codes, default=None, return_dtype=pl.Int64)
    unknown = given.filter(given.is_not_null() & label.is_null()).unique().sort().to_list()
    if unknown:
        raise ValueError(f"No class for the given labels {unknown[:5]}. Pass every label in class_names.")
    vote = label.fill_null(-1).to_numpy()
    rows = members.get_column("row").to_numpy()
    # Without a conflict the label stands: it was not contradicted here, and label_issues judges it.
    conflict = members.get_column("label_conflict").to_numpy()[start]
    choice = np.where(conflict, -1, np.maximum.reduceat(vote, start))
    confidence = np.empty(len(ids), dtype=np.float32)
    for part, posterior in _posteriors(probs, rows, vote, start):
        best = posterior.argmax(axis=1)
        choice[part] = np.where(choice[part] < 0, best, choice[part])
        confidence[part] = posterior[np.arange(len(best)), choice[part]]
    return pl.DataFrame({"group_id": ids, "resolved_label": np.array(class_names)[choice], "confidence": confidence}, schema=schema)


def _posteriors(
    probs: NDArray[np.float32], rows: NDArray[np.integer], vote: NDArray[np.int64], start: NDArray[np.intp]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Class posteriors of groups in blocks of 4,096, as groups x classes may not fit in memory.

    rows: row of probs of each member, sorted by group; vote: its class or -1; start: first member of each group.
    """
    k = probs.shape[1]
    ends = np.append(start[1:], len(rows))
    odds = np.float32(np.log(LABEL_PRIOR / ((1 - LABEL_PRIOR) / (k - 1)))) if k > 1 else np.float32(0)
    for first in range(0, len(start), _BLOCK):
        part = slice(first, min(first + _BLOCK, len(start)))
        low, high = start[first], ends[part.stop - 1]
        size = (ends[part] - start[part])[:, None]
        logs = np.log(np.maximum(probs[rows[low:high]], np.float32(_FLOOR)))
        score = np.add.reduceat(logs, start[part] - low, axis=0) / size.astype(np.float32)
        owner = np.repeat(np.arange(len(size)), size[:, 0])
        voted = vote[low:high] >= 0
        np.add.at(score, (owner[voted], vote[low:high][voted]), odds)
        score = np.exp(score - score.max(axis=1, keepdims=True))
        yield part, (score / score.sum(axis=1, keepdims=True)).astype(np.float32)
