"""Flags, scores and reports of the compatibility mode against cleanlab itself, on the same probabilities."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cleanlab import count, dataset, filter, rank

from dq_assets.audit import cleanlab_rules as rules
from dq_assets.audit.confident import label_issues
from dq_assets.audit.rows import NpyRows
from dq_assets.settings import Labels, UserError

pytestmark = pytest.mark.filterwarnings("ignore")


def made(seed: int, n_classes: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, float32 probabilities): missing classes, classes of one image, weak and strong models, ties by rounding."""
    rng = np.random.default_rng([seed, n_classes, n])
    given = rng.integers(0, n_classes, n)
    if rng.random() < 0.3:
        given[given == 0] = n_classes - 1
    if rng.random() < 0.3:
        given[given == 1] = n_classes - 1
        given[0] = 1
    if np.unique(given).size < 2:
        given[0] = (given[0] + 1) % n_classes
    true, wrong = given.copy(), rng.random(n) < rng.choice([0.02, 0.2, 0.4])
    true[wrong] = rng.integers(0, n_classes, wrong.sum())
    logits = rng.normal(size=(n, n_classes)) * rng.choice([0.5, 1, 2])
    logits[np.arange(n), true] += rng.choice([0, 1, 3, 6])
    probs = np.exp(logits)
    if rng.random() < 0.4:
        probs = np.round(probs / probs.sum(axis=1, keepdims=True), int(rng.choice([1, 2]))) + 1e-9
    return given, (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)


CASES = [(seed, n_classes, n) for n_classes, n in ((2, 60), (3, 200), (3, 1500), (50, 400)) for seed in range(8)]


@pytest.mark.parametrize("filter_by", rules.FILTERS)
def test_every_filter_flags_what_cleanlab_flags(filter_by: str) -> None:
    for case in CASES:
        given, probs = made(*case)
        theirs = filter.find_label_issues(given, probs, filter_by=filter_by, n_jobs=1)
        assert np.array_equal(rules.find_label_issues(given, probs, filter_by=filter_by).issues, theirs), case


@pytest.mark.parametrize("filter_by", rules.FILTERS[:3])
@pytest.mark.parametrize("least", [0, 3, 6])
def test_the_least_number_of_images_per_class_acts_as_in_cleanlab(filter_by: str, least: int) -> None:
    for case in CASES[::3]:
        given, probs = made(*case)
        theirs = filter.find_label_issues(given, probs, filter_by=filter_by, min_examples_per_class=least, n_jobs=1)
        ours = rules.find_label_issues(given, probs, filter_by=filter_by, min_examples_per_class=least).issues
        assert np.array_equal(ours, theirs), case


@pytest.mark.parametrize(
    ("method", "adjust"), [(m, a) for m in rules.SCORES for a in (False, True) if not (a and m == rules.SCORES[2])], ids=str
)
def test_every_score_equals_that_of_cleanlab(method: str, adjust: bool) -> None:
    for case in CASES:
        given, probs = made(*case)
        theirs = rank.get_label_quality_scores(given, probs, method=method, adjust_pred_probs=adjust)
        ours = rules.quality_scores(given, probs, method=method, adjust_pred_probs=adjust)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0, err_msg=str(case))


def test_thresholds_joint_counts_overlap_classes_and_health_equal_those_of_cleanlab() -> None:
    for case in CASES:
        given, probs = made(*case)
        found = rules.find_label_issues(given, probs)
        np.testing.assert_allclose(found.thresholds, count.get_confident_thresholds(given, probs), atol=1e-7)
        assert np.array_equal(found.joint, count.compute_confident_joint(given, probs)), case
        assert rules.num_label_issues(found) == count.num_label_issues(given, probs)
        overlap = dataset.find_overlapping_classes(given, probs)
        ours = rules.overlapping_classes(found.joint)
        np.testing.assert_allclose([share for *_, share in ours], overlap["Joint Probability"])
        assert [n for _, _, n, _ in ours] == overlap["Num Overlapping Examples"].to_list()
        assert rules.health(found) == pytest.approx(dataset.overall_label_health_score(given, probs, verbose=False))
        classes = dataset.rank_classes_by_label_quality(given, probs).sort_values("Class Index")
        for name, column in (("label_noise", "Label Noise"), ("inverse_label_noise", "Inverse Label Noise")):
            np.testing.assert_allclose(rules.class_quality(found.joint)[name][classes["Class Index"]], classes[column], atol=1e-9)


