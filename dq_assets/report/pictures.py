"""What each asset shows: for every table with pictures, the Markdown of its metadata entries by their names.

Where the frames and the files come from, and what is done with the Markdown, is the caller's (`dq_assets.defs.pictures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from dq_assets.audit.calibration import Reliability, reliability
from dq_assets.audit.ontology import corrections, noise_estimate
from dq_assets.audit.outliers import score_cut
from dq_assets.report import charts, galleries, tallies
from dq_assets.report.markdown import escaped, picture, table
from dq_assets.report.thumbnails import Read, thumbnail
from dq_assets.settings import Settings

DRAWING = 4
"""Version of everything that is drawn. Raise it with a change of looks: pictures drawn before are then drawn anew."""

MOST_BYTES = 120_000
"""Most bytes of Markdown of one asset. They are kept with each materialization: at most 350 MB in a year of nightly audits."""

TOP_CORRECTIONS = 15

SHOWN_BESIDE = {"label_issues": ("label_evidence",)}
"""Tables that the pictures of another one show too, which are none of its inputs."""


class Source(Protocol):
    """What the pictures are drawn from: tables of one dataset, its settings, and its files."""

    @property
    def settings(self) -> Settings:
        """The dataset's settings."""
        ...

    def table(self, name: str, *columns: str) -> pl.DataFrame:
        """A table as it stands, in key order."""
        ...

    def encoder_choice(self) -> pl.DataFrame:
        """The rows of encoder_choice that hold, the chosen one first; empty if none was made."""
        ...


@dataclass(frozen=True)
class Drawing:
    """source: tables and settings. read: a file's bytes by its address. probabilities: (image_id, probs) of oof_probs by blocks."""

    source: Source
    read: Read
    probabilities: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]

    def manifest(self) -> pl.DataFrame:
        """What captions and thumbnails need of raw_manifest."""
        return self.source.table("raw_manifest", "image_id", "path", "uri", "given_label", "split", "status", "content_sha256")

    def thumb(self, uri: str, content_sha256: str | None, side: int) -> bytes:
        """A thumbnail, under the limits on pixels and memory that the audit has."""
        limits = self.source.settings.images
        return thumbnail(self.read, uri, content_sha256, side=side, max_pixels=limits.max_pixels, memory_mb=limits.memory_mb)


def _raw_manifest(drawing: Drawing) -> dict[str, str | None]:
    return {"class distribution": _chart(charts.class_chart(tallies.class_sizes(drawing.manifest())), "images per class")}


def _image_properties(drawing: Drawing) -> dict[str, str | None]:
    properties = drawing.source.table("image_properties")
    return {"quality examples": galleries.quality_gallery(properties, drawing.manifest(), drawing.thumb)}


def _embeddings(drawing: Drawing) -> dict[str, str | None]:
    rows = drawing.source.encoder_choice()
    return {} if rows.is_empty() else {"encoders compared": encoder_table(rows)}


def _oof_probs(drawing: Drawing) -> dict[str, str | None]:
    fine = drawing.manifest().filter(pl.col("status") == "ok").select("image_id", "given_label")
    names = fine["given_label"].drop_nulls().unique().sort()
    codes = fine["given_label"].replace_strict(names, pl.int_range(len(names), eager=True), default=-1, return_dtype=pl.Int64).to_numpy()
    ids = fine["image_id"].to_numpy()
    curve = reliability((probs, codes[np.searchsorted(ids, block)]) for block, probs in drawing.probabilities())
    if curve.ece is None:
        return {}
    return {"reliability": f"{_chart(charts.reliability_chart(curve), 'reliability curve')}\n\n{_bins(curve)}"}


def _label_issues(drawing: Drawing) -> dict[str, str | None]:
    issues, options = drawing.source.table("label_issues"), drawing.source.settings.labels
    cut = options.flag_above
    checked, estimate = issues["error_probability"].drop_nulls(), noise_estimate(issues)
    evidence = drawing.source.table("label_evidence")
    found: dict[str, str | None] = {"worst label issues": galleries.label_gallery(issues, evidence, drawing.manifest(), drawing.thumb)}
    if estimate is not None and options.filter_by == "ours":  # cleanlab's filters have no cut on this score
        chart = charts.histogram(
            tallies.score_bins(checked, cut),
            cut,
            name="error_probability",
            flagged="above",
            title=f"How probably each label is wrong: {int(issues['is_label_issue'].sum()):,} of {len(checked):,} flagged",
            subtitle=f"The mean, {estimate:.1%}, is the estimated share of wrong labels.",
        )
        found["error probabilities"] = _chart(chart, "histogram of error_probability")
    return found


