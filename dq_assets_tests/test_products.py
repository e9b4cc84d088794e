"""Products of chosen pairs are those of all pairs, each by itself."""

from __future__ import annotations

import warnings

import numpy as np

from dq_assets.audit.products import products_at


def test_products_of_chosen_pairs_are_those_of_all_and_depend_on_nothing_else() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 37)).astype(np.float32)
    columns = rng.integers(0, 50, (20, 7))
    columns[3] = 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = products_at(points[:20], points, columns)
    np.testing.assert_allclose(found, np.take_along_axis(points[:20] @ points.T, columns, axis=1), rtol=1e-5, atol=1e-5)
    for row in range(20):
        assert np.array_equal(products_at(points[row : row + 1], points, columns[row : row + 1, ::-1]), found[row : row + 1, ::-1])
        assert np.array_equal(products_at(points[columns[row]], points, np.full((7, 1), row))[:, 0], found[row])
    assert products_at(points[:0], points, np.empty((0, 3), np.int64)).shape == (0, 3)
