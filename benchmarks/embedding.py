"""How fast are images embedded, against the loop that one would write first, and against what the parts allow?

The same network, weights, preprocessing and batch size in all. The peers run it as timm gives it (batch norms not folded), with PIL,
timm's own evaluation transform, and the allocator and OpenMP as they come. Loading the model is not counted.
For each backend the same process measures the forward pass alone and decoding alone (reading, verifying, decoding, resizing), each on all
cores, and the embeddings asset: both beside each other, and the vectors stored in a lake. If neither part ever waited for the other, the
asset would make 1 / (1 / forward + 1 / decoding) images a second.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.harness import Benchmark, Clock, Measured, Row, Work, alternate, child, median

REPEATS = 3
BATCH = 32
BACKENDS = {
    "OpenVINO, float32": ("openvino", "float32"),
    "PyTorch, float32": ("torch", "float32"),
    "OpenVINO, bfloat16": ("openvino", "bfloat16"),
    "PyTorch, bfloat16": ("torch", "bfloat16"),
}


def asset(folder: str, n: int, out: str, home: str, backend: str, precision: str) -> dict[str, Any]:
    """Decoding alone, the forward pass alone, and the asset, in this order, on n images."""
    import os
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import numpy as np

    from benchmarks.images import files
    from dq_assets import settings
    from dq_assets.audit import encoder as encoding
    from dq_assets.defs.session import Session
    from dq_assets.defs.stages import content as stage
    from dq_assets.report.progress import LogReporter
    from dq_assets.sources.folder import read_file
    from dq_assets.store.contents import read_vectors
    from dq_assets.store.lake import Lake

    paths = files(folder, n)
    encoder = encoding.Encoder(settings.Encoder(backend=backend, precision=precision), cache=Path(home))
    encoding.Encoder = lambda *_, **__: encoder  # loaded already
    with TemporaryDirectory(dir=home) as root:
        where = settings.Home(Path(root))
        source = Path(root) / "images.csv"
        source.write_text("path,label\n" + "".join(f"{path},{Path(path).parent.name}\n" for path in paths))
        options = settings.Settings().with_values({"encoder.backend": backend, "encoder.precision": precision})
        with Lake.open(where, options.store) as lake:
            lake.ensure_dataset("bench")
            session = Session(settings.Dataset("bench", str(source), settings=options), where, lake, LogReporter(lambda _: None))
            stage.raw_manifest(session)
            content = dict(zip(session.table("raw_manifest")["path"], session.table("raw_manifest")["content_sha256"], strict=True))
            contents = [content[path] for path in paths]

            def load(i: int) -> Any:
                return encoding._load(read_file, paths[i], contents[i], encoder, options.images.max_pixels, options.images.memory_mb)

            load(0)  # the first imports OpenCV and PyTorch
            with Clock() as decoding, ThreadPoolExecutor(os.cpu_count()) as pool:
                pixels = np.stack(list(pool.map(load, range(n))))
            with Clock() as forward:
                for start in range(0, n, BATCH):
                    encoder(pixels[start : start + BATCH])
            with Clock() as clock:
                stage.embeddings(session)
            vectors = read_vectors(lake, "bench", encoding.encoder_id(options.encoder), contents)
    parts = {"decoding": decoding.seconds, "forward": forward.seconds}
    return {**_answer(vectors, out, clock), **{f"{part} {key}": value for part, taken in parts.items() for key, value in taken.items()}}


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

    from dq_assets.audit.networks import load_packaged
    from dq_assets.audit.pixels import LITE0

    how = timm.data.create_transform(
        (3, *LITE0.input_size), interpolation="bicubic", mean=LITE0.mean, std=LITE0.std, crop_pct=LITE0.crop_pct
    )
    return load_packaged(), lambda path: how(Image.open(path).convert("RGB"))


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
    """A row per way. CPU times of the DataLoader are without its workers, so it has none."""
    same = {"folder": str(work.images(size)), "n": size, "out": str(work.folder / "vectors.npy")}
    ways: dict[str, Callable[[], Measured]] = {
        name: lambda b=backend, p=precision: child("embedding", "asset", **same, home=str(work.folder), backend=b, precision=p)
        for name, (backend, precision) in BACKENDS.items()
    }
    ways["PIL and torch, plain loop"] = lambda: child("embedding", "plain_loop", **same)
    ways["PIL and torch, DataLoader"] = lambda: child("embedding", "data_loader", **same)
    found = alternate(ways, REPEATS)
    plain = found["PIL and torch, plain loop"]
    return [_row(name, taken, plain) for name, taken in found.items()]


def _row(name: str, taken: list[Measured], plain: list[Measured]) -> Row:
    """Ratios are medians over rounds: what is compared ran within one round."""
    n = taken[0].answer["images"]
    parts = name in BACKENDS

    def rounds(ratio: Callable[[Row, Row], float]) -> float:
        return statistics.median(ratio(ours.answer, theirs.answer) for ours, theirs in zip(taken, plain, strict=True))

    def bound(key: str) -> float | None:
        return rounds(lambda a, _: (a[f"forward {key}"] + a[f"decoding {key}"]) / a[key]) if parts else None

    return {
        "way": name,
        "images/s": n / median(taken, "seconds"),
        "CPU ms per image": 1000 * median(taken, "cpu_seconds") / n if "DataLoader" not in name else None,
        "forward alone": n / median(taken, "forward seconds") if parts else None,
        "decoding alone": n / median(taken, "decoding seconds") if parts else None,
        "share of the bound": bound("seconds"),
        "the same in CPU time": bound("cpu_seconds"),
        "times the plain loop": rounds(lambda a, b: b["seconds"] / a["seconds"]),
        "the same by CPU time": rounds(lambda a, b: b["cpu_seconds"] / a["cpu_seconds"]) if "DataLoader" not in name else None,
        "peak MB, main process": median(taken, "peak_mb"),
        "least cosine": median(taken, "least cosine"),
    }


BENCHMARK = Benchmark("embedding", "How fast are images embedded?", "images", {"quick": 100, "standard": 500, "large": 2_000}, run)
