"""Reading one image file, once: what it is, its hashes, its quality scores. And the one place where images are decoded.

`decode_rgb` is shared by the manifest, the encoder and the duplicate finder, so that all of them see the same pixels.
Everything here runs in threads: no global state of PIL is set, no warning filter is touched.
What does not belong here: listing of folders, the scores' formulas (`dq_assets.audit.quality`).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dq_assets.audit.quality import pixel_scores
from dq_assets.sources.folder import read_file

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from dq_assets.settings import Images

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

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LEADS = (
    (b"version https://git-lfs.github.com/spec/", "Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!doctype html", "HTML page, not an image"),
    (b"<html", "HTML page, not an image"),
    (b"<svg", "SVG drawing, not a raster image"),
    (b"<?xml", "XML, not an image"),
    (b"%pdf", "PDF, not an image"),
    (b"%!ps", "PostScript, not a raster image"),
    (b"pk\x03\x04", "ZIP archive, not an image"),
    (b"\x1f\x8b", "gzip data, not an image"),
    (b"{", "looks like JSON, not an image"),
)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What one file is, as in the table raw_manifest; `phash` and `quality` go to image_properties.

    quality: raw scores by name as in `quality.PIXEL_CHECKS`. Hashes, phash and quality are None unless status is ok, except
    content_sha256, which every file has whose bytes were read.
    """

    content_sha256: str | None = None
    pixel_hash: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    mode: str | None = None
    bytes: int | None = None
    mtime: float | None = None
    status: str = "unreadable"
    reason: str | None = None
    phash: str | None = None
    quality: dict[str, float] | None = None


class TooManyPixels(ValueError):  # noqa: N818 (a fact about the image, not a failure)
    """The header promises more pixels than allowed; nothing was decoded."""


def inspect(path: str, settings: Images) -> ImageRecord:
    """Read and judge one file. `path` is decoded as by os.fsdecode. Never raises for a bad file: its status and reason tell.

    Links are followed. Only regular files are opened. width and height are those after EXIF orientation, but for
    too_large those of the header. An ok image has a reason only as a note: wrong suffix, animated.
    A file larger than any image of max_pixels can be is too_large and not read (so it has no content_sha256).
    """
    record = ImageRecord()
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            return replace(record, mtime=info.st_mtime, status="not_regular", reason=_kind_of_file(info.st_mode))
        record = replace(record, bytes=info.st_size, mtime=info.st_mtime)
        if info.st_size > _most_bytes(settings.max_pixels):
            return replace(record, status="too_large", reason=f"file of {info.st_size} bytes, more than {settings.max_pixels} pixels need")
        data = read_file(path)
    except (OSError, ValueError, MemoryError) as error:
        return replace(record, status=_status_of(error), reason=_one_line(error))
    record = replace(record, bytes=len(data), content_sha256=hashlib.sha256(data).hexdigest())
    return _describe(record, data, os.path.splitext(path)[1].lower(), settings.max_pixels)


def decode_rgb(data: bytes | BinaryIO | str, *, max_pixels: int, min_side: int | None = None) -> Image.Image:
    """The first frame as an RGB image, EXIF orientation applied. data: the bytes, an open binary file, or a path.

    Transparency, in alpha channels, palettes and colour keys, is composited on white. 16-bit, 32-bit and float images are scaled
    from their range to 8 bits, not clipped (see `_to_8_bits`). CMYK and others by PIL's conversion, without colour profiles.
    min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (PIL's draft mode, the DCT scaling of libjpeg) as long as the shorter
    side keeps at least that many pixels. Faster, but other pixels: never for hashes.

    Raises TooManyPixels before decoding, and one of DECODE_ERRORS if the data is bad.
    """
    image = _open(io.BytesIO(read_file(data) if isinstance(data, str) else data if isinstance(data, bytes) else data.read()))
    _refuse_bomb(image, max_pixels)
    if min_side is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (min_side, min_side))
    return _to_rgb(image)


