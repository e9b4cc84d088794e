"""Publishing tables and reading them back.

Row tables are published by difference, so that the change feed and the disk see what changed and nothing else. Matrices
are written as Parquet without the lock and added in one short transaction. Blocks only grow. Equal content publishes
nothing. Tables are written in key order and read in ranges of it: sorting vectors needs more memory than holding them.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dq_assets.schema import TABLES, Table
from dq_assets.store.lake import Lake, StoreError, address, quoted

ARROW_TYPES: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
    "FLOAT[]": pa.list_(pa.float32()),
    "BIGINT[]": pa.list_(pa.int64()),
    "VARCHAR[]": pa.list_(pa.string()),
}
READ_BYTES = 64 << 20
"""Size of one range when a matrix is read: big enough to be fast, small beside any network."""


@dataclass(frozen=True)
class Version:
    """What table_versions knows of a table: from what it was computed (fingerprint) and what it holds (digest)."""

    fingerprint: str
    digest: str
    n_rows: int
    metrics: dict[str, Any]


def arrow_schema(table: Table) -> pa.Schema:
    """The table's columns as an Arrow schema."""
    return pa.schema([pa.field(c.name, ARROW_TYPES[c.type]) for c in table.columns])


def conform(table: Table, frame: pl.DataFrame | pa.Table) -> pa.Table:
    """The frame with exactly the table's columns and types, sorted by key. Raises StoreError listing every mismatch."""
    arrow = frame.to_arrow() if isinstance(frame, pl.DataFrame) else frame
    names = set(arrow.column_names)
    problems = [f"column {c} is missing" for c in table.column_names if c not in names]
    problems += [f"column {c} is unknown" for c in sorted(names - set(table.column_names))]
    if not problems:
        try:
            arrow = arrow.select(table.column_names).cast(arrow_schema(table))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(str(error).splitlines()[0])
        else:
            problems += [f"column {c.name} has nulls" for c in table.columns if not c.nullable and arrow[c.name].null_count]
            keys = arrow.select(list(table.key))
            n_keys = keys.group_by(list(table.key)).aggregate([]).num_rows
            if n_keys != arrow.num_rows:
                problems.append(f"{arrow.num_rows - n_keys} rows repeat a key ({', '.join(table.key)})")
    if problems:
        raise StoreError(f"{table.name} was not published: {'; '.join(problems)}. Mend the code that computes it.")
    return arrow.sort_by([(k, "ascending") for k in table.key])


