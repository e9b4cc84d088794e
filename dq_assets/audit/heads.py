"""Linear models of the class given the vector, for all folds from the same sums: LDA, ridge and multinomial logistic regression.

Linear discriminant analysis (shared covariance, shrinkage of Friedman 1989) and ridge regression on one-hot labels need only sums over
the images: the Gram matrix, the class sums and the class counts. The model of a fold is solved from the totals minus the fold's own
sums. Logistic regression has no closed form; it climbs a quadratic bound of its likelihood (Boehning 1992), whose curvature is half that
Gram matrix, with Nesterov's momentum, for all folds at once, on a sample.

What they see of a vector is in `audit.features`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.features import BLOCK, Codes, Double, Features, Float
from dq_assets.audit.threads import map_in_order, one_thread_each

STEPS = (4, 32)
"""Fewest and most steps; in between as many as STEP_OPERATIONS allow. On 4,000 photos 4 and 8 gave the same average
precision of wrong labels within .01; 8 dimensions want 30, and get them in no time."""
STEP_OPERATIONS = 1e10
_SUMMED = 2 * BLOCK
"""Rows of a product at most: each adds D x D to the totals."""
_LEARNT = 1250
"""Rows that a core learns from at a time."""


@dataclass(frozen=True)
class Sums:
    """Gram matrix (F, D, D), class sums (F, K, D) and class counts (F, K) of each fold's labelled rows; D is `Features.dim`."""

    gram: Double
    sums: Double
    counts: Double

    @classmethod
    def of(cls, features: Features, labels: Codes, folds: NDArray[np.integer], n_folds: int, n_classes: int) -> Sums:
        """One pass over the labelled rows; products in float32 per block, totals in float64."""
        import torch

        d = features.dim
        total = cls(np.zeros((n_folds, d, d)), np.zeros((n_folds, n_classes, d)), np.zeros((n_folds, n_classes)))
        np.add.at(total.counts, (folds[labels >= 0], labels[labels >= 0]), 1.0)
        of_fold = [np.flatnonzero((folds == fold) & (labels >= 0)) for fold in range(n_folds)]
        parts = [(fold, part) for fold, own in enumerate(of_fold) for part in np.array_split(own, max(-(-own.size // _SUMMED), 1))]

        def products(part: tuple[int, Codes]) -> tuple[Float, Float]:
            block = features.rows(part[1])
            # By NumPy, which computes half of a matrix times itself; on AMD in two thirds of the time that PyTorch takes for that half.
            gram: Float = block.T @ block
            return gram, torch.zeros(n_classes, d).index_add_(0, torch.from_numpy(labels[part[1]]), torch.from_numpy(block)).numpy()

        for (fold, _), (gram, sums) in zip(parts, one_thread_each(products, parts), strict=True):
            total.gram[fold] += gram
            total.sums[fold] += sums
        return total


@dataclass(frozen=True)
class Train:
    """What the heads need of a fold's training rows: moments (D, D) as float32, class means (K, D), counts (K,).

    second is the mean of x x'. dim: `Features.dim` before they were reduced to their row space; the mean variance is over that many.
    """

    second: Float
    means: Double
    counts: Double
    dim: int

    @property
    def share(self) -> Double:
        """(K,) of each class, 0 of all without any row."""
        return np.asarray(self.counts / max(self.counts.sum(), 1.0))

    def first(self, dim: int) -> Train:
        """The same of the first entries of each row."""
        return Train(self.second[:dim, :dim], self.means[:, :dim], self.counts, dim)

    def scatter(self, means: Double, share: Double) -> Float:
        """(D, D) round these means, (k, D), each of a share of the rows."""
        between: Float = (means.T * share).astype(np.float32) @ means.astype(np.float32)
        return np.subtract(self.second, between, out=between)


@dataclass(frozen=True)
class Linear:
    """logits = row of Features @ weights + bias; the bias of a class without training rows is -inf."""

    weights: Float
    bias: Float


def trains(sums: Sums, dim: int) -> list[Train]:
    """For each fold the totals minus the fold."""
    whole, all_sums, all_counts = sums.gram.sum(axis=0), sums.sums.sum(axis=0), sums.counts.sum(axis=0)

    def train(fold: int) -> Train:
        counts, class_sums = all_counts - sums.counts[fold], all_sums - sums.sums[fold]
        second = whole - sums.gram[fold]
        second /= max(counts.sum(), 1.0)
        return Train(second.astype(np.float32), class_sums / np.maximum(counts, 1.0)[:, None], counts, dim)

    return list(map_in_order(train, range(len(sums.counts))))


def lda(train: Train, shrinkage: float) -> Linear:
    """Bayes rule for Gaussian classes with means of their own and one covariance, shrunk towards its mean variance."""
    weights = _solve(train.scatter(train.means, train.share), 1 - shrinkage, shrinkage / train.dim, train.means.T)
    with np.errstate(divide="ignore"):
        bias = np.log(train.share) - 0.5 * np.einsum("kd,dk->k", train.means, weights)
    return Linear(weights, bias.astype(np.float32))


def ridge(train: Train, penalty: float) -> Linear:
    """Least squares on one-hot labels with a penalty; the intercept is not penalised."""
    share = train.share
    mean = share @ train.means
    weights = _solve(train.scatter(mean[None], np.ones(1)), 1.0, penalty / train.dim, ((train.means - mean) * share[:, None]).T)
    bias = np.where(share > 0, share - mean @ weights, -np.inf)
    return Linear(weights, bias.astype(np.float32))


def uniform(train: Train) -> Linear:
    """The head of a fold that has nothing to learn from."""
    n_classes, d = train.means.shape
    return Linear(np.zeros((d, n_classes), dtype=np.float32), np.zeros(n_classes, dtype=np.float32))


def steps(n_rows: int, n_weights: int) -> int:
    """Steps for each penalty. n_weights: of all folds."""
    return int(np.clip(STEP_OPERATIONS / (4 * n_rows * n_weights), *STEPS))


def logistic(
    trains: list[Train],
    rows: Float,
    labels: Codes,
    folds: Codes,
    *,
    penalties: tuple[float, ...],
    wanted: slice,
    start: list[Linear],
    share: float,
) -> list[list[Linear]]:
    """Multinomial logistic regression for each penalty of each wanted fold, all in the same products.

    Each goes from `start`, whose intercepts it keeps. trains, start: of all folds; start is LDA, divided by its temperature. rows: (S, D)
    rows of Features, all labelled, by labels and folds, (S,). penalties: in units of the mean eigenvalue. share: S of the labelled rows.
    Not run to convergence: what a few steps reach predicts as well.
    """
    import torch

    own = np.arange(len(trains))[wanted]
    n_folds, n_penalties, (n_classes, d) = len(own), len(penalties), trains[0].means.shape
    # A row teaches all folds but its own.
    learns = (folds[:, None] != own).astype(np.float32)
    learns /= np.maximum(learns.sum(axis=0), 1.0)
    bias = np.stack([start[fold].bias for fold in own])
    # Weights are rows here, (penalty x fold x class, D): so products take two thirds of the time.
    weights = np.tile(np.concatenate([start[fold].weights.T for fold in own]), (n_penalties, 1))
    # The bound is of all labelled rows; a sample's largest eigenvalues exceed it by about this factor.
    slack = 1.0 if share == 1.0 else (1.0 + (d / max(len(rows), 1)) ** 0.5) ** 2
    eigenvalues = np.array([max(float(np.trace(one.second, dtype=np.float64)) / one.dim, 1e-6) for one in trains], np.float32)
    second = np.float32(0.5 * slack) * _bound(trains)
    bounds = list(one_thread_each(lambda penalty: _factor(second.copy(), penalty * float(eigenvalues.max())), penalties))
    add = np.outer(np.array(penalties, np.float32), eigenvalues[own]).ravel().repeat(n_classes)[:, None]

    def slope(part: slice) -> Float:
        """Of the likelihood of some rows at `ahead`."""
        logits = (rows[part] @ ahead.T).reshape(-1, n_penalties, n_folds, n_classes)
        excess = torch.softmax(torch.from_numpy(logits).add_(torch.from_numpy(bias)), dim=3).numpy()
        excess[np.arange(len(excess)), :, :, labels[part]] -= 1.0
        excess *= learns[part, None, :, None]
        found: Float = excess.reshape(len(excess), -1).T @ rows[part]
        return found

    parts = [slice(at, at + _LEARNT) for at in range(0, len(rows), _LEARNT)]
    ahead, momentum = weights, 1.0
    for _ in range(steps(len(rows), len(trains) * n_classes * d)):
        total = (sum(one_thread_each(slope, parts), np.float32(0)) + add * ahead).reshape(n_penalties, -1, d)
        descent = one_thread_each(lambda one: _solved(one[0], one[1].T).T, zip(bounds, total, strict=True))
        following = ahead - np.concatenate(list(descent))
        grown = (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
        ahead = following + np.float32((momentum - 1.0) / grown) * (following - weights)
        weights, momentum = following, grown
    found = weights.reshape(n_penalties, n_folds, n_classes, d)
    return [[Linear(np.ascontiguousarray(one.T), bias[f]) for f, one in enumerate(of_folds)] for of_folds in found]


def _bound(trains: list[Train]) -> Float:
    """(D, D) no fold's mean of x x' exceeds it: that of all rows, times all over the fewest training rows. One factor serves all folds."""
    counts = np.array([one.counts.sum() for one in trains])
    weights = counts / counts[counts > 0].min(initial=np.inf) / max(len(trains) - 1, 1)
    total = np.zeros_like(trains[0].second)
    for weight, one in zip(weights, trains, strict=True):
        total += np.float32(weight) * one.second
    return total


def _solve(matrix: Float, keep: float, add: float, right: Double) -> Float:
    """(keep * matrix + add * trace * identity)^-1 right, in float32: 4 times faster than float64 at d = 1280. matrix is changed."""
    # Rows have a length of about 1, so rounding is below 1e-6; that much keeps constant vectors, without any spread, solvable.
    add = add * max(float(np.trace(matrix, dtype=np.float64)), 0.0) + 1e-6
    matrix *= np.float32(keep)
    return _solved(_factor(matrix, add), np.asfortranarray(right, np.float32))


def _factor(matrix: Float, add: float) -> Float | Double:
    """Cholesky factor, lower, of symmetric matrix + add * identity, to which matrix is changed; float64 where float32 cannot."""
    from scipy.linalg import lapack

    matrix[np.diag_indices_from(matrix)] += np.float32(add)
    factor, failed = lapack.spotrf(matrix.T, lower=1, clean=0)  # in the order that LAPACK reads; what is above the diagonal stays
    if failed:  # not positive definite in float32's precision
        factor, failed = lapack.dpotrf(matrix.astype(np.float64) + 1e-6 * np.eye(len(matrix)), lower=1, clean=0)
    if failed:
        raise ValueError("The spread of the vectors is no number. Are there vectors of very different lengths? Embed the images again.")
    found: Float | Double = factor
    return found


def _solved(factor: Float | Double, right: Float) -> Float:
    """(D, k) float32, whatever the factor is."""
    from scipy.linalg import lapack

    solve = lapack.spotrs if factor.dtype == np.float32 else lapack.dpotrs
    found: Float = solve(factor, right, lower=1)[0].astype(np.float32, copy=False)
    return found
