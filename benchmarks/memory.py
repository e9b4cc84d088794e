"""Does the memory of reading and embedding grow with the number of images?

Listing, scan and embedding of a tenth of the images and of all of them, each in a process of its own; blocks are dropped once they
are made, as the lake would have taken them.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Benchmark, Clock, Row, Work, child


def read_and_embed(folder: str) -> dict[str, Any]:
    """List, scan and embed a folder as an audit does; keep nothing but counts."""
    from dq_assets.audit.encoder import Encoder, embed_files
    from dq_assets.audit.scan import scan
    from dq_assets.settings import Dataset, Settings
    from dq_assets.sources.folder import local_path
    from dq_assets.sources.listing import list_source
    from dq_assets.sources.reading import Reader

    settings = Settings()
    with Clock() as clock:
        files = list_source(Dataset("bench", folder)).files
        ok = sum((block["status"] == "ok").sum() for block in scan(files, settings.images, Reader(settings=settings.images)))
        batches = embed_files(
            [local_path(uri) for uri in files["uri"]],
            Encoder(),
            batch_size=settings.encoder.batch_size,
            threads=settings.images.threads,
            max_pixels=settings.images.max_pixels,
        )
        embedded = sum(len(batch.vectors) for batch in batches)
    assert ok == embedded
    return {"images": embedded, **clock.seconds}


def run(size: int, work: Work) -> list[Row]:
    """A row per number of images; a given folder is taken whole."""
    folders = [work.images(size)] if work.given else [work.images(size // 10), work.images(size)]
    found = [child("memory", "read_and_embed", folder=str(folder)) for folder in folders]
    return [
        {
            "images": run.answer["images"],
            "peak MB": run.peak_mb,
            "times the first": run.peak_mb / found[0].peak_mb,
            "images/s, scan and embedding": run.answer["images"] / run.answer["seconds"],
        }
        for run in found
    ]


SIZES = {"quick": 500, "standard": 10_000, "large": 50_000}

BENCHMARK = Benchmark("memory", "Does memory grow with the number of images?", "images", SIZES, run)
