"""Listing a source: which files it has, under which labels, splits and groups. Nothing is opened but CSV and Parquet lists.

A listing that fails raises; it is never an empty listing. Files that are passed over are counted by reason.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import polars.selectors as cs

from dq_assets.settings import Dataset, UserError

_SUFFIXES = "jpg jpeg jfif png gif bmp webp tif tiff ppm pgm pbm pnm avif heic heif jp2 ico tga"

IMAGE_SUFFIXES = frozenset(map(".{}".format, _SUFFIXES.split()))
"""Files with another suffix are counted, not listed. A suffix only nominates; the bytes decide."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "unused": "unused",
}
"""Split names that are understood, and what they are stored as."""

SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test", "unused"})

REPEATED = "stands {} times in the list"
"""The listing's note on a file whose path a manifest repeats."""

NOT_REGULAR = "not a regular file; never opened"

COLUMNS = {
    "path": pl.String,
    "uri": pl.String,
    "given_label": pl.String,
    "split": pl.String,
    "group": pl.String,
    "bytes": pl.Int64,
    "mtime": pl.Float64,
    "status": pl.String,
    "reason": pl.String,
}


class ListingError(UserError):
    """The source could not be listed."""


@dataclass(frozen=True)
class Listing:
    """files: one row per file with COLUMNS; status is null where the file has yet to be read. skipped: counts by reason."""

    files: pl.DataFrame
    skipped: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash of what a re-audit depends on: paths, sizes, times, labels, splits, groups."""
        rows = self.files.select(c for c in COLUMNS if c not in ("uri", "reason")).sort("path").rows()
        return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()


def list_source(dataset: Dataset) -> Listing:
    """List a dataset's folder or manifest and apply its labels, splits and groups files. Raises ListingError."""
    shown = _text(dataset.path)
    if "://" in dataset.path:
        raise ListingError(f"{shown} is not a local path. Give a folder, or a CSV or Parquet manifest of local files.")
    root = Path(dataset.path)
    try:
        mode = root.stat().st_mode
    except OSError as error:
        raise ListingError(f"Cannot read {shown} ({error.strerror}). Give a folder of images or a CSV / Parquet manifest.") from error
    if stat.S_ISDIR(mode):
        listing = _list_folder(root)
    elif stat.S_ISREG(mode) and root.suffix.lower() in (".csv", ".parquet"):
        root, listing = root.parent, _list_manifest(root)
    else:
        raise ListingError(f"{shown} is neither a folder nor a .csv or .parquet manifest. Give one of these.")
    if listing.files.is_empty():
        raise ListingError(f"No image was found under {shown} ({_counts(listing.skipped)}). Check the path and the files' suffixes.")
    for column, file in (("given_label", dataset.labels), ("split", dataset.splits), ("group", dataset.groups)):
        if file is not None:
            listing = _with_column(listing, root, column, Path(file))
    return listing


def local_path(uri: str) -> str:
    """The file system path of a file:// address, exact even where the name is no UTF-8."""
    return os.fsdecode(urllib.parse.unquote_to_bytes(uri.removeprefix("file://")))


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in sorted(skipped.items())) or "nothing else was there"


