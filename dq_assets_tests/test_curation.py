"""What becomes of each image: no row is lost, copies never leak, the test split is left to people."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.curation import curate, training_set
from dq_assets.settings import Curation

MANIFEST = {
    "image_id": pl.Int64,
    "path": pl.String,
    "uri": pl.String,
    "given_label": pl.String,
    "split": pl.String,
    "content_sha256": pl.String,
    "pixel_hash": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
LABEL_ISSUES = {
    "image_id": pl.Int64,
    "given_label": pl.String,
    "suggested_label": pl.String,
    "is_label_issue": pl.Boolean,
    "p_given": pl.Float32,
    "p_suggested": pl.Float32,
    "kind": pl.String,
}
OUTLIERS = {"image_id": pl.Int64, "outlier_score": pl.Float32, "is_outlier_issue": pl.Boolean}
NEAR_DUPS = {
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


def image(image_id: int, **facts: Any) -> dict[str, Any]:
    """All facts of one image; a plain labelled training image without findings unless told otherwise."""
    plain = {
        "image_id": image_id,
        "path": f"{image_id}.jpg",
        "uri": f"file:///{image_id}.jpg",
        "given_label": "cat",
        "split": None,
        "content_sha256": f"content {image_id}",
        "pixel_hash": f"pixels {image_id}",
        "status": "ok",
        "reason": None,
        "suggested_label": facts.get("given_label", "cat"),
        "is_label_issue": False,
        "p_given": 0.9,
        "p_suggested": 0.9,
        "issue_kind": None,
        "outlier_score": 0.5,
        "is_outlier_issue": False,
        "group_id": None,
        "is_wrong_label": False,
        "resolved_label": None,
        "confidence": None,
        "is_keeper": True,
    }
    assert facts.keys() <= plain.keys()
    return plain | facts


def mislabeled(image_id: int, p: float = 0.99, **facts: Any) -> dict[str, Any]:
    issue = {"is_label_issue": True, "suggested_label": "dog", "p_given": 1 - p, "p_suggested": p, "issue_kind": "mislabeled"}
    return image(image_id, **(issue | facts))


def group(*members: dict[str, Any], keeper: int | None = None) -> list[dict[str, Any]]:
    """Members of one duplicate group; the first is near_dups' keeper unless told otherwise."""
    first = members[0]["image_id"]
    chosen = first if keeper is None else keeper
    return [member | {"group_id": first, "is_keeper": member["image_id"] == chosen} for member in members]


def same(*members: dict[str, Any], bytes_too: bool = True) -> list[dict[str, Any]]:
    """Members made equal in pixels, and in bytes too."""
    pixels = {"pixel_hash": f"pixels of {members[0]['image_id']}"}
    content = {"content_sha256": f"content of {members[0]['image_id']}"} if bytes_too else {}
    return [member | pixels | content for member in members]


def frame(images: list[dict[str, Any]], schema: dict[str, Any], **renamed: str) -> pl.DataFrame:
    return pl.DataFrame([{name: row.get(renamed.get(name, name)) for name in schema} for row in images], schema=schema, orient="row")


