"""Images to vectors: the encoder, the identity of its vectors, and embedding many files.

The network is in `dq_assets.audit.networks`, its preprocessing in `pixels`, what runs it in `backends`.
What does not belong here: decoding (`dq_assets.audit.decoding`) and distances between vectors (`dq_assets.audit.neighbors`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dq_assets import settings
from dq_assets.audit.backends import Backend, OpenVINOBackend, Say, TorchBackend
from dq_assets.audit.engine import engine_of, precision_of
from dq_assets.audit.networks import fold_batch_norm, load_local, load_packaged, load_timm, packaged_weights, preprocessing_of
from dq_assets.audit.pixels import LITE, Preprocessing, decode, preprocess
from dq_assets.audit.process import wait_without_spinning
from dq_assets.settings import UserError
from dq_assets.sources.folder import read_file

if TYPE_CHECKING:
    import torch

RECIPE = 2
"""Raised whenever the way from pixels to a vector changes in a manner that no other part of the identity shows."""

LEAST_BATCH = 32
"""Images handed over together by default, where memory would allow no more at once on a CPU: decoding needs some to do meanwhile."""

PREFETCH = 3
"""Batches that are decoded ahead of the network."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """A consecutive range of the paths. `positions` (m,) ascending are those of `vectors` (m, d); the rest failed, for a reason."""

    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]
    failures: dict[int, str]


def encoder_id(options: settings.Encoder) -> str:
    """The identity of everything that changes a vector, such as "tf_efficientnet_lite0@1a2b3c4d".

    Where the weights are a package, the hash is over their file, the preprocessing and the precision; neither torch nor timm is imported.
    Backend, batch size and threads are left out: they do not change vectors beyond `engine.TOLERANCE`.
    For others the version of timm stands for preprocessing and weights: a hub that replaces the weights under one name is not noticed.
    """
    precision, weights = precision_of(options.precision), packaged_weights(options.model)
    if weights is None:
        return f"{options.model}@timm-{importlib.metadata.version('timm')}-{precision}-{RECIPE}"
    parts = {"weights": _sha256(weights), "preprocessing": asdict(LITE[options.model]), "precision": precision, "recipe": RECIPE}
    return f"{options.model}@{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"


@functools.cache
def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Encoder:
    """A pretrained network without its classifier. Loads in __init__ and maps batches in __call__, as Ray Data wants it.

    options: model, backend and precision; the rest of them is not used. fetch: whether weights that are not on this machine may be fetched.
    cache: a folder for what takes seconds to prepare.
    say: told once each time a batch does not fit into memory; the log's warnings if None.
    Attributes: `engine` (what runs it, and why), `dim` (length of a vector), `input_size` (height, width), `preprocessing`,
    `batch` (images that one call works on at once).
    Raises UserError for a model that timm does not know, has no weights for or cannot load, and for a backend that is not there.
    """

    def __init__(
        self, options: settings.Encoder | None = None, *, cache: Path | None = None, say: Say | None = None, fetch: bool = True
    ) -> None:
        wait_without_spinning()  # before torch loads its OpenMP, which reads the variable once
        options = options or settings.Encoder()
        self.model = options.model
        self.engine = engine_of(options)
        self.preprocessing, load = _network(options.model, fetch=fetch)
        self.input_size = self.preprocessing.input_size
        self._backend: Backend
        if self.engine.backend == "openvino":
            self._backend = OpenVINOBackend(load, self.preprocessing, self.engine, encoder_id(settings.Encoder(options.model)), cache, say)
        else:
            self._backend = TorchBackend(load(), self.preprocessing, self.engine, say)
        probe = self._backend(np.zeros((1, *self.input_size, 3), np.uint8))
        if probe.ndim != 2:
            raise UserError(f"Model {self.model!r} gives no pooled vector {probe.shape[1:]}. Choose another with --set encoder.model=NAME.")
        self.dim = probe.shape[1]

    @property
    def batch(self) -> int:
        """Images that one call works on at once; falls when memory does not suffice."""
        return self._backend.batch

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image of any size -> (height, width, 3) uint8, resized and cropped as the network was trained. Safe in threads."""
        return preprocess(image, self.preprocessing)

    def decode(self, data: bytes, *, max_pixels: int, memory_mb: int = settings.Images.memory_mb) -> NDArray[np.uint8]:
        """The same from the bytes of a file, see `pixels.decode`."""
        return decode(data, self.preprocessing, max_pixels=max_pixels, memory_mb=memory_mb)

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, height, width, 3) uint8 as from `preprocess` -> (n, dim) float32 pooled features, not normalised.

        On a CPU the vector of an image does not depend on its batch, not by a bit.
        """
        return self._backend(batch) if len(batch) else np.empty((0, self.dim), np.float32)


def _network(model: str, *, fetch: bool) -> tuple[Preprocessing, Callable[[], torch.nn.Module]]:
    """What a model wants to see, and what loads it. A packaged one is not loaded before it is needed."""
    if packaged_weights(model) is not None:
        return LITE[model], lambda: fold_batch_norm(load_packaged(model))
    network = load_timm(model) if fetch else load_local(model)
    return preprocessing_of(network), lambda: network


def embed_files(
    paths: Sequence[str],
    encoder: Encoder,
    *,
    batch_size: int,
    threads: int,
    max_pixels: int,
    memory_mb: int = settings.Images.memory_mb,
    content_sha256: Sequence[str] | None = None,
    read: Callable[[str], bytes] = read_file,
) -> Iterator[EmbeddedBatch]:
    """Vectors of image files, in order, in batches of `batch_size` (0: what the encoder takes at once, at least LEAST_BATCH).

    Decoding runs beside the network in `threads` (0: one per core).

    Memory does not grow with the number of files: at most PREFETCH batches are decoded ahead. A file that cannot be read or decoded,
    or whose vector is not finite, is a failure of its batch and ends nothing. Closing the generator ends its threads.
    content_sha256: what each file's bytes should be; other bytes are a failure, so that no vector is stored under a content it is not of.
    read: what gives the bytes of an entry of `paths`, which then may be addresses.
    """
    size = batch_size or max(LEAST_BATCH, encoder.batch)
    expected: Sequence[str | None] = content_sha256 if content_sha256 is not None else [None] * len(paths)

    def submit(start: int) -> tuple[int, list[Future[NDArray[np.uint8] | str]]]:
        rows = range(start, min(start + size, len(paths)))
        return start, [pool.submit(_load, read, paths[row], expected[row], encoder, max_pixels, memory_mb) for row in rows]

    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="decode")
    try:
        starts = iter(range(0, len(paths), size))
        ahead = deque(map(submit, itertools.islice(starts, PREFETCH)))
        while ahead:
            start, futures = ahead.popleft()
            ahead.extend(map(submit, itertools.islice(starts, 1)))
            yield _embed(start, [future.result() for future in futures], encoder)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(
    read: Callable[[str], bytes], path: str, expected: str | None, encoder: Encoder, max_pixels: int, memory_mb: int
) -> NDArray[np.uint8] | str:
    """The preprocessed pixels of a file, or in one line why there are none."""
    from dq_assets.audit.decoding import DECODE_ERRORS

    try:
        data = read(path)
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            return "its bytes changed since it was scanned"
        return encoder.decode(data, max_pixels=max_pixels, memory_mb=memory_mb)
    except DECODE_ERRORS as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return " ".join(text.split())[:200] or type(error).__name__


def _embed(start: int, loaded: list[NDArray[np.uint8] | str], encoder: Encoder) -> EmbeddedBatch:
    failures = {start + i: item for i, item in enumerate(loaded) if isinstance(item, str)}
    positions = np.array([start + i for i, item in enumerate(loaded) if not isinstance(item, str)], np.int64)
    pixels = [item for item in loaded if not isinstance(item, str)]
    vectors = encoder(np.stack(pixels)) if pixels else np.empty((0, encoder.dim), np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    failures |= {int(position): "the vector is not finite" for position in positions[~finite]}
    return EmbeddedBatch(positions[finite], vectors[finite], failures)
