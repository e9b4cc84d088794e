"""curated_dataset, training_set and trained_model: what to train on, and what it is worth."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from dq_assets.audit import curation, training
from dq_assets.defs.session import Session
from dq_assets.defs.stages.inputs import classes, image_vectors
from dq_assets.store import audits
from dq_assets.store.tables import Version, record_version, upsert


def curated_dataset(session: Session) -> Version:
    """Publish what to do with every image."""
    table = curation.curate(
        session.table("raw_manifest"),
        session.table("label_issues"),
        session.table("outliers"),
        session.table("near_dups"),
        session.settings.curation,
    )
    counts = {f"action {action}": n for action, n in table["action"].value_counts().sort("action").iter_rows()}
    return session.publish("curated_dataset", table, counts)


def training_set(session: Session, audit_id: int) -> Version:
    """Publish the training set of an audit whose gates are open."""
    table = curation.training_set(
        session.table("raw_manifest"),
        session.table("curated_dataset"),
        session.table("folds"),
        include_review=session.settings.training.include_review,
    ).with_columns(audit_id=pl.lit(audit_id, pl.Int64))
    parts = {f"images in {split}": n for split, n in table["split"].value_counts().sort("split").iter_rows()}
    version = session.publish("training_set", table, {"audit": audit_id, **parts}, extra=training_extra(audit_id))
    audits.record_training_set(session.lake, session.dataset.name, audit_id)
    return version


def training_extra(audit_id: int) -> str:
    """What training_set depends on beside tables and settings."""
    return f"audit {audit_id}"


def trained_model(session: Session) -> Version:
    """Train the probe on raw and on curated labels, score both, and note the gain of the audit that the training set is of."""
    audit_id = int(session.versions()["training_set"].metrics["audit"])
    names, codes = classes(session)
    _, vectors = image_vectors(session)
    manifest = session.fine("given_label", "split").join(session.table("folds"), on="image_id", maintain_order="left")
    chosen = session.table("training_set")
    report = training.gain_of_curation(vectors, codes, manifest, chosen, names, settings=session.settings.training)
    row: dict[str, Any] = {"audit_id": audit_id, **report}
    with session.lake.transaction():
        upsert(session.lake, session.dataset.name, "trained_model", pl.DataFrame([row], infer_schema_length=None))
    digest = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()
    version = Version(session.fingerprint("trained_model"), digest, len(session.table("trained_model")), row)
    record_version(session.lake, session.dataset.name, "trained_model", version)
    return version
