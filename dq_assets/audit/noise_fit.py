"""The class-dependent reading of `confident`: true class k, of probability q_k ∝ p_k ** s, is written down as j with T[k, j].

T is fitted by expectation maximisation. Only the cells of T that an image can be in are kept up: 600,000 of 50,000 images at most,
whatever the number of classes; the others hold their prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Float = NDArray[np.float32]
Double = NDArray[np.float64]

PRIOR_IMAGES = 5.0
"""Strength of the prior of each row of T, in images: the overall error rate, spread evenly over the other classes."""
ITERATIONS = 40
ENOUGH = 5e-4
"""An iteration that changes the number of wrong labels by less than this share of it is the last."""


@dataclass(frozen=True)
class Fit:
    """counts: (u,) expected images in each cell, prior excluded, as they entered the last step, and rate: the pooled share of errors
    then. wrong: the number of wrong labels. likelihood: mean log-likelihood of the given labels."""

    counts: Double
    rate: float
    wrong: float
    likelihood: float


@dataclass(frozen=True)
class Cells:
    """The cells of T that matter. keys: (u,) true class * K + given class, ascending. place: (m, c) cell of each candidate of each image.
    true: (t,) the true classes that have cells, and sizes: (t,) how many. right: the cells on the diagonal. learnable: (K,)."""

    keys: Codes
    place: Codes
    true: Codes
    sizes: Codes
    right: Codes
    learnable: NDArray[np.bool_]

    @classmethod
    def of(cls, classes: NDArray[np.int32], learnable: NDArray[np.bool_]) -> Cells:
        """classes: (c, m) of `Candidates`: column 0 is the given class."""
        n_classes = len(learnable)
        cells = classes.T.astype(np.int64) * n_classes + classes[:, 0]
        number = np.zeros(n_classes * n_classes, np.int32)
        number[cells.ravel()] = 1
        keys = np.flatnonzero(number)
        number[keys] = np.arange(keys.size, dtype=np.int32)
        # In C order, as all that it meets in the fit: otherwise a step takes half as long again.
        place = np.ascontiguousarray(number[cells], np.int64)
        true, sizes = np.unique(keys // n_classes, return_counts=True)
        return cls(keys, place, true, sizes, np.flatnonzero(keys // n_classes == keys % n_classes), learnable)

    def transition(self, fit: Fit) -> Double:
        """(K, K) the whole T of a fit."""
        others = np.outer(self.learnable, self.learnable) & ~np.eye(len(self.learnable), dtype=bool)
        evenly = others / np.maximum(others.sum(axis=1, keepdims=True), 1)
        counts: Double = PRIOR_IMAGES * ((1 - fit.rate) * np.eye(len(self.learnable)) + fit.rate * evenly)
        counts.ravel()[self.keys] += fit.counts
        result: Double = counts / counts.sum(axis=1, keepdims=True)
        return result


def fit(cells: Cells, log_ratio: Float, start: Codes, sharpness: tuple[float, ...]) -> dict[float, Fit]:
    """A fit for each sharpness; each starts from what the one before found.

    log_ratio: (c, m) log of p over the largest p of the image. start: (K, K) images by given (row) and true class (column).
    """
    ratios = np.ascontiguousarray(log_ratio.T)
    counts = start.T.ravel()[cells.keys].astype(np.float64)
    totals = start.sum(axis=0).astype(np.float64)
    found = {}
    for one in sharpness:
        q = np.exp(np.float32(one) * ratios)
        q /= q.sum(axis=0)
        found[one], counts, totals = _maximised(cells, q, counts, totals)
    return found


def _maximised(cells: Cells, q: Float, counts: Double, totals: Double) -> tuple[Fit, Double, Double]:
    """The fit, and the counts and totals by true class that it ended with. q: (m, c)."""
    n, wrong, right = q.shape[1], np.inf, cells.right
    first = np.cumsum(cells.sizes) - cells.sizes
    posterior = np.empty(q.shape)
    for _ in range(ITERATIONS):
        before, entered = wrong, counts
        # A pooled rate of exactly 0 could never leave it: half an image is what "none seen" means.
        rate = max(float(1.0 - counts[right].sum() / totals.sum()), 0.5 / n)
        elsewhere = PRIOR_IMAGES * rate / (cells.learnable.sum() - 1)
        transition = counts + elsewhere
        transition[right] += PRIOR_IMAGES * (1.0 - rate) - elsewhere
        transition *= np.repeat(1.0 / (totals[cells.true] + PRIOR_IMAGES), cells.sizes)
        np.take(transition, cells.place, out=posterior, mode="clip")  # clip: in place, without a copy
        posterior *= q
        evidence = posterior.sum(axis=0)
        posterior *= 1.0 / evidence
        counts = np.bincount(cells.place.ravel(), posterior.ravel(), cells.keys.size).astype(np.float64, copy=False)
        totals = np.zeros_like(totals)
        totals[cells.true] = np.add.reduceat(counts, first)
        wrong = float(totals.sum() - counts[right].sum())
        if abs(wrong - before) <= ENOUGH * max(wrong, 1.0):
            break
    return Fit(entered, rate, wrong, float(np.log(evidence).mean())), counts, totals


def gain(cells: Cells, fit: Fit, log_ratio: Float, sharpness: float) -> float:
    """By how many nats per image a class-dependent fit explains the given labels better than errors to any class alike, as sharp.

    Each image is explained by the others: its own share is taken from the cells first. Else a cell that one image fills explains that
    image well, and 1,000 classes have many such cells.
    """
    q = np.exp(np.float32(sharpness) * np.ascontiguousarray(log_ratio.T))
    q /= q.sum(axis=0)
    n_classes = int(cells.learnable.sum())
    prior = np.full(cells.keys.size, PRIOR_IMAGES * fit.rate / (n_classes - 1))
    prior[cells.right] = PRIOR_IMAGES * (1.0 - fit.rate)
    totals = np.add.reduceat(fit.counts, np.cumsum(cells.sizes) - cells.sizes)
    inside, of_class = fit.counts[cells.place], np.repeat(totals, cells.sizes)[cells.place]
    posterior = q * (inside + prior[cells.place]) / (of_class + PRIOR_IMAGES)
    posterior /= posterior.sum(axis=0)
    others = np.maximum(inside - posterior, 0.0) + prior[cells.place]
    explained = (q * others / (np.maximum(of_class - posterior, 0.0) + PRIOR_IMAGES)).sum(axis=0)
    right, rate, before = q[0].astype(np.float64), fit.rate, np.inf
    elsewhere = (1.0 - right) / (n_classes - 1)
    for _ in range(ITERATIONS):
        alike = (1.0 - rate) * right + rate * elsewhere
        if abs(rate - before) <= ENOUGH * rate:
            break
        rate, before = float(np.clip((rate * elsewhere / alike).mean(), 1e-6, 1 - 1e-6)), rate
    return float((np.log(np.maximum(explained, 1e-300)) - np.log(np.maximum(alike, 1e-300))).mean())
