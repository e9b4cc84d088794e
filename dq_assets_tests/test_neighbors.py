"""Nearest neighbours against brute force, with ties and copies planted where a float32 search would get them wrong."""

from __future__ import annotations

import numpy as np
import pytest

from dq_assets.audit import neighbors
from dq_assets.audit.neighbors import nearest_neighbors


def brute_force(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition, row by row: half the squared distance of unit vectors, other rows only, by distance and then by position."""
    unit = (vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
    ids, distances = [], []
    for i in range(len(unit)):
        gaps = (0.5 * np.square(unit - unit[i]).sum(axis=1)).astype(np.float32)
        gaps[gaps < 1e-13] = 0
        others = [j for j in np.lexsort((np.arange(len(unit)), gaps)) if j != i][:k]
        ids.append(others)
        distances.append(gaps[others])
    return np.array(ids).reshape(len(unit), -1), np.array(distances, np.float32).reshape(len(unit), -1)


def random_rows(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def corners(n: int) -> np.ndarray:
    """Rows of a signed grid: hundreds of distances that are equal to the bit, in the middle of the cut."""
    return np.random.default_rng(5).choice([-1.0, 1.0], size=(n, 16)).astype(np.float32)


def with_copies() -> np.ndarray:
    rows = random_rows(120)
    rows[[7, 30, 31, 90]] = rows[3]  # a small group
    rows[40:75] = rows[39]  # more copies than k
    rows[100] = rows[99] * 2  # the same direction, exactly
    return rows


@pytest.mark.parametrize("k", [1, 5, 10, 1000], ids=lambda k: f"k={k}")
@pytest.mark.parametrize(
    "vectors",
    [random_rows(200), with_copies(), np.ones((60, 8), np.float32), corners(150), np.eye(64, dtype=np.float32), random_rows(3)],
    ids=["random", "copies", "all identical", "tied corners", "orthogonal", "three rows"],
)
def test_the_result_is_that_of_brute_force(vectors: np.ndarray, k: int) -> None:
    ids, distances = nearest_neighbors(vectors, k, block=64)
    expected_ids, expected = brute_force(vectors, k)
    assert ids.dtype == np.int64
    assert distances.dtype == np.float32
    assert ids.shape == distances.shape == (len(vectors), min(k, len(vectors) - 1))
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(ids, expected_ids)


def test_a_row_is_never_its_own_neighbour_and_every_neighbour_is_named_once() -> None:
    for vectors in (with_copies(), np.ones((60, 8), np.float32), corners(150)):
        ids, distances = nearest_neighbors(vectors, 10)
        assert not (ids == np.arange(len(ids))[:, None]).any()
        assert all(len(set(row)) == 10 for row in ids.tolist())
        assert (np.diff(distances, axis=1) >= 0).all()


def test_copies_are_at_distance_zero_and_come_in_order_of_position() -> None:
    ids, distances = nearest_neighbors(with_copies(), 4)
    assert ids[30].tolist() == [3, 7, 31, 90]
    assert distances[30].tolist() == [0, 0, 0, 0]
    assert ids[60].tolist() == [39, 40, 41, 42]
    assert distances[99, 0] == distances[100, 0] == 0


def test_scaling_a_vector_changes_nothing() -> None:
    vectors = random_rows(50)
    lengths = np.geomspace(1e-25, 1e25, 50).astype(np.float32)[:, None]
    np.testing.assert_array_equal(nearest_neighbors(vectors * lengths, 5)[0], nearest_neighbors(vectors, 5)[0])


def test_opposite_vectors_are_at_distance_two() -> None:
    ids, distances = nearest_neighbors(np.array([[0.3, 0.1], [-0.3, -0.1]], np.float32), 3)
    assert ids.tolist() == [[1], [0]]
    np.testing.assert_allclose(distances, 2, rtol=1e-6)
    assert distances.max() <= 2


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_sets_work(n: int) -> None:
    ids, distances = nearest_neighbors(random_rows(n), 10)
    assert ids.shape == distances.shape == (n, max(0, n - 1))


def test_rows_closer_than_the_noise_of_an_inner_product_are_still_in_order() -> None:
    # 1 - cosine of about 1e-9, a hundredth of float32's resolution near 1: an inner product alone orders these by chance.
    base = np.ones(64, np.float32)
    steps = np.arange(1, 41, dtype=np.float32)[:, None] * np.eye(64, dtype=np.float32)[0] * 4e-5
    vectors = np.concatenate([base + steps[::-1], random_rows(100, 64, 2)])
    ids, distances = nearest_neighbors(vectors, 3)
    expected_ids, expected = brute_force(vectors, 3)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_the_block_size_changes_no_bit() -> None:
    vectors = np.concatenate([with_copies(), corners(100) @ random_rows(16)])
    results = [nearest_neighbors(vectors, 7, block=block) for block in (1, 13, 10_000)]
    for ids, distances in results[1:]:
        np.testing.assert_array_equal(ids, results[0][0])
        np.testing.assert_array_equal(distances, results[0][1])


def test_small_work_areas_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = nearest_neighbors(corners(150), 10)
    monkeypatch.setattr(neighbors, "RERANK_FLOATS", 100)
    np.testing.assert_array_equal(nearest_neighbors(corners(150), 10)[0], expected[0])


@pytest.mark.parametrize(("value", "rows"), [(0.0, [4]), (np.nan, [2, 4]), (np.inf, [0])], ids=["zero", "nan", "inf"])
def test_zero_and_non_finite_vectors_are_refused_by_name(value: float, rows: list[int]) -> None:
    vectors = random_rows(6)
    vectors[rows] = value
    with pytest.raises(ValueError, match=rf"{len(rows)} of 6 vectors .*rows {', '.join(map(str, rows))}\)"):
        nearest_neighbors(vectors, 3)


def test_progress_ends_at_the_number_of_rows() -> None:
    seen: list[int] = []
    nearest_neighbors(with_copies(), 3, block=20, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 120
