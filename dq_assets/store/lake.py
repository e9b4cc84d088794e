"""Connecting to the lake and writing to it safely.

The lake is a DuckLake: Parquet files under lake/data/ and a catalog in lake/catalog.sqlite. Anyone may read it while one
process writes. Every write goes through `Lake.transaction`, which holds a file lock: without it four writers on a SQLite
catalog lost 40 % of their commits, with it none. A transaction never spans computation.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
from duckdb_extensions import import_extension
from filelock import FileLock, Timeout

from dq_assets.schema import TABLES, Table
from dq_assets.settings import Home, Store, UserError

EXTENSIONS = ("ducklake", "sqlite_scanner")


class StoreError(UserError):
    """The lake refused: what was to be stored is not what the schema says, or the disk is full."""


def quoted(identifier: str) -> str:
    """An SQL identifier; dataset and column names are hostile text until quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str | Path) -> str:
    """An SQL string literal, for the few statements that take no parameters (ATTACH, COPY)."""
    return "'" + str(text).replace("'", "''") + "'"


@dataclass
class Lake:
    """An open connection to the lake. Not for use by two threads at once: open one each (0.1 s)."""

    home: Home
    con: duckdb.DuckDBPyConnection

    @classmethod
    @contextlib.contextmanager
    def open(cls, home: Home, settings: Store = Store()) -> Iterator[Lake]:  # noqa: B008  (frozen)
        """Attach the lake, creating it on first use. Raises StoreError if the folder cannot be written."""
        lake = cls(home, _connect(home, settings))
        try:
            yield lake
        finally:
            lake.con.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One atomic commit under the lake's write lock; rolled back whole if the body raises."""
        with FileLock(self.home.lake / "write.lock"):
            self.con.execute("BEGIN")
            try:
                yield self.con
                self.con.execute("COMMIT")
            except BaseException as error:
                # A failed COMMIT has already ended the transaction; a second error would hide the first.
                with contextlib.suppress(duckdb.Error):
                    self.con.execute("ROLLBACK")
                if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException) and "space" in str(error).lower():
                    raise StoreError(
                        f"No space left under {self.home.lake}; the lake is at its last commit. Free some space and run again."
                    ) from error
                raise

    def snapshot(self) -> int:
        """Id of the newest snapshot."""
        row = self.con.execute("SELECT id FROM lake.current_snapshot()").fetchone()
        assert row is not None
        return int(row[0])

    def has_dataset(self, dataset: str) -> bool:
        """Whether the dataset has a schema in the lake."""
        found = self.con.execute("SELECT 1 FROM duckdb_schemas() WHERE database_name = 'lake' AND schema_name = ?", [dataset]).fetchone()
        return found is not None

    def ensure_dataset(self, dataset: str) -> None:
        """Create the dataset's schema and all its tables; add columns that a newer version of the schema has."""
        present = self._columns(dataset)
        missing = [t for t in TABLES.values() if t.name not in present]
        added = [(t, c) for t in TABLES.values() if t.name in present for c in t.columns if c.name not in present[t.name]]
        if not missing and not added:
            return
        with self.transaction() as con:
            con.execute(f"CREATE SCHEMA IF NOT EXISTS lake.{quoted(dataset)}")
            for table in missing:
                con.execute(create_statement(dataset, table))
            for table, column in added:
                con.execute(f"ALTER TABLE {address(dataset, table.name)} ADD COLUMN {quoted(column.name)} {column.type}")

    def _columns(self, dataset: str) -> dict[str, set[str]]:
        rows = self.con.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'lake' AND schema_name = ?", [dataset]
        ).fetchall()
        columns: dict[str, set[str]] = {}
        for table, column in rows:
            columns.setdefault(table, set()).add(column)
        return columns


def address(dataset: str, table: str) -> str:
    """Fully qualified, quoted name of a table."""
    return f"lake.{quoted(dataset)}.{quoted(table)}"


def create_statement(dataset: str, table: Table) -> str:
    """DDL of a table. Nullability is checked at publication: DuckLake cannot add a NOT NULL column later."""
    columns = ", ".join(f"{quoted(c.name)} {c.type}" for c in table.columns)
    return f"CREATE TABLE IF NOT EXISTS {address(dataset, table.name)} ({columns})"


def _connect(home: Home, settings: Store) -> duckdb.DuckDBPyConnection:
    try:
        (home.lake / "data").mkdir(parents=True, exist_ok=True)
        (home.cache / "duckdb").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot write to {home.root} ({error.strerror}). Set DQ_HOME to a folder that you can write to.") from error
    con = duckdb.connect(
        config={
            "memory_limit": settings.memory_limit,
            "threads": settings.threads or os.cpu_count() or 1,
            "temp_directory": str(home.cache / "duckdb"),
            # Extensions come with the installation; nothing is fetched behind the user's back.
            "autoinstall_known_extensions": False,
        }
    )
    _load_extensions(con, home)
    with FileLock(home.lake / "write.lock"):  # the first attach creates the catalog
        con.execute(
            f"ATTACH {literal(f'ducklake:sqlite:{home.lake}/catalog.sqlite')} AS lake"
            f" (DATA_PATH {literal(f'{home.lake}/data/')}, OVERRIDE_DATA_PATH true, META_JOURNAL_MODE 'WAL', META_BUSY_TIMEOUT 30000)"
        )
    if _is_new(con):
        con.execute("CALL lake.set_option('parquet_compression', 'lz4')")
    return con


def _is_new(con: duckdb.DuckDBPyConnection) -> bool:
    row = con.execute("SELECT id FROM lake.current_snapshot()").fetchone()
    return row is not None and int(row[0]) == 0


def _load_extensions(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Load the pinned extensions, installing them from their wheels on first use."""
    for extension in EXTENSIONS:
        try:
            con.execute(f"LOAD {extension}")
        except (duckdb.IOException, duckdb.InvalidInputException):  # not installed yet, or for another DuckDB version
            with FileLock(home.cache / "extensions.lock"):
                import_extension(extension, force_install=True)
            con.execute(f"LOAD {extension}")


@contextlib.contextmanager
def audit_lock(home: Home, dataset: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let one audit of a dataset run at a time. A waiting one says for whom it waits; a dead holder's lock is free."""
    home.lake.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.lake / f"{dataset}.audit.lock", thread_local=False)
    holder = home.lake / f"{dataset}.audit.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Waiting for the audit of {dataset} that {_holder_text(holder)}.")
        lock.acquire()
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder_text(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {int(known['pid'])} runs since {known['since']}"
    except (OSError, ValueError, KeyError):  # written a moment later, or removed a moment ago
        return "another process runs"
