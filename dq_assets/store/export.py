"""Exporting tables and curated images. Labels and file names are hostile text: they never become paths unescaped."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dq_assets.schema import TABLES
from dq_assets.settings import UserError
from dq_assets.sources.addresses import shown_uri
from dq_assets.sources.folder import local_path, real_path_within
from dq_assets.sources.reading import Reader
from dq_assets.sources.retries import TransientError
from dq_assets.store import audits
from dq_assets.store.lake import Lake, address, literal, quoted

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def export_tables(lake: Lake, dataset: str, out: Path, file_format: str, tables: Sequence[str], version: int | None) -> dict[str, int]:
    """Write tables as out/<table>.<format>, empty ones too; per-image tables begin with path. Returns rows by table.

    Without a list every table is written; then training_set of an audit that has none is an empty file.
    Raises UserError for an unknown table or audit before anything is written.
    """
    unknown = [t for t in tables if t not in TABLES]
    if unknown:
        raise UserError(f"There is no table {', '.join(unknown)}. Tables: {', '.join(TABLES)}.")
    audit_id = int(audits.audit_row(lake, dataset, version)["audit_id"])
    sources = {t: _source(lake, dataset, t, audit_id, optional=not tables) for t in tables or TABLES}
    out.mkdir(parents=True, exist_ok=True)
    options = "FORMAT parquet, COMPRESSION zstd" if file_format == "parquet" else "FORMAT csv, HEADER"
    counts = {}
    for table, source in sources.items():
        file = out / f"{table}.{file_format}"
        draft = out / f".{table}.{os.getpid()}.tmp"
        try:
            row = lake.con.execute(f"COPY ({source}) TO {literal(draft)} ({options})").fetchone()
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
        counts[table] = int(row[0]) if row else 0
    return counts


def _source(lake: Lake, dataset: str, table: str, audit_id: int, *, optional: bool) -> str:
    """The query of a table as of an audit, path first where it is per image."""
    empty = False
    try:
        snapshot = audits.snapshot_of(lake, dataset, table, audit_id)
    except UserError:
        if not optional:
            raise
        snapshot, empty = None, True
    at = "" if snapshot is None else f" AT (VERSION => {snapshot})"
    spec = TABLES[table]
    if "image_id" in spec.column_names and "path" not in spec.column_names:
        # The register of ids never forgets a path, so an image of an old audit still has one.
        columns = "m.path, " + ", ".join(f"t.{quoted(c)}" for c in spec.column_names)
        joined = f"(FROM {address(dataset, table)}{at}) AS t JOIN {address(dataset, 'image_ids')} AS m USING (image_id)"
    else:
        names = sorted(spec.column_names, key=lambda c: c != "path")
        columns, joined = ", ".join(f"t.{quoted(c)}" for c in names), f"(FROM {address(dataset, table)}{at}) AS t"
    # Vectors are not sorted: their file is in order already.
    order = "" if spec.storage == "matrix" or table == "embeddings" else " ORDER BY " + ", ".join(f"t.{quoted(k)}" for k in spec.key)
    return f"SELECT {columns} FROM {joined}{' WHERE false' if empty else ''}{order}"


def export_images(
    lake: Lake,
    dataset: str,
    out: Path,
    layout: str,
    version: int | None,
    *,
    link: bool,
    include_review: bool,
    progress: Progress,
    reader: Reader,
) -> dict[str, int]:
    """Write the curated images as out/<split>/<label>/<file> (imagefolder) or out/<split>/ with metadata.csv (huggingface).

    Images with action drop are left out, those with review unless include_review. Files are linked where the disk allows it,
    else copied; what is no file of this machine is copied from its source by `reader`. Files that changed since the audit are
    skipped and counted, not exported under a label that was not theirs.
    Raises UserError if out is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty. Give a new folder with --out.")
    actions = ["keep", "relabel", *(["review"] if include_review else [])]
    manifest = audits.read(lake, dataset, "raw_manifest", version)
    rows = manifest.join(audits.read(lake, dataset, "curated_dataset", version), on="image_id", maintain_order="left").filter(
        pl.col("action").is_in(actions), pl.col("final_label").is_not_null()
    )
    counts = {"linked": 0, "copied": 0, "changed since the audit": 0}
    metadata: dict[str, list[tuple[str, str, str, str, str]]] = {}
    with reader.ahead(rows["uri"].to_list(), rows["bytes"].to_list()) as read:
        for number, row in enumerate(rows.iter_rows(named=True), 1):
            split = row["split"] or "train"
            name = f"{row['image_id']:08d}{_suffix(row['format'])}"
            target = out / split / (_folder_name(row["final_label"]) if layout == "imagefolder" else ".") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            outcome = _place(row, target, reader.root, link=link) if row["uri"].startswith("file://") else _fetch(row, target, read)
            counts[outcome] += 1
            if outcome != "changed since the audit":
                metadata.setdefault(split, []).append((name, row["final_label"], row["given_label"], row["action"], row["path"]))
            progress(number, len(rows))
    if layout == "huggingface":
        for split, lines in metadata.items():
            with (out / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(("file_name", "label", "given_label", "action", "path"))
                writer.writerows(lines)
    return counts


def _suffix(image_format: str | None) -> str:
    """By the bytes, not by the old name: loaders go by the suffix."""
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tiff", "JPEG2000": ".jp2"}.get(
        image_format or "", f".{(image_format or 'img').lower()}"
    )


def _folder_name(label: str) -> str:
    """A label as one safe path part: separators, control characters, % and leading dots are percent-encoded."""
    kept = "".join(c if c not in '%/\\:*?"<>|' and c.isprintable() else "".join(f"%{b:02X}" for b in c.encode()) for c in label)
    kept = f"%2E{kept[1:]}" if kept.startswith(".") else kept
    return kept[:200] or "%00"


def _place(row: dict[str, Any], target: Path, root: str | None, *, link: bool) -> str:
    """Link or copy a local file, if it is as it was audited. A link itself would lead nowhere from its new place."""
    try:
        path = local_path(row["uri"])
        source = os.path.realpath(path) if root is None else real_path_within(path, root)
        info = os.stat(source)
    except OSError:
        return "changed since the audit"
    if info.st_size != row["bytes"] or abs(info.st_mtime - row["mtime"]) > 1e-6:
        return "changed since the audit"
    if link:
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            pass
        else:
            return "linked"
    shutil.copy2(source, target)
    return "copied"


def _fetch(row: dict[str, Any], target: Path, read: Callable[[str], bytes]) -> str:
    """Write what a remote source or an archive holds, if its content is the audited one. Raises UserError if it cannot be asked."""
    try:
        data = read(row["uri"])
    except TransientError as error:
        if error.errno == errno.ESTALE:
            return "changed since the audit"
        raise UserError(f"Cannot read {shown_uri(row['uri'])} ({error.strerror}). Export again into a new folder.") from error
    except OSError:
        return "changed since the audit"
    if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
        return "changed since the audit"
    target.write_bytes(data)
    return "copied"
