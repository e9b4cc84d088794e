"""The user's own probabilities: found by path or by order, checked, refused in one line that ends with what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.pred_probs import PredProbs, PredProbsError, check_file, identity, read_pred_probs
from dq_assets.audit.rows import NpyRows, blocks
from dq_assets.audit.threads import map_in_order
from dq_assets.settings import Dataset

NAMES = ["cat", "dog", "eel"]
N = 90


def made(seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(paths in folder order, codes, probabilities that mostly fit them)."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(3), N // 3)
    probs = rng.dirichlet(np.ones(3), N) * 0.4
    probs[np.arange(N), codes] += 0.6
    return [f"{NAMES[c]}/{i:03d}.png" for i, c in enumerate(codes)], codes, probs.astype(np.float32)


def read(
    folder: Path, file: Path, paths: list[str], codes: np.ndarray, is_ok: np.ndarray | None = None, path: Path | None = None
) -> PredProbs:
    ok = np.ones(len(paths), bool) if is_ok is None else is_ok
    dataset = Dataset("pets", str(path or folder), pred_probs=str(file))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return read_pred_probs(dataset, paths, ok, class_names=NAMES, labels=codes[ok], folds=np.arange(int(ok.sum())) % 5, scratch=scratch)


def answer(found: PredProbs) -> np.ndarray:
    return np.concatenate(list(found.blocks(17)))


def saved(folder: Path, probs: np.ndarray) -> Path:
    np.save(folder / "probs.npy", probs)
    return folder / "probs.npy"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_npy_of_any_float_is_read_in_folder_order(tmp_path: Path, dtype: type) -> None:
    paths, codes, probs = made()
    found = read(tmp_path, saved(tmp_path, probs.astype(dtype)), paths, codes)
    np.testing.assert_allclose(answer(found), probs, atol=5e-4 if dtype == np.float16 else 1e-7)
    assert answer(found).dtype == np.float32
    assert found.metrics["accuracy"] == 1
    assert found.metrics["source"].endswith("probs.npy")


def test_images_in_another_order_than_the_file_get_their_own_rows(tmp_path: Path) -> None:
    paths, codes, probs = made()
    shuffled = np.random.default_rng(1).permutation(N)
    found = read(tmp_path, saved(tmp_path, probs), [paths[i] for i in shuffled], codes[shuffled])
    assert np.array_equal(answer(found), probs[shuffled])


def test_folder_order_is_that_of_imagefolder_where_a_class_name_begins_another(tmp_path: Path) -> None:
    _, codes, probs = made()
    paths = [f"{['cat', 'cat-big', 'eel'][c]}/{i:03d}.png" for i, c in enumerate(codes)]
    assert sorted(paths) != paths
    dataset = Dataset("pets", str(tmp_path), pred_probs=str(saved(tmp_path, probs)))
    found = read_pred_probs(
        dataset, paths, np.ones(N, bool), class_names=["cat", "cat-big", "eel"], labels=codes, folds=np.zeros(N, int), scratch=tmp_path
    )
    assert np.array_equal(answer(found), probs)


def test_unreadable_files_may_have_a_row_or_none(tmp_path: Path) -> None:
    paths, codes, probs = made()
    is_ok = np.arange(N) % 7 != 0
    with_all = answer(read(tmp_path, saved(tmp_path, probs), paths, codes, is_ok))
    with_ok = answer(read(tmp_path, saved(tmp_path, probs[is_ok]), paths, codes, is_ok))
    assert np.array_equal(with_all, probs[is_ok])
    assert np.array_equal(with_ok, probs[is_ok])


def test_rows_of_an_npy_follow_a_manifest_with_its_repeats(tmp_path: Path) -> None:
    paths, codes, probs = made()
    order = np.r_[np.random.default_rng(2).permutation(N), 4]  # one path stands there twice
    manifest = tmp_path / "list.csv"
    pl.DataFrame({"path": [paths[i] for i in order], "label": [NAMES[codes[i]] for i in order]}).write_csv(manifest)
    found = read(tmp_path, saved(tmp_path, probs[order]), paths, codes, path=manifest)
    assert np.array_equal(answer(found), probs)


def parquet(folder: Path, paths: list[str], probs: np.ndarray, **more: object) -> Path:
    frame = pl.DataFrame({"path": paths, **{name: probs[:, k] for k, name in enumerate(NAMES)}, **more})
    frame.write_parquet(folder / "probs.parquet")
    return folder / "probs.parquet"


def test_parquet_is_joined_by_path_and_class_name(tmp_path: Path) -> None:
    paths, codes, probs = made()
    shuffled = np.random.default_rng(3).permutation(N)
    frame = pl.DataFrame({"eel": probs[shuffled, 2], "cat": probs[shuffled, 0], "dog": probs[shuffled, 1], "note": "x"})
    frame.with_columns(path=pl.Series([str(tmp_path / paths[i]) for i in shuffled])).write_parquet(tmp_path / "p.parquet")
    found = read(tmp_path, tmp_path / "p.parquet", paths, codes)
    assert np.array_equal(answer(found), probs)


@pytest.mark.parametrize("kind", [pl.List(pl.Float32), pl.Array(pl.Float32, 3), pl.List(pl.Float64)], ids=str)
def test_parquet_may_hold_a_list_over_the_sorted_classes(tmp_path: Path, kind: pl.DataType) -> None:
    paths, codes, probs = made()
    pl.DataFrame(
        {"path": [*paths, "gone.png"], "probs": pl.Series([*probs.tolist(), [1.0, 0, 0]], dtype=pl.List(pl.Float64)).cast(kind)}
    ).write_parquet(tmp_path / "p.parquet")
    found = read(tmp_path, tmp_path / "p.parquet", paths, codes)
    np.testing.assert_allclose(answer(found), probs, atol=1e-7)
    assert found.metrics["rows without an image"] == 1


def with_cell(value: float) -> np.ndarray:
    probs = made()[2].copy()
    probs[40, 1] = value
    return probs


@pytest.mark.parametrize(
    ("probs", "words"),
    [
        pytest.param(with_cell(np.nan), "not a finite number for dog/040.png", id="NaN"),
        pytest.param(with_cell(np.inf), "not a finite number for dog/040.png", id="infinite"),
        pytest.param(with_cell(-0.1), "negative probability for dog/040.png", id="negative"),
        pytest.param(made()[2] * 1.01, "sum to 1.01", id="sum"),
        pytest.param(np.log(made()[2]), "negative probability", id="logits"),
        pytest.param(made()[2][:-1], "has 89 rows; the dataset has 90 files", id="N"),
        pytest.param(made()[2][:, :2], "has 2 columns; the dataset has 3 classes \\(cat, dog, eel\\)", id="K"),
        pytest.param(made()[2][::-1], "no better than by chance", id="reversed rows"),
        pytest.param(made()[2][np.random.default_rng(0).permutation(N)], "no better than by chance", id="shuffled rows"),
        pytest.param(np.zeros((N, 3), int), "of float16, 32 or 64", id="whole numbers"),
        pytest.param(np.zeros(N), "a row per image", id="one dimension"),
        pytest.param(np.asfortranarray(made()[2]), "Fortran order", id="Fortran"),
    ],
)
def test_an_npy_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, probs: np.ndarray, words: str) -> None:
    paths, codes, _ = made()
    with pytest.raises(PredProbsError, match=words) as caught:
        read(tmp_path, saved(tmp_path, probs), paths, codes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_parquet_file_that_does_not_fit_is_refused_with_an_example(tmp_path: Path) -> None:
    paths, codes, probs = made()
    with pytest.raises(PredProbsError, match=r"no row for 1 of 90 images, such as eel/089.png"):
        read(tmp_path, parquet(tmp_path, paths[:-1], probs[:-1]), paths, codes)
    with pytest.raises(PredProbsError, match=r"two rows for cat/003.png"):
        read(tmp_path, parquet(tmp_path, [*paths, paths[3]], np.r_[probs, probs[3:4]]), paths, codes)
    with pytest.raises(PredProbsError, match="sum to"):
        read(tmp_path, parquet(tmp_path, paths, probs * 0.5), paths, codes)
    pl.read_parquet(parquet(tmp_path, paths, probs)).drop("dog").write_parquet(tmp_path / "probs.parquet")
    with pytest.raises(PredProbsError, match="no column for 1 classes, such as 'dog'"):
        read(tmp_path, tmp_path / "probs.parquet", paths, codes)
    pl.DataFrame({"path": paths, "probs": [[0.5, 0.5]] * N}).write_parquet(tmp_path / "probs.parquet")
    with pytest.raises(PredProbsError, match=r"2 probabilities for cat/000.png, not 3"):
        read(tmp_path, tmp_path / "probs.parquet", paths, codes)
    pl.DataFrame({"path": paths, **{name: ["a"] * N for name in NAMES}}).write_parquet(tmp_path / "probs.parquet")
    with pytest.raises(PredProbsError, match="is no number"):
        read(tmp_path, tmp_path / "probs.parquet", paths, codes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.npy", b"nonsense", "not a whole .npy file"),
        ("p.npy", b"", "not a whole .npy file"),
        ("p.parquet", b"nonsense", "not a Parquet file"),
        ("p.csv", b"path,cat\n", "neither an .npy nor a .parquet file"),
        ("p.npy", None, "No such file"),
        ("p.parquet", None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_before_anything_starts(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PredProbsError, match=words):
        check_file(tmp_path / name)


def test_the_identity_follows_the_bytes_and_the_order_of_the_manifest(tmp_path: Path) -> None:
    paths, _, probs = made()
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,label\na,b\n")
    by_folder = Dataset("pets", str(tmp_path), pred_probs=str(saved(tmp_path, probs)))
    by_list = dataclasses.replace(by_folder, path=str(manifest))
    first = identity(by_folder), identity(by_list)
    manifest.write_text("path,label\nc,b\n")
    assert identity(by_folder) == first[0]
    assert identity(by_list) != first[1]
    saved(tmp_path, probs[::-1])
    assert identity(by_folder) != first[0]
    assert paths


def test_rows_of_a_file_equal_those_of_the_array(tmp_path: Path) -> None:
    probs = np.random.default_rng(0).random((50, 7)).astype(np.float64)
    rows = NpyRows(saved(tmp_path, probs))
    expected = probs.astype(np.float32)
    assert rows.shape == (50, 7)
    for chosen in (slice(3, 9), slice(None), slice(60, 70), np.array([4, 5, 6]), np.array([9, 2, 2]), np.zeros(0, np.int64)):
        assert np.array_equal(rows[chosen], expected[chosen])
    sums = list(map_in_order(lambda part: rows[part].sum(), blocks(50, 7, 70), threads=2))
    np.testing.assert_allclose(sums, [expected[part].sum() for part in blocks(50, 7, 70)], rtol=1e-6)
