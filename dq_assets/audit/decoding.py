"""Bytes to upright RGB pixels, in bounded memory. The one place where images are decoded.

The manifest, the encoder and the duplicate finder decode here, so that all of them see the same pixels. Memory: PIL decodes an image
whole, 4 bytes a pixel in colour; everything after that goes over it in bands. What decoding holds is estimated from the header before
it begins, and all threads together stay under one limit: an image waits until there is room for it. One that does not fit alone is
decoded at 1/2, 1/4 or 1/8 if it is a JPEG, and refused otherwise.
Everything here runs in threads: no global state of PIL is set, no warning filter is touched.
What does not belong here: reading of files, hashes and scores (`dq_assets.audit.images`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dq_assets.audit.process import give_back_freed_memory
from dq_assets.settings import Images

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

DECODE_ERRORS = (
    OSError,  # truncated or broken data; UnidentifiedImageError; a decoder that is not built in
    SyntaxError,  # PIL's own word for "not this format", from plugins and from broken chunks
    ValueError,  # bad sizes, modes without a conversion to RGB (LAB), oversized text chunks
    TypeError,  # None where a header field is missing
    LookupError,  # IndexError past the end of a table, KeyError of an unknown compression or mode
    AttributeError,  # a plugin that goes on after a missing chunk
    AssertionError,  # PIL's internal assertions on broken files
    ArithmeticError,  # OverflowError of a 64-bit field in a C int, ZeroDivisionError of a zero resolution
    EOFError,  # a sequence without its first frame
    MemoryError,  # sizes within max_pixels that the machine cannot hold, and sizes that PIL computes wrongly
    RuntimeError,  # broken text chunks in PNG; NotImplementedError of DDS and BLP variants
    struct.error,  # a header that ends early
    zlib.error,  # compressed chunks outside the pixel data
    Image.DecompressionBombError,  # PIL's own limit on frames inside ICO, ICNS, GIF
    Warning,  # only under python -W error, where PIL's remarks on metadata are raised
)
"""What PIL raises on bad files, for which it has no common base class. 56,541 damaged files in 23 formats raised OSError, SyntaxError,
ValueError, RuntimeError, AssertionError, AttributeError and DecompressionBombError; the others did not occur and are kept for
formats and versions that were not tried."""

NOT_DECODED = frozenset({"EPS"})
"""Formats that are not opened. EPS is a program: PIL hands it to Ghostscript, an outside process."""

BAND_PIXELS = 1 << 20
"""Pixels that are converted, hashed and scored at once."""

LARGE_PIXELS = 32_000_000
"""Above this, `decode_rgb` with min_side gives a reduced copy of any format: its callers hold what it returns beside the next decoding."""

LARGE_BYTES = 128_000_000
"""Before more than this is decoded, freed memory is given back. That takes milliseconds, as a photo of 24 megapixels (96 MB) should not."""

_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes per pixel of PIL's modes; 4 of all others."""

