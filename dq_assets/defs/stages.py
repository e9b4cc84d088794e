"""One function per table: read the inputs, call one function of `audit`, publish the answer.

No Dagster and no algorithm here. Each returns the version that it published; its metrics become metadata that Dagster plots.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from dq_assets.audit import (
    cells,
    cleanlab_rules,
    confident,
    curation,
    duplicates,
    evidence,
    folds,
    kinds,
    near_dups,
    neighbors,
    ontology,
    oof,
    outliers,
    pred_probs,
    scan,
    training,
)
from dq_assets.audit.decoding import decode_rgb
from dq_assets.audit.rows import Streamed, to_file
from dq_assets.defs import embedding
from dq_assets.defs.session import Session
from dq_assets.report.progress import as_total
from dq_assets.settings import Duplicates, UserError
from dq_assets.sources.listing import list_source
from dq_assets.sources.reading import Reader
from dq_assets.store import audits, fitted
from dq_assets.store.contents import compared_pairs, read_vectors
from dq_assets.store.scratch import ScanScratch
from dq_assets.store.tables import Version, append, matrix_blocks, read_matrix, record_version, upsert

PUBLISH_ROWS = 8192
"""Rows per block of a matrix while it is published."""

PAIRS_PER_COMMIT = 8192
"""Pairs of pictures that are compared between two commits: half a minute of work."""

NOMINATED = 10
"""Nearest neighbours that are looked at as copies; outliers need more of them."""

WITNESS_SIDE = 256
"""Longest side, in pixels, of the pictures that are compared."""


def raw_manifest(session: Session) -> tuple[Version, Version]:
    """List the source, read what is new or changed, and publish raw_manifest and image_properties."""
    listing = list_source(session.dataset)
    image_ids = _register(session, listing.files["path"])
    before = session.versions().get("raw_manifest")
    scratch = ScanScratch(session.home, session.dataset.name, session.fingerprint("raw_manifest"))
    known = scratch.read(scan.RECORD_SCHEMA)
    if before is not None and before.fingerprint == session.fingerprint("raw_manifest"):
        known = pl.concat([scan.known_records(session.table("raw_manifest"), session.table("image_properties")), known])
    todo = scan.unread(listing.files, known)
    with session.report.bar("Reading images", len(todo)) as advance:
        for block in scan.scan(todo, session.settings.images, Reader.of(session.dataset)):
            scratch.add(block)
            advance(len(block))
    records = pl.concat([known, scratch.read(scan.RECORD_SCHEMA)])
    manifest, properties = scan.manifest_and_properties(listing.files, records, image_ids, session.settings.quality)
    metrics = {
        "files": len(manifest),
        "listing_digest": listing.digest(),
        **{f"status {status}": n for status, n in manifest["status"].value_counts().sort("status").iter_rows()},
        **{f"skipped: {reason}": n for reason, n in sorted(listing.skipped.items())},
    }
    flagged = {column: int(properties[column].sum()) for column in properties.columns if column.startswith("is_")}
    published = session.publish("raw_manifest", manifest, metrics), session.publish("image_properties", properties, flagged)
    scratch.clear()
    return published


def _register(session: Session, paths: pl.Series) -> pl.DataFrame:
    """(path, image_id) of all paths ever seen; new ones get the next ids in the order of the listing."""
    known = session.table("image_ids")
    new = paths.filter(~paths.is_in(known["path"].implode()))
    first = int(known["image_id"].to_numpy().max(initial=-1)) + 1
    added = pl.DataFrame(
        {"image_id": pl.int_range(first, first + len(new), eager=True), "path": new}, schema={"image_id": pl.Int64, "path": pl.String}
    )
    append(session.lake, session.dataset.name, "image_ids", added)
    return pl.concat([known, added]).select("path", "image_id")


def embeddings(session: Session) -> Version:
    """Embed every content that has no vector yet; with encoder.model=auto choose the encoder first."""
    options = session.encoder() or embedding.choose_encoder(session)
    choice = session.encoder_choice()
    name, identity = session.dataset.name, session.encoder_id()
    contents = session.fine("uri", "content_sha256", "bytes").unique("content_sha256", keep="first", maintain_order=True)
    metrics: dict[str, Any] = {"contents": len(contents), "encoder": identity}
    if not choice.is_empty():
        metrics["encoder chosen because"] = choice["why"][0]
    metrics |= embedding.embed(session, options, contents)
    digest = hashlib.sha256("\n".join([identity, *sorted(contents["content_sha256"])]).encode()).hexdigest()
    version = Version(session.fingerprint("embeddings"), digest, len(contents), metrics)
    record_version(session.lake, name, "embeddings", version)
    return version


def _vectors(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """(image_id (n,), vectors (n, d)) of the readable images, in image_id order."""
    fine = session.fine("content_sha256")
    vectors = read_vectors(session.lake, session.dataset.name, session.encoder_id(), fine["content_sha256"].to_list())
    return fine["image_id"].to_numpy(), vectors


def _blocks(image_id: np.ndarray, **columns: np.ndarray) -> Iterator[pa.Table]:
    """Rows as Arrow tables of PUBLISH_ROWS; 2-D arrays become list columns."""
    for start in range(0, len(image_id), PUBLISH_ROWS):
        part = slice(start, start + PUBLISH_ROWS)
        yield pa.table({"image_id": image_id[part], **{name: _arrow(values[part]) for name, values in columns.items()}})


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32) if values.shape[1] else np.zeros(len(values) + 1, np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).ravel())


def nearest(session: Session) -> Version:
    """Publish neighbors, by the cells of earlier audits while they fit."""
    image_id, vectors = _vectors(session)
    identity = session.encoder_id()
    stored = fitted.stored_cells(session.lake, session.dataset.name, identity)
    kept = None if stored is None or cells.outgrown(stored.n_images, len(image_id)) else stored
    with session.report.bar("Searching neighbours", len(image_id)) as advance:
        graph = neighbors.neighbor_graph(
            vectors, session.settings.neighbors, cells=kept.cells if kept else None, progress=as_total(advance)
        )
    metrics: dict[str, Any] = {"recall on a sample": graph.recall, "partitions": len(graph.cells.centres) if graph.cells else 0}
    if graph.cells:
        metrics["cells version"] = _keep_cells(session, graph.cells, len(image_id), identity, stored, kept)
    if graph.distances.size:
        metrics["median nearest distance"] = float(np.median(graph.distances[:, 0]))
    columns = {"neighbor_ids": image_id[graph.positions], "distances": graph.distances}
    return session.publish_matrix("neighbors", _blocks(image_id, **columns), metrics)


def _keep_cells(
    session: Session,
    used: cells.Cells,
    n: int,
    identity: str,
    stored: fitted.StoredCells | None,
    kept: fitted.StoredCells | None,
) -> int:
    """Store what of the used cells is new, say why, and return their version. stored: those there were; kept: the same if they fit."""
    if kept:
        reason = f"with {len(kept.cells.centres)} partitions recall was below {session.settings.neighbors.recall:g} on {n:,} images"
    else:
        reason = f"there are {n:,} images, and were {stored.n_images:,}" if stored else "there were none for this encoder"
    now = fitted.keep_cells(session.lake, session.dataset.name, identity, used, n_images=n, reason=reason, before=kept)
    if now is not kept:
        what = f"{len(used.centres) - len(kept.cells.centres)} added" if kept else f"{len(used.centres)} fitted"
        session.report.say(f"Partitions of neighbour cells {now.version}: {what}, as {reason}.")
    return now.version


def _neighbors(session: Session, image_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions in image_id (n, k), distances (n, k)) from the published graph."""
    _, ids = read_matrix(session.lake, session.dataset.name, "neighbors", "neighbor_ids")
    _, distances = read_matrix(session.lake, session.dataset.name, "neighbors", "distances")
    return np.searchsorted(image_id, ids), distances


