"""Listing a source: which files it has, under which labels, splits and groups. Nothing is opened but lists.

A listing that fails raises; it is never an empty listing. Files that are passed over are counted by reason.
"""

from __future__ import annotations

import stat
from pathlib import Path

from dq_assets.settings import Dataset
from dq_assets.sources.folder import list_folder
from dq_assets.sources.layout import Listing, ListingError, as_text
from dq_assets.sources.manifests import list_manifest, with_column


def list_source(dataset: Dataset) -> Listing:
    """List a dataset's folder or manifest and apply its labels, splits and groups files. Raises ListingError."""
    shown = as_text(dataset.path)
    if "://" in dataset.path:
        raise ListingError(f"{shown} is not a local path. Give a folder, or a CSV or Parquet manifest of local files.")
    root = Path(dataset.path)
    try:
        mode = root.stat().st_mode
    except OSError as error:
        raise ListingError(f"Cannot read {shown} ({error.strerror}). Give a folder of images or a CSV / Parquet manifest.") from error
    if stat.S_ISDIR(mode):
        listing = list_folder(root)
    elif stat.S_ISREG(mode) and root.suffix.lower() in (".csv", ".parquet"):
        root, listing = root.parent, list_manifest(root)
    else:
        raise ListingError(f"{shown} is neither a folder nor a .csv or .parquet manifest. Give one of these.")
    if listing.files.is_empty():
        raise ListingError(f"No image was found under {shown} ({_counts(listing.skipped)}). Check the path and the files' suffixes.")
    for column, file in (("given_label", dataset.labels), ("split", dataset.splits), ("group", dataset.groups)):
        if file is not None:
            listing = with_column(listing, root, column, Path(file))
    return listing


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in sorted(skipped.items())) or "nothing else was there"
