"""Which network suits a dataset: those that are there are compared on a sample of the labelled images.

Each is judged as the audit will use it: by how well the heads of `oof`, cross-validated on its vectors, predict the given labels.
The fastest of those within one standard error of the best is chosen (the rule of Breiman et al. 1984 for trees, with time for size). On
two sets of photos of clothes and five samples of each, the default was never chosen beside its larger siblings (package `[encoders]`),
with which the wrong labels of one set are ranked at average precision .931 and .928, where it reaches .898.
What does not belong here: reading and embedding the sample (`dq_assets.defs.embedding`), keeping the choice (`dq_assets.store.fitted`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit.encoder import Encoder
from dq_assets.audit.folds import FOLDS_SCHEMA, assign_folds
from dq_assets.audit.networks import DEFAULT_MODEL, available_models, cached_weights, packaged_weights, timm_config
from dq_assets.audit.oof import oof_probabilities
from dq_assets.settings import UserError

AUTO = "auto"
"""The value of encoder.model that asks for a choice."""

SAMPLE = 1500
"""Images that are compared: the standard error of a difference in log-loss is then near .01."""

MOST_CLASSES = 100
"""Classes in the sample: with more, each would have too few images to be learnt."""

LEAST_PER_CLASS = 5
"""Images that a class needs to take part."""

SAME_BITS = 4
"""Pictures whose perceptual hashes differ in at most so many bits share a fold: re-encoded, resized and brightened copies do, mostly."""

STANDARD_ERRORS = 1.0
"""A difference of log-losses counts if it is beyond so many of its standard errors. With 2 a sure loss over all images (.033 ± .010) went
unseen in 3 of 10 samples."""

SLOWEST = 20.0
"""A network that takes more than so many times as long as the fastest before it is left out."""

RUNS = 3


@dataclass(frozen=True)
class Trial:
    """A network on the sample. nats: (m,) -log p of the given label, out of fold; predicted: (m,) codes; dimensions: of a vector."""

    model: str
    nats: NDArray[np.float64]
    predicted: NDArray[np.int64]
    ms_per_image: float
    dimensions: int


def candidates(listed: str) -> tuple[list[str], dict[str, str]]:
    """(models to compare, why others are not) of encoder.candidates: those that are named, or all that need no network to load.

    Asks no network. Raises UserError for a name that timm does not know, and if none of those that are named is on this machine.
    """
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        return available_models(), {}
    here = [name for name in dict.fromkeys(names) if packaged_weights(name) is not None or cached_weights(timm_config(name)) is not None]
    if not here:
        raise UserError(f"No weights of encoder.candidates={listed!r} are on this machine, and auto fetches none. Name others, or none.")
    return here, {name: "its weights are not on this machine" for name in names if name not in here}


def sample(images: pl.DataFrame, options: settings.Folds) -> pl.DataFrame:
    """At most SAMPLE images, in image_id order, as many of each class as the others allow; empty if there are no two classes to compare.

    images: image_id (ascending), given_label, group, pixel_hash, phash. Equal pictures count once. Adds code (of the class) and, as of
    `folds.assign_folds`, component_id and fold. Which images are drawn is decided by their pixels alone: the lowest hashes.
    """
    known = images.filter(pl.col("given_label").is_not_null()).unique("pixel_hash", keep="first", maintain_order=True)
    classes = known["given_label"].value_counts().filter(pl.col("count") >= LEAST_PER_CLASS)["given_label"].sort()
    if len(classes) > MOST_CLASSES:
        classes = classes.gather(np.linspace(0, len(classes) - 1, MOST_CLASSES).astype(np.int64))
    if len(classes) < 2:
        return images.clear()
    drawn = known.filter(pl.col("given_label").is_in(classes.implode())).with_columns(
        rank=pl.col("pixel_hash").rank("ordinal").over("given_label")
    )
    drawn = drawn.sort("rank", "given_label").head(SAMPLE).sort("image_id").drop("rank")
    folds = assign_folds(
        drawn["image_id"].to_numpy(),
        drawn["given_label"].to_list(),
        drawn["group"].to_list(),
        _alike(drawn["phash"].to_list()),
        previous=pl.DataFrame(schema=FOLDS_SCHEMA),
        settings=options,
    )
    code = drawn["given_label"].replace_strict(classes, pl.int_range(len(classes), eager=True), return_dtype=pl.Int64)
    return drawn.with_columns(code=code).join(folds, on="image_id", maintain_order="left")


def _alike(phash: Sequence[str]) -> NDArray[np.int64]:
    """(m,) number of the group of hashes that are at most SAME_BITS apart, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bits = np.array([int(digits, 16) for digits in phash], np.uint64)
    near = np.nonzero(np.bitwise_count(bits[:, None] ^ bits[None, :]) <= SAME_BITS)
    graph = coo_array((np.ones(len(near[0]), np.int8), near), shape=(len(bits), len(bits)))
    found: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def ms_per_image(network: Encoder) -> float:
    """Milliseconds that the network takes for an image in full batches, the best of RUNS; decoding is left out.

    On a CPU those of all its cores together: wall time, while other programs ran, called a network 3.4 times as slow as another, not 1.3.
    """
    clock = time.process_time if network.engine.device == "cpu" else time.perf_counter
    pixels = np.zeros((network.batch, *network.input_size, 3), np.uint8)
    took = []
    for _ in range(RUNS):
        started = clock()
        network(pixels)
        took.append(clock() - started)
    return min(took) / len(pixels) * 1000


