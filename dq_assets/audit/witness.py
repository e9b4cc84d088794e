"""Are two images the same picture? The answer is looked for in their pixels, after laying one over the other.

An image is prepared once (`prepare`) and compared many times (`correlation`). What belongs here: alignment and correlation of
one pair. Which pairs are compared, and what follows from the answer, is in `duplicates`.

Correlation alone does not tell photos of clothes apart: two shirts on one sheet reach .97. What copies share and look-alikes do
not is fine structure everywhere, so the answer is the lowest of four correlations: pixels, coarse structure, structure in the
worst tenth of the blocks, brightness and colour of the worst block. Measured on 538 altered copies and 998 pairs of look-alikes:
in the worst tenth of the blocks the copies have .62 to 1, the look-alikes at most .54. Figures in this module are from these
pairs unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

WITNESS_VERSION = 1
"""Raised whenever an answer of this module changes; stored answers of older versions are not used then."""

WORK_SIDE = 96
"""Longest side, in pixels, at which pixels are compared: small enough that JPEG at quality 30 is above .95 of its original."""

KEYPOINT_SIDE = 256
"""Longest side at which keypoints are sought."""

SMALL_SIDE = 64
"""Below this longest side there are no keypoints and no warp: a shift is all that is allowed (two digits 1 differ by a warp)."""

MIN_INLIERS = 10
"""Keypoints that must agree on one movement. Copies had at least 32, look-alikes 7 in the median."""

PLAIN_BELOW = 2.0
"""Standard deviation in grey levels under which an image is plain: correlation of noise says nothing."""

TONE_LIMIT = 0.28
"""Difference in brightness or colour of one block, in standard deviations of the picture, that becomes a correlation of .9.
533 copies had .16 at the 95th and .24 at the 99th percentile (brightening that clips, mostly); of 170 pairs of drawings that differ
by the next skin tone, 95 in 100 had more."""

SMALL_TONE_LIMIT = 0.12
"""The same for images under SMALL_SIDE: MNIST digits had .064 when saved as JPEG (98th percentile), their nearest others .15 or more."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Prepared:
    """An image ready to be compared, about 45 kB. points are in pixels of `pixels`; index 1 of points and descriptors is mirrored."""

    pixels: Image
    points: tuple[Floats, Floats]
    descriptors: tuple[Image | None, Image | None]


