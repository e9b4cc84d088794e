"""raw_manifest, image_properties and embeddings: what is read from the source."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from dq_assets.audit import scan
from dq_assets.defs import embedding
from dq_assets.defs.session import Session
from dq_assets.sources.listing import list_source
from dq_assets.sources.reading import Reader
from dq_assets.store.scratch import ScanScratch
from dq_assets.store.tables import Version, append, record_version


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
