"""Random access into gzip data: zlib's state is kept every few megabytes, and reading goes on from the nearest one."""

from __future__ import annotations

import bisect
import io
import zlib
from typing import Any, BinaryIO

STEP = 8 << 20
"""Unpacked bytes between two states. One takes some 50 kB, so 10 GB take 60 MB; a read unpacks 4 MB for nothing on average."""

_PIECE = 1 << 14


class SeekableGzip(io.RawIOBase):
    """A gzip file (also of several members) as a seekable raw file. The size is not known before the end was read.

    Raises zlib.error for damaged data and EOFError for data that is cut off. Not safe for threads.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._states: list[tuple[int, int, Any]] = [(0, 0, zlib.decompressobj(31))]
        self._go(0)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Nothing is unpacked until the next read."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of gzip data is not known")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        if self._position < self._at or self._position - self._at > STEP:
            nearest = bisect.bisect_right(self._states, self._position, key=lambda state: state[0]) - 1
            if self._position < self._at or self._states[nearest][0] > self._at:
                self._go(nearest)
        while self._at < self._position:
            if not self._unpack(min(self._position - self._at, _PIECE)):
                return b""
        data = self._unpack(size)
        self._position += len(data)
        return data

    def _go(self, state: int) -> None:
        """Back, or on, to a kept state."""
        self._at, place, kept = self._states[state]
        self._zlib = kept.copy()
        self._packed.seek(place)

    def _unpack(self, most: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        data = b""
        while not data:
            if self._zlib.eof:
                rest = self._zlib.unused_data or self._packed.read(_PIECE)
                if not rest.strip(b"\0"):  # padding, which gzip allows
                    return b""
                self._zlib, piece = zlib.decompressobj(31), rest
            else:
                piece = self._zlib.unconsumed_tail or self._packed.read(_PIECE)
                if not piece:
                    raise EOFError("the gzip data is cut off")
            data = self._zlib.decompress(piece, most)
        self._at += len(data)
        if self._at - self._states[-1][0] >= STEP and not self._zlib.eof:
            self._states.append((self._at, self._packed.tell(), self._zlib.copy()))
        return data
