"""Reading image files: every kind of file is a row, never an exception, and equal pixels are equal however they are stored."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from PIL import ExifTags, Image, ImageFilter

from dq_assets.audit import decoding, images
from dq_assets.schema import STATUSES
from dq_assets.settings import Images

SETTINGS = Images()


def photo(width: int = 120, height: int = 80, seed: int = 0) -> Image.Image:
    """Soft colour noise: as a photo, no two corners alike, survives JPEG."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    return noise.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds one empty data chunk."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def written(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_an_image_is_read_hashed_and_scored(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG")
    record = images.inspect(written(tmp_path, "a.jpg", data), SETTINGS)
    assert (record.status, record.reason, record.format, record.mode) == ("ok", None, "JPEG", "RGB")
    assert (record.width, record.height, record.bytes) == (120, 80, len(data))
    assert record.content_sha256 == hashlib.sha256(data).hexdigest()
    assert record.pixel_hash is not None
    assert re.fullmatch("[0-9a-f]{32}", record.pixel_hash)
    assert record.phash is not None
    assert re.fullmatch("[0-9a-f]{16}", record.phash)
    assert record.quality is not None
    assert all(0 <= score <= 1 for score in record.quality.values())
    assert record.mtime == pytest.approx((tmp_path / "a.jpg").stat().st_mtime)


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)
BAD = {
    "zero_bytes": (b"", "zero bytes"),
    "zeros": (bytes(5000), "5000 bytes, all of them zero"),
    "html": (b"\n<!DOCTYPE html>\n<html>404</html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "heic": (HEIC, "HEIC"),
    "text": (b"the quick brown fox jumps over the lazy dog", "not an image"),
    "one_byte": (b"\xff", "not an image"),
    "truncated_jpeg": (encoded(photo(400, 300), "JPEG")[:3000], "truncated"),
    "truncated_png": (encoded(photo(400, 300))[:3000], "truncated"),
    "header_alone": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_whole_image_is_unreadable_and_the_reason_says_why(case: str, tmp_path: Path) -> None:
    data, reason = BAD[case]
    record = images.inspect(written(tmp_path, "a.jpg", data), SETTINGS)
    assert record.status == "unreadable"
    assert record.reason is not None
    assert reason in record.reason
    assert record.content_sha256 == hashlib.sha256(data).hexdigest()
    assert (record.pixel_hash, record.phash, record.quality, record.width) == (None, None, None, None)


def test_a_bomb_is_too_large_and_keeps_what_its_header_says(tmp_path: Path) -> None:
    path = written(tmp_path, "bomb.png", png_header(100_000, 100_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = images.inspect(path, SETTINGS)
    assert (record.status, record.width, record.height, record.format) == ("too_large", 100_000, 100_000, "PNG")
    assert record.content_sha256
    with pytest.raises(decoding.TooManyPixels):
        decoding.decode_rgb(Path(path).read_bytes(), max_pixels=SETTINGS.max_pixels)


def test_the_limit_on_pixels_is_the_setting_and_inclusive(tmp_path: Path) -> None:
    path = written(tmp_path, "a.png", encoded(photo(120, 80)))
    assert images.inspect(path, Images(max_pixels=9600)).status == "ok"
    assert images.inspect(path, Images(max_pixels=9599)).status == "too_large"


def test_sizes_that_no_integer_column_holds_are_left_out(tmp_path: Path) -> None:
    record = images.inspect(written(tmp_path, "a.png", png_header(2**31 + 5, 2**31 + 5)), SETTINGS)
    assert (record.status, record.width) == ("too_large", None)


def test_a_file_larger_than_any_allowed_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with path.open("wb") as file:
        file.truncate(80 << 20)
    record = images.inspect(str(path), Images(max_pixels=1000))
    assert (record.status, record.bytes, record.content_sha256) == ("too_large", 80 << 20, None)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("was opened"))
    kinds = {name: images.inspect(name, SETTINGS) for name in (str(tmp_path / "pipe.jpg"), str(tmp_path / "folder.jpg"), "/dev/zero")}
    assert {record.status for record in kinds.values()} == {"not_regular"}
    assert [(record.reason or "").split(",")[0] for record in kinds.values()] == ["a FIFO", "a directory", "a character device"]


def test_a_fifo_that_takes_a_files_place_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.jpg", b"x")
    regular = os.stat(path)
    os.unlink(path)
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    seen: list[images.ImageRecord] = []
    thread = threading.Thread(target=lambda: seen.append(images.inspect(path, SETTINGS)), daemon=True)
    thread.start()
    thread.join(5)
    assert [record.status for record in seen] == ["not_regular"]


@pytest.mark.parametrize("name", ["none.jpg", "nul\0byte.jpg", "a.jpg/inside.jpg", "x" * 300, "\ud800.jpg"], ids=ascii)
def test_a_name_without_a_file_is_missing(name: str, tmp_path: Path) -> None:
    written(tmp_path, "a.jpg", b"x")
    record = images.inspect(f"{tmp_path}/{name}", SETTINGS)
    assert (record.status, record.bytes) == ("missing", None)
    assert record.reason


def test_a_link_is_followed_and_a_broken_one_is_missing(tmp_path: Path) -> None:
    written(tmp_path, "a.png", encoded(photo()))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    assert images.inspect(str(tmp_path / "link.png"), SETTINGS).status == "ok"
    assert images.inspect(str(tmp_path / "broken.png"), SETTINGS).status == "missing"


def test_a_file_that_may_not_be_opened_has_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.png", encoded(photo()))

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    record = images.inspect(path, SETTINGS)
    assert (record.status, record.reason, record.content_sha256) == ("no_permission", "Permission denied", None)


def test_a_file_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(encoded(photo()))
    assert images.inspect(os.fsdecode(path), SETTINGS).status == "ok"


def test_a_wrong_suffix_is_a_note_and_jpg_for_jpeg_is_none(tmp_path: Path) -> None:
    assert images.inspect(written(tmp_path, "a.jpg", encoded(photo())), SETTINGS).reason == "bytes are PNG, suffix is .jpg"
    for suffix in ("jpg", "JPEG", "jpe", "unknown"):
        assert images.inspect(written(tmp_path, f"b.{suffix}", encoded(photo(), "JPEG")), SETTINGS).reason is None


def test_of_an_animation_the_first_frame_is_taken_and_noted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    record = images.inspect(written(tmp_path, "a.gif", data), SETTINGS)
    assert (record.status, record.reason) == ("ok", "several frames, the first is taken")
    assert record.pixel_hash == images.pixel_hash(frames[0])


def test_reasons_are_one_short_line(tmp_path: Path) -> None:
    data = b"GIF89a" + b"\n\r\x1b[31m" * 100
    record = images.inspect(written(tmp_path, "a.gif", data), SETTINGS)
    assert record.reason is not None
    assert len(record.reason) <= 200
    assert record.reason.isprintable()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_pixels_of_the_rotated_image(orientation: int, tmp_path: Path) -> None:
    upright = photo(40, 24)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    plain = images.inspect(written(tmp_path, "a.png", encoded(upright)), SETTINGS)
    turned = images.inspect(written(tmp_path, "b.png", encoded(stored, exif=exif.tobytes())), SETTINGS)
    assert (turned.pixel_hash, turned.width, turned.height) == (plain.pixel_hash, 40, 24)
    assert turned.content_sha256 != plain.content_sha256 or orientation == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_make_the_pixels_unreadable(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert images.inspect(written(tmp_path, "a.jpg", data), SETTINGS).status == "ok"


def test_transparency_is_composited_on_white() -> None:
    colours = np.full((4, 4, 4), [200, 0, 0, 255], np.uint8)
    colours[0] = [200, 0, 0, 0]
    rgba = Image.fromarray(colours)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.paste(0, (0, 0, 4, 1))
    cut = Image.fromarray(np.ascontiguousarray(colours[..., :3]))
    cut.paste((1, 2, 3), (0, 0, 4, 1))
    stored = {
        "rgba": encoded(rgba),
        "palette": encoded(palette, transparency=0),
        "colour key": encoded(cut, transparency=(1, 2, 3)),
        "webp": encoded(rgba, "WEBP", lossless=True, exact=True),
    }
    expected = colours[..., :3].copy()
    expected[0] = 255
    for name, data in stored.items():
        assert np.array_equal(np.asarray(decoding.decode_rgb(data, max_pixels=100)), expected), name


def test_grey_with_alpha_is_composited_on_white_and_one_bit_is_black_and_white() -> None:
    grey = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA")
    assert np.asarray(decoding.decode_rgb(encoded(grey), max_pixels=9)).tolist() == [[[100] * 3, [255] * 3]]
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert np.asarray(decoding.decode_rgb(encoded(bits), max_pixels=9)).tolist() == [[[0] * 3, [255] * 3]]


def test_an_opaque_alpha_channel_does_not_change_the_pixel_hash() -> None:
    opaque = decoding.decode_rgb(encoded(photo().convert("RGBA")), max_pixels=10**6)
    assert images.pixel_hash(opaque) == images.pixel_hash(photo())


def test_a_16_bit_copy_of_a_photo_has_its_pixels() -> None:
    grey = photo().convert("L")
    grey.putpixel((0, 0), 255)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(np.asarray(decoding.decode_rgb(encoded(deep), max_pixels=10**6))[..., 0], np.asarray(grey))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 4095]], np.uint16), [0, 255]),
        (np.array([[65535, 65535]], np.uint16), [255, 255]),
        (np.array([[0, 255]], np.uint16), [0, 255]),
        (np.array([[-1000, 1000]], np.int32), [0, 255]),
        (np.array([[-7, -7]], np.int32), [0, 0]),
        (np.array([[0.0, 0.5]], np.float32), [0, 128]),
        (np.array([[1e6, 3e6]], np.float32), [0, 255]),
        (np.array([[np.nan, 1.0]], np.float32), [255, 255]),
        (np.array([[np.nan, np.inf]], np.float32), [0, 0]),
    ],
    ids=["12 bit", "white", "8 in 16", "signed", "constant", "unit floats", "large floats", "nan", "nothing finite"],
)
def test_deep_images_are_scaled_from_their_range_not_clipped(values: np.ndarray, expected: list[int]) -> None:
    decoded = decoding.decode_rgb(encoded(Image.fromarray(values), "TIFF"), max_pixels=10)
    assert np.asarray(decoded)[0, :, 0].tolist() == expected


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    white = Image.new("CMYK", (20, 10), (0, 0, 0, 0))
    record = images.inspect(written(tmp_path, "a.jpg", encoded(white, "JPEG")), SETTINGS)
    assert (record.status, record.mode) == ("ok", "CMYK")
    assert record.pixel_hash == images.pixel_hash(Image.new("RGB", (20, 10), "white"))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (20_000, 10), (10, 20_000), (1, 70_000)], ids=str)
