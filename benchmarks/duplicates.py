"""Which copies are found, of which kind, and how many pairs are not copies, against CleanVision, imagededup and cleanlab's Datalab?

A quarter of the pictures get one altered copy each, in turns of the edits. The same files go through everything. The peers
run with their defaults; Datalab and the plain threshold get the vectors of the audit. At 32 pixels a side only edits that leave the
picture the same are made. A pair of two different pictures is false for made images; for photos (`--images`) it may be a copy that
was there before.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Row, Work, child, process

EDITS = (
    "exact bytes",
    "equal pixels",
    "JPEG 60",
    "JPEG 30",
    "resize .5",
    "resize .8",
    "brightness",
    "crop 5 %",
    "crop 15 %",
    "mirrored",
    "rotated 3",
    "all of these",
)
SMALL_EDITS = ("exact bytes", "equal pixels", "JPEG 60", "resize .8", "brightness", "crop 5 %")
SMALL = 32
COPIES = 0.25
"""Share of the pictures that have a copy."""
NEAR = 0.9
"""Cosine similarity of the plain threshold, as FastDup's default."""

Pairs = set[tuple[str, str]]


def make(folder: str, n: int, out: str, side: int) -> dict[str, Any]:
    """Pictures, shrunk to `side` if that is not 0, and copies of some into out/images/<class>; the truth into out/truth.json."""
    import numpy as np
    from PIL import Image

    from benchmarks.images import files

    root, rng = Path(out) / "images", np.random.default_rng(5)
    found = files(folder, n)
    edits = SMALL_EDITS if side else EDITS
    copied = dict(zip(rng.permutation(len(found))[: int(COPIES * len(found))].tolist(), itertools.cycle(edits), strict=False))
    truth: dict[str, str] = {}
    for number, file in enumerate(found):
        target = root / Path(file).parent.name / f"{number:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        if side:
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        picture.save(target, quality=95)
        if number in copied:
            copy = target.with_name(f"{number:06}-copy" + (".png" if copied[number] == "equal pixels" else ".jpg"))
            _edited(target, copy, copied[number], rng)
            truth[copy.name] = copied[number]
    (Path(out) / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return {"pictures": len(found), "copies": len(truth)}


def _edited(source: Path, copy: Path, edit: str, rng: Any) -> None:
    """Write the copy of a file."""
    from PIL import Image, ImageEnhance, ImageOps

    if edit == "exact bytes":
        copy.write_bytes(source.read_bytes())
        return
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    quality = {"JPEG 60": 60, "JPEG 30": 30, "all of these": 60}.get(edit, 95)
    if edit in ("crop 5 %", "crop 15 %", "all of these"):
        share = {"crop 15 %": 0.15}.get(edit, 0.05)
        left, top = (int(rng.integers(round(side * share) + 1)) for side in (width, height))
        image = image.crop((left, top, left + round(width * (1 - share)), top + round(height * (1 - share))))
    if edit in ("rotated 3", "all of these"):
        image = image.rotate(3 * rng.choice([-1, 1]), Image.Resampling.BICUBIC, fillcolor="white")
    if edit in ("resize .5", "resize .8", "all of these"):
        factor = 0.5 if edit == "resize .5" else 0.8
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    if edit in ("brightness", "all of these"):
        image = ImageEnhance.Brightness(image).enhance(rng.choice([0.8, 1.25]))
    if edit in ("mirrored", "all of these"):
        image = ImageOps.mirror(image)
    image.save(copy, quality=quality)


def audited(out: str) -> dict[str, Any]:
    """dq-assets audit, from its tables; leaves the vectors for the peers that take some."""
    import numpy as np

    home = Path(out) / "home"
    command = Path(sys.executable).with_name("dq-assets")
    process([str(command), "audit", str(Path(out) / "images"), "--name", "bench"], env={"DQ_HOME": str(home)}, accept=(0, 3))
    os.environ["DQ_HOME"] = str(home)
    from dq_assets import read

    manifest = read("bench", "raw_manifest")
    vectors = manifest.join(read("bench", "embeddings"), on="content_sha256", how="left", maintain_order="left")
    np.save(Path(out) / "vectors.npy", np.array(vectors["vector"].to_list(), np.float32))
    (Path(out) / "paths.json").write_text(json.dumps(manifest["path"].to_list()), encoding="utf-8")
    grouped = manifest.join(read("bench", "duplicate_groups"), on="image_id").group_by("group_id").agg("path")["path"].to_list()
    return _score(_within(grouped), out)


def cleanvision(out: str) -> dict[str, Any]:
    """CleanVision's exact and near duplicates."""
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(Path(out) / "images"), verbose=False)
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
    sets = [lab.info[kind]["sets"] for kind in ("exact_duplicates", "near_duplicates")]
    return _score(_within(itertools.chain(*sets)), out)


