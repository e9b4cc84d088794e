"""How far the out-of-fold probabilities can be believed: the reliability curve and its expected calibration error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

N_BINS = 15
"""Bins of equal width, as in Guo et al. 2017 and in the metrics of `oof`."""

_Z = 1.959964
"""Two-sided 95 % of the normal distribution."""

BINS_SCHEMA = {
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "mean_probability": pl.Float64,
    "agreement": pl.Float64,
    "agreement_low": pl.Float64,
    "agreement_high": pl.Float64,
}


@dataclass(frozen=True)
class Reliability:
    """bins: one row per bin that holds an image, BINS_SCHEMA, ascending. ece: in [0, 1], 0 is best; None without a labelled image."""

    bins: pl.DataFrame
    n: int
    ece: float | None


def reliability(blocks: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> Reliability:
    """Probability of the most probable class against how often it is the given label (DeGroot and Fienberg 1983).

    blocks: (probs (b, K), given label codes (b,), -1 for unlabelled, which are left out); one pass, only sums are kept.
    agreement has the 95 % interval of Wilson 1927. ece is the mean of |agreement - mean probability| over the images of the bins
    (Guo et al. 2017). Agreement is with the labels as given: wrong labels count as disagreement.
    """
    count, right, total = np.zeros(N_BINS), np.zeros(N_BINS), np.zeros(N_BINS)
    for probs, given in blocks:
        rows = np.flatnonzero(given >= 0)
        if not rows.size or not probs.shape[1]:
            continue
        best = probs.argmax(axis=1)[rows]
        confidence = probs[rows, best].astype(np.float64)
        at = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
        count += np.bincount(at, minlength=N_BINS)
        right += np.bincount(at, weights=best == given[rows], minlength=N_BINS)
        total += np.bincount(at, weights=confidence, minlength=N_BINS)
    n = int(count.sum())
    used = np.flatnonzero(count)
    share, mean = right[used] / count[used], total[used] / count[used]
    low, high = _wilson(share, count[used])
    edges = np.linspace(0, 1, N_BINS + 1)
    columns = (edges[used], edges[used + 1], count[used].astype(np.int64), mean, share, low, high)
    bins = pl.DataFrame(dict(zip(BINS_SCHEMA, columns, strict=True)), schema=BINS_SCHEMA)
    return Reliability(bins, n, float((np.abs(share - mean) * count[used]).sum() / n) if n else None)


def _wilson(share: NDArray[np.float64], n: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score interval of a share of n."""
    centre = share + _Z**2 / (2 * n)
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return np.maximum((centre - half) / scale, 0.0), np.minimum((centre + half) / scale, 1.0)
