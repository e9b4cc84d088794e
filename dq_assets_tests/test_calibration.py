"""The reliability curve says how often a probability is right."""

from __future__ import annotations

import numpy as np
import pytest

from dq_assets.audit.calibration import BINS_SCHEMA, reliability


def sure(probability: float, n: int, n_classes: int = 2) -> np.ndarray:
    rest = (1 - probability) / (n_classes - 1)
    return np.array([[probability, *[rest] * (n_classes - 1)]] * n, np.float32)


def test_a_bin_has_its_share_its_mean_and_its_interval() -> None:
    curve = reliability([(sure(0.9, 10), np.array([0] * 8 + [1] * 2))])
    row = curve.bins.row(0, named=True)
    assert (row["n"], curve.n) == (10, 10)
    assert row["mean_probability"] == pytest.approx(0.9)
    assert row["low"] <= 0.9 <= row["high"]
    assert row["agreement"] == 0.8
    assert (row["agreement_low"], row["agreement_high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson, 8 of 10
    assert curve.ece == pytest.approx(0.1)


def test_the_error_is_weighted_by_images() -> None:
    curve = reliability([(sure(0.6, 30), np.zeros(30, np.int64)), (sure(0.9, 10), np.zeros(10, np.int64))])
    assert curve.ece == pytest.approx((30 * 0.4 + 10 * 0.1) / 40)
    assert curve.bins["n"].to_list() == [30, 10]


def test_blocks_do_not_matter_and_unlabelled_images_do_not_count() -> None:
    rng = np.random.default_rng(3)
    probs = rng.dirichlet(np.ones(7), 500).astype(np.float32)
    given = rng.integers(-1, 7, 500)
    whole = reliability([(probs, given)])
    cut = reliability((probs[i : i + 37], given[i : i + 37]) for i in range(0, 500, 37))
    assert whole.n == cut.n == (given >= 0).sum() == whole.bins["n"].sum()
    assert whole.ece == pytest.approx(cut.ece)
    assert whole.bins.to_numpy() == pytest.approx(cut.bins.to_numpy())


def test_probabilities_that_are_drawn_from_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4) * 0.5, 40_000).astype(np.float32)
    given = (probs.cumsum(axis=1) < rng.random((40_000, 1))).sum(axis=1).clip(max=3)
    curve = reliability([(probs, given)])
    assert curve.ece is not None
    assert curve.ece < 0.01
    inside = (curve.bins["agreement_low"] <= curve.bins["mean_probability"]) & (
        curve.bins["mean_probability"] <= curve.bins["agreement_high"]
    )
    assert inside.mean() >= 0.8


def test_the_same_error_as_the_fit_reports() -> None:
    from dq_assets.audit.oof import oof_probabilities

    rng = np.random.default_rng(1)
    given = rng.integers(0, 3, 400)
    vectors = (np.eye(3, 20)[given] + rng.normal(0, 0.4, (400, 20))).astype(np.float32)
    result = oof_probabilities(vectors, given, np.arange(400) % 5, 3)
    curve = reliability([(result.probs, given)])
    assert curve.ece == pytest.approx(result.metrics["ece_after"], abs=1e-6)


def test_probability_one_and_zero_classes_are_in_a_bin_or_none() -> None:
    assert reliability([(sure(1.0, 3), np.zeros(3, np.int64))]).bins["high"].to_list() == [1.0]
    for nothing in ([], [(np.zeros((4, 0), np.float32), np.full(4, -1))], [(sure(0.9, 2), np.array([-1, -1]))]):
        curve = reliability(nothing)
        assert (curve.n, curve.ece, curve.bins.schema) == (0, None, BINS_SCHEMA)
        assert curve.bins.is_empty()
