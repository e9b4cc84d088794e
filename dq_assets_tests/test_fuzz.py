"""Damaged files of every format: whatever happens to the bytes, a file is a row, and neither a crash nor a hang ends a run.

Mutants are read in a process of their own, so that a crash of a decoder fails this test and not all tests. Each is named by its format
and number; `python -m dq_assets_tests.test_fuzz NAME NUMBER` reads it again and writes it to the working folder, and
`python -m dq_assets_tests.test_fuzz COUNT FIRST [NAME ...]` reads others than the test does. DQ_FUZZ_MUTANTS is the number of mutants per
seed file, 12 by default.
"""

from __future__ import annotations

import functools
import io
import os
import queue
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dq_assets.audit import decoding, images
from dq_assets.schema import STATUSES
from dq_assets.settings import Images

SETTINGS = Images(max_pixels=4_000_000, memory_mb=128)
MUTANTS = int(os.environ.get("DQ_FUZZ_MUTANTS", "12"))
CPU_SECONDS = 5.0
"""A mutant may take this long. The slowest of 20,000 took 0.6 s; the rest is for a slow machine."""

GROWN_MB = 700
"""How far the process may grow over all mutants: a decoder that allocates before its header was checked shows here."""


def picture(mode: str = "RGB", side: int = 40) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (side // 4, side // 4, 4), np.uint8)
    image = Image.fromarray(noise, "RGBA").resize((side, side), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255) if mode == "F" else image.convert(mode)


def saved(format: str, mode: str = "RGB", frames: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [picture(mode).rotate(90 * n) for n in range(1, frames)]} if frames > 1 else {}
    picture(mode).save(buffer, format, **more, **options)
    return buffer.getvalue()


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags.tobytes()


def interlaced_png() -> bytes:
    """Adam7 of 8 x 8 grey pixels: seven passes, each of rows with a filter byte."""
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))  # pixels a row, rows
    raw = b"".join((b"\0" + bytes(range(width))) * rows for width, rows in passes)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def photoshop() -> bytes:
    pixels = bytes(3 * 20 * 10)
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 10, 20, 8, 3) + bytes(12) + struct.pack(">H", 0) + pixels


def sun_raster() -> bytes:
    return struct.pack(">8I", 0x59A66A95, 20, 10, 24, 600, 1, 0, 0) + bytes(range(200)) * 3


def fits() -> bytes:
    facts = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "2", "NAXIS1": "20", "NAXIS2": "10"}
    cards = [f"{name:<8}= {value:>20}" for name, value in facts.items()] + ["END"]
    return "".join(card.ljust(80) for card in cards).encode().ljust(2880) + bytes(200).ljust(2880, b"\0")


def pixmap() -> bytes:
    rows = ",\n".join(f'"{"ab" * 10}"' for _ in range(10))
    return f'/* XPM */\nstatic char *x[] = {{\n"20 10 2 1",\n"a c #102030",\n"b c #f0e0d0",\n{rows}\n}};\n'.encode()


def cursor() -> bytes:
    icon = saved("ICO", "RGBA", bitmap_format="bmp", sizes=[(32, 32)])
    return icon[:2] + b"\2\0" + icon[4:]


def fax_pages() -> bytes:
    page = saved("PCX")
    return struct.pack("<III", 0x3ADE68B1, 12, 0) + page


def brush() -> bytes:
    return struct.pack(">5I4sI", 28, 2, 20, 10, 4, b"GIMP", 10) + bytes(range(200)) * 4


def animation() -> bytes:
    """FLI: a header and one frame with a chunk of uncompressed pixels."""
    body = struct.pack("<IH", 6 + 200, 16) + bytes(range(200))
    frame = struct.pack("<IHH8x", 16 + len(body), 0xF1FA, 1) + body
    return struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, 20, 10, 8, 3, 5).ljust(128, b"\0") + frame


def thumbnail() -> bytes:
    return b"P7 332\n#XVVERSION:2.28\n#END_OF_COMMENTS\n20 10 255\n" + bytes(range(200))


SEEDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG", exif=exif()),
    "jpeg-progressive": lambda: saved("JPEG", progressive=True),
    "jpeg-grey": lambda: saved("JPEG", "L"),
    "jpeg-cmyk": lambda: saved("JPEG", "CMYK"),
    "mpo": lambda: saved("MPO", frames=2),
    "png": lambda: saved("PNG", exif=exif()),
    "png-alpha": lambda: saved("PNG", "RGBA"),
    "png-palette": lambda: saved("PNG", "P", transparency=3),
    "png-1-bit": lambda: saved("PNG", "1"),
    "png-16-bit": lambda: saved("PNG", "I;16"),
    "png-animated": lambda: saved("PNG", frames=3),
    "png-interlaced": interlaced_png,
    "gif": lambda: saved("GIF", "P"),
    "gif-animated": lambda: saved("GIF", frames=3),
    "webp": lambda: saved("WEBP"),
    "webp-lossless": lambda: saved("WEBP", "RGBA", lossless=True),
    "webp-animated": lambda: saved("WEBP", frames=3),
    "avif": lambda: saved("AVIF", speed=10),
    "jpeg-2000": lambda: saved("JPEG2000"),
    "tiff": lambda: saved("TIFF"),
    "tiff-lzw": lambda: saved("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: saved("TIFF", compression="jpeg"),
    "tiff-deflate": lambda: saved("TIFF", "P", compression="tiff_adobe_deflate"),
    "tiff-fax": lambda: saved("TIFF", "1", compression="group4"),
    "tiff-float": lambda: saved("TIFF", "F"),
    "tiff-16-bit": lambda: saved("TIFF", "I;16"),
    "tiff-pages": lambda: saved("TIFF", frames=3),
    "bmp": lambda: saved("BMP"),
    "bmp-palette": lambda: saved("BMP", "P"),
    "dib": lambda: saved("DIB"),
    "tga": lambda: saved("TGA"),
    "tga-rle": lambda: saved("TGA", "RGBA", compression="tga_rle"),
    "ppm": lambda: saved("PPM"),
    "pgm": lambda: saved("PPM", "L"),
    "pbm": lambda: saved("PPM", "1"),
    "pfm": lambda: saved("PPM", "F"),
    "ppm-plain": lambda: b"P3 20 10 255\n" + b"1 2 3\n" * 200,
    "ico": lambda: saved("ICO", "RGBA", sizes=[(16, 16), (32, 32)]),
    "ico-bmp": lambda: saved("ICO", "RGBA", bitmap_format="bmp", sizes=[(32, 32)]),
    "cur": cursor,
    "icns": lambda: saved("ICNS", "RGBA"),
    "dds": lambda: saved("DDS", "RGBA"),
    "dds-compressed": lambda: saved("DDS", "RGBA", pixel_format="DXT5"),
    "sgi": lambda: saved("SGI"),
    "pcx": lambda: saved("PCX"),
    "dcx": fax_pages,
    "im": lambda: saved("IM"),
    "qoi": lambda: saved("QOI", "RGBA"),
    "msp": lambda: saved("MSP", "1"),
    "blp": lambda: saved("BLP", "P"),
    "spider": lambda: saved("SPIDER", "F"),
    "xbm": lambda: saved("XBM", "1"),
    "xpm": pixmap,
    "xv-thumbnail": thumbnail,
    "psd": photoshop,
    "sun": sun_raster,
    "fits": fits,
    "gbr": brush,
    "fli": animation,
}


@functools.cache
def seed(name: str) -> bytes:
    return SEEDS[name]()


