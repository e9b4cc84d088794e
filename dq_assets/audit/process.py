"""What has to be set for the whole process before heavy libraries load or work: OpenMP, the allocator, telemetry."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any


def import_openvino() -> Any:
    """The module openvino, without its telemetry.

    `import openvino` and every conversion would report to Google Analytics, and leave an identifier in the home folder, through the
    package openvino-telemetry. Where that cannot be imported, OpenVINO takes a stub of its own that does nothing.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to make an import fail
    import openvino

    return openvino


def wait_without_spinning() -> None:
    """Let OpenMP's idle threads sleep, unless OMP_WAIT_POLICY says otherwise. No effect on libraries that are loaded already.

    By default they spin, on the cores that other work needs: beside a load of 4 on 2 cores, embedding took 40 to 65 ms of CPU an image
    and made 11 to 17 images/s; sleeping, 15 ms and 33 to 66. The vectors are the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next allocation, for the whole process; True if it does. Elsewhere nothing happens.

    By default it gives each large activation back to the system and gets it again, zeroed page by page: the default model runs
    at 77 instead of 175 images/s (16 images, 2 cores, folded). Peak memory is the same; what stays is the peak of one forward pass.
    """
    libc = _glibc()
    if libc is None:
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    # Some versions refuse a threshold above 32 MB.
    raised = any(libc.mallopt(mmap_threshold, size) for size in (1 << 30, 1 << 25))
    return bool(raised and libc.mallopt(trim_threshold, (1 << 31) - 1) and libc.mallopt(top_pad, 1 << 26))


def give_back_freed_memory() -> None:
    """Give what glibc keeps of freed memory back to the system, in all threads' arenas. Elsewhere nothing happens.

    PIL allocates a picture in pieces of 16 MB, below what glibc comes to map one by one: five pictures of 168 megapixels and more, two at
    once, left the process at 1,764 MB, and with this at 1,005.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "gnu_get_libc_version") else None
