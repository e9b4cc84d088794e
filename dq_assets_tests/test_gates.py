"""Each gate passes, fails or could not be run for a reason that a person can read in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from dq_assets.audit.gates import ADVISORY, GATES, Gate, evaluate_gates
from dq_assets.settings import Gates


def verdicts(
    labels: Sequence[str | None],
    *,
    statuses: Sequence[str] | None = None,
    splits: Sequence[str | None] | None = None,
    final: Sequence[str | None] | None = None,
    actions: Sequence[str] | None = None,
    error_probability: Sequence[float | None] | None = None,
    groups: Sequence[int | None] | None = None,
    unlearnable: Sequence[str] = (),
    stale: Sequence[str] = (),
    **limits: Any,
) -> dict[str, Gate]:
    """Every gate on a dataset of len(labels) images."""
    n = len(labels)
    ids = pl.Series("image_id", range(n), pl.Int64)
    manifest = pl.DataFrame(
        {"image_id": ids, "given_label": labels, "split": splits or [None] * n, "status": statuses or ["ok"] * n},
        schema_overrides={"given_label": pl.String, "split": pl.String, "status": pl.String},
    )
    fine = manifest.filter(pl.col("status") == "ok").select("image_id")
    names = sorted({label for label in labels if label is not None})
    gates = evaluate_gates(
        manifest=manifest,
        curated=pl.DataFrame(
            {"image_id": ids, "final_label": final or labels, "action": actions or ["keep"] * n},
            schema_overrides={"final_label": pl.String, "action": pl.String},
        ),
        label_issues=pl.DataFrame(
            {"image_id": ids, "error_probability": error_probability or [0.0] * n}, schema_overrides={"error_probability": pl.Float32}
        ).join(fine, on="image_id"),
        near_dups=pl.DataFrame({"image_id": ids, "group_id": groups or [None] * n}, schema_overrides={"group_id": pl.Int64}).join(
            fine, on="image_id"
        ),
        class_report=pl.DataFrame(
            {"class_name": names, "is_learnable": [name not in unlearnable for name in names]},
            schema={"class_name": pl.String, "is_learnable": pl.Boolean},
        ),
        stale=list(stale),
        limits=Gates(**limits),
    )
    assert [gate.check_name for gate in gates] == list(GATES)
    for gate in gates:
        assert gate.blocking is (gate.check_name not in ADVISORY)
        assert gate.reason
        assert "\n" not in gate.reason
        assert (gate.value is None) == (gate.verdict == "not_run")
        assert all(type(number) in (float, type(None)) for number in (gate.value, gate.limit_value))
    return {gate.check_name: gate for gate in gates}


def test_good_data_passes_every_gate() -> None:
    assert {gate.verdict for gate in verdicts(["cat"] * 5 + ["dog"] * 5).values()} == {"passed"}


def test_data_without_labels_cannot_pass_what_needs_labels() -> None:
    gates = verdicts([None] * 3, error_probability=[None] * 3)
    assert {name for name, gate in gates.items() if gate.verdict == "not_run"} == {"class_minimum", "noise_estimate"}


def test_no_data_at_all_is_not_passed() -> None:
    gates = verdicts([])
    assert {name: gates[name].verdict for name in ("unreadable_share", "class_minimum", "noise_estimate")} == dict.fromkeys(
        ("unreadable_share", "class_minimum", "noise_estimate"), "not_run"
    )


def test_outdated_tables_are_named() -> None:
    gate = verdicts(["cat"] * 5, stale=["folds", "oof_probs"])["tables_consistent"]
    assert (gate.verdict, gate.value, gate.reason) == ("failed", 2, "outdated: folds, oof_probs")


@pytest.mark.parametrize(("n_bad", "verdict"), [(0, "passed"), (1, "passed"), (2, "failed"), (10, "failed")])
def test_the_share_of_unreadable_files_may_reach_its_limit_and_not_pass_it(n_bad: int, verdict: str) -> None:
    gate = verdicts(["cat"] * 10, statuses=["missing"] * n_bad + ["ok"] * (10 - n_bad), max_unreadable_share=0.1)["unreadable_share"]
    assert (gate.verdict, gate.value) == (verdict, n_bad / 10)
    assert gate.reason == f"{n_bad} of 10 files could not be read ({n_bad / 10:.2%}, limit 10.00%)"


# Classes


@pytest.mark.parametrize(("limit", "verdict"), [(0, "passed"), (3, "passed"), (4, "failed")])
def test_the_smallest_class_is_held_against_the_limit(limit: int, verdict: str) -> None:
    gate = verdicts(["cat"] * 5 + ["dog"] * 3, min_class_images=limit)["class_minimum"]
    assert (gate.verdict, gate.value) == (verdict, 3)
    assert "'dog' has 3 images" in gate.reason


def test_a_class_that_curation_emptied_counts_as_zero() -> None:
    gate = verdicts(["cat"] * 5 + ["dog"] * 2, actions=["keep"] * 5 + ["drop"] * 2)["class_minimum"]
    assert (gate.verdict, gate.value) == ("failed", 0)
    gate = verdicts(["cat"] * 5 + ["dog"] * 2, final=["cat"] * 7)["class_minimum"]
    assert (gate.verdict, gate.value) == ("failed", 0)


def test_a_class_that_only_curation_knows_counts_too() -> None:
    gate = verdicts(["cat"] * 6, final=["cat"] * 5 + ["lynx"])["class_minimum"]
    assert (gate.verdict, gate.value) == ("failed", 1)
    assert "'lynx'" in gate.reason


def test_unlabelled_images_are_no_class_and_ties_go_by_name() -> None:
    gate = verdicts(["b", None, "a", None, None], min_class_images=1)["class_minimum"]
    assert (gate.verdict, gate.value) == ("passed", 1)
    assert "'a'" in gate.reason


def test_all_images_dropped_is_a_failure() -> None:
    assert verdicts(["cat"] * 5, actions=["drop"] * 5)["class_minimum"].verdict == "failed"


def test_a_hostile_class_name_stays_on_one_line() -> None:
    gates = verdicts(["a\nb\x1b[31m"], unlearnable=["a\nb\x1b[31m"])
    assert gates["class_minimum"].reason.isprintable()
    assert gates["unlearnable_classes"].reason.isprintable()


# Noise


@pytest.mark.parametrize(
    ("probabilities", "verdict", "value"),
    [([0.25, 0.25], "passed", 0.25), ([0.5, 0.25], "failed", 0.375), ([0.5, None], "failed", 0.5), ([0.25, float("nan")], "passed", 0.25)],
)
def test_the_noise_is_the_mean_over_the_checked_labels(probabilities: list[float | None], verdict: str, value: float) -> None:
    gate = verdicts(["cat", "dog"], error_probability=probabilities, max_noise_rate=0.25)["noise_estimate"]
    assert (gate.verdict, gate.value) == (verdict, value)


@pytest.mark.parametrize("probabilities", [[None, None], [float("nan"), None]], ids=["null", "nan"])
def test_noise_that_could_not_be_estimated_is_not_passed(probabilities: list[float | None]) -> None:
    assert verdicts(["cat", "dog"], error_probability=probabilities)["noise_estimate"].verdict == "not_run"


def test_a_dataset_without_a_readable_image_has_no_estimate() -> None:
    gates = verdicts(["cat", "dog"], statuses=["unreadable", "missing"], actions=["drop", "drop"])
    assert gates["noise_estimate"].verdict == "not_run"
    assert gates["unreadable_share"].verdict == "failed"


# Leakage


@pytest.mark.parametrize(
    ("splits", "n"),
    [
        (["train", "test"], 1),
        (["train", "validation"], 1),
        (["test", "validation"], 1),
        ([None, "test"], 1),
        (["train", "train"], 0),
        ([None, "train"], 0),
        (["train", "unused"], 0),
        ([None, "unused"], 0),
    ],
    ids=str,
)
def test_a_group_that_stands_in_two_splits_leaks(splits: list[str | None], n: int) -> None:
    gate = verdicts(["cat"] * 2, splits=splits, groups=[0, 0])["split_leakage"]
    assert (gate.value, gate.verdict) == (n, "failed" if n else "passed")


def test_a_group_over_three_splits_is_one_leak_and_the_limit_may_allow_it() -> None:
    splits, groups = ["train", "validation", "test", "train", "test"], [0, 0, 0, 3, None]
    assert verdicts(["cat"] * 5, splits=splits, groups=groups)["split_leakage"].value == 1
    assert verdicts(["cat"] * 5, splits=splits, groups=groups, max_leaks=1)["split_leakage"].verdict == "passed"


def test_a_leak_that_curation_dropped_is_none() -> None:
    gates = verdicts(["cat"] * 2, splits=["train", "test"], groups=[0, 0], actions=["drop", "keep"])
    assert gates["split_leakage"].verdict == "passed"


def test_a_dataset_without_splits_has_no_leaks_and_says_so() -> None:
    gate = verdicts(["cat"] * 2, groups=[0, 0])["split_leakage"]
    assert (gate.verdict, gate.value, gate.reason) == ("passed", 0, "the dataset has no splits")


def test_classes_that_cannot_be_learnt_are_named_and_do_not_block() -> None:
    gate = verdicts(["a", "b", "c"], unlearnable=["c", "a"])["unlearnable_classes"]
    assert (gate.verdict, gate.blocking, gate.value, gate.reason) == ("failed", False, 2, "not checked: 'a', 'c'")
