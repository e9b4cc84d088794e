from __future__ import annotations

import threading
from collections.abc import Callable

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from dq_assets.audit.duplicates import MAX_PARTNERS, aligned_correlation, candidate_pairs, confirm_pairs, duplicate_groups
from dq_assets.schema import TABLES
from dq_assets.settings import Duplicates

Image = NDArray[np.uint8]
SETTINGS = Duplicates()
CHINA, FLOWER = (cv2.resize(image, (256, 171), interpolation=cv2.INTER_AREA) for image in load_sample_images().images)


def garment(seed: int, *, cloth: tuple[int, int, int] = (150, 40, 60), print_seed: int | None = None) -> Image:
    """A shirt on a white sheet with folds of its own: the same outline whatever the seed."""
    rng = np.random.default_rng(seed)
    canvas = np.full((240, 200, 3), 245, dtype=np.uint8)
    outline = np.array([[70, 30], [130, 30], [180, 70], [160, 100], [140, 85], [140, 210], [60, 210], [60, 85], [40, 100], [20, 70]])
    cv2.fillPoly(canvas, [outline], cloth)
    folds = cv2.GaussianBlur(rng.normal(0, 1, (240, 200)), (0, 0), 4)
    canvas = np.clip(canvas + (folds / folds.std() * 14)[..., None] * (canvas != 245), 0, 255).astype(np.uint8)
    marks = np.random.default_rng(seed if print_seed is None else print_seed)
    for x, y in marks.integers((75, 80), (125, 180), (8, 2)):
        cv2.circle(canvas, (int(x), int(y)), int(marks.integers(3, 9)), tuple(marks.integers(0, 255, 3).tolist()), -1)
    return canvas


def drawing(skin: tuple[int, int, int]) -> Image:
    canvas = np.full((144, 144, 3), 255, dtype=np.uint8)
    cv2.circle(canvas, (72, 60), 36, skin, -1)
    cv2.circle(canvas, (72, 60), 36, (0, 0, 0), 4)
    cv2.rectangle(canvas, (40, 100), (104, 140), (97, 178, 228), -1)
    for x in (60, 84):
        cv2.circle(canvas, (x, 54), 4, (0, 0, 0), -1)
    cv2.ellipse(canvas, (72, 68), (14, 10), 0, 20, 160, (0, 0, 0), 3)
    return canvas


def digit_one(slant: int, width: int) -> Image:
    canvas = np.zeros((28, 28), dtype=np.uint8)
    cv2.line(canvas, (14 - slant, 23), (14 + slant, 5), 255, width, cv2.LINE_AA)
    return canvas


def jpeg(image: Image, quality: int) -> Image:
    decoded = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_UNCHANGED)
    return np.asarray(decoded, dtype=np.uint8)


def scaled(image: Image, factor: float) -> Image:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def bright(image: Image, factor: float) -> Image:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def cropped(image: Image, share: float) -> Image:
    y, x = round(image.shape[0] * share), round(image.shape[1] * share)
    return image[y:-y, x:-x].copy()


def rotated(image: Image, degrees: float) -> Image:
    height, width = image.shape[:2]
    return np.asarray(cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1), (width, height)), dtype=np.uint8)


ALTERED: dict[str, Callable[[Image], Image]] = {
    "JPEG quality 30": lambda image: jpeg(image, 30),
    "half size": lambda image: scaled(image, 0.5),
    "brighter": lambda image: bright(image, 1.2),
    "darker": lambda image: bright(image, 0.7),
    "crop of 5 % per side": lambda image: cropped(image, 0.05),
    "crop of 15 % per side": lambda image: cropped(image, 0.15),
    "mirrored": lambda image: image[:, ::-1].copy(),
    "rotated by 3 degrees": lambda image: rotated(image, 3),
    "all at once": lambda image: jpeg(bright(scaled(cropped(rotated(image[:, ::-1].copy(), 3), 0.05), 0.8), 0.85), 60),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
@pytest.mark.parametrize("image", [CHINA, FLOWER, garment(1)], ids=["temple", "flower", "shirt"])
def test_an_altered_copy_is_the_same_picture(image: Image, alter: Callable[[Image], Image]) -> None:
    assert aligned_correlation(image, alter(image)) >= SETTINGS.min_correlation


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (CHINA, FLOWER),
        (garment(1), garment(2)),
        (garment(1), garment(2, print_seed=1)),
        (garment(1), garment(1, cloth=(40, 60, 150))),
        (garment(1), garment(1, print_seed=3)),
        (drawing((250, 220, 188)), drawing((165, 121, 57))),
        (drawing((165, 121, 57)), drawing((106, 70, 47))),
        (digit_one(2, 2), digit_one(3, 2)),
        (digit_one(1, 2), digit_one(1, 4)),
        (np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), 0, np.uint8)),
    ],
    ids=[
        "two photos", "two shirts", "one print on two shirts", "one shirt in two colours", "one shirt with two prints", "skin tones",
        "next skin tones", "slant of a digit", "width of a digit", "black and white",
    ],
)  # fmt: skip
def test_a_look_alike_is_another_picture(a: Image, b: Image) -> None:
    assert aligned_correlation(a, b) < SETTINGS.min_correlation


