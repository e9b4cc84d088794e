"""What a reviewed sample says about the labels: which images to draw, and what the verdicts change.

Before a review the number of wrong labels rests on an assumption (`errors`). A sample that was drawn with known probabilities does
not: it estimates the number without bias, whatever the model is worth, and shows how the error probabilities are to be read.
Pure functions; where verdicts are kept is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.errors import Estimate, probability

Codes = NDArray[np.int64]
Double = NDArray[np.float64]

EVENLY = 0.1
"""Share of the sample that is spread over all images alike, so that no image is without a chance."""
PRIOR = (3.0, 0.7)
"""Standard deviations of the prior of shift and log stretch of the log odds, round no change: the count is often off by 2 to 4, the
order seldom."""
_STANDARD_ERRORS = 1.96


@dataclass(frozen=True)
class Sample:
    """Images to review. rows: (s,) positions, ascending by error probability. inclusion: (s,) chance that each had of being drawn."""

    rows: Codes
    inclusion: Double


@dataclass(frozen=True)
class Reviewed:
    """Error probabilities after a review, the number of wrong labels with a 95 % interval, and the probability to flag above."""

    error_probability: Double
    estimate: Estimate
    flag_above: float


def draw(error_probability: Double, n: int, seed: int) -> Sample:
    """Draw n images, most of them where the model is in doubt, the rest over all.

    error_probability: (N,). The chance is proportional to sqrt(p (1 - p)), which is what estimates the sum best, plus EVENLY. The
    sample is systematic in the order of the probability, so every stratum of it has its share. Deterministic for a seed.
    """
    size = len(error_probability)
    n = min(n, size)
    doubt = np.sqrt(np.clip(error_probability * (1 - error_probability), 0.0, None)) + 1e-9
    inclusion = np.full(size, 1.0)
    free = np.ones(size, dtype=bool)
    while free.any() and n < size:  # whoever would have a chance above 1 is certain, and the others share what is left
        left = n - (size - int(free.sum()))
        share = (1 - EVENLY) * doubt[free] / doubt[free].sum() + EVENLY / free.sum()
        inclusion[free] = np.minimum(left * share, 1.0)
        certain = free & (inclusion >= 1.0)
        if not certain.any():
            break
        free &= ~certain
    order = np.argsort(error_probability, kind="stable")
    steps = np.cumsum(inclusion[order])
    start = np.random.default_rng(seed).random()
    rows = order[np.minimum(np.searchsorted(steps, start + np.arange(n) * (steps[-1] / max(n, 1)), side="right"), size - 1)]
    return Sample(rows.astype(np.int64), inclusion[rows])


def recalibrate(error_probability: Double, sample: Sample, wrong: NDArray[np.bool_]) -> Reviewed:
    """Read the error probabilities anew, by the verdicts on a sample of `draw`.

    error_probability: (N,) as drawn from. wrong: (s,) whether each sampled label is wrong. The log odds become a + exp(b) * log odds
    (Platt 1999), the likeliest a and b under a weak prior. The number is the sum of the new probabilities plus the weighted
    differences to the verdicts (Horvitz and Thompson 1952; unbiased for any model); a then moves so that the sum is the number.
    The interval has the variance of that estimator. Raises ValueError if sample and verdicts do not fit.
    """
    if len(sample.rows) != len(wrong) or not len(wrong):
        raise ValueError(f"{len(wrong)} verdicts for {len(sample.rows)} sampled images do not fit. Give one for each, and at least one.")
    log_odds = _log_odds(error_probability)
    shift, stretch = _platt(log_odds[sample.rows], wrong.astype(np.float64))
    fitted = probability(shift + stretch * log_odds)
    residual = (wrong - fitted[sample.rows]) / sample.inclusion
    spread = _STANDARD_ERRORS * float(np.sqrt((residual**2 * (1 - sample.inclusion)).sum()))
    size = len(error_probability)
    found = float(wrong.sum())
    count = float(np.clip(fitted.sum() + residual.sum(), max(found, 0.5), size - (len(wrong) - found)))
    estimate = Estimate(count, max(found, count - spread), min(float(size), count + spread))
    low, high = -60.0, 60.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if probability(middle + stretch * log_odds).sum() > count else (middle, high)
    final = probability(low + stretch * log_odds)
    final[sample.rows] = wrong
    return Reviewed(final, estimate, flag_threshold(final))


def flag_threshold(error_probability: Double) -> float:
    """The probability above which flags have the highest expected F1, 2 * sum of the flagged / (number flagged + sum of all)."""
    ordered = np.sort(error_probability)[::-1]
    if not len(ordered):
        return 0.5
    expected = 2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + max(ordered.sum(), 1e-12))
    last = int(expected.argmax())
    return float(ordered[last] + ordered[last + 1]) / 2 if last + 1 < len(ordered) else 0.0


def _log_odds(p: Double) -> Double:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    result: Double = np.log(p) - np.log1p(-p)
    return result


def _platt(log_odds: Double, wrong: Double) -> tuple[float, float]:
    """Shift and stretch of the log odds with the highest penalised likelihood."""
    from scipy.optimize import minimize

    def loss(x: NDArray[np.float64]) -> float:
        z = x[0] + np.exp(x[1]) * log_odds
        return float((np.logaddexp(0.0, z) - wrong * z).sum() + ((x / np.array(PRIOR)) ** 2).sum() / 2)

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6, "maxiter": 400}).x
    return float(found[0]), float(np.exp(found[1]))
