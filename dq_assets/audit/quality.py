"""Image quality without a model: scores of one decoded image, and the table image_properties of a dataset.

The formulas are CleanVision's (Apache-2.0, github.com/cleanlab/cleanvision, 0.3.7), computed on the decoded RGB image; where
we differ, the function says so. What does not belong here: reading and decoding of files (`dq_assets.audit.images`).

Score contract: in [0, 1], never NaN, 0 is worst.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from PIL import Image, ImageFilter

from dq_assets.schema import QUALITY_CHECKS, TABLES

if TYPE_CHECKING:
    from dq_assets.settings import Quality

PIXEL_CHECKS: tuple[str, ...] = tuple(check for check in QUALITY_CHECKS if check != "odd_size")
"""Checks that one image answers alone; odd_size needs the sizes of the whole dataset."""

SAMPLE_PIXELS = 65_536
"""Most pixels, on an even grid, that the brightness percentiles are read from."""

BLUR_SIDE = 64
"""Longest side of the copy whose edges are measured."""

FENCE_RANGES = 3.0
"""Interquartile ranges beyond the quartiles at which a size is odd."""


def pixel_scores(image: Image.Image) -> dict[str, float]:
    """Quality scores of one decoded RGB image, by name as in `PIXEL_CHECKS`, each in [0, 1], 0 worst.

    dark              brightness of the 99th percentile pixel, brightness = sqrt(.241 R^2 + .691 G^2 + .068 B^2) / 255
    light             1 - brightness of the 5th percentile pixel
    blurry            see `_blurry`
    low_information   entropy of the grey histogram in bits, over 10 (so at most .8). CleanVision takes one histogram over the
                      three channels of an RGB file, which adds log2(3) / 10 = .158 (measured mean .160 on 3,000 photos)
                      to what the same picture scores as a grey file; one formula for both is easier to put a threshold on.
    odd_aspect_ratio  shorter side over longer side
    grayscale         0.0 if R = G = B everywhere, else 1.0 (CleanVision asks the file's mode, which a grey RGB file evades)

    Raises ValueError on an image of another mode.
    """
    scorer = PixelScorer(image.size)
    scorer.add(0, image)
    return scorer.scores()


class PixelScorer:
    """`pixel_scores` of an image that comes in bands. Holds its grey copy, 1 byte a pixel, and a sample of its pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.grey = Image.new("L", (0, 0))
        self._rows, self._columns = _sample_grid(*size)
        self._samples: list[np.ndarray] = []
        self._all_grey = True

    def add(self, top: int, band: Image.Image) -> None:
        """Take the rows from `top` on, as an RGB image of the full width."""
        if band.mode != "RGB":
            raise ValueError(f"The scores need an RGB image, got mode {band.mode}. Decode it with decoding.decode_rgb.")
        if band.size == self.size:
            self.grey = band.convert("L")
        else:
            self.grey = self.grey if self.grey.size == self.size else Image.new("L", self.size)
            self.grey.paste(band.convert("L"), (0, top))
        rows = self._rows[(self._rows >= top) & (self._rows < top + band.height)] - top
        sample = np.asarray(band)[rows][:, self._columns].reshape(-1, 3)
        self._samples.append(sample)
        self._all_grey = self._all_grey and _is_grey(band, sample)

    def scores(self) -> dict[str, float]:
        """By name as in `PIXEL_CHECKS`, once all rows were added."""
        p5, p99 = _brightness_percentiles(np.concatenate(self._samples))
        scores = {
            "dark": p99,
            "light": 1.0 - p5,
            "blurry": _blurry(self.grey),
            "low_information": 0.1 * self.grey.entropy(),
            "odd_aspect_ratio": min(self.size) / max(self.size),
            "grayscale": 0.0 if self._all_grey else 1.0,
        }
        # Rounding alone can leave [0, 1]: the weights of a white pixel sum to 1.0000001 in float32.
        return {name: min(max(float(score), 0.0), 1.0) for name, score in scores.items()}


def image_properties(
    image_id: np.ndarray,
    phash: list[str],
    scores: dict[str, np.ndarray],
    width: np.ndarray,
    height: np.ndarray,
    settings: Quality,
) -> pl.DataFrame:
    """The table image_properties: a row per image in the order given, columns and types of the schema.

    image_id: (N,) int64. phash: N strings of 16 hex digits. scores: per name in `PIXEL_CHECKS` an (N,) array of `pixel_scores`.
    width, height: (N,) pixels. N may be 0. An issue is a score below the setting <check>_below; grayscale is one at score 0;
    odd_size as in `odd_sizes`. Raises ValueError naming a column of wrong length or with values outside [0, 1] (NaN too).
    """
    n = len(image_id)
    size_score, size_issue = odd_sizes(width, height)
    below = {check: getattr(settings, f"{check}_below") for check in PIXEL_CHECKS if check != "grayscale"} | {"grayscale": 0.5}
    columns: dict[str, np.ndarray | list[str]] = {"image_id": np.asarray(image_id, np.int64), "phash": phash}
    for check in QUALITY_CHECKS:
        # Compared as stored, in float32, so that a query on the table finds the same issues.
        score = (size_score if check == "odd_size" else np.asarray(scores[check])).astype(np.float32)
        columns[f"{check}_score"] = score
        columns[f"is_{check}_issue"] = size_issue if check == "odd_size" else score < np.float32(below[check])
    for name, values in columns.items():
        if len(values) != n:
            raise ValueError(f"{name} has {len(values)} values for {n} images. Give one per image.")
        if name.endswith("_score") and not np.all((np.asarray(values) >= 0) & (np.asarray(values) <= 1)):
            raise ValueError(f"{name} has values outside [0, 1]. Take scores from pixel_scores.")
    types = {"BIGINT": pl.Int64, "VARCHAR": pl.String, "FLOAT": pl.Float32, "BOOLEAN": pl.Boolean}
    table = TABLES["image_properties"]
    return pl.DataFrame(
        {column.name: columns[column.name] for column in table.columns},
        schema={column.name: types[column.type] for column in table.columns},
    )


def odd_sizes(width: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score and issue of each image's size sqrt(width * height) against the dataset's own quartiles.

    The fence is Q1 - 3 IQR to Q3 + 3 IQR (quartiles by linear interpolation). score = 1 - |size - centre| / (2 half), clipped
    to [0, 1], with centre and half the middle and half the length of the fence: 1 at the centre, exactly 0.5 at the fence,
    0 one half-length beyond. An issue lies beyond the fence, not on it.

    Where half of the images or more share one size, IQR is 0 and the fence has no length. CleanVision then scores
    1 - |size - centre| / centre and flags every other size, 4032 among 4000 too. We keep that score and its 0.5 as
    the fence: half to one and a half times the common size.

    width, height: (N,) pixels, at least 1. Returns (N,) float64 and (N,) bool. N may be 0; one image or two are never odd.
    """
    size = np.sqrt(np.asarray(width, np.float64) * np.asarray(height, np.float64))
    if len(size) == 0:
        return np.empty(0), np.empty(0, bool)
    q1, q3 = np.percentile(size, [25, 75])
    centre, half = (q1 + q3) / 2, (q3 - q1) * (0.5 + FENCE_RANGES)
    # sqrt leaves equal areas equal, but interpolation between quartiles may not: below 1e-9 of the size it is rounding.
    if half <= 1e-9 * centre:
        half = centre / 2
    distance = np.abs(size - centre)
    return 1 - np.clip(distance / (2 * half), 0, 1), distance > half * (1 + 1e-12)


def _sample_grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of an even grid over an image, at most SAMPLE_PIXELS crossings; all of a small image.

    Picked, not averaged: shrinking 224 px photos to 128 by averaging moves the percentiles by up to .20, picking by up to .018
    (500 photos). At the size that is used, about 47,000 of 187,500 pixels, picking moves them by at most .003, .0005 in the
    mean (60 mosaics of photos, for want of larger ones); images up to SAMPLE_PIXELS are exact.
    """
    step = math.ceil(math.sqrt(width * height / SAMPLE_PIXELS))
    # A strip narrower than the step keeps one column, and then no more rows than SAMPLE_PIXELS.
    n_rows = max(1, height // step)
    n_columns = max(1, min(width // step, SAMPLE_PIXELS // n_rows))
    n_rows = min(n_rows, SAMPLE_PIXELS // n_columns)
    return tuple(((np.arange(n) + 0.5) * (side / n)).astype(np.int64) for n, side in ((n_rows, height), (n_columns, width)))  # type: ignore[return-value]


def _brightness_percentiles(pixels: np.ndarray) -> tuple[float, float]:
    """5th and 99th percentile of brightness in [0, 1] of (n, 3) uint8 pixels, by linear interpolation."""
    channels = pixels.astype(np.float32)
    squares = np.square(channels, out=channels) @ np.array([0.241, 0.691, 0.068], np.float32)
    # Sorted whole: 0.11 ms for 47,000 values, where a partition at the four ranks takes 0.26. The root keeps the order, so it is
    # taken of four values instead of all.
    squares.sort()
    low, high = (_at(squares, share * (len(squares) - 1)) for share in (0.05, 0.99))
    return low, high


def _at(squares: np.ndarray, place: float) -> float:
    """Brightness at a place between two ranks of the sorted squares."""
    below, above = math.floor(place), math.ceil(place)
    first, second = (math.sqrt(float(squares[rank])) / 255 for rank in (below, above))
    return first + (second - first) * (place - below)


def _blurry(grey: Image.Image) -> float:
    """min(1, e + s) of a copy with at most 64 px on the longer side: e = 1 - exp(-.01 sd(edges)), s = 1 - exp(-.01 sd(histogram)).

    s is dropped at .18 or less: it saves drawings and plain pictures, whose histogram is all in a few values, from being called
    blurry. CleanVision shrinks in colour and converts then; the other order saves two thirds of the resampling and moves
    the score by at most .002 (800 photos). So does reducing_gap, which halves the rest on 500 px and bounds the work on large
    images: at most .002 (60 mosaics of photos; .007 at a gap of 2).
    """
    ratio = max(grey.size) / BLUR_SIDE
    if ratio > 1:
        size = max(int(grey.width // ratio), 1), max(int(grey.height // ratio), 1)
        grey = grey.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    edges = 1 - math.exp(-0.01 * float(np.asarray(grey.filter(ImageFilter.FIND_EDGES)).std()))
    spread = 1 - math.exp(-0.01 * float(np.std(grey.histogram())))
    return min(1.0, edges + (spread if spread > 0.18 else 0.0))


def _is_grey(image: Image.Image, sample: np.ndarray) -> bool:
    """Whether R = G = B in every pixel. The sample settles colour pictures; only grey candidates are looked at in full."""
    if not (np.array_equal(sample[:, 0], sample[:, 1]) and np.array_equal(sample[:, 0], sample[:, 2])):
        return False
    red, green, blue = (channel.tobytes() for channel in image.split())
    return red == green == blue
