"""The index against brute force: what it must find, what it measures of itself, and that it is the same every time."""

from __future__ import annotations

import os

import numpy as np
import pytest

from dq_assets.audit import cell_search, cells, neighbors
from dq_assets.audit.neighbors import Graph, nearest_neighbors, neighbor_graph
from dq_assets.settings import Neighbors

INDEX = Neighbors(k=10, exact_up_to=0)


def clustered(n: int = 4000, d: int = 200, seed: int = 0) -> np.ndarray:
    """Clusters of very different size and width in 24 of 200 dimensions, and some noise in all."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 24))
    cluster = rng.choice(40, n, p=(1 / np.arange(1, 41)) / (1 / np.arange(1, 41)).sum())
    hidden = centres[cluster] + rng.lognormal(-0.7, 0.4, 40)[cluster, None] * rng.standard_t(4, (n, 24))
    return (hidden @ rng.normal(size=(24, d)) + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


def shared(graph: Graph, vectors: np.ndarray, k: int = 10) -> float:
    exact, _ = nearest_neighbors(vectors, k)
    return float((graph.positions[:, :, None] == exact[:, None, :]).any(axis=2).mean())


def test_the_measured_recall_is_what_was_asked_for_and_is_true() -> None:
    vectors = clustered()
    graph = neighbor_graph(vectors, INDEX)
    assert graph.recall >= INDEX.recall
    assert shared(graph, vectors) == pytest.approx(graph.recall, abs=0.015)


def test_what_is_found_is_in_order_at_the_distance_of_brute_force() -> None:
    vectors = clustered()
    vectors[2000:2500] = vectors[:500] * np.random.default_rng(2).normal(1, 0.01, (500, 200)).astype(np.float32)
    graph = neighbor_graph(vectors, INDEX)
    exact_ids, exact = nearest_neighbors(vectors, 10)
    both = graph.positions == exact_ids
    np.testing.assert_allclose(graph.distances[both], exact[both], atol=neighbors.NOISE)
    small = both & (exact < neighbors.SMALL)
    assert small.sum() > 900
    np.testing.assert_array_equal(graph.distances[small], exact[small])
    assert (np.diff(graph.distances, axis=1) >= 0).all()
    assert not (graph.positions == np.arange(len(vectors))[:, None]).any()
    assert all(len(set(row)) == 10 for row in graph.positions.tolist())


def test_all_copies_are_found_at_distance_zero() -> None:
    vectors = clustered()
    rng = np.random.default_rng(1)
    chosen = rng.permutation(len(vectors))
    vectors[chosen[:300]] = vectors[chosen[300:600]]
    vectors[chosen[600:625]] = vectors[chosen[625]]  # more copies than k
    graph = neighbor_graph(vectors, INDEX)
    assert (graph.positions[chosen[:300], 0] == chosen[300:600]).all()
    assert (graph.distances[chosen[:300], 0] == 0).all()
    assert (graph.distances[chosen[600:626]] == 0).all()


def test_vectors_without_structure_reach_the_recall_too() -> None:
    vectors = np.random.default_rng(2).normal(size=(3000, 100)).astype(np.float32)
    graph = neighbor_graph(vectors, INDEX)
    assert graph.recall >= INDEX.recall
    assert shared(graph, vectors) >= 0.97


def test_thousands_of_vectors_that_the_projection_cannot_tell_apart_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PROJECTED", 2)
    vectors = np.random.default_rng(3).normal(size=(3000, 40)).astype(np.float32)
    vectors[:, 2:] *= 1e-6
    vectors[:1500, :2] = [3, 4]
    graph = neighbor_graph(vectors, INDEX)
    assert graph.positions.min() >= 0
    assert (graph.distances[:1500] < 1e-9).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    expected = neighbor_graph(clustered(2000), INDEX)
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    again = neighbor_graph(clustered(2000), INDEX)
    np.testing.assert_array_equal(again.positions, expected.positions)
    np.testing.assert_array_equal(again.distances, expected.distances)


def test_cells_of_an_earlier_search_are_used_and_give_the_same_answer() -> None:
    vectors = clustered(2500)
    first = neighbor_graph(vectors, INDEX)
    assert first.cells is not None
    again = neighbor_graph(vectors, INDEX, cells=first.cells)
    assert again.cells is not None
    assert again.cells.digest() == first.cells.digest()
    np.testing.assert_array_equal(again.positions, first.positions)
    grown = neighbor_graph(np.concatenate([vectors, clustered(500, seed=9)]), INDEX, cells=first.cells)
    assert grown.recall >= 0.98
    np.testing.assert_array_equal(grown.cells.rotation if grown.cells else None, first.cells.rotation)


@pytest.mark.parametrize("n_centres", [60, 1500], ids=["few", "by district"])
def test_the_cell_of_a_vector_depends_on_nothing_but_the_vector(n_centres: int) -> None:
    points = clustered(3000)[:, :64]
    centres = points[:: 3000 // n_centres]
    everyone = cells.nearest_centres(points, centres)
    np.testing.assert_array_equal(cells.nearest_centres(points[1000:1001], centres), everyone[1000:1001])
    np.testing.assert_array_equal(cells.nearest_centres(points[::-1].copy(), centres)[::-1], everyone)


def test_nearly_all_vectors_are_in_the_cell_of_the_nearest_of_many_centres() -> None:
    points = clustered(6000)[:, :64]
    centres = points[::3]
    found = cells.nearest_centres(points, centres)
    nearest = np.square(points[:, None, :8] - centres[None, :, :8]).sum(axis=2)
    for start in range(8, 64, 8):
        nearest += np.square(points[:, None, start : start + 8] - centres[None, :, start : start + 8]).sum(axis=2)
    assert (found[:, 0] == nearest.argmin(axis=1)).mean() > 0.95
    assert (found[::3, 0] == np.arange(2000)).mean() > 0.99  # a centre is in its own cell


def test_many_equal_centres_leave_no_vector_without_a_cell() -> None:
    points = np.repeat(np.eye(2, 8, dtype=np.float32), 2000, axis=0)
    found = cells.nearest_centres(points, points[::2])
    assert ((points[::2][found[:, 0]] == points).all(axis=1)).all()


@pytest.mark.parametrize(
    "vectors",
    [np.ones((500, 8), np.float32), np.repeat(np.eye(30, dtype=np.float32), 40, axis=0), clustered(150)],
    ids=["all identical", "mostly copies", "few"],
)
def test_where_nearly_all_rows_would_be_candidates_the_search_is_exact(vectors: np.ndarray) -> None:
    graph = neighbor_graph(vectors, INDEX)
    exact = nearest_neighbors(vectors, 10)
    assert (graph.recall, graph.cells) == (1.0, None)
    np.testing.assert_array_equal(graph.positions, exact[0])
    np.testing.assert_array_equal(graph.distances, exact[1])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_sets_work(n: int) -> None:
    graph = neighbor_graph(clustered(5)[:n], INDEX)
    assert graph.positions.shape == (n, max(0, n - 1))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf], ids=["zero", "nan", "inf"])
def test_zero_and_non_finite_vectors_are_refused_by_name(value: float) -> None:
    vectors = clustered(300)
    vectors[7] = value
    with pytest.raises(ValueError, match=r"1 of 300 vectors .*rows 7\)"):
        neighbor_graph(vectors, INDEX)


def test_progress_rises_and_ends_at_the_number_of_rows() -> None:
    seen: list[int] = []
    neighbor_graph(clustered(1500), INDEX, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1500


def partly_searched() -> tuple[np.ndarray, np.ndarray, cell_search.Best, np.ndarray]:
    """Unit points, the order of one narrow partition, what it found, and the 10 nearest of each."""
    points = clustered(d=64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    best = np.full((4000, 30), -1, np.int32), np.full((4000, 30), -3, np.float32)
    order = cell_search._search(points, cells.drawn(points, 32, np.random.default_rng(0)), 300, best)
    return points, order, best, nearest_neighbors(points, 10)[0]


def assert_candidates(points: np.ndarray, best: cell_search.Best) -> None:
    full = best[0] >= 0
    np.testing.assert_allclose(best[1][full], np.einsum("nd,nkd->nk", points, points[best[0]])[full], atol=1e-5)
    assert not (best[0] == np.arange(len(points))[:, None]).any()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in best[0])


def test_rows_that_are_far_from_all_are_compared_with_all() -> None:
    points, _, best, exact = partly_searched()
    far = np.argsort(best[1].mean(axis=1))[:80]
    assert cell_search._recall(exact[far], best[0][far]) < cell_search._recall(exact, best[0]) - 0.1
    cell_search._search_loose(points, best)
    assert cell_search._recall(exact[far], best[0][far]) == 1
    assert_candidates(points, best)


def test_candidates_of_candidates_add_to_the_recall() -> None:
    points, order, best, exact = partly_searched()
    before = cell_search._recall(exact, best[0])
    cell_search._search_around(points, order, best)
    assert cell_search._recall(exact, best[0]) > before + 0.02
    assert_candidates(points, best)
