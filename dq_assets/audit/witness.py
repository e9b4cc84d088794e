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

from dq_assets.audit.alignment import (
    KEYPOINT_SIDE,
    NO_KEYPOINTS,
    Keypoints,
    is_sane,
    keypoint_movement,
    keypoints,
    laid_over,
    refined,
    turned_frames,
)

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

WITNESS_VERSION = 2
"""Raised whenever an answer of this module changes; stored answers of older versions are not used then."""

WORK_SIDE = 96
"""Longest side, in pixels, at which pixels are compared: small enough that JPEG at quality 30 is above .95 of its original."""

SMALL_SIDE = 64
"""Below this longest side there are no keypoints and no warp: a cut and a shift are all that is allowed (two digits 1 differ by a warp)."""

PLAIN_BELOW = 2.0
"""Standard deviation in grey levels under which an image is plain: correlation of noise says nothing."""

TONE_LIMIT = 0.28
"""Difference in brightness or colour of one block, in standard deviations of the picture, that becomes a correlation of .9.
533 copies had .16 at the 95th and .24 at the 99th percentile (brightening that clips, mostly); of 170 pairs of drawings that differ
by the next skin tone, 95 in 100 had more."""

SMALL_TONE_LIMIT = 0.12
"""The same for the brightness of images under SMALL_SIDE: MNIST digits had .064 when saved as JPEG (98th percentile), their nearest
others .15 or more. Not for colour: JPEG keeps it at half of the resolution."""

CLIPPED = 250
"""Grey level from which on a channel may have been cut off by brightening."""

CUTS = (0.95, 0.9, 0.85)
"""Shares of the side of a small image that a copy may show at another scale."""

SMALL_SHIFT = 0.15
"""Largest shift of a small image, as a share of its longest side."""

