"""From the bytes of a file to the pixels that a network sees.

Wrong preprocessing is silent: ImageNet's mean and std in place of 0.5 cost the default network 11 points of top-1 accuracy on ImageNet
photos. So mean, std and size stand in one record, which is part of the identity under which vectors are stored.
A plain JPEG takes a faster way than other images; which one is decided by its header, so the pixels follow from the bytes alone.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dq_assets.audit.decoding import decode_rgb, open_image, orientation
from dq_assets.settings import Images

MIN_SIDE_FACTOR = 2
"""A JPEG is decoded at a fraction of its size while its shorter side keeps this many times the pixels that are needed."""

FAST_PIXELS = 2_000_000
"""Most pixels for the faster way: larger ones gain little by it, and it is not counted in images.memory_mb (20 MB each at most)."""

FAST_RATIO = 4
"""Longer over shorter side for the same: it computes the whole resized image, also what is cropped away."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see. Sizes are (height, width); mean and std are for pixels in [0, 1]; mode is center or squash."""

    input_size: tuple[int, int]
    crop_pct: float
    mode: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


LITE0 = Preprocessing((224, 224), 0.875, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Of the default model, so that its identity needs no timm. Resize 256, crop 224: 88.8 % top-1 on ImageNet; a plain squash 82.7 %."""

LITE = {
    "tf_efficientnet_lite0": LITE0,
    "tf_efficientnet_lite1": replace(LITE0, input_size=(240, 240), crop_pct=0.882),
    "tf_efficientnet_lite2": replace(LITE0, input_size=(260, 260), crop_pct=0.89),
}
"""Of the models whose weights come as packages."""


def decode(data: bytes, how: Preprocessing, *, max_pixels: int, memory_mb: int = Images.memory_mb) -> NDArray[np.uint8]:
    """The bytes of an image file -> (height, width, 3) uint8, resized and cropped as the network was trained. Safe in threads.

    A plain JPEG is decoded by OpenCV and resized by PyTorch, without Python's lock; all others by PIL. OpenCV's pixels are PIL's to the
    bit, reduced sizes included; PyTorch's resized ones differ by .004 of 255 on average and 2 at most. Raises as `decoding.decode_rgb`.
    """
    image = open_image(io.BytesIO(data))
    if _is_plain(image, how) and image.width * image.height <= max_pixels:
        decoded = _decode_jpeg(data, _reduction(image, min_side(how)))
        if decoded is not None:
            return _resize(decoded, how)
    return preprocess(decode_rgb(data, max_pixels=max_pixels, memory_mb=memory_mb, min_side=min_side(how)), how)


def _is_plain(image: Image.Image, how: Preprocessing) -> bool:
    """Whether the faster way can do what the other does: a JPEG in colour or grey, not turned, not long, not large."""
    return (
        image.format in ("JPEG", "MPO")
        and image.mode in ("RGB", "L")
        and how.interpolation in ("bicubic", "bilinear")
        and max(image.size) <= FAST_RATIO * min(image.size)
        and image.width * image.height <= FAST_PIXELS
        and orientation(image) == 1
    )


def _reduction(image: Image.Image, side: int) -> int:
    """The divisor 1, 2, 4 or 8 at which a JPEG is decoded, as PIL's draft mode chooses it."""
    return next(divisor for divisor in (8, 4, 2, 1) if min(image.size) // side >= divisor or divisor == 1)


def _decode_jpeg(data: bytes, divisor: int) -> NDArray[np.uint8] | None:
    """(height, width, 3) blue, green, red; None for damaged data, of which PIL may say what it is."""
    import cv2

    reduced = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    decoded: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), reduced[divisor] | cv2.IMREAD_IGNORE_ORIENTATION)
    return decoded


def _resize(pixels: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """As `preprocess`, from (height, width, 3) blue, green, red to red, green, blue."""
    import torch

    height, width = how.input_size
    full = _full_size(pixels.shape[0], pixels.shape[1], how)
    top, left = round((full[0] - height) / 2), round((full[1] - width) / 2)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last, for which PyTorch has AVX2 code
    resized = torch.nn.functional.interpolate(planes, full, mode=how.interpolation, antialias=True)
    return np.ascontiguousarray(resized[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()[..., ::-1])


def preprocess(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Resize and centre crop in one step: (height, width, 3) uint8, the pixels that timm's evaluation transform gives, +-1.

    Only the crop is ever computed: resizing first would make 2.5 gigapixels of an image of 1 x 40,000.
    """
    height, width = how.input_size
    full_height, full_width = _full_size(image.height, image.width, how)
    left, top = round((full_width - width) / 2), round((full_height - height) / 2)
    x, y = image.width / full_width, image.height / full_height
    box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling[how.interpolation.upper()], box=box))


def min_side(how: Preprocessing) -> int:
    """Shorter side in pixels that a decoder should keep (`decoding.decode_rgb`), so that decoding small does not move the vectors."""
    return MIN_SIDE_FACTOR * max(_resized(how))


def _full_size(height: int, width: int, how: Preprocessing) -> tuple[int, int]:
    """(height, width) of a whole image before the crop."""
    full_height, full_width = _resized(how)
    if how.mode == "center":  # keep the aspect ratio; the longer side is rounded down, as in torchvision
        ratio = min(height / full_height, width / full_width)
        return max(full_height, int(height / ratio)), max(full_width, int(width / ratio))
    return full_height, full_width


def _resized(how: Preprocessing) -> tuple[int, int]:
    """(height, width) before the crop; the shorter side's in mode center."""
    return math.floor(how.input_size[0] / how.crop_pct), math.floor(how.input_size[1] / how.crop_pct)
