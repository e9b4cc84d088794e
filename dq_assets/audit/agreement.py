"""How well out-of-fold probabilities agree with the labels as given: what the metadata of oof_probs says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.rows import Codes, Float, Rows, blocks

Metrics = dict[str, float | list[float]]
N_BINS = 15
"""Bins of equal width for the expected calibration error."""


class Agreement:
    """Measures of labelled rows, NaN where there are none, from blocks of probabilities that come once and in any order.

    n_classes, n_folds: K and the number of folds.

    log_loss: mean -log p of the given label, p at least 1e-7 (float32's resolution at 1). accuracy, accuracy_per_fold and
    log_loss_per_fold. ece: expected calibration error of the most probable class (15 bins; `audit.calibration` has the curve).
    prior_distance: half the sum of |mean probability - share of the
    labels| over the classes, in [0, 1]: 0 if the model has learnt how frequent the classes are.
    """

    def __init__(self, n_classes: int, n_folds: int) -> None:
        self._counts, self._right, self._loss = np.zeros(n_folds), np.zeros(n_folds), np.zeros(n_folds)
        self._bins = np.zeros((2, N_BINS))
        self._predicted, self._given = np.zeros(n_classes), np.zeros(n_classes)

    def add(self, probs: Float, labels: Codes, folds: NDArray[np.integer]) -> None:
        """probs: (b, K). labels: (b,), -1 for unlabelled. folds: (b,) in [0, n_folds)."""
        n_classes, n_folds = len(self._given), len(self._counts)
        rows = np.flatnonzero(labels >= 0)
        if not rows.size or not n_classes:
            return
        own, fold = labels[rows], folds[rows]
        block = probs if rows.size == len(probs) else probs[rows]
        best = block.argmax(axis=1)
        hit, confidence = best == own, block[np.arange(rows.size), best].astype(np.float64)
        nats = -np.log(np.maximum(block[np.arange(rows.size), own].astype(np.float64), 1e-7))
        self._counts += np.bincount(fold, minlength=n_folds)
        self._right += np.bincount(fold, hit, n_folds)
        self._loss += np.bincount(fold, nats, n_folds)
        place = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
        self._bins += [np.bincount(place, weights, N_BINS) for weights in (confidence, hit)]
        self._predicted += block.sum(axis=0, dtype=np.float64)
        self._given += np.bincount(own, minlength=n_classes)

    def metrics(self) -> Metrics:
        """Of all that was added."""
        n, nan = self._counts.sum(), float("nan")

        def share(total: NDArray[np.float64]) -> list[float]:
            return [float(t / o) if o else nan for t, o in zip(total, self._counts, strict=True)]

        return {
            "log_loss": float(self._loss.sum() / n) if n else nan,
            "accuracy": float(self._right.sum() / n) if n else nan,
            "ece": float(np.abs(self._bins[0] - self._bins[1]).sum() / n) if n else nan,
            "prior_distance": float(np.abs(self._predicted - self._given).sum() / (2 * n)) if n else nan,
            "accuracy_per_fold": share(self._right),
            "log_loss_per_fold": share(self._loss),
        }


def agreement(probs: Rows, labels: Codes, folds: NDArray[np.integer], n_folds: int, *, order: Codes | None = None) -> Metrics:
    """The metrics of `Agreement` in one pass over blocks of probs, (n, K); other arguments as there.

    order: (n,) the row of probs of each label, if they are in another order.
    """
    found = Agreement(probs.shape[1], n_folds)
    for part in blocks(len(labels), probs.shape[1]):
        found.add(probs[part if order is None else order[part]], labels[part], folds[part])
    return found.metrics()
