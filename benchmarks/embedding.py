"""How fast are images embedded, against the loop that one would write first, and against PyTorch's DataLoader?

The same network, weights, preprocessing and batch size in all. The peers run it as timm gives it (batch norms not folded), with PIL,
timm's own evaluation transform, and the allocator and OpenMP as they come. Loading the model is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.harness import Benchmark, Clock, Row, Work, alternate, child, median

REPEATS = 3
BATCH = 32


def ours(folder: str, n: int, out: str) -> dict[str, Any]:
    """embed_files, as the asset calls it."""
    import numpy as np

    from benchmarks.images import files
    from dq_assets.audit.encoder import Encoder, embed_files

    paths, encoder = files(folder, n), Encoder()
    with Clock() as clock:
        batches = embed_files(paths, encoder, batch_size=BATCH, threads=0, max_pixels=10**8)
        vectors = np.concatenate([batch.vectors for batch in batches])
    return _answer(vectors, out, clock)


def plain_loop(folder: str, n: int, out: str) -> dict[str, Any]:
    """PIL, timm's transform, one batch after the other."""
    import torch

    from benchmarks.images import files

    paths, (network, pictures) = files(folder, n), _peer()

    def batches() -> Iterable[Any]:
        for start in range(0, len(paths), BATCH):
            yield torch.stack([pictures(path) for path in paths[start : start + BATCH]])

    return _forward(network, batches(), out)


def data_loader(folder: str, n: int, out: str) -> dict[str, Any]:
    """The same in a DataLoader with one worker process per core."""
    import os

    import torch

    from benchmarks.images import files

    paths, (network, pictures) = files(folder, n), _peer()
    loader = torch.utils.data.DataLoader(_Pictures(paths, pictures), batch_size=BATCH, num_workers=os.cpu_count() or 1)
    return _forward(network, loader, out)


class _Pictures:
    """A map-style dataset."""

    def __init__(self, paths: list[str], load: Any) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        return self.load(self.paths[i])


def _peer() -> tuple[Any, Any]:
    """The network without its classifier, and path to normalised tensor, both as timm has them."""
    import timm
    from PIL import Image

    from dq_assets.audit.networks import load_lite0
    from dq_assets.audit.pixels import LITE0

    how = timm.data.create_transform(
        (3, *LITE0.input_size), interpolation="bicubic", mean=LITE0.mean, std=LITE0.std, crop_pct=LITE0.crop_pct
    )
    return load_lite0(), lambda path: how(Image.open(path).convert("RGB"))


def _forward(network: Any, batches: Iterable[Any], out: str) -> dict[str, Any]:
    import torch

    with Clock() as clock, torch.inference_mode():
        vectors = torch.cat([network(batch) for batch in batches]).numpy()
    return _answer(vectors, out, clock)


def _answer(vectors: Any, out: str, clock: Clock) -> dict[str, Any]:
    """Keep the vectors; compare them with those that another run left, so that it is known that all did the same."""
    from pathlib import Path

    import numpy as np

    if not Path(out).exists():
        np.save(out, vectors)
    other = np.load(out)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(other, axis=1)
    return {"images": len(vectors), "least cosine": float(((vectors * other).sum(axis=1) / lengths).min()), **clock.seconds}


def run(size: int, work: Work) -> list[Row]:
    """A row per way."""
    same = {"folder": str(work.images(size)), "n": size, "out": str(work.folder / "vectors.npy")}
    names = {"embed_files": "ours", "PIL and torch, plain loop": "plain_loop", "PIL and torch, DataLoader": "data_loader"}
    found = alternate({name: lambda of=function: child("embedding", of, **same) for name, function in names.items()}, REPEATS)
    rate = {name: median(taken, "images") / median(taken, "seconds") for name, taken in found.items()}
    return [
        {
            "way": name,
            "images/s": rate[name],
            "embed_files is faster by": rate["embed_files"] / rate[name],
            "peak MB, main process": median(taken, "peak_mb"),
            "least cosine to embed_files": median(taken, "least cosine"),
        }
        for name, taken in found.items()
    ]


BENCHMARK = Benchmark("embedding", "How fast are images embedded?", "images", {"quick": 100, "standard": 500, "large": 2_000}, run)
