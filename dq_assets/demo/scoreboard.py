"""How many of the planted issues an audit found, and what it found besides. Pure functions of frames.

A source has issues of its own (OpenMoji: 208 groups of equal pictures, thousands of skin tones). A finding that is not
planted is therefore called false only where the audit of the source as it is did not make it too; such known findings
count neither for nor against the audit, and the note gives both numbers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from dq_assets.settings import UserError

LEAK_SPLITS = ("train", "validation", "test")
"""Splits between which a duplicate group is a leak; unused images leak nothing."""


@dataclass(frozen=True)
class Score:
    """One line. planted, found: issues (images or groups); false: findings neither planted nor known, None where not countable.

    recall = found / planted; precision = right findings / (right + false findings); average_precision of the score as a
    ranking, known findings left out. All in [0, 1], None where there is nothing to divide by.
    """

    what: str
    planted: int
    found: int
    false: int | None
    recall: float | None
    precision: float | None
    average_precision: float | None
    note: str


def scoreboard(
    truth: pl.DataFrame,
    label_issues: pl.DataFrame,
    near_dups: pl.DataFrame,
    outliers: pl.DataFrame,
    curated: pl.DataFrame,
    *,
    baseline: Mapping[str, pl.DataFrame] | None = None,
) -> list[Score]:
    """Score an audit of a planted copy.

    truth: columns of `planting.TRUTH`. The others are the tables of the audit with a column `path` as in truth.
    baseline: label_issues, near_dups, outliers and curated_dataset of the audit of the unplanted source, by table name, with
        its own paths (truth's source_path); without a table every finding of it that was not planted is false.
    An image that a table lacks counts as not found. Raises UserError if a table shares no path with truth.
    """
    for name, table in (("label_issues", label_issues), ("near_dups", near_dups), ("outliers", outliers), ("curated_dataset", curated)):
        _require_common_paths(truth, table, name)
    known = baseline or {}
    duplicates = _joined(truth, near_dups, known.get("near_dups"), ("is_near_duplicate_issue", "is_wrong_label"))
    return [
        _label_row(_joined(truth, label_issues, known.get("label_issues"), ("is_label_issue",))),
        *_duplicate_rows(duplicates),
        *_cross_label_rows(duplicates),
        _outlier_row(_joined(truth, outliers, known.get("outliers"), ("is_outlier_issue",))),
        *_leak_rows(duplicates, curated),
        _curation_row(truth, curated, known.get("curated_dataset")),
    ]


def average_precision(is_positive: np.ndarray, score: np.ndarray) -> float | None:
    """Sum of (recall step x precision) down the ranking by `score`, lowest first; ties are taken together, as in scikit-learn."""
    if not is_positive.any():
        return None
    order = np.argsort(score, kind="stable")
    hits = np.cumsum(is_positive[order])
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    return float(np.sum(np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)) / hits[-1])


def render(scores: list[Score]) -> str:
    """A plain text table for 100 columns; each note stands under its line."""
    lines = [f"{'':<36}{'planted':>9}{'found':>8}{'false':>8}{'recall':>10}{'precision':>12}{'avg. prec.':>13}"]
    for score in scores:
        numbers = f"{score.planted:>9,}{score.found:>8,}{'-' if score.false is None else format(score.false, ','):>8}"
        lines.append(
            f"{score.what:<36}{numbers}{_share(score.recall):>10}{_share(score.precision):>12}{_share(score.average_precision):>13}"
        )
        lines += textwrap.wrap(score.note, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _require_common_paths(truth: pl.DataFrame, table: pl.DataFrame, name: str) -> None:
    if truth.join(table, on="path", how="semi").is_empty():
        raise UserError(f"No path of {name} is in truth.parquet. Audit the folder images/ beside that file.")


def _joined(truth: pl.DataFrame, table: pl.DataFrame, known: pl.DataFrame | None, flags: tuple[str, ...]) -> pl.DataFrame:
    """Truth with the table's columns, the flags without nulls, and for each flag `known_<flag>`: whether the source's image has it.

    With near_dups also `known_group`, the group of the source's image in the source's own audit.
    """
    both = truth.with_columns(pl.col("is_label_error", "is_outlier").fill_null(False)).join(
        table.drop("given_label", strict=False), on="path", how="left", maintain_order="left"
    )
    found_before = table.clear() if known is None else known
    renamed = found_before.select(
        pl.col("path").alias("source_path"),
        *(pl.col(flag).alias(f"known_{flag}") for flag in flags),
        *([pl.col("group_id").alias("known_group")] if "group_id" in table.columns else []),
    )
    return both.join(renamed, on="source_path", how="left", maintain_order="left").with_columns(
        pl.col(*flags, *(f"known_{flag}" for flag in flags)).fill_null(False)
    )


def _score(
    what: str, planted: int, found: int, false: int | None, note: str, *, right: int | None = None, ap: float | None = None
) -> Score:
    """right: right findings for the precision where these are more than `found`."""
    right = found if right is None else right
    precision = None if false is None or right + false == 0 else right / (right + false)
    return Score(what, planted, found, false, found / planted if planted else None, precision, ap, note)


def _count(rows: pl.DataFrame, flag: str) -> int:
    return rows.filter(flag).height


def _known_note(besides: int, known: int) -> str:
    return f"{besides} more found, {known} of them also in the source as it is." if besides else "Nothing else found."


def _label_row(rows: pl.DataFrame) -> Score:
    """Flips. A hit on an outlier or on the wrong side of a cross-label copy is right too: these labels are wrong as well."""
    flag, is_flip = pl.col("is_label_issue"), pl.col("planted") == "label_flip"
    flagged = rows.filter(flag)
    found = flagged.filter(is_flip)
    wrong_too = flagged.filter(~is_flip & pl.col("is_label_error"))
    outliers = flagged.filter(pl.col("is_outlier"))
    besides = flagged.filter(~pl.col("is_label_error") & ~pl.col("is_outlier"))
    known = _count(besides, "known_is_label_issue")
    # Outliers are left out of the ranking: any label of theirs is wrong, but in another sense.
    ranked = rows.filter(~pl.col("is_outlier") & (pl.col("is_label_error") | ~pl.col("known_is_label_issue")))
    suggested = found.filter(pl.col("suggested_label") == pl.col("true_label")).height
    note = (
        f"Right class suggested for {suggested} of {found.height}. Also flagged, rightly: {wrong_too.height} cross-label copies, "
        f"{outliers.height} outliers. {_known_note(besides.height, known)}"
    )
    return _score(
        "label flips",
        rows.filter(is_flip).height,
        found.height,
        besides.height - known,
        note,
        right=found.height + wrong_too.height + outliers.height,
        ap=average_precision(ranked["is_label_error"].to_numpy(), ranked["label_score"].fill_null(1.0).to_numpy()),
    )


def _outlier_row(rows: pl.DataFrame) -> Score:
    flagged = rows.filter(pl.col("is_outlier_issue"))
    found, besides = flagged.filter(pl.col("is_outlier")), flagged.filter(~pl.col("is_outlier"))
    known = _count(besides, "known_is_outlier_issue")
    ranked = rows.filter(pl.col("is_outlier") | ~pl.col("known_is_outlier_issue"))
    return _score(
        "outliers",
        _count(rows, "is_outlier"),
        found.height,
        besides.height - known,
        _known_note(besides.height, known),
        ap=average_precision(ranked["is_outlier"].to_numpy(), ranked["outlier_score"].fill_null(1.0).to_numpy()),
    )


def _with_original(rows: pl.DataFrame) -> pl.DataFrame:
    """The planted copies; `with_original`: whether the audit put each into one group with the image that it was made from."""
    originals = rows.filter(pl.col("dup_kind") == "original").select(
        "dup_group", pl.col("group_id").alias("original_group"), pl.col("split").alias("original_split"),
        pl.col("is_wrong_label").alias("original_is_wrong"),
    )  # fmt: skip
    copies = rows.filter(pl.col("dup_group").is_not_null() & (pl.col("dup_kind") != "original"))
    return copies.join(originals, on="dup_group", how="left", maintain_order="left").with_columns(
        (pl.col("group_id") == pl.col("original_group")).fill_null(False).alias("with_original")
    )


def _duplicate_rows(rows: pl.DataFrame) -> list[Score]:
    copies = _with_original(rows)
    besides = rows.filter(pl.col("is_near_duplicate_issue") & pl.col("dup_group").is_null())
    exact, near = copies.filter(planted="exact_duplicate"), copies.filter(planted="near_duplicate")
    besides_exact, besides_near = besides.filter(pl.col("kind") != "near"), besides.filter(kind="near")
    known = [_count(part, "known_is_near_duplicate_issue") for part in (besides_exact, besides_near)]
    ranked = rows.filter(
        pl.col("dup_group").is_in(near["dup_group"].implode()) | (pl.col("dup_group").is_null() & ~pl.col("known_is_near_duplicate_issue"))
    )
    ap = average_precision(ranked["dup_group"].is_not_null().to_numpy(), ranked["near_duplicate_score"].fill_null(1.0).to_numpy())
    scores = [
        _score("exact copies", exact.height, _count(exact, "with_original"), besides_exact.height - known[0],
               _known_note(besides_exact.height, known[0])),
        _score("near-duplicates", near.height, _count(near, "with_original"), besides_near.height - known[1],
               _known_note(besides_near.height, known[1]), ap=ap),
    ]  # fmt: skip
    for (edit,), part in sorted(near.group_by("dup_kind"), key=lambda item: str(item[0][0])):
        scores.append(_score(f"  by {edit}", part.height, _count(part, "with_original"), None, ""))
    return scores


def _cross_label_rows(rows: pl.DataFrame) -> list[Score]:
    """The same picture under two classes: found, and the wrong one of the two labels named."""
    copies = _with_original(rows).filter(planted="cross_label")
    found = copies.filter("with_original", pl.col("label_conflict").fill_null(False))
    right = found.filter(pl.col("is_wrong_label") & ~pl.col("original_is_wrong"))
    reverse = found.filter(~pl.col("is_wrong_label") & pl.col("original_is_wrong"))
    reverse_note = f"The right label called wrong: {reverse.height}. Undecided: {found.height - right.height - reverse.height}."
    besides = rows.filter(pl.col("is_wrong_label") & ~pl.col("is_label_error") & ~pl.col("is_outlier"))
    known = _count(besides, "known_is_wrong_label")
    other_right = rows.filter(pl.col("is_wrong_label") & pl.col("is_label_error") & (pl.col("planted") != "cross_label")).height
    return [
        _score("copies under a second class", copies.height, found.height, None, ""),
        _score("  wrong label of the two named", copies.height, right.height, besides.height - known,
               f"{reverse_note} {_known_note(besides.height, known)}", right=right.height + other_right),
    ]  # fmt: skip


def _leak_rows(rows: pl.DataFrame, curated: pl.DataFrame) -> list[Score]:
    """Planted groups over two splits: those that near_dups calls leaks, and those that the curated data no longer holds."""
    copies = _with_original(rows).filter(
        pl.col("split").is_in(LEAK_SPLITS) & pl.col("original_split").is_in(LEAK_SPLITS) & (pl.col("split") != pl.col("original_split"))
    )
    leaking = rows.filter("crosses_split")
    planted_groups = copies.filter("with_original")["group_id"].unique()
    besides = leaking.filter(~pl.col("group_id").is_in(planted_groups.implode()))
    # Known: two of the group's images are in one group of the source's own audit, which may have had no splits.
    twins = besides.filter(pl.col("known_group").is_not_null()).group_by("group_id", "known_group").len().filter(pl.col("len") > 1)
    n_besides, n_known = besides["group_id"].n_unique(), twins["group_id"].n_unique()
    found = copies.filter("with_original", pl.col("crosses_split").fill_null(False))
    kept = curated.filter(pl.col("action") != "drop")["path"]
    left = rows.filter(
        pl.col("dup_group").is_in(copies["dup_group"].implode()) & pl.col("path").is_in(kept.implode()) & pl.col("split").is_in(LEAK_SPLITS)
    )
    remaining = left.group_by("dup_group").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
    return [
        _score("leaks between splits (groups)", copies.height, found.height, n_besides - n_known, _known_note(n_besides, n_known)),
        _score("  gone from the curated data", copies.height, copies.height - remaining, None, f"{remaining} remain."),
    ]


def _curation_row(truth: pl.DataFrame, curated: pl.DataFrame, known: pl.DataFrame | None) -> Score:
    """Flips that the curated data mends: relabelled to the true class, or dropped. False: right labels changed."""
    relabelled = curated.with_columns((pl.col("action") == "relabel").alias("is_relabelled")).drop("source", strict=False)
    before = None if known is None else known.with_columns((pl.col("action") == "relabel").alias("is_relabelled"))
    rows = _joined(truth, relabelled, before, ("is_relabelled",))
    flips = rows.filter(planted="label_flip")
    third = flips.filter("is_relabelled", pl.col("final_label") != pl.col("true_label")).height
    right = _count(flips, "is_relabelled") - third
    dropped, review = flips.filter(action="drop").height, flips.filter(action="review").height
    spoilt = rows.filter("is_relabelled", ~pl.col("is_label_error"), ~pl.col("is_outlier"))
    known_spoilt = _count(spoilt, "known_is_relabelled")
    note = (
        f"Relabelled right {right}, dropped {dropped}, left for review {review}, relabelled to a third class {third}. "
        f"Right labels changed: {spoilt.height}, {known_spoilt} of them also in the source as it is."
    )
    return _score("label flips mended in curated data", flips.height, right + dropped, spoilt.height - known_spoilt, note)
