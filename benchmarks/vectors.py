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


def make(n: int, out: str) -> dict[str, int]:
    """Write vectors (n, 1280) float32, labels with NOISE_RATE of them wrong, which ones are, and folds to out-*.npy."""
    rng = np.random.default_rng(11)
    true = rng.integers(0, N_CLASSES, n)
    centres = rng.normal(size=(N_CLASSES * CLUSTERS, RANK)).astype(np.float32)
    mixing = rng.normal(size=(RANK, DIM)).astype(np.float32) / np.float32(RANK**0.5)
    vectors = np.empty((n, DIM), np.float32)
    cluster = true * CLUSTERS + rng.integers(0, CLUSTERS, n)
    for start in range(0, n, 4096):
        part = slice(start, start + 4096)
        hidden = SEPARATION * centres[cluster[part]] + rng.standard_t(5, (len(true[part]), RANK)).astype(np.float32)
        noise = rng.normal(size=(len(hidden), DIM)).astype(np.float32)
        vectors[part] = np.maximum(hidden @ mixing + np.float32(0.5) * noise, 0)
    wrong = rng.random(n) < NOISE_RATE
    given = np.where(wrong, (true + rng.integers(1, N_CLASSES, n)) % N_CLASSES, true)
    folds = rng.permutation(np.arange(n) % N_FOLDS)
    for name, array in {"vectors": vectors, "given": given, "wrong": wrong, "folds": folds}.items():
        np.save(f"{out}-{name}.npy", array)
    return {"n": n}
