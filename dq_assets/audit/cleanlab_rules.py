"""Label issues as cleanlab 2.9 finds them, on the same probabilities: the same flags, the same scores, in passes over blocks.

For those who have a run of cleanlab and want to see it again, and for comparison; our own rule is `audit.confident`. The
definitions are those of confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068) as cleanlab computes them,
with its choices where the paper leaves one: several confident classes count as the most probable of all classes; whole numbers
are made of the joint by rounding and then mending the largest deviations; nothing is flagged whose most probable class is the
given one. Equality is tested side by side with cleanlab (dq_assets_tests/test_cleanlab_rules.py).

One pass over the probabilities keeps four numbers per image, a second counts confident classes; `prune_by_noise_rate` and
`both` read again the rows that may be flagged or stand before one that is. Memory: a few blocks and some 30 bytes per image.
Unlabelled images (-1) take no part, are never flagged, and have the score NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit.rows import Codes, Float, Rows, blocks
from dq_assets.audit.threads import map_in_order
from dq_assets.settings import UserError

Flags = NDArray[np.bool_]
Double = NDArray[np.float64]

FILTERS, SCORES = settings.CLEANLAB_FILTERS, settings.CLEANLAB_SCORES

NEVER = 2.0
"""Threshold of a class without images: no probability reaches it."""
_SLACK = 1e-6
_LEAST = 1e-6


@dataclass(frozen=True)
class Margins:
    """What one pass over the probabilities keeps of each image.

    given: (n,) codes, -1 for unlabelled. p_given: (n,) probability of the given class, 0 if unlabelled. other, p_other: (n,) the
    most probable other class, the lowest of equal ones, and its probability (-1 if there is no other class).
    """

    given: Codes
    p_given: Float
    other: NDArray[np.int32]
    p_other: Float
    n_classes: int

    @property
    def predicted(self) -> NDArray[np.int32]:
        """(n,) the most probable class, the lowest of equal ones."""
        first = (self.p_given > self.p_other) | ((self.p_given == self.p_other) & (self.given < self.other))
        return np.where(first & (self.given >= 0), self.given, self.other).astype(np.int32)

    @property
    def disagrees(self) -> Flags:
        """(n,) whether another class is more probable than the given one, by more than cleanlab's 1e-6."""
        raised = self.p_given + np.float32(_LEAST)
        above: Flags = (self.p_other > raised) | ((self.p_other == raised) & (self.other < self.given))
        return above & (self.given >= 0)


@dataclass(frozen=True)
class Found:
    """issues: (n,) flags. margins, thresholds (K,), guesses (n,) and joint (K, K): what they rest on, see the functions below."""

    issues: Flags
    margins: Margins
    thresholds: Float
    guesses: NDArray[np.int32]
    joint: Codes


def find_label_issues(given: Codes, probs: Rows, *, filter_by: str = FILTERS[0], min_examples_per_class: int = 1) -> Found:
    """Which labels cleanlab's `find_label_issues(labels, pred_probs, filter_by=...)` flags.

    given: (n,) codes, -1 for unlabelled. probs: (n, K) float32 that sum to 1 per row. min_examples_per_class: as in cleanlab,
    for `prune_by_noise_rate`, `prune_by_class` and `both`. Raises ValueError for another filter.

    cleanlab's own answer on float64 probabilities may differ in labels that lie within float32's rounding of a cut.
    """
    if filter_by not in FILTERS:
        raise ValueError(f"There is no filter {filter_by!r}. Choose one of {', '.join(FILTERS)}.")
    known = margins(given, probs)
    thresholds = class_thresholds(known)
    guesses = confident_guesses(known, probs, thresholds)
    joint = calibrated_joint(known.given, guesses, known.n_classes)
    disagrees = known.disagrees
    confident = (guesses >= 0) & (guesses != known.given) & (known.given >= 0)
    if filter_by == "predicted_neq_given":
        flagged = disagrees
    elif filter_by == "confident_learning":
        flagged = confident & disagrees
    elif filter_by.startswith("low_"):
        flagged = _lowest(known, quality_scores(given, probs, method=filter_by[4:], known=known), int((confident & disagrees).sum()))
    else:
        flagged = disagrees
        counts = _kept_at_least(joint, min_examples_per_class)
        if filter_by in ("prune_by_class", "both"):
            flagged = flagged & _pruned_by_class(known, counts, min_examples_per_class)
        if filter_by in ("prune_by_noise_rate", "both"):
            flagged = flagged & _pruned_by_noise_rate(known, probs, counts, min_examples_per_class)
    return Found(flagged, known, thresholds, guesses, joint)


