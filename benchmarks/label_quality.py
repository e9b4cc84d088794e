"""How well are wrong labels flagged, ranked and counted, by kind and rate of errors and strength of the model, against cleanlab?

Made vectors with known truth: classes of two clusters, uneven in size, some close to each other. The strong model sees all of it, the
weak one eight random projections with noise. Errors: to any class alike; by class, to two others; by picture, where the true class is
ambiguous in a blurred view of it, to a class that it resembles. cleanlab's filters get the same probabilities; its self-confidence, and so
its ranking, those of cross-validated LogisticRegression, as in its tutorials. After a review: of 100 images that `review` drew, mean of
three draws, the verdicts included. Figures are means over SEEDS.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Benchmark, Row, Work, answers

SEEDS = (5, 6, 7)
RATES = (0.02, 0.1, 0.2, 0.4)
KINDS = ("any class", "by class", "by picture")
MODELS = ("strong", "weak")
N_CLASSES, DIM, N_FOLDS = 8, 64, 5
REVIEWED, DRAWS = 100, 3
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")
_HIDDEN = 12
_SEPARATION = 3.2
_BLUR = 1.5
"""Standard deviation of what a careless look adds to the hidden picture, whose own is 1."""


def trials(n: int, seed: int, rates: tuple[float, ...] = RATES) -> dict[str, list[Row]]:
    """One trial per kind of error, rate and model, on n vectors of one seed."""
    import numpy as np

    rng = np.random.default_rng(seed)
    share = (1 + np.arange(N_CLASSES)) ** -0.5
    true = rng.choice(N_CLASSES, n, p=share / share.sum())
    centres = rng.normal(size=(N_CLASSES, 2, _HIDDEN)) + rng.normal(size=(N_CLASSES // 2, 1, _HIDDEN)).repeat(2, axis=0)
    hidden = _SEPARATION / 2 * centres[true, rng.integers(0, 2, n)] + rng.standard_t(8, (n, _HIDDEN))
    strong = hidden @ rng.normal(size=(_HIDDEN, DIM)) / _HIDDEN**0.5 + 0.3 * rng.normal(size=(n, DIM))
    weak = strong @ rng.normal(size=(DIM, 8)) / DIM**0.5 + 0.5 * rng.normal(size=(n, 8))
    blurred = hidden + _BLUR * rng.normal(size=hidden.shape)
    means = np.stack([hidden[true == k].mean(axis=0) for k in range(N_CLASSES)])
    nearness = -((blurred[:, None] - means) ** 2).sum(axis=2) / (2 * (1 + _BLUR**2))
    nearness[np.arange(n), true] -= np.log(share[true])  # keeps the largest class from taking all
    folds = rng.permutation(np.arange(n) % N_FOLDS)
    found: list[Row] = []
    for kind in KINDS:
        for rate in rates:
            given = noisy(true, nearness, kind, rate, np.random.default_rng([seed, int(1000 * rate)]))
            for model, vectors in zip(MODELS, (strong, weak), strict=True):
                row = {"errors": kind, "rate": rate, "model": model}
                found.append(row | trial(vectors.astype(np.float32), given, given != true, folds, N_CLASSES))
    return {"rows": found}


def noisy(true: Any, nearness: Any, kind: str, rate: float, rng: Any) -> Any:
    """Labels (n,) of which about the given share are wrong.

    true: (n,) codes. nearness: (n, K) log of how much each image looks like each class, for the errors by picture.
    """
    import numpy as np

    n, n_classes = nearness.shape
    if kind == "any class":
        return np.where(rng.random(n) < rate, (true + rng.integers(1, n_classes, n)) % n_classes, true)
    if kind == "by class":
        rates = np.minimum(rate * rng.uniform(0.4, 1.6, n_classes), 0.55)
        step = np.where(rng.random(n) < 0.7, 1, 3 % n_classes or 2)
        return np.where(rng.random(n) < rates[true], (true + step) % n_classes, true)
    other = nearness.copy()
    other[np.arange(n), true] = -np.inf
    likeness = other.max(axis=1) - nearness[np.arange(n), true]
    spread = likeness + rng.logistic(size=n) * likeness.std() / 2
    return np.where(spread > np.quantile(spread, 1 - rate), other.argmax(axis=1), true)


def trial(vectors: Any, given: Any, wrong: Any, folds: Any, n_classes: int) -> Row:
    """F1 of each flag, average precision of each ranking, and the count over the truth. vectors: (n, d); the rest: (n,)."""
    import numpy as np
    from cleanlab.filter import find_label_issues
    from sklearn.metrics import average_precision_score

    from dq_assets.audit import confident, errors, review
    from dq_assets.audit.oof import oof_probabilities
    from dq_assets.settings import Labels

    n = len(given)
    probs = oof_probabilities(vectors, given, folds, n_classes).probs
    noise = confident.label_noise(given, probs, np.ones(n_classes, dtype=bool))
    assert len(noise.rows) == n
    own = probs[np.arange(n), given]
    counts = np.bincount(given, minlength=n_classes)
    thresholds = confident.class_thresholds(given, noise.probs[:, 0], n_classes)
    joint = confident.calibrated_joint(confident.confident_joint(noise.classes, noise.probs, thresholds), counts)
    lowest = np.zeros(n, dtype=bool)
    lowest[np.argsort(own, kind="stable")[: int(joint.sum() - np.trace(joint))]] = True
    hits = np.cumsum(wrong[np.argsort(-noise.log_odds, kind="stable")])
    probability = errors.probability(noise.log_odds)
    reviewed = []
    for draw in range(DRAWS):
        sample = review.draw(probability, REVIEWED, draw)
        after = review.recalibrate(probability, sample, wrong[sample.rows])
        reviewed.append(_f1(wrong, after.error_probability > after.flag_above))
    return {
        "flag": _f1(wrong, probability > Labels().flag_above),
        "after a review": sum(reviewed) / DRAWS,
        "argmax": _f1(wrong, probs.argmax(axis=1) != given),
        "joint count": _f1(wrong, lowest),
        **{f: _f1(wrong, find_label_issues(given, probs, filter_by=f, n_jobs=1)) for f in FILTERS},
        "best cut": float((2 * hits / (np.arange(1, n + 1) + wrong.sum())).max()),
        "AP": float(average_precision_score(wrong, noise.log_odds)),
        "AP p_given": float(average_precision_score(wrong, -own)),
        "AP cleanlab": float(average_precision_score(wrong, -_self_confidence(vectors, given, folds))),
        "counted / true": noise.estimate.count / wrong.sum(),
        "in range": float(noise.estimate.low <= wrong.sum() <= noise.estimate.high),
    }


def _self_confidence(vectors: Any, given: Any, folds: Any) -> Any:
    """cleanlab's score of each label, (n,), lowest is worst, by cross-validated LogisticRegression."""
    import warnings

    from cleanlab.rank import get_label_quality_scores
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are what is asked for
        model = LogisticRegression(max_iter=100)
        probs = cross_val_predict(model, vectors, given, cv=PredefinedSplit(folds), method="predict_proba")
    return get_label_quality_scores(given, probs, method="self_confidence")


