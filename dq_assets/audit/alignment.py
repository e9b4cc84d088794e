"""How may one picture lie over another? Movements of pixels, from keypoints and improved on the pixels.

A movement is a 2 x 3 matrix from pixels of a to pixels of b. What belongs here: finding movements and what part of a picture they
leave to be judged. How well the pixels agree then is in `witness`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

KEYPOINT_SIDE = 256
"""Longest side at which keypoints are sought."""

KEYPOINTS = 150
"""Keypoints sought per picture. 200 of them, compared in all 256 bits, took twice the time for the same copies."""

WORDS = 2
"""How many of the four 64-bit words of a descriptor are compared; with one alone, no copy of 180 was lost yet."""

MIN_INLIERS = 10
"""Keypoints that must agree on one movement. Copies had at least 32, look-alikes 7 in the median."""

MAX_ANGLE = 20.0
"""Largest rotation, in degrees, that is undone."""

CORNERS_FROM = 0.5
"""Rotation, in degrees, from which on the corners that a rotation leaves empty are kept out of the comparison."""


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of one picture in one orientation: points (n, 2), shares of the longest side; angles (n,) in degrees; words (n, WORDS) of
    its descriptors."""

    points: Floats
    angles: Floats
    words: NDArray[np.uint64]


def keypoints(grey: Image) -> tuple[Keypoints, Keypoints]:
    """ORB keypoints (Rublee et al. 2011) of a picture and of its mirror image, as the descriptors do not see through a mirror.

    Detected once: the mirrored ones have the same places, which saves a third of the time.
    """
    import cv2

    # fastThreshold 5 instead of 20: a plain shirt on a plain sheet has no strong corners. Made anew, as threads must not share it.
    orb = cv2.ORB_create(nfeatures=KEYPOINTS, nlevels=6, edgeThreshold=12, patchSize=24, fastThreshold=5)  # type: ignore[attr-defined]
    found = orb.detect(grey, None)
    width = grey.shape[1]
    turned = [cv2.KeyPoint(width - 1 - p.pt[0], p.pt[1], p.size, (180 - p.angle) % 360, p.response, p.octave, p.class_id) for p in found]
    return _described(orb, grey, found), _described(orb, np.ascontiguousarray(grey[:, ::-1]), turned)


def _described(orb: Any, grey: Image, found: Any) -> Keypoints:
    kept, descriptors = orb.compute(grey, found)
    points = np.array([point.pt for point in kept], dtype=np.float32).reshape(-1, 2)
    angles = np.array([point.angle for point in kept], dtype=np.float32)
    bits = np.empty((0, 32), dtype=np.uint8) if descriptors is None else descriptors
    words = np.ascontiguousarray(bits.view(np.uint64)[:, :WORDS])
    return Keypoints((points + 0.5) / np.float32(max(grey.shape)), angles, words)


NO_KEYPOINTS = Keypoints(np.empty((0, 2), np.float32), np.empty(0, np.float32), np.empty((0, WORDS), np.uint64))


def keypoint_movement(a: Keypoints, b: Keypoints, side: int) -> Matrix | None:
    """Rotation, scale and shift that most keypoints agree on (RANSAC), or None if fewer than MIN_INLIERS do.

    side: longest side, in pixels, of the two pictures that the movement is for.
    """
    import cv2

    if min(len(a.points), len(b.points)) < MIN_INLIERS:
        return None
    matches = mutual_matches(a.words, b.words)
    # Turned by as much as the picture, or the match is wrong: this leaves too few of most look-alikes before anything is fitted.
    turn = np.abs((b.angles[matches[:, 1]] - a.angles[matches[:, 0]] + 180) % 360 - 180)
    matches = matches[turn <= MAX_ANGLE + 10][:100]
    if len(matches) < MIN_INLIERS:
        return None
    source, target = (k.points[matches[:, i]] * np.float32(side) - np.float32(0.5) for i, k in enumerate((a, b)))
    movement, inliers = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC, ransacReprojThreshold=2.0, maxIters=300)
    if movement is None or int(inliers.sum()) < MIN_INLIERS:
        return None
    return np.asarray(movement, dtype=np.float64)


