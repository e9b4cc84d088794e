"""Reading the bytes behind an address, whatever kind of source it is of; one after the other, or ahead of whoever needs them.

What does not belong here: decoding. A file that cannot be read raises OSError; who asks makes a row of it.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dq_assets.settings import Dataset, Images
from dq_assets.sources import archives, huggingface, objects, web
from dq_assets.sources.folder import local_path, read_file
from dq_assets.sources.layout import Facts
from dq_assets.sources.retries import with_retries

WINDOW_BYTES = 256_000_000
"""Most bytes that are read ahead, by the sizes of the listing; one larger file is read by itself."""

_NETWORK = tuple(f"{protocol}://" for protocol in ("http", "https", *objects.PROTOCOLS))


@dataclass(frozen=True)
class Reader:
    """How the files of one dataset are read. root: the folder of a folder source, out of which nothing is opened."""

    root: str | None = None
    settings: Images = field(default_factory=Images)

    @classmethod
    def of(cls, dataset: Dataset) -> Reader:
        """Of a registered dataset."""
        is_folder = "://" not in dataset.path and Path(dataset.path).is_dir()
        return cls(dataset.path if is_folder else None, dataset.settings.images)

    def read(self, uri: str, size: int | None = None) -> bytes:
        """The bytes of one file. size: what the listing said.

        Raises FileNotFoundError, PermissionError, or OSError (EFBIG: more than images.max_bytes), with one line as strerror.
        """
        most = self.settings.max_bytes
        scheme = uri.partition("://")[0]
        if scheme == "file":
            return read_file(local_path(uri), self.root)
        if size is not None and size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, more than images.max_bytes = {most}")
        if scheme.startswith(("zip+", "tar+")):
            return archives.read_member(uri, most)
        if scheme.startswith(("arrow+", "parquet+")):
            return huggingface.read_row(uri, most)
        if scheme in ("http", "https"):
            return with_retries(lambda: web.fetch(uri, most, size))
        return with_retries(lambda: objects.read_object(uri, most, size))

    def facts(self, uris: Sequence[str]) -> list[Facts | OSError]:
        """Size, time and change mark of remote files without reading them; an OSError where a file could not be asked for."""

        def ask(uri: str) -> Facts | OSError:
            try:
                return web.facts(uri) if uri.startswith("http") else with_retries(lambda: objects.facts(uri))
            except FileNotFoundError as error:
                return Facts(status="missing", reason=objects.explained(error))
            except OSError as error:
                return error

        with ThreadPoolExecutor(self.settings.connections, thread_name_prefix="ask") as pool:
            return list(pool.map(ask, uris))

    def waits(self, uris: Sequence[str]) -> bool:
        """Whether some of these are read over a network, one request each."""
        return any(uri.startswith(_NETWORK) for uri in uris)

    @contextlib.contextmanager
    def ahead(self, uris: Sequence[str], sizes: Sequence[int | None]) -> Iterator[Callable[[str], bytes]]:
        """A function that gives the bytes of each uri, read in advance where waiting is worth it: asked in order, from any thread.

        At most WINDOW_BYTES lie in memory that were not asked for yet. A file without a known size is read alone.
        """
        if all(uri.startswith("file://") for uri in uris):  # the system reads ahead better
            yield self.read
            return
        # A container is read onwards; several threads would only make it jump.
        pool = ThreadPoolExecutor(self.settings.connections if self.waits(uris) else 1, thread_name_prefix="fetch")
        window = _Window(iter(zip(uris, sizes, strict=True)), lambda uri, size: pool.submit(self.read, uri, size), self.read)
        try:
            yield window.take
        finally:
            window.close()
            pool.shutdown(wait=True, cancel_futures=True)


class _Window:
    """What is being read ahead of its use, bounded in bytes."""

    def __init__(
        self, waiting: Iterator[tuple[str, int | None]], submit: Callable[[str, int | None], Future[bytes]], read: Callable[[str], bytes]
    ) -> None:
        self._waiting, self._submit, self._read = waiting, submit, read
        self._next = next(waiting, None)
        self._ahead: dict[str, tuple[Future[bytes], int]] = {}
        self._overtaken: set[str] = set()
        self._held = 0
        self._lock = threading.Lock()
        self._fill()

    def take(self, uri: str) -> bytes:
        """The bytes; OSError if they could not be read. What is not ahead yet is read at once, so that nobody waits for the window."""
        with self._lock:
            future, size = self._ahead.pop(uri, (None, 0))
            if future is None:
                self._overtaken.add(uri)
        try:
            return self._read(uri) if future is None else future.result()
        finally:
            with self._lock:
                self._held -= size
                self._fill()

    def close(self) -> None:
        """Read no further."""
        with self._lock:
            self._next = None
            self._waiting = iter(())

    def _fill(self) -> None:
        while self._next is not None:
            uri, listed = self._next
            size = WINDOW_BYTES if listed is None else listed
            if uri in self._overtaken:
                self._overtaken.discard(uri)
            elif uri not in self._ahead:
                if self._held and self._held + size > WINDOW_BYTES:
                    return
                self._ahead[uri] = (self._submit(uri, listed), size)
                self._held += size
            self._next = next(self._waiting, None)
