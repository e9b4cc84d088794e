"""How many given labels are wrong, and how probably each one is, from out-of-fold probabilities alone.

Labels and probabilities cannot tell a good model on labels that err where pictures are alike from a poor model on right labels: both
give the same probabilities. So the count rests on an assumption, whatever it is. Five readings are taken, each right under one:

- `disagreement`: the most probable class is not the given one. Right if the model is better than the labels.
- `joint`: the calibrated confident joint (`confident.calibrated_joint`). Right between the extremes.
- `uniform`: errors go to any other class alike. Two numbers, the rate and the sharpness of the doubts behind it, by maximum likelihood.
  Within 10 % of the truth where it holds, near 0 where errors depend on the image.
- `by_class`, `gentle`: errors depend on the class (`confident.label_noise`), with the likeliest sharpness of at least 2, and with 1.4.

`estimate` weighs them by what the probabilities do show: whether noise that ignores the model's doubts is there at all (`uniform` over
`gentle`) and how plainly (`plain`), whether the classes are apart (`crowded`), and whether the disagreements are more than that explains.
Its weights are geometric, since F1 bears a count that is off by a fifth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Float = NDArray[np.float32]
Double = NDArray[np.float64]

SHARPNESS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.4, 2.8, 3.4, 4.0, 5.0, 6.0)
"""Exponents tried for `uniform`. Uniform noise of 2, 10 and 40 % compresses good probabilities by 1.5, 2 to 3 and 6."""
SUREST = 0.02
"""Share of the images whose least probable class shows the noise that the probabilities contain."""
NEAR = 0.2
"""A margin below this share of the median margin is a doubt of the model. A temperature or label noise scales all margins alike."""
APART, MIXED = 0.085, 0.095
"""`crowded` of classes that are apart, and of classes that are not. Models with 0.3, 5, 6, 14 and 20 % of wrong predictions
had .01, .07, .08, .12 and .13; beyond that it says no more."""
OWN = 10.0
"""Wrong predictions of a model whose classes are apart, as a share of the images, per `crowded` squared."""
EXPLAINED = 2.0
"""From so many disagreements per mistake that `OWN` expects of the model they are more than its own, and from one in addition far more.
Pictures that look like another class had 1.0 to 1.9 at 2 % of errors, where the joint is the better count, and 1.5 to 2.9 at 10 %, where
all disagreements are."""
NO_MORE = (1.0, 1.4)
"""Disagreements per mistake that `OWN` expects, where classes are not apart: of no more than 1 few are errors. Weak models had .9 to 1.4 at
2 % of errors by picture, strong ones 1.2 and more at 10 % of errors at the boundary."""
BLIND = (0.3, 0.2)
"""Joint over disagreements where the joint sees enough, and where not: errors at the boundary between classes have below .2, mostly."""
WITHOUT_NOISE = (0.4, 0.6, 0.8, 1.0)
"""Exponents tried for the probabilities without noise: those of others may be too sure of themselves, which is no noise."""
NONE_SEEN = (0.2, 0.0)
"""`uniform` over `gentle`. Errors to any class alike had .1 to 1.75, errors that depend on the picture 0 to .4."""
PLAIN_NOISE = (0.0, 0.1)
"""`Uniform.plain` of errors that depend on the picture is 0 to .1 (.25 in photos, which hold plain errors of their own), of such with a
fifth that do not .01 to .4, of errors to any class alike .1 to .8; with 35 % and more of wrong predictions it is .01 to .1 whatever the
errors are."""
ALIKE = (0.0, 0.6)
"""`uniform` over `gentle` of errors that depend on the picture, and of errors to any class alike. Photos of the former had .1 to .2, with a
fifth of the latter .3 to .65; few errors to any class alike had .4 to .9, and .2 under a model with 30 % of wrong predictions."""
MOSTLY_ALIKE = (1.0, 0.5)
"""`uniform` over `gentle` where most errors go to any class alike, and where most do not."""
SLOPES = (1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 10.0)
PLAIN_CLASSES = (0.05, 0.12)
"""`noise_fit.gain` in nats: errors that depend on the picture gain up to .075, errors of 10 % class to class .06 to .12."""
FLAGGED = 0.9
LOWER, HIGHER = 0.9, 1.15
"""The interval reaches beyond the least and the largest reading by these factors: with 1 it held the truth in 84 to 90 % of the trials,
with these in 95 to 98 %."""
LEAST = 1e-7
"""Float32's resolution at 1: smaller probabilities are alike."""
_TINY = 1e-12
_START_ROWS = 20_000
"""Rows whose sum of probabilities gives the start for all: half as many steps over all of a million rows."""
_ITERATIONS = 40
_ENOUGH = 1e-4
"""A step of `uniform` that changes the rate by less than this share of it is the last."""


@dataclass(frozen=True)
class Uniform:
    """wrong: number of wrong labels if errors go to any other class alike. plain: by how many nats this explains the given labels better
    than the model's doubts alone, per nat of entropy of which labels are wrong; 0 and more."""

    wrong: float
    plain: float


