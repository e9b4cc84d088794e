"""How many labels are wrong: the readings, what the estimate makes of them, and the probability of each label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dq_assets.audit.errors import (
    Readings,
    crowded,
    disagreement,
    error_log_odds,
    estimate,
    probability,
    scores,
    uniform,
)

NOTHING = Readings(
    n=10_000, disagreement=600, joint=120, uniform=0, by_class=200, gentle=80, plain=0.0, sharpness=1.4, classes=0.0, crowded=0.07
)
WEAK = replace(NOTHING, disagreement=3000, joint=2000, by_class=1000, uniform=800, gentle=800, crowded=0.13)


def log_linear(rate: float, *, distance: float, n: int = 6000, n_classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Whether each label is wrong, and (n, K) probabilities with the given class first: logits of Gaussian classes, best temperature."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, n_classes, n)
    logits = distance * (np.eye(n_classes)[true] * distance + rng.normal(size=(n, n_classes)))
    given = np.where(rng.random(n) < rate, (true + rng.integers(1, n_classes, n)) % n_classes, true)

    def softmax(scale: float) -> np.ndarray:
        exp = np.exp(scale * (logits - logits.max(axis=1, keepdims=True)))
        return exp / exp.sum(axis=1, keepdims=True)

    at = np.arange(n)
    probs = min((softmax(scale) for scale in np.geomspace(0.05, 2, 40)), key=lambda p: -np.log(p[at, given]).mean())
    rest = np.delete(probs.ravel(), at * n_classes + given).reshape(n, n_classes - 1)
    return given != true, np.column_stack([probs[at, given], rest]).astype(np.float32)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("distance", [2.0, 4.0], ids=["weak", "strong"])
def test_uniform_errors_are_counted_whatever_the_model_is_worth(rate: float, distance: float) -> None:
    wrong, top = log_linear(rate, distance=distance)
    assert uniform(top, 5).wrong == pytest.approx(wrong.sum(), rel=0.35, abs=20)


def test_right_labels_have_no_uniform_errors() -> None:
    _, top = log_linear(0.0, distance=2.0)
    assert uniform(top, 5).wrong < 0.01 * len(top)


def test_noise_that_ignores_the_doubts_is_plain_and_the_mistakes_of_a_weak_model_are_not() -> None:
    noisy, clean = (uniform(log_linear(rate, distance=2.0)[1], 5).plain for rate in (0.02, 0.0))
    assert clean < 0.05 < 0.1 < noisy


def test_probabilities_that_are_too_sure_are_no_plain_noise() -> None:
    _, top = log_linear(0.0, distance=2.0)
    sure = top.astype(np.float64) ** 2
    assert uniform((sure / sure.sum(axis=1, keepdims=True)).astype(np.float32), 5).plain < 0.05


def test_the_floor_that_a_flexible_model_learnt_counts_as_noise() -> None:
    rng = np.random.default_rng(1)
    true = rng.integers(0, 5, 5000)
    given = np.where(rng.random(5000) < 0.2, (true + rng.integers(1, 5, 5000)) % 5, true)
    probs = np.full((5000, 5), 0.05)
    probs[np.arange(5000), true] = 0.8
    rest = np.delete(probs.ravel(), np.arange(5000) * 5 + given).reshape(5000, 4)
    top = np.column_stack([probs[np.arange(5000), given], rest]).astype(np.float32)
    assert uniform(top, 5).wrong == pytest.approx((given != true).sum(), rel=0.02)


def test_classes_are_crowded_where_the_model_errs_and_label_noise_does_not_change_it() -> None:
    clean, noisy, weak = (crowded(log_linear(rate, distance=d)[1]) for rate, d in ((0.0, 4.0), (0.3, 4.0), (0.0, 1.0)))
    assert clean < 0.03 < 0.1 < weak
    assert noisy == pytest.approx(clean, abs=0.01)


def test_a_disagreement_is_another_class_that_is_more_probable() -> None:
    assert disagreement(np.array([[0.5, 0.5], [0.4, 0.6], [0.9, 0.1]], dtype=np.float32)) == 1


@pytest.mark.parametrize(
    ("readings", "low", "high"),
    [
        pytest.param(NOTHING, 590, 601, id="classes apart and no noise that ignores the doubts: all disagreements"),
        pytest.param(replace(NOTHING, uniform=560, crowded=0.01), 585, 595, id="a strong model: disagreements less its mistakes"),
        pytest.param(replace(NOTHING, uniform=40), 119, 121, id="mistakes explain the disagreements: the joint"),
        pytest.param(replace(NOTHING, uniform=210, sharpness=2.0), 209, 211, id="plain class noise: its own count"),
        pytest.param(
            replace(NOTHING, joint=250, crowded=0.075), 250, 290, id="no more disagreements than mistakes of the model: about the joint",
        ),
        pytest.param(
            replace(NOTHING, disagreement=2000, joint=1200, uniform=300, gentle=500), 1850, 1950,
            id="far more disagreements than mistakes, and few of them noise that ignores the doubts: nearly all",
        ),
        pytest.param(WEAK, 1360, 1370, id="a weak model: between the joint and the fit"),
        pytest.param(replace(WEAK, plain=0.3, crowded=0.18), 799, 801, id="a weak model and plain noise: the noise"),
        pytest.param(replace(WEAK, plain=0.3), 950, 1000, id="plain noise, more disagreements than mistakes: more"),
        pytest.param(replace(WEAK, uniform=400), 2000, 2050, id="a weak model, most errors not to any class alike: half-way to all"),
        pytest.param(replace(WEAK, uniform=5, plain=0.3, crowded=0.18), 1950, 2000, id="a few stray images are no plain noise"),
        pytest.param(
            replace(WEAK, plain=0.3, disagreement=5500, joint=5000), 1700, 3000,
            id="plain noise, but far more disagreements than mistakes of the model: more than the noise",
        ),
        pytest.param(
            replace(NOTHING, disagreement=4000, joint=2500, by_class=2000, uniform=0, gentle=800, crowded=0.13),
            3990, 4001, id="many pictures that look like another class: all disagreements",
        ),
        pytest.param(
            replace(NOTHING, disagreement=4000, joint=2500, by_class=2000, uniform=160, gentle=800, classes=1.0, crowded=0.13),
            1990, 2010, id="as many, of classes that are plainly mistaken for each other: their own count",
        ),
    ],
)  # fmt: skip
def test_the_estimate_follows_the_reading_that_the_probabilities_support(readings: Readings, low: float, high: float) -> None:
    found = estimate(readings)
    assert low <= found.count <= high
    assert found.low <= min(found.count, readings.uniform, readings.gentle)
    assert found.high >= max(found.count, readings.joint, readings.disagreement)


def test_no_disagreement_is_less_than_one_error() -> None:
    assert estimate(Readings(100, 0, 0, 0, 0, 0, 0.0, 1.4, 0.0, 0.0)).count < 1


@pytest.mark.parametrize("count", [0.5, 60.0, 2500.0])
def test_error_probabilities_sum_to_the_count_and_most_of_it_is_flagged(count: float) -> None:
    _, top = log_linear(0.1, distance=3.0)
    log_odds = error_log_odds(scores(top), count)
    assert probability(log_odds).sum() == pytest.approx(count, rel=1e-3)
    assert count < 1 or 0.85 * count < (log_odds > 0).sum() < 1.3 * count


def test_wrong_labels_rank_first_and_sure_errors_stay_apart() -> None:
    top = np.array([[0.9, 0.1], [0.1, 0.9], [1e-4, 1.0], [1e-6, 1.0], [0.5, 0.5]], dtype=np.float32)
    log_odds = error_log_odds(scores(top), 3.0)
    assert np.argsort(-log_odds).tolist() == [3, 2, 1, 4, 0]
    right = probability(-log_odds).astype(np.float32)
    assert right[3] < right[2] < right[1]


def test_no_images_have_no_probabilities() -> None:
    assert error_log_odds(scores(np.zeros((0, 3), dtype=np.float32)), 0.0).size == 0
