"""Which given labels are wrong: the confident joint, the joint of given and true label, and the table label_issues.

`confident_joint` and `calibrated_joint` are the published counts (Northcutt et al. 2021, Confident Learning). `label_noise` takes
more readings of the number of errors, weighs them (`errors.estimate`), and gives each label its probability of being wrong.

Out-of-fold probabilities are calibrated to the labels as given, so they say how probable it is that a label reads so, not that
it is right. One reading, which also says what a wrong label should have been, is fitted in `noise_fit`, for each sharpness of a grid.

The probabilities are read once, for the candidates of each image; all else is computed from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit import errors, noise_fit
from dq_assets.audit.candidates import top_classes
from dq_assets.audit.rows import Codes, Float, Rows, Streamed, blocks

Double = NDArray[np.float64]

GENTLE = 1.4
SHARPNESS = (2.0, 2.8, 4.0)
"""Exponents of the probabilities that are tried. Below 2 the likelihood explains errors between similar classes as honest doubt (40 of
515 counted, with 2 it is 288); uniform noise of 40 % picks 3 to 4. GENTLE is tried too, as a low reading."""
MAX_CANDIDATES = 12
"""True classes that are considered per image: the given one and the most probable others."""
_FIT_ROWS = 50_000

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

    rows: (c,) positions of the checked images. classes: (c, m) true classes considered. probs: (c, m) their out-of-fold
    probabilities. right: (c,) whether the given class is the most probable of all. score: (c,) by what the labels are ranked, highest is
    worst, and log_odds: (c,) of the label being wrong. estimate: the number of wrong labels. transition: (K, K) probability that true
    class k is given as j, rows sum to 1, and sharpness: the exponent, of the likeliest class-dependent fit.
    """

    rows: Codes
    classes: NDArray[np.int32]
    probs: Float
    right: NDArray[np.bool_]
    score: Double
    log_odds: Double
    estimate: errors.Estimate
    transition: Double
    sharpness: float

    def posterior(self, part: slice | Codes) -> Double:
        """(b, m) P(true class | image, given label) of some of the c rows; sums to 1, and to the error probability but for column 0."""
        top = self.probs[part]
        with np.errstate(divide="ignore"):  # in float32: 12 million powers of float64 take a second
            powers = np.exp(np.float32(self.sharpness) * np.log(top / _highest(top)[:, None]))
        result: Double = np.take(self.transition.ravel(), self._cells(part), mode="clip") * powers
        result[:, 0] = 0.0
        result *= (errors.probability(self.log_odds[part]) / np.maximum(result.sum(axis=1), 1e-300))[:, None]
        result[:, 0] = 1.0 - result.sum(axis=1)
        return result

    def _cells(self, part: slice | Codes) -> Codes:
        """(b, m) true class * K + given class of the candidates of some of the c rows."""
        classes = self.classes[part].astype(np.int64)
        cells: Codes = classes * len(self.transition) + classes[:, :1]
        return cells

    def joint(self) -> Double:
        """(K, K) expected number of checked images with given label j (row) and true label k (column)."""
        n_classes = len(self.transition)
        total = np.zeros(n_classes * n_classes)
        for part in blocks(self.rows.size, self.classes.shape[1]):
            total += np.bincount(self._cells(part).ravel(), self.posterior(part).ravel(), n_classes * n_classes)
        return total.reshape(n_classes, n_classes).T

    def expected_wrong(self, given: Codes) -> tuple[Double, Double, Double]:
        """Each (K,): expected wrong labels among the checked images given as each class, by the lowest estimate, the estimate and the
        highest."""
        own, n_classes = given[self.rows], len(self.transition)

        def sums(log_odds: Double) -> Double:
            return np.bincount(own, errors.probability(log_odds), n_classes).astype(np.float64, copy=False)

        middle = sums(self.log_odds)
        low, high = (sums(errors.error_log_odds(self.score, count)) for count in (self.estimate.low, self.estimate.high))
        return np.minimum(low, middle), middle, np.maximum(middle, high)


def class_thresholds(own: Codes, p_given: Float, n_classes: int) -> Double:
    """(K,) mean probability of class k over the images given as k, at least 2e-6; 2 (never confident) for a class without images.

    own, p_given: (c,) given class and its probability.
    """
    counts = np.bincount(own, minlength=n_classes)
    total = np.bincount(own, p_given.astype(np.float64), n_classes)
    return np.where(counts > 0, np.maximum(total / np.maximum(counts, 1), 2e-6), 2.0)


