"""Scanning: reading every new or changed file once, and nothing twice.

One decode gives the hashes, the size, the perceptual hash and the quality scores. What an earlier scan already knows of a
file with the same address, size, modification time and ETag is used again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import polars as pl

from dq_assets.audit.images import ImageRecord, inspect, inspect_bytes
from dq_assets.audit.quality import image_properties
from dq_assets.schema import QUALITY_CHECKS
from dq_assets.settings import Images, Quality
from dq_assets.sources.folder import local_path
from dq_assets.sources.layout import REPEATED
from dq_assets.sources.reading import Reader

PIXEL_CHECKS = tuple(check for check in QUALITY_CHECKS if check != "odd_size")
"""Checks of one image alone; odd_size needs the whole dataset."""

RECORD_SCHEMA = {
    "uri": pl.String,
    "content_sha256": pl.String,
    "pixel_hash": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "format": pl.String,
    "mode": pl.String,
    "bytes": pl.Int64,
    "mtime": pl.Float64,
    "etag": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "phash": pl.String,
    **{f"{check}_score": pl.Float32 for check in PIXEL_CHECKS},
}
"""What is known of one file after it was read."""

RECHECKED = ("missing", "no_permission", "not_regular")
"""Statuses that say nothing about the bytes; such files are looked at again every time."""


def known_records(manifest: pl.DataFrame, properties: pl.DataFrame) -> pl.DataFrame:
    """What the published tables know of their files, with RECORD_SCHEMA."""
    joined = manifest.join(properties, on="image_id", how="left", maintain_order="left")
    own = pl.col("reason").str.replace(_NOTE, "")
    return joined.with_columns(reason=pl.when(own != "").then(own)).select(pl.col(name).cast(kind) for name, kind in RECORD_SCHEMA.items())


def unread(files: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The files that no record with the same address, size, modification time and ETag covers.

    A record that says nothing about the bytes covers none: what changes with a permission or a disk's fault is not the time. A file
    with neither time nor ETag is read each time. A size that the listing does not know is not compared.
    """
    says_nothing = pl.col("status").is_in(RECHECKED) | ((pl.col("status") == "unreadable") & pl.col("content_sha256").is_null())
    marked = pl.col("mtime").is_not_null() | pl.col("etag").is_not_null()
    facts = known.filter(~says_nothing & marked).select("uri", "mtime", "etag", bytes_known="bytes")
    same_size = pl.col("bytes").is_null() | pl.col("bytes").eq_missing(pl.col("bytes_known"))
    covered = files.join(facts, on=["uri", "mtime", "etag"], nulls_equal=True).filter(same_size)
    return files.filter(pl.col("status").is_null()).join(covered.select("uri"), on="uri", how="anti", maintain_order="left")


def scan(files: pl.DataFrame, settings: Images, reader: Reader, *, block: int = 1024) -> Iterator[pl.DataFrame]:
    """Read files in threads; yield blocks of records with RECORD_SCHEMA, in order. Bad files become rows.

    files: uri, bytes, mtime and etag as listed.
    """
    threads = settings.threads or os.cpu_count() or 1
    listed = files.select("uri", "bytes", "mtime", "etag")
    with ThreadPoolExecutor(threads) as pool, reader.ahead(listed["uri"].to_list(), listed["bytes"].to_list()) as read:

        def look(uri: str, size: int | None, mtime: float | None, etag: str | None) -> dict[str, object]:
            if uri.startswith("file://"):
                return _row(uri, etag, inspect(local_path(uri), settings, reader.root))
            # The listing's facts and not those of the moment: a file that changes in between is read again by the next audit.
            return _row(uri, etag, inspect_bytes(lambda: read(uri), ImageRecord(bytes=size, mtime=mtime), uri, settings))

        for chunk in listed.iter_slices(block):
            # One block at a time is in flight, so memory does not grow with the number of files.
            yield pl.DataFrame(list(pool.map(look, *chunk.get_columns())), schema=RECORD_SCHEMA, orient="row")


def _row(uri: str, etag: str | None, record: ImageRecord) -> dict[str, object]:
    values = asdict(record)
    quality = values.pop("quality") or {}
    return {"uri": uri, "etag": etag, **values, **{f"{check}_score": quality.get(check) for check in PIXEL_CHECKS}}


def manifest_and_properties(
    files: pl.DataFrame, records: pl.DataFrame, image_ids: pl.DataFrame, settings: Quality
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables raw_manifest and image_properties.

    files: the listing; records: RECORD_SCHEMA, for every file whose listing has no status; image_ids: path, image_id.
    """
    # A file that is missing now must not inherit what an earlier scan read of it: a null key joins with nothing.
    to_read = pl.col("status").is_null()
    latest = records.unique("uri", keep="last").rename({"uri": "read"})
    joined = (
        files.with_columns(read=pl.when(to_read).then("uri"))
        .join(latest, on="read", how="left", suffix="_read", maintain_order="left")
        .join(image_ids, on="path", how="left", maintain_order="left")
    )
    note = pl.concat_str(["reason_read", "reason"], separator="; ", ignore_nulls=True)
    manifest = joined.with_columns(
        status=pl.coalesce("status", "status_read"),
        bytes=pl.when(to_read).then("bytes_read").otherwise("bytes"),
        mtime=pl.when(to_read).then("mtime_read").otherwise("mtime"),
        etag=pl.when(to_read).then("etag_read").otherwise("etag"),
        reason=pl.when(note != "").then(note),
    ).sort("image_id")
    fine = manifest.filter(pl.col("status") == "ok")
    properties = image_properties(
        fine["image_id"].to_numpy(),
        fine["phash"].to_list(),
        {check: fine[f"{check}_score"].to_numpy().astype(np.float32) for check in PIXEL_CHECKS},
        fine["width"].to_numpy(),
        fine["height"].to_numpy(),
        settings,
    )
    columns = ("image_id", "path", "uri", "given_label", "split", "group", *[c for c in RECORD_SCHEMA if c in _MANIFEST_READ])
    return manifest.select(columns), properties


_NOTE = "(^|; )" + REPEATED.format(r"\d+") + "$"
"""The listing's own note at the end of a published reason; the listing says it anew."""

_MANIFEST_READ = ("content_sha256", "pixel_hash", "width", "height", "format", "mode", "bytes", "mtime", "etag", "status", "reason")