@pytest.mark.parametrize(
    "alter",
    [lambda image: jpeg(image, 60), lambda image: np.roll(image, (1, 2), (0, 1)), lambda image: bright(image, 0.7)],
    ids=["JPEG", "shift", "darker"],
)
def test_a_small_image_is_found_when_it_is_a_copy(alter: Callable[[Image], Image]) -> None:
    image = cv2.putText(np.zeros((28, 28), np.uint8), "5", (6, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2, cv2.LINE_AA)
    assert aligned_correlation(np.asarray(image, dtype=np.uint8), alter(np.asarray(image, dtype=np.uint8))) >= SETTINGS.min_correlation


def test_correlation_stays_in_its_range_and_is_one_for_the_same_image() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 200), (200, 1), (5, 7, 3), (300, 40, 3), (64, 64, 1)]
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    for a in images:
        for b in images:
            assert 0 <= aligned_correlation(a, b) <= 1
    assert aligned_correlation(CHINA, CHINA) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4), np.uint8)])
def test_what_is_no_grey_or_rgb_image_is_refused(image: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="grey or RGB"):
        aligned_correlation(image, CHINA)  # type: ignore[arg-type]


NO_NEIGHBORS = np.empty((0, 2), dtype=np.int64)


def by_hash(phash: NDArray[np.uint64], distance: int = 10) -> NDArray[np.int64]:
    n = len(phash)
    neighbors, distances = np.full((n, 1), -1, dtype=np.int64), np.zeros((n, 1), dtype=np.float32)
    return candidate_pairs(phash, neighbors, distances, Duplicates(phash_distance=distance))


@pytest.mark.parametrize("distance", [0, 3, 6, 10])
def test_all_pairs_of_hashes_within_the_distance_are_found(distance: int) -> None:
    rng = np.random.default_rng(distance)
    seeds = rng.integers(0, 2**64, 150, dtype=np.uint64)
    phash = np.repeat(seeds, 8)
    for row in range(len(phash)):
        for bit in rng.choice(64, rng.integers(0, 9), replace=False).tolist():
            phash[row] ^= np.uint64(1) << np.uint64(bit)
    bits = np.bitwise_count(phash[:, None] ^ phash[None])
    expected = np.argwhere(np.triu(bits <= distance, 1))
    np.testing.assert_array_equal(by_hash(phash, distance), expected)


def test_plain_images_with_one_hash_do_not_explode() -> None:
    rng = np.random.default_rng(0)
    phash = np.concatenate([np.zeros(10_000, np.uint64), rng.integers(0, 2**11, 10_000, dtype=np.uint64)])
    pairs = by_hash(phash)
    assert len(pairs) <= MAX_PARTNERS * len(phash)
    assert set(np.unique(pairs[(pairs < 10_000).all(axis=1)])) == set(range(10_000))


def test_neighbours_nominate_by_distance_and_the_nearest_by_twice_that() -> None:
    phash = np.array([0, 2**64 - 1, 0xFFFFFFFF, 0xFFFF0000FFFF0000, 0xFF00FF00FF00FF00], dtype=np.uint64)
    neighbors = np.array([[4, 3, 2, 1], [0, -1, -1, -1], [-1] * 4, [-1] * 4, [0, -1, -1, -1]], dtype=np.int64)
    distances = np.array([[0.2, 0.4, 0.6, 0.24], [0.24, 0, 0, 0], [0] * 4, [0] * 4, [0.2, 0, 0, 0]], dtype=np.float32)
    pairs = candidate_pairs(phash, neighbors, distances, Duplicates(cosine_distance=0.25, phash_distance=4))
    assert pairs.tolist() == [[0, 1], [0, 3], [0, 4]]


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_make_no_pairs(n: int) -> None:
    assert by_hash(np.zeros(n, dtype=np.uint64)).shape == (0, 2)


def test_inputs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        candidate_pairs(np.zeros(3, np.uint64), np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32), SETTINGS)


@pytest.mark.parametrize("threads", [1, 3])
def test_pairs_are_confirmed_rejected_or_counted_as_unread(threads: int) -> None:
    images = [CHINA, jpeg(CHINA, 40), FLOWER]
    before, done, used = cv2.getNumThreads(), list[int](), set[int]()

    def load(position: int) -> Image:
        used.add(threading.get_ident())
        if position == 3:
            raise OSError("truncated")
        return images[position]

    pairs = np.array([[0, 1], [0, 2], [1, 3]])
    found = confirm_pairs(pairs, load, SETTINGS, threads=threads, progress=done.append)
    assert found.dtype == np.float32
    assert 0 <= found[0] <= 0.1
    assert np.isnan(found[1])
    assert np.isposinf(found[2])
    assert done == [3]
    assert len(used) <= threads
    assert cv2.getNumThreads() == before


