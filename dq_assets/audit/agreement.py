"""How well out-of-fold probabilities agree with the labels as given: what the metadata of oof_probs says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.rows import Codes, Rows, blocks

Metrics = dict[str, float | list[float]]
N_BINS = 15
"""Bins of equal width for the expected calibration error."""


def agreement(probs: Rows, labels: Codes, folds: NDArray[np.integer], n_folds: int, *, order: Codes | None = None) -> Metrics:
    """Measures of the labelled rows, NaN where there are none; one pass over blocks.

    probs: (n, K). labels: (n,), -1 for unlabelled. folds: (n,) in [0, n_folds). order: (n,) the row of probs of each label, if
    they are in another order.

    log_loss: mean -log p of the given label, p at least 1e-7 (float32's resolution at 1). accuracy, accuracy_per_fold and
    log_loss_per_fold. ece: expected calibration error of the most probable class (15 bins; `audit.calibration` has the curve).
    prior_distance: half the sum of |mean probability - share of the
    labels| over the classes, in [0, 1]: 0 if the model has learnt how frequent the classes are.
    """
    n_classes = probs.shape[1]
    counts, right, loss = np.zeros(n_folds), np.zeros(n_folds), np.zeros(n_folds)
    bins = np.zeros((2, N_BINS))
    predicted, given = np.zeros(n_classes), np.zeros(n_classes)
    for part in blocks(len(labels), n_classes):
        rows = np.flatnonzero(labels[part] >= 0)
        if not rows.size or not n_classes:
            continue
        own, fold = labels[part][rows], folds[part][rows]
        block = probs[part if order is None else order[part]][rows]
        best = block.argmax(axis=1)
        hit, confidence = best == own, block[np.arange(rows.size), best].astype(np.float64)
        nats = -np.log(np.maximum(block[np.arange(rows.size), own].astype(np.float64), 1e-7))
        counts += np.bincount(fold, minlength=n_folds)
        right += np.bincount(fold, hit, n_folds)
        loss += np.bincount(fold, nats, n_folds)
        place = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
        bins += [np.bincount(place, weights, N_BINS) for weights in (confidence, hit)]
        predicted += block.sum(axis=0, dtype=np.float64)
        given += np.bincount(own, minlength=n_classes)
    n, nan = counts.sum(), float("nan")

    def share(total: NDArray[np.float64], of: NDArray[np.float64]) -> list[float]:
        return [float(t / o) if o else nan for t, o in zip(total, of, strict=True)]

    return {
        "log_loss": float(loss.sum() / n) if n else nan,
        "accuracy": float(right.sum() / n) if n else nan,
        "ece": float(np.abs(bins[0] - bins[1]).sum() / n) if n else nan,
        "prior_distance": float(np.abs(predicted - given).sum() / (2 * n)) if n else nan,
        "accuracy_per_fold": share(right, counts),
        "log_loss_per_fold": share(loss, counts),
    }
