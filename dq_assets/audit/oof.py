"""Out-of-fold class probabilities from vectors: three linear heads (`audit.heads`), calibrated and averaged.

Their geometric mean is a hedge. LDA is the base; another head counts as much if its out-of-fold log-loss is no higher, and less the
higher it is. It counts no more if its log-loss is lower, as what predicts the labels as given better also learns how they go wrong
(docs/decisions/0012, 0015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit import heads
from dq_assets.audit.agreement import Agreement
from dq_assets.audit.features import BLOCK, Codes, Features, Float
from dq_assets.audit.heads import Linear, Sums, Train
from dq_assets.audit.threads import one_thread_each

SHRINKAGE = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.85)
"""LDA: share of the covariance that is replaced by its mean variance. 3,952 x 1280 wants .3 to .6, 50,000 x 1280 less, 8 dimensions .01."""
PENALTY = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridge: the penalty in units of the mean eigenvalue of the centred Gram matrix."""
LOGISTIC_PENALTY = (0.1, 0.01, 0.001, 0.0001)
"""In units of the mean eigenvalue. 4,000 photos want .1, 50,000 vectors .01. What is weaker is tried where many steps can be afforded."""
TOLERANCE = 0.05
"""A log-loss that is higher than that of LDA by this much, in nats, divides the weight by e. .03 to .15 differ by .001 on average."""
PILOT_ROWS = 2_000
"""Shrinkage and penalty are chosen on as many rows, by whole folds: of 10,000 rows of five folds, on one."""
LEAST_PER_CLASS = 50
"""With fewer images per class in the sample there is no logistic head: it would need them all, and they would take hours."""
_NEWTON_STEPS = 30
_MOST_TEMPERATURE = 3_000.0
_PREDICTED = 1024
_SAMPLE_CELLS = 4_000_000
_SAMPLE_ROWS = (2_000, 10_000)


@dataclass(frozen=True)
class OofResult:
    """probs: float32 (n, K), rows sum to 1. metrics: what the fit chose and how well it agrees with the given labels."""

    probs: Float
    metrics: dict[str, float | list[float]]


class OofStream:
    """Out-of-fold probabilities that are computed while they are read: of 1.28 million x 1000 they are as large as the vectors.

    shape: (n, K). metrics: those of `oof_probabilities`; what compares with the labels is there once `blocks` has come to its end.
    """

    def __init__(
        self,
        predict: Callable[[slice], Float],
        labels: NDArray[np.int64],
        folds: NDArray[np.integer],
        n_classes: int,
        metrics: dict[str, float | list[float]],
    ) -> None:
        self.shape, self.metrics = (len(labels), n_classes), metrics
        self._predict, self._labels, self._folds = predict, labels, folds

    def blocks(self) -> Iterator[Float]:
        """(b, K) rows, in order. Read to the end, once; the next blocks are computed while the reader has this one."""
        n = self.shape[0]
        found = Agreement(self.shape[1], int(self._folds.max(initial=-1)) + 1)
        start = 0
        for probs in one_thread_each(self._predict, (slice(at, min(at + BLOCK, n)) for at in range(0, n, BLOCK))):
            part = slice(start, start := start + len(probs))
            found.add(probs, self._labels[part], self._folds[part])
            yield probs
        if self.shape[1] and (self._labels >= 0).any():
            self.metrics.update(found.metrics())


@dataclass(frozen=True)
class _Attempt:
    """One head with one value of its setting: a model per fold, the sample's logits, their best temperature and log-loss."""

    value: float
    heads: list[Linear]
    logits: Float
    temperature: float
    loss: float


def oof_probabilities(vectors: Float, labels: NDArray[np.int64], folds: NDArray[np.integer], n_classes: int) -> OofResult:
    """`oof_stream` as one array of n x K."""
    stream = oof_stream(vectors, labels, folds, n_classes)
    probs, start = np.empty(stream.shape, dtype=np.float32), 0
    for block in stream.blocks():
        probs[start : start + len(block)] = block
        start += len(block)
    return OofResult(probs, stream.metrics)