def test_extreme_sizes_are_ok(size: tuple[int, int], tmp_path: Path) -> None:
    record = images.inspect(written(tmp_path, "a.png", encoded(Image.new("RGB", size, (10, 200, 30)))), SETTINGS)
    assert (record.status, record.width, record.height) == ("ok", *size)
    assert record.quality is not None
    assert record.quality["odd_aspect_ratio"] == pytest.approx(min(size) / max(size))


def test_draft_decoding_keeps_the_shorter_side_and_is_only_for_jpeg() -> None:
    for side, expected in ((50, (200, 150)), (150, (200, 150)), (151, (400, 300)), (10, (50, 38)), (None, (400, 300))):
        size = decoding.decode_rgb(encoded(photo(400, 300), "JPEG"), max_pixels=10**6, min_side=side).size
        assert size == expected if side != 50 else min(size) >= 50
    assert decoding.decode_rgb(encoded(photo(400, 300)), max_pixels=10**6, min_side=10).size == (400, 300)


def test_bytes_and_files_decode_alike() -> None:
    data = encoded(photo(), "JPEG")
    hashes = {images.pixel_hash(decoding.decode_rgb(source, max_pixels=10**6)) for source in (data, io.BytesIO(data))}
    assert len(hashes) == 1


def test_the_pixel_hash_tells_shapes_apart_and_is_the_same_in_bands() -> None:
    assert images.pixel_hash(Image.new("RGB", (2, 8))) != images.pixel_hash(Image.new("RGB", (8, 2)))
    tall = photo(800, 2000)
    whole = hashlib.blake2b(struct.pack("<qq", 2000, 800) + tall.tobytes(), digest_size=16).hexdigest()
    assert images.pixel_hash(tall) == whole