class ContentDigest:
    """SHA-256 of a table's content in row order, the same however the rows are cut into blocks."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}
        self.n_rows = 0

    def update(self, block: pa.Table) -> None:
        """Take the next rows."""
        self.n_rows += block.num_rows
        for name, column in zip(block.column_names, block.columns, strict=True):
            for chunk in column.chunks:
                self._update_array(name, chunk)

    def hexdigest(self) -> str:
        """64 hex digits."""
        whole = hashlib.sha256(str(self.n_rows).encode())
        for name in sorted(self._parts):
            whole.update(name.encode() + b"\0" + self._parts[name].digest())
        return whole.hexdigest()

    def _feed(self, name: str, data: Any) -> None:
        self._parts.setdefault(name, hashlib.sha256()).update(data)

    def _update_array(self, name: str, array: pa.Array) -> None:
        self._feed(f"{name}/null", pc.is_null(array).cast(pa.uint8()).to_numpy(zero_copy_only=False))
        kind = array.type
        if pa.types.is_list(kind):
            self._feed(f"{name}/length", pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False))
            self._update_array(f"{name}/item", array.flatten())
        elif pa.types.is_string(kind):
            filled = pc.fill_null(array, "")
            self._feed(f"{name}/length", pc.binary_length(filled).to_numpy(zero_copy_only=False))
            self._feed(name, "".join(filled.to_pylist()).encode())
        else:
            number = array.cast(pa.int64()) if pa.types.is_timestamp(kind) else array
            number = number.cast(pa.uint8()) if pa.types.is_boolean(kind) else number
            self._feed(name, np.ascontiguousarray(pc.fill_null(number, 0).to_numpy(zero_copy_only=False)))


def digest_of(arrow: pa.Table) -> str:
    """Content digest of a whole table."""
    digest = ContentDigest()
    digest.update(arrow)
    return digest.hexdigest()


def versions(lake: Lake, dataset: str, *, snapshot: int | None = None) -> dict[str, Version]:
    """What every table of the dataset was computed from, at a snapshot or now."""
    rows = lake.con.execute(
        f"SELECT table_name, fingerprint, digest, n_rows, metrics FROM {_at(dataset, 'table_versions', snapshot)}"
    ).fetchall()
    return {name: Version(fingerprint, digest, n_rows, json.loads(metrics)) for name, fingerprint, digest, n_rows, metrics in rows}


def publish(
    lake: Lake, dataset: str, name: str, frame: pl.DataFrame | pa.Table, *, fingerprint: str, metrics: dict[str, Any] | None = None
) -> Version:
    """Make the table equal to the frame: removed keys are deleted, changed rows updated, new rows inserted.

    Returns the table's new version; publishes no snapshot of a table whose content is equal.
    """
    table = TABLES[name]
    arrow = conform(table, frame)
    version = Version(fingerprint, digest_of(arrow), arrow.num_rows, metrics or {})
    current = versions(lake, dataset).get(name)
    if current == version:
        return version
    with lake.transaction() as con:
        if current is None or current.digest != version.digest:
            con.register("staged", arrow)
            try:
                _apply_difference(lake, dataset, table)
            finally:
                con.unregister("staged")
        _record_version(lake, dataset, name, version)
    return version


def _apply_difference(lake: Lake, dataset: str, table: Table) -> None:
    target = address(dataset, table.name)
    on = " AND ".join(f"t.{quoted(k)} = s.{quoted(k)}" for k in table.key)
    rest = [quoted(c) for c in table.column_names if c not in table.key]
    update = ""
    if rest:
        differs = " OR ".join(f"t.{c} IS DISTINCT FROM s.{c}" for c in rest)
        update = f"WHEN MATCHED AND ({differs}) THEN UPDATE"
    lake.con.execute(f"DELETE FROM {target} AS t WHERE NOT EXISTS (SELECT 1 FROM staged AS s WHERE {on})")
    lake.con.execute(f"MERGE INTO {target} AS t USING (FROM staged) AS s ON {on} {update} WHEN NOT MATCHED THEN INSERT")


def publish_matrix(
    lake: Lake, dataset: str, name: str, blocks: Iterable[pa.Table], *, fingerprint: str, metrics: dict[str, Any] | None = None
) -> Version:
    """Replace a large table by blocks of rows in ascending key order.

    The Parquet file is written without the lock and added in one short transaction; it is removed again if nothing changed.
    metrics are read after the last block, so that what makes the blocks may fill them in.
    """
    table = TABLES[name]
    folder = lake.home.lake / "data" / dataset / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{uuid.uuid4()}.parquet"
    try:
        version = Version(fingerprint, *_write_parquet(table, blocks, file), metrics or {})
        current = versions(lake, dataset).get(name)
        changed = current is None or current.digest != version.digest
        if current != version:
            with lake.transaction() as con:
                if changed:
                    con.execute(f"DELETE FROM {address(dataset, name)}")
                    con.execute("CALL ducklake_add_data_files('lake', ?, ?, schema => ?)", [name, str(file), dataset])
                _record_version(lake, dataset, name, version)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    if not changed:
        file.unlink()
    return version


def _write_parquet(table: Table, blocks: Iterable[pa.Table], file: Path) -> tuple[str, int]:
    digest, last_key = ContentDigest(), -1
    with pq.ParquetWriter(file, arrow_schema(table), compression="lz4") as writer:
        for block in blocks:
            rows = conform(table, block)
            if rows.num_rows == 0:
                continue
            first, last = rows[table.key[0]][0].as_py(), rows[table.key[0]][-1].as_py()
            if first <= last_key:
                raise StoreError(f"{table.name} was not published: blocks are not in ascending order of {table.key[0]}. Mend the code.")
            last_key = last
            digest.update(rows)
            writer.write_table(rows)
    return digest.hexdigest(), digest.n_rows


def append(lake: Lake, dataset: str, name: str, frame: pl.DataFrame | pa.Table) -> None:
    """Add rows with new keys to a table of blocks, as one commit. Keys that are there already are left as they are."""
    table = TABLES[name]
    arrow = conform(table, frame)
    if arrow.num_rows == 0:
        return
    on = " AND ".join(f"t.{quoted(k)} = s.{quoted(k)}" for k in table.key)
    with lake.transaction() as con:
        con.register("staged", arrow)
        try:
            con.execute(
                f"INSERT INTO {address(dataset, name)} FROM staged AS s"
                f" WHERE NOT EXISTS (SELECT 1 FROM {address(dataset, name)} AS t WHERE {on})"
            )
        finally:
            con.unregister("staged")


def record_version(lake: Lake, dataset: str, name: str, version: Version) -> None:
    """Note what a table that grew by `append` holds now."""
    if versions(lake, dataset).get(name) != version:
        with lake.transaction():
            _record_version(lake, dataset, name, version)


def upsert(lake: Lake, dataset: str, name: str, frame: pl.DataFrame) -> None:
    """Insert or update rows of a ledger; other rows stay. For use within a transaction or by itself."""
    table = TABLES[name]
    arrow = conform(table, frame)
    on = " AND ".join(f"t.{quoted(k)} = s.{quoted(k)}" for k in table.key)
    lake.con.register("staged_ledger", arrow)
    try:
        lake.con.execute(
            f"MERGE INTO {address(dataset, name)} AS t USING (FROM staged_ledger) AS s ON {on}"
            " WHEN MATCHED THEN UPDATE WHEN NOT MATCHED THEN INSERT"
        )
    finally:
        lake.con.unregister("staged_ledger")


def _record_version(lake: Lake, dataset: str, name: str, version: Version) -> None:
    row = {
        "table_name": name,
        "fingerprint": version.fingerprint,
        "digest": version.digest,
        "n_rows": version.n_rows,
        "metrics": json.dumps(version.metrics, sort_keys=True),
    }
    upsert(lake, dataset, "table_versions", pl.DataFrame([row]))


def _at(dataset: str, table: str, snapshot: int | None) -> str:
    at = "" if snapshot is None else f" AT (VERSION => {int(snapshot)})"
    return f"(FROM {address(dataset, table)}{at}) AS t"


def read_table(lake: Lake, dataset: str, name: str, *, columns: Sequence[str] = (), snapshot: int | None = None) -> pl.DataFrame:
    """A table in key order, whole; for matrices and embeddings prefer `read_matrix` and `read_vectors`."""
    table = TABLES[name]
    chosen = ", ".join(quoted(c) for c in (columns or table.column_names))
    query = f"SELECT {chosen} FROM {_at(dataset, name, snapshot)} "
    if table.storage == "matrix":
        blocks = [pl.DataFrame(b) for b in _ranges(lake, dataset, name, chosen, snapshot)]
        return pl.concat(blocks) if blocks else lake.con.execute(query + "LIMIT 0").pl()
    order = ", ".join(quoted(k) for k in table.key)
    return lake.con.execute(f"{query} ORDER BY {order}").pl()


def _ranges(lake: Lake, dataset: str, name: str, chosen: str, snapshot: int | None) -> Iterator[pa.Table]:
    """Blocks of a table keyed by image_id, in ascending order, each about READ_BYTES."""
    source = _at(dataset, name, snapshot)
    row = lake.con.execute(f"SELECT min(image_id), max(image_id), max(len({quoted(_listed(name))})) FROM {source}").fetchone()
    if row is None or row[0] is None:
        return
    first, last, width = row
    step = _rows_per_block(width)
    for low in range(first, last + 1, step):
        block = lake.con.execute(f"SELECT {chosen} FROM {source} WHERE image_id >= ? AND image_id < ?", [low, low + step]).to_arrow_table()
        if block.num_rows:
            yield block.sort_by("image_id") if "image_id" in block.column_names else block


def _listed(name: str) -> str:
    return next(c.name for c in TABLES[name].columns if c.type.endswith("[]"))


def _rows_per_block(width: int) -> int:
    return max(1, READ_BYTES // (16 * max(width, 1)))


def matrix_blocks(
    lake: Lake, dataset: str, name: str, column: str, *, snapshot: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(image_id int64 (b,), values (b, width)) of a list column whose rows have equal length, in image_id order, block by block.

    Raises StoreError if the rows of a block differ in length.
    """
    for block in _in_order(lake, dataset, name, f"image_id, {quoted(column)}", snapshot):
        lists = block[column].combine_chunks()
        items = lists.flatten()
        width = len(items) // max(len(lists), 1)
        if pc.any(pc.not_equal(pc.list_value_length(lists), width)).as_py():
            raise StoreError(f"{name}.{column} has rows of different lengths. Materialize {name} again.")
        yield block["image_id"].to_numpy(), items.to_numpy(zero_copy_only=False).reshape(len(lists), width)