_DECODER_BYTES = {"BMP": 0, "DIB": 0, "GIF": 1, "JPEG": 0, "MPO": 0, "PNG": 0, "PPM": 0, "TGA": 0, "TIFF": 0, "AVIF": 6, "WEBP": 12}
"""Bytes per pixel that a decoder holds beside the image, measured on 9 and 35 megapixels; 16 of all others (JPEG 2000: 15.4)."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90})
_FROM_THE_END = frozenset(
    {Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90}
)
"""Transpositions whose first upright rows are the last rows (or columns, if sideways) of what is stored."""


class TooManyPixels(ValueError):  # noqa: N818 (a fact about the image, not a failure)
    """The header promises more pixels than allowed, or than fit in memory; nothing was decoded."""


@dataclass(frozen=True)
class Picture:
    """A decoded image whose pixels are read in upright RGB bands.

    image: as stored, loaded. full_size: (width, height) of the file, upright. shrink: 1, or 2, 4, 8 if it was decoded reduced.
    """

    image: ImageFile
    full_size: tuple[int, int]
    shrink: int
    _method: Image.Transpose | None
    _range: tuple[float, float, float] | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright, of what was decoded."""
        return self.image.size[::-1] if self._method in _SIDEWAYS else self.image.size

    def bands(self, rows: int | None = None) -> Iterator[tuple[int, Image.Image]]:
        """(top row, RGB image of the full width) from top to bottom, of `rows` rows or of about BAND_PIXELS."""
        width, height = self.size
        rows = rows or max(1, BAND_PIXELS // width)
        if rows >= height:
            yield 0, self._upright_rgb(self.image)
            return
        for top in range(0, height, rows):
            yield top, self._upright_rgb(self.image.crop(self._box(top, min(top + rows, height))))

    def whole(self) -> Image.Image:
        """All pixels as one RGB image, which is a second copy unless the file is RGB and upright."""
        if self.image.mode == "RGB" and self._method is None and not self.image.has_transparency_data:
            return self.image
        result: Image.Image | None = None
        for top, band in self.bands():
            if band.size == self.size:
                return band
            result = result or Image.new("RGB", self.size)
            result.paste(band, (0, top))
        assert result is not None
        return result

    def reduced(self, factor: int) -> Image.Image:
        """All pixels, each the mean of a square of `factor` pixels a side."""
        width, height = self.size
        result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        for top, band in self.bands(max(1, BAND_PIXELS // width // factor) * factor):
            result.paste(band.reduce(factor), (0, top // factor))
        return result

    def _box(self, top: int, bottom: int) -> tuple[int, int, int, int]:
        """Where the upright rows are in the stored image."""
        width, height = self.image.size
        end = width if self._method in _SIDEWAYS else height
        first, last = (end - bottom, end - top) if self._method in _FROM_THE_END else (top, bottom)
        return (first, 0, last, height) if self._method in _SIDEWAYS else (0, first, width, last)

    def _upright_rgb(self, part: Image.Image) -> Image.Image:
        if self._range is not None:
            part = _to_8_bits(part, *self._range)
        elif part.has_transparency_data:
            coloured = part.convert("RGBA")
            part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), coloured)
        rgb = part if part.mode == "RGB" else part.convert("RGB")  # convert would copy an RGB image
        return rgb.transpose(self._method) if self._method is not None else rgb


def decode_rgb(source: bytes | BinaryIO, *, max_pixels: int, memory_mb: int = Images.memory_mb, min_side: int | None = None) -> Image.Image:
    """The first frame as an RGB image, EXIF orientation applied. source: the bytes or an open binary file.

    Transparency, in alpha channels, palettes and colour keys, is composited on white. 16-bit, 32-bit and float images are scaled
    from their range to 8 bits, not clipped (see `_scale`). CMYK and others by PIL's conversion, without colour profiles.
    min_side: the caller needs no more pixels on the shorter side. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size (the DCT
    scaling of libjpeg), and an image above LARGE_PIXELS is reduced by averaging. Faster, but other pixels: never for hashes.
    max_pixels, memory_mb: as in the settings; a JPEG above them is decoded reduced in any case.

    Raises TooManyPixels before decoding, and one of DECODE_ERRORS if the data is bad.
    """
    data = source if isinstance(source, bytes) else source.read()
    image = open_image(io.BytesIO(data))
    with decoded(image, len(data), max_pixels=max_pixels, memory_mb=memory_mb, min_side=min_side) as picture:
        width, height = picture.size
        factor = min(width, height) // min_side if min_side is not None and width * height > LARGE_PIXELS else 1
        return picture.reduced(factor) if factor > 1 else picture.whole()


@contextlib.contextmanager
def decoded(image: ImageFile, n_bytes: int, *, max_pixels: int, memory_mb: int, min_side: int | None = None) -> Iterator[Picture]:
    """Decode an image as opened by `open_image` from n_bytes; raises as `decode_rgb`.

    Until the block ends, a share of the memory is held that all threads have together. The share counts on the caller to let go of the
    bytes in the block if `needs_no_bytes`, or to make no grey copy.
    """
    limit = memory_mb * 1_000_000
    opened_size, is_jpeg = image.size, image.format in ("JPEG", "MPO")
    shrink = _shrink(image, n_bytes, max_pixels, limit)
    wanted = min(opened_size) // min_side if min_side is not None and is_jpeg else 1
    with _MEMORY.share(_bytes_needed(image, n_bytes, shrink), limit):
        if max(shrink, wanted) > 1:  # draft takes the nearest of 1, 2, 4 and 8 that is not above
            part = max(shrink, wanted)
            image.draft(None, (max(1, opened_size[0] // part), max(1, opened_size[1] // part)))
        image.load()
        if image.width * image.height > max_pixels:  # an icon can hold another size than its table says
            raise TooManyPixels(f"{image.width} x {image.height} pixels, more than images.max_pixels = {max_pixels}")
        # Before any conversion, which may drop the metadata; after load, where TIFF applies its orientation and PNG finds its EXIF.
        method = _TRANSPOSE.get(orientation(image))
        width, height = opened_size if is_jpeg else image.size
        yield Picture(image, (height, width) if method in _SIDEWAYS else (width, height), shrink, method, _scale(image))


class _Memory:
    """A number of bytes that threads share. Who comes first is served first, so that a large image does not wait for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._held = 0

    @contextlib.contextmanager
    def share(self, n: int, limit: int) -> Iterator[None]:
        """Hold n bytes. Waits until all that is held is at most `limit`; n alone is given in any case."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and (self._held == 0 or self._held + n <= limit))
                self._held += n
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            if n > LARGE_BYTES:
                give_back_freed_memory()  # of the large images before this one, which would otherwise be held beside it
            yield
        finally:
            with self._changed:
                self._held -= n
                self._changed.notify_all()


_MEMORY = _Memory()


def _shrink(image: ImageFile, n_bytes: int, max_pixels: int, memory: int) -> int:
    """The least reduction, 1, 2, 4 or 8, at which an image is within both limits. Raises TooManyPixels if there is none."""
    width, height = image.size
    for shrink in (1, 2, 4, 8) if image.format in ("JPEG", "MPO") else (1,):
        few_enough = -(-width // shrink) * -(-height // shrink) <= max_pixels
        if few_enough and _bytes_needed(image, n_bytes, shrink) <= memory:
            return shrink
    if few_enough:
        needed = _bytes_needed(image, n_bytes, shrink) // 1_000_000
        raise TooManyPixels(f"{width} x {height} pixels take {needed} MB to decode, more than images.memory_mb = {memory // 1_000_000}")
    raise TooManyPixels(f"{width} x {height} pixels, more than images.max_pixels = {max_pixels}")


def _bytes_needed(image: ImageFile, n_bytes: int, shrink: int) -> int:
    """The most that decoding an image and reading it in bands holds: first file, decoder and pixels, then pixels and a grey copy."""
    pixels = image.width * image.height
    stored: int = _MODE_BYTES.get(image.mode, 4) * pixels // shrink**2
    decoder: int = _DECODER_BYTES.get(image.format or "", 16) * pixels
    if image.format == "TIFF" and image.info.get("compression") != "raw":
        decoder += 4 * image.width * _rows_per_strip(image)
    if image.format in ("JPEG", "MPO") and not _is_one_scan(image):
        decoder += _coefficient_bytes(image)
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation, 1) != 1:
        decoder += stored  # PIL turns it as a whole
    grey = pixels // shrink**2
    return stored + (max(decoder + n_bytes, grey) if needs_no_bytes(image) else max(decoder, grey) + n_bytes)


def needs_no_bytes(image: ImageFile) -> bool:
    """Whether a decoded image never reads its stream again: formats of one frame, and PNG where it has one."""
    return image.format in ("BMP", "DIB", "JPEG", "PPM", "TGA") or (image.format == "PNG" and not getattr(image, "is_animated", False))


def _rows_per_strip(image: ImageFile) -> int:
    """Rows of a compressed TIFF that are decoded at once: of a strip, or of a row of tiles."""
    tags = getattr(image, "tag_v2", {})
    rows = tags.get(323) or tags.get(278)
    return min(rows, image.height) if isinstance(rows, int) and rows > 0 else image.height


def _is_one_scan(image: ImageFile) -> bool:
    """Whether the first scan of a JPEG has all components: if not, libjpeg holds the coefficients of the whole image, at any reduction.

    PIL stops reading the header behind the first scan's, which is 6 bytes and 2 for each component.
    """
    n = len(getattr(image, "layer", ()))
    if image.info.get("progressive") or image.fp is None:
        return False
    end = image.fp.tell()
    image.fp.seek(max(0, end - 8 - 2 * n))
    header = image.fp.read(5)
    image.fp.seek(end)
    return header == b"\xff\xda" + struct.pack(">HB", 6 + 2 * n, n)


def _coefficient_bytes(image: ImageFile) -> int:
    """2 bytes for each coefficient of each component; a component is smaller by its share of the largest sampling factors."""
    layers = [(across, down) for _, across, down, _ in getattr(image, "layer", ()) if across > 0 and down > 0]
    most = max((a for a, _ in layers), default=1) * max((d for _, d in layers), default=1)
    shares = sum(a * d / most for a, d in layers) if layers else 4.0
    return int(2 * image.width * image.height * shares)


def open_image(stream: BinaryIO) -> ImageFile:
    """The header of an image, by its bytes; the pixels stay in the stream.

    PIL.Image.open without its limit on pixels: that warns from 89 megapixels on (on stderr, once per process), raises from 179 on
    without saying the size, and is moved only by a global. Callers apply limits of their own, before anything is decoded.
    Raises UnidentifiedImageError with what each plugin that knew the first bytes had to say.
    """
    _load_plugins()
    prefix = stream.read(16)
    complaints = []
    for name in Image.ID:
        if name in NOT_DECODED:
            continue
        factory, accept = Image.OPEN[name]
        known: bool | str = False
        try:
            known = not accept or accept(prefix)
            if isinstance(known, str):
                complaints.append(known)
            elif known:
                stream.seek(0)
                return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            # `accept` raises too, on fewer bytes than it looks at. Plugins without it try everything and mean nothing by it.
            if accept and known:
                complaints.append(f"{name}: {error}")
    raise UnidentifiedImageError("; ".join(complaints) or f"not an image in any format that is read (begins with {prefix!r})")


@functools.cache
def _load_plugins() -> None:
    Image.preinit()  # first, so that the common formats are asked first
    Image.init()


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if there is none. Broken EXIF does not make the pixels unreadable: it says nothing, hence 1."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _scale(image: Image.Image) -> tuple[float, float, float] | None:
    """What becomes 0, what becomes 255, and the least finite value in a grey image of 16 or 32 bits or floats; None for others.

    The range of integers is that of the least bit depth (8, 10, 12, 14, 16) that holds them, so that a 16-bit copy of a photo gives
    the photo back and 12-bit scans are not black; of floats in [0, 1], that. What fits none goes from its minimum to its maximum.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return None
    low, high = np.inf, -np.inf
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    depths = [1.0] if image.mode == "F" else []
    nominal = [top for top in [*depths, 255.0, 1023.0, 4095.0, 16383.0, 65535.0] if low >= 0 and high <= top]
    return (0.0, nominal[0], low) if nominal and low <= high else (low, high, low)


def _to_8_bits(image: Image.Image, first: float, last: float, low: float) -> Image.Image:
    """A grey image with `first` as 0 and `last` as 255. Not a number and infinite values count as `low`; all is 0 without a range."""
    values = np.array(image, np.float32)
    if last > first:
        values[~np.isfinite(values)] = low
        values -= first
        values *= 255 / (last - first)
    else:
        values[:] = 0
    return Image.fromarray((values + 0.5).clip(0, 255).astype(np.uint8))