def test_a_mirror_image_is_a_copy_unless_the_setting_says_otherwise() -> None:
    images = [CHINA, CHINA[:, ::-1].copy(), jpeg(CHINA, 60)]
    pairs = np.array([[0, 1], [0, 2]])
    assert np.isfinite(confirm_pairs(pairs, images.__getitem__, SETTINGS, threads=1)).tolist() == [True, True]
    strict = Duplicates(mirrored=False)
    assert np.isfinite(confirm_pairs(pairs, images.__getitem__, strict, threads=1)).tolist() == [False, True]


def test_an_error_that_is_not_of_the_image_passes() -> None:
    def load(position: int) -> Image:
        raise RuntimeError("lake is gone")

    with pytest.raises(RuntimeError, match="lake"):
        confirm_pairs(np.array([[0, 1]]), load, SETTINGS, threads=1)


def test_each_image_is_loaded_once_and_no_pairs_load_nothing() -> None:
    loaded: list[int] = []

    def load(position: int) -> Image:
        loaded.append(position)
        return garment(position)

    confirm_pairs(np.array([[i, j] for i in range(4) for j in range(i + 1, 4)]), load, SETTINGS, threads=2)
    assert sorted(loaded) == [0, 1, 2, 3]
    assert confirm_pairs(NO_NEIGHBORS, load, SETTINGS, threads=2).shape == (0,)


Names = list[str | None]


def grouped(n: int, edges: list[tuple[int, int, float]], content: Names | None = None, pixel: Names | None = None) -> pl.DataFrame:
    pairs = np.array([edge[:2] for edge in edges], dtype=np.int64).reshape(-1, 2)
    distances = np.array([edge[2] for edge in edges], dtype=np.float32)
    unique: Names = [str(i) for i in range(n)]
    return duplicate_groups(np.arange(100, 100 + n), content or unique, pixel or unique, pairs, distances)


def test_groups_have_the_columns_of_the_table_even_when_empty() -> None:
    types = {"BIGINT": pl.Int64, "VARCHAR": pl.String, "FLOAT": pl.Float32}
    expected = pl.Schema({column.name: types[column.type] for column in TABLES["duplicate_groups"].columns})
    assert grouped(3, []).schema == expected
    assert grouped(0, []).is_empty()
    assert grouped(3, [(0, 1, 0.05)]).schema == expected


def test_equal_bytes_equal_pixels_and_near_pairs_form_one_group() -> None:
    found = grouped(5, [(0, 3, 0.04), (1, 3, 0.06)], content=["a", "a", "b", "c", "d"], pixel=["p", "p", "p", "q", "r"])
    assert found.get_column("image_id").to_list() == [100, 101, 102, 103]
    assert found.get_column("group_id").to_list() == [100] * 4
    assert found.get_column("kind").to_list() == ["exact", "exact", "pixel", "near"]
    assert found.get_column("distance").to_list() == pytest.approx([0, 0, 0, 0.04])


def test_unknown_hashes_are_not_equal() -> None:
    assert grouped(2, [], content=[None, None], pixel=[None, None]).is_empty()


def test_rejected_and_unread_pairs_form_no_group() -> None:
    assert grouped(4, [(0, 1, float("nan")), (2, 3, float("inf"))]).is_empty()


def test_a_chain_of_look_alikes_does_not_become_one_group() -> None:
    found = grouped(200, [(i, i + 1, 0.08) for i in range(199)])
    sizes = found.group_by("group_id").len().get_column("len")
    assert found.height == 200, "everyone with a confirmed partner is in a group"
    assert sizes.max() <= 5
    assert sizes.min() >= 2


def test_a_chain_of_three_is_one_group_round_its_middle() -> None:
    assert grouped(3, [(0, 1, 0.02), (1, 2, 0.03)]).get_column("group_id").to_list() == [100, 100, 100]


def test_a_group_is_named_after_its_smallest_image_and_the_answer_does_not_depend_on_the_order_of_pairs() -> None:
    edges = [(0, 4, 0.02), (1, 4, 0.03), (2, 4, 0.01), (2, 3, 0.05), (5, 6, 0.04)]
    found = grouped(7, edges)
    assert found.get_column("group_id").to_list() == [100, 100, 100, 100, 100, 105, 105]
    assert found.get_column("distance").to_list() == pytest.approx([0.02, 0.03, 0.01, 0.05, 0.01, 0.04, 0.04])
    assert found.equals(grouped(7, edges[::-1]))
