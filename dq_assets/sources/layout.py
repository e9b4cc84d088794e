"""What every kind of source has in common: the columns of a listing, and the rules that make splits and labels of names.

What does not belong here: how a kind of source is listed or read; that is a module each.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl

from dq_assets.settings import UserError

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

COLUMNS = {
    "path": pl.String,
    "uri": pl.String,
    "given_label": pl.String,
    "split": pl.String,
    "group": pl.String,
    "bytes": pl.Int64,
    "mtime": pl.Float64,
    "etag": pl.String,
    "status": pl.String,
    "reason": pl.String,
}


class Facts(NamedTuple):
    """What a listing says of a file without reading it; the columns of the same names."""

    bytes: int | None = None
    mtime: float | None = None
    etag: str | None = None
    status: str | None = None
    reason: str | None = None


class ListingError(UserError):
    """The source could not be listed."""


@dataclass(frozen=True)
class Listing:
    """files: one row per file with COLUMNS; status is null where the file has yet to be read. skipped: counts by reason."""

    files: pl.DataFrame
    skipped: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash of what a re-audit depends on: paths, sizes, times, ETags, labels, splits, groups."""
        rows = self.files.select(c for c in COLUMNS if c not in ("uri", "reason")).sort("path").rows()
        return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()


def as_text(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 become escapes, since DuckDB refuses them."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "Thumbs.db"


def has_image_suffix(name: str) -> bool:
    """Whether the name of a file nominates it as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def nominated(found: Iterable[tuple[str, str, Facts]], skipped: Counter[str]) -> list[tuple[str, str, Facts]]:
    """What of a flat list of names is an image by its name; the rest is counted in `skipped` as a walk over folders counts it.

    found: (name relative to the root with `/`, uri, facts); the name of a folder ends in `/`.
    """
    hidden: set[str] = set()
    folders: dict[str, bool] = {}  # whether it has an image or a folder
    kept = []
    for name, uri, facts in found:
        parts = name.split("/")
        first = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
        for depth in range(1, len(parts) if first is None else first + 1):
            folders.setdefault("/".join(parts[:depth]), False)
            folders["/".join(parts[: depth - 1])] = True
        if first is not None:
            hidden.add("/".join(parts[: first + 1]))
        elif parts[-1] and not has_image_suffix(name):
            skipped["without an image suffix"] += 1
        elif parts[-1]:
            folders["/".join(parts[:-1])] = True
            kept.append((name, uri, facts))
    barren = sum(not fruitful for folder, fruitful in folders.items() if folder)
    skipped.update({reason: n for reason, n in (("hidden", len(hidden)), ("folders without images", barren)) if n})
    return kept


def arranged(found: Sequence[tuple[str, str, Facts]], skipped: Mapping[str, int]) -> Listing:
    """The listing of files by their place: a split level, if there is one, then the class as the first folder.

    found: (name relative to the root with `/`, uri, facts) of each image file, in the order that the rows shall have.
    """
    top = {relative.split("/")[0] for relative, _, _ in found if "/" in relative}
    has_split_level = bool(top) and top <= SPLIT_FOLDERS
    rows: list[tuple[object, ...]] = []
    taken: set[str] = set()
    for relative, uri, facts in found:
        *folders, _ = relative.split("/")
        split = SPLIT_NAMES[folders.pop(0)] if has_split_level and folders else None
        path = as_text(relative)
        if path in taken:  # a name that looks like another name's escapes
            path = urllib.parse.quote_from_bytes(os.fsencode(relative))
        while path in taken:  # each round turns % into %25, so that it ends
            path = urllib.parse.quote(path)
        taken.add(path)
        label = as_text(folders[0]) or None if folders else None
        rows.append((path, uri, label, split, None, *facts))
    return Listing(pl.DataFrame(rows, schema=COLUMNS, orient="row"), dict(skipped))
