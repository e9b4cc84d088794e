"""What was fitted to the data and is kept until it no longer fits: numbered fits, of which none is ever changed or removed.

An audit's tables name the fit that they were computed with, so that they can be computed again. Whether a fit still fits is decided
in `dq_assets.audit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets.audit.cells import VERSION, Cells
from dq_assets.store.lake import Lake, address
from dq_assets.store.tables import append, read_table


@dataclass(frozen=True)
class StoredCells:
    """Cells by their number. n_images: how many they were fitted on."""

    version: int
    cells: Cells
    n_images: int


def stored_cells(lake: Lake, dataset: str, encoder: str) -> StoredCells | None:
    """The newest cells for vectors of this encoder and this way of searching; None if there are none."""
    source = address(dataset, "neighbor_cells")
    rows = lake.con.execute(
        f"SELECT version, partition, n_images, numbers FROM {source} WHERE encoder = ? AND algorithm = ? AND version = "
        f"(SELECT max(version) FROM {source} WHERE encoder = ? AND algorithm = ?) ORDER BY partition, row",
        [encoder, VERSION, encoder, VERSION],
    ).pl()
    if rows.is_empty():
        return None
    rotation, *centres = (_matrix(part["numbers"]) for part in rows.partition_by("partition", maintain_order=True))
    return StoredCells(rows["version"][0], Cells(rotation, tuple(centres)), rows["n_images"][0])


def _matrix(rows: pl.Series) -> NDArray[np.float32]:
    return np.array(rows.explode()).reshape(len(rows), -1)


def keep_cells(
    lake: Lake, dataset: str, encoder: str, cells: Cells, *, n_images: int, reason: str, before: StoredCells | None
) -> StoredCells:
    """Store what is new of the cells: the partitions that were added to `before`, or, if that is None, a fit with the next number."""
    parts = (cells.rotation, *cells.centres)
    first = 0 if before is None else 1 + len(before.cells.centres)
    if before is not None and first == len(parts):
        return before
    version = before.version if before is not None else _last_version(lake, dataset) + 1
    rows = pl.concat(
        pl.DataFrame({"row": range(len(part)), "numbers": part}, schema_overrides={"numbers": pl.Array(pl.Float32, part.shape[1])}).select(
            pl.lit(version).alias("version"),
            pl.lit(number).alias("partition"),
            "row",
            pl.lit(encoder).alias("encoder"),
            pl.lit(VERSION).alias("algorithm"),
            pl.lit(n_images).alias("n_images"),
            pl.lit(reason).alias("reason"),
            pl.col("numbers").cast(pl.List(pl.Float32)),
        )
        for number, part in enumerate(parts[first:], first)
    )
    append(lake, dataset, "neighbor_cells", rows)
    return StoredCells(version, cells, n_images if before is None else before.n_images)


def _last_version(lake: Lake, dataset: str) -> int:
    row = lake.con.execute(f"SELECT max(version) FROM {address(dataset, 'neighbor_cells')}").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def encoder_choice(lake: Lake, dataset: str, question: str) -> pl.DataFrame:
    """The rows of encoder_choice that answer a question, in the order of `audit.encoder_choice.choose`; empty if none does yet."""
    rows = read_table(lake, dataset, "encoder_choice").filter(pl.col("question") == question)
    return rows.sort(~pl.col("is_chosen"), pl.col("log_loss"), pl.col("model"), nulls_last=True)


def keep_choice(lake: Lake, dataset: str, question: str, rows: pl.DataFrame) -> None:
    """Store the answer to a question, in one commit."""
    append(lake, dataset, "encoder_choice", rows.with_columns(question=pl.lit(question), chosen_at=pl.lit(datetime.now(UTC))))
