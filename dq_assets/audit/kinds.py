"""Which flagged images hold two things: kind multi_label of label_issues.

The probabilities cannot tell: an image of two classes and one between two classes look alike to a softmax. The vector can. Features are
averaged over the picture, so the vector of a picture that holds two things is about the mean of two vectors: more features are active, none
as much. What such a mean looks like is learnt from the dataset itself, from the means of vectors of two images of different classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings

Codes = NDArray[np.int64]
Float = NDArray[np.float32]

FLOOR = 0.1
"""Added to each feature, in units of the root mean square of the vector's features, before the logarithm. AUROC of collages among the
flagged, photographs, drawings and 28-pixel pictures: .954, .874, .935; with .03 .952, .882, .942; with .3 .954, .857, .922."""

PENALTY = 30.0
"""Ridge in units of the mean variance; 10 and 100 lose .002 to .012 of AUROC."""

TRIM = 0.1
"""Share of the unflagged images that is left out of the second fit, the most mixed: some of them do hold two things. Without it AUROC
was .010 to .012 lower, where 3 to 4 % did."""

SINGLES, MIXTURES = 5_000, 4_000
_ROUNDS = 2
_SIGNED = 0.01
_ROWS = 32_768


def with_multi_label(table: pl.DataFrame, take: Callable[[Codes], Float], settings: settings.Labels) -> pl.DataFrame:
    """Table label_issues, in which ambiguous images whose vector is a mixture are of kind multi_label, with both labels as candidates.

    take: (m, d) vectors of rows of the table, ascending. An image is called if its vector looks more mixed than that of all but
    `settings.multi_label_rate` of the unflagged ones. None is called with a rate of 0, with fewer than 1 / rate unflagged images, with
    fewer than two classes among them, and where features are signed (more than 1 % of their squares are of negative ones): a mean of
    these is no union. Deterministic.
    """
    rate = settings.multi_label_rate
    ambiguous = np.flatnonzero((table["kind"] == "ambiguous").fill_null(value=False))
    singles = np.flatnonzero((~table["is_label_issue"]).fill_null(value=False))
    if rate == 0 or not ambiguous.size or singles.size * rate < 1:
        return table
    singles = singles[np.linspace(0, singles.size - 1, min(singles.size, SINGLES)).astype(np.int64)]
    vectors = take(singles)
    if np.minimum(vectors, 0).ravel() @ np.minimum(vectors, 0).ravel() > _SIGNED * (vectors.ravel() @ vectors.ravel()):
        return table
    labels = table["given_label"].gather(singles)
    if labels.n_unique() < 2:
        return table
    weights = mixture_weights(vectors, labels.rank("dense").to_numpy())
    cut = np.quantile(features(vectors) @ weights, 1 - rate)
    mixed = [
        part[features(take(part)) @ weights > cut]
        for part in (ambiguous[start : start + _ROWS] for start in range(0, ambiguous.size, _ROWS))
    ]
    return _called(table, np.concatenate(mixed))


def features(vectors: Float) -> Float:
    """(m, d) logarithm of FLOOR plus each feature in units of the vector's root mean square; negative features count as 0."""
    positive = np.maximum(vectors, 0)
    size = np.sqrt(np.mean(np.square(vectors, dtype=np.float64), axis=1, keepdims=True))
    result: Float = np.log(positive / np.maximum(size, 1e-30) + FLOOR).astype(np.float32)
    return result


def mixture_weights(vectors: Float, labels: Codes) -> Float:
    """(d,) weights of `features` that tell means of two vectors of different labels from single vectors; higher is more mixed.

    vectors: (n, d). labels: (n,) of at least two values. Linear discriminant with a ridge, fitted twice: see TRIM.
    """
    single, kept = features(vectors), np.arange(len(vectors))
    weights = np.zeros(vectors.shape[1], np.float32)
    for _ in range(_ROUNDS):
        mixed = features(_mixtures(vectors, labels, kept))
        weights = _discriminant(mixed, single[kept])
        scores = single @ weights
        kept = np.flatnonzero(scores <= np.quantile(scores, 1 - TRIM))
    return weights


def _mixtures(vectors: Float, labels: Codes, kept: Codes) -> Float:
    """Weighted means of pairs with different labels, of the rows kept or, where these have one label, of all."""
    pool = kept if np.unique(labels[kept]).size > 1 else np.arange(len(vectors))
    rng = np.random.default_rng(0)
    a, b = rng.choice(pool, (2, MIXTURES))
    a, b = (side[labels[a] != labels[b]] for side in (a, b))
    share = rng.uniform(0.3, 0.7, (a.size, 1)).astype(np.float32)
    result: Float = share * vectors[a] + (1 - share) * vectors[b]
    return result


def _discriminant(mixed: Float, single: Float) -> Float:
    import torch

    parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in (mixed, single)]
    means = [part.mean(dim=0) for part in parts]
    centred = [part - mean for part, mean in zip(parts, means, strict=True)]
    within = sum((part.T @ part / len(part) for part in centred), start=torch.zeros(len(means[0]), len(means[0]))) / 2
    within.diagonal().add_(PENALTY * within.diagonal().mean() + 1e-6)
    factor = torch.linalg.cholesky(within)
    return np.asarray(torch.cholesky_solve((means[0] - means[1])[:, None], factor)[:, 0].numpy(), np.float32)


def _called(table: pl.DataFrame, rows: Codes) -> pl.DataFrame:
    """The rows as multi_label; candidates that lack the given or the suggested label get it behind the others, which are more probable."""
    called = pl.int_range(pl.len()).is_in(pl.Series(rows).implode())
    more_probable_first = pl.when(pl.col("p_suggested") >= pl.col("p_given")).then(
        pl.concat_list("candidate_labels", "suggested_label", "given_label")
    ).otherwise(pl.concat_list("candidate_labels", "given_label", "suggested_label"))  # fmt: skip
    candidates = pl.when(called).then(more_probable_first.list.unique(maintain_order=True)).otherwise("candidate_labels")
    kind = pl.when(called).then(pl.lit("multi_label")).otherwise("kind")
    return table.with_columns(kind=kind, candidate_labels=candidates)
