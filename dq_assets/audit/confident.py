"""Which given labels are wrong: the confident joint, the joint of given and true label, and the table label_issues.

`confident_joint` and `calibrated_joint` are the published counts (Northcutt et al. 2021, Confident Learning). `label_noise` takes
more readings of the number of errors, weighs them (`errors.estimate`), and gives each label its probability of being wrong.

Out-of-fold probabilities are calibrated to the labels as given, so they say how probable it is that a label reads so, not that
it is right. One reading, which also says what a wrong label should have been: the true class k has probability q_k, proportional to
p_k ** sharpness; it is written down as j with probability T[k, j]. T is fitted by expectation maximisation, for each sharpness of a
grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit import errors
from dq_assets.audit.candidates import top_classes

Codes = NDArray[np.int64]
Float = NDArray[np.float32]
Double = NDArray[np.float64]

GENTLE = 1.4
SHARPNESS = (2.0, 2.8, 4.0)
"""Exponents of the probabilities that are tried. Below 2 the likelihood explains errors between similar classes as honest doubt (40 of
515 counted, with 2 it is 288); uniform noise of 40 % picks 3 to 4. GENTLE is tried too, as a low reading."""
PRIOR_IMAGES = 5.0
"""Strength of the prior of each row of T, in images: the overall error rate, spread evenly over the other classes."""
MAX_CANDIDATES = 12
"""True classes that are considered per image: the given one and the most probable others."""
_ITERATIONS = 40
_FIT_ROWS = 200_000
_BLOCK_CELLS = 2_000_000

ISSUES_SCHEMA: dict[str, Any] = {
    "image_id": pl.Int64,
    "given_label": pl.String,
    "suggested_label": pl.String,
    "label_score": pl.Float32,
    "is_label_issue": pl.Boolean,
    "p_given": pl.Float32,
    "p_suggested": pl.Float32,
    "error_probability": pl.Float32,
    "kind": pl.String,
    "candidate_labels": pl.List(pl.String),
}


@dataclass(frozen=True)
class LabelNoise:
    """What is known of each checked label. m is at most MAX_CANDIDATES; column 0 is the given class, the others descend by p.

    rows: (c,) positions of the checked images. classes: (c, m) true classes considered, -1 where there are fewer.
    probs: (c, m) their out-of-fold probabilities. log_odds: (c,) of the label being wrong. posterior: (c, m) P(true class | image,
    given label), rows sum to 1. estimate: the number of wrong labels. transition: (K, K) probability that true class k is given as j,
    rows sum to 1, and sharpness: the exponent, of the likeliest class-dependent fit.
    """

    rows: Codes
    classes: NDArray[np.int32]
    probs: Float
    log_odds: Double
    posterior: Double
    estimate: errors.Estimate
    transition: Double
    sharpness: float

    def joint(self, given: Codes) -> Double:
        """(K, K) expected number of checked images with given label j (row) and true label k (column)."""
        n_classes = len(self.transition)
        used = self.classes >= 0
        cells = (given[self.rows][:, None] * n_classes + self.classes)[used]
        return _table(cells, self.posterior[used], n_classes)

    def rates(self, given: Codes) -> tuple[Double, Double, Double]:
        """Each (K,): mean error probability of the images given as each class, by the lowest estimate, the estimate and the highest.

        NaN for a class without checked images.
        """
        n_classes = len(self.transition)
        own = given[self.rows]
        checked = np.bincount(own, minlength=n_classes).astype(np.float64)

        def rate(log_odds: Double) -> Double:
            sums = np.bincount(own, errors.probability(log_odds), n_classes)
            result: Double = np.divide(sums, checked, out=np.full(n_classes, np.nan), where=checked > 0)
            return result

        middle = rate(self.log_odds)
        low, high = (rate(errors.error_log_odds(self.probs, count)) for count in (self.estimate.low, self.estimate.high))
        return np.minimum(low, middle), middle, np.maximum(middle, high)


def class_thresholds(labels: Codes, probs: Float) -> Double:
    """(K,) mean probability of class k over the images given as k, at least 2e-6; 2 (never confident) for a class without images.

    labels: (n,), -1 for unlabelled. probs: (n, K).
    """
    n_classes = probs.shape[1]
    counts, total = np.zeros(n_classes), np.zeros(n_classes)
    for part in _blocks(len(labels), n_classes):
        rows = np.flatnonzero(labels[part] >= 0)
        own = labels[part][rows]
        counts += np.bincount(own, minlength=n_classes)
        total += np.bincount(own, probs[part][rows, own].astype(np.float64), n_classes)
    return np.where(counts > 0, np.maximum(total / np.maximum(counts, 1), 2e-6), 2.0)


def confident_joint(labels: Codes, probs: Float, thresholds: Double) -> Codes:
    """(K, K) count of images given as j (row) that are confidently k (column): p_k >= threshold_k - 1e-6.

    Of several such classes the most probable one of them counts, as in the paper (cleanlab takes the argmax over all classes;
    no decision differed in 15 runs). Images without such a class are not counted. The diagonal is at least 1.
    """
    n_classes = probs.shape[1]
    joint = np.zeros((n_classes, n_classes), dtype=np.int64)
    least = (thresholds - 1e-6).astype(np.float32)
    for part in _blocks(len(labels), n_classes):
        confident = np.where(probs[part] >= least, probs[part], np.float32(-1))
        true = confident.argmax(axis=1)
        counted = (labels[part] >= 0) & (confident[np.arange(len(true)), true] >= 0)
        cells = labels[part][counted] * n_classes + true[counted]
        joint += np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)
    np.fill_diagonal(joint, np.maximum(np.diag(joint), 1))
    return joint


def calibrated_joint(joint: Codes, counts: Codes) -> Codes:
    """(K, K) the confident joint scaled so that row j sums to counts[j], in whole images (largest remainders, lower class first).

    joint: (K, K) of `confident_joint`. counts: (K,) images given as each class. The estimated number of errors is the sum off
    the diagonal. A class without images has a row of zeros.
    """
    exact = joint / joint.sum(axis=1, keepdims=True) * counts[:, None]
    whole = np.floor(exact).astype(np.int64)
    missing = counts - whole.sum(axis=1)
    rank = np.argsort(np.argsort(whole - exact, axis=1, kind="stable"), axis=1, kind="stable")
    result: Codes = whole + (rank < missing[:, None])
    return result


def label_noise(given: Codes, probs: Float, learnable: NDArray[np.bool_]) -> LabelNoise:
    """Fit the noise of the given labels and the posterior over each checked image's true class.

    given: (n,) codes, -1 for unlabelled. probs: (n, K) out-of-fold. learnable: (K,). Checked are the images of a learnable class,
    if there are at least two such classes; other classes are not considered as true ones. Deterministic; the fit uses up to
    200,000 evenly spaced images and the memory of n x MAX_CANDIDATES cells, never of n x K.
    """
    n_classes = probs.shape[1]
    labelled = given >= 0
    checked = np.zeros(len(given), dtype=bool)
    if learnable.sum() >= 2:
        checked[labelled] = learnable[given[labelled]]
    rows = np.flatnonzero(checked)
    classes, top = _candidates(given, probs, rows, np.flatnonzero(learnable))
    supported = top.sum(axis=1) > 0
    rows, classes, top = rows[supported], classes[supported], top[supported]
    if not rows.size:
        nothing = errors.Estimate(0.0, 0.0, 0.0)
        return LabelNoise(rows, classes, top, np.zeros(0), np.zeros(top.shape), nothing, np.eye(n_classes), SHARPNESS[0])
    codes = np.where(checked, given, -1)
    counts = np.bincount(codes[rows], minlength=n_classes)
    start = calibrated_joint(confident_joint(codes, probs, class_thresholds(codes, probs)), counts)
    fit = np.linspace(0, rows.size - 1, min(rows.size, _FIT_ROWS)).astype(np.int64)
    fits = {one: _transition(given[rows[fit]], classes[fit], _sharpened(top[fit], one), start, learnable) for one in (GENTLE, *SHARPNESS)}
    sharpness = max(SHARPNESS, key=lambda one: fits[one].likelihood)
    sample = top[fit]
    estimate = errors.estimate(
        errors.Readings(
            n=len(sample),
            disagreement=errors.disagreement(sample),
            joint=float(start.sum() - np.trace(start)) * len(sample) / rows.size,
            uniform=errors.uniform(sample, int(learnable.sum())),
            by_class=fits[sharpness].wrong,
            gentle=fits[GENTLE].wrong,
            sharpness=max(fits, key=lambda one: fits[one].likelihood),
            crowded=errors.crowded(sample),
        )
    ).times(rows.size / len(sample))
    log_odds = errors.error_log_odds(top, estimate.count)
    transition = fits[sharpness].transition
    posterior, _ = _posterior(given[rows], classes, _sharpened(top, sharpness), transition)
    wrong = errors.probability(log_odds)
    posterior[:, 1:] *= (wrong / np.maximum(posterior[:, 1:].sum(axis=1), 1e-300))[:, None]
    posterior[:, 0] = 1.0 - posterior[:, 1:].sum(axis=1)
    return LabelNoise(rows, classes, top, log_odds, posterior, estimate, transition, sharpness)


def label_issues(
    image_id: Codes,
    given: Codes,
    probs: Float,
    *,
    class_names: list[str],
    learnable: NDArray[np.bool_],
    settings: settings.Labels,
) -> pl.DataFrame:
    """Table label_issues, one row per image in the order given.

    image_id, given: (n,), codes of class_names, -1 for unlabelled. probs: (n, K) out-of-fold. learnable: (K,).
    error_probability is that of `label_noise` and sums to the estimated number of errors; label_score is its complement, exact also
    where it is nearly 0; a label is flagged above `settings.flag_above`. Images that are unlabelled, of a class that is not learnable, or
    without an alternative have nulls: not checked. kind is ambiguous if p_given is at least `ambiguous_ratio` of p_suggested,
    else mislabeled; never multi_label, which one softmax over exclusive classes cannot tell from ambiguous.
    """
    noise = label_noise(given, probs, learnable)
    right, wrong = errors.probability(-noise.log_odds), errors.probability(noise.log_odds)
    flagged = wrong > settings.flag_above
    column = _suggestion(noise, flagged)
    at = np.arange(noise.rows.size)
    p_given, p_suggested = noise.probs[:, 0], noise.probs[at, column]
    names = pl.Series(class_names, dtype=pl.String)
    ambiguous = p_given >= settings.ambiguous_ratio * p_suggested
    checked = pl.DataFrame(
        {
            "row": noise.rows,
            "suggested_label": names.gather(noise.classes[at, column]),
            "label_score": right.astype(np.float32),
            "is_label_issue": flagged,
            "p_given": p_given,
            "p_suggested": p_suggested,
            "error_probability": wrong.astype(np.float32),
            "kind": pl.Series(["mislabeled", "ambiguous"]).gather(ambiguous.astype(np.int64)).set(pl.Series(~flagged), None),
            "candidate_labels": _candidate_labels(noise, names, settings.candidate_ratio),
        }
    )
    given_label = names.gather(pl.Series(given).set(pl.Series(given < 0), None))
    every = pl.DataFrame({"row": np.arange(len(given)), "image_id": image_id, "given_label": given_label})
    joined = every.join(checked, on="row", how="left", maintain_order="left")
    empty = pl.lit([], dtype=pl.List(pl.String))
    joined = joined.with_columns(pl.col("candidate_labels").fill_null(empty))
    return joined.select(pl.col(name).cast(kind) for name, kind in ISSUES_SCHEMA.items())


def _blocks(n: int, n_classes: int) -> Iterator[slice]:
    """Slices of rows that hold about _BLOCK_CELLS probabilities each."""
    step = max(1, _BLOCK_CELLS // max(n_classes, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _candidates(given: Codes, probs: Float, rows: Codes, learnable: Codes) -> tuple[NDArray[np.int32], Float]:
    """(c, m) classes and their probabilities: the given one, then the most probable other learnable ones."""
    width = max(min(learnable.size, MAX_CANDIDATES), 1)
    return top_classes(given, probs, rows, learnable, width)


def _sharpened(top: Float, exponent: float) -> Double:
    powers = np.power(top / top.max(axis=1, keepdims=True), exponent, dtype=np.float64)
    result: Double = powers / powers.sum(axis=1, keepdims=True)
    return result


def _posterior(given: Codes, classes: NDArray[np.int32], q: Double, transition: Double) -> tuple[Double, Double]:
    """(c, m) P(true class | image, given label) and (c,) P(given label | image)."""
    joint = q * transition[classes, given[:, None]]
    evidence = joint.sum(axis=1)
    return joint / evidence[:, None], evidence


@dataclass(frozen=True)
class _Fit:
    """A (K, K) transition, the number of wrong labels by it, and the mean log-likelihood of the given labels."""

    transition: Double
    wrong: float
    likelihood: float


def _transition(given: Codes, classes: NDArray[np.int32], q: Double, start: Codes, learnable: NDArray[np.bool_]) -> _Fit:
    """The transition by expectation maximisation."""
    n_classes = len(start)
    others = np.outer(learnable, learnable) & ~np.eye(n_classes, dtype=bool)
    evenly = others / np.maximum(others.sum(axis=1, keepdims=True), 1)
    cells = classes.astype(np.int64) * n_classes + given[:, None]
    counts: Double = start.T.astype(np.float64)
    transition = np.eye(n_classes)
    for _ in range(_ITERATIONS):
        error_rate = 1.0 - np.trace(counts) / counts.sum()
        # A pooled rate of exactly 0 could never leave it: half an image is what "none seen" means.
        error_rate = max(error_rate, 0.5 / len(given))
        counts = counts + PRIOR_IMAGES * ((1 - error_rate) * np.eye(n_classes) + error_rate * evenly)
        transition = counts / counts.sum(axis=1, keepdims=True)
        posterior, evidence = _posterior(given, classes, q, transition)
        counts = _table(cells.ravel(), posterior.ravel(), n_classes)
    return _Fit(transition, float(counts.sum() - np.trace(counts)), float(np.log(evidence).mean()))


def _table(cells: Codes, weights: Double, n_classes: int) -> Double:
    """(K, K) sums of the weights by cell number, row * K + column."""
    flat: Double = np.bincount(cells, weights, n_classes * n_classes).astype(np.float64)
    return flat.reshape(n_classes, n_classes)


def _suggestion(noise: LabelNoise, flagged: NDArray[np.bool_]) -> Codes:
    """(c,) column of the suggested class: for a flagged label the likeliest other true class, else the most probable class."""
    if noise.classes.shape[1] < 2:
        return np.zeros(noise.rows.size, dtype=np.int64)
    other = 1 + noise.posterior[:, 1:].argmax(axis=1)
    result: Codes = np.where(flagged, other, noise.probs.argmax(axis=1)).astype(np.int64)
    return result


def _candidate_labels(noise: LabelNoise, names: pl.Series, ratio: float) -> pl.Series:
    """(c,) lists of the names of the classes with at least `ratio` of the top probability, most probable first."""
    order = np.argsort(-noise.probs, axis=1, kind="stable")
    ordered = np.take_along_axis(noise.probs, order, axis=1)
    kept = (ordered >= ratio * ordered[:, :1]) & (ordered > 0)
    row, place = np.nonzero(kept)
    flat = pl.DataFrame({"row": row, "name": names.gather(noise.classes[row, order[row, place]])})
    # Every checked row has a positive probability, so every row has at least its top class.
    return flat.group_by("row", maintain_order=True).agg("name")["name"].cast(pl.List(pl.String))
