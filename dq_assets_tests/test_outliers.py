"""Outliers: far images are found, copies do not hide them, and what cannot be checked says so."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.outliers import OUTLIERS_SCHEMA, outliers, score_cut
from dq_assets.settings import Outliers


def ring(n: int = 40, k: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """n images with ids 10, 11 ...; each has the next k as neighbours, at distances that vary a little."""
    ids = np.arange(10, 10 + n)
    neighbours = 10 + (np.arange(n)[:, None] + np.arange(1, k + 1)) % n
    distances = (0.2 + 0.002 * (np.arange(n)[:, None] % 7) + np.zeros((n, k))).astype(np.float32)
    return ids, neighbours, distances, np.full(n, -1)


def same(ids: np.ndarray) -> np.ndarray:
    """One class for all."""
    return np.zeros(len(ids), np.int64)


def test_a_far_image_is_flagged_and_has_the_lowest_score() -> None:
    ids, neighbours, distances, groups = ring()
    distances[4] = 0.8
    frame = outliers(ids, neighbours, distances, groups, same(ids), Outliers())
    assert frame.schema == OUTLIERS_SCHEMA
    assert frame.filter("is_outlier_issue")["image_id"].to_list() == [14]
    assert frame["outlier_score"].arg_min() == 4
    assert frame["outlier_score"].is_between(0, 1).all()


def test_the_score_at_the_median_distance_is_exp_of_minus_one() -> None:
    ids, neighbours, distances, groups = ring(n=7)
    score = outliers(ids, neighbours, distances, groups, same(ids), Outliers())["outlier_score"]
    assert float(score.median()) == pytest.approx(np.exp(-1), abs=1e-6)


def test_a_copy_does_not_hide_an_outlier() -> None:
    ids, neighbours, distances, groups = ring()
    distances[4:6] = 0.8
    neighbours[4, 0], neighbours[5, 0] = 15, 14
    distances[4:6, 0] = 0.0
    groups[4:6] = 14
    frame = outliers(ids, neighbours, distances, groups, same(ids), Outliers())
    assert frame.filter("is_outlier_issue")["image_id"].to_list() == [14, 15]


def test_an_image_whose_neighbours_are_all_copies_or_missing_is_not_checked() -> None:
    ids, neighbours, distances, groups = ring()
    neighbours[0] = -1
    neighbours[1], groups[1:4] = [12, 13, -1], 11
    frame = outliers(ids, neighbours, distances, groups, same(ids), Outliers())
    unchecked = frame.filter(pl.col("outlier_score").is_null())
    assert unchecked["image_id"].to_list() == [10, 11]
    assert unchecked["is_outlier_issue"].null_count() == 2
    assert frame["is_outlier_issue"].null_count() == 2


def test_identical_images_are_no_outliers_and_the_one_that_differs_is() -> None:
    ids, neighbours, distances, groups = ring()
    distances[:] = 0
    distances[3] = 0.5
    frame = outliers(ids, neighbours, distances, groups, same(ids), Outliers())
    assert frame.filter("is_outlier_issue")["image_id"].to_list() == [13]
    assert frame["outlier_score"][3] == 0
    assert frame["outlier_score"][0] == 1


@pytest.mark.parametrize("n", [0, 1], ids=["no images", "one image"])
def test_a_dataset_without_neighbours_is_not_checked(n: int) -> None:
    frame = outliers(
        np.arange(n), np.full((n, 3), -1), np.zeros((n, 3), dtype=np.float32), np.full(n, -1), np.zeros(n, np.int64), Outliers()
    )
    assert frame.height == n
    assert frame["is_outlier_issue"].null_count() == n


def test_neighbours_of_other_images_are_refused() -> None:
    ids, neighbours, distances, groups = ring()
    neighbours[0, 0] = 999
    with pytest.raises(ValueError, match="not in image_id"):
        outliers(ids, neighbours, distances, groups, same(ids), Outliers())


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_the_cut_on_the_scores_flags_what_the_table_flags(rate: float) -> None:
    ids, neighbours, distances, groups = ring(n=2000)
    distances += np.random.default_rng(0).exponential(0.05, (2000, 1)).astype(np.float32)
    frame = outliers(ids, neighbours, distances, groups, same(ids), Outliers(false_alarm_rate=rate))
    cut = score_cut(frame["outlier_score"], rate)
    assert cut is not None
    assert frame["is_outlier_issue"].any()
    # A score at the cut itself may fall on either side: it was rounded to float32.
    apart = (frame["outlier_score"] - cut).abs() > 1e-6
    assert (frame["is_outlier_issue"] == (frame["outlier_score"] < cut)).filter(apart).all()


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_of_lognormal_distances_the_set_share_is_flagged(rate: float) -> None:
    ids, neighbours, distances, groups = ring(n=20_000)
    distances[:] = 0.3 * np.exp(0.2 * np.random.default_rng(1).normal(size=(20_000, 1)))
    flagged = outliers(ids, neighbours, distances, groups, same(ids), Outliers(false_alarm_rate=rate))["is_outlier_issue"].mean()
    assert flagged == pytest.approx(rate, rel=0.3, abs=0.0005)


def test_of_two_images_equally_far_the_one_whose_neighbours_have_other_labels_scores_lower() -> None:
    ids, neighbours, distances, groups = ring()
    distances[[4, 20]] = 0.4
    label = same(ids)
    label[20] = 1
    score = outliers(ids, neighbours, distances, groups, label, Outliers())["outlier_score"]
    assert score[20] < score[4]
    assert score.arg_min() == 20


def test_an_image_without_a_label_is_checked_by_its_distance() -> None:
    ids, neighbours, distances, groups = ring()
    distances[4] = 0.8
    for label in (np.full(40, -1), np.where(np.arange(40) == 4, -1, 0)):
        frame = outliers(ids, neighbours, distances, groups, label, Outliers())
        assert frame.filter("is_outlier_issue")["image_id"].to_list() == [14]
        assert frame["outlier_score"].null_count() == 0


def test_there_is_no_cut_where_nothing_was_checked_and_none_above_zero_where_all_coincide() -> None:
    assert score_cut(pl.Series([None, None], dtype=pl.Float32), 0.01) is None
    assert score_cut(pl.Series([0.0, 0.0, 0.0, 1.0], dtype=pl.Float32), 0.01) == 0.0
    assert score_cut(pl.Series([1.0, 1.0, 1.0], dtype=pl.Float32), 0.01) == 1.0
