"""The evidence on a flagged label names the nearest images under either label, copies left out, whatever the graph holds."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dq_assets.audit import evidence
from dq_assets.audit.evidence import PER_LABEL, Flagged, label_evidence, n_nearer_suggested
from dq_assets.audit.neighbors import nearest_neighbors

NAMES = ["ant", "bee", "cat"]


def world(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of three classes that overlap, and their labels, some wrong, some missing."""
    rng = np.random.default_rng(seed)
    given = rng.integers(0, 3, n)
    vectors = (rng.normal(size=(n, 24)) + 1.2 * rng.normal(size=(3, 24))[given]).astype(np.float32) * rng.uniform(0.1, 9, (n, 1))
    given[rng.random(n) < 0.1] = -1
    return vectors.astype(np.float32), given


def found(vectors: np.ndarray, given: np.ndarray, rows: np.ndarray, group: np.ndarray | None = None, k: int = 10) -> pl.DataFrame:
    """label_evidence of some rows, each suggested the class after its own; ids are ten times the positions."""
    near, far = nearest_neighbors(vectors, k)
    flagged = Flagged(rows, (given[rows] + 1) % 3, near[rows], far[rows])
    groups = np.full(len(given), -1) if group is None else group
    return label_evidence(np.arange(len(given)) * 10, given, groups, flagged, lambda at: vectors[at], NAMES)


def brute(vectors: np.ndarray, given: np.ndarray, rows: np.ndarray, row: int, label: int, group: np.ndarray) -> list[int]:
    """Ids of the nearest images of a label, one per group, none of the row's own and none of the flagged rows."""
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    distance = 1 - unit @ unit[row]
    seen: set[int] = set()
    chosen: list[int] = []
    for at in np.argsort(distance, kind="stable"):
        key = int(group[at]) if group[at] >= 0 else -1 - int(at)
        if given[at] != label or at in rows or key in seen or (group[at] >= 0 and group[at] == group[row]):
            continue
        seen.add(key)
        chosen.append(int(at) * 10)
    return chosen[:PER_LABEL]


def flagged_rows(given: np.ndarray, step: int = 7) -> np.ndarray:
    return np.flatnonzero(given >= 0)[::step]


@pytest.mark.parametrize("k", [1, 10, 60])
def test_the_neighbours_are_those_of_brute_force_whatever_the_graph_holds(k: int) -> None:
    vectors, given = world()
    rows = flagged_rows(given)
    group = np.full(len(given), -1)
    table = found(vectors, given, rows, k=k)
    for row in rows:
        own = table.filter(image_id=int(row) * 10)
        for role, label in (("given", given[row]), ("suggested", (given[row] + 1) % 3)):
            part = own.filter(role=role)
            assert part["neighbor_id"].to_list() == brute(vectors, given, rows, int(row), int(label), group)
            assert part["rank"].to_list() == [1, 2, 3]
            assert set(part["label"]) == {NAMES[label]}
            assert part["distance"].is_sorted()


def test_copies_are_no_evidence_and_a_group_speaks_once() -> None:
    vectors, given = world()
    rows = flagged_rows(given)
    group = np.full(len(given), -1)
    for row in rows[:20]:  # its nearest image is a copy of it, and two more are copies of the next
        near = nearest_neighbors(vectors, 4)[0][row]
        if (group[near] < 0).all() and group[row] < 0:
            vectors[near[0]], group[[row, near[0]]] = 3 * vectors[row], min(row, near[0])
            vectors[near[2:]], group[near[1:]] = vectors[near[1]], near[1:].min()
    assert (group >= 0).sum() >= 50
    table = found(vectors, given, rows, group)
    for row in rows:
        for role, label in (("given", given[row]), ("suggested", (given[row] + 1) % 3)):
            ids = table.filter(image_id=int(row) * 10, role=role)["neighbor_id"].to_numpy() // 10
            expected = np.array(brute(vectors, given, rows, int(row), int(label), group)) // 10
            keys = [[group[at] if group[at] >= 0 else -1 - at for at in part] for part in (ids, expected)]
            assert keys[0] == keys[1]


def test_a_class_with_too_few_pictures_has_fewer_rows_and_none_if_all_are_flagged() -> None:
    vectors, given = world(60)
    given[:] = 0
    given[[5, 9]] = 1
    given[7] = 2  # its only image, and flagged
    table = found(vectors, given, np.array([5, 7]))
    shown = {(row["image_id"], row["role"]): row["n"] for row in table.group_by("image_id", "role").agg(n=pl.len()).iter_rows(named=True)}
    assert shown == {(50, "given"): 1, (70, "suggested"): 3}


def test_a_large_class_is_sampled_and_what_the_graph_knows_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, given = world()
    rows = flagged_rows(given)
    whole = found(vectors, given, rows)
    monkeypatch.setattr(evidence, "MOST", 20)
    monkeypatch.setattr(evidence, "_ROWS", 50)
    monkeypatch.setattr(evidence, "_QUERIES", 4)
    asked: list[int] = []
    near, far = nearest_neighbors(vectors, 10)

    def take(at: np.ndarray) -> np.ndarray:
        asked.append(at.size)
        assert (np.diff(at) > 0).all()
        return vectors[at]

    flagged = Flagged(rows, (given[rows] + 1) % 3, near[rows], far[rows])
    table = label_evidence(np.arange(len(given)) * 10, given, np.full(len(given), -1), flagged, take, NAMES)
    assert max(asked) <= 50 + 24
    assert table.group_by("image_id", "role").len()["len"].unique().to_list() == [PER_LABEL]
    both = table.join(whole, on=["image_id", "role", "rank"], suffix="_whole")
    assert (both["distance"] >= both["distance_whole"]).all()
    assert (both["distance"] == both["distance_whole"]).mean() > 0.3  # type: ignore[operator]


def test_nothing_flagged_is_an_empty_table_and_no_vector_is_read() -> None:
    def take(at: np.ndarray) -> np.ndarray:
        raise AssertionError

    nothing = Flagged(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 5), np.int64), np.zeros((0, 5), np.float32))
    table = label_evidence(np.arange(4), np.zeros(4, np.int64), np.full(4, -1), nothing, take, ["ant"])
    assert table.is_empty()
    assert dict(table.schema) == evidence.EVIDENCE_SCHEMA
    assert n_nearer_suggested(table) == 0


def test_those_nearer_to_the_suggested_label_are_counted() -> None:
    rows = [(1, "given", 0.3), (1, "suggested", 0.2), (2, "given", 0.1), (2, "suggested", 0.2), (3, "suggested", 0.9)]
    table = pl.DataFrame(rows, schema=["image_id", "role", "distance"], orient="row").with_columns(rank=pl.lit(1))
    assert n_nearer_suggested(table) == 2
