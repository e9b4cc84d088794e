"""Out-of-fold probabilities: honest, calibrated, complete, whatever the classes and vectors look like."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from dq_assets.audit import features, heads, oof
from dq_assets.audit.features import Features
from dq_assets.audit.oof import oof_probabilities, oof_stream


def blobs(n: int = 600, d: int = 16, n_classes: int = 3, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_classes, n)
    centres = rng.normal(size=(n_classes, d)) * 2
    return (centres[labels] + rng.normal(size=(n, d)) * spread).astype(np.float32), labels, np.arange(n) % 5


def assert_distributions(probs: np.ndarray) -> None:
    assert probs.dtype == np.float32
    assert np.isfinite(probs).all()
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_separable_classes_are_recognised_and_the_probabilities_are_distributions() -> None:
    vectors, labels, folds = blobs()
    result = oof_probabilities(vectors, labels, folds, 3)
    assert_distributions(result.probs)
    assert result.metrics["accuracy"] > 0.97
    assert len(result.metrics["accuracy_per_fold"]) == 5
    assert result.metrics["n_labelled"] == 600


def of_fold(vectors: np.ndarray, labels: np.ndarray, folds: np.ndarray, fold: int) -> tuple[np.ndarray, heads.Train]:
    """(n, D) what the heads see, and what they learn from all folds but one."""
    seen = Features.of(vectors)
    sums = heads.Sums.of(seen, labels, folds, 5, int(labels.max()) + 1)
    return seen.rows(slice(None)), heads.trains(sums, seen.dim)[fold]


def test_each_closed_head_equals_its_textbook_definition() -> None:
    vectors, labels, folds = blobs(spread=3.0)
    rows, train = of_fold(vectors, labels, folds, 2)
    x, y = rows[folds != 2], labels[folds != 2]
    dim = rows.shape[1]
    head = heads.lda(train, 0.3)
    covariance = np.cov((x - np.stack([x[y == k].mean(0) for k in range(3)])[y]).T, bias=True)
    shrunk = 0.7 * covariance + (0.3 * np.trace(covariance) / dim + 1e-6) * np.eye(dim)
    reference = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Fixed(shrunk)).fit(x, y)
    ours = oof._softmax(rows[folds == 2] @ head.weights + head.bias)
    np.testing.assert_allclose(ours, reference.predict_proba(rows[folds == 2]), atol=1e-3)
    head = heads.ridge(train, 0.3)
    penalty = len(x) * (0.3 * np.trace(np.cov(x.T, bias=True)) / dim + 1e-6)
    expected = Ridge(alpha=penalty).fit(x, np.eye(3)[y])
    np.testing.assert_allclose(rows[folds == 2] @ head.weights + head.bias, expected.predict(rows[folds == 2]), atol=1e-4)


def test_the_logistic_head_goes_to_the_minimum_of_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "STEPS", (300, 300))
    vectors, labels, folds = blobs(spread=3.0)
    seen = Features.of(vectors)
    rows = seen.rows(slice(None))
    trains = heads.trains(heads.Sums.of(seen, labels, folds, 5, 3), seen.dim)
    x, y = rows[folds != 2], labels[folds != 2]
    penalties = (0.1, 0.001)
    start = [heads.uniform(one) for one in trains]
    found = heads.logistic(trains, rows, labels, folds, penalties=penalties, wanted=slice(1, 3), start=start, share=1.0)
    for penalty, (_, model) in zip(penalties, found, strict=True):
        added = penalty * np.trace(x.T @ x) / len(x) / seen.dim
        best = LogisticRegression(C=1 / (len(x) * added), fit_intercept=False, max_iter=1000).fit(x, y)
        losses = [
            log_loss(y, oof._softmax(x @ weights + bias)) + added / 2 * (weights**2).sum()
            for weights, bias in ((model.weights, model.bias), (best.coef_.T, best.intercept_))
        ]
        assert losses[0] < losses[1] + 0.001, penalty


def test_a_class_that_lies_farther_out_in_the_same_direction_is_told_apart() -> None:
    rng = np.random.default_rng(6)
    labels = np.arange(900) % 3
    vectors = ((1 + labels)[:, None] * 10 + rng.normal(size=(900, 4))).astype(np.float32)
    assert oof_probabilities(vectors, labels, np.arange(900) // 180, 3).metrics["accuracy"] > 0.95


def test_one_vector_far_from_all_others_does_not_blur_them() -> None:
    vectors, labels, folds = blobs()
    vectors[0] = 1e20
    assert oof_probabilities(vectors, labels, folds, 3).metrics["accuracy"] > 0.97


def test_moving_and_stretching_all_vectors_alike_changes_nothing() -> None:
    vectors, labels, folds = blobs(spread=3.0)
    moved = oof_probabilities(100 * vectors + 7, labels, folds, 3)
    np.testing.assert_allclose(moved.probs, oof_probabilities(vectors, labels, folds, 3).probs, atol=2e-3)


def test_a_head_with_a_higher_log_loss_counts_less_and_without_enough_images_there_is_no_logistic_one() -> None:
    vectors, labels, folds = blobs(n=1500, spread=3.0)
    wide = np.where((labels == 2)[:, None], 3 * vectors, vectors)  # LDA takes all classes to be as wide
    between = np.random.default_rng(8).normal(size=(1500, 130)).astype(np.float32)
    between[:, 0] += 3 * labels  # ridge does not see a class that lies between two others
    for given, lowest in ((wide, "ridge"), (between, "lda")):
        metrics = oof_probabilities(given, labels, folds, 3).metrics
        weights = np.array([metrics[f"{head}_weight"] for head in ("lda", "ridge", "logistic")])
        losses = np.array([metrics[f"{head}_log_loss"] for head in ("lda", "ridge", "logistic")])
        assert losses.min() == metrics[f"{lowest}_log_loss"] < losses.max()
        expected = np.exp(-np.maximum(losses - losses[0], 0) / oof.TOLERANCE)
        np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-6)
    few = oof_probabilities(vectors[:90], labels[:90], folds[:90], 3).metrics
    assert few["logistic_weight"] == 0
    assert np.isnan(few["logistic_log_loss"])


class _Fixed:
    def __init__(self, covariance: np.ndarray) -> None:
        self.covariance_ = covariance

    def fit(self, _: np.ndarray) -> _Fixed:
        # Called per class and averaged with the priors: the same matrix each time is that matrix.
        return self


def test_no_row_is_scored_by_a_model_that_saw_its_label() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(300, 100)).astype(np.float32)
    result = oof_probabilities(vectors, rng.integers(0, 2, 300), np.arange(300) % 5, 2)
    assert 0.4 < result.metrics["accuracy"] < 0.6


def test_changing_the_labels_of_one_fold_leaves_the_fitted_heads_of_that_fold_alone() -> None:
    vectors, labels, folds = blobs()
    other = np.where(folds == 1, (labels + 1) % 3, labels)
    fitted = [heads.lda(of_fold(vectors, one, folds, 1)[1], 0.3) for one in (labels, other)]
    np.testing.assert_allclose(fitted[0].weights, fitted[1].weights, rtol=1e-3, atol=1e-3)


def test_probabilities_are_calibrated_to_noisy_labels() -> None:
    vectors, labels, folds = blobs(n=3000)
    rng = np.random.default_rng(2)
    noisy = np.where(rng.random(3000) < 0.3, rng.integers(0, 3, 3000), labels)
    metrics = oof_probabilities(vectors, noisy, folds, 3).metrics
    assert metrics["ece_after"] < 0.06
    assert metrics["ece_after"] < metrics["ece_before"]


def test_unlabelled_rows_are_scored_and_not_learnt_from() -> None:
    vectors, labels, folds = blobs()
    partly = np.where(np.arange(600) < 300, labels, -1)
    result = oof_probabilities(vectors, partly, folds, 3)
    assert_distributions(result.probs)
    assert (result.probs.argmax(axis=1)[300:] == labels[300:]).mean() > 0.95
    assert result.metrics["n_labelled"] == 300


def test_a_class_of_one_image_keeps_its_column_and_gets_nothing_where_it_was_not_seen() -> None:
    vectors, labels, folds = blobs()
    labels = labels.copy()
    labels[7] = 4  # class 3 has no image at all
    result = oof_probabilities(vectors, labels, folds, 5)
    assert_distributions(result.probs)
    assert result.probs.shape == (600, 5)
    assert result.probs[7, 4] == 0
    assert result.probs[:, 3].max() == 0
    assert np.isfinite(result.metrics["log_loss"])


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(np.zeros((40, 8), dtype=np.float32), id="all zero"),
        pytest.param(np.full((40, 8), 1e20, dtype=np.float32), id="constant and huge"),
        pytest.param(np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32), id="one dimension"),
        pytest.param(np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32), id="more dimensions than rows"),
    ],
)
def test_degenerate_vectors_still_give_distributions(vectors: np.ndarray) -> None:
    assert_distributions(oof_probabilities(vectors, np.arange(40) % 3, np.arange(40) % 5, 3).probs)


def test_vectors_that_are_not_finite_are_refused_with_their_row() -> None:
    vectors, labels, folds = blobs()
    vectors[5, 3] = np.nan
    with pytest.raises(ValueError, match="row 5"):
        oof_probabilities(vectors, labels, folds, 3)


@pytest.mark.parametrize("bad", [[3, 0], [-2, 0]], ids=["too high", "too low"])
def test_labels_out_of_range_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="codes of the classes"):
        oof_probabilities(np.ones((2, 2), dtype=np.float32), np.array(bad), np.array([0, 1]), 3)


def test_one_class_no_class_and_no_labels_have_their_plain_answers() -> None:
    vectors, _, folds = blobs(20)
    assert (oof_probabilities(vectors, np.zeros(20, dtype=np.int64), folds, 1).probs == 1).all()
    assert oof_probabilities(vectors, np.full(20, -1), folds, 0).probs.shape == (20, 0)
    unlabelled = oof_probabilities(vectors, np.full(20, -1), folds, 4)
    assert (unlabelled.probs == 0.25).all()
    assert np.isnan(unlabelled.metrics["accuracy"])
    assert oof_probabilities(vectors[:0], np.zeros(0, dtype=np.int64), folds[:0], 2).probs.shape == (0, 2)


def test_a_fold_that_holds_every_label_gets_the_uniform_distribution() -> None:
    vectors, labels, _ = blobs(20)
    only = np.where(np.arange(20) < 10, labels, -1)
    result = oof_probabilities(vectors, only, (np.arange(20) >= 10).astype(int), 3)
    assert_distributions(result.probs)
    np.testing.assert_allclose(result.probs[:10], 1 / 3, atol=1e-6)


def test_two_runs_give_the_same_answer() -> None:
    vectors, labels, folds = blobs()
    assert np.array_equal(oof_probabilities(vectors, labels, folds, 3).probs, oof_probabilities(vectors, labels, folds, 3).probs)


def test_fewer_rows_than_dimensions_give_the_probabilities_of_the_full_space(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    labels[::10] = -1
    vectors = (rng.normal(size=(60, 200)) + np.eye(3)[labels].repeat(70, axis=1)[:, :200]).astype(np.float32)
    folds = np.arange(60) % 4
    small = oof_probabilities(vectors, labels, folds, 3)
    monkeypatch.setattr(Features, "in_row_space", lambda seen, rows: seen)
    whole = oof_probabilities(vectors, labels, folds, 3)
    assert np.abs(small.probs - whole.probs).max() < 1e-3
    assert small.metrics["shrinkage"] == whole.metrics["shrinkage"]


def test_a_thousand_classes_and_forty_percent_noise_are_scored_honestly() -> None:
    rng = np.random.default_rng(4)
    true = np.arange(4000) % 1000
    centres = rng.normal(size=(1000, 64))
    vectors = (centres[true] + rng.normal(size=(4000, 64)) * 0.3).astype(np.float32)
    given = np.where(rng.random(4000) < 0.4, rng.integers(0, 1000, 4000), true)
    result = oof_probabilities(vectors, given, np.arange(4000) // 1000, 1000)
    assert_distributions(result.probs)
    assert (result.probs.argmax(axis=1) == true).mean() > 0.6


def test_a_class_that_is_all_in_one_fold_is_never_predicted_there_and_known_elsewhere() -> None:
    vectors, labels, folds = blobs()
    folds = np.where(labels == 2, 3, folds)
    result = oof_probabilities(vectors, labels, folds, 3)
    assert_distributions(result.probs)
    assert result.probs[folds == 3][:, 2].max() == 0
    assert len(result.metrics["log_loss_per_fold"]) == 5


def test_float16_vectors_are_scored_as_float32_ones() -> None:
    vectors, labels, folds = blobs()
    half = oof_probabilities(vectors.astype(np.float16), labels, folds, 3)
    assert_distributions(half.probs)
    assert np.abs(half.probs - oof_probabilities(vectors, labels, folds, 3).probs).max() < 0.02


def test_the_priors_of_the_classes_are_learnt() -> None:
    rng = np.random.default_rng(5)
    labels = np.where(rng.random(1000) < 0.8, 0, rng.integers(1, 3, 1000))
    vectors = rng.normal(size=(1000, 8)).astype(np.float32)  # that say nothing of the class
    metrics = oof_probabilities(vectors, labels, np.arange(1000) % 5, 3).metrics
    assert metrics["prior_distance"] < 0.03
    assert metrics["ece"] < 0.05


def test_a_stream_gives_the_same_rows_and_knows_at_its_end_how_they_agree_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, folds = blobs(spread=3.0)
    labels = np.where(np.arange(600) % 7 == 0, -1, labels)
    whole = oof_probabilities(vectors, labels, folds, 3)
    monkeypatch.setattr(oof, "BLOCK", 64)
    stream = oof_stream(vectors, labels, folds, 3)
    assert stream.shape == (600, 3)
    assert "accuracy" not in stream.metrics
    blocks = list(stream.blocks())
    assert [len(block) for block in blocks] == [64] * 9 + [24]
    np.testing.assert_allclose(np.concatenate(blocks), whole.probs, atol=1e-5)
    assert stream.metrics["accuracy"] == whole.metrics["accuracy"]
    assert stream.metrics["log_loss"] == pytest.approx(whole.metrics["log_loss"], abs=1e-5)


def test_classes_in_two_places_each_are_told_apart_by_waves() -> None:
    rng = np.random.default_rng(9)
    at = rng.integers(0, 2, (2000, 2))
    vectors = (2.0 * at + 0.4 * rng.normal(size=(2000, 2))).astype(np.float32)
    metrics = oof_probabilities(vectors, at[:, 0] ^ at[:, 1], np.arange(2000) % 5, 2).metrics  # no line parts them
    assert metrics["waves"] == 500
    assert metrics["accuracy"] > 0.95


def test_without_use_for_waves_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, folds = blobs(spread=3.0)
    found = oof_probabilities(vectors, labels, folds, 3)
    assert found.metrics["waves"] == 0
    monkeypatch.setattr(features, "WAVED_DIM", 15)
    np.testing.assert_allclose(found.probs, oof_probabilities(vectors, labels, folds, 3).probs, atol=1e-4)


def test_waves_of_two_vectors_give_a_gaussian_of_their_distance_also_where_one_is_far_from_all() -> None:
    rng = np.random.default_rng(10)
    vectors = rng.normal(size=(4000, 6)).astype(np.float32)
    vectors[0] = 1e30
    seen = Features.of(vectors)
    waves = seen.rows(slice(None))[:, 7:]
    assert waves.shape == (4000, 2 * features.N_WAVES)
    np.testing.assert_allclose((waves**2).sum(axis=1), 1, atol=1e-4)
    squares = ((vectors[1:200, None] - vectors[None, 200:300]) ** 2).sum(axis=2) / seen.width**2
    assert np.abs(waves[1:200] @ waves[200:300].T - np.exp(-squares / 2)).max() < 0.2
    assert seen.width == pytest.approx(np.sqrt(2 * 6), rel=0.1)


def test_few_labelled_images_get_few_waves_and_vectors_that_are_all_alike_or_long_none() -> None:
    vectors = blobs()[0]
    assert Features.of(vectors).n_waves == 150
    assert Features.of(vectors, n_labelled=40).n_waves == 10
    assert Features.of(np.ones((600, 16), np.float32)).n_waves == 0
    assert Features.of(np.random.default_rng(0).normal(size=(600, 129)).astype(np.float32)).n_waves == 0
