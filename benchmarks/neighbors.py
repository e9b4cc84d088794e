"""What does an exact neighbour graph with settled order cost, against scikit-learn's brute force and faiss's flat index?"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Benchmark, Clock, Row, Work, alternate, child, median

K = 10
REPEATS = 3


def ours(data: str) -> dict[str, Any]:
    """nearest_neighbors."""
    import numpy as np

    from dq_assets.audit.neighbors import nearest_neighbors

    vectors = np.load(f"{data}-vectors.npy")
    with Clock() as clock:
        found, _ = nearest_neighbors(vectors, K)
    return _answer(found, data, clock)


def brute_force(data: str) -> dict[str, Any]:
    """scikit-learn."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    vectors = np.load(f"{data}-vectors.npy")
    with Clock() as clock:
        found = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(vectors).kneighbors(return_distance=False)
    return _answer(found, data, clock)


def flat(data: str) -> dict[str, Any]:
    """faiss; the first hit of a row is taken to be the row itself."""
    import faiss
    import numpy as np

    vectors = np.load(f"{data}-vectors.npy")
    with Clock() as clock:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        found = index.search(unit, K + 1)[1][:, 1:]
    return _answer(found, data, clock)


def _answer(found: Any, data: str, clock: Clock) -> dict[str, Any]:
    """Keep the neighbours; the share of those that another run left which are found here too."""
    from pathlib import Path

    import numpy as np

    out = Path(f"{data}-found.npy")
    if not out.exists():
        np.save(out, found)
    shared = (found[:, :, None] == np.load(out)[:, None, :]).any(axis=1)
    return {"shared": float(shared.mean()), **clock.seconds}


def run(size: int, work: Work) -> list[Row]:
    """A row each."""
    data = str(work.folder / f"neighbors-{size}")
    child("vectors", "make", n=size, out=data)
    names = {"nearest_neighbors": "ours", "scikit-learn brute force": "brute_force", "faiss IndexFlatIP": "flat"}
    found = alternate({name: lambda of=function: child("neighbors", of, data=data) for name, function in names.items()}, REPEATS)
    return [
        {
            "search": name,
            "s": median(taken, "seconds"),
            "CPU s": median(taken, "cpu_seconds"),
            "nearest_neighbors is faster by": median(taken, "seconds") / median(found["nearest_neighbors"], "seconds"),
            "peak MB": median(taken, "peak_mb"),
            "same neighbours": median(taken, "shared"),
        }
        for name, taken in found.items()
    ]


SIZES = {"quick": 2_000, "standard": 10_000, "large": 50_000}

BENCHMARK = Benchmark("neighbors", "What does an exact neighbour graph cost?", "x 1280", SIZES, run)