def pixel_hash(image: Image.Image) -> str:
    """BLAKE2b-128 of height, width and the RGB bytes, row by row; 32 hex digits. Equal pixels in equal shape, equal hash."""
    digest = hashlib.blake2b(struct.pack("<qq", image.height, image.width), digest_size=16)
    # In bands of about 4 MB: the bytes of a 179-megapixel image at once would be another 0.5 GB.
    rows = max(1, 4_000_000 // (3 * image.width))
    if rows >= image.height:
        digest.update(image.tobytes())
    else:
        for top in range(0, image.height, rows):
            digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


def phash(image: Image.Image) -> str:
    """64-bit DCT perceptual hash, 16 hex digits, the definition of `imagehash.phash` (hackerfactor.com, "Looks Like It").

    32 x 32 grey copy by LANCZOS, unnormalised DCT-II, its 8 x 8 lowest frequencies row by row, bit = coefficient > median.
    Coefficients are rounded to 1e-6 first: in a plain or mirror-symmetric picture half of them are 0, and the 1e-12 of rounding noise
    that stands in their place would make the bits random. Elsewhere the bits are those of imagehash.
    """
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    matrix = _dct_matrix()
    low = (matrix @ pixels @ matrix.T).round(6)
    return np.packbits(low > np.median(low)).tobytes().hex()


@functools.cache
def _dct_matrix() -> np.ndarray:
    """(8, 32): the first rows of the unnormalised DCT-II, 2 cos(pi k (2 n + 1) / 64), as scipy.fft.dct has it."""
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    matrix = 2 * np.cos(np.pi * k * (2 * n + 1) / 64)
    matrix.flags.writeable = False
    return matrix


def _describe(record: ImageRecord, data: bytes, suffix: str, max_pixels: int) -> ImageRecord:
    """Decode the bytes once and add all that follows from them."""
    image: ImageFile | None = None
    try:
        image = _open(io.BytesIO(data))
        record = replace(record, width=image.width, height=image.height, format=image.format, mode=image.mode)
        _refuse_bomb(image, max_pixels)
        rgb = _to_rgb(image)
        grey = rgb.convert("L")
        record = replace(record, pixel_hash=pixel_hash(rgb), phash=phash(grey), quality=pixel_scores(rgb, grey=grey))
    except (TooManyPixels, Image.DecompressionBombError) as error:
        # PNG and TIFF can claim 4,294,967,295 pixels a side, which the INTEGER column cannot hold.
        if max(record.width or 0, record.height or 0) > 2**31 - 1:
            record = replace(record, width=None, height=None)
        return replace(record, status="too_large", reason=_one_line(error))
    except DECODE_ERRORS as error:
        # What the header says of a file that does not hold it is no fact about an image.
        return replace(record, width=None, height=None, status="unreadable", reason=_what_it_is(data) or _one_line(error))
    return replace(record, width=rgb.width, height=rgb.height, status="ok", reason=_notes(image, suffix))


def _open(stream: BinaryIO) -> ImageFile:
    """The header of an image, by its bytes.

    PIL.Image.open without its limit on pixels: that warns from 89 megapixels on (on stderr, once per process), raises from 179 on
    without saying the size, and is moved only by a global. Callers apply max_pixels instead, before anything is decoded.
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


def _refuse_bomb(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise TooManyPixels(f"{image.width} x {image.height} pixels, more than images.max_pixels = {max_pixels}")


def _to_rgb(image: ImageFile) -> Image.Image:
    """Decode an opened image: orientation, range, transparency, RGB."""
    image.load()
    # Before any conversion, which may drop the metadata; after load, where TIFF applies its orientation and PNG finds its EXIF.
    method = _TRANSPOSE.get(_orientation(image))
    result: Image.Image = image
    if image.mode.startswith("I") or image.mode == "F":
        result = _to_8_bits(image)
    elif image.has_transparency_data:
        coloured = image.convert("RGBA")
        result = Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)
    rgb = result if result.mode == "RGB" else result.convert("RGB")  # convert would copy an RGB image
    return rgb.transpose(method) if method is not None else rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if there is none. Broken EXIF does not make the pixels unreadable: it says nothing, hence 1."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits or floats as 8 bits, from its range.

    The range of integers is that of the least bit depth (8, 10, 12, 14, 16) that holds them, so that a 16-bit copy of a photo gives
    the photo back and 12-bit scans are not black; of floats in [0, 1], that. What fits none goes from its minimum to its maximum.
    Not a number and infinite values count as the least finite one.
    """
    values = np.array(image, np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values[~finite] = values[finite].min() if finite.any() else 0
    low, high = float(values.min()), float(values.max())
    depths = [1.0] if image.mode == "F" else []
    nominal = [top for top in [*depths, 255.0, 1023.0, 4095.0, 16383.0, 65535.0] if low >= 0 and high <= top]
    first, last = (0.0, nominal[0]) if nominal else (low, high)
    if last > first:
        values -= first
        values *= 255 / (last - first)
    else:
        values[:] = 0
    return Image.fromarray((values + 0.5).clip(0, 255).astype(np.uint8))


def _notes(image: ImageFile, suffix: str) -> str | None:
    """Remarks on an image that is ok: a suffix of another format, more frames than the one that was taken."""
    notes = []
    expected = Image.registered_extensions().get(suffix)
    # Photos of phones are MPO, a JPEG followed by others, and are called .jpg everywhere; DIB is BMP without its file header.
    actual = {"MPO": "JPEG", "DIB": "BMP"}.get(image.format or "", image.format)
    if expected is not None and {"MPO": "JPEG", "DIB": "BMP"}.get(expected, expected) != actual:
        notes.append(f"bytes are {image.format}, suffix is {suffix}")
    try:
        several = bool(getattr(image, "is_animated", False))
    except DECODE_ERRORS as error:
        notes.append(f"later frames are damaged ({_one_line(error)})")
    else:
        if several:
            notes.append("several frames, the first is taken")
    return _one_line("; ".join(notes)) if notes else None


def _what_it_is(data: bytes) -> str | None:
    """A better reason than "cannot identify", for what often stands in an image's place."""
    if not data:
        return "zero bytes"
    if not data.strip(b"\0"):
        return f"{len(data)} bytes, all of them zero"
    lead = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if lead.startswith(b"<?xml") and b"<svg" in data[:1024].lower():
        return "SVG drawing, not a raster image"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "HEIC photo, a format that is not read: convert it to JPEG"
    return next((what for start, what in _LEADS if lead.startswith(start)), None)


def _status_of(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no_permission"
    # A name that no file can have (a NUL byte, text outside the file system's encoding) raises ValueError.
    no_such_name = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR))
    if isinstance(error, FileNotFoundError) or no_such_name:
        return "missing"
    return "not_regular" if isinstance(error, OSError) and error.errno == errno.ENOTSUP else "unreadable"


def _kind_of_file(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a character device"))
    return next((f"{kind}, not a file" for test, kind in kinds if test(mode)), "a device, not a file")


def _most_bytes(max_pixels: int) -> int:
    """More bytes than an image of max_pixels takes uncompressed in 4 channels of 32 bits, with room for metadata."""
    return 16 * max_pixels + (64 << 20)


def _one_line(error: Exception | str) -> str:
    """At most 200 characters on one line, without the path (it stands in its own column)."""
    text = error if isinstance(error, str) else (error.strerror if isinstance(error, OSError) and error.strerror else str(error))
    if isinstance(error, MemoryError):
        text = "not enough memory to decode it"
    printable = "".join(c if c.isprintable() else " " for c in text or type(error).__name__)
    return " ".join(printable.split())[:200]