def oof_stream(vectors: Float, labels: NDArray[np.int64], folds: NDArray[np.integer], n_classes: int) -> OofStream:
    """Score every row once, by the model of the labelled rows of all other folds.

    vectors: float32 (n, d), any scale; never copied whole. labels: (n,) class codes, -1 for unlabelled (such rows are scored,
    not learnt from). folds: (n,) in [0, F). Gives probs over all n_classes columns; a class without a labelled row in the
    training folds gets probability 0 there, and a fold without any training row gets the uniform distribution.

    Shrinkage, penalties, temperatures and weights come from the out-of-fold log-loss against the given labels, on up to 10,000 evenly
    spaced labelled rows, on which the logistic head is also fitted. Probabilities are therefore calibrated to the labels as given, errors
    included.

    metrics: temperature (divisor of the averaged logits); for lda, ridge and logistic, `_temperature`, `_log_loss` (of that head alone, on
    the sample) and `_weight` (in the mean; 0 for a head that was not fitted); shrinkage, penalty, logistic_penalty; waves; ece_before and
    ece_after (15 bins, on the sample, without and with the temperatures); n_classes, n_labelled; and those of
    `audit.agreement.Agreement`. Measures against labels are NaN if no row is labelled.

    Memory: F d x d matrices in float64 (65 MB at d = 1280, F = 5), the sample (100 MB) and blocks of the answer. Raises ValueError for
    vectors that are not finite, and for labels or folds out of range.
    """
    _check(vectors, labels, folds, n_classes)
    n = len(vectors)
    n_folds = int(folds.max(initial=-1)) + 1
    labelled = np.flatnonzero(labels >= 0)
    features = Features.of(vectors, labelled.size)

    def uniform(part: slice) -> Float:
        return np.full((part.stop - part.start, n_classes), np.float32(1 / max(n_classes, 1)))

    if n_classes <= 1 or n == 0 or labelled.size == 0:
        return OofStream(uniform, labels, folds, n_classes, _no_metrics(n_classes, labelled.size, n_folds))
    if labelled.size < features.dim:
        features = features.without_waves()
    dim = features.dim
    if labelled.size < dim:
        features = features.in_row_space(labelled)
    features, models, metrics = _fit(features, labels, folds, Sums.of(features, labels, folds, n_folds, n_classes), dim=dim)

    def predict(part: slice) -> Float:
        order = np.argsort(folds[part], kind="stable")
        logits = np.empty((len(order), n_classes), np.float32)
        for at in (order[start : start + _PREDICTED] for start in range(0, len(order), _PREDICTED)):
            logits[at] = _logits(features.rows(part.start + at), folds[part][at], models)
        return _softmax(logits)

    metrics |= {"n_classes": float(n_classes), "n_labelled": float(labelled.size)}
    return OofStream(predict, labels, folds, n_classes, metrics)


def _check(vectors: Float, labels: NDArray[np.int64], folds: NDArray[np.integer], n_classes: int) -> None:
    if vectors.ndim != 2 or not len(vectors) == len(labels) == len(folds):
        raise ValueError(f"vectors {vectors.shape}, labels {labels.shape} and folds {folds.shape} do not fit. Give one of each per image.")
    if len(labels) and (labels.min() < -1 or labels.max() >= n_classes):
        raise ValueError(f"labels are not all in [-1, {n_classes}). Give the codes of the classes, -1 for unlabelled.")
    if len(folds) and folds.min() < 0:
        raise ValueError("folds has a negative number. Give every image a fold.")