def tables(images: list[dict[str, Any]]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    fine = [row for row in images if row["status"] == "ok"]
    return frame(images, MANIFEST), frame(fine, LABEL_ISSUES, kind="issue_kind"), frame(fine, OUTLIERS), frame(fine, NEAR_DUPS)


def curated(*images: dict[str, Any] | Iterable[dict[str, Any]], **policy: Any) -> dict[int, tuple[str, str | None, str]]:
    """{image_id: (action, final_label, reason)}."""
    flat = [row for part in images for row in ([part] if isinstance(part, dict) else part)]
    table = curate(*tables(flat), Curation(**policy))
    assert table.columns == ["image_id", "final_label", "action", "reason", "source"]
    assert table["image_id"].to_list() == sorted(row["image_id"] for row in flat)
    assert table["reason"].null_count() == table["action"].null_count() == 0
    return {row[0]: (row[2], row[1], row[3]) for row in table.rows()}


def actions(*images: dict[str, Any] | Iterable[dict[str, Any]], **policy: Any) -> dict[int, str]:
    return {image_id: found[0] for image_id, found in curated(*images, **policy).items()}


def test_an_image_without_a_finding_is_kept_with_its_label() -> None:
    assert curated(image(1, given_label="01")) == {1: ("keep", "01", "no finding")}


def test_nothing_comes_of_nothing() -> None:
    assert curated() == {}


def test_an_unreadable_image_is_dropped_and_says_why() -> None:
    found = curated(image(1, status="unreadable", reason="zero bytes"), image(2, status="missing", split="test"))
    assert found == {1: ("drop", "cat", "unreadable: zero bytes"), 2: ("drop", "cat", "missing: no reason given")}


def test_an_image_without_a_label_is_reviewed_and_stays_without() -> None:
    assert curated(image(1, given_label=None, suggested_label=None)) == {1: ("review", None, "has no label")}


# Labels


def test_a_sure_label_issue_is_relabelled_and_says_with_what_probabilities() -> None:
    assert curated(mislabeled(1)) == {1: ("relabel", "dog", "label issue: dog (p 0.99) instead of cat (p 0.01)")}


@pytest.mark.parametrize(
    "doubt",
    [{"p": 0.95}, {"p": 0.6}, {"issue_kind": "ambiguous"}, {"issue_kind": "multi_label"}, {"issue_kind": None}],
    ids=str,
)
def test_a_label_issue_that_is_not_sure_is_reviewed_under_its_given_label(doubt: dict[str, Any]) -> None:
    action, label, reason = curated(mislabeled(1, **doubt))[1]
    assert (action, label) == ("review", "cat")
    assert reason.startswith("label issue, to be looked at: dog")


@pytest.mark.parametrize("policy", ["relabel", "review", "drop", "keep"])
def test_the_policy_decides_what_is_done_with_sure_label_issues(policy: str) -> None:
    found = curated(mislabeled(1), mislabeled(2, p=0.6), label_issues=policy)
    assert found[1][:2] == (policy, "dog" if policy == "relabel" else "cat")
    assert found[2][:2] == ("review", "cat")


def test_a_label_that_was_not_checked_is_kept() -> None:
    unchecked = image(
        1, is_label_issue=None, suggested_label=None, p_given=None, p_suggested=None, outlier_score=None, is_outlier_issue=None
    )
    assert actions(unchecked) == {1: "keep"}


@pytest.mark.parametrize("policy", ["relabel", "review", "drop"])
def test_a_policy_never_relabels_or_drops_in_the_test_split(policy: str) -> None:
    found = curated(
        mislabeled(1, split="test"),
        image(2, split="test", is_outlier_issue=True),
        group(image(3, split="test", is_wrong_label=True, resolved_label="dog", confidence=0.99), image(4, split="test")),
        label_issues=policy,
        outliers="drop",
    )
    assert {image_id: value[:2] for image_id, value in found.items()} == {
        1: ("review", "cat"),
        2: ("review", "cat"),
        3: ("review", "cat"),
        4: ("keep", "cat"),
    }


# Outliers


@pytest.mark.parametrize("policy", ["drop", "review", "keep"])
def test_the_policy_decides_what_is_done_with_outliers(policy: str) -> None:
    action, label, reason = curated(image(1, is_outlier_issue=True, outlier_score=0.1234), outliers=policy)[1]
    assert (action, label) == (policy, "cat")
    assert reason == ("no finding" if policy == "keep" else "outlier (score 0.123)")


@pytest.mark.parametrize("policy", ["drop", "review", "keep"])
def test_an_outlier_is_never_relabelled(policy: str) -> None:
    found = curated(mislabeled(1, is_outlier_issue=True), outliers=policy)
    assert found[1][:2] == ("drop" if policy == "drop" else "review", "cat")


# Copies


def test_of_equal_files_one_stays() -> None:
    found = curated(group(*same(image(1), image(2), image(3)), keeper=2))
    assert {image_id: value[0] for image_id, value in found.items()} == {1: "drop", 2: "keep", 3: "drop"}
    assert found[3][2] == "copy of image 2 (exact)"


def test_equal_pixels_in_other_bytes_are_a_copy_too() -> None:
    found = curated(group(*same(image(1), image(2), bytes_too=False)))
    assert found[2] == ("drop", "cat", "copy of image 1 (pixel)")


@pytest.mark.parametrize(("near", "exact"), list(itertools.product(["drop", "review", "keep"], repeat=2)))
def test_near_and_exact_copies_each_have_a_policy_of_their_own(near: str, exact: str) -> None:
    found = actions(group(*same(image(1), image(2)), image(3)), near_duplicates=near, exact_duplicates=exact)
    assert found == {1: "keep", 2: exact, 3: near}


def test_of_equal_files_that_only_resemble_the_keeper_one_stays() -> None:
    found = curated(group(image(1), *same(image(2), image(3))))
    assert {image_id: value[0] for image_id, value in found.items()} == {1: "keep", 2: "keep", 3: "drop"}
    assert found[3][2] == "copy of image 2 (exact)"


def test_of_equal_files_that_only_resemble_the_keeper_the_one_with_the_right_label_stays() -> None:
    wrong = image(2, is_wrong_label=True, resolved_label="dog", confidence=0.99)
    assert actions(group(image(1, given_label="dog"), *same(wrong, image(3, given_label="dog")))) == {1: "keep", 2: "drop", 3: "keep"}


def test_a_copy_that_policy_keeps_is_still_looked_at() -> None:
    found = curated(group(*same(image(1), mislabeled(2))), exact_duplicates="keep")
    assert found[2][:2] == ("relabel", "dog")


def test_a_copy_is_dropped_before_its_label_is_looked_at() -> None:
    assert curated(group(*same(image(1), mislabeled(2))))[2] == ("drop", "cat", "copy of image 1 (exact)")


def test_a_conflict_that_is_sure_takes_the_label_of_its_copies() -> None:
    wrong = {"is_wrong_label": True, "resolved_label": "dog"}
    found = curated(
        group(image(1, confidence=0.99, **wrong), image(2, given_label="dog")), group(image(3, confidence=0.6, **wrong), image(4))
    )
    assert found[1] == ("relabel", "dog", "its copies say dog")
    assert found[3] == ("review", "cat", "label conflict with its copies; dog is more likely")
    assert (found[2][0], found[4][0]) == ("keep", "keep")


def test_who_wants_to_see_label_issues_sees_conflicts_too() -> None:
    conflict = group(image(1, is_wrong_label=True, resolved_label="dog", confidence=0.99), image(2, given_label="dog"))
    assert curated(conflict, label_issues="review")[1][:2] == ("review", "cat")


# Splits

SPLITS = ("test", "validation", "train", None, "unused")


@pytest.mark.parametrize("policy", ["drop", "keep"])
@pytest.mark.parametrize("equal", [True, False], ids=["exact", "near"])
@pytest.mark.parametrize("keeper", [1, 2, 3])
@pytest.mark.parametrize("order", list(itertools.permutations(["train", "validation", "test"])), ids="-".join)
def test_of_a_group_over_three_splits_only_the_test_member_stays(order: tuple[str, ...], keeper: int, equal: bool, policy: str) -> None:
    members = [image(image_id, split=split) for image_id, split in enumerate(order, 1)]
    found = curated(group(*(same(*members) if equal else members), keeper=keeper), near_duplicates=policy, exact_duplicates=policy)
    test = order.index("test") + 1
    assert {image_id for image_id, value in found.items() if value[0] != "drop"} == {test}
    kind = "exact" if equal else "near"
    for image_id in {1, 2, 3} - {test}:
        assert found[image_id][2] == f"copy of image {test} ({kind}), which is in test: leaks across splits"


@pytest.mark.parametrize("keeper", [1, 2])
def test_validation_stays_over_train(keeper: int) -> None:
    assert actions(group(image(1, split="train"), image(2, split="validation"), keeper=keeper)) == {1: "drop", 2: "keep"}


def test_near_duplicates_within_one_split_stay_where_the_policy_keeps_them() -> None:
    members = [image(1, split="train"), image(2, split="test"), image(3, split="test"), image(4, split="train")]
    assert actions(group(*members)) == {1: "drop", 2: "keep", 3: "keep", 4: "drop"}


def test_of_equal_test_images_one_stays_though_the_keeper_is_in_train() -> None:
    members = same(image(1, split="train"), image(2, split="test"), image(3, split="test"))
    assert actions(group(*members, keeper=1)) == {1: "drop", 2: "keep", 3: "drop"}


def test_an_image_without_a_split_counts_as_train_where_others_have_one() -> None:
    assert actions(group(image(1), image(2, split="test"))) == {1: "drop", 2: "keep"}
    assert actions(group(image(1), image(2, split="train"))) == {1: "keep", 2: "keep"}


def test_without_splits_nothing_leaks() -> None:
    assert actions(group(image(1), image(2))) == {1: "keep", 2: "keep"}


def test_an_unused_copy_neither_leaks_nor_takes_the_place_of_one_in_use() -> None:
    assert actions(group(*same(image(1, split="unused"), image(2, split="train")), keeper=1)) == {1: "drop", 2: "keep"}
    assert actions(group(image(1, split="unused"), image(2, split="test"))) == {1: "keep", 2: "keep"}


def test_a_test_copy_with_a_conflict_stays_for_a_person() -> None:
    wrong = image(1, split="test", is_wrong_label=True, resolved_label="dog", confidence=0.99)
    assert actions(group(*same(wrong, image(2, given_label="dog", split="train")))) == {1: "review", 2: "drop"}


def random_images(seed: int, n: int = 300) -> list[dict[str, Any]]:
    """Images with any mixture of findings, in groups of any size over any splits, one near_dups keeper in each."""
    rng = np.random.default_rng(seed)

    def any_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    images = []
    for image_id in rng.permutation(n).tolist():
        label = any_of("cat", "dog", None)
        images.append(
            image(
                image_id,
                given_label=label,
                split=any_of(*SPLITS),
                status=any_of(*["ok"] * 8, "unreadable"),
                is_label_issue=any_of(True, False, None) if label else None,
                suggested_label=any_of("cat", "dog") if label else None,
                p_suggested=any_of(0.99, 0.5),
                issue_kind=any_of("mislabeled", "ambiguous", None),
                is_outlier_issue=any_of(True, False, None),
                is_wrong_label=any_of(True, False),
                resolved_label=any_of("cat", "dog"),
                confidence=any_of(0.99, 0.5, None),
                pixel_hash=any_of("a", "b", f"pixels {image_id}"),
            )
        )
    fine = [row for row in images if row["status"] == "ok"]
    bad = [row for row in images if row["status"] != "ok"]
    grouped: list[dict[str, Any]] = []
    while fine:
        size = int(rng.integers(1, 6))
        part, fine = fine[:size], fine[size:]
        grouped += group(*part, keeper=any_of(*part)["image_id"]) if len(part) > 1 else part
    return grouped + bad


@pytest.mark.parametrize("seed", range(8))
def test_of_any_findings_each_row_is_there_once_no_group_is_emptied_and_none_leaks(seed: int) -> None:
    images = random_images(seed)
    policy = Curation(
        label_issues=["relabel", "review", "drop", "keep"][seed % 4],
        outliers=["drop", "review", "keep"][seed % 3],
        exact_duplicates=["drop", "keep"][seed % 2],
        near_duplicates=["keep", "drop"][seed // 2 % 2],
    )
    table = curate(*tables(images), policy)
    assert table["image_id"].to_list() == sorted(row["image_id"] for row in images)
    assert table.null_count().select("action", "reason", "source").row(0) == (0, 0, 0)
    assert (
        table.filter(pl.col("action") != "relabel")
        .join(frame(images, MANIFEST), on="image_id")
        .filter(pl.col("final_label").ne_missing(pl.col("given_label")))
        .is_empty()
    )
    again = curate(*(t.sample(fraction=1, shuffle=True, seed=seed) for t in tables(images)), policy)
    assert again.equals(table), "the order of the rows decides"

    members = table.join(frame(images, NEAR_DUPS), on="image_id").join(frame(images, MANIFEST).select("image_id", "split"), on="image_id")
    members = members.filter(pl.col("group_id").is_not_null())
    as_copies = pl.col("reason").str.starts_with("copy of image") & (pl.col("action") == "drop")
    assert (members.group_by("group_id").agg(left=(~as_copies).sum())["left"] > 0).all()
    left = members.filter(pl.col("action") != "drop", pl.col("split").ne_missing("unused"))
    assert (left.group_by("group_id").agg(n=pl.col("split").fill_null("train").n_unique())["n"] == 1).all()
    test = members.filter(pl.col("split") == "test", ~as_copies)
    assert set(test["action"]) <= {"keep", "review"}


# The training set


def chosen(
    images: list[dict[str, Any]], *, include_review: bool = True, folds: dict[int, int] | None = None, **policy: Any
) -> pl.DataFrame:
    manifest, *findings = tables(images)
    table = curate(manifest, *findings, Curation(**policy))
    ids = manifest.filter(pl.col("status") == "ok")["image_id"].sort()
    fold = [(folds or {}).get(image_id, 1) for image_id in ids]
    stored = pl.DataFrame({"image_id": ids, "component_id": ids, "fold": fold}, schema_overrides={"fold": pl.Int32})
    return training_set(manifest, table, stored, include_review=include_review)


def parts(table: pl.DataFrame) -> dict[int, tuple[str, str]]:
    return {row["image_id"]: (row["split"], row["label"]) for row in table.iter_rows(named=True)}


def test_with_a_test_split_that_is_what_is_held_out() -> None:
    table = chosen(
        [image(3, split="test"), image(1, split="train"), image(2, split="validation"), image(5, split="unused"), image(4)], folds={1: 0}
    )
    assert table.columns == ["image_id", "path", "uri", "label", "split", "content_sha256"]
    assert parts(table) == {1: ("train", "cat"), 2: ("validation", "cat"), 3: ("test", "cat"), 4: ("train", "cat")}


def test_without_a_test_split_fold_0_is_held_out() -> None:
    table = chosen(
        [image(1), image(2), image(3, split="validation"), image(4, split="validation"), image(5, split="unused")], folds={1: 0, 3: 0, 5: 0}
    )
    assert {image_id: part for image_id, (part, _) in parts(table).items()} == {1: "test", 2: "train", 3: "test", 4: "validation"}


@pytest.mark.parametrize(
    "useless", [{"given_label": None, "suggested_label": None}, {"status": "unreadable"}], ids=["unlabelled", "unreadable"]
)
def test_a_test_split_that_can_score_nothing_gives_way_to_fold_0(useless: dict[str, Any]) -> None:
    table = chosen([image(1, split="train"), image(2, split="train"), image(3, split="test", **useless)], folds={1: 0})
    assert {image_id: part for image_id, (part, _) in parts(table).items()} == {1: "test", 2: "train"}


def test_curated_labels_train_and_given_labels_score() -> None:
    table = chosen([mislabeled(1), mislabeled(2)], folds={1: 0})
    assert parts(table) == {1: ("test", "cat"), 2: ("train", "dog")}


def test_what_is_held_out_keeps_what_a_policy_would_drop() -> None:
    images = [*group(*same(image(1), image(2))), image(3, is_outlier_issue=True), image(4), *group(*same(image(5), image(6)))]
    table = chosen(images, folds={1: 0, 2: 0, 3: 0}, outliers="drop")
    assert {image_id: part for image_id, (part, _) in parts(table).items()} == {1: "test", 2: "test", 3: "test", 4: "train", 5: "train"}


def test_review_is_trained_on_under_the_given_label_only_where_wanted() -> None:
    images = [image(1), mislabeled(2, p=0.6), mislabeled(3, p=0.6)]
    assert parts(chosen(images, folds={3: 0})) == {1: ("train", "cat"), 2: ("train", "cat"), 3: ("test", "cat")}
    assert parts(chosen(images, folds={3: 0}, include_review=False)) == {1: ("train", "cat"), 3: ("test", "cat")}


def test_unlabelled_and_unreadable_images_are_neither_trained_on_nor_scored() -> None:
    images = [image(1, given_label=None, suggested_label=None), image(2, status="missing"), image(3), image(4, given_label=None)]
    assert parts(chosen(images, folds={3: 0, 4: 0})) == {3: ("test", "cat")}


def test_a_person_may_drop_and_relabel_what_a_policy_may_not() -> None:
    images = [image(1, split="test"), image(2, split="test"), image(3, split="train"), image(4, split="train", given_label=None)]
    manifest, *findings = tables(images)
    by_person = pl.DataFrame(
        {
            "image_id": [1, 2, 4],
            "final_label": ["cat", "dog", "bird"],
            "action": ["drop", "relabel", "relabel"],
            "reason": ["seen"] * 3,
            "source": ["person"] * 3,
        }
    )
    table = curate(manifest, *findings, Curation()).update(by_person, on="image_id")
    stored = pl.DataFrame({"image_id": [1, 2, 3, 4], "component_id": [1, 2, 3, 4], "fold": [1, 1, 1, 1]})
    assert parts(training_set(manifest, table, stored, include_review=True)) == {
        2: ("test", "dog"),
        3: ("train", "cat"),
        4: ("train", "bird"),
    }


def test_a_training_set_of_nothing_is_an_empty_table() -> None:
    table = chosen([])
    assert table.is_empty()
    assert table.columns == ["image_id", "path", "uri", "label", "split", "content_sha256"]


@pytest.mark.parametrize("seed", range(4))
def test_no_picture_is_trained_on_and_scored(seed: int) -> None:
    images = random_images(seed)
    table = chosen(images)
    copies = table.join(frame(images, NEAR_DUPS), on="image_id").filter(pl.col("group_id").is_not_null())
    assert table["image_id"].is_unique().all()
    assert (copies.group_by("group_id").agg(leaks=pl.col("split").n_unique())["leaks"] == 1).all()
