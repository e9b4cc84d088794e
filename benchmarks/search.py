"""How fast are neighbours, outliers and nominated copies against cleanlab's Datalab, and what do they find?

Vectors are made (`vectors.make_embeddings`), at an eighth, a quarter, half and all of the size. Datalab runs up to DATALAB_UP_TO; beyond,
its seconds are extrapolated by its own growth between the two largest sizes that it ran at. The exponents are of CPU seconds.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.harness import Benchmark, Clock, Measured, Row, Work, child

DATALAB_UP_TO = 50_000
"""It takes minutes there."""
ASKED = 500
"""Rows whose neighbours are compared with those of brute force, outside the clock and beside those by which the index measures itself."""


def average_precision(planted: Any, score: Any) -> float:
    """Of a column of scores, lowest first; what was not checked counts as best."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(planted, -score.fill_null(1.0).to_numpy()))


def searched(data: str) -> dict[str, Any]:
    """Neighbours, outliers and pairs that are nominated by their vectors."""
    import numpy as np
    import torch  # noqa: F401  outside the clock, as the peer's imports are

    from benchmarks.vectors import recall
    from dq_assets.audit import duplicates, neighbors, outliers
    from dq_assets.settings import Settings

    vectors, given, source, strange = (np.load(f"{data}-{name}.npy") for name in ("vectors", "given", "source", "strange"))
    settings, n = Settings(), len(vectors)
    hashes = np.random.default_rng(5).integers(0, 2**64, n, dtype=np.uint64)
    with Clock() as clock:
        graph = neighbors.neighbor_graph(vectors, settings.neighbors)
        pairs = duplicates.candidate_pairs(hashes, graph.positions[:, :10], graph.distances[:, :10], settings.duplicates)
        group = np.full(n, -1)
        table = outliers.outliers(np.arange(n), graph.positions, graph.distances, group, given, settings.outliers)
    copies = np.flatnonzero(source >= 0)
    asked = np.sort(np.stack([copies, source[copies]], axis=1), axis=1)
    found = np.isin(asked[:, 0] * n + asked[:, 1], pairs[:, 0] * n + pairs[:, 1])
    rows = np.sort(np.random.default_rng(77).choice(n, min(ASKED, n), replace=False))
    return {
        **clock.seconds,
        "pairs": float(found.mean()),
        "outliers": average_precision(strange, table["outlier_score"]),
        "recall": recall(vectors, rows, graph.positions[rows, :10]),
    }


def datalab(data: str) -> dict[str, Any]:
    """cleanlab's Datalab, outliers and near-duplicates."""
    import contextlib
    import io

    import numpy as np
    import polars as pl
    from cleanlab import Datalab

    vectors, given, source, strange = (np.load(f"{data}-{name}.npy") for name in ("vectors", "given", "source", "strange"))
    with Clock() as clock, contextlib.redirect_stdout(io.StringIO()):
        lab = Datalab({"label": given}, label_name="label", verbosity=0)
        lab.find_issues(features=vectors, issue_types={"outlier": {}, "near_duplicate": {}})
    copies = np.flatnonzero(source >= 0)
    sets = lab.get_issues("near_duplicate")["near_duplicate_sets"]
    found = [bool(np.isin(source[copy], sets[copy])) or bool(np.isin(copy, sets[source[copy]])) for copy in copies.tolist()]
    score = pl.Series(lab.get_issues("outlier")["outlier_score"].to_numpy())
    return {**clock.seconds, "pairs": float(np.mean(found)), "outliers": average_precision(strange, score), "recall": 1.0}


def run(size: int, work: Work) -> list[Row]:
    """A row for each size."""
    ours: dict[int, Measured] = {}
    theirs: dict[int, Measured] = {}
    for n in (size // 8, size // 4, size // 2, size):
        data = str(work.folder / "search")
        child("vectors", "make_embeddings", n=n, out=data)
        ours[n] = child("search", "searched", data=data)
        if n <= DATALAB_UP_TO:
            theirs[n] = child("search", "datalab", data=data)
    return [_row(n, ours, theirs) for n in ours]


def _row(n: int, ours: dict[int, Measured], theirs: dict[int, Measured]) -> Row:
    """One size. Datalab's seconds are in brackets where they are extrapolated."""
    mine, peer = ours[n].answer, theirs.get(n)
    last = sorted(theirs)[-2:]
    growth = _exponent(*last, theirs) if len(last) == 2 else None
    cost = {
        key: peer.answer[key] if peer else theirs[last[-1]].answer[key] * (n / last[-1]) ** (growth or 2)
        for key in ("seconds", "cpu_seconds")
    }
    return {
        "images": n,
        "s": mine["seconds"],
        "CPU s": mine["cpu_seconds"],
        "exponent": _exponent(n // 2, n, ours) if n // 2 in ours else None,
        "peak MB": ours[n].peak_mb,
        "recall@10": mine["recall"],
        "copies nominated": mine["pairs"],
        "outliers AP": mine["outliers"],
        "Datalab s": cost["seconds"],
        "Datalab CPU s": cost["cpu_seconds"],
        "measured": peer is not None,
        "Datalab's exponent": growth,
        "faster by": cost["seconds"] / mine["seconds"],
        "CPU, by": cost["cpu_seconds"] / mine["cpu_seconds"],
        "Datalab peak MB": peer.peak_mb if peer else None,
        "its copies": peer.answer["pairs"] if peer else None,
        "its outliers AP": peer.answer["outliers"] if peer else None,
    }


def _exponent(small: int, large: int, runs: dict[int, Measured]) -> float:
    return math.log(runs[large].answer["cpu_seconds"] / runs[small].answer["cpu_seconds"]) / math.log(large / small)


SIZES = {"quick": 2_000, "standard": 50_000, "large": 200_000}

BENCHMARK = Benchmark("search", "How fast are neighbours, outliers and nominated copies against Datalab?", "x 1280", SIZES, run)