@dataclass(frozen=True)
class _Trial:
    """The sample on which settings are chosen, and what the heads learn from.

    unit: (S, D) rows of `Features`, in the order of their folds; every attempt scores them. given, in_fold: (S,). scored: (S,) the class of
    the other rows is in none of their training folds. trains: of each fold. pilot: on so many first folds a setting is chosen, as each try
    of each fold solves D x D.
    """

    unit: Float
    given: Codes
    in_fold: Codes
    scored: NDArray[np.bool_]
    trains: list[Train]
    pilot: int

    @classmethod
    def of(cls, features: Features, labels: Codes, folds: NDArray[np.integer], sums: Sums, *, dim: int) -> _Trial:
        """dim: as of `heads.trains`."""
        sample = _sample(labels, sums.counts.shape[1])
        sample = sample[np.argsort(folds[sample], kind="stable")]
        given, in_fold = labels[sample], folds[sample].astype(np.int64)
        scored = (sums.counts.sum(axis=0) - sums.counts)[in_fold, given] > 0
        enough = np.bincount(in_fold[scored], minlength=len(sums.counts)).cumsum() >= PILOT_ROWS
        pilot = int(enough.argmax()) + 1 if enough.any() else len(sums.counts)
        return cls(features.gathered(sample), given, in_fold, scored, heads.trains(sums, dim), pilot)

    def first(self, dim: int) -> _Trial:
        """The same on the first entries of each row."""
        return replace(self, unit=np.ascontiguousarray(self.unit[:, :dim]), trains=[one.first(dim) for one in self.trains])

    def attempt(self, value: float, models: list[Linear]) -> _Attempt:
        """models: of the first folds, or of all."""
        rows = slice(0, int(np.searchsorted(self.in_fold, len(models))))
        scored = self.scored[rows]
        logits = _logits(self.unit[rows], self.in_fold[rows], models)[scored]
        return _Attempt(value, models, logits, *_temperature(logits, self.given[rows][scored]))

    def closed(self, kind: Callable[[Train, float], Linear], grid: tuple[float, ...]) -> _Attempt:
        """The best of the grid of a head with a solution in closed form."""

        def solved(values: tuple[float, ...], folds: list[Train]) -> list[list[Linear]]:
            pairs = [(value, one) for value in values for one in folds]
            found = list(one_thread_each(lambda pair: kind(pair[1], pair[0]) if pair[1].counts.any() else heads.uniform(pair[1]), pairs))
            return [found[at : at + len(folds)] for at in range(0, len(found), len(folds))]

        def attempts(values: tuple[float, ...]) -> list[_Attempt]:
            return [self.attempt(*one) for one in zip(values, solved(values, self.trains[: self.pilot]), strict=True)]

        best = _descend(attempts, grid)
        if self.pilot == len(self.trains):
            return best
        return self.attempt(best.value, best.heads + solved((best.value,), self.trains[self.pilot :])[0])

    def logistic(self, lda: _Attempt, n_labelled: int) -> _Attempt:
        """The best logistic regression from LDA on."""
        factor = np.float32(1 / lda.temperature)
        start = [Linear(factor * one.weights, factor * one.bias) for one in lda.heads]

        def solved(penalties: tuple[float, ...], wanted: slice) -> list[list[Linear]]:
            share = len(self.given) / n_labelled
            sample = self.unit, self.given, self.in_fold
            return heads.logistic(self.trains, *sample, penalties=penalties, wanted=wanted, start=start, share=share)

        few_steps = heads.steps(len(self.given), sum(one.weights.size for one in start)) == heads.STEPS[0]
        penalties = LOGISTIC_PENALTY[:2] if few_steps else LOGISTIC_PENALTY
        tried = solved(penalties, slice(0, self.pilot))
        best = min((self.attempt(*one) for one in zip(penalties, tried, strict=True)), key=lambda one: one.loss)
        if self.pilot == len(self.trains):
            return best
        return self.attempt(best.value, best.heads + solved((best.value,), slice(self.pilot, len(self.trains)))[0])


