"""Folds: what must stay together stays together, what is stored stays, classes are spread evenly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.folds import FOLDS_SCHEMA, assign_folds, learnable_classes
from dq_assets.settings import Folds

NONE = pl.DataFrame(schema=FOLDS_SCHEMA)


def assign(ids, labels, group=None, duplicates=None, previous=NONE, n_folds=5) -> pl.DataFrame:
    n = len(ids)
    return assign_folds(
        np.array(ids, dtype=np.int64),
        labels,
        group or [None] * n,
        np.full(n, -1, dtype=np.int64) if duplicates is None else np.array(duplicates, dtype=np.int64),
        previous=previous,
        settings=Folds(n_folds=n_folds),
    )


def test_duplicates_and_groups_form_one_component_through_each_other() -> None:
    frame = assign([3, 5, 8, 9], ["a"] * 4, group=[None, "g", "g", None], duplicates=[3, 3, -1, -1])
    assert frame["component_id"].to_list() == [3, 3, 3, 9]
    assert frame["fold"][:3].n_unique() == 1
    assert frame.schema == FOLDS_SCHEMA


def test_a_group_name_and_a_duplicate_number_that_look_alike_are_not_joined() -> None:
    frame = assign([1, 3, 5], ["a"] * 3, group=["3", None, None], duplicates=[-1, 3, 3])
    assert frame["component_id"].to_list() == [1, 3, 3]


def test_every_fold_gets_two_of_a_class_of_ten() -> None:
    frame = assign(range(20), ["a", "b"] * 10)
    counts = frame.with_columns(label=pl.Series(["a", "b"] * 10)).group_by("label", "fold").len()
    assert counts["len"].to_list() == [2] * 10


def test_unlabelled_images_are_spread_too() -> None:
    assert sorted(assign(range(10), [None] * 10)["fold"].to_list()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_appended_images_leave_every_stored_fold_as_it_was() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 300).tolist()
    first = assign(range(200), labels[:200])
    both = assign(range(300), labels, previous=first)
    assert both.head(200).equals(first)
    assert both.filter(pl.col("image_id") >= 200)["fold"].n_unique() == 5


def test_a_merged_component_keeps_the_fold_of_its_oldest_image() -> None:
    first = assign([1, 2], ["a", "a"])
    assert first["fold"].to_list() == [0, 1]
    merged = assign([1, 2, 3], ["a"] * 3, duplicates=[1, 1, 1], previous=first)
    assert merged["fold"].to_list() == [0, 0, 0]
    assert merged["component_id"].to_list() == [1, 1, 1]


def test_images_that_are_gone_do_not_matter() -> None:
    first = assign(range(10), ["a"] * 10)
    assert assign([7, 9], ["a", "a"], previous=first)["fold"].to_list() == [first["fold"][7], first["fold"][9]]


def test_a_component_counts_for_the_class_that_most_of_its_images_have() -> None:
    # Images 0 and 1 (b, b, and one a) fill fold 0 for b; the next b goes elsewhere, the next a too: fold 0 holds one.
    frame = assign([0, 1, 2, 3, 4], ["b", "a", "b", "b", "a"], duplicates=[0, 0, 0, -1, -1], n_folds=2)
    assert frame["fold"].to_list() == [0, 0, 0, 1, 1]


def test_no_images_give_an_empty_table() -> None:
    assert assign([], []).equals(NONE)


def test_unsorted_ids_and_stored_folds_that_no_longer_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        assign([2, 1], ["a", "a"])
    with pytest.raises(ValueError, match="n_folds=2"):
        assign([1], ["a"], previous=pl.DataFrame({"image_id": [1], "component_id": [1], "fold": [4]}, schema=FOLDS_SCHEMA), n_folds=2)


def test_ten_copies_of_one_photo_do_not_make_a_class_learnable() -> None:
    labels = ["copies"] * 10 + ["photos"] * 5 + [None] * 5
    component = np.array([0] * 10 + list(range(10, 20)))
    assert learnable_classes(labels, component, 5) == {"photos"}
    assert learnable_classes([], np.zeros(0, dtype=np.int64), 5) == set()