def _f1(wrong: Any, flagged: Any) -> float:
    return float(2 * (wrong & flagged).sum() / max(wrong.sum() + flagged.sum(), 1))


def run(size: int, work: Work) -> list[Row]:
    """A row per kind of error, model and rate, and their mean."""
    del work
    found = answers("label_quality", "trials", [{"n": size, "seed": seed} for seed in SEEDS])
    keys = ("errors", "model", "rate")
    rows = []
    for kind in KINDS:
        for model in MODELS:
            for rate in RATES:
                same = [one for one in found if tuple(one[key] for key in keys) == (kind, model, rate)]
                rows.append({"errors": kind, "model": model, "rate": rate} | means(same))
    return [*rows, {"errors": "mean", "model": None, "rate": None} | means(found)]


def means(same: list[Row]) -> Row:
    """Means of trials; of cleanlab's filters the one with the best mean, by name."""
    mean = {name: sum(one[name] for one in same) / len(same) for name in same[0] if isinstance(same[0][name], float)}
    best = max(FILTERS, key=mean.__getitem__)
    return {
        "F1 of the flag": mean["flag"],
        "argmax": mean["argmax"],
        "joint count": mean["joint count"],
        "cleanlab default": mean["prune_by_noise_rate"],
        "cleanlab's best": mean[best],
        "which": best,
        "best cut": mean["best cut"],
        "after a review": mean["after a review"],
        "AP": mean["AP"],
        "AP of p_given": mean["AP p_given"],
        "AP cleanlab, LR": mean["AP cleanlab"],
        "counted / true": mean["counted / true"],
        "range holds it": mean["in range"],
    }


SIZES = {"quick": 800, "standard": 4_000, "large": 20_000}

BENCHMARK = Benchmark("label_quality", "How well are wrong labels flagged, ranked and counted?", f"x {DIM}", SIZES, run)