def _fit(
    features: Features, labels: Codes, folds: NDArray[np.integer], sums: Sums, *, dim: int
) -> tuple[Features, list[Linear], dict[str, float | list[float]]]:
    """The features without waves if they do not lower the log-loss of LDA, one calibrated model per fold, and what was chosen.

    dim: `features.dim` before they were reduced to their row space.
    """
    trial = _Trial.of(features, labels, folds, sums, dim=dim)
    lda = trial.closed(heads.lda, SHRINKAGE)
    if features.n_waves:
        linear = features.without_waves()
        without = trial.first(linear.dim)
        lda_without = without.closed(heads.lda, SHRINKAGE)
        if lda_without.loss <= lda.loss:
            features, trial, lda = linear, without, lda_without
    found = {"lda": lda, "ridge": trial.closed(heads.ridge, PENALTY)}
    if len(trial.given) >= LEAST_PER_CLASS * sums.counts.shape[1]:
        found["logistic"] = trial.logistic(lda, int((labels >= 0).sum()))
    models, metrics = _combined(found, trial.given[trial.scored])
    return features, models, metrics | {"waves": float(features.n_waves)}


def _combined(found: dict[str, _Attempt], given: Codes) -> tuple[list[Linear], dict[str, float | list[float]]]:
    """The calibrated geometric mean of the heads, for each fold, and the metrics.

    given: labels of the rows of their logits.
    """
    weights = _weights([one.loss for one in found.values()], found["lda"].loss)
    logits = [one.logits for one in found.values()]
    cooled = weights / [one.temperature for one in found.values()]
    mean = _weighted(cooled, logits)
    temperature, _ = _temperature(mean, given)
    # All heads are linear, so their weighted mean is one matrix.
    models = [
        Linear(*(_weighted(cooled / temperature, parts) for parts in ([one.weights for one in alike], [one.bias for one in alike])))
        for alike in zip(*(one.heads for one in found.values()), strict=True)
    ]
    nan, weight = float("nan"), dict(zip(found, weights.tolist(), strict=True))
    metrics: dict[str, float | list[float]] = {"temperature": temperature}
    for name, value in (("lda", "shrinkage"), ("ridge", "penalty"), ("logistic", "logistic_penalty")):
        one = found.get(name)
        metrics |= {
            value: one.value if one else nan,
            f"{name}_weight": weight.get(name, 0.0),
            f"{name}_temperature": one.temperature if one else nan,
            f"{name}_log_loss": one.loss if one else nan,
        }
    return models, metrics | {
        "ece_before": _ece(_softmax(_weighted(weights, logits)), given),
        "ece_after": _ece(_softmax(mean / np.float32(temperature)), given),
    }


def _weights(losses: list[float], base: float) -> NDArray[np.float64]:
    """Of each head, by what its log-loss is above the base; the sum is 1. Equal if nothing was scored."""
    excess = [max(loss - base, 0.0) if np.isfinite(loss) else 0.0 for loss in losses]
    weights = np.exp(-np.minimum(np.array(excess) / TOLERANCE, 50.0))  # above 0: 0 times a bias of -inf would be no number
    return np.asarray(weights / weights.sum())


def _descend(attempts: Callable[[tuple[float, ...]], list[_Attempt]], grid: tuple[float, ...]) -> _Attempt:
    """The best of the grid, from the three in its middle downhill: the log-loss had one minimum in every trial."""
    at = len(grid) // 2
    three = attempts(grid[at - 1 : at + 2])
    step = min((0, -1, 1), key=lambda one: three[1 + one].loss)
    best, at = three[1 + step], at + step
    while step and 0 <= at + step < len(grid):
        other = attempts((grid[at + step],))[0]
        if other.loss >= best.loss:
            break
        best, at = other, at + step
    return best


def _weighted(weights: NDArray[np.float64], arrays: list[Float]) -> Float:
    total = np.zeros_like(arrays[0])
    for weight, array in zip(weights, arrays, strict=True):
        total += np.float32(weight) * array
    return total


