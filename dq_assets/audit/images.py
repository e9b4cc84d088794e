"""Reading one image file, once: what it is, its hashes, its quality scores.

What does not belong here: listing of folders, decoding (`dq_assets.audit.decoding`), the scores' formulas (`dq_assets.audit.quality`).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dq_assets.audit.decoding import DECODE_ERRORS, Picture, TooManyPixels, decoded, needs_no_bytes, open_image
from dq_assets.audit.quality import PixelScorer
from dq_assets.sources.folder import read_file

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from dq_assets.settings import Images

BIG_FILE = 32_000_000
"""Files with more bytes are read one at a time: the limit on memory counts a file only once its header was read."""

_one_big_file = threading.Lock()

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


def inspect(path: str, settings: Images, root: str | None = None) -> ImageRecord:
    """Read and judge one file. `path` is decoded as by os.fsdecode. Never raises for a bad file: its status and reason tell.

    Links are followed, but with a `root` not out of it. Only regular files are opened. width and height are those after EXIF
    orientation, but for too_large those of the header. An ok image has a reason only as a note: wrong suffix, animated, decoded reduced.
    A file larger than images.memory_mb, or than any image of max_pixels can be, is too_large and not read (so it has no content_sha256).
    """
    record = ImageRecord()
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        return replace(record, status=_status_of(error), reason=_one_line(error))
    if not stat.S_ISREG(info.st_mode):
        return replace(record, mtime=info.st_mtime, status="not_regular", reason=_kind_of_file(info.st_mode))
    record = replace(record, bytes=info.st_size, mtime=info.st_mtime)
    too_large = _too_many_bytes(info.st_size, settings)
    if too_large is not None:
        return replace(record, status="too_large", reason=too_large)
    return inspect_bytes(lambda: read_file(path, root), record, path, settings)


def inspect_bytes(read: Callable[[], bytes], listed: ImageRecord, name: str, settings: Images) -> ImageRecord:
    """Judge what `read` gives, or why it gives nothing. listed: what is known of the file without reading it; name: for its suffix."""
    turn: AbstractContextManager[object] = _one_big_file if (listed.bytes or 0) > BIG_FILE else nullcontext()
    try:
        with turn:
            return _describe(listed, [read()], os.path.splitext(name)[1].lower(), settings)
    except (OSError, ValueError, MemoryError) as error:
        return replace(listed, status=_status_of(error), reason=_one_line(error))


def pixel_hash(image: Image.Image) -> str:
    """BLAKE2b-128 of height, width and the RGB bytes, row by row; 32 hex digits. Equal pixels in equal shape, equal hash."""
    digest = _pixel_digest(image.size)
    digest.update(np.asarray(image).data)
    return digest.hexdigest()


def _pixel_digest(size: tuple[int, int]) -> hashlib.blake2b:
    return hashlib.blake2b(struct.pack("<qq", size[1], size[0]), digest_size=16)


def phash(image: Image.Image) -> str:
    """64-bit DCT perceptual hash, 16 hex digits, the definition of `imagehash.phash` (hackerfactor.com, "Looks Like It").

    32 x 32 grey copy by LANCZOS, unnormalised DCT-II, its 8 x 8 lowest frequencies row by row, bit = coefficient > median.
    Coefficients are rounded to 1e-6 first: in a plain or mirror-symmetric picture half of them are 0, and the 1e-12 of rounding noise
    that stands in their place would make the bits random. Elsewhere the bits are those of imagehash.
    """
    grey = image if image.mode == "L" else image.convert("L")  # which would copy
    pixels = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), np.float64)
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


def _describe(record: ImageRecord, read: list[bytes], suffix: str, settings: Images) -> ImageRecord:
    """Decode the bytes once and add all that follows from them. They are taken out of the list, so that nothing holds them longer."""
    data = read.pop()
    n_bytes, what_it_is = len(data), _what_it_is(data)
    record = replace(record, bytes=n_bytes, content_sha256=hashlib.sha256(data).hexdigest())
    stream = io.BytesIO(data)
    del data
    try:
        image = open_image(stream)
        record = replace(record, width=image.width, height=image.height, format=image.format, mode=image.mode)
        with decoded(image, n_bytes, max_pixels=settings.max_pixels, memory_mb=settings.memory_mb) as picture:
            if needs_no_bytes(image):
                stream.close()
            record = _with_pixels(record, picture)
            notes = _notes(picture, suffix)
    except (TooManyPixels, Image.DecompressionBombError) as error:
        # PNG and TIFF can claim 4,294,967,295 pixels a side, which the INTEGER column cannot hold.
        if max(record.width or 0, record.height or 0) > 2**31 - 1:
            record = replace(record, width=None, height=None)
        return replace(record, status="too_large", reason=_one_line(error))
    except DECODE_ERRORS as error:
        # What the header says of a file that does not hold it is no fact about an image.
        return replace(record, width=None, height=None, status="unreadable", reason=what_it_is or _one_line(error))
    return replace(record, status="ok", reason=notes)


def _with_pixels(record: ImageRecord, picture: Picture) -> ImageRecord:
    """Hashes and scores, in one pass over the bands. The pixel hash of an image that was decoded reduced is of its full size and those
    pixels, so that it is nobody else's."""
    digest, scorer = _pixel_digest(picture.full_size), PixelScorer(picture.size)
    for top, band in picture.bands():
        digest.update(np.asarray(band).data)
        scorer.add(top, band)
    width, height = picture.full_size
    return replace(record, width=width, height=height, pixel_hash=digest.hexdigest(), phash=phash(scorer.grey), quality=scorer.scores())


def _notes(picture: Picture, suffix: str) -> str | None:
    """Remarks on an image that is ok: decoded reduced, a suffix of another format, more frames than the one that was taken."""
    image: ImageFile = picture.image
    notes = []
    if picture.shrink > 1:
        notes.append(f"too large to be decoded whole, decoded at 1/{picture.shrink} of its size")
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
    statuses = {errno.ENOTSUP: "not_regular", errno.EFBIG: "too_large"}
    return statuses.get(error.errno or 0, "unreadable") if isinstance(error, OSError) else "unreadable"


def _kind_of_file(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a character device"))
    return next((f"{kind}, not a file" for test, kind in kinds if test(mode)), "a device, not a file")


def _too_many_bytes(n: int, settings: Images) -> str | None:
    """Why a file of n bytes is not read; None if it is. An image of max_pixels takes 16 bytes a pixel at most (4 channels of 32 bits)."""
    if n > settings.memory_mb * 1_000_000:
        return f"file of {n} bytes, more than images.memory_mb = {settings.memory_mb}"
    if n > 16 * settings.max_pixels + (64 << 20):
        return f"file of {n} bytes, more than {settings.max_pixels} pixels need"
    return None


def _one_line(error: Exception | str) -> str:
    """At most 200 characters on one line, without the path (it stands in its own column)."""
    text = error if isinstance(error, str) else (error.strerror if isinstance(error, OSError) and error.strerror else str(error))
    if isinstance(error, MemoryError):
        text = "not enough memory to decode it"
    printable = "".join(c if c.isprintable() else " " for c in text or type(error).__name__)
    return " ".join(printable.split())[:200]