SMALL_START = 0.8
"""Least correlation of the middle of a small image at its best whole-pixel shift; below it nothing is refined."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_THUMB = 16


@dataclass(frozen=True)
class Prepared:
    """An image ready to be compared, some 50 kB. Index 1 of what comes in two is mirrored.

    spread: standard deviation in grey levels. thumbs: (256,) of mean 0 and length 1.
    """

    pixels: Image
    spread: float
    thumbs: tuple[Floats, Floats]
    keypoints: tuple[Keypoints, Keypoints]


def prepare(image: Image) -> Prepared:
    """Shrink an image and find its keypoints, in both orientations.

    image: uint8 (h, w), (h, w, 1) or (h, w, 3) RGB. Raises ValueError for other shapes and types.
    """
    import cv2

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"Expected a grey or RGB uint8 image, got {image.dtype} {image.shape}. Convert it first.")
    rgb = image if image.ndim == 3 and image.shape[2] == 3 else np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    pixels = _resize(rgb, min(1.0, WORK_SIDE / max(rgb.shape[:2])))
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    thumb = cv2.resize(grey, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumb -= thumb.mean()
    thumb /= max(float(np.linalg.norm(thumb)), 1e-6)
    factor = KEYPOINT_SIDE / max(rgb.shape[:2])
    found = (NO_KEYPOINTS, NO_KEYPOINTS)
    # No strip either: ORB fails on the upper levels of its pyramid ("inv_scale_x > 0").
    if max(rgb.shape[:2]) >= SMALL_SIDE and min(rgb.shape[:2]) * factor >= SMALL_SIDE:
        found = keypoints(_resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), factor))
    return Prepared(pixels, float(grey.std()), (thumb.ravel(), thumb[:, ::-1].ravel()), found)


def aligned_correlation(a: Image, b: Image, *, mirrored: bool = True) -> float:
    """How well the pixels of b, laid over a, correlate with those of a. In [0, 1]; above .9 they are the same picture.

    a, b: uint8, grey or RGB, of any size. Brightness and contrast cancel; a mirror (if `mirrored`), a crop down to about half of the
    area, a change of size and a rotation up to 20 degrees are undone. Another colour, or another structure in a tenth of the picture,
    counts against it.
    """
    return correlation(prepare(a), prepare(b), mirrored=mirrored)


def correlation(a: Prepared, b: Prepared, *, enough: float = 0.9, mirrored: bool = True) -> float:
    """`aligned_correlation` of two prepared images where that is at least `enough`, else some number below `enough`.

    Orientations are tried until one reaches `enough`, and a movement is given up as soon as it cannot.
    """
    side = min(max(a.pixels.shape[:2]), max(b.pixels.shape[:2]))
    if min(a.spread, b.spread) < PLAIN_BELOW:
        return _plain_agreement(*_views(a, b, side, mirrored=False))
    laid = _small_overlays if side < SMALL_SIDE else _overlays
    best = 0.0
    for orientation in (False, True) if mirrored else (False,):
        for first, second, movement in laid(a, b, side, orientation):
            best = max(best, _agreement(first, second, movement, enough))
        if best >= enough:
            break
    return best


def _views(a: Prepared, b: Prepared, side: int, *, mirrored: bool) -> tuple[Floats, Floats]:
    """Both pictures as floats with one longest side, the second one mirrored if that is asked."""
    first, second = (_resize(p.pixels, side / max(p.pixels.shape[:2])).astype(np.float32) for p in (a, b))
    return first, np.ascontiguousarray(second[:, ::-1]) if mirrored else second


def _resize(image: Any, factor: float) -> Any:
    return _sized(image, max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))


def _sized(image: Any, width: int, height: int) -> Any:
    import cv2

    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_LINEAR)


def _plain_agreement(a: Floats, b: Floats) -> float:
    """1 if two images that are nearly one colour are the same colour, else 0."""
    import cv2

    c = cv2.resize(b, (a.shape[1], a.shape[0]), interpolation=cv2.INTER_AREA)
    return float(np.abs(cv2.blur(a, (3, 3)) - cv2.blur(c, (3, 3))).max() <= 4)


def _overlays(a: Prepared, b: Prepared, side: int, mirrored: bool) -> list[tuple[Floats, Floats, Matrix]]:
    """Both pictures and the movements that may lay b over a: from keypoints, or squashing b into a; both refined on the pixels."""
    start = keypoint_movement(a.keypoints[0], b.keypoints[mirrored], side)
    # Keypoints of a drawing do not survive a resize by half, its squashed pixels do. Where both images have corners and these do
    # not match, it is another picture; without corners a fair start is worth refining.
    alike = float(a.thumbs[0] @ b.thumbs[mirrored])
    rich = min(len(a.keypoints[0].points), len(b.keypoints[mirrored].points)) >= 50
    squash = alike >= 0.9 or (alike >= 0.6 and not rich and start is None)
    if start is None and not squash:
        return []
    first, second = _views(a, b, side, mirrored=mirrored)
    squashed = np.array([[second.shape[1] / first.shape[1], 0, 0], [0, second.shape[0] / first.shape[0], 0]])
    starts = [each for each in (start, squashed if squash else None) if each is not None]
    grey = first @ _LUMA, second @ _LUMA
    found = [refined(*grey, each) for each in starts]
    return [(first, second, movement) for movement in found if is_sane(movement, squashed)]


def _small_overlays(a: Prepared, b: Prepared, side: int, mirrored: bool) -> list[tuple[Floats, Floats, Matrix]]:
    """Small pictures, one squashed into the other or cut to its size, and their shift."""
    import cv2

    found = []
    for first, second in (_views(a, b, side, mirrored=mirrored), *_cut(a.pixels, b.pixels[:, ::-1] if mirrored else b.pixels)):
        squashed = np.array([[second.shape[1] / first.shape[1], 0, 0], [0, second.shape[0] / first.shape[0], 0]])
        grey_a, grey_b = first @ _LUMA, second @ _LUMA
        y, x = (round(length * SMALL_SHIFT) for length in grey_a.shape)
        middle = cv2.resize(grey_b, (grey_a.shape[1], grey_a.shape[0]))[y : -y or None, x : -x or None]
        if float(cv2.matchTemplate(grey_a, middle, cv2.TM_CCOEFF_NORMED).max()) < SMALL_START:
            continue
        shifted = refined(grey_a, grey_b, squashed, shift_only=True)
        near = is_sane(shifted, squashed) and np.abs(shifted[:, 2]).max() <= SMALL_SHIFT * side
        found += [(first, second, movement) for movement in ((squashed, shifted) if near else (squashed,))]
    return found


def _cut(a: Image, b: Image) -> list[tuple[Floats, Floats]]:
    """The part of the larger picture that the smaller one resembles most, with the smaller one; nothing if they are of one size.

    Cut at its own scale, or at that of one of CUTS. Not for one size: cutting and enlarging laid digits 1 and 7 over each other.
    """
    import cv2

    swap = a.shape[0] * a.shape[1] < b.shape[0] * b.shape[1]
    large, small = (np.ascontiguousarray(view) for view in ((b, a) if swap else (a, b)))
    height, width = small.shape[:2]
    if height > large.shape[0] or width > large.shape[1] or small.shape == large.shape:
        return []
    sizes = [(round(width / share), round(height / share)) for share in CUTS]
    if min(height / large.shape[0], width / large.shape[1]) >= min(CUTS):
        sizes.append((large.shape[1], large.shape[0]))
    best, part = -1.0, small
    for wide, high in sizes:
        scaled = _sized(large, wide, high)
        score = cv2.matchTemplate(scaled, small, cv2.TM_CCOEFF_NORMED)
        y, x = divmod(int(score.argmax()), score.shape[1])
        if score[y, x] > best:
            best, part = float(score[y, x]), scaled[y : y + height, x : x + width]
    pair = part.astype(np.float32), small.astype(np.float32)
    return [(pair[1], pair[0]) if swap else pair] if best >= SMALL_START else []


def _agreement(a: Floats, b: Floats, movement: Matrix, enough: float) -> float:
    """The lowest of the four correlations of a and b moved over it; 0 if they share too little of their area.

    Cheapest first: once one is below `enough`, so is the answer, and the others are not computed.
    """
    mask, share_a, share_b = _shared(a.shape[:2], b.shape[:2], movement)
    # Cut by 15 % at each side, .48 of the area is left; the smaller one must lie almost wholly in the larger.
    if max(share_a, share_b) < 0.75 or min(share_a, share_b) < 0.35:
        return 0.0
    moved = laid_over(b, movement, a)
    grey_a = a @ _LUMA
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
    both, brightness = _tone(a, moved, mask)
    tone = max(both / TONE_LIMIT, brightness / SMALL_TONE_LIMIT if max(grey_a.shape) < SMALL_SIDE else 0.0)
    return float(np.clip(min(raw, coarse, worst, 1 - tone * 0.1), 0, 1))


def _shared(shape_a: tuple[int, ...], shape_b: tuple[int, ...], movement: Matrix) -> tuple[Floats, float, float]:
    """(mask over a of what both pictures show, that share of a's area, that of b's area).

    The shares are those of the frames. The mask is one pixel less, where the outside is mixed in, and less the corners of a rotation.
    """
    import cv2

    covered = np.asarray(laid_over(np.ones(shape_b, np.float32), movement, np.empty(shape_a, np.float32)) > 0.999, dtype=np.uint8)
    share = float(covered.mean())
    share_b = share * covered.size * abs(float(np.linalg.det(movement[:, :2]))) / (shape_b[0] * shape_b[1])
    mask = cv2.erode(covered, np.ones((3, 3), np.uint8)).astype(np.float32)
    frames = turned_frames(shape_a, shape_b, movement)
    if frames is not None:
        mask *= frames[0] * (laid_over(frames[1].astype(np.float32), movement, mask) > 0.999)
    return mask, share, share_b


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


def _tone(a: Floats, b: Floats, mask: Floats) -> tuple[float, float]:
    """Worst difference of a block in (brightness and colour, brightness), one contrast and one brightness fitted for all.

    In standard deviations of the picture; 0 is best. Only the outer blocks are left out: they hold least of the picture.
    """
    import cv2

    inside = mask[..., None]
    weight = max(3 * float(mask.sum()), 1.0)
    # What is clipped in one picture alone takes no part in the fit; what is white in both holds it, or a lighter skin would pass
    # for more light.
    clipped = (np.maximum(a, b) >= CLIPPED) & (np.minimum(a, b) < CLIPPED)
    fitted = inside * ~clipped
    if float(fitted.sum()) < 0.2 * weight:
        fitted = inside
    parts_of = max(float(fitted.sum()), 1.0)
    means = [float((view * fitted).sum()) / parts_of for view in (a, b)]
    u, v = a - np.float32(means[0]), b - np.float32(means[1])
    energy = [float((view * view * fitted).sum()) for view in (u, v)]
    # The one with less contrast is stretched, so that what the other one clipped is clipped too.
    low, high, brightness = (u, v, means[1]) if energy[0] <= energy[1] else (v, u, means[0])
    gain = float((low * high * fitted).sum()) / max(min(energy), 1e-3)
    difference = (np.clip(low * gain + brightness, 0, 255) - np.clip(high + brightness, 0, 255)) * inside
    spread = max(float(((view - float((view * inside).sum()) / weight) ** 2 * inside).sum()) for view in (a, b)) / weight
    smooth = cv2.GaussianBlur(difference, (0, 0), 1.5) / np.maximum(cv2.GaussianBlur(mask, (0, 0), 1.5), 1e-3)[..., None] * inside
    even = smooth.mean(axis=2)
    height, width = (max(5, length // 12) for length in mask.shape)
    parts = np.stack([(smooth * smooth).mean(axis=2), even * even, mask], axis=2, dtype=np.float32)
    blocks = cv2.blur(parts, (width, height))[height // 2 :: height, width // 2 :: width]
    edge = max(1, len(blocks) // 8)
    worst = (blocks[..., :2] * (blocks[..., 2:] > 0.5))[edge:-edge, edge:-edge].max(axis=(0, 1), initial=0.0)
    both, alone = np.sqrt(np.maximum(worst, 0.0) / max(spread, 1e-3)).tolist()
    return both, alone
