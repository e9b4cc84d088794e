"""What every kind of source has in common: the columns of a listing, and the rules that make splits and labels of names.

What does not belong here: how a kind of source is listed or read; that is a module each.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field

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
    "status": pl.String,
    "reason": pl.String,
}


Facts = tuple[int | None, float | None, str | None, str | None]
"""bytes, mtime, status, reason."""


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


def as_text(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 become escapes, since DuckDB refuses them."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "Thumbs.db"


def has_image_suffix(name: str) -> bool:
    """Whether the name of a file nominates it as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def arranged(found: Iterable[tuple[str, str, Facts]], skipped: dict[str, int]) -> Listing:
    """The listing of files by their place: a split level, if there is one, then the class as the first folder.

    found: (name relative to the root with `/`, uri, facts) of each image file, in any order.
    """
    ordered = sorted(found)
    top = {relative.split("/")[0] for relative, _, _ in ordered if "/" in relative}
    has_split_level = bool(top) and top <= SPLIT_FOLDERS
    rows: list[tuple[object, ...]] = []
    taken: set[str] = set()
    for relative, uri, facts in ordered:
        *folders, _ = relative.split("/")
        split = SPLIT_NAMES[folders.pop(0)] if has_split_level and folders else None
        path = as_text(relative)
        if path in taken:  # a name that looks like another name's escapes
            path = urllib.parse.quote_from_bytes(os.fsencode(relative))
        while path in taken:  # each round turns % into %25, so that it ends
            path = urllib.parse.quote(path)
        taken.add(path)
        label = as_text(folders[0]) if folders else None
        rows.append((path, uri, label, split, None, *facts))
    return Listing(pl.DataFrame(rows, schema=COLUMNS, orient="row"), skipped)