def _sample(labels: Codes, n_classes: int) -> Codes:
    """Evenly spaced labelled rows."""
    rows = np.flatnonzero(labels >= 0)
    most = int(np.clip(_SAMPLE_CELLS // n_classes, *_SAMPLE_ROWS))
    return rows if rows.size <= most else rows[np.linspace(0, rows.size - 1, most).astype(np.int64)]


def _logits(rows: Float, folds: NDArray[np.integer], models: list[Linear]) -> Float:
    """(b, K), each of the rows of `Features` by its fold's model. folds: (b,), ascending."""
    logits = np.empty((len(rows), models[0].bias.size), dtype=np.float32)
    ends = np.searchsorted(folds, np.arange(len(models) + 1))
    for model, start, end in zip(models, ends, ends[1:], strict=False):
        own = logits[start:end]
        np.matmul(rows[start:end], model.weights, out=own)
        own += model.bias
    return logits


def _temperature(logits: Float, given: Codes) -> tuple[float, float]:
    """The divisor of the logits with the lowest log-loss, and that log-loss (Guo et al. 2017). (1, inf) for no rows.

    By Newton's method: the log-loss is convex in the factor 1 / temperature.
    """
    if not given.size:
        return 1.0, float("inf")
    below = logits - logits.max(axis=1, keepdims=True)
    finite: Float = np.where(np.isfinite(below), below, np.float32(0))
    own = float(below[np.arange(given.size), given].mean(dtype=np.float64))
    # Starts where the typical logit is 1: the curvature is neither flat nor steep there.
    spread = float(-finite.mean(dtype=np.float64))
    start = factor = 1.0 / spread if spread > 0 else 1.0
    loss = np.inf
    for _ in range(_NEWTON_STEPS):
        probs = np.exp(np.float32(factor) * below)
        total = probs.sum(axis=1)
        probs /= total[:, None]
        mean = np.einsum("nk,nk->n", probs, finite)
        slope = float(mean.mean(dtype=np.float64) - own)
        bend = float((np.einsum("nk,nk,nk->n", probs, finite, finite) - mean**2).mean(dtype=np.float64))
        loss = float(np.log(total).mean(dtype=np.float64) - factor * own)
        step = float(np.clip(-slope / bend, -0.8 * factor, 4.0 * factor)) if bend > 0 else 0.0
        if abs(step) < 1e-3 * factor:
            break
        factor = float(np.clip(factor + step, start / _MOST_TEMPERATURE, start * _MOST_TEMPERATURE))
    return 1.0 / factor, loss


def _softmax(logits: Float) -> Float:
    result: Float = logits - logits.max(axis=1, keepdims=True)
    np.exp(result, out=result)
    result /= result.sum(axis=1, keepdims=True)
    return result


def _ece(probs: Float, given: NDArray[np.int64]) -> float:
    """Expected calibration error of the most probable class, 15 bins of equal width."""
    if not given.size:
        return float("nan")
    right = probs.argmax(axis=1) == given
    confidence = probs.max(axis=1)
    bins = np.minimum((confidence * 15).astype(np.int64), 14)
    gap = np.bincount(bins, weights=right - confidence.astype(np.float64), minlength=15)
    return float(np.abs(gap).sum() / given.size)


def _no_metrics(n_classes: int, n_labelled: int, n_folds: int) -> dict[str, float | list[float]]:
    """Metrics where nothing is fitted."""
    names = ["log_loss", "accuracy", "ece_before", "ece_after", "shrinkage", "penalty", "logistic_penalty", "waves"]
    names += [f"{head}_{what}" for head in ("lda", "ridge", "logistic") for what in ("weight", "log_loss", "temperature")]
    nothing: dict[str, float | list[float]] = {name: float("nan") for name in names}
    counts = {"temperature": 1.0, "n_classes": float(n_classes), "n_labelled": float(n_labelled)}
    return nothing | counts | {"accuracy_per_fold": [float("nan")] * n_folds}