def prepare(image: Image) -> Prepared:
    """Shrink an image and find its keypoints (ORB, Rublee et al. 2011), in both orientations as ORB does not see through a mirror.

    image: uint8 (h, w), (h, w, 1) or (h, w, 3) RGB. Raises ValueError for other shapes and types.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"Expected a grey or RGB uint8 image, got {image.dtype} {image.shape}. Convert it first.")
    rgb = image if image.ndim == 3 and image.shape[2] == 3 else np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    pixels = _resize(rgb, min(1.0, WORK_SIDE / max(rgb.shape[:2])))
    none = np.empty((0, 2), dtype=np.float32)
    factor = KEYPOINT_SIDE / max(rgb.shape[:2])
    # A strip too: ORB fails on the upper levels of its pyramid ("inv_scale_x > 0").
    if max(rgb.shape[:2]) < SMALL_SIDE or min(rgb.shape[:2]) * factor < SMALL_SIDE:
        return Prepared(pixels, (none, none), (None, None))
    import cv2

    large = _resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), factor)
    ratio = max(pixels.shape[:2]) / max(large.shape[:2])
    points, descriptors = zip(*(_keypoints(view, ratio) for view in (large, np.ascontiguousarray(large[:, ::-1]))), strict=True)
    return Prepared(pixels, points, descriptors)


def aligned_correlation(a: Image, b: Image) -> float:
    """How well the pixels of b, laid over a, correlate with those of a. In [0, 1]; above .9 they are the same picture.

    a, b: uint8, grey or RGB, of any size. Brightness and contrast cancel; a mirror, a crop down to about half of the area, a change of
    size and a rotation up to 20 degrees are undone. Another colour, or another structure in a tenth of the picture, counts against it.
    """
    return correlation(prepare(a), prepare(b))


def correlation(a: Prepared, b: Prepared, *, enough: float = 0.9) -> float:
    """`aligned_correlation` of two prepared images where that is at least `enough`, else some number below `enough`.

    Orientations are tried until one reaches `enough`, and a movement is given up as soon as it cannot.
    """
    side = min(max(a.pixels.shape[:2]), max(b.pixels.shape[:2]))
    first, second = (_resize(p.pixels, side / max(p.pixels.shape[:2])).astype(np.float32) for p in (a, b))
    grey_a = first @ _LUMA
    if min(float(grey_a.std()), float((second @ _LUMA).std())) < PLAIN_BELOW:
        return _plain_agreement(first, second)
    best = 0.0
    for mirrored in (False, True):
        other = np.ascontiguousarray(second[:, ::-1]) if mirrored else second
        for movement in _movements(a, b, grey_a, other @ _LUMA, mirrored):
            best = max(best, _agreement(first, other, movement, enough))
        if best >= enough:
            break
    return best


def _resize(image: Any, factor: float) -> Any:
    import cv2

    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    if size == (image.shape[1], image.shape[0]):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def _keypoints(grey: Image, ratio: float) -> tuple[Floats, Image | None]:
    import cv2

    # fastThreshold 5 instead of 20: a plain shirt on a plain sheet has no strong corners. Made anew, as threads must not share it.
    detector = cv2.ORB_create(nfeatures=200, nlevels=6, edgeThreshold=12, patchSize=24, fastThreshold=5)  # type: ignore[attr-defined]
    found, descriptors = detector.detectAndCompute(grey, None)
    points = np.array([point.pt for point in found], dtype=np.float32).reshape(-1, 2)
    return (points + 0.5) * np.float32(ratio) - 0.5, descriptors


def _plain_agreement(a: Floats, b: Floats) -> float:
    """1 if two images that are nearly one colour are the same colour, else 0."""
    import cv2

    c = cv2.resize(b, (a.shape[1], a.shape[0]), interpolation=cv2.INTER_AREA)
    return float(np.abs(cv2.blur(a, (3, 3)) - cv2.blur(c, (3, 3))).max() <= 4)


def _movements(a: Prepared, b: Prepared, grey_a: Floats, grey_b: Floats, mirrored: bool) -> list[Matrix]:
    """Movements from pixels of a to pixels of b that may lay b over a: from keypoints, or squashing b into a; both refined."""
    identity = np.array([[grey_b.shape[1] / grey_a.shape[1], 0, 0], [0, grey_b.shape[0] / grey_a.shape[0], 0]])
    if min(max(a.pixels.shape[:2]), max(b.pixels.shape[:2])) < SMALL_SIDE:
        return [m for m in (identity, _refined(grey_a, grey_b, identity, shift_only=True)) if _is_sane(m, identity, grey_a)]
    starts = [_keypoint_movement(a, b, mirrored)]
    alike = _correlate(grey_a, _laid_over(grey_b, identity, grey_a), np.ones_like(grey_a))
    # Keypoints of a drawing do not survive a resize by half, its squashed pixels do. Where both images have corners and these do
    # not match, it is another picture; without corners a fair start is worth refining.
    rich = min(len(a.points[0]), len(b.points[mirrored])) >= 50
    if alike >= 0.9 or (alike >= 0.6 and not rich and starts[0] is None):
        starts.append(identity)
    refined = [_refined(grey_a, grey_b, start, shift_only=False) for start in starts if start is not None]
    return [movement for movement in refined if _is_sane(movement, identity, grey_a)]


def _keypoint_movement(a: Prepared, b: Prepared, mirrored: bool) -> Matrix | None:
    """Rotation, scale and shift that most keypoints agree on (RANSAC), or None if fewer than MIN_INLIERS do."""
    import cv2

    left, right = a.descriptors[0], b.descriptors[mirrored]
    if left is None or right is None or min(len(left), len(right)) < MIN_INLIERS:
        return None
    matches = _mutual_matches(left, right)[:100]
    if len(matches) < MIN_INLIERS:
        return None
    source, target = a.points[0][matches[:, 0]], b.points[mirrored][matches[:, 1]]
    movement, inliers = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC, ransacReprojThreshold=2.0, maxIters=300)
    if movement is None or int(inliers.sum()) < MIN_INLIERS:
        return None
    return np.asarray(movement, dtype=np.float64)


def _mutual_matches(left: Image, right: Image) -> NDArray[np.int64]:
    """(m, 2) rows of left and right (uint8, 32 bytes each) that are each other's nearest by Hamming distance, closest first.

    What OpenCV's BFMatcher(NORM_HAMMING, crossCheck=True) answers, in half of its time, which was most of a comparison's.
    """
    a, b = left.view(np.uint64), right.view(np.uint64)
    distance = np.zeros((len(a), len(b)), dtype=np.uint16)
    for word in range(a.shape[1]):
        distance += np.bitwise_count(a[:, None, word] ^ b[None, :, word])
    nearest = distance.argmin(axis=1)
    mutual = np.flatnonzero(distance.argmin(axis=0)[nearest] == np.arange(len(a)))
    order = np.argsort(distance[mutual, nearest[mutual]], kind="stable")
    return np.stack([mutual, nearest[mutual]], axis=1)[order]


def _refined(a: Floats, b: Floats, start: Matrix, *, shift_only: bool) -> Matrix:
    """The movement improved on the pixels (ECC, Evangelidis and Psarakis 2008); the start if that finds no way."""
    import cv2

    kind = cv2.MOTION_TRANSLATION if shift_only else cv2.MOTION_AFFINE
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    smooth = [cv2.GaussianBlur(view, (0, 0), 1.0) for view in (a, b)]
    try:
        _, movement = cv2.findTransformECC(smooth[0], smooth[1], start.astype(np.float32), kind, stop, None, 5)
    except cv2.error:  # "The algorithm stopped before its convergence": the images have nothing in common from this start
        return start
    return np.asarray(movement, dtype=np.float64)


def _is_sane(movement: Matrix, identity: Matrix, grey_a: Floats) -> bool:
    """Scale .5 to 2, rotation up to 20 degrees, hardly any shear or squash but that of the sides.

    A free affine warp laid one pair of trousers over another at .93.
    """
    linear = movement[:, :2]
    if not np.isfinite(movement).all() or np.linalg.det(linear) <= 0:
        return False
    scale, angle = np.hypot(linear[0, 0], linear[1, 0]), np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))
    squash = min(_squash(linear), _squash(linear @ np.linalg.inv(identity[:, :2])))
    shift = np.abs(movement[:, 2]).max() / max(grey_a.shape)
    return bool(0.5 <= scale <= 2 and abs(angle) <= 20 and squash <= 1.08 and (max(grey_a.shape) >= SMALL_SIDE or shift <= 0.15))


def _squash(linear: Matrix) -> float:
    large, small = np.linalg.svd(linear, compute_uv=False)
    return float(large / max(small, 1e-9))


def _laid_over(b: Floats, movement: Matrix, a: Floats) -> Floats:
    import cv2

    moved = cv2.warpAffine(b, movement, (a.shape[1], a.shape[0]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(moved, dtype=np.float32)


def _agreement(a: Floats, b: Floats, movement: Matrix, enough: float) -> float:
    """The lowest of the four correlations of a and b moved over it; 0 if they share too little of their area.

    Cheapest first: once one is below `enough`, so is the answer, and the others are not computed.
    """
    grey_a, grey_b = a @ _LUMA, b @ _LUMA
    mask = (_laid_over(np.ones_like(grey_b), movement, grey_a) > 0.999).astype(np.float32)
    share_a = float(mask.mean())
    share_b = float(mask.sum()) * abs(float(np.linalg.det(movement[:, :2]))) / grey_b.size
    # Cut by 15 % at each side, .48 of the area is left; the smaller one must lie almost wholly in the larger.
    if max(share_a, share_b) < 0.75 or min(share_a, share_b) < 0.35:
        return 0.0
    moved = _laid_over(b, movement, a)
    moved_grey = moved @ _LUMA
    raw = _correlate(grey_a, moved_grey, mask)
    if raw < enough:
        return max(raw, 0.0)
    coarse, coarse_worst = _structure(grey_a, moved_grey, mask, sigmas=(1.0, 5.0))
    if coarse < enough:
        return max(coarse, 0.0)
    _, fine_worst = _structure(grey_a, moved_grey, mask, sigmas=(0.7, 2.5))
    # Four to one: .6 in the worst tenth of the blocks, between copies (>= .62) and look-alikes (<= .54), becomes .9.
    worst = 1 - (1 - (coarse_worst + fine_worst) / 2) / 4
    if worst < enough:
        return max(worst, 0.0)
    tone = 1 - _tone(a, moved, mask) * 0.1 / (TONE_LIMIT if max(grey_a.shape) >= SMALL_SIDE else SMALL_TONE_LIMIT)
    return float(np.clip(min(raw, coarse, worst, tone), 0, 1))


def _correlate(x: Floats, y: Floats, mask: Floats) -> float:
    """Zero-mean normalised correlation under a mask; 0 if either is constant there."""
    weight = max(float(mask.sum()), 1.0)
    x, y = (x - float((x * mask).sum()) / weight) * mask, (y - float((y * mask).sum()) / weight) * mask
    return float((x * y).sum() / np.sqrt(max(float((x * x).sum()) * float((y * y).sum()), 1e-6)))


def _structure(x: Floats, y: Floats, mask: Floats, *, sigmas: tuple[float, float]) -> tuple[float, float]:
    """Correlation of a band of frequencies: (over the picture, the tenth percentile over blocks that hold any structure).

    A plain background takes no part in either, however large it is.
    """
    import cv2

    def band(view: Floats) -> Floats:
        # Blurring under the mask keeps the edge of the mask from looking like structure.
        low, high = (cv2.GaussianBlur(view * mask, (0, 0), s) / np.maximum(cv2.GaussianBlur(mask, (0, 0), s), 1e-3) for s in sigmas)
        return np.asarray((low - high) * mask, dtype=np.float32)

    u, v = band(x), band(y)
    energy_u, energy_v = float((u * u).sum()), float((v * v).sum())
    v *= np.float32(np.sqrt(energy_u / max(energy_v, 1e-3)))
    whole = float((u * v).sum() / max(energy_u, 1e-3))
    side_x, side_y = (max(5, length // 8) for length in (x.shape[1], x.shape[0]))
    uv, uu, vv, inside = (cv2.blur(z, (side_x, side_y))[side_y // 2 :: side_y, side_x // 2 :: side_x] for z in (u * v, u * u, v * v, mask))
    # Under one squared grey level a block holds noise.
    active = (np.maximum(uu, vv) > inside) & (inside > 0.5)
    if active.sum() < 3:
        return whole, whole
    return whole, float(np.quantile(uv[active] / np.sqrt(uu[active] * vv[active] + 1e-3), 0.1))


def _tone(a: Floats, b: Floats, mask: Floats) -> float:
    """Largest difference of a block in brightness or colour, once one contrast and one brightness are fitted for all channels.

    In standard deviations of the picture; 0 is best. Only the outer blocks are left out: a rotation leaves corners of another colour.
    """
    import cv2

    inside = mask[..., None]
    weight = max(3 * float(mask.sum()), 1.0)
    u, v = ((view - float((view * inside).sum()) / weight) * inside for view in (a, b))
    energy = [float((view * view).sum()) for view in (u, v)]
    # The one with less contrast is stretched, so that what the other one clipped is clipped too.
    low, high = (u, v) if energy[0] <= energy[1] else (v, u)
    gain = float((low * high).sum()) / max(min(energy), 1e-3)
    brightness = float(((b if low is u else a) * inside).sum()) / weight
    difference = (np.clip(low * gain + brightness, 0, 255) - np.clip(high + brightness, 0, 255)) * inside
    smooth = cv2.GaussianBlur(difference, (0, 0), 1.5) / np.maximum(cv2.GaussianBlur(mask, (0, 0), 1.5), 1e-3)[..., None]
    height, width = (max(5, length // 12) for length in mask.shape)
    squared, area = (
        cv2.blur(np.ascontiguousarray(z, dtype=np.float32), (width, height))[height // 2 :: height, width // 2 :: width]
        for z in ((smooth * inside * smooth).mean(axis=2), mask)
    )
    edge = max(1, len(area) // 8)
    worst = (squared * (area > 0.5))[edge:-edge, edge:-edge].max(initial=0.0)
    return float(np.sqrt(max(float(worst), 0.0) / max(max(energy) / weight, 1e-3)))
