"""Seeded vectors in place of embeddings: 1280 dimensions, not negative, many small entries, classes of several clusters that overlap."""

from __future__ import annotations

import numpy as np

DIM = 1280
N_CLASSES = 10
CLUSTERS = 4
"""Per class: one Gaussian per class would be the very model that one of the heads assumes."""
RANK = 128
SEPARATION = np.float32(0.6)
"""Distance of the clusters; gives an out-of-fold accuracy as of real photographs (0.8 to 0.9 on the true labels)."""
NOISE_RATE = 0.1
N_FOLDS = 5


def make(n: int, out: str, n_classes: int = N_CLASSES) -> dict[str, int]:
    """Write vectors (n, 1280) float32, labels with NOISE_RATE of them wrong, which ones are, and folds to out-*.npy."""
    rng = np.random.default_rng(11)
    true = rng.integers(0, n_classes, n)
    centres = rng.normal(size=(n_classes * CLUSTERS, RANK)).astype(np.float32)
    mixing = rng.normal(size=(RANK, DIM)).astype(np.float32) / np.float32(RANK**0.5)
    vectors = np.empty((n, DIM), np.float32)
    cluster = true * CLUSTERS + rng.integers(0, CLUSTERS, n)
    for start in range(0, n, 4096):
        part = slice(start, start + 4096)
        hidden = SEPARATION * centres[cluster[part]] + rng.standard_t(5, (len(true[part]), RANK)).astype(np.float32)
        noise = rng.normal(size=(len(hidden), DIM)).astype(np.float32)
        vectors[part] = np.maximum(hidden @ mixing + np.float32(0.5) * noise, 0)
    wrong = rng.random(n) < NOISE_RATE
    given = np.where(wrong, (true + rng.integers(1, n_classes, n)) % n_classes, true)
    folds = rng.permutation(np.arange(n) % N_FOLDS)
    for name, array in {"vectors": vectors, "given": given, "wrong": wrong, "folds": folds}.items():
        np.save(f"{out}-{name}.npy", array)
    return {"n": n}


def make_embeddings(n: int, out: str, n_classes: int = 100) -> dict[str, int]:
    """Write vectors as a network gives them of photographs, with planted copies, outliers and wrong labels, to out-*.npy.

    Classes of 8 clusters of very different size and width, heavy tails, 96 hidden directions of falling weight, rectified: nearest
    neighbours at cosine distance .2, local dimension 22 (photos of clothes: .25 and 23). given: codes. wrong: labels that were changed
    (8 %). source: row that a near-copy was made from (2 %; moved by 15 % noise in every entry), -1 for others. strange: outliers (1 %),
    which come from clusters of one.
    """
    rng = np.random.default_rng(23)
    weight = np.arange(1, 97, dtype=np.float32) ** np.float32(-0.6)
    weight /= np.sqrt(np.square(weight).mean())
    centres = np.repeat(rng.normal(size=(n_classes, 96)), 8, axis=0) + 0.7 * rng.normal(size=(8 * n_classes, 96))
    centres = centres.astype(np.float32) * weight
    share = np.concatenate([rng.permutation(1 / np.arange(1, 9)) for _ in range(n_classes)])
    width = rng.lognormal(0, 0.35, 8 * n_classes).astype(np.float32)
    mixing = rng.normal(size=(96, DIM)).astype(np.float32) / np.float32(96**0.5)
    cluster = rng.choice(8 * n_classes, n, p=share / share.sum())
    strange = rng.random(n) < 0.01
    vectors = np.lib.format.open_memmap(f"{out}-vectors.npy", "w+", np.float32, (n, DIM))
    for start in range(0, n, 8192):
        part = slice(start, start + 8192)
        at = cluster[part]
        tails = np.sqrt(rng.chisquare(4, (len(at), 1)) / 4).astype(np.float32)
        hidden = centres[at] + width[at, None] * weight * rng.normal(size=(len(at), 96)).astype(np.float32) / tails
        odd = strange[part]
        hidden[odd] = 1.3 * weight * rng.normal(size=(int(odd.sum()), 96))
        noise = rng.normal(size=(len(at), DIM)).astype(np.float32)
        vectors[part] = np.maximum(hidden @ mixing + np.float32(0.3) * noise - np.float32(0.3), 0)
    chosen = rng.permutation(np.flatnonzero(~strange))
    copies, originals = chosen[: n // 50], chosen[n // 50 : 2 * (n // 50)]
    for copy, original in zip(copies.tolist(), originals.tolist(), strict=True):
        vectors[copy] = vectors[original] * (1 + np.float32(0.15) * rng.normal(size=DIM).astype(np.float32))
    true = cluster // 8
    true[copies] = true[originals]
    source = np.full(n, -1)
    source[copies] = originals
    wrong = (rng.random(n) < 0.08) & ~strange
    given = np.where(wrong, (true + rng.integers(1, n_classes, n)) % n_classes, true)
    given[strange] = rng.integers(0, n_classes, int(strange.sum()))
    for name, array in {"given": given, "wrong": wrong, "source": source, "strange": strange}.items():
        np.save(f"{out}-{name}.npy", array)
    return {"n": n}


def recall(vectors: np.ndarray, rows: np.ndarray, found: np.ndarray) -> float:
    """Share of found (q, k), positions of others, that are among the k nearest of their row of `rows` (q,) by brute force.

    vectors: (n, d), which may be a file that is mapped. One as near as the k-th, up to the rounding of a product, is one of them.
    """
    asked = np.asarray(vectors[rows])
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    best = np.full(found.shape, -3, np.float32)
    of_found = np.empty(found.shape, np.float32)
    for start in range(0, len(vectors), 16_384):
        block = np.asarray(vectors[start : start + 16_384])
        products = asked @ (block / np.linalg.norm(block, axis=1, keepdims=True)).T
        at = np.nonzero((found >= start) & (found < start + len(block)))
        of_found[at] = products[at[0], found[at] - start]
        mine = np.flatnonzero((rows >= start) & (rows < start + len(block)))
        products[mine, rows[mine] - start] = -3
        best = -np.sort(-np.concatenate([best, products], axis=1), axis=1)[:, : found.shape[1]]
    return float((of_found >= best[:, -1:] - 1e-6).mean())