def confident_joint(classes: NDArray[np.int32], top: Float, thresholds: Double) -> Codes:
    """(K, K) count of images given as j (row) that are confidently k (column): p_k >= threshold_k - 1e-6.

    classes, top: (c, m) of `Candidates`. Of several such classes the most probable one of them counts, as in the paper (cleanlab
    takes the argmax over all classes; no decision differed in 15 runs). Images without such a class are not counted; a class beyond
    the m most probable ones is not looked at. The diagonal is at least 1.
    """
    n_classes = len(thresholds)
    joint = np.zeros(n_classes * n_classes, dtype=np.int64)
    least = (thresholds - 1e-6).astype(np.float32)
    for part in blocks(len(top), top.shape[1]):
        p, found = top[part].ravel(), classes[part].ravel()
        cells = np.flatnonzero(p >= least.min())  # few, which saves looking up the thresholds of all
        cells = cells[p[cells] >= least[found[cells]]]
        row = cells // top.shape[1]
        leads = np.flatnonzero(np.diff(row, prepend=-1))
        # Columns descend but for the first: the most probable confident class is the first one of its row, or the next.
        follows = np.minimum(leads + 1, cells.size - 1)
        better = (row[follows] == row[leads]) & (p[cells[follows]] > p[cells[leads]])
        chosen = cells[np.where(better, follows, leads)]
        joint += np.bincount(classes[part][row[leads], 0].astype(np.int64) * n_classes + found[chosen], minlength=n_classes * n_classes)
    result = joint.reshape(n_classes, n_classes)
    np.fill_diagonal(result, np.maximum(np.diag(result), 1))
    return result


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


def label_noise(given: Codes, probs: Rows | Streamed, learnable: NDArray[np.bool_]) -> LabelNoise:
    """Fit the noise of the given labels and the posterior over each checked image's true class.

    given: (n,) codes, -1 for unlabelled. probs: (n, K) out-of-fold, read once. learnable: (K,). Checked are the images of a learnable
    class, if there are at least two such classes; other classes are not considered as true ones. Deterministic; the fit uses up to
    50,000 evenly spaced images and the memory of n x MAX_CANDIDATES cells, never of n x K.
    """
    n_classes = probs.shape[1]
    labelled = given >= 0
    checked = np.zeros(len(given), dtype=bool)
    if learnable.sum() >= 2:
        checked[labelled] = learnable[given[labelled]]
    rows, own = np.flatnonzero(checked), given[checked]
    width = max(min(int(learnable.sum()), MAX_CANDIDATES), 1)
    found = top_classes(given, probs, rows, np.flatnonzero(learnable), width)
    supported = _highest(found.probs) > 0
    thresholds = class_thresholds(own, found.probs[:, 0], n_classes)
    classes, top, right = found.classes, found.probs, found.right
    if not supported.all():
        rows, own, classes, top, right = rows[supported], own[supported], classes[supported], top[supported], right[supported]
    if not rows.size:
        nothing = errors.Estimate(0.0, 0.0, 0.0)
        return LabelNoise(rows, classes, top, right, np.zeros(0), np.zeros(0), nothing, np.eye(n_classes), SHARPNESS[0])
    start = calibrated_joint(confident_joint(classes, top, thresholds), np.bincount(own, minlength=n_classes))
    fit = np.linspace(0, rows.size - 1, min(rows.size, _FIT_ROWS)).astype(np.int64)
    sample = top[fit]
    cells = noise_fit.Cells.of(classes[fit], learnable)
    with np.errstate(divide="ignore"):
        ratios = np.log(sample / sample.max(axis=1, keepdims=True))
    fits = noise_fit.fit(cells, ratios, start, (GENTLE, *SHARPNESS))
    sharpness = max(SHARPNESS, key=lambda one: fits[one].likelihood)
    alike = errors.uniform(sample, int(learnable.sum()))
    weight = errors.class_weight(noise_fit.gain(cells, fits[sharpness], ratios, sharpness))
    estimate = errors.estimate(
        errors.Readings(
            n=len(sample),
            disagreement=errors.disagreement(sample),
            joint=float(start.sum() - np.trace(start)) * len(sample) / rows.size,
            uniform=alike.wrong,
            by_class=fits[sharpness].wrong,
            gentle=fits[GENTLE].wrong,
            plain=alike.plain,
            sharpness=max(fits, key=lambda one: fits[one].likelihood),
            classes=weight,
            crowded=errors.crowded(sample),
        )
    ).times(rows.size / len(sample))
    transition, score = cells.transition(fits[sharpness]), errors.scores(top)
    if weight > 0:
        score += weight * (_by_class(classes, top, transition) - score)
    return LabelNoise(rows, classes, top, right, score, errors.error_log_odds(score, estimate.count), estimate, transition, sharpness)


def label_issues(
    image_id: Codes,
    given: Codes,
    probs: Rows | Streamed,
    *,
    class_names: list[str],
    learnable: NDArray[np.bool_],
    settings: settings.Labels,
) -> pl.DataFrame:
    """`issues_of` the `label_noise` of these probabilities: (n, K) out-of-fold. learnable: (K,)."""
    return issues_of(label_noise(given, probs, learnable), image_id, given, class_names=class_names, settings=settings)


