"""Does curation help? A linear probe is trained on the raw and on the curated labels and scored on the same held-out images.

The held-out part is the labelled test split, else fold 0 of components; its labels are the given ones, so a policy cannot grade itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings as st
from dq_assets.audit.curation import held_out_split
from dq_assets.audit.oof import oof_probabilities


def gain_of_curation(
    vectors: NDArray[np.float32],
    codes: NDArray[np.int64],
    manifest: pl.DataFrame,
    training_set: pl.DataFrame,
    class_names: list[str],
    *,
    settings: st.Training,
) -> dict[str, Any]:
    """The columns of table trained_model but audit_id.

    vectors (n, d), codes (n,) given labels (-1 unlabelled) and manifest (image_id, split, fold) are of the readable images in
    image_id order. training_set is the table. The gain's interval is a paired bootstrap over the held-out images
    (Efron 1979), seed 0. With nothing to score or to train on, accuracies and gain are null.
    """
    labelled = manifest.filter(codes >= 0)
    part = manifest.select(part=held_out_split(labelled))["part"].to_numpy()
    in_use = (manifest["split"].fill_null("train") != "unused").to_numpy() & (codes >= 0)
    held_out = (part == "test") & in_use
    raw = np.where((part == "train") & in_use, codes, -1)
    curated = _curated_codes(manifest["image_id"].to_numpy(), training_set, class_names)
    fold = manifest["fold"].to_numpy()
    report: dict[str, Any] = {
        "held_out": "test split" if (labelled["split"] == "test").any() else "fold 0",
        "n_train_raw": int((raw >= 0).sum()),
        "n_train_curated": int((curated >= 0).sum()),
        "n_held_out": int(held_out.sum()),
        **dict.fromkeys(("accuracy_raw", "accuracy_curated", "gain", "gain_low", "gain_high")),
    }
    if not held_out.any() or not (raw >= 0).any() or not (curated >= 0).any():
        return report
    right_raw, right_curated = (_right(vectors, labels, held_out, fold, codes, len(class_names)) for labels in (raw, curated))
    difference = right_curated.astype(np.float32) - right_raw.astype(np.float32)
    rng = np.random.default_rng(0)
    means = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(settings.bootstrap)]
    low, high = np.percentile(means, [2.5, 97.5])
    return report | {
        "accuracy_raw": float(right_raw.mean()),
        "accuracy_curated": float(right_curated.mean()),
        "gain": float(difference.mean()),
        "gain_low": float(low),
        "gain_high": float(high),
    }


def _curated_codes(image_id: NDArray[np.int64], training_set: pl.DataFrame, class_names: list[str]) -> NDArray[np.int64]:
    """(n,) code of each image's training label, -1 where it is not trained on. Raises ValueError for an image that is not there."""
    index = {name: code for code, name in enumerate(class_names)}
    rows = training_set.filter(pl.col("split") == "train")
    if not np.isin(rows["image_id"].to_numpy(), image_id).all():
        raise ValueError("training_set has images that are no longer readable. Audit again.")
    codes = np.full(len(image_id), -1, np.int64)
    codes[np.searchsorted(image_id, rows["image_id"].to_numpy())] = [index[label] for label in rows["label"]]
    return codes


def _right(
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    fold: NDArray[np.integer],
    given: NDArray[np.int64],
    n_classes: int,
) -> NDArray[np.bool_]:
    """Whether the probe is right on each held-out image.

    The held-out images form fold 0 without labels, so its model is the one of all training images, and the training images'
    own folds choose shrinkage and temperature: the same head as in oof_probs, and no look at the held-out part.
    """
    folds = np.where(held_out, 0, fold + 1).astype(np.int64)
    probs = oof_probabilities(vectors, np.where(held_out, -1, labels), folds, n_classes).probs
    right: NDArray[np.bool_] = probs[held_out].argmax(axis=1) == given[held_out]
    return right
