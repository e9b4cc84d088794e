"""neighbors, and the outliers that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_assets.audit import cells, neighbors, outliers
from dq_assets.defs.session import Session
from dq_assets.defs.stages.inputs import arrow_blocks, classes, group_of, image_vectors, read_neighbors
from dq_assets.report.progress import as_total
from dq_assets.store import fitted
from dq_assets.store.tables import Version


def nearest(session: Session) -> Version:
    """Publish neighbors, by the cells of earlier audits while they fit."""
    image_id, vectors = image_vectors(session)
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
    return session.publish_matrix("neighbors", arrow_blocks(image_id, **columns), metrics)


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


def outlier_scores(session: Session) -> Version:
    """Publish outliers."""
    image_id = session.fine()["image_id"].to_numpy()
    positions, distances = read_neighbors(session, image_id)
    groups, (_, codes) = group_of(session, image_id), classes(session)
    table = outliers.outliers(image_id, image_id[positions], distances, groups, codes, session.settings.outliers)
    return session.publish("outliers", table, {"outliers": int(table["is_outlier_issue"].sum())})
