"""Seeded pictures in place of photographs: 10 classes, each a polygon with its own number of corners on a coloured cloud, with grain.

They are as large, and as hard to decode, as small photographs (500 x 375, about 40 kB as JPEG); what they show teaches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (500, 375)
N_CLASSES = 10
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def make(folder: str, n: int) -> dict[str, int]:
    """Write n JPEGs into class folders; the same n always gives the same bytes."""
    root = Path(folder)
    for code in range(N_CLASSES):
        (root / f"class-{code}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        size = sum(pool.map(lambda i: _write(root, i), range(n)))
    return {"images": n, "bytes": size}


def files(folder: str, n: int | None = None) -> list[str]:
    """The paths of the first n images of a folder, in order of their names."""
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"No image was found under {folder}. Give another folder with --images.")
    return found[:n]


def opened(path: str) -> Image.Image:
    """In RGB, on white where it is transparent."""
    with Image.open(path) as image:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        return on_white.convert("RGB")


def embedded(pictures: Iterable[Image.Image]) -> np.ndarray:
    """(n, 1280) float32 by the default encoder."""
    from dq_assets.audit.encoder import Encoder

    encoder, left = Encoder(), iter(pictures)
    found = []
    while batch := [encoder.preprocess(picture) for picture in islice(left, 64)]:
        found.append(encoder(np.stack(batch)))
    return np.concatenate(found)


def _write(root: Path, i: int) -> int:
    path = root / f"class-{i % N_CLASSES}" / f"{i:06}.jpg"
    picture(i).save(path, quality=85)
    return path.stat().st_size


def picture(i: int) -> Image.Image:
    """The i-th picture."""
    rng = np.random.default_rng([7, i])
    cloud = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(cloud)
    centre, radius = rng.uniform((150, 110), (350, 265)), rng.uniform(50, 110)
    corners = 3 + i % N_CLASSES
    draw.regular_polygon((*centre, radius), corners, rotation=rng.uniform(0, 360), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = Image.fromarray(rng.integers(0, 256, (SIZE[1] // 2, SIZE[0] // 2), np.uint8)).resize(SIZE, Image.Resampling.BILINEAR)
    return Image.blend(cloud, grain.convert("RGB"), 0.12)
