"""Images in zip and tar archives, read from where they lie: nothing is extracted, so no name and no link leads anywhere.

An address is `zip+<address of the archive>#<member, percent-encoded>`, and `tar+...` likewise, also for .tar.gz. Archives within
archives are not opened.
"""

from __future__ import annotations

import calendar
import errno
import functools
import io
import os
import stat
import tarfile
import threading
import urllib.parse
import zipfile
import zlib
from collections import Counter
from typing import Any, BinaryIO, Protocol

from dq_assets.sources import objects
from dq_assets.sources.folder import local_path
from dq_assets.sources.gzip_index import SeekableGzip
from dq_assets.sources.layout import Facts, Listing, ListingError, arranged, as_text, nominated

SUFFIXES = {".zip": "zip", ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar"}
"""What is opened as an archive, and as which kind."""

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, OSError, ValueError)
"""What zipfile and tarfile raise on damaged archives and on methods that they do not know."""


_MOST_HEADER = 1 << 20
"""Bytes of a tar member's own header; names are limited to 4,096."""


class Archive(Protocol):
    """An open archive. members: (name, facts) in the order of the archive; the name of a folder ends in `/`."""

    members: list[tuple[str, Facts]]
    links: int

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a member, from any thread. Raises FileNotFoundError, or OSError (EFBIG: more than `most`)."""
        ...


def archive_kind(path: str) -> str | None:
    """`zip` or `tar` by the suffix; None for what is no archive."""
    return next((kind for suffix, kind in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def list_archive(uri: str, kind: str) -> Listing:
    """The image members of an archive at a file:// or object address, in its order. Raises ListingError if it cannot be read."""
    shown = as_text(local_path(uri)) if uri.startswith("file://") else uri
    try:
        archive = opened(kind, uri)
    except _BROKEN as error:
        what = objects.explained(error) if isinstance(error, OSError) else str(error)
        raise ListingError(f"Cannot read {shown} as {kind} ({what}). Check that it is whole and of this kind.") from error
    skipped: Counter[str] = Counter()
    members: dict[str, tuple[str, Facts]] = {}
    for name, facts in archive.members:
        inside = _inside(name)
        if inside is None:
            skipped["names that lead out of the archive"] += 1
        elif inside:
            skipped["members that a later one of the name replaces"] += inside in members
            members.pop(inside, None)
            members[inside] = name, facts
    if archive.links:
        skipped["links not followed"] += archive.links
    named = ((inside, f"{kind}+{uri}#{_quoted(name)}", facts) for inside, (name, facts) in members.items())
    return arranged(nominated(named, skipped), +skipped)


def read_member(uri: str, most: int) -> bytes:
    """The bytes of a member. Raises as `Archive.read` does."""
    kind, _, rest = uri.partition("+")
    archive, _, member = rest.partition("#")
    try:
        return opened(kind, archive).read(os.fsdecode(urllib.parse.unquote_to_bytes(member)), most)
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "the archive has no such member any more") from None


def opened(kind: str, uri: str) -> Archive:
    """The archive with its table of members, which is read once for each state of the file."""
    if uri.startswith("file://"):
        info = os.stat(local_path(uri))
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return _opened(kind, uri, f"{info.st_size}-{info.st_mtime_ns}-{info.st_ino}")
    facts = objects.facts(uri)
    return _opened(kind, uri, f"{facts.bytes}-{facts.mtime}-{facts.etag}")


@functools.lru_cache(maxsize=2)
def _opened(kind: str, uri: str, mark: str) -> Archive:
    file: BinaryIO = open(local_path(uri), "rb") if uri.startswith("file://") else objects.open_object(uri)  # noqa: SIM115 (kept open)
    return Zip(file) if kind == "zip" else Tar(file, mark)


class Zip:
    """A zip archive. A member's change mark is its CRC; zipfile checks it."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)
        self.links = 0
        self.members = []
        for info in self._zip.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                self.links += 1
            else:
                self.members.append((info.filename, Facts(info.file_size, _zip_time(info), f"crc32:{info.CRC:08x}")))

    def read(self, name: str, most: int) -> bytes:
        """See Archive."""
        info = self._zip.getinfo(name)
        if info.flag_bits & 1:
            raise OSError(errno.EIO, "encrypted member of a zip archive")
        if info.file_size > most:
            raise OSError(errno.EFBIG, f"{info.file_size} bytes, more than images.max_bytes = {most}")
        try:
            # zipfile stops at the size that the table of members states, whatever the member unpacks to.
            return self._zip.read(info)
        except _BROKEN as error:
            raise OSError(errno.EIO, f"damaged member of a zip archive: {error}") from error


class Tar:
    """A tar archive, also one packed by gzip. Members have no checksum, so their change mark is that of the archive."""

    def __init__(self, file: BinaryIO, mark: str) -> None:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file: Any = io.BufferedReader(SeekableGzip(file), 1 << 16) if packed else file
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        self.members: list[tuple[str, Facts]] = []
        self.links = 0
        headers: Any = _Headers(self._file)
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte of each
                self._add(info, mark)

    def _add(self, info: tarfile.TarInfo, mark: str) -> None:
        if info.issym() or info.islnk():
            self.links += 1
        elif info.isdir():
            self.members.append((f"{info.name}/", Facts()))
        elif not info.isreg() or info.issparse():
            self.members.append((info.name, Facts(status="not_regular", reason="a device, a FIFO or a sparse file in a tar archive")))
        else:
            self._places[info.name] = info.offset_data, info.size
            self.members.append((info.name, Facts(info.size, float(info.mtime), f"tar:{mark}")))

    def read(self, name: str, most: int) -> bytes:
        """See Archive."""
        offset, size = self._places[name]
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, more than images.max_bytes = {most}")
        try:
            with self._lock:
                self._file.seek(offset)
                data: bytes = self._file.read(size)
        except _BROKEN as error:
            raise OSError(errno.EIO, f"damaged tar archive: {error}") from error
        if len(data) != size:
            raise OSError(errno.EIO, "the archive ends within this member")
        return data


class _Headers:
    """A file as tarfile reads its headers: none of an absurd size, which it would take into memory whole."""

    def __init__(self, file: Any) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data: bytes = self._file.read(size)
        return data


def _inside(name: str) -> str | None:
    """A member's name without leading `/` and `./`, as tar and unzip write it; None if it would leave the folder."""
    parts = [part for part in name.split("/") if part != "."]
    if ".." in parts:
        return None
    return "/".join(parts).lstrip("/")


def _quoted(name: str) -> str:
    return urllib.parse.quote_from_bytes(os.fsencode(name))


def _zip_time(info: zipfile.ZipInfo) -> float:
    """Seconds since 1970 of a time without a zone, taken as UTC."""
    year, month, day, *clock = info.date_time
    return float(calendar.timegm((year, max(month, 1), max(day, 1), *clock)))
