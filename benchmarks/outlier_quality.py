"""How well are outliers ranked and flagged, near ones and copied ones too, against cleanlab's Datalab on the same vectors?

Made sets: 12 classes of 8 clusters, heavy tails, 5 % wrong labels, copies of 2 % of the regular images. 1 % are outliers. Far: from
other classes through another mixing of the hidden directions. Near: halfway from there to a regular image. Unseen class: the same mixing,
each from a cluster of its own. Copied: each of half as many outliers has a copy. Figures are means over SEEDS. Which pairs are copies is
asked of `candidate_pairs`; the pixel witness, which needs pictures, is replaced by the truth. With `--images` also the given pictures,
with drawings that belong to no class among them, through the whole audit; pictures that were strange before count as regular.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Row, Work, answers, child, process

SEEDS = (5, 6, 7)
KINDS = ("far", "near", "unseen class")
DIM, N_CLASSES, CLUSTERS, HIDDEN = 1280, 12, 8, 96
OUTLIERS, COPIES, WRONG = 0.01, 0.02, 0.05
"""Shares of the images."""


def made(n: int, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, list[Row]]:
    """A row per kind of outlier, copied or not."""
    return {"rows": [{"outliers": kind, "copied": copied} | _compared(*_set(n, seed, kind, copied)) for kind in kinds for copied in (0, 1)]}


def _world(n: int, rng: Any, drawn: Any) -> tuple[Any, Any, Any]:
    """(n, DIM) vectors, labels, and n more vectors that come from a cluster of their own each. rng: classes and mixing; drawn: images."""
    import numpy as np

    weight = np.arange(1, HIDDEN + 1) ** -0.6
    weight /= np.sqrt(np.square(weight).mean())
    centres = np.repeat(rng.normal(size=(N_CLASSES, HIDDEN)), CLUSTERS, axis=0) + 0.7 * rng.normal(size=(N_CLASSES * CLUSTERS, HIDDEN))
    share = np.concatenate([rng.permutation(1 / np.arange(1, CLUSTERS + 1)) for _ in range(N_CLASSES)])
    width = rng.lognormal(0, 0.35, N_CLASSES * CLUSTERS)
    mixing = rng.normal(size=(HIDDEN, DIM)) / HIDDEN**0.5
    cluster = drawn.choice(len(share), n, p=share / share.sum())

    def seen(hidden: Any) -> Any:
        return np.maximum((hidden * weight) @ mixing + 0.3 * drawn.normal(size=(n, DIM)) - 0.3, 0).astype(np.float32)

    tails = np.sqrt(drawn.chisquare(4, (n, 1)) / 4)
    regular = seen(centres[cluster] + width[cluster, None] * drawn.normal(size=(n, HIDDEN)) / tails)
    return regular, cluster // CLUSTERS, seen(1.22 * drawn.normal(size=(n, HIDDEN)) + drawn.normal(size=(n, HIDDEN)))


def _set(n: int, seed: int, kind: str, copied: int) -> tuple[Any, Any, Any, Any]:
    """Vectors (n, DIM), given labels, which are outliers, and the row that each is a copy of, or else -1."""
    import numpy as np

    rng = np.random.default_rng([seed, 1])
    vectors, given, own = _world(n, np.random.default_rng(seed), rng)
    strange = np.zeros(n, dtype=bool)
    order = rng.permutation(n)
    chosen, rest = np.split(order, [max(round(OUTLIERS * n), 4)])
    strange[chosen] = True
    if kind == "unseen class":
        vectors[chosen] = own[chosen]
    else:
        other = _world(n, np.random.default_rng([seed, 2]), rng)[0][chosen]
        vectors[chosen] = other if kind == "far" else 0.5 * other + 0.5 * vectors[rest[: len(chosen)]]
    source = np.full(n, -1)
    half = len(chosen) // 2 * copied
    m = round(COPIES * n)
    source[chosen[:half]] = chosen[half : 2 * half]
    source[rest[:m]] = rest[m : 2 * m]
    copies = np.flatnonzero(source >= 0)
    vectors[copies] = vectors[source[copies]] * (1 + 0.1 * rng.normal(size=(len(copies), DIM)).astype(np.float32))
    given[copies] = given[source[copies]]
    anywhere = strange | (rng.random(n) < WRONG)
    given[anywhere] = rng.integers(0, N_CLASSES, int(anywhere.sum()))
    return vectors, given, strange, source


def _compared(vectors: Any, given: Any, strange: Any, source: Any) -> Row:
    """Both on one set."""
    import numpy as np

    from dq_assets.audit import duplicates, neighbors, outliers
    from dq_assets.settings import Settings

    settings, n = Settings(), len(vectors)
    graph = neighbors.neighbor_graph(vectors, settings.neighbors)
    hashes = np.random.default_rng(5).integers(0, 2**64, n, dtype=np.uint64)
    pairs = duplicates.candidate_pairs(hashes, graph.positions[:, :10], graph.distances[:, :10], settings.duplicates)
    real = (source[pairs[:, 0]] == pairs[:, 1]) | (source[pairs[:, 1]] == pairs[:, 0])
    group = np.full(n, -1)
    for low, high in pairs[real].tolist():  # an original has one copy, so that no pair joins another
        group[[low, high]] = low
    table = outliers.outliers(np.arange(n), graph.positions, graph.distances, group, given, settings.outliers)
    mine = _figures("", strange, table["outlier_score"].fill_null(1.0), table["is_outlier_issue"].fill_null(value=False))
    return mine | _datalab(vectors, given, strange)


def _datalab(vectors: Any, labels: Any, strange: Any) -> Row:
    """cleanlab's outlier check on the vectors."""
    import contextlib
    import io

    from cleanlab import Datalab

    with contextlib.redirect_stdout(io.StringIO()):
        lab = Datalab({"label": labels}, label_name="label", verbosity=0)
        lab.find_issues(features=vectors, issue_types={"outlier": {}})
    found = lab.get_issues("outlier")
    return _figures("Datalab ", strange, found["outlier_score"], found["is_outlier_issue"])