def _outliers(drawing: Drawing) -> dict[str, str | None]:
    outliers, rate = drawing.source.table("outliers"), drawing.source.settings.outliers.false_alarm_rate
    scores = outliers["outlier_score"].drop_nulls()
    found: dict[str, str | None] = {"top outliers": galleries.outlier_gallery(outliers, drawing.manifest(), drawing.thumb)}
    cut = score_cut(outliers)
    if cut is not None:
        chart = charts.histogram(
            tallies.score_bins(scores, cut),
            cut,
            name="outlier_score",
            flagged="below",
            title=f"How far each image is from its neighbours: {int(outliers['is_outlier_issue'].sum()):,} of {len(scores):,} flagged",
            subtitle=f"0 is farthest. Of the images that belong here, about {rate:.2%} are expected below the cut.",
        )
        found["outlier scores"] = _chart(chart, "histogram of outlier_score")
    return found


def _near_dups(drawing: Drawing) -> dict[str, str | None]:
    return {"duplicate groups": galleries.duplicate_gallery(drawing.source.table("near_dups"), drawing.manifest(), drawing.thumb)}


def _ontology_report(drawing: Drawing) -> dict[str, str | None]:
    top = corrections(drawing.source.table("label_issues"), TOP_CORRECTIONS)
    if top.is_empty():
        return {}
    return {"most common corrections": _chart(charts.corrections_chart(top), "given label to suggested label, count")}


def _curated_dataset(drawing: Drawing) -> dict[str, str | None]:
    changes = tallies.curation_changes(drawing.manifest(), drawing.source.table("curated_dataset"))
    if changes.is_empty():
        return {}
    return {"what curation changed": _chart(charts.curation_chart(changes), "images per class before and after curation")}


_DRAWN: dict[str, Callable[[Drawing], dict[str, str | None]]] = {
    "raw_manifest": _raw_manifest,
    "image_properties": _image_properties,
    "embeddings": _embeddings,
    "oof_probs": _oof_probs,
    "label_issues": _label_issues,
    "outliers": _outliers,
    "near_dups": _near_dups,
    "ontology_report": _ontology_report,
    "curated_dataset": _curated_dataset,
}

DRAWN = tuple(_DRAWN)
"""Tables whose assets have pictures."""


def pictures(name: str, drawing: Drawing) -> dict[str, str]:
    """Markdown by entry of one of DRAWN; an entry that has nothing to show is left out. At most MOST_BYTES together."""
    return {entry: text for entry, text in _DRAWN[name](drawing).items() if text is not None}


def _chart(image: bytes, alt: str) -> str:
    return picture(image, "png", alt)


def encoder_table(rows: pl.DataFrame) -> str:
    """The rows of encoder_choice as Markdown, in their order."""
    head = ["encoder", "log-loss", "balanced accuracy", "ms an image", "numbers", "why"]
    numbers = {"log_loss": ".3f", "balanced_accuracy": ".3f", "ms_per_image": ".1f", "dimensions": "d"}
    cells = (
        [
            f"**{escaped(row['model'])}**" if row["is_chosen"] else escaped(row["model"]),
            *("" if row[name] is None else format(row[name], how) for name, how in numbers.items()),
            escaped(row["why"]),
        ]
        for row in rows.iter_rows(named=True)
    )
    return table([head, *cells])


def _bins(curve: Reliability) -> str:
    """The curve in numbers."""
    head = ["probability", "images", "mean probability", "agreement", "95% interval"]
    rows = (
        [f"{low:.2f} to {high:.2f}", f"{n:,}", f"{mean:.3f}", f"{share:.3f}", f"{lower:.3f} to {upper:.3f}"]
        for low, high, n, mean, share, lower, upper in curve.bins.iter_rows()
    )
    return table([head, *rows])