@dataclass(frozen=True)
class Readings:
    """Numbers of wrong labels among n checked images, each under an assumption of its own; see the module.

    plain: of `Uniform`. sharpness: the likeliest exponent of the class-dependent fits, from 1.4. classes: `class_weight`. crowded: share of
    images whose margin, the log ratio of the two most probable classes, is at most NEAR times the median margin.
    """

    n: int
    disagreement: float
    joint: float
    uniform: float
    by_class: float
    gentle: float
    plain: float
    sharpness: float
    classes: float
    crowded: float


@dataclass(frozen=True)
class Estimate:
    """Estimated number of wrong labels, and the lowest and highest that an assumption allows. Not a confidence interval."""

    count: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """The estimate of a set that the sample stands for."""
        return Estimate(self.count * factor, self.low * factor, self.high * factor)


def disagreement(top: Float) -> float:
    """How many rows have a class that is more probable than the given one. top: (n, m), column 0 is the given class."""
    return float((top[:, 1:].max(axis=1, initial=0.0) > top[:, 0]).sum())


def crowded(top: Float) -> float:
    """Share of rows whose margin is at most NEAR times the median margin. top: (n, m) probabilities of the classes considered."""
    if top.shape[1] < 2:
        return 1.0
    first, second = -np.partition(-top, 1, axis=1)[:, :2].T
    margin = np.log(np.maximum(first, LEAST) / np.maximum(second, LEAST))
    return float((margin <= NEAR * np.median(margin)).mean())


def uniform(top: Float, n_classes: int) -> Uniform:
    """The wrong labels if the true class k has a probability proportional to (p_k - f) ** s and errors go to any class alike.

    top: (n, m), column 0 is the given class. s is the likeliest of SHARPNESS, the rate the likeliest for it. The floor f is what the
    surest images leave to their least probable class: a flexible model has learnt the noise, and a likelihood cannot tell its floor
    from honest doubt. The linear heads have next to none.

    `plain` compares with rate 0 and the likeliest of WITHOUT_NOISE, less one nat for each of the two numbers fitted (Akaike 1974).
    """
    if not len(top):
        return Uniform(0.0, 0.0)
    floor = np.quantile(top.min(axis=1), SUREST) if top.shape[1] > 1 else 0.0
    ratio = np.log(np.maximum(top - floor, LEAST, dtype=np.float64))
    ratio -= ratio[:, :1]

    def of_given(sharpness: float) -> Double:
        result: Double = 1.0 / np.exp(np.minimum(sharpness * ratio, 500.0)).sum(axis=1)
        return result

    best, found = -np.inf, 0.0
    for sharpness in SHARPNESS:
        right = of_given(sharpness)
        elsewhere = (1.0 - right) / max(n_classes - 1, 1)
        rate, before = 0.1, 0.0
        for _ in range(_ITERATIONS):
            if abs(rate - before) <= _ENOUGH * rate:
                break
            wrong, before = rate * elsewhere, rate
            evidence = wrong + (1.0 - rate) * right + 1e-300
            rate = max(float((wrong / evidence).mean()), 1e-6)
        likelihood = float(np.log(evidence).sum())
        if likelihood > best:
            best, found = likelihood, rate
    without = max(float(np.log(of_given(sharpness) + 1e-300).sum()) for sharpness in WITHOUT_NOISE)
    share = float(np.clip(found, 0.5 / len(top), 1 - 0.5 / len(top)))
    entropy = -share * np.log(share) - (1 - share) * np.log1p(-share)
    return Uniform(found * len(top), max(best - without - 2.0, 0.0) / (len(top) * float(entropy)))


