"""How fast are out-of-fold probabilities, and how well do they find wrong labels, against scikit-learn's logistic regression?

The peer is what cleanlab's tutorials use: cross_val_predict(LogisticRegression(max_iter=100)), lbfgs, on the same folds. Both rank the
images by the probability of the given label; quality is the average precision of finding the labels that were made wrong. The vectors
are made, so quality is worth a comparison and nothing more.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Benchmark, Clock, Row, Work, alternate, child, median

CLASSES = (10, 100)
REPEATS = 3
"""One run alone once took seven times as long as its repetition, on a machine that others used."""
ONCE_FROM = 20_000
"""Images from which the peer, which takes minutes there, runs once, between the repetitions of ours."""


def ours(data: str, n_classes: int) -> dict[str, Any]:
    """oof_probabilities."""
    import numpy as np
    import scipy.linalg  # noqa: F401  outside the clock, as the peer's imports are
    import torch  # noqa: F401

    from dq_assets.audit.oof import oof_probabilities

    vectors, given, folds = (np.load(f"{data}-{name}.npy") for name in ("vectors", "given", "folds"))
    with Clock() as clock:
        probs = oof_probabilities(vectors, given, folds, n_classes).probs
    return {**_quality(probs, given, data), **clock.seconds}


def logistic(data: str) -> dict[str, Any]:
    """cross_val_predict."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are what is asked for
    vectors, given, folds = (np.load(f"{data}-{name}.npy") for name in ("vectors", "given", "folds"))
    with Clock() as clock:
        probs = cross_val_predict(LogisticRegression(max_iter=100), vectors, given, cv=PredefinedSplit(folds), method="predict_proba")
    return {**_quality(probs, given, data), **clock.seconds}


def _quality(probs: Any, given: Any, data: str) -> dict[str, float]:
    import numpy as np
    from sklearn.metrics import average_precision_score

    wrong = np.load(f"{data}-wrong.npy")
    right = probs.argmax(axis=1) == given
    return {
        "average precision": float(average_precision_score(wrong, -probs[np.arange(len(given)), given])),
        "accuracy": float(right[~wrong].mean()),
    }


def run(size: int, work: Work) -> list[Row]:
    """For each number of classes a row each."""
    return [row for n_classes in CLASSES for row in _compared(size, n_classes, work)]


def _compared(size: int, n_classes: int, work: Work) -> list[Row]:
    data = str(work.folder / f"labels-{size}")
    child("vectors", "make", n=size, out=data, n_classes=n_classes)
    of_ours = {"oof_probabilities": lambda: child("labels", "ours", data=data, n_classes=n_classes)}
    of_peer = {"scikit-learn logistic regression": lambda: child("labels", "logistic", data=data)}
    if size < ONCE_FROM:
        found = alternate({**of_ours, **of_peer}, REPEATS)
    else:
        before, peer, after = alternate(of_ours, 1), alternate(of_peer, 1), alternate(of_ours, REPEATS - 1)
        found = {name: before[name] + after[name] for name in of_ours} | peer
    mine = found["oof_probabilities"]
    return [
        {
            "classes": n_classes,
            "model": name,
            "s": median(taken, "seconds"),
            "CPU s": median(taken, "cpu_seconds"),
            "oof_probabilities is faster by": median(taken, "seconds") / median(mine, "seconds"),
            "in CPU time": median(taken, "cpu_seconds") / median(mine, "cpu_seconds"),
            "peak MB": median(taken, "peak_mb"),
            "average precision": median(taken, "average precision"),
            "accuracy on right labels": median(taken, "accuracy"),
        }
        for name, taken in found.items()
    ]


SIZES = {"quick": 2_000, "standard": 5_000, "large": 50_000}

BENCHMARK = Benchmark("labels", "How fast and how good are out-of-fold probabilities?", "x 1280", SIZES, run)
