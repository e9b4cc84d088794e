"""How well is a picture that holds two things told from one between two classes? Collages among pictures of class folders.

Each collage shows two pictures of different classes, side by side, above each other, cut to halves, or one within the other, under one of
the two labels; its sources are taken out. Of the other labels FLIPS are made wrong. Asked is which of the flagged images are collages.
Pictures that are ambiguous by nature count as negatives, also where they do hold two things. Figures are means over SEEDS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Row, Work, answers

SEEDS = (5, 6, 7)
SHARES = (0.05, 0.01)
"""Collages among all images."""
FLIPS, N_FOLDS, SIDE = 0.06, 5, 256
LAYOUTS = ("beside", "above", "halves", "inset")


def trials(folder: str, n: int) -> dict[str, list[Row]]:
    """A row per share and seed."""
    import numpy as np

    from benchmarks.images import embedded, files, opened

    found = files(folder)
    paths = [found[i] for i in np.linspace(0, len(found) - 1, min(n, len(found))).astype(int)]
    labels = np.array([Path(path).parent.name for path in paths])
    rng = np.random.default_rng(SEEDS[0])
    order, m = rng.permutation(len(paths)), round(SHARES[0] * len(paths))
    large = [i for i in order if (labels == labels[i]).sum() >= N_FOLDS * 4]
    pairs: list[tuple[int, int]] = []
    while len(pairs) < m and len(set(labels[large])) > 1:
        first = large.pop()
        second = next(i for i in large if labels[i] != labels[first])
        large.remove(second)
        pairs.append((first, second))
    single = np.setdiff1d(np.arange(len(paths)), np.ravel(pairs))
    vectors = embedded(opened(paths[i]) for i in single)
    collages = [_collage(opened(paths[a]), opened(paths[b]), LAYOUTS[i % 4]) for i, (a, b) in enumerate(pairs)]
    mixed = embedded(collages)
    rows = []
    for share in SHARES:
        for seed in SEEDS:
            chosen = np.random.default_rng(seed).permutation(len(pairs))[: max(round(share * len(paths)), 1)]
            both = labels[np.array(pairs)[chosen]]
            rows.append({"share": share} | _trial(np.concatenate([vectors, mixed[chosen]]), labels[single], both, seed))
    return {"rows": rows}


def _collage(a: Any, b: Any, layout: str) -> Any:
    """SIDE x SIDE pixels, white where there is no picture."""
    from PIL import Image, ImageOps

    half = SIDE // 2
    page = Image.new("RGB", (SIDE, SIDE), "white")
    if layout == "inset":
        page.paste(ImageOps.pad(a, (SIDE, SIDE), color="white"), (0, 0))
        page.paste(ImageOps.fit(b, (half + 12, half + 12)), (half - 24, half - 24))
        return page
    size, second = ((SIDE, half), (0, half)) if layout == "above" else ((half, SIDE), (half, 0))
    for picture, place in ((a, (0, 0)), (b, second)):
        page.paste(ImageOps.fit(picture, size) if layout == "halves" else ImageOps.pad(picture, size, color="white"), place)
    return page


def _trial(vectors: Any, labels: Any, both: Any, seed: int) -> Row:
    """both: (m, 2) the classes of the last m rows of vectors."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from dq_assets.audit import confident, kinds
    from dq_assets.audit.oof import oof_probabilities
    from dq_assets.settings import Labels

    rng = np.random.default_rng(seed)
    names = sorted(set(labels))
    true = np.searchsorted(names, labels)
    wrong = rng.random(len(true)) < FLIPS
    given = np.where(wrong, (true + rng.integers(1, len(names), len(true))) % len(names), true)
    given = np.concatenate([given, np.searchsorted(names, both)[np.arange(len(both)), rng.integers(0, 2, len(both))]])
    n, holds_two = len(given), np.arange(len(given)) >= len(labels)
    probs = oof_probabilities(vectors, given, rng.permutation(np.arange(n) % N_FOLDS), len(names)).probs
    every = np.ones(len(names), dtype=bool)
    table = confident.label_issues(np.arange(n), given, probs, class_names=names, learnable=every, settings=Labels())
    table = kinds.with_multi_label(table, lambda rows: vectors[rows], Labels())
    flagged = table["is_label_issue"].to_numpy()
    called = (table["kind"] == "multi_label").fill_null(value=False).to_numpy()
    hits = np.flatnonzero(called & holds_two)
    candidates = table["candidate_labels"].to_list()
    unflagged = np.flatnonzero(~flagged)
    weights = kinds.mixture_weights(vectors[unflagged], given[unflagged])
    return {
        "flagged": float(flagged[holds_two].mean()),
        "chance": float(holds_two[flagged].mean()),
        "called": int(called.sum()),
        "hits": len(hits),
        "of": int((flagged & holds_two).sum()),
        "false": int((called & ~holds_two).sum()),
        "others": int((flagged & ~holds_two).sum()),
        "both": sum(set(both[i - len(labels)]) <= set(candidates[i]) for i in hits),
        "AUROC": float(roc_auc_score(holds_two[flagged], kinds.features(vectors[flagged]) @ weights)) if holds_two[flagged].any() else 0.5,
    }


def run(size: int, work: Work) -> list[Row]:
    """A row per share of collages."""
    found = answers("label_kinds", "trials", [{"folder": str(work.images(size)), "n": size}])
    return [_row(share, [one for one in found if one["share"] == share]) for share in SHARES]


def _row(share: float, same: list[Row]) -> Row:
    total = {name: sum(one[name] for one in same) for name in same[0]}
    return {
        "collages": share,
        "of them flagged": total["flagged"] / len(same),
        "among the flagged": total["chance"] / len(same),
        "AUROC": total["AUROC"] / len(same),
        "called": total["called"] / len(same),
        "precision": total["hits"] / max(total["called"], 1),
        "recall": total["hits"] / max(total["of"], 1),
        "called of others": total["false"] / max(total["others"], 1),
        "both labels are candidates": total["both"] / max(total["hits"], 1),
    }


SIZES = {"quick": 400, "standard": 4_000, "large": 10_000}

BENCHMARK = Benchmark("label_kinds", "Is a picture of two things told from one between two classes?", "images", SIZES, run)
