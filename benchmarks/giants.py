"""How much memory do giant pictures take, two at once?

Four pictures of 168 megapixels and one of 900, scanned and embedded with two threads. What counts is by how much the process grows over
what it took for one small picture: the network and the libraries are in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Row, Work, child

SIDES = (14_000, 12_000)
PLAIN_SIDE = 30_000
TARGET_MB = 1000


def make(folder: str, small: str) -> dict[str, Any]:
    """With noise as a photo has: two JPEGs (one progressive), a PNG, a PNG with transparency; and a plain JPEG of 900 megapixels."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (30, 35, 3), np.uint8)).resize((3500, 3000), Image.Resampling.BICUBIC)
    tile = Image.fromarray((np.asarray(soft) // 2 + rng.integers(0, 9, (3000, 3500, 1), np.uint8)).astype(np.uint8))
    giant = Image.new("RGB", SIDES)
    for left in range(0, giant.width, tile.width):
        for top in range(0, giant.height, tile.height):
            giant.paste(tile, (left, top))
    for target in (Path(folder) / "big", Path(small) / "small"):
        target.mkdir(parents=True)
    giant.save(Path(folder) / "big/a.jpg", quality=85)
    giant.save(Path(folder) / "big/b.jpg", quality=85, progressive=True)
    giant.save(Path(folder) / "big/c.png", compress_level=1)
    giant.putalpha(128)
    giant.save(Path(folder) / "big/d.png", compress_level=1)
    Image.new("RGB", (PLAIN_SIDE, PLAIN_SIDE), "teal").save(Path(folder) / "big/e.jpg")
    tile.resize((300, 200)).save(Path(small) / "small/a.jpg")
    return {}


def grown(folder: str, small: str, embed: bool) -> dict[str, Any]:
    """Peak memory after the small folder and after the giants, in MB, and the number of pictures that were ok."""
    from benchmarks.images import files
    from dq_assets.audit.encoder import Encoder, embed_files
    from dq_assets.audit.scan import scan
    from dq_assets.settings import Dataset, Images
    from dq_assets.sources.listing import list_source
    from dq_assets.sources.reading import Reader

    settings, encoder = Images(threads=2), Encoder() if embed else None
    answer: dict[str, Any] = {}
    for name, path in (("before", small), ("after", folder)):
        if encoder is None:
            listed = list_source(Dataset("bench", path)).files
            answer["ok"] = int(sum((block["status"] == "ok").sum() for block in scan(listed, settings, Reader(settings=settings))))
        else:
            limits = {"max_pixels": settings.max_pixels, "memory_mb": settings.memory_mb}
            answer["ok"] = sum(len(batch.vectors) for batch in embed_files(files(path), encoder, batch_size=32, threads=2, **limits))
        answer[name] = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1000
    return answer


def run(size: int, work: Work) -> list[Row]:
    """A row for the scan and one for embedding. The size is how often each is measured; the worst is shown."""
    if not Path("/proc/self/status").exists():
        raise SystemExit("giants reads /proc, which only Linux has. Leave it out by naming the others.")
    folder, small = str(work.folder / "giants"), str(work.folder / "small")
    child("giants", "make", folder=folder, small=small)
    rows = []
    for what, embed in (("scan", False), ("embedding", True)):
        answers = [child("giants", "grown", folder=folder, small=small, embed=embed).answer for _ in range(size)]
        worst = max(answers, key=lambda answer: answer["after"] - answer["before"])
        above = worst["after"] - worst["before"]
        rows.append(
            {"what": what, "ok, of 5": worst["ok"], "peak MB": worst["after"], "MB above": above, "within 1 GB": above <= TARGET_MB}
        )
    return rows


BENCHMARK = Benchmark("giants", "How much memory do giant pictures take?", "runs each", {"quick": 1, "standard": 1, "large": 3}, run)