def trial(model: str, vectors: NDArray[np.float32], drawn: pl.DataFrame, ms: float) -> Trial:
    """What the heads make of a network's vectors (m, d) of the sample."""
    codes = drawn["code"].to_numpy()
    probs = oof_probabilities(vectors, codes, drawn["fold"].to_numpy(), int(codes.max()) + 1).probs
    nats = -np.log(np.maximum(probs[np.arange(len(codes)), codes].astype(np.float64), 1e-7))
    return Trial(model, nats, probs.argmax(axis=1).astype(np.int64), ms, vectors.shape[1])


def choose(trials: Sequence[Trial], drawn: pl.DataFrame, left_out: dict[str, str]) -> pl.DataFrame:
    """A row per model: the columns of encoder_choice from `model` to `dimensions`, the chosen one first, then by log-loss.

    trials: at least one. left_out: why a model has none. A difference of two log-losses is a mean of differences of the same images; its
    standard error is over the components, whose images are not independent.
    """
    best = min(trials, key=lambda one: (one.nats.mean(), one.model))
    behind = {one.model: _difference(one.nats - best.nats, drawn["component_id"].to_numpy()) for one in trials}
    as_good = [one for one in trials if behind[one.model][0] <= STANDARD_ERRORS * behind[one.model][1]]
    chosen = min(as_good, key=lambda one: (one.ms_per_image, one.model))
    rows = [_row(one, drawn, behind[one.model], _why(one, chosen, best, behind, len(trials)), one is chosen) for one in trials]
    rows.sort(key=lambda row: (not row["is_chosen"], row["log_loss"], row["model"]))
    return pl.DataFrame([*rows, *(_blank(model, why) for model, why in left_out.items())], schema=ROWS)


ROWS = {
    "model": pl.String,
    "is_chosen": pl.Boolean,
    "why": pl.String,
    "n_images": pl.Int64,
    "n_classes": pl.Int64,
    "log_loss": pl.Float64,
    "behind": pl.Float64,
    "behind_error": pl.Float64,
    "accuracy": pl.Float32,
    "balanced_accuracy": pl.Float32,
    "ms_per_image": pl.Float64,
    "dimensions": pl.Int32,
}


def without_comparison(model: str, why: str, left_out: dict[str, str]) -> pl.DataFrame:
    """The rows of `choose` where nothing was compared."""
    return pl.DataFrame([_blank(model, why) | {"is_chosen": True}, *(_blank(*one) for one in left_out.items())], schema=ROWS)


def default_of(models: Sequence[str]) -> str:
    """What is taken where nothing can be compared: the default if it is among the models, else the first of them."""
    return DEFAULT_MODEL if DEFAULT_MODEL in models else models[0]


def _difference(apart: NDArray[np.float64], component: NDArray[np.int64]) -> tuple[float, float]:
    """Mean of (m,) differences and its standard error, clustered by component."""
    mean = float(apart.mean())
    sums = np.bincount(np.unique(component, return_inverse=True)[1], apart - mean)
    return mean, float(np.sqrt(np.square(sums).sum()) / len(apart))


def _why(one: Trial, chosen: Trial, best: Trial, behind: dict[str, tuple[float, float]], n_trials: int) -> str:
    apart, error = behind[one.model]
    if one is best:
        text = "the lowest out-of-fold log-loss" if n_trials > 1 else "the only one that could be compared"
        if one is chosen:
            return text
        return (
            f"{text}, but {behind[chosen.model][0]:.3f} ± {behind[chosen.model][1]:.3f} is no sure gain on {chosen.model}, which is faster"
        )
    text = f"log-loss {apart:.3f} ± {error:.3f} above that of {best.model}"
    if one is chosen:
        return f"{text}, no sure difference, and {best.ms_per_image / one.ms_per_image:.1f} times as fast"
    return text


def _row(one: Trial, drawn: pl.DataFrame, behind: tuple[float, float], why: str, is_chosen: bool) -> dict[str, object]:
    codes = drawn["code"].to_numpy()
    right = one.predicted == codes
    return {
        "model": one.model,
        "is_chosen": is_chosen,
        "why": why,
        "n_images": len(codes),
        "n_classes": int(codes.max()) + 1,
        "log_loss": float(one.nats.mean()),
        "behind": behind[0],
        "behind_error": behind[1],
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((np.bincount(codes, right) / np.bincount(codes)).mean()),
        "ms_per_image": one.ms_per_image,
        "dimensions": one.dimensions,
    }


def _blank(model: str, why: str) -> dict[str, object]:
    return {name: None for name in ROWS} | {"model": model, "is_chosen": False, "why": why}
