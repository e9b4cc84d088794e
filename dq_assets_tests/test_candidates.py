"""The most probable classes of each image, from arrays and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dq_assets.audit.candidates import top_classes
from dq_assets.audit.rows import NpyRows, Streamed


def test_the_given_class_comes_first_and_the_most_probable_learnable_others_follow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(30, 0.2), 500).astype(np.float32)
    learnable = np.flatnonzero(np.arange(30) % 5 != 0)
    given = rng.choice(learnable, 500)
    rows = np.flatnonzero(rng.random(500) < 0.7)
    np.save(tmp_path / "p.npy", probs)
    kept = top_classes(given, NpyRows(tmp_path / "p.npy"), rows, learnable, 6)
    classes, top = kept.classes, kept.probs
    assert np.array_equal(kept.right, probs[rows].argmax(axis=1) == given[rows])
    assert np.array_equal(classes[:, 0], given[rows])
    assert np.array_equal(top, np.take_along_axis(probs[rows], classes, 1))
    for row, found in zip(rows, classes, strict=True):
        others = [k for k in learnable[np.argsort(-probs[row][learnable], kind="stable")] if k != given[row]]
        assert found[1:].tolist() == others[:5]
    again = top_classes(given, probs, rows, learnable, 6)
    assert np.array_equal(again.classes, classes)


def test_equal_probabilities_keep_the_order_of_the_classes_and_one_class_stands_alone() -> None:
    probs = np.full((3, 4), 0.25, np.float32)
    found = top_classes(np.array([2, 0, 3]), probs, np.arange(3), np.arange(4), 4)
    assert found.classes.tolist() == [[2, 0, 1, 3], [0, 1, 2, 3], [3, 0, 1, 2]]
    assert found.right.tolist() == [False, True, False]
    alone = top_classes(np.zeros(3, int), np.ones((3, 1), np.float32), np.arange(3), np.arange(1), 1)
    assert alone.classes.tolist() == [[0], [0], [0]]
    assert alone.right.all()


def test_of_a_thousand_classes_the_highest_are_found_among_equal_ones_and_zeros_too() -> None:
    rng = np.random.default_rng(0)
    probs = np.concatenate([
        rng.dirichlet(np.full(1003, 0.02), 300), np.eye(1003)[:50], np.zeros((2, 1003)), np.round(rng.random((50, 1003)), 2)
    ]).astype(np.float32)  # fmt: skip
    before, given = probs.copy(), rng.integers(0, 1003, len(probs))
    given[:100] = probs[:100].argmax(axis=1)
    found = top_classes(given, probs, np.arange(len(probs)), np.arange(1003), 12)
    assert np.array_equal(probs, before)
    rest = probs.copy()
    np.put_along_axis(rest, given[:, None], -1, 1)
    assert np.array_equal(found.probs[:, 1:], -np.sort(-rest, axis=1)[:, :11])
    assert np.array_equal(found.probs, np.take_along_axis(probs, found.classes, 1))
    assert all(np.unique(row).size == 12 for row in found.classes)
    assert np.array_equal(found.right, probs.argmax(axis=1) == given)


@pytest.mark.parametrize("n_classes", [40, 600])
def test_classes_that_are_not_learnable_are_left_out_and_of_equal_ones_the_lowest_are_kept(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    probs = np.round(rng.random((300, n_classes)) ** 4, 2).astype(np.float32)
    probs[0] = -0.0
    learnable = np.flatnonzero(rng.random(n_classes) < 0.9)
    given = rng.choice(learnable, 300)
    found = top_classes(given, probs, np.arange(300), learnable, 8)
    for row, own, classes in zip(probs, given, found.classes, strict=True):
        others = learnable[np.argsort(-row[learnable], kind="stable")]
        assert classes.tolist() == [own, *others[others != own][:7]]
    assert np.array_equal(found.probs, np.take_along_axis(probs, found.classes, 1))
    assert np.array_equal(found.right, probs.argmax(axis=1) == given)


def test_what_is_streamed_gives_the_same_however_it_is_cut_and_a_short_stream_is_refused() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(20, 0.2), 500).astype(np.float32)
    given, rows = rng.integers(0, 20, 500), np.arange(3, 490, 2)
    whole = top_classes(given, probs, rows, np.arange(20), 6)
    cut = top_classes(given, Streamed((500, 20), lambda: iter(np.split(probs, [1, 7, 300]))), rows, np.arange(20), 6)
    assert np.array_equal(whole.classes, cut.classes)
    assert np.array_equal(whole.probs, cut.probs)
    with pytest.raises(ValueError, match="300 rows were read where 500 were expected"):
        top_classes(given, Streamed((500, 20), lambda: iter([probs[:300]])), rows, np.arange(20), 6)
