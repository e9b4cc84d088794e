"""duplicate_groups and near_dups: which images are the same picture, and which of their labels is wrong."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import polars as pl

from dq_assets.audit import duplicates, near_dups
from dq_assets.audit.decoding import decode_rgb
from dq_assets.defs.session import Session
from dq_assets.defs.stages.inputs import classes, read_neighbors, streamed_probs
from dq_assets.report.progress import as_total
from dq_assets.settings import Duplicates, UserError
from dq_assets.sources.reading import Reader
from dq_assets.store.contents import compared_pairs
from dq_assets.store.tables import Version, append

PAIRS_PER_COMMIT = 8192
"""Pairs of pictures that are compared between two commits: half a minute of work."""

NOMINATED = 10
"""Nearest neighbours that are looked at as copies; outliers need more of them."""

WITNESS_SIDE = 256
"""Longest side, in pixels, of the pictures that are compared."""


def duplicate_groups(session: Session) -> Version:
    """Nominate pairs by hash and by vector, confirm them on the pixels, and publish the groups."""
    fine = session.fine("uri", "content_sha256", "pixel_hash", "bytes")
    image_id = fine["image_id"].to_numpy()
    phash = np.array([int(digits, 16) for digits in session.table("image_properties", "phash")["phash"]], np.uint64)
    positions, distances = read_neighbors(session, image_id)
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
    shas, uris, sizes = fine["content_sha256"], fine["uri"].to_list(), fine["bytes"].to_list()
    contents = shas.unique().sort().to_frame().with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    number = fine.select("content_sha256").join(contents, on="content_sha256", how="left", maintain_order="left")["number"].to_numpy()
    # Always in the order of the contents: laying a over b and b over a differ in the third decimal, a verdict must not.
    swapped = number[pairs[:, 0]] > number[pairs[:, 1]]
    ordered = np.where(swapped[:, None], pairs[:, ::-1], pairs)
    named = pl.DataFrame({"a": number[ordered[:, 0]], "b": number[ordered[:, 1]], "row": np.arange(len(pairs))})
    before = compared_pairs(session.lake, name, witness, contents)
    todo = named.filter(pl.col("a") != pl.col("b")).unique(["a", "b"], keep="first", maintain_order=True)
    todo = todo.join(before, on=["a", "b"], how="anti", maintain_order="left")

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
            looked = block.select(
                content_a=contents["content_sha256"].gather(block["a"]),
                content_b=contents["content_sha256"].gather(block["b"]),
                distance=pl.Series(distances).fill_nan(None),
            )
            readable = looked.filter(pl.col("distance").is_null() | pl.col("distance").is_finite())
            unread += len(looked) - len(readable)
            append(session.lake, name, "compared_pairs", readable.with_columns(witness=pl.lit(witness)))
    if unread:
        raise UserError(f"{unread} pairs could not be compared: files changed or vanished while they were audited. Run the audit again.")
    verdicts = before if todo.is_empty() else compared_pairs(session.lake, name, witness, contents)
    distance = named.join(verdicts, on=["a", "b"], how="left", maintain_order="left")["distance"]
    return distance.fill_null(np.nan).to_numpy(), len(todo)


def witness_id(options: Duplicates) -> str:
    """Under what the verdict on a pair is kept: version and threshold of the comparison."""
    return f"{duplicates.WITNESS_VERSION}@{options.min_correlation:g}" + ("" if options.mirrored else ", no mirrors")


def duplicate_verdicts(session: Session) -> Version:
    """Publish near_dups."""
    names, codes = classes(session)
    manifest = session.fine("given_label", "split", "width", "height", "bytes")
    table = near_dups.near_dups(manifest, session.table("duplicate_groups"), streamed_probs(session, (len(codes), len(names))), names)
    in_group = table.filter(pl.col("group_id").is_not_null())
    metrics = {
        "groups": in_group["group_id"].n_unique(),
        "groups with a label conflict": in_group.filter("label_conflict")["group_id"].n_unique(),
        "groups across splits": in_group.filter("crosses_split")["group_id"].n_unique(),
        "wrong labels in groups": int(in_group["is_wrong_label"].sum()),
    }
    return session.publish("near_dups", table, metrics)
