"""Tables keyed by content, which all datasets of the lake share: vectors of the encoder and verdicts on pairs of pictures.

What is known of a content never changes, so a dataset may use what another one already paid for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from dq_assets.store.lake import Lake, StoreError, address
from dq_assets.store.tables import append


def read_vectors(lake: Lake, dataset: str, encoder: str, content: Sequence[str]) -> np.ndarray:
    """Vectors (n, d) float32 in the order of `content`, each read once and put in its place; nothing is sorted.

    Raises StoreError if one is missing.
    """
    order: dict[str, list[int]] = {}
    for position, sha in enumerate(content):
        order.setdefault(sha, []).append(position)
    lake.con.register("wanted", pa.table({"content_sha256": pa.array(order.keys(), pa.string())}))
    try:
        reader = lake.con.execute(
            f"SELECT content_sha256, vector FROM {address(dataset, 'embeddings')}"
            " SEMI JOIN wanted USING (content_sha256) WHERE encoder = ?",
            [encoder],
        ).to_arrow_reader(8192)
        vectors: np.ndarray | None = None
        n_filled = 0
        for batch in reader:
            rows = batch.column("vector").flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
            if vectors is None:
                vectors = np.empty((len(content), rows.shape[1]), np.float32)
            for sha, row in zip(batch.column("content_sha256").to_pylist(), rows, strict=True):
                vectors[order[sha]] = row
                n_filled += len(order[sha])
    finally:
        lake.con.unregister("wanted")
    if n_filled != len(content):
        raise StoreError(f"{len(content) - n_filled} images of {dataset} have no vector of {encoder}. Materialize embeddings first.")
    return np.empty((0, 0), np.float32) if vectors is None else vectors


def embedded_content(lake: Lake, dataset: str, encoder: str) -> set[str]:
    """Contents that have a vector of this encoder."""
    rows = lake.con.execute(f"SELECT content_sha256 FROM {address(dataset, 'embeddings')} WHERE encoder = ?", [encoder]).fetchall()
    return {sha for (sha,) in rows}


def borrow_vectors(lake: Lake, dataset: str, encoder: str, wanted: set[str]) -> int:
    """Copy vectors that another dataset of the lake already has for the same bytes and encoder. Returns how many."""
    if not wanted:
        return 0
    siblings = lake.con.execute(
        "SELECT schema_name FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = 'embeddings' AND schema_name <> ?", [dataset]
    ).fetchall()
    remaining = set(wanted)
    for (sibling,) in siblings:
        shared = remaining & embedded_content(lake, sibling, encoder)
        for shas in _chunks(sorted(shared), 4096):
            lake.con.register("shared", pa.table({"content_sha256": pa.array(shas, pa.string())}))
            with contextlib.ExitStack() as stack:
                stack.callback(lake.con.unregister, "shared")
                rows = lake.con.execute(
                    f"SELECT content_sha256, encoder, vector FROM {address(sibling, 'embeddings')} SEMI JOIN shared USING (content_sha256)"
                    " WHERE encoder = ?",
                    [encoder],
                ).to_arrow_table()
            append(lake, dataset, "embeddings", rows)
        remaining -= shared
    return len(wanted) - len(remaining)


def compared_pairs(lake: Lake, dataset: str, witness: str, contents: pl.DataFrame) -> pl.DataFrame:
    """Pairs of these contents that were compared before, in any dataset of the lake: (a, b, distance), a < b, each once.

    contents: content_sha256 and number, ascending alike. a and b are numbers: 8 million pairs of a million images would be 15 GB as text.
    """
    schemas = lake.con.execute(
        "SELECT schema_name FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = 'compared_pairs' ORDER BY schema_name <> ?",
        [dataset],
    ).fetchall()
    lake.con.register("contents", contents.select("content_sha256", "number").to_arrow())
    try:
        found = [
            lake.con.execute(
                f"SELECT low.number AS a, high.number AS b, distance FROM {address(schema, 'compared_pairs')}"
                " JOIN contents AS low ON content_a = low.content_sha256 JOIN contents AS high ON content_b = high.content_sha256"
                " WHERE witness = ?",
                [witness],
            ).pl()
            for (schema,) in schemas
        ]
    finally:
        lake.con.unregister("contents")
    return pl.concat(found).unique(["a", "b"], keep="first", maintain_order=True)


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
