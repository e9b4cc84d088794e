"""What the label issues say about classes and pairs of classes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.confident import ISSUES_SCHEMA, issues_of, label_noise
from dq_assets.audit.ontology import (
    CLASS_SCHEMA,
    NOISE_SCHEMA,
    PAIR_SCHEMA,
    class_report,
    class_sums,
    corrections,
    noise_estimate,
    ontology_report,
)
from dq_assets.schema import TABLES
from dq_assets.settings import Labels

NAMES = ["boot", "cap", "shoe", "tie"]


def confused() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """given, true, probs: 30 of 200 boots are filed under shoe, 10 of 200 shoes under boot; `tie` has two images."""
    true = np.repeat([0, 1, 2], 200)
    given = true.copy()
    given[:30], given[400:410] = 2, 0
    probs = np.full((602, 4), 0.02, dtype=np.float32)
    true, given = np.append(true, [3, 3]), np.append(given, [3, 3])
    probs[np.arange(602), true] = 0.94
    return given, true, probs


LEARNABLE = np.array([True, True, True, False])


def tables(given: np.ndarray, probs: np.ndarray, learnable: np.ndarray = LEARNABLE) -> tuple[pl.DataFrame, pl.DataFrame]:
    """label_noise and label_issues."""
    noise, names = label_noise(given, probs, learnable), NAMES[: probs.shape[1]]
    sums = class_sums(noise, given, class_names=names, learnable=learnable)
    return sums, issues_of(noise, np.arange(len(given)), given, class_names=names, settings=Labels())


def test_the_sums_of_the_classes_are_those_of_their_images() -> None:
    given, _, probs = confused()
    sums, issues = tables(given, probs)
    assert sums.schema == NOISE_SCHEMA
    assert tuple(sums.columns) == TABLES["label_noise"].column_names
    assert sums["n"].to_list() == [180, 200, 220, 2]
    assert sums["n_checked"].to_list() == [180, 200, 220, 0]
    assert sums["n_agreed"].to_list() == [170, 200, 190, 0]
    assert sums["threshold"].to_list() == [*(pytest.approx(probs[given == k, k].mean()) for k in range(3)), None]
    joint = np.array(sums["joint"].to_list())
    np.testing.assert_allclose(joint.sum(axis=1), sums["n_checked"], rtol=1e-5)
    np.testing.assert_allclose(joint.sum(axis=1) - np.diag(joint), sums["expected_wrong"], atol=1e-3)
    assert sums["expected_wrong"].sum() == pytest.approx(issues["error_probability"].sum(), rel=1e-5)
    assert (sums["expected_wrong_low"] <= sums["expected_wrong"]).all()
    assert (sums["expected_wrong"] <= sums["expected_wrong_high"]).all()


def test_the_class_report_gives_the_planted_rates() -> None:
    given, _, probs = confused()
    report = class_report(*tables(given, probs))
    assert report.schema == CLASS_SCHEMA
    assert tuple(report.columns) == TABLES["class_report"].column_names
    rows = {row["class_name"]: row for row in report.to_dicts()}
    assert list(rows) == NAMES
    assert rows["shoe"]["n"] == 220
    assert rows["shoe"]["noise_rate"] == pytest.approx(30 / 220, abs=0.02)
    assert rows["boot"]["noise_rate"] == pytest.approx(10 / 180, abs=0.02)
    assert rows["boot"]["inverse_noise_rate"] == pytest.approx(30 / 200, abs=0.02)
    assert rows["shoe"]["accuracy"] == pytest.approx(190 / 220)
    assert (rows["shoe"]["most_common_correction"], rows["shoe"]["n_corrections"]) == ("boot", 30)
    assert (rows["cap"]["most_common_correction"], rows["cap"]["n_corrections"]) == (None, 0)


def test_a_class_that_was_not_checked_has_no_rates() -> None:
    given, _, probs = confused()
    tie = class_report(*tables(given, probs)).row(3, named=True)
    assert tie["n"] == 2
    assert not tie["is_learnable"]
    assert (tie["noise_rate"], tie["inverse_noise_rate"], tie["accuracy"]) == (None, None, None)


def test_the_noise_rate_of_a_class_is_the_mean_error_probability_of_its_images() -> None:
    given, _, probs = confused()
    sums, issues = tables(given, probs)
    report = class_report(sums, issues)
    means = dict(issues.group_by("given_label").agg(pl.col("error_probability").mean()).iter_rows())
    for name, rate in report.select("class_name", "noise_rate").iter_rows():
        assert rate == pytest.approx(means[name], abs=1e-5) if rate is not None else means[name] is None


def test_the_confused_pair_has_its_counts_and_the_largest_overlap() -> None:
    given, _, probs = confused()
    report = ontology_report(*tables(given, probs))
    assert report.schema == PAIR_SCHEMA
    assert tuple(report.columns) == TABLES["ontology_report"].column_names
    top = report.sort("overlap", descending=True).row(0, named=True)
    assert (top["class_a"], top["class_b"], top["n_a_to_b"], top["n_b_to_a"]) == ("boot", "shoe", 10, 30)
    assert top["overlap"] == pytest.approx(40 / 600, abs=0.01)
    assert report.select("class_a", "class_b").rows() == sorted(report.select("class_a", "class_b").rows())
    assert (report["class_a"] < report["class_b"]).all()
    assert "tie" not in set(report["class_b"])


def test_the_noise_estimate_is_a_share_of_the_checked_images_and_none_without_any() -> None:
    given, _, probs = confused()
    assert noise_estimate(tables(given, probs)[1]) == pytest.approx(40 / 600, abs=0.01)
    assert noise_estimate(tables(given, probs, np.zeros(4, dtype=bool))[1]) is None


def test_corrections_are_counted_and_ordered() -> None:
    given, _, probs = confused()
    assert corrections(tables(given, probs)[1], 10).rows() == [("shoe", "boot", 30), ("boot", "shoe", 10)]
    assert corrections(tables(given, probs)[1], 1).height == 1
    assert corrections(pl.DataFrame(schema=ISSUES_SCHEMA), 5).columns == ["given_label", "suggested_label", "count"]


@pytest.mark.parametrize(
    ("given", "n_classes"),
    [(np.zeros(0, dtype=np.int64), 0), (np.zeros(3, dtype=np.int64), 1), (np.full(3, -1), 2)],
    ids=["nothing", "one class", "all unlabelled"],
)
def test_reports_without_anything_checked_are_empty_of_findings(given: np.ndarray, n_classes: int) -> None:
    probs = np.full((len(given), n_classes), 1 / max(n_classes, 1), dtype=np.float32)
    sums, issues = tables(given, probs, np.ones(n_classes, dtype=bool))
    report = class_report(sums, issues)
    assert report.height == sums.height == n_classes
    assert report["noise_rate"].null_count() == n_classes
    assert ontology_report(sums, issues).is_empty()