def _text(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 become escapes, since DuckDB refuses them."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _uri(path: str) -> str:
    return "file://" + urllib.parse.quote_from_bytes(os.fsencode(os.path.abspath(path)))


def _list_folder(root: Path) -> Listing:
    skipped: Counter[str] = Counter()
    found = sorted(_walk(str(root), str(root.resolve()), skipped))
    top = {relative.split(os.sep)[0] for relative, _ in found if os.sep in relative}
    has_split_level = bool(top) and top <= SPLIT_FOLDERS
    rows: list[tuple[object, ...]] = []
    taken: set[str] = set()
    for relative, info in found:
        *folders, _ = relative.split(os.sep)
        split = SPLIT_NAMES[folders.pop(0)] if has_split_level and folders else None
        path = _text(relative)
        if path in taken:  # a name that looks like another name's escapes
            path = urllib.parse.quote_from_bytes(os.fsencode(relative))
        while path in taken:  # each round turns % into %25, so that it ends
            path = urllib.parse.quote(path)
        taken.add(path)
        label = _text(folders[0]) if folders else None
        rows.append((path, _uri(os.path.join(root, relative)), label, split, None, *_facts(info)))
    return Listing(pl.DataFrame(rows, schema=COLUMNS, orient="row"), dict(skipped))


Facts = tuple[int | None, float | None, str | None, str | None]
"""bytes, mtime, status, reason."""


def _facts(info: os.stat_result | None) -> Facts:
    """What the listing says of a file; None for one whose folder may be listed but not entered."""
    if info is None:
        return None, None, "no_permission", "its folder may not be entered"
    status, reason = (None, None) if stat.S_ISREG(info.st_mode) else ("not_regular", NOT_REGULAR)
    return info.st_size, info.st_mtime, status, reason


def _walk(root: str, real_root: str, skipped: Counter[str]) -> Iterator[tuple[str, os.stat_result | None]]:
    """(relative path, stat) of every file with an image suffix. Folder links and links that leave the root are not followed.

    A file that goes away between the listing and its stat is counted; a folder that does fails the listing, since a disk that
    is being unmounted looks the same.
    """
    pending = [root]
    while pending:
        folder = pending.pop()
        n_images = 0
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            what = f"Cannot list {_text(folder)} ({error.strerror})"
            raise ListingError(f"{what}. Give this user permission to read it, or try again.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "Thumbs.db":
                skipped["hidden"] += 1
            elif entry.is_symlink() and not _links_to_file_within(entry, real_root):
                skipped["links not followed"] += 1
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
                n_images += 1
            elif os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                skipped["without an image suffix"] += 1
            else:
                n_images += 1
                try:
                    info = os.stat(entry.path)
                except PermissionError:
                    info = None
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise ListingError(f"Cannot look at {_text(entry.path)} ({error.strerror}). Mend it, or try again.") from error
                    skipped["gone while listing"] += 1
                    continue
                yield os.path.relpath(entry.path, root), info
        if n_images == 0 and folder != root:
            skipped["folders without images"] += 1


def _links_to_file_within(entry: os.DirEntry[str], real_root: str) -> bool:
    target = os.path.realpath(entry.path)
    return os.path.commonpath([target, real_root]) == real_root and os.path.isfile(target)


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
        raise ListingError(f"Cannot read {_text(str(file))} ({error.strerror or error}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise ListingError(f"{_text(str(file))} is not UTF-8 (at byte {error.start}). Save it as UTF-8.") from error
    except pl.exceptions.DuplicateError as error:
        raise ListingError(f"{_text(str(file))} has two columns of one name, but for case or spaces. Rename one.") from error
    except pl.exceptions.PolarsError as error:
        what = str(error).splitlines()[0]
        raise ListingError(f"Cannot read {_text(str(file))}: {what}. Save it as UTF-8 CSV with a header, or as Parquet.") from error


def _required(frame: pl.DataFrame, file: Path, *names: str) -> None:
    missing = [n for n in names if n not in frame.columns]
    if missing:
        has = ", ".join(frame.columns)
        raise ListingError(f"{_text(str(file))} has no column {', '.join(missing)} (it has: {has}). Add it or rename one.")


def _list_manifest(file: Path) -> Listing:
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
        return path, _uri(file), None, None, "missing", "the manifest names it, but there is no such file"
    except PermissionError:
        return path, _uri(file), None, None, "no_permission", "its folder may not be read"
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL byte
        return path, _uri(file.replace("\0", "")), None, None, "missing", f"not a usable path: {error}"
    size, mtime, status, reason = _facts(info)
    return path, _uri(file), size, mtime, status, reason or note


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
            raise ListingError(f"{_text(str(file))} gives {len(clashing)} paths more than one {column}: {shown}. Keep one row for each.")
    note = pl.when(pl.col("n") > 1).then(pl.format(REPEATED, "n"))
    return grouped.select("path", *columns, note=note)


def _split_column(frame: pl.DataFrame, file: Path) -> pl.Series:
    """The column `split` in canonical names."""
    split = frame["split"].str.strip_chars().str.to_lowercase()
    unknown = sorted(set(split.drop_nulls()) - SPLIT_NAMES.keys())
    if unknown:
        raise ListingError(f"{_text(str(file))} has unknown splits: {', '.join(unknown[:5])}. Use {', '.join(sorted(SPLIT_NAMES))}.")
    return split.replace_strict(SPLIT_NAMES, default=None, return_dtype=pl.String)


def _with_column(listing: Listing, root: Path, column: str, file: Path) -> Listing:
    """Replace a column by a CSV's values; files that are not in it get null and are counted."""
    wanted = {"given_label": "label"}.get(column, column)
    frame = _read_list(file)
    _required(frame, file, "path", wanted)
    frame = frame.select("path", wanted).drop_nulls("path")
    if column == "split":
        frame = frame.with_columns(_split_column(frame, file))
    paths = set(listing.files["path"])
    folders = (os.path.abspath(root), os.path.abspath(file.parent))
    resolved = pl.Series("path", [_resolve(p, *folders, paths) for p in frame["path"]], pl.String)
    matched = frame.with_columns(resolved).drop_nulls("path")
    if matched.is_empty():
        theirs = frame["path"][0] if len(frame) else "(no rows)"
        raise ListingError(
            f"No path of {_text(str(file))} is a file of the dataset: it has {theirs!r}, the dataset {listing.files['path'][0]!r}."
            " Give paths relative to PATH or to the CSV's folder."
        )
    n_unmatched = len(frame) - len(matched)
    matched = _without_repeats(matched, file).select("path", pl.col(wanted).alias(column))
    files = listing.files.drop(column).join(matched, on="path", how="left", maintain_order="left").select(list(COLUMNS))
    counts = {f"rows of {_text(file.name)} without a file": n_unmatched, f"files not in {_text(file.name)}": len(paths) - len(matched)}
    return Listing(files, listing.skipped | {reason: n for reason, n in counts.items() if n})


def _resolve(path: str, root: str, folder: str, known: set[str]) -> str | None:
    """A CSV's path as the listing's: relative to PATH first, then to the CSV's folder (both absolute)."""
    for candidate in (_within(root, path), _within(root, os.path.join(folder, path))):
        if candidate in known:
            return candidate
    return None