def with_cleanlab_flags(
    table: pl.DataFrame, given: Codes, probs: Rows, *, class_names: list[str], settings: settings.Labels
) -> tuple[pl.DataFrame, Found]:
    """Table label_issues with the flags and scores of cleanlab in place of ours, and what they rest on.

    table: of `confident.label_issues`, a row per image in the order of given and probs. is_label_issue follows
    `settings.filter_by` and label_score `settings.quality_score`; every labelled image is checked, of small classes too.
    The suggestion is the most probable class, of a flagged image the most probable other. error_probability stays ours.
    Raises UserError for adjust_pred_probs with the entropy.
    """
    if settings.adjust_pred_probs and settings.quality_score == SCORES[2]:
        raise UserError("cleanlab does not adjust probabilities for confidence_weighted_entropy. Set labels.adjust_pred_probs=false.")
    found = find_label_issues(given, probs, filter_by=settings.filter_by)
    known, issues = found.margins, found.issues
    scores = quality_scores(given, probs, method=settings.quality_score, adjust_pred_probs=settings.adjust_pred_probs, known=known)
    suggested = np.where(issues, known.other, known.predicted)
    p_suggested = np.where(suggested == given, known.p_given, known.p_other)
    names = pl.Series(class_names, dtype=pl.String)
    ambiguous = known.p_given >= settings.ambiguous_ratio * p_suggested
    columns = pl.DataFrame(
        {
            "suggested_label": names.gather(np.maximum(suggested, 0)),
            "label_score": np.clip(scores, 0, 1),
            "is_label_issue": issues,
            "p_given": known.p_given,
            "p_suggested": p_suggested,
            "kind": pl.Series(["mislabeled", "ambiguous"]).gather(ambiguous.astype(np.int64)).set(pl.Series(~issues), None),
        }
    )
    checked = pl.Series(given >= 0)
    columns = columns.select(pl.when(checked).then(pl.all()))
    candidates = pl.when(checked & (pl.col("candidate_labels").list.len() == 0)).then(pl.concat_list("suggested_label"))
    replaced = table.with_columns(columns.get_columns()).with_columns(candidates.otherwise("candidate_labels").alias("candidate_labels"))
    return replaced.select(table.columns), found


def margins(given: Codes, probs: Rows) -> Margins:
    """One pass: the probability of the given class and the best of the others."""
    n, n_classes = probs.shape
    p_given, p_other = np.zeros(n, np.float32), np.full(n, -1, np.float32)
    other = np.full(n, -1, np.int32)
    shared = isinstance(probs, np.ndarray)

    def one(part: slice) -> None:
        block = np.array(probs[part]) if shared else probs[part]
        at, own = np.arange(len(block)), given[part]
        labelled = own >= 0
        p_given[part] = np.where(labelled, block[at, own], np.float32(0))
        block[at[labelled], own[labelled]] = -1
        if n_classes:
            best = block.argmax(axis=1)
            other[part], p_other[part] = best, block[at, best]

    for _ in map_in_order(one, blocks(n, n_classes)):
        pass
    return Margins(given, p_given, other, p_other, n_classes)


def class_thresholds(known: Margins) -> Float:
    """(K,) mean probability of class k over the images given as k, at least 2e-6; NEVER for a class without images."""
    thresholds = np.full(known.n_classes, NEVER, np.float32)
    for k, rows in _rows_by_class(known):
        # The mean in float32, of the rows in their order: cleanlab's rounding.
        thresholds[k] = max(known.p_given[rows].mean(), 2e-6)
    return thresholds


def confident_guesses(known: Margins, probs: Rows, thresholds: Float) -> NDArray[np.int32]:
    """(n,) the class that an image is confidently of, -1 if it is of none.

    Confident are classes whose probability is at least their threshold less 1e-6. Of several it is the most probable class of
    all, which need not be one of them.
    """
    n, n_classes = probs.shape
    least = thresholds - np.float32(_SLACK)
    predicted = known.predicted
    guesses = np.full(n, -1, np.int32)

    def one(part: slice) -> None:
        row, column = np.divmod(np.flatnonzero(probs[part] >= least), max(n_classes, 1))
        found = guesses[part]
        found[row] = column
        several = np.bincount(row, minlength=len(found)) > 1
        found[several] = predicted[part][several]

    for _ in map_in_order(one, blocks(n, n_classes)):
        pass
    return guesses


