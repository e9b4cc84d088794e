"""folds, oof_probs and what is made of them: label issues, their sums and evidence, the class and the ontology report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from dq_assets.audit import cleanlab_rules, confident, evidence, folds, kinds, ontology, oof, pred_probs
from dq_assets.audit.rows import to_file
from dq_assets.defs.session import Session
from dq_assets.defs.stages.inputs import (
    PUBLISH_ROWS,
    arrow_blocks,
    cache_folder,
    classes,
    group_of,
    image_vectors,
    learnable_classes,
    read_neighbors,
    streamed_probs,
    vector_reader,
)
from dq_assets.store.tables import Version


def assigned_folds(session: Session) -> Version:
    """Publish folds; images that had one keep it."""
    fine = session.fine("given_label", "group")
    image_id = fine["image_id"].to_numpy()
    previous = session.table("folds")
    options = session.settings.folds
    if previous["fold"].to_numpy().max(initial=-1) >= options.n_folds:
        previous = previous.clear()  # fewer folds than before: all are drawn anew
    table = folds.assign_folds(
        image_id, fine["given_label"].to_list(), fine["group"].to_list(), group_of(session, image_id), previous=previous, settings=options
    )
    sizes = {f"images in fold {fold}": n for fold, n in table["fold"].value_counts().sort("fold").iter_rows()}
    return session.publish("folds", table, {"components": table["component_id"].n_unique(), **sizes})


def oof_probs(session: Session) -> Version:
    """Publish out-of-fold probabilities: the user's if there are some, else those of our heads."""
    if session.dataset.pred_probs is not None:
        return _user_probs(session)
    image_id, vectors = image_vectors(session)
    names, codes = classes(session)
    fold = session.table("folds", "fold")["fold"].to_numpy()
    with session.report.bar("Cross-validating", len(image_id)) as advance:
        found = oof.oof_stream(vectors, codes, fold, len(names))
        metrics: dict[str, Any] = {"source": "heads"}

        def tables() -> Iterator[pa.Table]:
            start = 0
            for block in found.blocks():
                part = slice(start, start := start + len(block))
                yield from arrow_blocks(image_id[part], fold=fold[part], probs=block)
                advance(len(block))
            metrics.update(found.metrics)

        return session.publish_matrix("oof_probs", tables(), metrics)


def _user_probs(session: Session) -> Version:
    """Publish the user's probabilities; the folds are ours and say nothing of how these were made."""
    manifest = session.table("raw_manifest", "path", "status")
    image_id = session.fine()["image_id"].to_numpy()
    names, codes = classes(session)
    fold = session.table("folds", "fold")["fold"].to_numpy()
    with (
        session.report.bar("Reading probabilities", len(image_id)) as advance,
        tempfile.TemporaryDirectory(dir=cache_folder(session)) as scratch,
    ):
        found = pred_probs.read_pred_probs(
            session.dataset,
            manifest["path"].to_list(),
            (manifest["status"] == "ok").to_numpy(),
            class_names=names,
            labels=codes,
            folds=fold,
            scratch=Path(scratch),
        )

        def tables() -> Iterator[pa.Table]:
            start = 0
            for block in found.blocks(PUBLISH_ROWS):
                part = slice(start, start := start + len(block))
                yield from arrow_blocks(image_id[part], fold=fold[part], probs=block)
                advance(len(block))

        return session.publish_matrix("oof_probs", tables(), found.metrics)


def label_issues(session: Session) -> Version:
    """Publish label_noise and label_issues, which come from one pass over the probabilities and one fit."""
    names, codes = classes(session)
    image_id, learnable = session.fine()["image_id"].to_numpy(), learnable_classes(session, names)
    probs, options = streamed_probs(session, (len(codes), len(names))), session.settings.labels
    noise = confident.label_noise(codes, probs, learnable)
    table = confident.issues_of(noise, image_id, codes, class_names=names, settings=options)
    extra: dict[str, Any] = {}
    if options.filter_by != "ours" and names:
        with tempfile.TemporaryDirectory(dir=cache_folder(session)) as scratch:
            rows = to_file(probs, Path(scratch) / "probs.npy")
            table, found = cleanlab_rules.with_cleanlab_flags(table, codes, rows, class_names=names, settings=options)
        extra = {"cleanlab's number of issues": cleanlab_rules.num_label_issues(found), "cleanlab's health": cleanlab_rules.health(found)}
    table = kinds.with_multi_label(table, vector_reader(session), options)
    estimate = ontology.noise_estimate(table)
    metrics = {
        "checked": table["is_label_issue"].count(),
        "label issues": int(table["is_label_issue"].sum()),
        **({} if estimate is None else {"estimated noise rate": estimate}),
        **{f"kind {kind}": n for kind, n in table["kind"].drop_nulls().value_counts().sort("kind").iter_rows()},
        **extra,
    }
    sums = ontology.class_sums(noise, codes, class_names=names, learnable=learnable)
    number = {name.replace("_", " "): float(sums[name].sum()) for name in sums.columns if name.startswith("expected_wrong")}
    session.publish("label_noise", sums, number)
    return session.publish("label_issues", table, metrics)


def label_evidence(session: Session) -> Version:
    """Publish the neighbours of the flagged images under either label."""
    image_id = session.fine()["image_id"].to_numpy()
    names, codes = classes(session)
    issues = session.table("label_issues", "image_id", "is_label_issue", "suggested_label").filter(pl.col("is_label_issue"))
    rows = np.searchsorted(image_id, issues["image_id"].to_numpy())
    suggested = issues["suggested_label"].replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
    positions, distances = read_neighbors(session, image_id)
    flagged = evidence.Flagged(rows, suggested, positions[rows], distances[rows])
    table = evidence.label_evidence(image_id, codes, group_of(session, image_id), flagged, vector_reader(session), names)
    metrics = {"label issues": len(rows), "nearer to the suggested label": evidence.n_nearer_suggested(table)}
    return session.publish("label_evidence", table, metrics)


def class_report(session: Session) -> Version:
    """Publish the class report."""
    table = ontology.class_report(session.table("label_noise"), session.table("label_issues"))
    return session.publish("class_report", table, {"classes": len(table), "not learnable": int((~table["is_learnable"]).sum())})


def ontology_report(session: Session) -> Version:
    """Publish the ontology report."""
    table = ontology.ontology_report(session.table("label_noise"), session.table("label_issues"))
    return session.publish(
        "ontology_report", table, {"pairs": len(table), "corrections": int((table["n_a_to_b"] + table["n_b_to_a"]).sum())}
    )