def phash_by_definition(image: Image.Image) -> str:
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = scipy.fft.dct(scipy.fft.dct(pixels, axis=0), axis=1)[:8, :8]
    return f"{int(''.join('1' if bit else '0' for bit in (low > np.median(low)).flatten()), 2):016x}"


def test_the_phash_is_the_published_dct_hash() -> None:
    pictures = [photo(seed=seed) for seed in range(40)] + [photo(500, 375, seed) for seed in range(5)]
    assert [images.phash(picture) for picture in pictures] == [phash_by_definition(picture) for picture in pictures]
    assert len({images.phash(picture) for picture in pictures}) == len(pictures)


def test_the_phash_of_plain_and_symmetric_pictures_is_not_noise() -> None:
    assert {images.phash(Image.new("RGB", (64, 64), (value,) * 3)) for value in (1, 100, 255)} == {"8000000000000000"}
    half = np.asarray(photo(64, 64).convert("L"))
    mirrored = Image.fromarray(np.hstack([half, half[:, ::-1]]))
    bits = np.array([int(bit) for bit in f"{int(images.phash(mirrored), 16):064b}"]).reshape(8, 8)
    assert bits[:, 1::2].max() == bits[:, 1::2].min(), "odd horizontal frequencies of a mirrored picture are all zero"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA", "JPEG2000"])
