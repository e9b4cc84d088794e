"""Listing a source: which files it has, under which labels, splits and groups. Nothing is opened but lists and archives' tables.

A listing that fails raises; it is never an empty listing. Files that are passed over are counted by reason.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dq_assets.settings import Dataset
from dq_assets.sources.addresses import WEB, folder_of, is_remote, refuse_password, scheme_of, shown, suffix_of
from dq_assets.sources.archives import archive_kind, list_archive
from dq_assets.sources.folder import file_uri, list_folder
from dq_assets.sources.huggingface import is_huggingface, list_huggingface
from dq_assets.sources.layout import Listing, ListingError, as_text
from dq_assets.sources.manifests import list_manifest, with_column
from dq_assets.sources.objects import PROTOCOLS, list_objects, uri_of

LISTS = (".csv", ".parquet")


def list_source(dataset: Dataset) -> Listing:
    """List what a dataset's path names and apply its labels, splits and groups files. Raises ListingError."""
    refuse_password(dataset.path)
    listing = _list_remote(dataset.path) if is_remote(dataset.path) else _list_local(dataset.path)
    if listing.files.is_empty():
        what = f"No image was found under {shown(dataset.path)} ({_counts(listing.skipped)})"
        raise ListingError(f"{what}. Check the path and the files' suffixes.")
    for column, file in (("given_label", dataset.labels), ("split", dataset.splits), ("group", dataset.groups)):
        if file is not None:
            listing = with_column(listing, root_of(dataset.path), column, file)
    return listing


def is_manifest(path: str) -> bool:
    """Whether a dataset's path is a CSV or Parquet list of files."""
    if suffix_of(path) not in LISTS:
        return False
    return is_remote(path) or (Path(path).is_file() and not is_huggingface(Path(path)))


def root_of(path: str) -> str:
    """What the paths of a dataset are relative to: an absolute folder or archive, or an address without `/` at its end."""
    if is_manifest(path):
        return folder_of(path)
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def _list_local(path: str) -> Listing:
    root, kind = Path(path), archive_kind(path)
    try:
        mode = root.stat().st_mode
    except OSError as error:
        what = f"Cannot read {as_text(path)} ({error.strerror})"
        raise ListingError(f"{what}. Give a folder of images, an archive, or a CSV / Parquet manifest.") from error
    if stat.S_ISDIR(mode):
        listing = list_folder(root)
        return list_huggingface(root) if listing.files.is_empty() and is_huggingface(root) else listing
    if stat.S_ISREG(mode) and kind is not None:
        return list_archive(file_uri(path), kind)
    if stat.S_ISREG(mode) and suffix_of(path) in LISTS:
        return list_huggingface(root) if is_huggingface(root) else list_manifest(path)
    raise ListingError(f"{as_text(path)} is neither a folder nor a .csv or .parquet manifest, .zip or .tar archive. Give one of these.")


def _list_remote(address: str) -> Listing:
    scheme, kind = scheme_of(address), archive_kind(address)
    if suffix_of(address) in LISTS and scheme in (*WEB, *PROTOCOLS):
        return list_manifest(address)
    if scheme in PROTOCOLS:
        return list_objects(address) if kind is None else list_archive(uri_of(scheme, address.partition("://")[2]), kind)
    if scheme in WEB:
        raise ListingError(f"{shown(address)} cannot be listed: the web has no folders. Give a .csv or .parquet list of addresses.")
    known = ", ".join(f"{name}://" for name in (*PROTOCOLS, *WEB))
    raise ListingError(f"{shown(address)} is of no kind that can be read. Give a path of this machine, or one of {known}.")


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in sorted(skipped.items())) or "nothing else was there"
