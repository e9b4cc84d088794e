"""Movements of one picture over another, and what is judged then."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dq_assets.audit.alignment import mutual_matches, turned_frames
from dq_assets.audit.witness import aligned_correlation


def test_mutual_matches_equal_the_cross_checked_brute_force_matcher() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 256, (n, 16), dtype=np.uint8) for n in (200, 180))
    right[:90] = left[40:130] ^ (rng.random((90, 16)) < 0.1).astype(np.uint8)
    theirs = sorted(cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(left, right), key=lambda match: match.distance)
    assert mutual_matches(left.view(np.uint64), right.view(np.uint64)).tolist() == [[match.queryIdx, match.trainIdx] for match in theirs]


def photo(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured clouds of several sizes, as a photograph has structure at every scale."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(0, 1, (n, n, 3)), (width, height), interpolation=cv2.INTER_CUBIC) / n**0.5 for n in (3, 6, 12, 24)]
    total = np.sum(layers, axis=0)
    return np.asarray(np.clip(128 + 55 * total / total.std(), 0, 255), dtype=np.uint8)


def jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR), dtype=np.uint8)


@pytest.mark.parametrize("fill", [0, 255], ids=["black corners", "white corners"])
@pytest.mark.parametrize("angle", [-3, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_corners_that_a_rotation_left_empty_do_not_count(fill: int, angle: float, seed: int) -> None:
    image = photo(192, 144, seed)
    cut = image[3:-4, 2:-7]
    height, width = cut.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    turned = cv2.warpAffine(cut, turn, (width, height), flags=cv2.INTER_CUBIC, borderValue=(fill, fill, fill))
    small = cv2.resize(turned[:, ::-1], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    copy = jpeg(np.clip(small * 0.8, 0, 255).astype(np.uint8), 60)
    assert aligned_correlation(image, copy) >= 0.9
    assert aligned_correlation(copy, image) >= 0.9


def test_a_turned_frame_is_empty_in_the_corners_that_the_rotation_left_empty() -> None:
    turn = cv2.getRotationMatrix2D((49.5, 29.5), 5, 1)  # an altered copy is the picture moved by this; b to a is its inverse
    copy = cv2.warpAffine(np.full((60, 100), 200, np.uint8), turn, (100, 60))
    frames = turned_frames((60, 100), (60, 100), np.asarray(turn, np.float64))
    assert frames is not None
    of_copy = frames[1]
    assert (copy[of_copy > 0] == 200).all()
    assert of_copy[copy == 200].mean() > 0.9
    assert turned_frames((60, 100), (60, 100), np.eye(2, 3)) is None


@pytest.mark.parametrize(("left", "top"), [(0, 0), (2, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_small_picture_is_found_when_a_pixel_or_two_are_cut_off(left: int, top: int, mirrored: bool) -> None:
    image = cv2.resize(photo(96, 96), (32, 32), interpolation=cv2.INTER_AREA)
    cut = image[top : top + 30, left : left + 30]
    copy = jpeg(np.ascontiguousarray(cut[:, ::-1] if mirrored else cut), 95)
    assert aligned_correlation(np.asarray(image, np.uint8), copy) >= 0.9
    assert aligned_correlation(copy, np.asarray(image, np.uint8)) >= 0.9
    assert aligned_correlation(np.asarray(cv2.resize(photo(96, 96, 5), (32, 32)), np.uint8), copy) < 0.9


def test_a_small_colourful_picture_survives_the_coarse_colours_of_jpeg() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :, 0], image[8:24, 8:24] = 200, (20, 180, 60)
    cv2.circle(image, (16, 16), 5, (250, 240, 20), -1)
    image = np.clip(image + 0.2 * photo(32, 32).astype(np.float32), 0, 255).astype(np.uint8)
    assert aligned_correlation(image, jpeg(image, 60)) >= 0.9
    assert aligned_correlation(image, image[..., ::-1].copy()) < 0.9
