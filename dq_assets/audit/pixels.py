"""From the bytes of a file to the pixels that a network sees.

Wrong preprocessing is silent: ImageNet's mean and std in place of 0.5 cost the default network 11 points of top-1 accuracy on ImageNet
photos. So mean, std and size stand in one record, which is part of the identity under which vectors are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIN_SIDE_FACTOR = 2
"""A JPEG is decoded at a fraction of its size while its shorter side keeps this many times the pixels that are needed."""


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


def preprocess(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Resize and centre crop in one step: (height, width, 3) uint8, the pixels that timm's evaluation transform gives, +-1.

    Only the crop is ever computed: resizing first would make 2.5 gigapixels of an image of 1 x 40,000.
    """
    height, width = how.input_size
    full_height, full_width = _resized(how)
    if how.mode == "center":  # keep the aspect ratio; the longer side is rounded down, as in torchvision
        ratio = min(image.height / full_height, image.width / full_width)
        full_height, full_width = max(full_height, int(image.height / ratio)), max(full_width, int(image.width / ratio))
    left, top = round((full_width - width) / 2), round((full_height - height) / 2)
    x, y = image.width / full_width, image.height / full_height
    box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling[how.interpolation.upper()], box=box))


def min_side(how: Preprocessing) -> int:
    """Shorter side in pixels that a decoder should keep (`decoding.decode_rgb`), so that decoding small does not move the vectors."""
    return MIN_SIDE_FACTOR * max(_resized(how))


def _resized(how: Preprocessing) -> tuple[int, int]:
    """(height, width) before the crop; the shorter side's in mode center."""
    return math.floor(how.input_size[0] / how.crop_pct), math.floor(how.input_size[1] / how.crop_pct)