def mutual_matches(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(m, 2) rows of left and right (n, up to 3 words) that are each other's nearest by Hamming distance, closest first.

    What OpenCV's BFMatcher(NORM_HAMMING, crossCheck=True) answers, in less time.
    """
    distance = np.zeros((len(left), len(right)), dtype=np.uint8)
    for word in range(left.shape[1]):
        distance += np.bitwise_count(left[:, None, word] ^ right[None, :, word])
    nearest = distance.argmin(axis=1)
    mutual = np.flatnonzero(distance.argmin(axis=0)[nearest] == np.arange(len(left)))
    order = np.argsort(distance[mutual, nearest[mutual]], kind="stable")
    return np.stack([mutual, nearest[mutual]], axis=1)[order]


def refined(a: Floats, b: Floats, start: Matrix, *, shift_only: bool = False) -> Matrix:
    """The movement improved on the pixels (ECC, Evangelidis and Psarakis 2008); the start if that finds no way.

    a, b: grey. What a rotation left empty takes no part: with it, ECC pulled the pictures apart (copies cut and turned by 3 degrees
    and saved at JPEG 60 were found in 40 of 100 cases, without it in 95).
    """
    import cv2

    kind = cv2.MOTION_TRANSLATION if shift_only else cv2.MOTION_AFFINE
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    smooth = [cv2.GaussianBlur(view, (0, 0), 1.0) for view in (a, b)]
    frames = turned_frames(a.shape, b.shape, start)
    moved = start.astype(np.float32)
    try:
        if frames is None:
            _, movement = cv2.findTransformECC(smooth[0], smooth[1], moved, kind, stop, None, 5)
        else:
            _, movement = cv2.findTransformECCWithMask(smooth[0], smooth[1], *frames, moved, kind, stop, 5)
    except cv2.error:  # "The algorithm stopped before its convergence": the images have nothing in common from this start
        return start
    return np.asarray(movement, dtype=np.float64)


def turned_frames(a: tuple[int, ...], b: tuple[int, ...], movement: Matrix) -> tuple[Image, Image] | None:
    """What is left of two pictures (h, w) if one is the other turned within its frame: 0 in the corners that hold no picture then.

    None under CORNERS_FROM degrees. By geometry alone, as nobody knows the colour of the corners nor which picture was turned:
    3 degrees cost each picture 3 to 5 % of its area.
    """
    angle = degrees(movement)
    if abs(angle) < CORNERS_FROM:
        return None
    return _frame(a, angle), _frame(b, -angle)


def _frame(shape: tuple[int, ...], angle: float) -> Image:
    """1 where a picture turned about its middle is covered by itself, less a margin of one pixel."""
    import cv2

    height, width = shape[:2]
    inside = np.zeros((height, width), dtype=np.uint8)
    inside[1:-1, 1:-1] = 255
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
    return np.asarray(cv2.warpAffine(inside, turn, (width, height)) > 127, dtype=np.uint8)


def degrees(movement: Matrix) -> float:
    """Rotation of a movement."""
    return float(np.degrees(np.arctan2(movement[1, 0], movement[0, 0])))


def is_sane(movement: Matrix, squashed: Matrix) -> bool:
    """Scale .5 to 2, rotation up to MAX_ANGLE, hardly any shear or squash but that of the sides (`squashed`).

    A free affine warp laid one pair of trousers over another at .93.
    """
    linear = movement[:, :2]
    if not np.isfinite(movement).all() or np.linalg.det(linear) <= 0:
        return False
    scale = np.hypot(linear[0, 0], linear[1, 0])
    squash = min(_squash(linear), _squash(linear @ np.linalg.inv(squashed[:, :2])))
    return bool(0.5 <= scale <= 2 and abs(degrees(movement)) <= MAX_ANGLE and squash <= 1.08)


def _squash(linear: Matrix) -> float:
    large, small = np.linalg.svd(linear, compute_uv=False)
    return float(large / max(small, 1e-9))


def laid_over(b: Floats, movement: Matrix, a: Floats) -> Floats:
    """b, moved, in the pixels of a."""
    import cv2

    moved = cv2.warpAffine(b, movement, (a.shape[1], a.shape[0]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(moved, dtype=np.float32)
