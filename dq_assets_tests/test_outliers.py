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
    cut = score_cut(frame)
    assert cut is not None
    assert frame["is_outlier_issue"].any()
    assert (frame["is_outlier_issue"] == (frame["outlier_score"] <= cut)).all()


TAILS = {
    "short": lambda rng, n: rng.uniform(0.2, 0.4, n),
    "normal": lambda rng, n: 0.3 + 0.05 * rng.normal(size=n),
    "a rare kind": lambda rng, n: np.where(rng.random(n) < 0.1, 0.45, 0.3) + 0.03 * rng.normal(size=n),
}


def flags(distance: np.ndarray, rate: float, strange: np.ndarray | None = None, *, labelled: bool = True) -> np.ndarray:
    """Which of n images are flagged whose three neighbours are all at `distance` (n,). The even ones are a class, the odd ones another.

    strange: (n,) those that have the label of the other class; all others have that of their neighbours.
    """
    n = len(distance)
    ids = np.arange(n)
    neighbours = (ids[:, None] + [2, 4, 6]) % (n - n % 2) if n > 9 else (ids[:, None] + [1, 2, 3]) % n
    label = ids % 2 if labelled else np.full(n, -1)
    if strange is not None:
        label[strange] = 1 - label[strange]
    distances = np.repeat(distance[:, None].astype(np.float32), 3, axis=1)
    return outliers(ids, neighbours, distances, np.full(n, -1), label, Outliers(false_alarm_rate=rate))["is_outlier_issue"].to_numpy()


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("n", [2_000, 20_000])
def test_of_regular_images_the_set_share_is_flagged(n: int, tail: str, rate: float) -> None:
    flagged = flags(TAILS[tail](np.random.default_rng(1), n), rate)
    assert flagged.sum() == pytest.approx(n * rate, rel=0.05, abs=1)


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.003])
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "without labels"])
def test_of_log_normal_distances_the_set_share_is_flagged_or_up_to_thrice_it_without_labels(rate: float, labelled: bool) -> None:
    distance = 0.3 * np.exp(0.2 * np.random.default_rng(1).normal(size=20_000))
    flagged = flags(distance, rate, labelled=labelled).mean()
    assert rate * 0.99 <= flagged <= rate * (1.01 if labelled else 3)


@pytest.mark.parametrize("share", [0.003, 0.01, 0.03, 0.05, 0.08])
def test_outliers_are_flagged_besides_the_set_share_of_the_others_however_many_there_are(share: float) -> None:
    rng = np.random.default_rng(1)
    strange = rng.permutation(4_000) < 4_000 * share
    flagged = flags(np.where(strange, 0.7, 0.3) + 0.03 * rng.normal(size=4_000), 0.003, strange)
    assert flagged[strange].all()
    assert flagged[~strange].mean() == pytest.approx(0.003, abs=0.001)


def test_a_kind_that_is_rare_but_right_is_not_taken_for_outliers_of_which_there_are_as_many() -> None:
    rng = np.random.default_rng(1)
    far = rng.permutation(4_000) < 200
    distance = np.where(far, 0.7, 0.3) + 0.03 * rng.normal(size=4_000)
    assert flags(distance, 0.003).sum() == 12
    assert flags(distance, 0.003, far)[far].all()


def test_a_few_hundred_images_without_outliers_have_at_most_one_flagged() -> None:
    rng = np.random.default_rng(1)
    assert all(flags(0.3 + 0.05 * rng.normal(size=n), 0.003).sum() <= 1 for n in (5, 20, 50, 100, 200, 300) for _ in range(20))


def test_a_neighbour_without_a_label_is_no_neighbour_of_another_class() -> None:
    ids, neighbours, distances, groups = ring()
    label = np.arange(40) // 20
    halved = np.where(np.arange(40) % 2 == 0, label, -1)
    scores = [outliers(ids, neighbours, distances, groups, codes, Outliers())["outlier_score"] for codes in (label, halved)]
    inside = 4  # its neighbours are of its class, as far as they have a label
    assert scores[1][inside] == pytest.approx(scores[0][inside], rel=0.05)


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


@pytest.mark.parametrize(
    ("scores", "flagged", "cut"),
    [
        ([None, None], [None, None], None),
        ([0.1, 0.2, 0.4, 0.3, None], [True, True, False, False, None], 0.2),
        ([0.5, 0.5], [False, False], 0.0),
    ],
    ids=["nothing checked", "two flagged", "none flagged"],
)
def test_the_cut_is_the_highest_score_that_is_flagged(scores: list[float | None], flagged: list[bool | None], cut: float | None) -> None:
    frame = pl.DataFrame({"image_id": range(len(scores)), "outlier_score": scores, "is_outlier_issue": flagged}, schema=OUTLIERS_SCHEMA)
    assert score_cut(frame) == (None if cut is None else pytest.approx(cut))
