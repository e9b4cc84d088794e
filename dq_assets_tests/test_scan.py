"""A file is read once, read again when it changed, and what it was is never taken for what it is."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from dq_assets.audit.scan import RECORD_SCHEMA, known_records, manifest_and_properties, scan, unread
from dq_assets.schema import STATUSES, TABLES
from dq_assets.settings import Dataset, Images, Quality, UserError
from dq_assets.sources.layout import Listing
from dq_assets.sources.listing import list_source
from dq_assets.sources.reading import Reader

SETTINGS = Images(threads=2)
READER = Reader()
NOTHING_KNOWN = pl.DataFrame(schema=RECORD_SCHEMA)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def photo(file: Path | bytes, seed: int = 0, size: tuple[int, int] = (24, 16)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path = os.fsdecode(file)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as opened:
        Image.fromarray(pixels).save(opened, "PNG")


def listed(path: Path) -> Listing:
    return list_source(Dataset("d", str(path)))


def audited(path: Path, known: pl.DataFrame = NOTHING_KNOWN) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """As the assets do it: raw_manifest, image_properties, and how many files were read."""
    files = listed(path).files
    todo = unread(files, known)
    records = pl.concat([known, *scan(todo, SETTINGS, READER)])
    image_ids = files.select("path", image_id=pl.int_range(pl.len(), dtype=pl.Int64))
    return *manifest_and_properties(files, records, image_ids, Quality()), len(todo)


def test_every_file_becomes_a_row_whatever_it_is(root: Path) -> None:
    photo(root / "cat/fine.png")
    photo(os.fsencode(root) + b"/cat/\xff.png")
    (root / "cat/text.jpg").write_text("not a picture")
    (root / "cat/zero.jpg").write_bytes(b"")
    os.mkfifo(root / "cat/pipe.jpg")
    manifest, properties, _ = audited(root)
    assert dict(manifest.select("path", "status").rows()) == {
        "cat/fine.png": "ok",
        "cat/\\xff.png": "ok",
        "cat/text.jpg": "unreadable",
        "cat/zero.jpg": "unreadable",
        "cat/pipe.jpg": "not_regular",
    }
    assert manifest.columns == [*TABLES["raw_manifest"].column_names]
    assert properties.columns == [*TABLES["image_properties"].column_names]
    assert properties["image_id"].to_list() == manifest.filter(pl.col("status") == "ok")["image_id"].to_list()
    assert manifest.filter(pl.col("status") != "ok")["reason"].null_count() == 0


NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, and a process that may not read everything: tests often run as root."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_files_and_folders_without_permission_are_rows_or_fail_the_listing(open_folder: Path) -> None:
    photo(open_folder / "cat/fine.png")
    photo(open_folder / "cat/secret.png")
    photo(open_folder / "dog/closed.png")
    (open_folder / "cat/secret.png").chmod(0)
    (open_folder / "dog").chmod(0o400)  # may be listed, not entered
    manifest, _, _ = audited(open_folder)
    assert dict(manifest.select("path", "status").rows()) == {
        "cat/fine.png": "ok",
        "cat/secret.png": "no_permission",
        "dog/closed.png": "no_permission",
    }
    (open_folder / "dog").chmod(0)
    with pytest.raises(UserError, match=r"Cannot list .*dog \(Permission denied\)"):
        listed(open_folder)
    (open_folder / "dog").chmod(0o700)


def test_a_dataset_without_one_readable_image_has_an_empty_table_of_properties(root: Path) -> None:
    (root / "a.jpg").write_bytes(b"x")
    manifest, properties, _ = audited(root)
    assert manifest["status"].to_list() == ["unreadable"]
    assert properties.is_empty()
    assert properties.columns == [*TABLES["image_properties"].column_names]


def test_blocks_have_one_schema_and_keep_the_order(root: Path) -> None:
    for n in range(7):
        photo(root / f"{n}.png", n) if n % 3 else (root / f"{n}.png").write_bytes(b"")
    files = listed(root).files
    blocks = list(scan(files, SETTINGS, READER, block=3))
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert all(dict(block.schema) == RECORD_SCHEMA for block in blocks)
    assert pl.concat(blocks)["uri"].to_list() == files["uri"].to_list()
    assert list(scan(files.clear(), SETTINGS, READER)) == []


def test_the_number_of_threads_changes_nothing(root: Path) -> None:
    for n in range(6):
        photo(root / f"{n}.png", n)
    files = listed(root).files
    one, many = (pl.concat(scan(files, Images(threads=threads), READER)) for threads in (1, 5))
    assert one.equals(many)


def test_a_header_that_promises_more_pixels_than_a_number_holds_is_a_row(root: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 0xFFFFFFFF, 0xFFFFFFFF, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (root / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82")
    photo(root / "fine.png")
    manifest, _, _ = audited(root)
    assert manifest["status"].to_list()[1] == "ok"
    assert manifest["status"].to_list()[0] in ("too_large", "unreadable")


def test_a_known_file_is_not_read_again(root: Path) -> None:
    for n in range(3):
        photo(root / f"{n}.png", n)
    manifest, properties, n_read = audited(root)
    assert n_read == 3
    known = known_records(manifest, properties)
    assert dict(known.schema) == RECORD_SCHEMA
    again, properties_again, n_read = audited(root, known)
    assert n_read == 0
    assert again.equals(manifest)
    assert properties_again.equals(properties)


def test_only_what_changed_is_read_and_the_newest_record_counts(root: Path) -> None:
    for n in range(3):
        photo(root / f"{n}.png", n)
    manifest, properties, _ = audited(root)
    photo(root / "1.png", 10, (30, 20))
    photo(root / "3.png", 3)
    again, _, n_read = audited(root, known_records(manifest, properties))
    assert n_read == 2
    assert again["width"].to_list() == [24, 30, 24, 24]
    assert again["content_sha256"][0] == manifest["content_sha256"][0]
    assert again["content_sha256"][1] != manifest["content_sha256"][1]


def test_a_file_with_a_new_time_is_read_again_and_is_the_same(root: Path) -> None:
    photo(root / "0.png")
    manifest, properties, _ = audited(root)
    os.utime(root / "0.png", (5, 5))
    again, _, n_read = audited(root, known_records(manifest, properties))
    assert n_read == 1
    assert again["mtime"].to_list() == [5.0]
    assert again.drop("mtime").equals(manifest.drop("mtime"))


def test_a_repeated_row_keeps_one_note_over_any_number_of_audits(root: Path) -> None:
    photo(root / "0.png")
    photo(root / "wrong.jpg", 1)  # a PNG, which is noted
    text = "path,label\n" + "0.png,cat\n" * 2 + "wrong.jpg,cat\n" * 3
    (root / "m.csv").write_text(text)
    manifest, properties, _ = audited(root / "m.csv")
    again, properties_again, n_read = audited(root / "m.csv", known_records(manifest, properties))
    third, _, _ = audited(root / "m.csv", known_records(again, properties_again))
    assert n_read == 0
    assert third.equals(again)
    assert again.equals(manifest)
    assert manifest["reason"][0] == "stands 2 times in the list"
    assert manifest["reason"][1].endswith("; stands 3 times in the list")
    (root / "m.csv").write_text(text.replace("0.png,cat\n", "", 1))
    last, _, _ = audited(root / "m.csv", known_records(third, properties))
    assert last["reason"][0] is None


def test_a_file_that_is_gone_has_nothing_of_what_it_was(root: Path) -> None:
    photo(root / "0.png")
    photo(root / "1.png", 1)
    (root / "m.csv").write_text("path,label\n0.png,cat\n1.png,cat\n")
    manifest, properties, _ = audited(root / "m.csv")
    (root / "1.png").unlink()
    again, properties_again, n_read = audited(root / "m.csv", known_records(manifest, properties))
    assert n_read == 0
    gone = again.row(1, named=True)
    assert gone["status"] == "missing"
    assert {name for name, value in gone.items() if value is not None} == {"image_id", "path", "uri", "given_label", "status", "reason"}
    assert properties_again["image_id"].to_list() == [0]


def test_a_file_that_comes_back_is_read(root: Path) -> None:
    photo(root / "0.png")
    photo(root / "1.png", 1)
    (root / "m.csv").write_text("path,label\n0.png,cat\n1.png,cat\n")
    (root / "1.png").rename(root / "away")
    manifest, properties, _ = audited(root / "m.csv")
    (root / "away").rename(root / "1.png")
    again, _, n_read = audited(root / "m.csv", known_records(manifest, properties))
    assert n_read == 1
    assert again["status"].to_list() == ["ok", "ok"]


def test_a_file_that_vanishes_between_listing_and_reading_is_missing_and_has_no_size(root: Path) -> None:
    photo(root / "0.png")
    photo(root / "1.png", 1)
    files = listed(root).files
    (root / "1.png").unlink()
    records = pl.concat(scan(files, SETTINGS, READER))
    image_ids = pl.DataFrame({"path": ["0.png", "1.png", "old.png"], "image_id": [4, 2, 3]})
    manifest, properties = manifest_and_properties(files, records, image_ids, Quality())
    assert manifest.select("image_id", "path", "status", "bytes", "mtime").row(0) == (2, "1.png", "missing", None, None)
    assert properties["image_id"].to_list() == [4]


@pytest.mark.parametrize("status", [*STATUSES, "a disk's fault"])
def test_only_records_of_the_bytes_spare_a_reading(root: Path, status: str) -> None:
    photo(root / "0.png")
    files = listed(root).files
    hashed = None if status in ("missing", "no_permission", "not_regular", "a disk's fault") else "00"
    status = "unreadable" if status == "a disk's fault" else status
    known = pl.DataFrame([{**files.row(0, named=True), "status": status, "content_sha256": hashed}]).select(
        pl.col(name).cast(kind) if name in (*files.columns, "content_sha256") else pl.lit(None, kind).alias(name)
        for name, kind in RECORD_SCHEMA.items()
    )
    assert len(unread(files, known)) == (1 if hashed is None else 0)


def test_a_record_of_other_bytes_or_of_another_time_spares_nothing(root: Path) -> None:
    photo(root / "0.png")
    files = listed(root).files
    known = pl.concat(scan(files, SETTINGS, READER))
    assert unread(files, known).is_empty()
    for change in (pl.col("bytes") + 1, pl.col("mtime") + 1, pl.col("uri") + "x", pl.lit("v2").alias("etag")):
        assert len(unread(files, known.with_columns(change))) == 1


def test_a_size_that_the_listing_does_not_know_is_not_compared_and_a_file_without_any_mark_is_read_again(root: Path) -> None:
    photo(root / "0.png")
    files = listed(root).files
    known = pl.concat(scan(files, SETTINGS, READER))
    nothing = pl.lit(None)
    assert unread(files.with_columns(bytes=nothing.cast(pl.Int64)), known).is_empty()
    unmarked = {"mtime": nothing.cast(pl.Float64), "etag": nothing.cast(pl.String)}
    assert len(unread(files.with_columns(**unmarked), known.with_columns(**unmarked))) == 1


def test_two_paths_of_one_file_are_two_rows_of_one_content(root: Path) -> None:
    photo(root / "0.png")
    (root / "m.csv").write_text("path,label\n0.png,cat\n../photos/0.png,dog\n")
    manifest, properties, _ = audited(root / "m.csv")
    assert manifest["uri"].n_unique() == manifest["content_sha256"].n_unique() == 1
    assert manifest["path"].n_unique() == len(properties) == 2
