"""What does everything that a scan finds out cost beside decoding the image, which anything has to do?

`inspect` reads the file, hashes bytes and pixels, and computes the perceptual hash and the quality scores; the peer opens the file with
PIL and decodes it. One thread each, in turns; CPU time, since nothing is waited for.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.harness import Benchmark, Clock, Row, Work, child

REPEATS = 5


def both(folder: str, n: int) -> dict[str, Any]:
    """Median CPU milliseconds per image of both, over REPEATS passes."""
    from PIL import Image

    from benchmarks.images import files
    from dq_assets.audit.images import inspect
    from dq_assets.settings import Images

    paths, settings = files(folder, n), Images()

    def decode(path: str) -> None:
        with Image.open(path) as image:
            image.convert("RGB").load()

    ways = {"PIL decode alone": decode, "inspect": lambda path: inspect(path, settings)}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            with Clock() as clock:
                for path in paths:
                    way(path)
            taken[name].append({key: 1000 * value / len(paths) for key, value in clock.seconds.items()})
    return {name: {key: statistics.median(one[key] for one in all_) for key in all_[0]} for name, all_ in taken.items()}


def run(size: int, work: Work) -> list[Row]:
    """A row each."""
    found = child("scan", "both", folder=str(work.images(size)), n=size).answer
    least = found["PIL decode alone"]["cpu_seconds"]
    return [
        {
            "what": name,
            "CPU ms per image": one["cpu_seconds"],
            "wall ms": one["seconds"],
            "times decoding (CPU)": one["cpu_seconds"] / least,
        }
        for name, one in found.items()
    ]


BENCHMARK = Benchmark("scan", "What does a scan cost beside decoding?", "images", {"quick": 100, "standard": 500, "large": 2_000}, run)
