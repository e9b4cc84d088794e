"""Lists that people made: CSV and Parquet files of paths with labels, splits and groups.

Every value is text, every complaint names the file and what to do.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Container
from pathlib import Path

import polars as pl
import polars.selectors as cs

from dq_assets.sources.folder import facts_of, file_uri
from dq_assets.sources.layout import COLUMNS, REPEATED, SPLIT_NAMES, Listing, ListingError, as_text


def _read_list(file: Path) -> pl.DataFrame:
    """A CSV or Parquet list with every value as text ("01" is not 1), empty ones as null, and lower-case column names.

    The file is opened here and not by polars, which takes brackets and stars in a path for a pattern.
    """
    try:
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, "not a file")
        if file.suffix.lower() == ".parquet":
            with file.open("rb") as opened:
                schema = pl.read_parquet_schema(opened)
                # Others are no text, and a column of pictures would be read whole.
                textual = [name for name, kind in schema.items() if not kind.is_nested() and kind != pl.Binary]
                opened.seek(0)
                frame = pl.read_parquet(opened, columns=textual).with_columns(cs.float().fill_nan(None)).cast(pl.String)
        else:
            data = file.read_bytes()
            data.decode()  # polars refuses other bytes in a value, but replaces them in a header
            frame = pl.read_csv(data, infer_schema=False)
        return frame.select(pl.all().replace("", None)).rename({c: c.strip().lstrip("\ufeff").lower() for c in frame.columns})
    except OSError as error:
        raise ListingError(f"Cannot read {as_text(str(file))} ({error.strerror or error}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise ListingError(f"{as_text(str(file))} is not UTF-8 (at byte {error.start}). Save it as UTF-8.") from error
    except pl.exceptions.DuplicateError as error:
        raise ListingError(f"{as_text(str(file))} has two columns of one name, but for case or spaces. Rename one.") from error
    except pl.exceptions.PolarsError as error:
        what = str(error).splitlines()[0]
        raise ListingError(f"Cannot read {as_text(str(file))}: {what}. Save it as UTF-8 CSV with a header, or as Parquet.") from error


def _required(frame: pl.DataFrame, file: Path, *names: str) -> None:
    missing = [n for n in names if n not in frame.columns]
    if missing:
        has = ", ".join(frame.columns)
        raise ListingError(f"{as_text(str(file))} has no column {', '.join(missing)} (it has: {has}). Add it or rename one.")


def list_manifest(file: Path) -> Listing:
    """The files that a CSV or Parquet list names, with what it says of them. Raises ListingError."""
    frame = _read_list(file)
    _required(frame, file, "path", "label")
    skipped: Counter[str] = Counter()
    for name in frame.columns:
        if name not in ("path", "label", "split", "group"):
            skipped[f"column {name}"] += 1
    absent = [pl.lit(None, pl.String).alias(n) for n in ("split", "group") if n not in frame.columns]
    frame = frame.with_columns(absent).select("path", "label", "split", "group")
    if n_empty := frame["path"].null_count():
        skipped["rows without a path"] += n_empty
    frame = frame.drop_nulls("path")
    folder = os.path.abspath(file.parent)
    frame = frame.with_columns(pl.Series("path", [_within(folder, path) for path in frame["path"]], pl.String), _split_column(frame, file))
    frame = _without_repeats(frame, file)
    rows = [(*_stat_row(file.parent, path, note), label, split, group) for path, label, split, group, note in frame.iter_rows()]
    order = ["path", "uri", "bytes", "mtime", "status", "reason", "given_label", "split", "group"]
    files = pl.DataFrame(rows, schema={c: COLUMNS[c] for c in order}, orient="row").select(list(COLUMNS)).sort("path")
    return Listing(files, dict(skipped))


def manifest_paths(file: Path) -> list[str]:
    """The paths of a manifest as raw_manifest has them, in the order of its rows, repeated ones too. Raises ListingError."""
    frame = _read_list(file)
    _required(frame, file, "path")
    folder = os.path.abspath(file.parent)
    return [_within(folder, path) for path in frame["path"].drop_nulls()]


def _within(folder: str, path: str) -> str:
    """A path in its one spelling: relative to the absolute `folder` where it lies in it."""
    path = os.path.normpath(path)
    inside = os.path.isabs(path) and os.path.commonpath([path, folder]) == folder
    return os.path.relpath(path, folder) if inside else path


def _stat_row(folder: Path, path: str, note: str | None) -> tuple[str, str, int | None, float | None, str | None, str | None]:
    file = os.path.join(folder, path)
    try:
        info = os.stat(file)
    except FileNotFoundError:
        return path, file_uri(file), None, None, "missing", "the manifest names it, but there is no such file"
    except PermissionError:
        return path, file_uri(file), None, None, "no_permission", "its folder may not be read"
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL byte
        return path, file_uri(file.replace("\0", "")), None, None, "missing", f"not a usable path: {error}"
    size, mtime, status, reason = facts_of(info)
    return path, file_uri(file), size, mtime, status, reason or note


def _without_repeats(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    """One row per path with a column `note`; raises if a path stands there with two different values of another column."""
    columns = [c for c in frame.columns if c != "path"]
    grouped = frame.group_by("path", maintain_order=True).agg(
        pl.col(columns).first(), pl.col(columns).n_unique().name.suffix(" values"), n=pl.len()
    )
    for column in columns:
        clashing = grouped.filter(pl.col(f"{column} values") > 1)["path"]
        if not clashing.is_empty():
            shown = "; ".join(
                f"{path} is {', '.join(frame.filter(pl.col('path') == path)[column].fill_null('empty').unique().sort())}"
                for path in clashing.head(5)
            )
            raise ListingError(f"{as_text(str(file))} gives {len(clashing)} paths more than one {column}: {shown}. Keep one row for each.")
    note = pl.when(pl.col("n") > 1).then(pl.format(REPEATED, "n"))
    return grouped.select("path", *columns, note=note)


def _split_column(frame: pl.DataFrame, file: Path) -> pl.Series:
    """The column `split` in canonical names."""
    split = frame["split"].str.strip_chars().str.to_lowercase()
    unknown = sorted(set(split.drop_nulls()) - SPLIT_NAMES.keys())
    if unknown:
        raise ListingError(f"{as_text(str(file))} has unknown splits: {', '.join(unknown[:5])}. Use {', '.join(sorted(SPLIT_NAMES))}.")
    return split.replace_strict(SPLIT_NAMES, default=None, return_dtype=pl.String)


def with_column(listing: Listing, root: Path, column: str, file: Path) -> Listing:
    """Replace a column by a CSV's values; files that are not in it get null and are counted."""
    wanted = {"given_label": "label"}.get(column, column)
    frame = _read_list(file)
    _required(frame, file, "path", wanted)
    frame = frame.select("path", wanted).drop_nulls("path")
    if column == "split":
        frame = frame.with_columns(_split_column(frame, file))
    paths = set(listing.files["path"])
    folders = (os.path.abspath(root), os.path.abspath(file.parent))
    resolved = pl.Series("path", [resolve_path(p, *folders, paths) for p in frame["path"]], pl.String)
    matched = frame.with_columns(resolved).drop_nulls("path")
    if matched.is_empty():
        theirs = frame["path"][0] if len(frame) else "(no rows)"
        raise ListingError(
            f"No path of {as_text(str(file))} is a file of the dataset: it has {theirs!r}, the dataset {listing.files['path'][0]!r}."
            " Give paths relative to PATH or to the CSV's folder."
        )
    n_unmatched = len(frame) - len(matched)
    matched = _without_repeats(matched, file).select("path", pl.col(wanted).alias(column))
    files = listing.files.drop(column).join(matched, on="path", how="left", maintain_order="left").select(list(COLUMNS))
    counts = {f"rows of {as_text(file.name)} without a file": n_unmatched, f"files not in {as_text(file.name)}": len(paths) - len(matched)}
    return Listing(files, listing.skipped | {reason: n for reason, n in counts.items() if n})


def resolve_path(path: str, root: str, folder: str, known: Container[str]) -> str | None:
    """A CSV's path as the listing's: relative to PATH first, then to the CSV's folder (both absolute)."""
    for candidate in (_within(root, path), _within(root, os.path.join(folder, path))):
        if candidate in known:
            return candidate
    return None