def imagededup(out: str) -> dict[str, Any]:
    """imagededup's perceptual hash at its default distance of 10 bits."""
    from imagededup.methods import PHash

    encodings = PHash(verbose=False).encode_images(image_dir=str(Path(out) / "images"), recursive=True, num_enc_workers=0)
    found = PHash(verbose=False).find_duplicates(encoding_map=encodings, num_dist_workers=0)
    return _score({(a, b) for a, others in found.items() for b in others}, out)


def datalab(out: str) -> dict[str, Any]:
    """Datalab's near_duplicate on the audit's vectors."""
    import numpy as np
    from cleanlab import Datalab

    paths, vectors = json.loads((Path(out) / "paths.json").read_text()), np.load(Path(out) / "vectors.npy")
    lab = Datalab(data={"label": [Path(path).parent.name for path in paths]}, label_name="label", verbosity=0)
    lab.find_issues(features=vectors, issue_types={"near_duplicate": {}})
    issues = lab.get_issues("near_duplicate")
    flagged = np.flatnonzero(issues["is_near_duplicate_issue"].to_numpy())
    return _score({(paths[i], paths[j]) for i in flagged for j in issues["near_duplicate_sets"].iloc[i]}, out)


def threshold(out: str) -> dict[str, Any]:
    """Every pair of vectors with a cosine above NEAR."""
    import numpy as np

    paths, vectors = json.loads((Path(out) / "paths.json").read_text()), np.load(Path(out) / "vectors.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs: Pairs = set()
    for start in range(0, len(vectors), 1000):
        row, column = np.nonzero(vectors[start : start + 1000] @ vectors.T > NEAR)
        pairs |= {(paths[start + i], paths[j]) for i, j in zip(row.tolist(), column.tolist(), strict=True) if start + i < j}
    return _score(pairs, out)


def _within(groups: Iterable[Iterable[str]]) -> Pairs:
    return {pair for group in groups for pair in itertools.combinations(sorted(map(str, group)), 2)}


def _score(pairs: Pairs, out: str) -> dict[str, Any]:
    """Share of the copies of each kind that are paired with their original, and the number of pairs of different pictures."""
    truth: dict[str, str] = json.loads((Path(out) / "truth.json").read_text())
    named = {tuple(sorted((Path(a).name, Path(b).name))) for a, b in pairs}
    same = {pair for pair in named if pair[0][:6] == pair[1][:6]}
    hits = {name for pair in same for name in pair if name in truth}
    kinds = {edit: [name in hits for name, kind in truth.items() if kind == edit] for edit in EDITS}
    shares = {edit: sum(found) / len(found) if found else None for edit, found in kinds.items()}
    precision = len(same) / max(len(named), 1)
    return {"recall": len(hits) / max(len(truth), 1), "precision": precision, "other pairs": len(named - same), **shares}


WAYS: dict[str, Callable[[str], dict[str, Any]]] = {
    "dq-assets": audited,
    "CleanVision": cleanvision,
    "imagededup, PHash": imagededup,
    "cleanlab Datalab": datalab,
    f"cosine > {NEAR}": threshold,
}


def run(size: int, work: Work) -> list[Row]:
    """A row per way and size of the pictures."""
    rows = []
    for side in (0, SMALL):
        out = str(work.folder / f"copies-{side}")
        child("duplicates", "make", folder=str(work.images(size)), n=size, out=out, side=side)
        for name, way in WAYS.items():
            answer = child("duplicates", way.__name__, out=out).answer
            rows.append({"finds": name, "pictures": f"{side} px" if side else "as they are", **answer})
    return rows


BENCHMARK = Benchmark("duplicates", "Which copies are found?", "pictures", {"quick": 200, "standard": 1_000, "large": 5_000}, run)
