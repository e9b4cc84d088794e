"""A reviewed sample: what is drawn, and what the verdicts make of the error probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from dq_assets.audit.review import Reviewed, Sample, draw, flag_threshold, recalibrate


def population(n: int = 8000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True error probabilities, and errors drawn from them."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-4, 3, n)))
    return p, rng.random(n) < p


def too_many(p: np.ndarray, factor: float = 5.0) -> np.ndarray:
    """The probabilities of someone who believes in factor times the odds."""
    return factor * p / (factor * p + 1 - p)


def reviewed(n: int, seed: int) -> tuple[np.ndarray, Reviewed]:
    p, wrong = population(seed=seed)
    believed = too_many(p)
    sample = draw(believed, n, seed)
    return wrong, recalibrate(believed, sample, wrong[sample.rows])


def test_a_sample_is_distinct_images_mostly_in_doubt_and_the_same_for_a_seed() -> None:
    p, _ = population()
    sample = draw(p, 100, 1)
    assert len(set(sample.rows.tolist())) == 100
    assert (np.diff(p[sample.rows]) >= 0).all()
    assert np.minimum(p, 1 - p)[sample.rows].mean() > 2 * np.minimum(p, 1 - p).mean()
    assert np.array_equal(sample.rows, draw(p, 100, 1).rows)
    assert not np.array_equal(sample.rows, draw(p, 100, 2).rows)


def test_the_stated_chances_are_those_of_the_draw() -> None:
    p, _ = population(400)
    drawn = np.zeros(400)
    for seed in range(300):
        drawn[draw(p, 40, seed).rows] += 1 / 300
    chance = np.zeros(400)
    whole = [draw(p, 40, seed) for seed in range(300)]
    for sample in whole:
        chance[sample.rows] = sample.inclusion
    seen = chance > 0
    assert np.abs(drawn - chance)[seen].mean() < 0.03
    assert drawn.sum() == pytest.approx(40)


def test_all_images_are_drawn_if_there_are_no_more() -> None:
    sample = draw(np.array([0.1, 0.9, 0.5]), 10, 0)
    assert sample.rows.tolist() == [0, 2, 1]
    assert sample.inclusion.tolist() == [1, 1, 1]


def test_the_number_after_a_review_is_unbiased_and_the_interval_holds_it() -> None:
    found = [reviewed(100, seed) for seed in range(40)]
    error = [result.estimate.count / wrong.sum() - 1 for wrong, result in found]
    assert abs(np.mean(error)) < 0.08
    assert np.mean([result.estimate.low <= wrong.sum() <= result.estimate.high for wrong, result in found]) > 0.8
    p, wrong = population()
    assert too_many(p).sum() > 1.5 * wrong.sum()  # what was believed before


def test_after_a_review_the_flags_are_nearly_the_best_ones() -> None:
    lost = []
    for seed in range(10):
        wrong, result = reviewed(100, seed)
        p = result.error_probability
        order = np.argsort(-p, kind="stable")
        f1 = 2 * np.cumsum(wrong[order]) / (np.arange(1, len(p) + 1) + wrong.sum())
        lost.append(f1.max() - f1[int((p > result.flag_above).sum()) - 1])
    assert np.mean(lost) < 0.02


def test_reviewed_images_have_their_verdict_and_the_rest_sums_to_the_number() -> None:
    p, wrong = population()
    sample = draw(p, 50, 3)
    result = recalibrate(p, sample, wrong[sample.rows])
    assert np.array_equal(result.error_probability[sample.rows], wrong[sample.rows].astype(float))
    assert result.error_probability.sum() == pytest.approx(result.estimate.count, rel=0.1)


def test_a_verdict_for_each_sampled_image_is_asked_for() -> None:
    with pytest.raises(ValueError, match="2 verdicts for 1 sampled"):
        recalibrate(np.array([0.5, 0.5]), Sample(np.array([0]), np.array([1.0])), np.array([True, False]))


def test_the_flag_threshold_has_the_highest_expected_f1() -> None:
    p = np.array([0.9, 0.8, 0.3, 0.05, 0.01])
    above = [2 * p[:k].sum() / (k + p.sum()) for k in range(1, 6)]
    assert (p > flag_threshold(p)).sum() == int(np.argmax(above)) + 1
    assert flag_threshold(np.zeros(0)) == 0.5