def mutant(name: str, number: int) -> bytes:
    """One damaged file; the same for the same name and number."""
    rng = np.random.default_rng([number, *name.encode()])
    data = bytearray(seed(name))
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 128)))
        match int(rng.integers(0, 8)):
            case 0:  # bits of some bytes
                for at in rng.integers(0, len(data), int(rng.integers(1, 9))):
                    data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:  # the rest is missing
                del data[max(1, int(rng.integers(1, len(data) + 1))) :]
            case 2:  # bytes that do not belong there
                data[place:place] = rng.bytes(int(rng.integers(1, 33)))
            case 3:  # a hole
                del data[place : place + int(rng.integers(1, 33))]
            case 4:  # a number of the header at its limits, in either order of bytes
                value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                width = int(rng.choice([1, 2, 4]))
                data[place : place + width] = (value & (256**width - 1)).to_bytes(width, "big" if rng.random() < 0.5 else "little")
            case 5:  # a part of the file once more, elsewhere
                start = int(rng.integers(0, len(data)))
                data[place : place + 16] = data[start : start + int(rng.integers(1, 65))]
            case 6:  # the middle of another format
                other = seed(str(rng.choice(sorted(SEEDS))))
                data[place:] = other[int(rng.integers(0, len(other))) :]
            case 7:  # zeros, as a disk leaves them
                data[place : place + int(rng.integers(1, 513))] = bytes(int(rng.integers(1, 513)))
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def read_mutant(data: bytes, folder: Path) -> float:
    """CPU seconds of reading a file with these bytes as a run does. Raises AssertionError if its record contradicts itself."""
    path = folder / "mutant.jpg"
    path.write_bytes(data)
    started = time.thread_time()
    record = images.inspect(str(path), SETTINGS)
    assert record.status in STATUSES
    assert record.content_sha256
    assert (record.status == "ok") == (record.pixel_hash is not None) == (record.phash is not None) == (record.quality is not None)
    assert record.status == "ok" or record.reason
    assert record.reason is None or (record.reason.isprintable() and len(record.reason) <= 200)
    assert (record.status == "ok") == is_decoded(data), record.reason
    return time.thread_time() - started


def is_decoded(data: bytes) -> bool:
    """Whether the encoder would get pixels."""
    try:
        return decoding.decode_rgb(data, max_pixels=SETTINGS.max_pixels, memory_mb=SETTINGS.memory_mb, min_side=32).mode == "RGB"
    except decoding.DECODE_ERRORS:
        return False


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read_all(n: int, first: int = 0, *, names: tuple[str, ...] = ()) -> None:
    """What the process does: says which mutant it reads, reads it, says how long that took and how large the process is."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or SEEDS:
            for number in range(first, first + n):
                print(name, number, end=" ", flush=True)
                try:
                    seconds = read_mutant(mutant(name, number), Path(folder))
                except BaseException as error:
                    print(f"failed {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
                else:
                    print(f"took {seconds:.3f} {peak_mb()}", flush=True)


@pytest.mark.parametrize("name", SEEDS)
def test_every_seed_is_a_whole_image_before_it_is_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(seed(name))
    record = images.inspect(str(tmp_path / "seed"), SETTINGS)
    assert (record.status, record.reason if "frames" not in (record.reason or "") else None) == ("ok", None)


def heard(child: subprocess.Popen[bytes], silence: float) -> bytes:
    """All that a process prints until it ends, or until it says nothing for so many seconds."""
    pieces: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        assert child.stdout is not None
        while piece := os.read(child.stdout.fileno(), 65536):
            pieces.put(piece)
        pieces.put(b"")

    threading.Thread(target=listen, daemon=True).start()
    seen = b""
    while True:
        try:
            piece = pieces.get(timeout=silence)
        except queue.Empty:
            child.kill()
            return seen
        if not piece:
            return seen
        seen += piece


def test_no_mutant_ends_the_run() -> None:
    argv = [sys.executable, "-m", "dq_assets_tests.test_fuzz", str(MUTANTS)]
    # Standard error has what libtiff says of bad files.
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        lines = [line.split() for line in heard(child, silence=60).decode().splitlines()]
    assert child.returncode == 0, f"crash or hang (exit code {child.returncode}) of mutant {lines[-1]}"
    bad = [" ".join(line) for line in lines if line[2] != "took" or float(line[3]) > CPU_SECONDS]
    assert not bad, f"{len(bad)} mutants: {bad[:20]}"
    assert len(lines) == MUTANTS * len(SEEDS)
    peaks = [int(line[4]) for line in lines]
    grown = [(line, peak - before) for line, peak, before in zip(lines[1:], peaks[1:], peaks, strict=False) if peak > before + 50]
    assert peaks[-1] - peaks[0] < GROWN_MB, grown


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # PIL's remarks on broken metadata
    if sys.argv[1].isdigit():
        read_all(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, names=tuple(sys.argv[3:]))
    else:
        name, number = sys.argv[1], int(sys.argv[2])
        Path(f"{name}-{number}.bin").write_bytes(mutant(name, number))
        print(f"{read_mutant(mutant(name, number), Path.cwd()):.3f} s")
