"""Issues planted into a small folder of random pictures."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageOps

from dq_assets.demo.planting import EDITS, SMALL_EDITS, TRUTH, Planted, plant
from dq_assets.settings import UserError

plant_many = functools.partial(plant, label_flips=0.1, near_duplicates=0.1, exact_duplicates=0.08, cross_label=0.05, outliers=0.1)


def picture(rng: np.random.Generator, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Coloured patches: smooth enough that an edit leaves them alike."""
    return Image.fromarray(rng.integers(0, 200, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BILINEAR).convert(mode)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures of 96 x 80 px in 4 classes: PNG and JPEG, one of them twice under other bytes, one unreadable, one hidden."""
    root = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(5)
    for label in ("ant", "bee", "cat", "dog"):
        (root / label).mkdir()
        for number in range(30):
            suffix = "jpg" if number % 3 == 0 else "png"
            picture(rng, (96, 80)).save(root / label / f"{number}.{suffix}")
    with Image.open(root / "bee" / "1.png") as image:
        image.save(root / "bee" / "2.png", compress_level=0)
    (root / "cat" / "4.png").write_bytes(b"no picture")
    (root / "dog" / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def planted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant_many(source, tmp_path_factory.mktemp("planted") / "copy", seed=3)


def rows(planted: Planted, kind: str) -> list[dict[str, Any]]:
    return planted.truth.filter(planted=kind).to_dicts()


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_truth_has_a_row_for_every_file_and_every_source_image(planted: Planted, source: Path) -> None:
    files = {file.relative_to(planted.path).as_posix() for file in planted.path.rglob("*") if file.is_file()}
    assert set(planted.truth["path"]) == files
    assert dict(planted.truth.schema) == TRUTH
    originals = planted.truth.filter(pl.col("planted").is_in(["none", "label_flip"]))
    assert sorted(originals["source_path"]) == sorted(
        file.relative_to(source).as_posix() for file in source.rglob("*.*") if not file.name.startswith(".")
    )


def test_as_many_issues_are_planted_as_the_shares_say(planted: Planted) -> None:
    expected = {"label_flip": 12, "near_duplicate": 12, "exact_duplicate": 10, "cross_label": 6, "outlier": 12}
    assert planted.counts == {"images": 120 + 12 + 10 + 6 + 12, **expected}


def test_the_same_seed_plants_the_same_and_another_seed_something_else(planted: Planted, source: Path, tmp_path: Path) -> None:
    again = plant_many(source, tmp_path / "again", seed=3)
    other = plant_many(source, tmp_path / "other", seed=4)
    assert again.truth.equals(planted.truth)
    assert all((again.path / path).read_bytes() == (planted.path / path).read_bytes() for path in planted.truth["path"])
    assert not other.truth.equals(planted.truth)


def test_a_flip_moves_the_untouched_file_to_another_class(planted: Planted, source: Path) -> None:
    for row in rows(planted, "label_flip"):
        assert row["given_label"] == row["path"].split("/")[0] != row["true_label"] == row["source_path"].split("/")[0]
        assert row["is_label_error"]
        assert (planted.path / row["path"]).read_bytes() == (source / row["source_path"]).read_bytes()


def test_an_image_gets_at_most_one_issue_and_twins_or_broken_files_get_none(planted: Planted) -> None:
    issues = planted.truth.filter(pl.col("planted") != "none")["source_path"].drop_nulls()
    assert issues.n_unique() == len(issues) == 40
    assert not {"bee/1.png", "bee/2.png", "cat/4.png"} & set(issues)


def test_copies_share_a_group_with_the_image_that_they_were_made_from(planted: Planted) -> None:
    groups = planted.truth.filter(pl.col("dup_group").is_not_null()).group_by("dup_group").agg("dup_kind", "source_path", "planted")
    assert groups.height == 28
    for row in groups.to_dicts():
        assert len(row["dup_kind"]) == 2
        assert len(set(row["source_path"])) == 1
        assert "original" in row["dup_kind"]
        assert "none" in row["planted"]


@pytest.mark.parametrize(("kind", "other_class"), [("exact_duplicate", False), ("cross_label", True)])
def test_exact_and_cross_label_copies_have_the_bytes_of_their_source(planted: Planted, source: Path, kind: str, other_class: bool) -> None:
    for row in rows(planted, kind):
        assert (planted.path / row["path"]).read_bytes() == (source / row["source_path"]).read_bytes()
        assert row["is_label_error"] == other_class == (row["given_label"] != row["true_label"])


def test_every_edit_is_used_and_changes_the_pixels_as_it_says(planted: Planted, source: Path) -> None:
    near = rows(planted, "near_duplicate")
    assert {row["dup_kind"] for row in near} == set(EDITS)
    for row in near:
        before, after = pixels(source / row["source_path"]), pixels(planted.path / row["path"])
        assert before.shape != after.shape or not np.array_equal(before, after)
        if row["dup_kind"] == "mirror" and row["path"].endswith("png"):
            assert np.array_equal(after, before[:, ::-1])
        if row["dup_kind"] in ("crop", "resize", "combined"):
            assert after.shape[0] < before.shape[0]
        if row["dup_kind"] in ("brightness", "jpeg"):
            assert 0.5 < np.abs(before.astype(float) - after).mean() < 40


def test_small_pictures_get_only_edits_that_leave_them_what_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for label in ("0", "1"):
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(15):
            picture(rng, (28, 28), "L").save(tmp_path / "source" / label / f"{number}.png")
    small = plant_many(tmp_path / "source", tmp_path / "out", near_duplicates=0.3)
    assert {row["dup_kind"] for row in rows(small, "near_duplicate")} == set(SMALL_EDITS)
    for path in small.truth["path"]:
        with Image.open(small.path / path) as image:
            assert (image.mode, image.size) == ("L", (28, 28))


def test_an_edit_that_changes_nothing_gives_way_to_the_next(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for label in ("a", "b"):
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(20):
            half = picture(rng, (40, 80))
            whole = Image.new("RGB", (80, 80))
            whole.paste(half, (0, 0))
            whole.paste(ImageOps.mirror(half), (40, 0))
            whole.save(tmp_path / "source" / label / f"{number}.png")
    symmetric = plant_many(tmp_path / "source", tmp_path / "out", near_duplicates=0.3)
    assert {row["dup_kind"] for row in rows(symmetric, "near_duplicate")} == set(EDITS) - {"mirror"}


def test_outliers_have_no_true_label_and_look_like_files_of_the_source(planted: Planted) -> None:
    outliers = rows(planted, "outlier")
    for row in outliers:
        assert row["true_label"] is row["is_label_error"] is row["source_path"] is None
        assert row["is_outlier"]
        assert pixels(planted.path / row["path"]).shape == (80, 96, 3)
    assert len({pixels(planted.path / row["path"]).tobytes() for row in outliers}) == 12


def test_file_names_do_not_tell_what_was_planted(planted: Planted) -> None:
    names = [Path(path) for path in planted.truth["path"]]
    assert sorted(int(name.stem) for name in names) == list(range(160))
    number = np.array([int(name.stem) for name in names])
    is_planted = planted.truth["planted"].to_numpy() != "none"
    assert abs(number[is_planted].mean() - number[~is_planted].mean()) < 30
    suffixes = [Path(row["path"]).suffix for kind in ("near_duplicate", "outlier") for row in rows(planted, kind)]
    assert set(suffixes) == {".png", ".jpg"}


def test_splits_are_drawn_and_copies_leak_over_them(planted: Planted) -> None:
    splits = pl.read_csv(planted.splits_csv)
    assert splits.equals(planted.truth.select("path", "split"))
    share = splits["split"].value_counts(normalize=True)
    assert set(share["split"]) == {"train", "validation", "test"}
    assert 0.1 < share.filter(split="test")["proportion"].item() < 0.3
    crossing = planted.truth.filter(pl.col("dup_group").is_not_null()).group_by("dup_group").agg(pl.col("split").n_unique())["split"] > 1
    assert 5 <= crossing.sum() <= 23
    twins = planted.truth.filter(pl.col("source_path").is_in(["bee/1.png", "bee/2.png"]))
    assert twins["split"].n_unique() == 1


def test_split_folders_of_the_source_are_kept(source: Path, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        shutil.copytree(source, tmp_path / "source" / folder)
    for file in (tmp_path / "source" / "val").rglob("*.png"):
        if not file.name.startswith(".") and file.parent.name != "cat":
            picture(np.random.default_rng(len(str(file)) + file.stat().st_size), (96, 80)).save(file)
    kept = plant_many(tmp_path / "source", tmp_path / "out")
    assert set(kept.truth["given_label"]) == {"ant", "bee", "cat", "dog"}
    untouched = kept.truth.filter(planted="none")
    assert all(row["split"] == {"train": "train", "val": "validation"}[row["source_path"].split("/")[0]] for row in untouched.to_dicts())


def test_a_finished_copy_is_reused_and_another_seed_replaces_it(source: Path, tmp_path: Path) -> None:
    first = plant_many(source, tmp_path / "out")
    stamp = (tmp_path / "out" / "truth.parquet").stat().st_mtime_ns
    assert plant_many(source, tmp_path / "out").truth.equals(first.truth)
    assert (tmp_path / "out" / "truth.parquet").stat().st_mtime_ns == stamp
    assert not plant_many(source, tmp_path / "out", seed=1).truth.equals(first.truth)


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="Move it away"):
        plant(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("flips", "near"), [(0.9, 0.9), (1.0, 0.02)], ids=["more issues than images", "no image left for copies"])
def test_more_issues_than_different_images_is_an_error(source: Path, tmp_path: Path, flips: float, near: float) -> None:
    with pytest.raises(UserError, match="or plant less"):
        plant(source, tmp_path / "out", label_flips=flips, near_duplicates=near)
    assert not (tmp_path / "out").exists()


def test_a_source_without_class_folders_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    picture(np.random.default_rng(0), (64, 64)).save(tmp_path / "source" / "loose.png")
    with pytest.raises(UserError, match="class folders"):
        plant(tmp_path / "source", tmp_path / "out")