def _in_order(lake: Lake, dataset: str, name: str, chosen: str, snapshot: int | None) -> Iterator[pa.Table]:
    """The blocks of `_ranges`, in one scan if the table lies in ascending order, as `publish_matrix` writes it.

    A range that cuts row groups decodes them twice: 100,000 x 1000 took 3.9 CPU seconds by ranges, the bare scan 1.7.
    """
    source = _at(dataset, name, snapshot)
    # A cursor: other queries of the connection would end a scan that is under way.
    with lake.con.cursor() as con:
        ids = con.execute(f"SELECT image_id FROM {source}").fetchnumpy()["image_id"]
        if (np.diff(ids) <= 0).any():
            yield from _ranges(lake, dataset, name, chosen, snapshot)
            return
        row = con.execute(f"SELECT len({quoted(_listed(name))}) FROM {source} LIMIT 1").fetchone()
        start, step = 0, _rows_per_block(row[0] if row else 0)
        for batch in con.execute(f"SELECT {chosen} FROM {source}").to_arrow_reader(step):
            if not np.array_equal(batch["image_id"].to_numpy(), ids[start : start + batch.num_rows]):
                raise StoreError(f"{name} was not scanned in the order in which it lies. Run the command again.")
            start += batch.num_rows
            yield pa.Table.from_batches([batch])


def read_matrix(lake: Lake, dataset: str, name: str, column: str, *, snapshot: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`matrix_blocks` in one piece: (image_id int64 (n,), values (n, width))."""
    ids, parts = [], []
    for block_ids, values in matrix_blocks(lake, dataset, name, column, snapshot=snapshot):
        ids.append(block_ids)
        parts.append(values)
    kind = np.int64 if ARROW_TYPES[next(c.type for c in TABLES[name].columns if c.name == column)].value_type == pa.int64() else np.float32
    if not ids:
        return np.empty(0, np.int64), np.empty((0, 0), kind)
    return np.concatenate(ids), np.concatenate(parts)
