"""multi_label is called where a vector is a mixture of two, not where an image is between two classes, and only if that can be told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.kinds import features, mixture_weights, with_multi_label
from dq_assets.settings import Labels

N, MIXED, BETWEEN, DIM = 900, 40, 60, 96
OPTIONS = Labels(multi_label_rate=0.01)


def world(seed: int = 0) -> tuple[np.ndarray, pl.DataFrame]:
    """Vectors of three classes of sparse features, then mixtures of two classes, then images between two classes; and label_issues."""
    rng = np.random.default_rng(seed)
    centres = rng.gamma(0.3, size=(3, DIM))

    def drawn(centre: np.ndarray) -> np.ndarray:
        found: np.ndarray = centre * rng.gamma(0.7, size=(len(centre), DIM)) + 0.01 * rng.gamma(0.3, size=(len(centre), DIM))
        return found

    label = rng.integers(0, 3, N)
    a, b = label[:MIXED], (label[:MIXED] + 1) % 3
    mixed = (drawn(centres[a]) + drawn(centres[b])) / 2
    c, d = label[-BETWEEN:], (label[-BETWEEN:] + 1) % 3
    between = drawn(np.sqrt(centres[c] * centres[d]))  # one thing, with features of both
    vectors = np.concatenate([drawn(centres[label]), mixed, between]).astype(np.float32) * rng.uniform(0.5, 9, (N + MIXED + BETWEEN, 1))
    given, other = np.concatenate([label, a, c]), np.concatenate([label, b, d])
    names, flagged = np.array(["ant", "bee", "cat"]), np.arange(len(given)) >= N
    table = pl.DataFrame(
        {
            "image_id": np.arange(len(given)) * 3,
            "given_label": names[given],
            "suggested_label": names[other],
            "is_label_issue": flagged,
            "p_given": np.where(flagged, 0.3, 0.9).astype(np.float32),
            "p_suggested": np.where(flagged, 0.6, 0.9).astype(np.float32),
            "kind": pl.Series(np.where(flagged, "ambiguous", "")).replace("", None),
            "candidate_labels": names[other][:, None].tolist(),
        }
    )
    return vectors.astype(np.float32), table


def reader(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def take(rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        return vectors[rows]

    return take


def called(table: pl.DataFrame) -> np.ndarray:
    return np.flatnonzero((table["kind"] == "multi_label").fill_null(value=False))


def test_mixtures_are_called_and_images_between_two_classes_are_not() -> None:
    vectors, table = world()
    rows = called(with_multi_label(table, reader(vectors), OPTIONS))
    right = ((rows >= N) & (rows < N + MIXED)).sum()
    assert right >= 0.8 * MIXED
    assert (rows >= N + MIXED).sum() <= 0.1 * BETWEEN
    assert (rows >= N).all()


def test_both_labels_are_candidates_the_more_probable_first_and_nothing_else_changes() -> None:
    vectors, table = world()
    table = table.with_columns(candidate_labels=pl.Series([["dog"]] * len(table)))
    found = with_multi_label(table, reader(vectors), OPTIONS)
    rows = called(found)
    for row in found[rows].iter_rows(named=True):
        assert row["candidate_labels"] == ["dog", row["suggested_label"], row["given_label"]]
    rest = np.setdiff1d(np.arange(len(table)), rows)
    assert found[rest].equals(table[rest])
    assert found.drop("kind", "candidate_labels").equals(table.drop("kind", "candidate_labels"))
    assert dict(found.schema) == dict(table.schema)
    likely = table.with_columns(p_given=pl.lit(0.7, pl.Float32), candidate_labels=pl.concat_list("given_label"))
    first = with_multi_label(likely, reader(vectors), OPTIONS)[rows].row(0, named=True)
    assert first["candidate_labels"] == [first["given_label"], first["suggested_label"]]


def test_only_ambiguous_images_are_called() -> None:
    vectors, table = world()
    sure = table.with_columns(kind=pl.when(pl.col("kind") == "ambiguous").then(pl.lit("mislabeled")))
    assert with_multi_label(sure, reader(vectors), OPTIONS).equals(sure)


def test_a_higher_rate_calls_more_and_all_that_a_lower_one_calls() -> None:
    vectors, table = world()
    rows = [set(called(with_multi_label(table, reader(vectors), Labels(multi_label_rate=rate)))) for rate in (0.002, 0.02, 0.1)]
    assert rows[0] <= rows[1] <= rows[2]
    assert len(rows[0]) < len(rows[2])


def test_the_answer_is_the_same_each_time_and_at_every_scale() -> None:
    vectors, table = world()
    first = with_multi_label(table, reader(vectors), OPTIONS)
    assert first.equals(with_multi_label(table, reader(vectors), OPTIONS))
    scaled = with_multi_label(table, reader(1000 * vectors), OPTIONS)
    assert len(set(called(first)) ^ set(called(scaled))) <= 1


@pytest.mark.parametrize("why", ["rate 0", "few", "one class", "signed", "nothing checked"])
def test_none_is_called_where_it_cannot_be_told(why: str) -> None:
    vectors, table = world()
    options = Labels(multi_label_rate=0.0) if why == "rate 0" else OPTIONS
    if why == "few":  # 99 unflagged images have no highest percent
        keep = np.r_[0:99, N : len(table)]
        vectors, table = vectors[keep], table[keep]
    if why == "one class":
        table = table.with_columns(given_label=pl.lit("ant"))
    if why == "signed":
        vectors = vectors - vectors.mean(axis=0)
    if why == "nothing checked":
        table = table.with_columns(is_label_issue=pl.lit(None, pl.Boolean), kind=pl.lit(None, pl.String))
    assert with_multi_label(table, reader(vectors), options).equals(table)


def test_zero_and_equal_vectors_give_finite_weights() -> None:
    vectors = np.zeros((50, 8), np.float32)
    labels = np.arange(50) % 2
    assert np.isfinite(mixture_weights(vectors, labels)).all()
    assert np.isfinite(mixture_weights(vectors + 1, labels)).all()
    assert np.isfinite(features(vectors)).all()
