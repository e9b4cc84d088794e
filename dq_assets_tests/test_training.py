"""The gain of curation is measured on images that nobody trained on, under labels that no policy changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from dq_assets.audit.training import gain_of_curation
from dq_assets.schema import TABLES
from dq_assets.settings import Training

SETTINGS = Training(bootstrap=200)
NAMES = ["cat", "dog", "owl"]


def blobs(n: int = 240, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors (n, 8) round one corner per class, and their true classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(NAMES), n)
    return (np.eye(8, dtype=np.float32)[truth] + rng.normal(0, 0.3, (n, 8)).astype(np.float32)), truth


def rows(n: int, split: list[str | None] | None = None, fold: NDArray[np.int64] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {"image_id": np.arange(n) * 3 + 5, "split": split or [None] * n, "fold": np.arange(n) % 5 if fold is None else fold},
        schema={"image_id": pl.Int64, "split": pl.String, "fold": pl.Int32},
    )


def training_set(manifest: pl.DataFrame, codes: NDArray[np.int64], train: NDArray[np.bool_]) -> pl.DataFrame:
    labels = [NAMES[code] if code >= 0 else None for code in codes]
    table = manifest.select(
        "image_id",
        label=pl.Series(labels, dtype=pl.String),
        split=pl.when(pl.Series(train)).then(pl.lit("train")).otherwise(pl.lit("test")),
    )
    return table.drop_nulls("label")


def gain(vectors: NDArray[np.float32], codes: NDArray[np.int64], manifest: pl.DataFrame, chosen: pl.DataFrame) -> dict[str, Any]:
    report = gain_of_curation(vectors, codes, manifest, chosen, NAMES, settings=SETTINGS)
    assert set(report) == set(TABLES["trained_model"].column_names) - {"audit_id"}
    for name in ("accuracy_raw", "accuracy_curated", "gain", "gain_low", "gain_high"):
        assert report[name] is None or (type(report[name]) is float and np.isfinite(report[name]))
    return report


def noisy(truth: NDArray[np.int64], where: NDArray[np.bool_], seed: int = 1) -> NDArray[np.int64]:
    """Codes with 45 % of the labels in `where` moved to the next class."""
    wrong = where & (np.random.default_rng(seed).random(len(truth)) < 0.45)
    return np.where(wrong, (truth + 1) % len(NAMES), truth)


def test_better_training_labels_gain_and_the_interval_holds_the_gain() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    train = manifest["fold"].to_numpy() != 0
    codes = noisy(truth, train)
    report = gain(vectors, codes, manifest, training_set(manifest, np.where(train, truth, codes), train))
    assert report["held_out"] == "fold 0"
    assert report["n_held_out"] == 48
    assert report["n_train_raw"] == report["n_train_curated"] == 192
    assert report["gain"] == pytest.approx(report["accuracy_curated"] - report["accuracy_raw"])
    assert 0 < report["gain_low"] <= report["gain"] <= report["gain_high"]


def test_worse_training_labels_lose_and_that_is_reported() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    train = manifest["fold"].to_numpy() != 0
    report = gain(vectors, truth, manifest, training_set(manifest, np.where(train, (truth + 1) % 3, truth), train))
    assert report["gain_high"] < 0


def test_unchanged_labels_gain_exactly_nothing() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    report = gain(vectors, truth, manifest, training_set(manifest, truth, manifest["fold"].to_numpy() != 0))
    assert (report["gain"], report["gain_low"], report["gain_high"]) == (0, 0, 0)


def test_the_same_data_gives_the_same_report() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    train = manifest["fold"].to_numpy() != 0
    chosen = training_set(manifest, truth, train)
    assert gain(vectors, noisy(truth, train), manifest, chosen) == gain(vectors, noisy(truth, train), manifest, chosen)


def test_a_test_split_is_what_is_scored_and_validation_and_unused_are_neither() -> None:
    vectors, truth = blobs()
    split = [["train", None, "test", "validation", "unused"][n % 5] for n in range(len(truth))]
    manifest = rows(len(truth), split, np.zeros(len(truth), np.int64))
    train = np.array([part in ("train", None) for part in split])
    report = gain(vectors, truth, manifest, training_set(manifest, truth, train).filter(pl.Series(train)))
    assert report["held_out"] == "test split"
    assert (report["n_held_out"], report["n_train_raw"], report["n_train_curated"]) == (48, 96, 96)


def test_labels_of_held_out_images_teach_nothing() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    train = manifest["fold"].to_numpy() != 0
    right = gain(vectors, truth, manifest, training_set(manifest, truth, train))
    wrong = gain(vectors, np.where(train, truth, (truth + 1) % 3), manifest, training_set(manifest, truth, train))
    assert right["accuracy_raw"] > 0.9
    assert wrong["accuracy_raw"] < 0.1


def test_a_training_set_that_holds_the_held_out_images_as_train_is_not_fitted_on_them() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    train = manifest["fold"].to_numpy() != 0
    codes = np.where(train, truth, (truth + 1) % 3)
    leaking = training_set(manifest, codes, np.ones(len(truth), bool))
    assert gain(vectors, codes, manifest, leaking)["accuracy_curated"] < 0.1


def test_unlabelled_images_are_neither_trained_on_nor_scored() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    codes = np.where(np.arange(len(truth)) % 3 == 0, -1, truth)
    train = manifest["fold"].to_numpy() != 0
    report = gain(vectors, codes, manifest, training_set(manifest, codes, train))
    assert report["n_held_out"] == int((codes[~train] >= 0).sum())
    assert report["n_train_raw"] == int((codes[train] >= 0).sum())
    assert report["accuracy_raw"] > 0.9


def test_a_test_split_without_a_label_gives_way_to_fold_0() -> None:
    vectors, truth = blobs()
    split: list[str | None] = ["test" if n % 5 == 1 else "train" for n in range(len(truth))]
    manifest = rows(len(truth), split)
    codes = np.where(np.arange(len(truth)) % 5 == 1, -1, truth)
    train = (manifest["fold"].to_numpy() != 0) & (codes >= 0)
    report = gain(vectors, codes, manifest, training_set(manifest, codes, train))
    assert (report["held_out"], report["n_held_out"], report["n_train_raw"]) == ("fold 0", 48, 144)
    assert report["accuracy_raw"] > 0.9


def nothing(report: dict[str, Any]) -> bool:
    return all(report[name] is None for name in ("accuracy_raw", "accuracy_curated", "gain", "gain_low", "gain_high"))


def test_with_nothing_held_out_there_is_no_score() -> None:
    vectors, truth = blobs(30)
    manifest = rows(30, fold=np.arange(30) % 4 + 1)
    report = gain(vectors, truth, manifest, training_set(manifest, truth, np.ones(30, bool)))
    assert nothing(report)
    assert report["n_held_out"] == 0


def test_with_nothing_to_train_on_there_is_no_score() -> None:
    vectors, truth = blobs(30)
    manifest = rows(30)
    empty = training_set(manifest, truth, np.ones(30, bool)).clear()
    assert nothing(gain(vectors, truth, manifest, empty))
    alone = rows(30, fold=np.zeros(30, np.int64))
    assert nothing(gain(vectors, truth, alone, training_set(alone, truth, np.zeros(30, bool))))


def test_without_images_or_labels_there_is_no_score() -> None:
    empty = rows(0)
    assert nothing(
        gain(np.zeros((0, 8), np.float32), np.zeros(0, np.int64), empty, training_set(empty, np.zeros(0, np.int64), np.zeros(0, bool)))
    )
    vectors, _ = blobs(30)
    unlabelled, manifest = np.full(30, -1), rows(30)
    assert nothing(gain(vectors, unlabelled, manifest, training_set(manifest, unlabelled, np.ones(30, bool))))


def test_a_class_that_curation_emptied_is_scored_and_never_right() -> None:
    vectors, truth = blobs()
    manifest = rows(len(truth))
    train = manifest["fold"].to_numpy() != 0
    chosen = training_set(manifest, np.where(train & (truth == 2), -1, truth), train)
    report = gain(vectors, truth, manifest, chosen)
    assert report["n_train_curated"] < report["n_train_raw"]
    assert report["accuracy_curated"] <= 1 - (truth[~train] == 2).mean() + 1e-9


def test_one_class_alone_is_always_right() -> None:
    vectors, _ = blobs(30)
    manifest = rows(30)
    train = manifest["fold"].to_numpy() != 0
    zeros = np.zeros(30, np.int64)
    report = gain_of_curation(vectors, zeros, manifest, training_set(manifest, zeros, train), ["cat"], settings=SETTINGS)
    assert (report["accuracy_raw"], report["gain"]) == (1, 0)


def test_training_images_of_a_single_fold_can_be_learnt_from() -> None:
    vectors, truth = blobs(60)
    manifest = rows(60, fold=np.arange(60) % 2)
    train = manifest["fold"].to_numpy() != 0
    assert gain(vectors, truth, manifest, training_set(manifest, truth, train))["accuracy_raw"] > 0.8


def test_a_training_set_with_images_that_are_gone_is_refused() -> None:
    vectors, truth = blobs(30)
    manifest = rows(30)
    train = manifest["fold"].to_numpy() != 0
    chosen = training_set(manifest, truth, train).with_columns(pl.col("image_id") + 1)
    with pytest.raises(ValueError, match="Audit again"):
        gain(vectors, truth, manifest, chosen)