def issues_of(noise: LabelNoise, image_id: Codes, given: Codes, *, class_names: list[str], settings: settings.Labels) -> pl.DataFrame:
    """Table label_issues, one row per image in the order given.

    image_id, given: (n,), codes of class_names, -1 for unlabelled. noise: of the same images.
    error_probability is that of `label_noise` and sums to the estimated number of errors; label_score is its complement, exact also
    where it is nearly 0; a label is flagged above `settings.flag_above`. Images that are unlabelled, of a class that is not learnable, or
    without an alternative have nulls: not checked. kind is ambiguous if p_given is at least `ambiguous_ratio` of p_suggested,
    else mislabeled; multi_label, which one softmax over exclusive classes cannot tell from ambiguous, is found in `kinds`.
    """
    right, wrong = errors.probability(-noise.log_odds), errors.probability(noise.log_odds)
    flagged = wrong > settings.flag_above
    column = _suggestion(noise, flagged)
    at = np.arange(noise.rows.size)
    p_given, p_suggested = noise.probs[:, 0], noise.probs[at, column]
    names = pl.Series(class_names, dtype=pl.String)
    ambiguous = p_given >= settings.ambiguous_ratio * p_suggested
    checked = pl.DataFrame(
        {
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
    every = pl.DataFrame({"image_id": image_id, "given_label": given_label})
    row = np.full(len(given), -1)
    row[noise.rows] = at
    # Without a row to be checked by: nulls. A join takes three times as long.
    of_image = checked.select(pl.all().gather(pl.Series(row).set(pl.Series(row < 0), None)))
    empty = pl.lit([], dtype=pl.List(pl.String))
    joined = pl.concat([every, of_image], how="horizontal").with_columns(pl.col("candidate_labels").fill_null(empty))
    return joined.select(pl.col(name).cast(kind) for name, kind in ISSUES_SCHEMA.items())


def _by_class(classes: NDArray[np.int32], top: Float, transition: Double) -> Double:
    """(c,) log odds of a wrong label if true class k, of probability q_k ∝ p_k ** 2, is given as j with transition[k, j].

    Only ranks count here. With the likeliest exponent instead of 2 the order is as good.
    """
    result = np.empty(len(top))
    for part in blocks(*top.shape):
        cells = classes[part].astype(np.int64) * len(transition) + classes[part][:, :1]
        weighted = np.square(np.maximum(top[part], errors.LEAST), dtype=np.float64) * np.take(transition.ravel(), cells, mode="clip")
        result[part] = np.log(weighted[:, 1:].sum(axis=1)) - np.log(weighted[:, 0])
    return result


def _suggestion(noise: LabelNoise, flagged: NDArray[np.bool_]) -> Codes:
    """(c,) column of the suggested class: for a flagged label the likeliest other true class, else the most probable class."""
    if noise.classes.shape[1] < 2:
        return np.zeros(noise.rows.size, dtype=np.int64)
    column = (noise.probs[:, 1] > noise.probs[:, 0]).astype(np.int64)
    wrong = np.flatnonzero(flagged)
    column[wrong] = 1 + noise.posterior(wrong)[:, 1:].argmax(axis=1)
    return column


def _candidate_labels(noise: LabelNoise, names: pl.Series, ratio: float) -> pl.Series:
    """(c,) lists of the names of the classes with at least `ratio` of the top probability, most probable first."""
    p_given = noise.probs[:, 0]
    least = np.maximum(np.float32(ratio) * _highest(noise.probs), np.finfo(np.float32).smallest_subnormal)
    with_given = p_given >= least
    n_others, before_given = np.zeros((2, len(p_given)), dtype=np.int64)
    placed: list[tuple[Codes, Codes, NDArray[np.int32]]] = []  # rows, their places and their classes, for each column
    rows = np.arange(len(p_given))
    for column in range(1, noise.probs.shape[1]):
        rows = rows[noise.probs[rows, column] >= least[rows]]  # the columns descend: who drops out stays out
        if not rows.size:
            break
        behind = noise.probs[rows, column] <= p_given[rows]
        n_others[rows] += 1
        before_given[rows] += ~behind
        placed.append((rows, column - 1 + (with_given[rows] & behind), noise.classes[rows, column]))
    starts = np.concatenate([[0], np.cumsum(n_others + with_given)])
    classes = np.empty(starts[-1], dtype=np.int32)
    classes[(starts[:-1] + before_given)[with_given]] = noise.classes[with_given, 0]
    for rows, place, found in placed:
        classes[starts[rows] + place] = found
    # The offsets by polars, since pyarrow would import pandas to look at a NumPy array.
    lists = pa.LargeListArray.from_arrays(pl.Series(starts, dtype=pl.Int64).to_arrow(), names.gather(classes).to_arrow())
    return pl.Series(lists, dtype=pl.List(pl.String))


def _highest(probs: Float) -> Float:
    """(c,) the highest probability of each row of `LabelNoise`, whose columns descend from the second on."""
    result: Float = np.maximum(probs[:, 0], probs[:, min(1, probs.shape[1] - 1)])
    return result