def calibrated_joint(given: Codes, guesses: NDArray[np.int32], n_classes: int) -> Codes:
    """(K, K) images given as j (row) by true class k, in whole images; row j sums to the number given as j.

    The counts of the confident images, at least 1 on the diagonal, scaled to the number of images of each class.
    """
    counted = (guesses >= 0) & (given >= 0)
    # Laid out by columns as in cleanlab: the order of a sum decides its last bit, and that between two halves to round.
    cells = guesses[counted].astype(np.int64) * n_classes + given[counted]
    joint = np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes).T
    np.fill_diagonal(joint, np.maximum(np.diag(joint), 1))
    counts = np.bincount(given[given >= 0], minlength=n_classes)
    scaled = (joint.T / joint.sum(axis=1) * counts).T
    total = scaled.sum()
    return _rounded(scaled / total * counts.sum()) if total else scaled.astype(np.int64)


def num_label_issues(found: Found) -> int:
    """cleanlab's `num_label_issues`: confident of another class, and predicted so."""
    known = found.margins
    return int(((found.guesses >= 0) & (found.guesses != known.given) & known.disagrees).sum())


def quality_scores(
    given: Codes, probs: Rows, *, method: str = SCORES[0], adjust_pred_probs: bool = False, known: Margins | None = None
) -> Float:
    """(n,) label quality, in [0, 1], 0 is worst; NaN for unlabelled images.

    self_confidence: p_given. normalized_margin: (p_given - the highest other + 1) / 2. confidence_weighted_entropy:
    log(1 + w) / w for w = (entropy of the row / log K) / p_given. adjust_pred_probs: thresholds are subtracted first, and
    rows scaled to sum 1 again; not for the entropy. known: `margins` of the same probabilities, if at hand.

    Raises ValueError for another method, and for the entropy with adjust_pred_probs.
    """
    if method not in SCORES or (adjust_pred_probs and method == SCORES[2]):
        raise ValueError(f"There is no score {method!r}{' with adjusted probabilities' if adjust_pred_probs else ''}. See the docs.")
    known = known or margins(given, probs)
    if adjust_pred_probs:
        known = _adjusted(known, probs)
    if method == "self_confidence":
        scores = known.p_given.copy()
    elif method == "normalized_margin":
        scores = np.asarray((known.p_given - known.p_other + 1) / 2, np.float32)
    else:
        scores = _weighted_entropy(known, probs)
    scores[given < 0] = np.nan
    return scores


def overlapping_classes(joint: Codes) -> list[tuple[int, int, int, float]]:
    """(class a, class b, images, share of all) of each pair a < b, most overlapping first: cleanlab's `find_overlapping_classes`.

    joint: (K, K) of `calibrated_joint`. Counted are both directions together.
    """
    total = max(int(joint.sum()), 1)
    a, b = np.triu_indices(len(joint), 1)
    share = joint[a, b] / total + joint[b, a] / total
    order = np.argsort(-share, kind="stable")
    images = np.round(share * total).astype(np.int64)
    return [(int(a[i]), int(b[i]), int(images[i]), float(share[i])) for i in order]


def health(found: Found) -> float:
    """cleanlab's overall label health: 1 - number of issues / number of labels, in [0, 1]; NaN without labels."""
    n = int((found.margins.given >= 0).sum())
    return 1 - num_label_issues(found) / n if n else float("nan")


def class_quality(joint: Codes) -> dict[str, Any]:
    """(K,) label_noise, inverse_label_noise and label_quality of each class, as cleanlab's `rank_classes_by_label_quality`."""
    share = joint / max(int(joint.sum()), 1)
    given, true, right = share.sum(axis=1), share.sum(axis=0), np.diag(share)
    noise = np.divide(given - right, given, out=np.zeros_like(given), where=given > 0)
    inverse = np.divide(true - right, true, out=np.zeros_like(true), where=true > 0)
    return {"label_noise": noise, "inverse_label_noise": inverse, "label_quality": 1 - noise}


def _rows_by_class(known: Margins) -> list[tuple[int, Codes]]:
    """The rows of each class that has any, in their order."""
    order = np.argsort(known.given, kind="stable")
    ends = np.searchsorted(known.given[order], np.arange(known.n_classes + 1))
    return [(k, order[ends[k] : ends[k + 1]]) for k in range(known.n_classes) if ends[k] < ends[k + 1]]


def _rounded(values: Double) -> Codes:
    """Whole numbers whose rows have the rounded sums of the values: each is rounded, then the largest deviations are mended."""
    whole = np.round(values).astype(np.int64)
    missing = np.round(values.sum(axis=1)).astype(np.int64) - whole.sum(axis=1)
    for row in np.flatnonzero(missing):
        # cleanlab's order of equal deviations is that of this very sort.
        order = np.argsort(values[row] - whole[row])
        chosen = order[-missing[row] :] if missing[row] > 0 else order[: -missing[row]]
        whole[row, chosen] += np.sign(missing[row])
    return whole


