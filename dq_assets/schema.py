"""Every table of a dataset, once: columns, types, keys, meaning, and how the tables depend on each other.

DDL, Dagster assets and their column schema, integrity checks, docs/tables.md and tests are derived from `TABLES`.
What does not belong here: how a table is computed (`dq_assets.audit`) or stored (`dq_assets.store`).

Score contract: `is_<issue>_issue` is a BOOLEAN, `<issue>_score` lies in [0, 1] and 0 is worst.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

STATUSES = ("ok", "unreadable", "too_large", "missing", "no_permission", "not_regular")
"""What became of a file of the manifest. Only `ok` images go on to the tables after image_properties."""

QUALITY_CHECKS = ("dark", "light", "blurry", "low_information", "odd_size", "odd_aspect_ratio", "grayscale")
"""The per-image quality checks, in the order of their columns in image_properties."""

SPLITS = ("train", "validation", "test", "unused")
"""Canonical split names. `val` and `valid` are read as `validation`."""

Rows = Literal["every_image", "ok_images", "some_images", "other"]
Storage = Literal["rows", "matrix", "blocks", "ledger"]


@dataclass(frozen=True)
class Column:
    """One column. `low` and `high` bound numbers (inclusive); `values` lists what a VARCHAR may hold."""

    name: str
    type: str
    doc: str
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table.

    rows: which images it has rows for; checked for completeness.
    storage: `rows` is published by difference, `matrix` replaced whole, `blocks` only grows, `ledger` is keyed by audit
        and read at the newest snapshot, never at an audit's.
    inputs: the tables that it is computed from; they are the edges of the asset graph.
    settings: the sections of `Settings` that change its content; hashed into its code version.
    algorithm: raised whenever the code that computes it changes its answers.
    """

    name: str
    doc: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Rows = "other"
    storage: Storage = "rows"
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    algorithm: int = 1
    kinds: frozenset[str] = field(default_factory=frozenset)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the table."""
        return tuple(column.name for column in self.columns)

    @property
    def is_asset(self) -> bool:
        """Whether a Dagster asset materializes this table (the others are the lake's own book-keeping)."""
        return self.name not in (
            "image_ids",
            "compared_pairs",
            "neighbor_cells",
            "encoder_choice",
            "table_versions",
            "audits",
            "gate_results",
        )


def _score(issue: str, doc: str, *, nullable: bool = False) -> Column:
    return Column(f"{issue}_score", "FLOAT", f"{doc} In [0, 1], 0 is worst.", nullable, low=0, high=1)


def _flag(issue: str, doc: str, *, nullable: bool = False) -> Column:
    return Column(f"is_{issue}_issue", "BOOLEAN", doc, nullable)


def _share(name: str, doc: str, *, nullable: bool = False) -> Column:
    return Column(name, "FLOAT", f"{doc} In [0, 1].", nullable, low=0, high=1)


IMAGE_ID = Column("image_id", "BIGINT", "Given once per path, in order of first sight; never used again.", low=0)
GIVEN_LABEL = Column("given_label", "VARCHAR", "The label that came with the image; null if none came.", nullable=True)
GROUP_ID = Column("group_id", "BIGINT", "Smallest image_id of the duplicate group.", low=0)
KINDS = ("exact", "pixel", "near")

_QUALITY_DOC = {
    "dark": "Brightness of the 99th percentile pixel.",
    "light": "One minus the brightness of the 5th percentile pixel.",
    "blurry": "Spread of the edge image and of the histogram of a copy of at most 64 px.",
    "low_information": "Entropy of the grey histogram in bits, over 10.",
    "odd_size": "Geometric mean of the sides, placed within three interquartile ranges of the dataset's quartiles.",
    "odd_aspect_ratio": "Shorter side over longer side.",
    "grayscale": "0 when all channels are equal, else 1.",
}

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "image_ids",
            "The register of image ids: one row per path ever seen, never changed and never removed.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("path", "VARCHAR", "Path as in raw_manifest."),
            ),
            storage="blocks",
        ),
        Table(
            "compared_pairs",
            "What the pixel witness said of pairs of contents; grows by blocks, never changes, so no pair is compared twice.",
            ("content_a", "content_b", "witness"),
            (
                Column("content_a", "VARCHAR", "The bytes of one picture; sorts before content_b."),
                Column("content_b", "VARCHAR", "The bytes of the other."),
                Column("witness", "VARCHAR", "Version and threshold of the comparison."),
                Column("distance", "FLOAT", "1 - aligned correlation; null if they are different pictures.", True, low=0, high=1),
            ),
            storage="blocks",
        ),
        Table(
            "neighbor_cells",
            "The index behind neighbors, as it was fitted: kept until it no longer fits, so that new images move no other image's cell.",
            ("version", "partition", "row"),
            (
                Column("version", "BIGINT", "1, 2, 3 ...: a fit; metric `cells version` of neighbors says which one an audit used.", low=1),
                Column("partition", "INTEGER", "0 is the rotation, 1, 2 ... the centres of a partition; more may be added later.", low=0),
                Column("row", "BIGINT", "Of the rotation: a dimension of the vectors; else: a cell.", low=0),
                Column("encoder", "VARCHAR", "As in embeddings: whose vectors it is for."),
                Column("algorithm", "INTEGER", "Of the search; another one puts the same vector elsewhere.", low=1),
                Column("n_images", "BIGINT", "Images that the rotation was fitted on, or the centres drawn from.", low=1),
                Column("reason", "VARCHAR", "Why it was fitted or added."),
                Column("numbers", "FLOAT[]", "That row of the matrix; a number for each dimension that is searched."),
            ),
            storage="blocks",
        ),
        Table(
            "encoder_choice",
            "What encoder.model=auto compared and chose; a choice is never changed, so that new images do not change the encoder.",
            ("question", "model"),
            (
                Column("question", "VARCHAR", "encoder.choice and encoder.candidates: another question is answered anew."),
                Column("model", "VARCHAR", "timm's name."),
                Column("is_chosen", "BOOLEAN", "Whether it is the answer."),
                Column("why", "VARCHAR", "Why it was chosen, or not, or not compared."),
                Column(
                    "n_images",
                    "BIGINT",
                    "Images of the sample; null in this column and those that follow if nothing was compared.",
                    True,
                    low=1,
                ),
                Column("n_classes", "BIGINT", "Classes of the sample.", True, low=2),
                Column("log_loss", "DOUBLE", "Mean -log p of the given label, out of fold; lower is better.", True, low=0),
                Column("behind", "DOUBLE", "log_loss above the lowest.", True, low=0),
                Column("behind_error", "DOUBLE", "Standard error of `behind`.", True, low=0),
                _share("accuracy", "Share of the sample whose most probable class is the given one.", nullable=True),
                _share("balanced_accuracy", "Mean of that share over the classes.", nullable=True),
                Column(
                    "ms_per_image",
                    "DOUBLE",
                    "Milliseconds of the network on the machine that chose, on a CPU of all cores together; without decoding.",
                    True,
                    low=0,
                ),
                Column("dimensions", "INTEGER", "Numbers in a vector.", True, low=1),
                Column("chosen_at", "TIMESTAMPTZ", "When."),
            ),
            storage="blocks",
        ),
        Table(
            "raw_manifest",
            "Every file of the source: where it is, what it is called, what its bytes and pixels are, and whether it could be read.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("path", "VARCHAR", "Relative to the source's root, unique; bytes that are no UTF-8 as backslash escapes."),
                Column("uri", "VARCHAR", "Exact address, percent-encoded."),
                GIVEN_LABEL,
                Column("split", "VARCHAR", "train, validation, test or unused; null if the source has no splits.", True, values=SPLITS),
                Column("group", "VARCHAR", "The user's group (patient, sender, scene): never split over folds.", True),
                Column("content_sha256", "VARCHAR", "SHA-256 of the file's bytes; null if they could not be read.", True),
                Column("pixel_hash", "VARCHAR", "BLAKE2b-128 of shape and decoded RGB pixels, EXIF orientation applied.", True),
                Column("width", "INTEGER", "Pixels, after EXIF orientation.", True, low=1),
                Column("height", "INTEGER", "Pixels, after EXIF orientation.", True, low=1),
                Column("format", "VARCHAR", "Format by the bytes, not by the suffix: JPEG, PNG ...", True),
                Column("mode", "VARCHAR", "Colour mode of the file: RGB, L, P, CMYK ...", True),
                Column("bytes", "BIGINT", "File size; null if the file is missing.", True, low=0),
                Column("mtime", "DOUBLE", "Modification time, seconds since 1970.", True),
                Column("etag", "VARCHAR", "The source's own mark of a change: an ETag, a zip member's CRC; null for local files.", True),
                Column("status", "VARCHAR", "What became of the file.", values=STATUSES),
                Column("reason", "VARCHAR", "Why the status is not ok, or a note (wrong suffix, repeated row); else null.", True),
            ),
            rows="every_image",
            settings=("images",),
            kinds=frozenset({"python", "duckdb"}),
        ),
        Table(
            "image_properties",
            "What the pixels say without a model: perceptual hash and quality checks.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("phash", "VARCHAR", "64-bit DCT perceptual hash, 16 hex digits."),
                *(
                    column
                    for check in QUALITY_CHECKS
                    for column in (_score(check, _QUALITY_DOC[check]), _flag(check, f"Whether {check}_score is beyond its threshold."))
                ),
            ),
            rows="ok_images",
            settings=("images", "quality"),
            kinds=frozenset({"python", "duckdb"}),
        ),
        Table(
            "embeddings",
            "One vector per distinct file content and encoder; grows by blocks, never changes.",
            ("content_sha256", "encoder"),
            (
                Column("content_sha256", "VARCHAR", "The file's bytes."),
                Column("encoder", "VARCHAR", "Model, weights, preprocessing and precision: all that changes the vector."),
                Column("vector", "FLOAT[]", "Pooled features before the classifier, not normalised."),
            ),
            storage="blocks",
            inputs=("raw_manifest",),
            settings=("encoder", "images"),
            kinds=frozenset({"torch", "duckdb"}),
        ),
        Table(
            "neighbors",
            "The k nearest other images by cosine distance, nearest first: exact, or by an index with the recall that was asked for.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("neighbor_ids", "BIGINT[]", "Image ids, nearest first; shorter than k only if the dataset is."),
                Column("distances", "FLOAT[]", "Cosine distances in [0, 2], ascending.", low=0, high=2),
            ),
            rows="ok_images",
            storage="matrix",
            inputs=("embeddings", "raw_manifest"),
            settings=("neighbors",),
            algorithm=5,
            kinds=frozenset({"torch", "duckdb"}),
        ),
        Table(
            "duplicate_groups",
            "Groups of images that show the same picture; only images that are in a group.",
            ("image_id",),
            (
                IMAGE_ID,
                GROUP_ID,
                Column("kind", "VARCHAR", "Strongest tie to the group: exact bytes, equal pixels, or near.", values=KINDS),
                Column(
                    "distance",
                    "FLOAT",
                    "1 - aligned pixel correlation with its closest confirmed partner; 0 for exact and pixel.",
                    low=0,
                    high=1,
                ),
            ),
            rows="some_images",
            inputs=("raw_manifest", "image_properties", "neighbors"),
            algorithm=2,
            settings=("duplicates",),
            kinds=frozenset({"python", "duckdb"}),
        ),
        Table(
            "folds",
            "The cross-validation fold of every image, kept for ever: duplicates and the user's groups stay together.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("component_id", "BIGINT", "Smallest image_id of the images that must share a fold.", low=0),
                Column("fold", "INTEGER", "0-based fold.", low=0),
            ),
            rows="ok_images",
            inputs=("raw_manifest", "duplicate_groups"),
            settings=("folds",),
            kinds=frozenset({"python", "duckdb"}),
        ),
        Table(
            "oof_probs",
            "Out-of-fold class probabilities: each image is scored once, by a model that saw neither it nor its duplicates.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("fold", "INTEGER", "The fold that was held out for this row.", low=0),
                Column("probs", "FLOAT[]", "Over the classes in sorted order of their names; sums to 1.", low=0, high=1),
            ),
            rows="ok_images",
            storage="matrix",
            inputs=("embeddings", "folds", "raw_manifest"),
            settings=("labels",),
            algorithm=5,
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "label_issues",
            "Is the given label wrong? Confident learning on the out-of-fold probabilities.",
            ("image_id",),
            (
                IMAGE_ID,
                GIVEN_LABEL,
                Column("suggested_label", "VARCHAR", "Most probable class; the given label where nothing speaks against it.", True),
                _score("label", "Probability that the given label is right, by the out-of-fold model.", nullable=True),
                _flag("label", "Whether error_probability is above the threshold; null if the label was not checked.", nullable=True),
                _share("p_given", "Out-of-fold probability of the given label.", nullable=True),
                _share("p_suggested", "Out-of-fold probability of the suggested label.", nullable=True),
                _share(
                    "error_probability",
                    "Estimated probability that the given label is wrong; rests on assumptions until labels are reviewed.",
                    nullable=True,
                ),
                Column(
                    "kind",
                    "VARCHAR",
                    "mislabeled; ambiguous: the given class is plausible too; multi_label: ambiguous, and it seems to hold two things.",
                    True,
                    values=("mislabeled", "ambiguous", "multi_label"),
                ),
                Column("candidate_labels", "VARCHAR[]", "Plausible classes, most probable first; empty if none was checked."),
            ),
            rows="ok_images",
            inputs=("oof_probs", "embeddings", "folds", "raw_manifest"),
            settings=("labels", "folds"),
            algorithm=8,
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "label_noise",
            "The sums behind label_issues, one row per class: what the class and the ontology report are read from.",
            ("class_name",),
            (
                Column("class_name", "VARCHAR", "The class."),
                Column("n", "BIGINT", "Readable images with this given label.", low=0),
                Column("n_checked", "BIGINT", "Those whose label was checked.", low=0),
                Column("n_agreed", "BIGINT", "Those of the checked ones whose most probable class is this one.", low=0),
                Column(
                    "threshold",
                    "DOUBLE",
                    "Mean probability of the class over its checked images, from which confident learning counts; null without any.",
                    True,
                    low=0,
                    high=1,
                ),
                Column("expected_wrong", "DOUBLE", "Sum of the error probabilities of its images.", low=0),
                Column("expected_wrong_low", "DOUBLE", "The same by the lowest of several assumptions.", low=0),
                Column("expected_wrong_high", "DOUBLE", "The same by the highest of several assumptions.", low=0),
                Column(
                    "joint",
                    "FLOAT[]",
                    "Expected number of its checked images by true class, over the classes in sorted order of their names.",
                    low=0,
                ),
                Column("is_learnable", "BOOLEAN", "Whether the class has enough independent images to be checked."),
            ),
            inputs=("oof_probs", "folds", "raw_manifest"),
            settings=("folds",),
            algorithm=4,
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "label_evidence",
            "Why a label was flagged: the nearest images with the given and with the suggested label, copies and flagged images left out.",
            ("image_id", "role", "rank"),
            (
                Column("image_id", "BIGINT", "A flagged image of label_issues.", low=0),
                Column("role", "VARCHAR", "Which of its two labels the neighbour has.", values=("given", "suggested")),
                Column("rank", "INTEGER", "1 is the nearest.", low=1),
                Column("label", "VARCHAR", "That label."),
                Column("neighbor_id", "BIGINT", "The neighbour's image_id.", low=0),
                Column("distance", "FLOAT", "Cosine distance between the two.", low=0, high=2),
            ),
            inputs=("label_issues", "neighbors", "duplicate_groups", "embeddings", "raw_manifest"),
            kinds=frozenset({"torch", "duckdb"}),
        ),
        Table(
            "outliers",
            "Images that belong to no class: far from their nearest neighbours that are no copies, which have other labels.",
            ("image_id",),
            (
                IMAGE_ID,
                _score("outlier", "exp(-distance / median over the dataset).", nullable=True),
                _flag(
                    "outlier", "Whether the distance is beyond what regular images reach; null if it could not be checked.", nullable=True
                ),
            ),
            rows="ok_images",
            inputs=("neighbors", "duplicate_groups", "raw_manifest"),
            settings=("outliers",),
            algorithm=3,
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "near_dups",
            "The verdict on duplicates: which copy to keep, which label of a group is wrong, which groups leak over splits.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("group_id", "BIGINT", "Duplicate group; null if the image has none.", True, low=0),
                Column("kind", "VARCHAR", "exact, pixel or near; null if the image is in no group.", True, values=KINDS),
                _score("near_duplicate", "0 for a copy, 1 for an image without a partner; distance of duplicate_groups in between."),
                _flag("near_duplicate", "Whether the image is in a group."),
                Column("label_conflict", "BOOLEAN", "Whether the group holds more than one given label."),
                Column("crosses_split", "BOOLEAN", "Whether the group stands in more than one of train, validation, test."),
                Column("is_wrong_label", "BOOLEAN", "Whether this member's label is the wrong one of a conflict."),
                Column("resolved_label", "VARCHAR", "The label of the group after a conflict is resolved; null without a group.", True),
                _share("confidence", "Confidence in resolved_label; null without a group.", nullable=True),
                Column("is_keeper", "BOOLEAN", "Whether this is the copy to keep; true for images in no group."),
            ),
            rows="ok_images",
            inputs=("duplicate_groups", "oof_probs", "raw_manifest"),
            settings=("duplicates",),
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "class_report",
            "How well each class is labelled.",
            ("class_name",),
            (
                Column("class_name", "VARCHAR", "The class."),
                Column("n", "BIGINT", "Readable images with this given label.", low=0),
                _share("noise_rate", "Estimated share of its images whose true class is another; null if not checked.", nullable=True),
                _share("noise_rate_low", "The same by the lowest of several assumptions; not a confidence interval.", nullable=True),
                _share("noise_rate_high", "The same by the highest of several assumptions; not a confidence interval.", nullable=True),
                _share(
                    "inverse_noise_rate",
                    "Estimated share of the true members that carry another label; null if not checked.",
                    nullable=True,
                ),
                _share("accuracy", "Share of its images whose most probable class is the given one; null if not checked.", nullable=True),
                Column("most_common_correction", "VARCHAR", "Most frequent suggestion among its flagged images.", True),
                Column("n_corrections", "BIGINT", "How many flagged images that suggestion has.", low=0),
                Column("is_learnable", "BOOLEAN", "Whether the class has enough independent images to be checked."),
            ),
            inputs=("label_noise", "label_issues"),
            algorithm=5,
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "ontology_report",
            "Pairs of classes that are confused with each other.",
            ("class_a", "class_b"),
            (
                Column("class_a", "VARCHAR", "First class in sorted order."),
                Column("class_b", "VARCHAR", "Second class."),
                Column("n_a_to_b", "BIGINT", "Flagged images with given label a and suggested label b.", low=0),
                Column("n_b_to_a", "BIGINT", "Flagged images with given label b and suggested label a.", low=0),
                Column(
                    "overlap",
                    "DOUBLE",
                    "Estimated share of all images on either off-diagonal cell of the joint of given and true label.",
                    low=0,
                    high=1,
                ),
            ),
            inputs=("label_noise", "label_issues"),
            algorithm=5,
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "curated_dataset",
            "What to train on: every image of the manifest exactly once, with an action and its reason.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("final_label", "VARCHAR", "The label to train on; the given one unless relabelled.", True),
                Column("action", "VARCHAR", "keep, relabel, drop or review.", values=("keep", "relabel", "drop", "review")),
                Column("reason", "VARCHAR", "Why, in one line."),
                Column("source", "VARCHAR", "Who decided.", values=("policy", "person")),
            ),
            rows="every_image",
            inputs=(
                *("raw_manifest", "image_properties", "label_issues", "label_evidence", "outliers", "near_dups"),
                *("class_report", "ontology_report"),
            ),
            settings=("curation",),
            kinds=frozenset({"polars", "duckdb"}),
        ),
        Table(
            "training_set",
            "The images to train on, of the last audit whose gates let them through; published after that audit.",
            ("image_id",),
            (
                IMAGE_ID,
                Column("path", "VARCHAR", "As in raw_manifest."),
                Column("uri", "VARCHAR", "As in raw_manifest."),
                Column("label", "VARCHAR", "final_label of curated_dataset; the given label in the held-out part."),
                Column("split", "VARCHAR", "The part it belongs to.", values=("train", "validation", "test")),
                Column("content_sha256", "VARCHAR", "The bytes to train on, so that a changed file is noticed."),
                Column("audit_id", "BIGINT", "The audit that it was made from.", low=1),
            ),
            inputs=("curated_dataset", "raw_manifest", "folds"),
            settings=("training",),
            kinds=frozenset({"polars", "duckdb"}),
        ),
        Table(
            "trained_model",
            "A linear probe trained on the raw and on the curated labels, scored on the same held-out images.",
            ("audit_id",),
            (
                Column("audit_id", "BIGINT", "The audit whose training set was used.", low=1),
                Column("held_out", "VARCHAR", "What it was scored on.", values=("test split", "fold 0")),
                Column("n_train_raw", "BIGINT", "Training images before curation.", low=0),
                Column("n_train_curated", "BIGINT", "Training images after curation.", low=0),
                Column("n_held_out", "BIGINT", "Held-out images.", low=0),
                _share("accuracy_raw", "Accuracy after training on the raw labels.", nullable=True),
                _share("accuracy_curated", "Accuracy after training on the curated labels.", nullable=True),
                Column("gain", "DOUBLE", "accuracy_curated - accuracy_raw.", True, low=-1, high=1),
                Column("gain_low", "DOUBLE", "Lower end of the gain's 95 % bootstrap interval.", True, low=-1, high=1),
                Column("gain_high", "DOUBLE", "Upper end of the gain's 95 % bootstrap interval.", True, low=-1, high=1),
            ),
            storage="ledger",
            inputs=("training_set", "embeddings", "folds", "raw_manifest"),
            settings=("training",),
            kinds=frozenset({"numpy", "duckdb"}),
        ),
        Table(
            "table_versions",
            "What each table was computed from; read at an audit's snapshot it tells what that audit used.",
            ("table_name",),
            (
                Column("table_name", "VARCHAR", "The table."),
                Column("fingerprint", "VARCHAR", "Hash of code version and of the digests of all inputs; equal means nothing to compute."),
                Column("digest", "VARCHAR", "SHA-256 of the content; the asset's data version."),
                Column("n_rows", "BIGINT", "Rows.", low=0),
                Column("metrics", "VARCHAR", "JSON: the numbers that its computation reported."),
            ),
        ),
        Table(
            "audits",
            "One row per complete audit, written last: a row means that all its tables belong together.",
            ("audit_id",),
            (
                Column("audit_id", "BIGINT", "1, 2, 3 ...; what --version takes.", low=1),
                Column("snapshot_id", "BIGINT", "The lake's snapshot to read the audit's tables at.", low=0),
                Column("training_snapshot_id", "BIGINT", "The snapshot of its training_set; null while a gate holds it.", True, low=0),
                Column("run_id", "VARCHAR", "The Dagster run that completed it."),
                Column("started", "TIMESTAMPTZ", "Start of that run."),
                Column("finished", "TIMESTAMPTZ", "When the row was written."),
                Column("settings", "VARCHAR", "JSON of all settings."),
                Column("digests", "VARCHAR", "JSON of the content digest of every table."),
                Column("tag", "VARCHAR", "A name given to it.", True),
                Column("pinned_by", "VARCHAR", "Who keeps it from retention.", True),
            ),
            storage="ledger",
        ),
        Table(
            "gate_results",
            "The verdict of every gate on every audit.",
            ("audit_id", "check_name"),
            (
                Column("audit_id", "BIGINT", "The audit.", low=1),
                Column("check_name", "VARCHAR", "The gate."),
                Column("verdict", "VARCHAR", "not_run is not passed.", values=("passed", "failed", "not_run")),
                Column("blocking", "BOOLEAN", "Whether training is held while it has not passed."),
                Column("value", "DOUBLE", "What was measured; null if it could not be.", True),
                Column("limit_value", "DOUBLE", "What it was held against.", True),
                Column("reason", "VARCHAR", "The verdict in one line."),
                Column("override_by", "VARCHAR", "Who let it pass.", True),
                Column("override_reason", "VARCHAR", "Why.", True),
            ),
            storage="ledger",
        ),
    )
}

ASSET_TABLES: tuple[str, ...] = tuple(name for name, table in TABLES.items() if table.is_asset)
"""Tables that are assets, in an order in which each follows its inputs."""
