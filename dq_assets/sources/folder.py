"""Files of this machine: walking a folder, and opening a file.

No address library stands in between: a walk and a read cost what the system's calls cost.
"""

from __future__ import annotations

import errno
import os
import stat
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dq_assets.sources.layout import Facts, Listing, ListingError, arranged, as_text, has_image_suffix, is_hidden

NOT_REGULAR = "not a regular file; never opened"


def list_folder(root: Path) -> Listing:
    """Every file under a folder that has an image suffix. Raises ListingError if a folder cannot be listed."""
    skipped: Counter[str] = Counter()
    found = sorted(
        (relative.replace(os.sep, "/"), file_uri(os.path.join(root, relative)), facts_of(info))
        for relative, info in _walk(str(root), str(root.resolve()), skipped)
    )
    return arranged(found, dict(skipped))


def local_path(uri: str) -> str:
    """The file system path of a file:// address, exact even where the name is no UTF-8."""
    return os.fsdecode(urllib.parse.unquote_to_bytes(uri.removeprefix("file://")))


def file_uri(path: str) -> str:
    """The exact address of a file, percent-encoded."""
    return "file://" + urllib.parse.quote_from_bytes(os.fsencode(os.path.abspath(path)))


def facts_of(info: os.stat_result | None) -> Facts:
    """What the listing says of a file; None for one whose folder may be listed but not entered."""
    if info is None:
        return Facts(status="no_permission", reason="its folder may not be entered")
    regular = stat.S_ISREG(info.st_mode)
    return Facts(info.st_size, info.st_mtime, None, None if regular else "not_regular", None if regular else NOT_REGULAR)


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
            what = f"Cannot list {as_text(folder)} ({error.strerror})"
            raise ListingError(f"{what}. Give this user permission to read it, or try again.") from error
        for entry in entries:
            if is_hidden(entry.name):
                skipped["hidden"] += 1
            elif entry.is_symlink() and not _links_to_file_within(entry, real_root):
                skipped["links not followed"] += 1
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
                n_images += 1
            elif not has_image_suffix(entry.name):
                skipped["without an image suffix"] += 1
            else:
                n_images += 1
                try:
                    info = os.stat(entry.path)
                except PermissionError:
                    info = None
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise ListingError(f"Cannot look at {as_text(entry.path)} ({error.strerror}). Mend it, or try again.") from error
                    skipped["gone while listing"] += 1
                    continue
                yield os.path.relpath(entry.path, root), info
        if n_images == 0 and folder != root:
            skipped["folders without images"] += 1


def _links_to_file_within(entry: os.DirEntry[str], real_root: str) -> bool:
    target = os.path.realpath(entry.path)
    return os.path.commonpath([target, real_root]) == real_root and os.path.isfile(target)


def read_file(path: str, root: str | None = None) -> bytes:
    """The bytes of a regular file. Raises OSError: with ENOTSUP if it has become something else since it was looked at.

    root: the file must lie in this folder; links within it are followed, and one that leads out is a PermissionError.
    """
    # O_NONBLOCK: opening a FIFO that replaced the file in between would otherwise wait for a writer for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags) if root is None else _open_within(path, root, flags)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSUP, "not a regular file any more")
        return file.read()


def real_path_within(path: str, root: str) -> str:
    """Where a path leads, which must be within `root`; else PermissionError."""
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, real_root]) != real_root:
        raise PermissionError(errno.EPERM, "it leads out of the folder; not followed")
    return real


def _open_within(path: str, root: str, flags: int) -> int:
    """A descriptor of where the path leads, opened from the root downwards, folder by folder, without following any link.

    A link that is put in between, however late, fails with ELOOP or ENOTDIR: only what `real_path_within` saw is opened.
    """
    real = real_path_within(path, root)
    if os.open not in os.supports_dir_fd:
        return os.open(real, flags)
    real_root = os.path.realpath(root)
    *folders, name = os.path.relpath(real, real_root).split(os.sep)
    folder = os.open(real_root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
