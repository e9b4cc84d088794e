"""Small copies of images for reports. A picture that cannot be shown gets one that says why, so a gallery is never short of one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from dq_assets.audit.decoding import DECODE_ERRORS, TooManyPixels, decode_rgb

Read = Callable[[str], bytes]
"""The bytes at an address of raw_manifest. Raises OSError if there are none."""

KIND = "webp"
"""Format of the thumbnails: at equal looks two thirds of JPEG's bytes, and transparent outside of the picture."""

QUALITIES = (72, 45, 20, 5)
"""WebP qualities, tried in turn until a thumbnail has at most MOST_BYTES. Photos of 128 px take 1 to 5 kB with the first."""

MOST_BYTES = 4_800
"""Noise of 128 px takes 10 kB at quality 72 and 4.3 kB at 5, so no picture is heavier."""


def thumbnail(read: Read, uri: str, content_sha256: str | None, *, side: int, max_pixels: int, memory_mb: int) -> bytes:
    """WebP of side x side pixels with the whole picture in its middle, transparent around it: it suits a light and a dark page.

    Pixels as the audit sees them (`decode_rgb`: orientation, first frame, white behind transparency), JPEG decoded reduced. Small
    pictures are enlarged, without smoothing. A file that is gone, broken, or holds other bytes than were audited gets a grey card
    that says so; no file raises.
    """
    try:
        data = read(uri)
        if content_sha256 is not None and hashlib.sha256(data).hexdigest() != content_sha256:
            return _encoded(_card("changed since\nthe audit", side))
        image = decode_rgb(data, max_pixels=max_pixels, memory_mb=memory_mb, min_side=side)
    except FileNotFoundError:
        return _encoded(_card("file is gone", side))
    except TooManyPixels:
        return _encoded(_card("too large\nto show", side))
    except DECODE_ERRORS:
        return _encoded(_card("cannot be\nread", side))
    return _encoded(_fitted(image, side))


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    # reducing_gap: a box filter first, so that a picture of 100 megapixels takes 0.1 s instead of 1.
    small = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def _card(text: str, side: int) -> Image.Image:
    card = Image.new("RGBA", (side, side), (208, 212, 217, 255))
    pen = ImageDraw.Draw(card)
    font = ImageFont.load_default(size=side / 8)
    pen.multiline_text((side / 2, side / 2), text, fill=(70, 76, 84, 255), font=font, anchor="mm", align="center")
    return card


def _encoded(image: Image.Image) -> bytes:
    data = b""
    for quality in QUALITIES:
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality, method=4)
        data = out.getvalue()
        if len(data) <= MOST_BYTES:
            break
    return data
