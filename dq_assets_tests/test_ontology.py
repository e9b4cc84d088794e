"""What the label issues say about classes and pairs of classes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.confident import ISSUES_SCHEMA, label_issues
from dq_assets.audit.ontology import CLASS_SCHEMA, PAIR_SCHEMA, class_report, corrections, noise_estimate, ontology_report
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


def table(given: np.ndarray, probs: np.ndarray, learnable: np.ndarray = LEARNABLE) -> pl.DataFrame:
    return label_issues(np.arange(len(given)), given, probs, class_names=NAMES, learnable=learnable, settings=Labels())


def test_the_class_report_gives_the_planted_rates() -> None:
    given, _, probs = confused()
    report = class_report(given, probs, table(given, probs), class_names=NAMES, learnable=LEARNABLE)
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
    tie = class_report(given, probs, table(given, probs), class_names=NAMES, learnable=LEARNABLE).row(3, named=True)
    assert tie["n"] == 2
    assert not tie["is_learnable"]
    assert (tie["noise_rate"], tie["inverse_noise_rate"], tie["accuracy"]) == (None, None, None)


def test_the_noise_rate_of_a_class_is_the_mean_error_probability_of_its_images() -> None:
    given, _, probs = confused()
    issues = table(given, probs)
    report = class_report(given, probs, issues, class_names=NAMES, learnable=LEARNABLE)
    means = dict(issues.group_by("given_label").agg(pl.col("error_probability").mean()).iter_rows())
    for name, rate in report.select("class_name", "noise_rate").iter_rows():
        assert rate == pytest.approx(means[name], abs=1e-5) if rate is not None else means[name] is None


def test_the_confused_pair_has_its_counts_and_the_largest_overlap() -> None:
    given, _, probs = confused()
    report = ontology_report(given, probs, table(given, probs), class_names=NAMES)
    assert report.schema == PAIR_SCHEMA
    assert tuple(report.columns) == TABLES["ontology_report"].column_names
    top = report.sort("overlap", descending=True).row(0, named=True)
    assert (top["class_a"], top["class_b"], top["n_a_to_b"], top["n_b_to_a"]) == ("boot", "shoe", 10, 30)
    assert top["overlap"] == pytest.approx(40 / 600, abs=0.01)
    assert report.select("class_a", "class_b").rows() == sorted(report.select("class_a", "class_b").rows())
    assert (report["class_a"] < report["class_b"]).all()
    assert "tie" not in set(report["class_b"])


def test_the_classes_may_come_in_any_order() -> None:
    given, _, probs = confused()
    order = np.array([3, 1, 0, 2])
    names = [NAMES[k] for k in order]
    code = np.argsort(order)[given]
    issues = label_issues(np.arange(602), code, probs[:, order], class_names=names, learnable=LEARNABLE[order], settings=Labels())
    report = class_report(code, probs[:, order], issues, class_names=names, learnable=LEARNABLE[order])
    assert report["class_name"].to_list() == NAMES
    top = ontology_report(code, probs[:, order], issues, class_names=names).sort("overlap", descending=True).row(0)
    assert top[:4] == ("boot", "shoe", 10, 30)


def test_the_noise_estimate_is_a_share_of_the_checked_images_and_none_without_any() -> None:
    given, _, probs = confused()
    assert noise_estimate(table(given, probs)) == pytest.approx(40 / 600, abs=0.01)
    assert noise_estimate(table(given, probs, np.zeros(4, dtype=bool))) is None


def test_corrections_are_counted_and_ordered() -> None:
    given, _, probs = confused()
    assert corrections(table(given, probs), 10).rows() == [("shoe", "boot", 30), ("boot", "shoe", 10)]
    assert corrections(table(given, probs), 1).height == 1
    assert corrections(pl.DataFrame(schema=ISSUES_SCHEMA), 5).columns == ["given_label", "suggested_label", "count"]


@pytest.mark.parametrize(
    ("given", "n_classes"),
    [(np.zeros(0, dtype=np.int64), 0), (np.zeros(3, dtype=np.int64), 1), (np.full(3, -1), 2)],
    ids=["nothing", "one class", "all unlabelled"],
)
def test_reports_without_anything_checked_are_empty_of_findings(given: np.ndarray, n_classes: int) -> None:
    probs = np.full((len(given), n_classes), 1 / max(n_classes, 1), dtype=np.float32)
    names, learnable = NAMES[:n_classes], np.ones(n_classes, dtype=bool)
    issues = label_issues(np.arange(len(given)), given, probs, class_names=names, learnable=learnable, settings=Labels())
    report = class_report(given, probs, issues, class_names=names, learnable=learnable)
    assert report.height == n_classes
    assert report["noise_rate"].null_count() == n_classes
    assert ontology_report(given, probs, issues, class_names=names).is_empty()
