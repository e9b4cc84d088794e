"""How long does a whole audit take after embedding, how much memory, and does it find what was planted?

Vectors are made (`vectors.make_embeddings`) with near-copies, outliers and wrong labels, and stored in a lake as the audit stores them, but
in larger blocks. Then every stage of the audit runs on that lake in one process, in order, with its integrity checks, as the assets run it.
Left out is the pixel witness, as there are no pixels: the verdict on each nominated pair is stored beforehand, from the truth.
The exponent is that of CPU seconds over images, from the smaller run to this one. Needs 20 kB of disk per image at 1000 classes.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.harness import Benchmark, Clock, Measured, Row, Work, child

NAME = "scale"
REFERENCE = 50_000
"""Images of the smaller run; of a quarter of the size where that is less."""
BLOCK = 65_536
ASKED = 500
"""Rows whose neighbours are compared with those of brute force, beside the 512 rows by which the index measures itself."""


def n_classes(n: int) -> int:
    """1000, but at least 50 images a class."""
    return max(4, min(1000, n // 50))


def fill(home: str, data: str) -> dict[str, Any]:
    """A lake that holds what an audit has after embedding."""
    import numpy as np
    import polars as pl

    from dq_assets.audit.encoder import encoder_id
    from dq_assets.schema import QUALITY_CHECKS
    from dq_assets.store.tables import Version, append, record_version

    given = np.load(f"{data}-given.npy")
    vectors = np.load(f"{data}-vectors.npy", mmap_mode="r")
    n, rng = len(given), np.random.default_rng(5)
    rows = pl.DataFrame({"image_id": np.arange(n), "code": given, "split": rng.random(n) < 0.05})
    path = pl.format("class {}/{}.jpg", pl.col("code").cast(pl.String).str.zfill(4), "image_id")
    manifest = rows.select(
        "image_id",
        path=path,
        uri=pl.format("/nowhere/{}", path),
        given_label=pl.format("class {}", pl.col("code").cast(pl.String).str.zfill(4)),
        split=pl.when("split").then(pl.lit("validation")).otherwise(pl.lit("train")),
        group=pl.lit(None, pl.String),
        content_sha256=pl.Series(_contents(n)),
        pixel_hash=pl.col("image_id").cast(pl.String).str.zfill(32),
        width=500,
        height=375,
        format=pl.lit("JPEG"),
        mode=pl.lit("RGB"),
        bytes=100_000,
        mtime=0.0,
        etag=pl.lit(None, pl.String),
        status=pl.lit("ok"),
        reason=pl.lit(None, pl.String),
    )
    hashes = pl.Series([f"{one:016x}" for one in rng.integers(0, 2**64, n, dtype=np.uint64).tolist()])
    quality = {f"{check}_score": 1.0 for check in QUALITY_CHECKS}, {f"is_{check}_issue": False for check in QUALITY_CHECKS}
    properties = rows.select("image_id", phash=hashes, **{name: pl.lit(value) for part in quality for name, value in part.items()})
    with _session(home) as session:
        session.lake.ensure_dataset(NAME)
        session.publish("raw_manifest", manifest)
        session.publish("image_properties", properties)
        identity = encoder_id(session.settings.encoder)
        for start in range(0, n, BLOCK):
            block = pl.Series(np.asarray(vectors[start : start + BLOCK])).cast(pl.List(pl.Float32))
            named = manifest["content_sha256"][start : start + BLOCK]
            append(session.lake, NAME, "embeddings", pl.DataFrame({"content_sha256": named, "vector": block, "encoder": identity}))
        record_version(session.lake, NAME, "embeddings", Version(session.fingerprint("embeddings"), str(n), n, {}))
    return {}


def audited(home: str, data: str) -> dict[str, Any]:
    """Every stage after embedding in turn, and the quality of what the tables then hold."""
    import numpy as np
    import polars as pl

    from dq_assets.defs import checks
    from dq_assets.defs.assets import STAGES
    from dq_assets.store.audits import AUDITED_TABLES
    from dq_assets.store.integrity import check_integrity

    given, wrong, source, strange = (np.load(f"{data}-{name}.npy") for name in ("given", "wrong", "source", "strange"))
    copies = np.flatnonzero(source >= 0)
    stages: list[Row] = []
    with _session(home) as session:
        for name in AUDITED_TABLES[AUDITED_TABLES.index("neighbors") :]:
            if name == "duplicate_groups":
                n_pairs, nominated = _store_verdicts(session, copies, source[copies])
            _forget_peak()
            with Clock() as clock:
                if name != "label_noise":  # which came with label_issues
                    STAGES[name](session)
            most = _peak_mb()
            with Clock() as checking:
                passed = all(verdict.passed for verdict in check_integrity(session.lake, NAME, name))
            stages.append(_stage(name, clock, checking, max(most, _peak_mb()), passed))
            session.report.say(str(stages[-1]))
        with Clock() as clock:
            checks.evaluate(session, [])
        stages.append(_stage("gates", clock, None, _peak_mb(), True))
        group = np.full(len(given), -1)
        groups = session.table("duplicate_groups", "image_id", "group_id")
        group[groups["image_id"].to_numpy()] = groups["group_id"].to_numpy()
        score = session.table("label_issues", "label_score")["label_score"].fill_null(1.0).to_numpy()
        far = session.table("outliers", "outlier_score")["outlier_score"].fill_null(1.0).to_numpy()
        flagged = session.table("label_issues", "is_label_issue").select(pl.col("is_label_issue").fill_null(False)).to_series().to_numpy()
        metrics = session.versions()
    regular = ~strange  # outliers have a random label that nobody called wrong
    return {
        "stages": stages,
        "pairs": n_pairs,
        "copies nominated": nominated,
        "copies found": float(((group[copies] >= 0) & (group[copies] == group[source[copies]])).mean()),
        "outliers": _average_precision(strange, far),
        "labels": _average_precision(wrong[regular], score[regular]),
        "flag": [float(wrong[regular & flagged].mean()) if flagged.any() else 0.0, float(flagged[wrong].mean())],
        "recall": float(metrics["neighbors"].metrics["recall on a sample"]),
        "partitions": int(metrics["neighbors"].metrics["partitions"]),
        "accuracy": float(metrics["oof_probs"].metrics["accuracy"]),
    }


def recall_at_10(home: str, data: str) -> dict[str, Any]:
    """Share of the 10 nearest of ASKED rows, by brute force, that are among the first 10 that the audit stored."""
    import numpy as np

    from benchmarks.vectors import recall
    from dq_assets.store.tables import read_matrix

    vectors = np.load(f"{data}-vectors.npy", mmap_mode="r")
    with _session(home) as session:
        _, ids = read_matrix(session.lake, NAME, "neighbors", "neighbor_ids")
    rows = np.sort(np.random.default_rng(77).choice(len(vectors), min(ASKED, len(vectors)), replace=False))
    return {"recall at 10": recall(vectors, rows, ids[rows, :10])}


def _store_verdicts(session: Any, copies: Any, originals: Any) -> tuple[int, float]:
    """What the pixel witness would say of every nominated pair; how many there are, and which share of the planted ones is among them."""
    import numpy as np
    import polars as pl

    from dq_assets.audit import duplicates
    from dq_assets.defs.stages.copies import NOMINATED, witness_id
    from dq_assets.store.tables import append, read_matrix

    _, near = read_matrix(session.lake, NAME, "neighbors", "neighbor_ids")
    _, far = read_matrix(session.lake, NAME, "neighbors", "distances")
    phash = np.array([int(digits, 16) for digits in session.table("image_properties", "phash")["phash"]], np.uint64)
    pairs = duplicates.candidate_pairs(phash, near[:, :NOMINATED], far[:, :NOMINATED], session.settings.duplicates)
    planted = np.sort(np.stack([copies, originals], axis=1), axis=1)
    n, contents = len(near), pl.Series(_contents(len(near)))
    same = np.isin(pairs[:, 0] * n + pairs[:, 1], planted[:, 0] * n + planted[:, 1])
    for start in range(0, len(pairs), 8 * BLOCK):
        part = slice(start, start + 8 * BLOCK)
        named = pl.DataFrame({"a": contents.gather(pairs[part, 0]), "b": contents.gather(pairs[part, 1])}).select(
            content_a=pl.min_horizontal("a", "b"),
            content_b=pl.max_horizontal("a", "b"),
            witness=pl.lit(witness_id(session.settings.duplicates)),
            distance=pl.when(pl.Series(same[part])).then(pl.lit(0.02, pl.Float32)),
        )
        append(session.lake, NAME, "compared_pairs", named)
    return len(pairs), float(same.sum() / max(len(planted), 1))


def _contents(n: int) -> list[str]:
    """As many different SHA-256."""
    import hashlib

    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(n)]


def _session(home: str) -> Any:
    """The lake, opened as an audit opens it. Progress goes to a file beside it, as the run may take an hour."""
    import contextlib
    from pathlib import Path

    from dq_assets.defs.session import Session
    from dq_assets.report.progress import LogReporter
    from dq_assets.settings import Dataset, Home
    from dq_assets.store.lake import Lake

    @contextlib.contextmanager
    def opened() -> Any:
        place = Home(Path(home))
        place.root.mkdir(parents=True, exist_ok=True)
        with (place.root / "progress.log").open("a", buffering=1, encoding="utf-8") as log, Lake.open(place) as lake:
            yield Session(Dataset(NAME, "/nowhere"), place, lake, LogReporter(lambda line: print(line, file=log)))

    return opened()


def _stage(name: str, clock: Clock, checking: Clock | None, peak_mb: float, passed: bool) -> Row:
    seconds, checked = clock.seconds, checking.seconds if checking else {"seconds": 0.0, "cpu_seconds": 0.0}
    return {
        "stage": name,
        "s": seconds["seconds"],
        "CPU s": seconds["cpu_seconds"],
        "checks s": checked["seconds"],
        "checks CPU s": checked["cpu_seconds"],
        "peak MB": peak_mb,
        "checks passed": passed,
    }


def _forget_peak() -> None:
    """Linux counts the peak anew from here on; elsewhere it stays that of the whole process."""
    from pathlib import Path

    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    import resource
    import sys
    from pathlib import Path

    if Path("/proc/self/status").exists():
        return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _average_precision(planted: Any, score: Any) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(planted, -score))


def run(size: int, work: Work) -> list[Row]:
    """A row for each stage and one for all; quality stands in the rows of the stages that decide it, with that of the smaller run."""
    small = min(REFERENCE, size // 4)
    before, now = (_audit(n, work) for n in (small, size))
    quality = {name: f"{text} ({small:,}: {_quality(before)[name]})" for name, text in _quality(now).items()}
    return [
        {**stage, "exponent": math.log(_cpu(stage) / _cpu(earlier)) / math.log(size / small), "found": quality.get(stage["stage"], "")}
        for earlier, stage in zip(_with_sum(before["stages"]), _with_sum(now["stages"]), strict=True)
    ]


def _audit(n: int, work: Work) -> Row:
    """One size: made, filled, audited, and removed again."""
    import shutil

    home, data = work.folder / f"home-{n}", str(work.folder / f"scale-{n}")
    child("vectors", "make_embeddings", n=n, out=data, n_classes=n_classes(n))
    child("scale", "fill", home=str(home), data=data)
    measured: Measured = child("scale", "audited", home=str(home), data=data)
    found = {**measured.answer, **child("scale", "recall_at_10", home=str(home), data=data).answer, "n": n}
    shutil.rmtree(home)
    for file in work.folder.glob(f"scale-{n}-*.npy"):
        file.unlink()
    return found


def _quality(found: Row) -> dict[str, str]:
    precision, recall_of_flag = found["flag"]
    return {
        "neighbors": f"recall@10 {found['recall at 10']:.3f}, by itself {found['recall']:.3f}, {found['partitions']} partitions",
        "duplicate_groups": f"copies {found['copies found']:.4f}, {found['pairs'] / found['n']:.1f} pairs an image",
        "oof_probs": f"accuracy {found['accuracy']:.3f}",
        "label_issues": f"AP {found['labels']:.3f}, flag {precision:.2f} of {recall_of_flag:.2f}",
        "outliers": f"AP {found['outliers']:.3f}",
    }


def _with_sum(stages: list[Row]) -> list[Row]:
    names = ("s", "CPU s", "checks s", "checks CPU s")
    total = {"stage": "all", **{name: sum(stage[name] for stage in stages) for name in names}}
    return [*stages, {**total, "peak MB": max(s["peak MB"] for s in stages), "checks passed": all(s["checks passed"] for s in stages)}]


def _cpu(stage: Row) -> float:
    return max(stage["CPU s"] + stage["checks CPU s"], 0.01)


SIZES = {"quick": 2_000, "standard": 50_000, "large": 1_281_167}

BENCHMARK = Benchmark("scale", "How long does an audit take after embedding, and what does it find?", "x 1280", SIZES, run)