def _figures(who: str, strange: Any, score: Any, flag: Any) -> Row:
    """Of a score, lowest first, and a flag. Precision of no flag at all is 0."""
    from sklearn.metrics import average_precision_score

    flagged = flag.to_numpy().astype(bool)
    hits = int((flagged & strange).sum())
    return {
        f"{who}AP": float(average_precision_score(strange, -score.to_numpy())),
        f"{who}precision": hits / max(int(flagged.sum()), 1),
        f"{who}recall": hits / int(strange.sum()),
        f"{who}false alarms": float(flagged[~strange].mean()),
    }


def planted(folder: str, n: int, out: str) -> Row:
    """The given pictures with drawings among them, half of which have a copy as JPEG, through `dq-assets audit`."""
    import numpy as np
    import polars as pl

    from benchmarks.images import files
    from dq_assets.demo.drawings import OUTLIERS as DRAWINGS

    root, rng = Path(out) / "images", np.random.default_rng(5)
    found = [Path(file) for file in files(folder, n)]
    for number, file in enumerate(found):
        target = root / file.parent.name / f"{number:06}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    classes = sorted(path for path in root.iterdir())
    for number in range(max(round(OUTLIERS * len(found)), 4)):
        drawing = DRAWINGS[number % len(DRAWINGS)](rng)
        home = classes[int(rng.integers(len(classes)))]
        drawing.save(home / f"drawing-{number:04}.png")
        if number % 2:
            drawing.save(home / f"drawing-{number:04}-copy.jpg", quality=80)
    where = str(Path(out) / "home")
    command = str(Path(sys.executable).with_name("dq-assets"))
    process([command, "audit", str(root), "--name", "bench"], env={"DQ_HOME": where}, accept=(0, 3))
    os.environ["DQ_HOME"] = where
    from dq_assets import read

    table = read("bench", "raw_manifest").join(read("bench", "outliers"), on="image_id", how="inner")
    table = table.join(read("bench", "embeddings"), on="content_sha256", how="inner", maintain_order="left")
    strange = table["path"].str.contains("drawing-").to_numpy()
    mine = _figures("", strange, table["outlier_score"].fill_null(1.0), table["is_outlier_issue"].fill_null(value=False))
    vectors = np.array(table["vector"].to_list(), np.float32)
    return mine | _datalab(vectors, table["path"].map_elements(lambda path: Path(path).parent.name, pl.String).to_list(), strange)


def run(size: int, work: Work) -> list[Row]:
    """A row per kind of outlier, their mean, and one of the given pictures if there are some."""
    found = answers("outlier_quality", "made", [{"n": size, "seed": seed} for seed in SEEDS])
    sets = [(kind, copied) for kind in KINDS for copied in (0, 1)]
    rows = [
        {"outliers": kind + ", copied" * copied} | _mean([one for one in found if (one["outliers"], one["copied"]) == (kind, copied)])
        for kind, copied in sets
    ]
    rows.append({"outliers": "mean"} | _mean(found))
    if work.given is not None:
        out = str(work.folder / "planted")
        rows.append(
            {"outliers": "drawings in the given pictures"}
            | child("outlier_quality", "planted", folder=str(work.given), n=size, out=out).answer
        )
    return rows


def _mean(rows: list[Row]) -> Row:
    return {name: sum(one[name] for one in rows) / len(rows) for name in rows[0] if name not in ("outliers", "copied")}


SIZES = {"quick": 1_000, "standard": 4_000, "large": 20_000}

BENCHMARK = Benchmark("outlier_quality", "How well are outliers ranked and flagged?", f"x {DIM}", SIZES, run)