def estimate(readings: Readings) -> Estimate:
    """Weigh the readings.

    Classes apart: the joint, or the disagreements less the model's own mistakes, whichever is more. Else between the joint and
    `by_class`, nearer to the joint the more it exceeds what a poor model alone would give it (twice the disagreement rate), unless some
    noise ignores the model's doubts and classes are plainly mistaken for each other.

    Where no noise ignores the model's doubts, either moves towards all disagreements, if these are more than the model's own mistakes, or
    classes are apart and the joint is blind to them. So it does there if they are far more, as far as `uniform` does not account
    for them. Where such noise is plain and makes up much of it, the count moves towards `by_class`; if that is no sharper than 1.4 and
    classes are not apart, towards `uniform`, the less so the more the disagreements exceed the model's own mistakes. Many disagreements
    where most errors do not go to any class alike, nor classes are plainly mistaken for each other, are those of pictures that look like
    another class: all of them count.
    """
    r = readings
    evidence = r.uniform / max(r.gentle, _TINY)
    none_seen, no_classes = _ramp(evidence, *NONE_SEEN), 1 - r.classes
    ratio = r.joint / max(r.disagreement, 0.5)
    # More than all disagreements are no errors: thresholds below the most probable class, as of a weak model with many classes.
    joint = min(r.joint, r.disagreement)
    excess = _ramp(ratio - 2 * r.disagreement / r.n, 0.05, 0.25) * _ramp(ratio, 1.1, 1.0)
    own = OWN * r.crowded**2 * r.n
    beyond = r.disagreement / max(own, 0.5)
    more, far_more = _ramp(beyond, EXPLAINED - 1, EXPLAINED), _ramp(beyond, EXPLAINED, EXPLAINED + 1)
    of_model = 1 - _ramp(beyond, EXPLAINED - 1, EXPLAINED + 1)
    unaccounted = 1 - _ramp(r.uniform / max(r.disagreement - own, 0.5), 0.0, 1.0)
    all_of_them = max(none_seen * max(more, _ramp(ratio, *BLIND)), far_more * no_classes * unaccounted)
    apart = _between(max(joint, r.disagreement - own), r.disagreement, all_of_them)
    mixed = _between(joint, min(r.by_class, joint), max(0.6 * (1 - excess), (1 - none_seen) * r.classes))
    mixed = _between(mixed, r.disagreement, none_seen * _ramp(beyond, *NO_MORE))
    plain = _ramp(evidence, *ALIKE) * _ramp(r.plain, *PLAIN_NOISE)
    mixed = _between(mixed, min(r.uniform, mixed), plain * of_model * no_classes)
    count = _between(mixed, apart, _ramp(r.crowded, MIXED, APART))
    if r.sharpness >= 2:
        count = _between(count, max(r.by_class, r.uniform), _ramp(evidence, 0.6, 1.0))
    by_picture = _ramp(r.disagreement / r.n, 0.2, 0.4) * no_classes * _ramp(evidence, *MOSTLY_ALIKE)
    count = min(_between(count, max(count, r.disagreement), by_picture), r.n)
    low, high = LOWER * min(r.uniform, r.gentle, count), HIGHER * max(r.joint, r.disagreement, count)
    return Estimate(count, low, min(high, r.n))


def scores(top: Float) -> Double:
    """(n,) log(p_other / p_given ** 2), the higher the more probably a label is wrong.

    top: (n, m), column 0 is the given class; p_other is the largest other one. p_other / p_given ranks by the margin, 1 / p_given by
    self-confidence; the product ranks as well as the better of both.
    """
    other = top[:, 1:].max(axis=1, initial=0.0).astype(np.float64)
    result: Double = np.log(np.maximum(other, LEAST)) - 2 * np.log(np.maximum(top[:, 0].astype(np.float64), LEAST))
    return result


def class_weight(gain: float) -> float:
    """How far a ranking that knows which classes are mistaken for which replaces `scores`, in [0, 1]. gain: of `noise_fit.gain`."""
    return _ramp(gain, *PLAIN_CLASSES)


def error_log_odds(score: Double, count: float) -> Double:
    """(n,) log odds that a label is wrong: a * score - b, with b such that the probabilities sum to the count.

    score: (n,), highest is worst. a is the least of SLOPES with which at least FLAGGED of the count are more probably wrong than right: 1
    has about the lowest log-loss, but noise of 40 % compresses the scores.
    """
    if not len(score):
        return np.zeros(0)
    count = float(np.clip(count, 1e-3, 0.999 * len(score)))
    for slope in SLOPES:
        log_odds = _shifted(slope * score, count)
        if (log_odds > 0).sum() >= FLAGGED * count:
            break
    return log_odds


def _shifted(score: Double, total: float) -> Double:
    """score - b with the b for which the probabilities sum to the total."""
    sample = score[:: max(len(score) // _START_ROWS, 1)]
    start = _offset(sample, total * len(sample) / len(score), float(score.max()))
    result: Double = score - (_offset(score, total, start) if len(sample) < len(score) else start)
    return result


def _offset(score: Double, total: float, start: float) -> float:
    """The b of `_shifted`, sought from start on."""
    low, high = float(score.min()) - 40.0, float(score.max()) + 40.0
    middle = start
    while high - low > 1e-6:
        p = probability(score - middle)
        found, slope = float(p.sum()), float(p.sum() - p @ p)
        low, high = (middle, high) if found > total else (low, middle)
        # Newton's step on the log of the sum, which is nearly a line where p is small; halving where it leaves the interval.
        step = np.log(found / total) * found / slope if slope > 0 and found > 0 else np.inf
        if abs(step) < 1e-7:
            break
        middle = middle + step if low < middle + step < high else (low + high) / 2
    return middle


def probability(log_odds: Double) -> Double:
    """Logistic function; exact also where it is nearly 0, so that 1 - p is probability(-log_odds)."""
    with np.errstate(over="ignore"):
        result: Double = 1.0 / (1.0 + np.exp(-log_odds))
    return result


def _ramp(value: float, start: float, end: float) -> float:
    """0 at start and before, 1 at end and beyond, linear between."""
    return float(np.clip((value - start) / (end - start), 0.0, 1.0))


def _between(a: float, b: float, weight: float) -> float:
    """Geometric mean of a and b, weight on b. Half an image is what none means."""
    return float(np.exp((1 - weight) * np.log(max(a, 0.5)) + weight * np.log(max(b, 0.5))))