def test_a_thousand_classes_from_a_file_are_flagged_alike(tmp_path: Path) -> None:
    given, probs = made(1, 1000, 3000)
    np.save(tmp_path / "p.npy", probs)
    rows = NpyRows(tmp_path / "p.npy")
    for filter_by in ("both", "low_normalized_margin"):
        theirs = filter.find_label_issues(given, probs, filter_by=filter_by, n_jobs=1)
        assert theirs.any()
        assert np.array_equal(rules.find_label_issues(given, rows, filter_by=filter_by).issues, theirs)
    assert np.array_equal(np.load(tmp_path / "p.npy"), probs)


def test_unlabelled_images_change_nothing_for_the_others_and_are_not_flagged() -> None:
    given, probs = made(5, 3, 200)
    partly = np.where(np.arange(200) % 4 == 0, -1, given)
    labelled = partly >= 0
    found = rules.find_label_issues(partly, probs)
    assert np.array_equal(found.issues[labelled], filter.find_label_issues(given[labelled], probs[labelled], n_jobs=1))
    assert not found.issues[~labelled].any()
    scores = rules.quality_scores(partly, probs)
    assert np.array_equal(np.isnan(scores), ~labelled)


def test_the_input_is_left_as_it_was_and_one_class_flags_nothing() -> None:
    given, probs = made(2, 3, 200)
    before = probs.copy()
    rules.quality_scores(given, probs, method="normalized_margin", adjust_pred_probs=True)
    rules.find_label_issues(given, probs, filter_by="both")
    assert np.array_equal(probs, before)
    for filter_by in rules.FILTERS:
        assert not rules.find_label_issues(np.zeros(9, np.int64), np.ones((9, 1), np.float32), filter_by=filter_by).issues.any()
    assert rules.find_label_issues(np.zeros(0, np.int64), np.zeros((0, 3), np.float32)).issues.shape == (0,)


def test_an_unknown_filter_or_score_is_refused() -> None:
    given, probs = made(2, 3, 60)
    with pytest.raises(ValueError, match="There is no filter"):
        rules.find_label_issues(given, probs, filter_by="best")
    with pytest.raises(ValueError, match="There is no score"):
        rules.quality_scores(given, probs, method="best")


def test_the_table_takes_cleanlabs_flags_and_scores_and_keeps_our_error_probability() -> None:
    given, probs = made(3, 3, 1500)
    given[0] = -1
    names, options = ["cat", "dog", "eel"], Labels(filter_by="prune_by_class", quality_score="normalized_margin")
    ours = label_issues(np.arange(1500), given, probs, class_names=names, learnable=np.ones(3, bool), settings=options)
    table, found = rules.with_cleanlab_flags(ours, given, probs, class_names=names, settings=options)
    assert table.schema == ours.schema
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert table["is_label_issue"][1:].to_list() == filter.find_label_issues(given[1:], probs[1:], filter_by="prune_by_class").tolist()
    scores = rank.get_label_quality_scores(given[1:], probs[1:], method="normalized_margin")
    np.testing.assert_allclose(table["label_score"][1:], scores, atol=1e-6)
    assert table.row(0, named=True)["is_label_issue"] is None
    assert table["error_probability"].equals(ours["error_probability"])
    flagged = table.filter("is_label_issue")
    assert flagged["kind"].null_count() == 0
    assert (flagged["suggested_label"] != flagged["given_label"]).all()
    assert table.filter(~pl.col("is_label_issue"))["kind"].null_count() == len(table) - len(flagged) - 1
    assert found.issues.sum() == len(flagged)
    with pytest.raises(UserError, match="adjust"):
        rules.with_cleanlab_flags(
            ours, given, probs, class_names=names, settings=Labels(filter_by="both", quality_score=rules.SCORES[2], adjust_pred_probs=True)
        )
