"""Large matrices that are read by rows: probabilities in an .npy file, or whatever has a shape and gives rows.

What belongs here is reading by blocks, one or two at a time. What is computed from the rows does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.threads import map_in_order

Codes = NDArray[np.int64]
Float = NDArray[np.float32]
T = TypeVar("T")

BLOCK_CELLS = 1_000_000
"""Cells per block, 4 MB of float32: of 1,000 columns and 1.28 million rows, blocks of 256 to 4,096 rows took the same time,
larger ones more."""


class Rows(Protocol):
    """An (n, K) matrix of float32 that is read by rows; a NumPy array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice | Codes, /) -> Float: ...


class NpyRows:
    """The rows of an .npy file of floats, as float32. Threads may share it.

    Read with pread and not mapped: mapped pages count as memory of the process, 5 GB of them at 1.28 million x 1000.
    Raises ValueError, in words for the user, if the file is not a two-dimensional .npy of floats in C order.
    """

    def __init__(self, file: Path) -> None:
        try:
            mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError("is not a whole .npy file. Write it with numpy.save") from error
        if not isinstance(mapped, np.memmap):
            raise ValueError("is not an .npy file. Write it with numpy.save")
        if mapped.ndim != 2 or mapped.dtype.kind != "f":
            shape = " x ".join(map(str, mapped.shape))
            raise ValueError(f"holds {shape} of {mapped.dtype}. Give a row per image and a column per class, of float16, 32 or 64")
        if not mapped.flags.c_contiguous:
            raise ValueError("is in Fortran order. Save numpy.ascontiguousarray of it")
        self._file, self._offset, self._dtype, self.shape = file, int(mapped.offset), mapped.dtype, mapped.shape
        self._descriptor = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __getitem__(self, rows: slice | Codes, /) -> Float:
        """A slice without a step, or an array of row numbers."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._read(start, max(stop, start))
        if rows.size and (np.diff(rows) == 1).all():
            return self._read(int(rows[0]), int(rows[-1]) + 1)
        # A map that lives for this call: scattered rows cost a page each, and the pages are let go.
        mapped = np.memmap(self._file, self._dtype, "r", self._offset, self.shape)
        return np.asarray(mapped[rows], np.float32)

    def _read(self, start: int, stop: int) -> Float:
        block = np.empty((stop - start, self.shape[1]), self._dtype)
        view, at = (
            memoryview(block.data).cast("B") if block.size else memoryview(b""),
            self._offset + start * self.shape[1] * block.itemsize,
        )
        while view:
            n = os.preadv(self._descriptor, [view], at)
            if n == 0:
                raise EOFError(f"{self._file} was cut off while it was read. Run the command again.")
            view, at = view[n:], at + n
        return np.asarray(block, np.float32)


@dataclass(frozen=True)
class Streamed:
    """An (n, K) matrix that is only read from its first row to its last: `read` starts anew and gives blocks of rows, in order."""

    shape: tuple[int, int]
    read: Callable[[], Iterator[Float]]


def blocks(n: int, n_columns: int, cells: int = BLOCK_CELLS) -> Iterator[slice]:
    """Slices of rows that hold about `cells` cells each."""
    step = max(1, cells // max(n_columns, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def map_rows(function: Callable[[slice, Float], T], probs: Rows | Streamed, threads: int = 2) -> Iterator[T]:
    """function of the place and the values of each block of rows, as `map_in_order`. It must not change the values.

    Rows are read by the threads, and what is streamed by the caller. Raises ValueError if a stream has another shape.
    """
    if isinstance(probs, Streamed):
        return map_in_order(lambda placed: function(*placed), _placed(probs), threads)
    return map_in_order(lambda part: function(part, probs[part]), blocks(*probs.shape), threads)


def _placed(probs: Streamed) -> Iterator[tuple[slice, Float]]:
    (n, n_columns), start = probs.shape, 0
    for block in probs.read():
        if block.shape[1] != n_columns:
            raise ValueError(f"{block.shape[1]} columns were read where {n_columns} were expected.")
        yield slice(start, start := start + len(block)), block
    if start != n:
        raise ValueError(f"{start} rows were read where {n} were expected.")


def take_rows(probs: Rows | Streamed, rows: Codes) -> Float:
    """The rows of these numbers, (b,) ascending, as one array; of a stream in one pass."""
    if not isinstance(probs, Streamed):
        return probs[rows]
    taken = np.empty((rows.size, probs.shape[1]), np.float32)

    def one(part: slice, block: Float) -> None:
        low, high = np.searchsorted(rows, (part.start, part.stop))
        taken[low:high] = block[rows[low:high] - part.start]

    for _ in map_rows(one, probs):
        pass
    return taken


def to_file(probs: Streamed, file: Path) -> NpyRows:
    """The same matrix in a new .npy file, for what reads rows more than once or out of order."""
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": probs.shape})
        for block in probs.read():
            out.write(np.ascontiguousarray(block, "<f4").data)
    return NpyRows(file)
