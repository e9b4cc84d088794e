"""The most probable classes of each image, from arrays and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dq_assets.audit.candidates import top_classes
from dq_assets.audit.rows import NpyRows


def test_the_given_class_comes_first_and_the_most_probable_learnable_others_follow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(30, 0.2), 500).astype(np.float32)
    learnable = np.flatnonzero(np.arange(30) % 5 != 0)
    given = rng.choice(learnable, 500)
    rows = np.flatnonzero(rng.random(500) < 0.7)
    np.save(tmp_path / "p.npy", probs)
    classes, top = top_classes(given, NpyRows(tmp_path / "p.npy"), rows, learnable, 6)
    assert np.array_equal(classes[:, 0], given[rows])
    assert np.array_equal(top, np.take_along_axis(probs[rows], classes, 1))
    for row, found in zip(rows, classes, strict=True):
        others = [k for k in learnable[np.argsort(-probs[row][learnable], kind="stable")] if k != given[row]]
        assert found[1:].tolist() == others[:5]
    again = top_classes(given, probs, rows, learnable, 6)
    assert np.array_equal(again[0], classes)


def test_equal_probabilities_keep_the_order_of_the_classes_and_one_class_stands_alone() -> None:
    probs = np.full((3, 4), 0.25, np.float32)
    classes, _ = top_classes(np.array([2, 0, 3]), probs, np.arange(3), np.arange(4), 4)
    assert classes.tolist() == [[2, 0, 1, 3], [0, 1, 2, 3], [3, 0, 1, 2]]
    assert top_classes(np.zeros(3, int), np.ones((3, 1), np.float32), np.arange(3), np.arange(1), 1)[0].tolist() == [[0], [0], [0]]
