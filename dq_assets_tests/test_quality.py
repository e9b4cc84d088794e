"""Image quality scores on pictures whose answer is known, and the table image_properties."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageFilter, ImageStat

from dq_assets.audit import quality
from dq_assets.schema import QUALITY_CHECKS, TABLES
from dq_assets.settings import Quality


def of_array(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8)).convert("RGB")


def blocks(seed: int = 3) -> Image.Image:
    """Large coloured blocks with sharp edges."""
    values = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(values).resize((320, 240), Image.Resampling.NEAREST)


BLACK = Image.new("RGB", (300, 200), "black")
WHITE = Image.new("RGB", (300, 200), "white")
NOISE = of_array(np.random.default_rng(0).integers(0, 256, (200, 300, 3)))
BLURRED = blocks().filter(ImageFilter.GaussianBlur(15))
THRESHOLDS = Quality()


def issues(image: Image.Image) -> set[str]:
    scores = {name: np.array([score]) for name, score in quality.pixel_scores(image).items()}
    frame = quality.image_properties(np.array([0]), ["0" * 16], scores, np.array([image.width]), np.array([image.height]), THRESHOLDS)
    return {check for check in QUALITY_CHECKS if frame[f"is_{check}_issue"][0]}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (BLACK, {"dark", "low_information", "grayscale"}),
        (WHITE, {"light", "low_information", "grayscale"}),
        (NOISE, set()),
        (blocks(), set()),
        (BLURRED, {"blurry"}),
        (of_array(np.tile(np.arange(256), (200, 1))), {"grayscale"}),
        (NOISE.resize((1000, 100)), {"odd_aspect_ratio"}),
        (Image.new("RGB", (1, 1), "red"), {"low_information", "blurry"}),
    ],
    ids=["black", "white", "noise", "blocks", "blurred", "ramp", "strip", "one pixel"],
)
def test_pictures_have_the_issues_one_sees(image: Image.Image, expected: set[str]) -> None:
    assert issues(image) == expected


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (20_000, 10), (10, 20_000), (1, 300_000)], ids=str)
def test_scores_are_finite_and_in_range_at_any_size(size: tuple[int, int]) -> None:
    scores = quality.pixel_scores(Image.new("RGB", size, "white"))
    assert tuple(scores) == quality.PIXEL_CHECKS
    assert all(0 <= score <= 1 for score in scores.values())


def test_black_is_0_dark_and_white_is_0_light() -> None:
    assert quality.pixel_scores(BLACK)["dark"] == 0
    assert quality.pixel_scores(BLACK)["light"] == 1
    assert quality.pixel_scores(WHITE)["light"] == pytest.approx(0, abs=1e-6)
    assert quality.pixel_scores(WHITE)["dark"] == pytest.approx(1, abs=1e-6)


def cleanvision_scores(image: Image.Image) -> dict[str, float]:
    """CleanVision 0.3.7, image_property.py, written out: all pixels, float64, resized in colour."""
    red, green, blue = (np.asarray(channel, np.float64) for channel in image.split())
    p5, p99 = np.percentile(np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2) / 255, [5, 99])
    ratio = max(image.size) / 64
    small = image.resize((int(image.width // ratio), int(image.height // ratio))) if ratio > 1 else image
    grey = small.convert("L")
    edges = 1 - np.exp(-0.01 * np.sqrt(ImageStat.Stat(grey.filter(ImageFilter.FIND_EDGES)).var[0]))
    spread = 1 - np.exp(-0.01 * np.std(grey.histogram()))
    return {
        "dark": p99,
        "light": 1 - p5,
        "blurry": min(1.0, edges + (spread if spread > 0.18 else 0)),
        "low_information": 0.1 * image.convert("L").entropy(),
        "odd_aspect_ratio": min(image.width / image.height, image.height / image.width),
    }


@pytest.mark.parametrize(
    "image",
    [blocks(1), blocks(2).filter(ImageFilter.GaussianBlur(5)), BLURRED, NOISE.resize((900, 700), Image.Resampling.BICUBIC), BLACK],
    ids=["blocks", "soft", "blurred", "large noise", "black"],
)
def test_scores_agree_with_cleanvision_to_a_hundredth(image: Image.Image) -> None:
    ours = quality.pixel_scores(image)
    for name, score in cleanvision_scores(image).items():
        assert ours[name] == pytest.approx(score, abs=0.01), name


def test_one_coloured_pixel_makes_a_picture_not_grey() -> None:
    grey = of_array(np.random.default_rng(1).integers(0, 256, (400, 500)))
    assert quality.pixel_scores(grey)["grayscale"] == 0
    grey.putpixel((251, 133), (10, 11, 10))
    assert quality.pixel_scores(grey)["grayscale"] == 1


def test_an_image_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ValueError, match="mode L"):
        quality.pixel_scores(BLACK.convert("L"))


def properties(widths: list[int], heights: list[int], score: float = 0.9) -> pl.DataFrame:
    n = len(widths)
    scores = {name: np.full(n, score) for name in quality.PIXEL_CHECKS}
    return quality.image_properties(np.arange(n), ["f" * 16] * n, scores, np.array(widths), np.array(heights), THRESHOLDS)


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_the_table_has_the_columns_and_types_of_the_schema(n: int) -> None:
    frame = properties(list(range(100, 100 + n)), [100] * n)
    assert frame.height == n
    assert tuple(frame.columns) == TABLES["image_properties"].column_names
    types = {"BIGINT": pl.Int64, "VARCHAR": pl.String, "FLOAT": pl.Float32, "BOOLEAN": pl.Boolean}
    assert frame.dtypes == [types[column.type] for column in TABLES["image_properties"].columns]
    assert frame.null_count().row(0) == (0,) * frame.width
    assert not frame["is_odd_size_issue"].any() or n > 2


def test_a_score_on_its_threshold_is_no_issue() -> None:
    assert not properties([9], [9], 0.32)["is_dark_issue"][0]
    assert properties([9], [9], 0.3199)["is_dark_issue"][0]


def test_a_size_is_odd_beyond_the_fence_and_its_score_there_is_a_half() -> None:
    # Quartiles 102 and 106, range 4: the fence is 90 to 118, its centre 104.
    sizes = [100, 101, 102, 103, 104, 105, 106, 107, 108]
    assert np.percentile(sizes, [25, 75]).tolist() == [102, 106]
    many = np.array(sizes * 50 + [90, 118, 89, 119, 300])
    score, issue = quality.odd_sizes(many, many)
    assert np.percentile(many, [25, 75]).tolist() == [102, 106]
    assert score[-5:] == pytest.approx([0.5, 0.5, 1 - 15 / 28, 1 - 15 / 28, 0])
    assert issue[-5:].tolist() == [False, False, True, True, True]
    assert score[4] == 1
    assert not issue[:-5].any()


def test_where_most_images_share_a_size_only_half_or_one_and_a_half_of_it_is_odd() -> None:
    sizes = np.array([200] * 20 + [201, 100, 300, 99, 301])
    score, issue = quality.odd_sizes(sizes, sizes)
    assert issue[20:].tolist() == [False, False, False, True, True]
    assert score[[0, 21]].tolist() == [1, 0.5]


def test_equal_areas_of_different_shape_are_not_odd() -> None:
    width = np.array([300, 200, 600, 100, 300] * 10)
    height = 60_000 // width
    assert not quality.odd_sizes(width, height)[1].any()


def test_columns_that_do_not_fit_are_refused_by_name() -> None:
    scores = {name: np.full(2, 0.5) for name in quality.PIXEL_CHECKS}
    size = np.array([5, 5])
    with pytest.raises(ValueError, match="phash has 1 values for 2 images"):
        quality.image_properties(np.arange(2), ["0" * 16], scores, size, size, THRESHOLDS)
    with pytest.raises(ValueError, match="dark_score"):
        quality.image_properties(np.arange(2), ["0" * 16] * 2, scores | {"dark": np.array([0.5, np.nan])}, size, size, THRESHOLDS)