def test_no_damage_raises(format: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    whole = bytearray(encoded(photo(48, 48), format))
    path = tmp_path / "a.img"
    for round in range(40):
        data = bytearray(whole[: len(whole) if round % 2 else rng.integers(1, len(whole))])
        for place in rng.integers(0, min(len(data), 200 if round % 4 else len(data)), 6):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks on broken metadata
            record = images.inspect(str(path), Images(max_pixels=10**6))
        assert record.status in STATUSES
        assert (record.status == "ok") == (record.pixel_hash is not None)


def test_threads_read_the_same(tmp_path: Path) -> None:
    paths = [written(tmp_path, f"{seed}.jpg", encoded(photo(seed=seed), "JPEG")) for seed in range(16)]
    alone = [images.inspect(path, SETTINGS) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda path: images.inspect(path, SETTINGS), paths)) == alone


def jpeg(width: int, height: int, **options: object) -> bytes:
    return encoded(photo(width, height), "JPEG", **options)


def test_a_jpeg_above_the_limit_is_decoded_reduced_and_says_so(tmp_path: Path) -> None:
    data = jpeg(400, 296)
    record = images.inspect(written(tmp_path, "a.jpg", data), Images(max_pixels=10_000))
    assert (record.status, record.width, record.height) == ("ok", 400, 296)
    assert record.reason == "too large to be decoded whole, decoded at 1/4 of its size"
    small = decoding.decode_rgb(data, max_pixels=10_000)
    assert small.size == (100, 74)
    assert record.pixel_hash not in (None, images.pixel_hash(small)), "no image of the reduced size is the same image"
    assert record.pixel_hash == images.inspect(written(tmp_path, "b.jpg", data), Images(max_pixels=10_000)).pixel_hash
    whole = images.inspect(str(tmp_path / "a.jpg"), SETTINGS)
    assert whole.reason is None
    bits = int(whole.phash or "", 16) ^ int(record.phash or "", 16)
    assert bits.bit_count() <= 4, "the picture is still found as a copy of itself"


def test_a_turned_jpeg_above_the_limit_has_its_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    record = images.inspect(written(tmp_path, "a.jpg", jpeg(400, 296, exif=exif)), Images(max_pixels=100_000))
    assert (record.status, record.width, record.height) == ("ok", 296, 400)


def test_a_jpeg_that_is_too_large_at_an_eighth_is_too_large(tmp_path: Path) -> None:
    record = images.inspect(written(tmp_path, "a.jpg", jpeg(400, 296)), Images(max_pixels=1000))
    assert (record.status, record.width, record.height) == ("too_large", 400, 296)
    assert record.reason == "400 x 296 pixels, more than images.max_pixels = 1000"


