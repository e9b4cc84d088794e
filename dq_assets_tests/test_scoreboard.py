"""The scoreboard on frames small enough to score by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from dq_assets.demo.planting import TRUTH
from dq_assets.demo.scoreboard import Score, average_precision, render, scoreboard
from dq_assets.schema import TABLES
from dq_assets.settings import UserError

# path, given, true, dup_group, dup_kind, split, planted. The source image of x.png is src/x.png.
IMAGES = [
    ("flip1", "b", "a", None, None, "train", "label_flip"),
    ("flip2", "b", "a", None, None, "train", "label_flip"),
    ("flip3", "a", "b", None, None, "train", "label_flip"),
    ("flip4", "a", "b", None, None, "train", "label_flip"),
    ("orig0", "a", "a", 0, "original", "train", "none"),
    ("copy0", "a", "a", 0, "exact", "test", "exact_duplicate"),
    ("orig1", "a", "a", 1, "original", "train", "none"),
    ("copy1", "a", "a", 1, "crop", "test", "near_duplicate"),
    ("orig2", "b", "b", 2, "original", "train", "none"),
    ("copy2", "b", "b", 2, "crop", "train", "near_duplicate"),
    ("orig3", "b", "b", 3, "original", "train", "none"),
    ("copy3", "b", "b", 3, "jpeg", "validation", "near_duplicate"),
    ("orig4", "a", "a", 4, "original", "train", "none"),
    ("copy4", "b", "a", 4, "exact", "train", "cross_label"),
    ("orig5", "a", "a", 5, "original", "train", "none"),
    ("copy5", "b", "a", 5, "exact", "train", "cross_label"),
    ("odd1", "a", None, None, None, "train", "outlier"),
    ("odd2", "b", None, None, None, "train", "outlier"),
    ("twin1", "a", "a", None, None, "train", "none"),
    ("twin2", "a", "a", None, None, "test", "none"),
    ("plain1", "a", "a", None, None, "train", "none"),
    ("plain2", "b", "b", None, None, "test", "none"),
]
PATHS = [row[0] for row in IMAGES]


def truth_frame() -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for path, given, true, group, kind, split, planted in IMAGES:
        is_outlier = planted == "outlier"
        error = None if is_outlier else given != true
        names = dict(path=path, given_label=given, true_label=true, is_label_error=error, dup_group=group, dup_kind=kind)
        rows.append(names | dict(is_outlier=is_outlier, split=split, planted=planted, source_path=None if is_outlier else f"src/{path}"))
    return pl.DataFrame(rows, schema=TRUTH)


def label_frame(scores: dict[str, float], suggested: dict[str, str], paths: list[str] = PATHS) -> pl.DataFrame:
    """Images in `scores` are flagged; the others have the score 1."""
    rows = [
        {"path": p, "suggested_label": suggested.get(p), "label_score": scores.get(p, 1.0), "is_label_issue": p in scores} for p in paths
    ]
    return pl.DataFrame(
        rows, schema={"path": pl.String, "suggested_label": pl.String, "label_score": pl.Float32, "is_label_issue": pl.Boolean}
    )


def dups_frame(groups: list[tuple[str, list[str]]], wrong: set[str], crossing: set[int], paths: list[str] = PATHS) -> pl.DataFrame:
    """groups: kind and members, numbered from 0."""
    place = {path: number for number, (_, members) in enumerate(groups) for path in members}
    rows = [
        {
            "path": path,
            "group_id": place.get(path),
            "kind": groups[place[path]][0] if path in place else None,
            "near_duplicate_score": 0.1 if path in place else 1.0,
            "is_near_duplicate_issue": path in place,
            "label_conflict": place.get(path) in (3, 4),
            "crosses_split": place.get(path) in crossing,
            "is_wrong_label": path in wrong,
        }
        for path in paths
    ]
    return pl.DataFrame(rows, schema_overrides={"group_id": pl.Int64, "kind": pl.String})


def outlier_frame(scores: dict[str, float], paths: list[str] = PATHS) -> pl.DataFrame:
    rows = [{"path": p, "outlier_score": scores.get(p, 0.9), "is_outlier_issue": p in scores} for p in paths]
    return pl.DataFrame(rows, schema={"path": pl.String, "outlier_score": pl.Float32, "is_outlier_issue": pl.Boolean})


def curated_frame(actions: dict[str, tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        [{"path": p, "action": actions.get(p, ("keep", ""))[0], "final_label": actions.get(p, ("keep", "a"))[1]} for p in PATHS]
    )


LABELS = label_frame(
    {"flip1": 0.0, "flip2": 0.1, "plain1": 0.2, "flip3": 0.3, "copy4": 0.4, "odd1": 0.05, "twin1": 0.25},
    {"flip1": "a", "flip2": "c", "flip3": "b"},
)
DUPS = dups_frame(
    [
        ("exact", ["orig0", "copy0"]),
        ("near", ["orig1", "copy1"]),
        ("near", ["orig3", "copy3", "plain2"]),
        ("exact", ["orig4", "copy4"]),
        ("exact", ["orig5", "copy5"]),
        ("pixel", ["twin1", "twin2"]),
    ],
    wrong={"copy4", "orig5"},
    crossing={0, 1, 2, 5},
)
OUTLIERS = outlier_frame({"odd1": 0.1, "plain2": 0.2, "twin1": 0.3})
CURATED = curated_frame(
    {
        "flip1": ("relabel", "a"),
        "flip2": ("relabel", "c"),
        "flip3": ("drop", "a"),
        "flip4": ("review", "a"),
        "plain1": ("relabel", "b"),
        "copy0": ("drop", "a"),
    }
)
BASELINE = {
    "label_issues": label_frame({"src/twin1": 0.2}, {}, ["src/twin1", "src/plain1"]),
    "near_dups": dups_frame([("pixel", ["src/twin1", "src/twin2"])], set(), set(), ["src/twin1", "src/twin2", "src/plain2"]),
    "outliers": outlier_frame({"src/twin1": 0.3}, ["src/twin1", "src/plain2"]),
}


@pytest.fixture(scope="module")
def board() -> dict[str, Score]:
    return {s.what.strip(): s for s in scoreboard(truth_frame(), LABELS, DUPS, OUTLIERS, CURATED, baseline=BASELINE)}


@pytest.fixture(scope="module")
def board_alone() -> dict[str, Score]:
    return {s.what.strip(): s for s in scoreboard(truth_frame(), LABELS, DUPS, OUTLIERS, CURATED)}


def test_label_flips_count_hits_on_outliers_and_wrong_copies_as_right(board: dict[str, Score]) -> None:
    score = board["label flips"]
    assert (score.planted, score.found, score.false) == (4, 3, 1)  # false: plain1; twin1 is known
    assert score.recall == 0.75
    assert score.precision == 5 / 6  # flip1-3, copy4, odd1 are right
    # Ranking without outliers and known findings: flip1 flip2 plain1 flip3 copy4, then flip4 and copy5 tied with the other 12.
    assert score.average_precision == pytest.approx((1 + 1 + 3 / 4 + 4 / 5 + 2 * 6 / 19) / 6)
    assert "Right class suggested for 2 of 3." in score.note
    assert "2 more found, 1 of them also in the source as it is." in score.note


def test_without_a_baseline_every_finding_that_was_not_planted_is_false(board_alone: dict[str, Score]) -> None:
    assert {what: score.false for what, score in board_alone.items() if score.false is not None} == {
        "label flips": 2,
        "exact copies": 2,
        "near-duplicates": 1,
        "wrong label of the two named": 1,
        "outliers": 2,
        "leaks between splits (groups)": 1,
        "label flips mended in curated data": 1,
    }


def test_exact_copies_must_be_grouped_with_their_own_source(board: dict[str, Score]) -> None:
    score = board["exact copies"]
    assert (score.planted, score.found, score.false, score.recall, score.precision) == (1, 1, 0, 1.0, 1.0)
    assert score.note == "2 more found, 2 of them also in the source as it is."


def test_near_duplicates_are_counted_in_all_and_by_edit(board: dict[str, Score]) -> None:
    score = board["near-duplicates"]
    assert (score.planted, score.found, score.false, score.precision) == (3, 2, 1, 2 / 3)  # false: plain2
    assert [(board[f"by {edit}"].planted, board[f"by {edit}"].found) for edit in ("crop", "jpeg")] == [(2, 1), (1, 1)]
    # Flagged: 4 of 5 right at one score; then the 2 missed tied with flip1-4, odd1-2 and plain1.
    assert score.average_precision == pytest.approx((4 * 4 / 5 + 2 * 6 / 14) / 6)


def test_a_copy_under_a_second_class_is_found_before_its_wrong_side_is_named(board: dict[str, Score]) -> None:
    assert (board["copies under a second class"].planted, board["copies under a second class"].found) == (2, 2)
    side = board["wrong label of the two named"]
    assert (side.planted, side.found, side.false, side.precision) == (2, 1, 1, 0.5)
    assert side.note.startswith("The right label called wrong: 1. Undecided: 0.")


def test_outliers_are_counted_and_ranked(board: dict[str, Score]) -> None:
    score = board["outliers"]
    assert (score.planted, score.found, score.false, score.recall, score.precision) == (2, 1, 1, 0.5, 0.5)
    assert score.average_precision == pytest.approx((1 + 2 / 21) / 2)  # odd2 is tied with all that are not flagged


def test_leaks_are_groups_and_twins_of_the_source_are_known(board: dict[str, Score]) -> None:
    found, gone = board["leaks between splits (groups)"], board["gone from the curated data"]
    assert (found.planted, found.found, found.false) == (3, 3, 0)  # groups 0, 1, 3; the twins are known
    assert (gone.planted, gone.found, gone.note) == (3, 1, "2 remain.")


def test_unused_images_do_not_leak() -> None:
    truth = truth_frame().with_columns(pl.when(pl.col("split") == "train").then(pl.lit("unused")).otherwise("split").alias("split"))
    board = {s.what.strip(): s for s in scoreboard(truth, LABELS, DUPS, OUTLIERS, CURATED)}
    assert board["leaks between splits (groups)"].planted == 0


def test_flips_are_mended_by_the_true_label_or_by_dropping(board: dict[str, Score]) -> None:
    score = board["label flips mended in curated data"]
    assert (score.planted, score.found, score.false) == (4, 2, 1)  # false: plain1
    assert "Relabelled right 1, dropped 1, left for review 1, relabelled to a third class 1." in score.note


def test_an_image_that_the_audit_left_out_counts_as_not_found() -> None:
    few = [frame.filter(pl.col("path") == "plain1") for frame in (LABELS, DUPS, OUTLIERS, CURATED)]
    scores = scoreboard(truth_frame(), *few)
    assert all(score.found == 0 for score in scores if "gone" not in score.what)
    assert scores[0].planted == 4


def test_labels_that_were_not_checked_rank_last_and_count_as_not_found() -> None:
    unchecked = LABELS.with_columns(
        pl.when(pl.col("path") == "flip1").then(None).otherwise("is_label_issue").alias("is_label_issue"),
        pl.when(pl.col("path") == "flip1").then(None).otherwise("label_score").alias("label_score"),
    )
    assert scoreboard(truth_frame(), unchecked, DUPS, OUTLIERS, CURATED)[0].found == 2


def test_an_audit_of_another_folder_is_an_error() -> None:
    elsewhere = LABELS.with_columns(pl.concat_str(pl.lit("images/"), "path").alias("path"))
    with pytest.raises(UserError, match="No path of label_issues"):
        scoreboard(truth_frame(), elsewhere, DUPS, OUTLIERS, CURATED)


@pytest.mark.parametrize(
    ("positive", "score", "expected"),
    [
        pytest.param([1, 0, 1, 0], [0.1, 0.2, 0.3, 0.4], (1 + 2 / 3) / 2, id="ranked"),
        pytest.param([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], 0.5, id="all tied"),
        pytest.param([0, 0, 1], [0.1, 0.2, 0.3], 1 / 3, id="last"),
        pytest.param([0, 0], [0.1, 0.2], None, id="nothing to find"),
        pytest.param([], [], None, id="no images"),
    ],
)
def test_average_precision(positive: list[int], score: list[float], expected: float | None) -> None:
    got = average_precision(np.array(positive, dtype=bool), np.array(score, dtype=np.float32))
    assert got == (None if expected is None else pytest.approx(expected))


def test_the_table_fits_100_columns_and_shows_every_line_and_note(board: dict[str, Score]) -> None:
    text = render(list(board.values()))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert all(score.what in text for score in board.values())
    line = next(line for line in text.splitlines() if line.startswith("label flips "))
    assert line.split() == ["label", "flips", "4", "3", "1", "0.750", "0.833", f"{board['label flips'].average_precision:.3f}"]
    assert "Right class suggested for 2 of 3." in text


@pytest.mark.parametrize(
    ("frame", "table"),
    [(LABELS, "label_issues"), (DUPS, "near_dups"), (OUTLIERS, "outliers"), (CURATED, "curated_dataset")],
    ids=["label_issues", "near_dups", "outliers", "curated_dataset"],
)
def test_the_columns_that_are_read_are_those_of_the_tables(frame: pl.DataFrame, table: str) -> None:
    assert set(frame.columns) - {"path"} <= set(TABLES[table].column_names)