def _kept_at_least(joint: Codes, least: int) -> Codes:
    """The joint with at least `least` images on the diagonal; what that takes is taken from the other cells of the row alike.

    cleanlab's divisor is one less than the number of cells with images, the diagonal counted if it had some.
    """
    diagonal = np.diag(joint)
    raised = np.maximum(least - diagonal, 0)
    share = raised / np.maximum((joint > 0).sum(axis=1) - 1, 1)
    counts: Codes = np.floor(np.maximum(joint - share[:, None], 0)).astype(np.int64)
    np.fill_diagonal(counts, diagonal + raised)
    return counts


def _lowest(known: Margins, scores: Float, n: int) -> Flags:
    """The n lowest scores of labelled images; of equal ones those that NumPy's default sort has first, as cleanlab."""
    labelled = np.flatnonzero(known.given >= 0)
    flagged = np.zeros(len(scores), bool)
    flagged[labelled[np.argsort(scores[labelled])[:n]]] = True
    return flagged


def _pruned_by_class(known: Margins, counts: Codes, least: int) -> Flags:
    """In each class the lowest p_given, as many as the joint has off its diagonal."""
    flagged = np.zeros(len(known.given), bool)
    for k, rows in _rows_by_class(known):
        n = len(rows) - int(counts[k, k])
        if len(rows) <= max(least, 1) or n <= 0:
            continue
        own = known.p_given[rows]
        # Of equal ones those that NumPy's default sort has first, as in cleanlab.
        flagged[rows[np.argsort(own)[:n]]] = True
    return flagged


def _pruned_by_noise_rate(known: Margins, probs: Rows, counts: Codes, least: int) -> Flags:
    """For each pair of classes the highest p_other - p_given among the images given as j, as many as the joint has there.

    Only images that disagree with their label can stay flagged. Their margins are at least -p_given, so no image whose best
    margin is below the lowest of these can stand before one of them: the others need not be read.
    """
    flagged = np.zeros(len(known.given), bool)
    disagrees = known.disagrees

    def one(k: int, rows: Codes) -> None:
        others = np.flatnonzero(counts[k])
        others = others[others != k]
        suspects = rows[disagrees[rows]]
        if len(rows) <= max(least, 1) or not others.size or not suspects.size:
            return
        near = rows[known.p_other[rows] - known.p_given[rows] >= -known.p_given[suspects].max()]
        margin = probs[near][:, others] - known.p_given[near][:, None]
        number = np.minimum(counts[k, others], len(near))
        ordered = np.sort(margin, axis=0)
        cut = ordered[len(near) - number, np.arange(others.size)]
        above = margin >= cut
        # Of equal margins at the cut those that NumPy's default sort of the whole class has first, as in cleanlab.
        for tied in np.flatnonzero(above.sum(axis=0) > number):
            whole = probs[rows][:, others[tied]] - known.p_given[rows]
            flagged[rows[np.argsort(-whole)[: number[tied]]]] = True
            above[:, tied] = False
        flagged[near[above.any(axis=1)]] = True

    of_classes = _rows_by_class(known)

    def several(part: slice) -> None:
        for k, rows in of_classes[part]:
            one(k, rows)

    for _ in map_in_order(several, blocks(len(of_classes), 1, 1)):
        pass
    return flagged


def _adjusted(known: Margins, probs: Rows) -> Margins:
    """Margins of the probabilities less the thresholds of their classes, raised by the highest threshold, rows summing to 1."""
    thresholds = class_thresholds(known)
    if (thresholds == NEVER).all():
        return known
    n, n_classes = probs.shape
    shift = thresholds.max() - thresholds

    class Shifted:
        shape = (n, n_classes)

        def __getitem__(self, rows: slice | Codes, /) -> Float:
            block: Float = probs[rows] + shift
            block /= block.sum(axis=1, keepdims=True)
            return block

    return margins(known.given, Shifted())


def _weighted_entropy(known: Margins, probs: Rows) -> Float:
    n, n_classes = probs.shape
    scores = np.empty(n, np.float32)

    def one(part: slice) -> None:
        block = probs[part]
        entropy = -(block * np.log(np.maximum(block, np.finfo(np.float32).tiny))).sum(axis=1) / np.log(max(n_classes, 2))
        weight = np.maximum(entropy, 0) / np.maximum(known.p_given[part], _LEAST)
        scores[part] = np.log1p(weight) / np.maximum(weight, _LEAST)

    for _ in map_in_order(one, blocks(n, n_classes)):
        pass
    return scores
