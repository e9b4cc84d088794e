"""Pictures that belong to no class of a photo or drawing set: the outliers that the demo plants. Drawn from a seed, nothing is shipped."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 192
"""Side on which outliers are drawn before they take the size of an image of the source."""


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, 3))


def _ink(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _painted(field: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Colour a field of numbers by a random palette of 2 to 5 colours."""
    low, high = field.min(), field.max()
    stops = _colours(rng, int(rng.integers(2, 6)))
    at = (field - low) / max(float(high - low), 1e-9) * (len(stops) - 1)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    return x, y


def _noise(rng: np.random.Generator) -> Image.Image:
    """Noise whose spectrum falls with a random power of the frequency: from static to clouds."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.fftfreq(_SIDE)[None, :]) + 1 / _SIDE
    spectrum = np.fft.fft2(rng.standard_normal((_SIDE, _SIDE))) / frequency ** rng.uniform(0, 2)
    return _painted(np.fft.ifft2(spectrum).real, rng)


def _plasma(rng: np.random.Generator) -> Image.Image:
    x, y = _grid()
    waves = [np.sin(rng.uniform(-25, 25) * x + rng.uniform(-25, 25) * y + 4 * np.sin(rng.uniform(2, 9) * (x - y))) for _ in range(4)]
    return _painted(np.sum(waves, axis=0), rng)


def _rings(rng: np.random.Generator) -> Image.Image:
    x, y = _grid()
    x, y = x - rng.uniform(0, 1), y - rng.uniform(0, 1)
    return _painted(np.sin(rng.uniform(5, 60) * np.hypot(x, rng.uniform(0.3, 2) * y) + int(rng.integers(0, 5)) * np.arctan2(y, x)), rng)


def _text_page(rng: np.random.Generator) -> Image.Image:
    size = int(rng.integers(8, 26))
    page = Image.new("RGB", (_SIDE, _SIDE), _ink(rng))
    draw, font, ink = ImageDraw.Draw(page), ImageFont.load_default(size), _ink(rng)
    for top in range(int(rng.integers(4, 20)), _SIDE, round(size * 1.3)):
        letters = rng.choice(list("abcdefghijklmnoprstuvwxyz     "), int(rng.integers(4, 40)))
        draw.text((int(rng.integers(2, 24)), top), "".join(letters), fill=ink, font=font)
    return page.rotate(float(rng.uniform(-30, 30)), fillcolor=page.getpixel((0, 0)))


def _plot(rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (_SIDE, _SIDE), _ink(rng))
    draw, ink = ImageDraw.Draw(page), _ink(rng)
    left, bottom, n = int(rng.integers(10, 40)), _SIDE - int(rng.integers(10, 40)), int(rng.integers(5, 25))
    at = np.linspace(left, _SIDE - 8, n)
    for _ in range(int(rng.integers(1, 4))):
        values = np.clip(bottom - 10 - np.abs(np.cumsum(rng.normal(0, 25, n))), 5, bottom)
        if rng.random() < 0.5:
            draw.line(list(zip(at.tolist(), values.tolist(), strict=True)), fill=_ink(rng), width=int(rng.integers(1, 6)))
        else:
            for x, y in zip(at, values, strict=True):
                draw.rectangle((x, y, x + 60 / n, bottom), fill=_ink(rng))
    draw.line([(left, 5), (left, bottom), (_SIDE - 5, bottom)], fill=ink, width=2)
    return page


def _stripes(rng: np.random.Generator) -> Image.Image:
    x, y = _grid()
    along = x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) + rng.uniform(0, 0.1) * np.sin(rng.uniform(5, 40) * (x + y))
    return _painted(np.sign(np.sin(rng.uniform(20, 120) * along)) + rng.uniform(0, 1) * np.sign(np.sin(rng.uniform(10, 60) * y)), rng)


def _cells(rng: np.random.Generator) -> Image.Image:
    """A Voronoi diagram."""
    x, y = _grid()
    seeds = rng.uniform(0, 1, (int(rng.integers(6, 60)), 2))
    nearest = ((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2).argmin(axis=-1)
    return Image.fromarray(_colours(rng, len(seeds)).astype(np.uint8)[nearest])


def _blocks(rng: np.random.Generator) -> Image.Image:
    """Random blocks of two colours, like a bar code or a matrix code."""
    rows, columns = int(rng.choice([1, 12, 24, 40])), int(rng.integers(12, 60))
    pattern = _colours(rng, 2).astype(np.uint8)[rng.integers(0, 2, (rows, columns))]
    return Image.fromarray(pattern).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)


def _scribble(rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (_SIDE, _SIDE), _ink(rng))
    draw = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(2, 12))):
        steps = np.cumsum(rng.normal(0, rng.uniform(5, 40), (int(rng.integers(10, 80)), 2)), axis=0) + rng.uniform(0, _SIDE, 2)
        draw.line([(x, y) for x, y in steps.tolist()], fill=_ink(rng), width=int(rng.integers(1, 9)))
    return page


def _test_card(rng: np.random.Generator) -> Image.Image:
    bars = _colours(rng, int(rng.integers(3, 10))).astype(np.uint8)[None]
    page = Image.fromarray(bars).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(1, 8))):
        x, y, width, height = rng.uniform(0, _SIDE, 4).tolist()
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + width / 2, y + height / 2), fill=_ink(rng))
    return page


OUTLIERS = (_noise, _plasma, _rings, _text_page, _plot, _stripes, _cells, _blocks, _scribble, _test_card)
"""Pictures of nothing that a class could mean, RGB; each kind is varied enough not to form a class of its own."""