def test_what_needs_more_memory_than_allowed_is_reduced_or_too_large(tmp_path: Path) -> None:
    plain, tight = Image.new("RGB", (4200, 4000), "teal"), Images(memory_mb=64)
    found = {
        name: images.inspect(written(tmp_path, name, encoded(plain, format, **options)), tight)
        for name, format, options in (("a.png", "PNG", {}), ("a.jpg", "JPEG", {}), ("b.jpg", "JPEG", {"progressive": True}))
    }
    assert found["a.png"].reason == "4200 x 4000 pixels take 84 MB to decode, more than images.memory_mb = 64"
    assert [record.status for record in found.values()] == ["too_large", "ok", "ok"]
    assert (found["a.jpg"].reason or "").endswith("decoded at 1/2 of its size")
    assert (found["b.jpg"].reason or "").endswith("decoded at 1/4 of its size")
    assert images.inspect(str(tmp_path / "a.png"), Images(memory_mb=90)).status == "ok"


def test_a_jpeg_of_several_scans_counts_its_coefficients() -> None:
    picture = photo(640, 480)
    need = {}
    for name, options in {"baseline": {}, "progressive": {"progressive": True}, "4:4:4": {"progressive": True, "subsampling": 0}}.items():
        data = encoded(picture, "JPEG", **options)
        need[name] = decoding._bytes_needed(decoding.open_image(io.BytesIO(data)), 0, 1) / (640 * 480)
    assert need == {"baseline": 5, "progressive": 7, "4:4:4": 10}


def test_an_icon_that_holds_another_size_than_its_table_says_is_refused(tmp_path: Path) -> None:
    inside = encoded(Image.new("RGB", (900, 900), "red"))
    table = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL notes the other size
        record = images.inspect(written(tmp_path, "a.ico", table + inside), Images(max_pixels=100_000))
    assert record.status == "too_large"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "I;16", "F", "CMYK"])
def test_bands_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo(64, 40)
    if mode in ("I;16", "F"):
        stored = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16 if mode == "I;16" else np.float32) * 250)
    else:
        stored = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        stored.putalpha(photo(64, 40, 1).convert("L"))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        data = encoded(stored, "TIFF" if mode in ("F", "CMYK") else "PNG", exif=exif.tobytes())
        whole = decoding.decode_rgb(data, max_pixels=10**6)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "BAND_PIXELS", 300)
            in_bands = decoding.decode_rgb(data, max_pixels=10**6)
            patch.setattr(decoding, "LARGE_PIXELS", 100)
            reduced = decoding.decode_rgb(data, max_pixels=10**6, min_side=10)
        assert np.array_equal(np.asarray(in_bands), np.asarray(whole)), orientation
        assert np.array_equal(np.asarray(reduced), np.asarray(whole.reduce(4))), orientation


def test_memory_is_shared_in_the_order_of_asking() -> None:
    memory, order = decoding._Memory(), []

    def take(name: str, n: int) -> None:
        with memory.share(n, 10):
            order.append(name)

    def waiting(n: int) -> None:
        for _ in range(500):
            if len(memory._waiting) == n:
                return
            time.sleep(0.01)
        pytest.fail("nobody waits")

    with memory.share(6, 10):
        large, small = threading.Thread(target=take, args=("large", 20)), threading.Thread(target=take, args=("small", 1))
        large.start()
        waiting(1)
        small.start()  # there would be room, but it came later
        waiting(2)
        assert order == []
    large.join(5), small.join(5)
    assert order == ["large", "small"]
    assert memory._held == 0


def test_threads_together_stay_within_the_memory_that_is_allowed(tmp_path: Path) -> None:
    Image.new("RGBA", (3500, 3400), (10, 200, 30, 128)).save(tmp_path / "a.png", compress_level=1)
    script = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from dq_assets.audit.images import inspect\n"
        "from dq_assets.settings import Images\n"
        "def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1000\n"
        "inspect(sys.argv[0], Images())\n"
        "before = peak()\n"
        "def read(path): return inspect(path, Images(memory_mb=64)).status\n"
        "with ThreadPoolExecutor(3) as pool: found = list(pool.map(read, sys.argv[1:] * 3))\n"
        "print(*found, round(peak() - before))\n"
    )
    # Freed memory goes back at once, where glibc keeps some 30 MB of it for each thread: what is held is measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    argv = [sys.executable, "-c", script, str(tmp_path / "a.png")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    *statuses, grown = done.stdout.split()
    assert statuses == ["ok"] * 3
    assert int(grown) < 64 + 40, "79 was measured, and 226 without the limit"