def duplicate_groups(session: Session) -> Version:
    """Nominate pairs by hash and by vector, confirm them on the pixels, and publish the groups."""
    fine = session.fine("uri", "content_sha256", "pixel_hash", "bytes")
    image_id = fine["image_id"].to_numpy()
    phash = np.array([int(digits, 16) for digits in session.table("image_properties")["phash"]], np.uint64)
    positions, distances = _neighbors(session, image_id)
    pairs = duplicates.candidate_pairs(phash, positions[:, :NOMINATED], distances[:, :NOMINATED], session.settings.duplicates)
    confirmed, n_compared = _confirmed(session, fine, pairs)
    groups = duplicates.duplicate_groups(image_id, fine["content_sha256"].to_list(), fine["pixel_hash"].to_list(), pairs, confirmed)
    metrics = {
        "groups": groups["group_id"].n_unique(),
        "candidate pairs": len(pairs),
        "pairs confirmed": int(np.isfinite(confirmed).sum()),
        "pairs compared now": n_compared,
        **{f"images {kind}": n for kind, n in groups["kind"].value_counts().sort("kind").iter_rows()},
    }
    return session.publish("duplicate_groups", groups, metrics)


def _confirmed(session: Session, fine: pl.DataFrame, pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """((m,) distances, NaN where the pictures differ; how many were looked at now): pairs of contents that were never compared.

    Verdicts are committed by blocks, so that a killed run goes on where it stopped.
    """
    options, images, name = session.settings.duplicates, session.settings.images, session.dataset.name
    witness = witness_id(options)
    shas, uris, sizes = fine["content_sha256"].to_numpy(), fine["uri"].to_list(), fine["bytes"].to_list()
    contents = pl.DataFrame({"a": shas[pairs[:, 0]], "b": shas[pairs[:, 1]]}, schema={"a": pl.String, "b": pl.String})
    named = contents.select(content_a=pl.min_horizontal("a", "b"), content_b=pl.max_horizontal("a", "b"), row=pl.int_range(pl.len()))
    before = compared_pairs(session.lake, name, witness, named)
    todo = named.filter(pl.col("content_a") != pl.col("content_b")).unique(["content_a", "content_b"], keep="first", maintain_order=True)
    todo = todo.join(before, on=["content_a", "content_b"], how="anti", maintain_order="left")
    # Always in the order of the contents: laying a over b and b over a differ in the third decimal, a verdict must not.
    ordered = np.where((contents["a"] == named["content_a"]).to_numpy()[:, None], pairs, pairs[:, ::-1])

    reader, n_cores = Reader.of(session.dataset), images.threads or os.cpu_count() or 1
    # More threads where most of them wait for the network.
    n_threads = max(n_cores, images.connections) if reader.waits(uris) else n_cores

    def load(position: int) -> np.ndarray:
        data = reader.read(uris[position], sizes[position])
        if hashlib.sha256(data).hexdigest() != shas[position]:  # a verdict is stored for ever under the content it is of
            raise OSError("its bytes changed since it was scanned")
        picture = decode_rgb(data, max_pixels=images.max_pixels, memory_mb=images.memory_mb, min_side=WITNESS_SIDE)
        picture.thumbnail((WITNESS_SIDE, WITNESS_SIDE))
        return np.asarray(picture)

    unread = 0
    with session.report.bar("Comparing pictures", len(todo)) as advance:
        for block in todo.iter_slices(PAIRS_PER_COMMIT):
            distances = duplicates.confirm_pairs(
                ordered[block["row"].to_numpy()], load, options, threads=n_threads, progress=as_total(advance)
            )
            looked = block.select("content_a", "content_b").with_columns(distance=pl.Series(distances).fill_nan(None))
            readable = looked.filter(pl.col("distance").is_null() | pl.col("distance").is_finite())
            unread += len(looked) - len(readable)
            append(session.lake, name, "compared_pairs", readable.with_columns(witness=pl.lit(witness)))
    if unread:
        raise UserError(f"{unread} pairs could not be compared: files changed or vanished while they were audited. Run the audit again.")
    verdicts = compared_pairs(session.lake, name, witness, named)
    distance = named.join(verdicts, on=["content_a", "content_b"], how="left", maintain_order="left")["distance"]
    return distance.fill_null(np.nan).to_numpy(), len(todo)


def witness_id(options: Duplicates) -> str:
    """Under what the verdict on a pair is kept: version and threshold of the comparison."""
    return f"{duplicates.WITNESS_VERSION}@{options.min_correlation:g}" + ("" if options.mirrored else ", no mirrors")


def _group_of(session: Session, image_id: np.ndarray) -> np.ndarray:
    """(n,) duplicate group of each image, -1 for none."""
    groups = session.table("duplicate_groups", "image_id", "group_id")
    found = np.full(len(image_id), -1, np.int64)
    found[np.searchsorted(image_id, groups["image_id"].to_numpy())] = groups["group_id"].to_numpy()
    return found


def assigned_folds(session: Session) -> Version:
    """Publish folds; images that had one keep it."""
    fine = session.fine("given_label", "group")
    image_id = fine["image_id"].to_numpy()
    previous = session.table("folds")
    options = session.settings.folds
    if previous["fold"].to_numpy().max(initial=-1) >= options.n_folds:
        previous = previous.clear()  # fewer folds than before: all are drawn anew
    table = folds.assign_folds(
        image_id, fine["given_label"].to_list(), fine["group"].to_list(), _group_of(session, image_id), previous=previous, settings=options
    )
    sizes = {f"images in fold {fold}": n for fold, n in table["fold"].value_counts().sort("fold").iter_rows()}
    return session.publish("folds", table, {"components": table["component_id"].n_unique(), **sizes})


def _classes(session: Session) -> tuple[list[str], np.ndarray]:
    """Class names in sorted order, and (n,) codes of the readable images, -1 for unlabelled."""
    labels = session.fine("given_label")["given_label"]
    names = sorted(labels.drop_nulls().unique())
    index = {name: code for code, name in enumerate(names)}
    return names, np.array([index.get(label, -1) for label in labels], np.int64)


def _learnable(session: Session, names: list[str]) -> np.ndarray:
    """(K,) whether a class has enough independent images."""
    labels = session.fine("given_label")["given_label"].to_list()
    components = session.table("folds", "component_id")["component_id"].to_numpy()
    found = folds.learnable_classes(labels, components, session.settings.folds.min_components)
    return np.array([name in found for name in names], bool)


def oof_probs(session: Session) -> Version:
    """Publish out-of-fold probabilities: the user's if there are some, else those of our heads."""
    if session.dataset.pred_probs is not None:
        return _user_probs(session)
    image_id, vectors = _vectors(session)
    names, codes = _classes(session)
    fold = session.table("folds", "fold")["fold"].to_numpy()
    with session.report.bar("Cross-validating", len(image_id)) as advance:
        found = oof.oof_stream(vectors, codes, fold, len(names))
        metrics: dict[str, Any] = {"source": "heads"}

        def tables() -> Iterator[pa.Table]:
            start = 0
            for block in found.blocks():
                part = slice(start, start := start + len(block))
                yield from _blocks(image_id[part], fold=fold[part], probs=block)
                advance(len(block))
            metrics.update(found.metrics)

        return session.publish_matrix("oof_probs", tables(), metrics)


def _user_probs(session: Session) -> Version:
    """Publish the user's probabilities; the folds are ours and say nothing of how these were made."""
    manifest = session.table("raw_manifest", "path", "status")
    image_id = session.fine()["image_id"].to_numpy()
    names, codes = _classes(session)
    fold = session.table("folds", "fold")["fold"].to_numpy()
    with session.report.bar("Reading probabilities", len(image_id)) as advance, tempfile.TemporaryDirectory(dir=_cache(session)) as scratch:
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
                yield from _blocks(image_id[part], fold=fold[part], probs=block)
                advance(len(block))

        return session.publish_matrix("oof_probs", tables(), found.metrics)


def _cache(session: Session) -> Path:
    """A folder for what a stage keeps on disk while it runs."""
    cache = session.home.cache / session.dataset.name
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _probs(session: Session, shape: tuple[int, int]) -> Streamed:
    """(n, K) out-of-fold probabilities in image_id order, read from the lake block by block whenever they are gone over."""
    return Streamed(shape, lambda: (values for _, values in matrix_blocks(session.lake, session.dataset.name, "oof_probs", "probs")))


def _take(session: Session) -> Callable[[np.ndarray], np.ndarray]:
    """What reads the vectors (m, d) of some positions among the readable images."""
    contents, identity = session.fine("content_sha256")["content_sha256"], session.encoder_id()
    return lambda chosen: read_vectors(session.lake, session.dataset.name, identity, contents.gather(chosen).to_list())


def label_issues(session: Session) -> Version:
    """Publish label_noise and label_issues, which come from one pass over the probabilities and one fit."""
    names, codes = _classes(session)
    image_id, learnable = session.fine()["image_id"].to_numpy(), _learnable(session, names)
    probs, options = _probs(session, (len(codes), len(names))), session.settings.labels
    noise = confident.label_noise(codes, probs, learnable)
    table = confident.issues_of(noise, image_id, codes, class_names=names, settings=options)
    extra: dict[str, Any] = {}
    if options.filter_by != "ours" and names:
        with tempfile.TemporaryDirectory(dir=_cache(session)) as scratch:
            rows = to_file(probs, Path(scratch) / "probs.npy")
            table, found = cleanlab_rules.with_cleanlab_flags(table, codes, rows, class_names=names, settings=options)
        extra = {"cleanlab's number of issues": cleanlab_rules.num_label_issues(found), "cleanlab's health": cleanlab_rules.health(found)}
    table = kinds.with_multi_label(table, _take(session), options)
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
    names, codes = _classes(session)
    issues = session.table("label_issues", "image_id", "is_label_issue", "suggested_label").filter(pl.col("is_label_issue"))
    rows = np.searchsorted(image_id, issues["image_id"].to_numpy())
    suggested = issues["suggested_label"].replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
    positions, distances = _neighbors(session, image_id)
    flagged = evidence.Flagged(rows, suggested, positions[rows], distances[rows])
    table = evidence.label_evidence(image_id, codes, _group_of(session, image_id), flagged, _take(session), names)
    metrics = {"label issues": len(rows), "nearer to the suggested label": evidence.n_nearer_suggested(table)}
    return session.publish("label_evidence", table, metrics)


def outlier_scores(session: Session) -> Version:
    """Publish outliers."""
    image_id = session.fine()["image_id"].to_numpy()
    positions, distances = _neighbors(session, image_id)
    groups, (_, codes) = _group_of(session, image_id), _classes(session)
    table = outliers.outliers(image_id, image_id[positions], distances, groups, codes, session.settings.outliers)
    return session.publish("outliers", table, {"outliers": int(table["is_outlier_issue"].sum())})


def duplicate_verdicts(session: Session) -> Version:
    """Publish near_dups."""
    names, codes = _classes(session)
    manifest = session.fine("given_label", "split", "width", "height", "bytes")
    table = near_dups.near_dups(manifest, session.table("duplicate_groups"), _probs(session, (len(codes), len(names))), names)
    in_group = table.filter(pl.col("group_id").is_not_null())
    metrics = {
        "groups": in_group["group_id"].n_unique(),
        "groups with a label conflict": in_group.filter("label_conflict")["group_id"].n_unique(),
        "groups across splits": in_group.filter("crosses_split")["group_id"].n_unique(),
        "wrong labels in groups": int(in_group["is_wrong_label"].sum()),
    }
    return session.publish("near_dups", table, metrics)


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
    names, codes = _classes(session)
    _, vectors = _vectors(session)
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
