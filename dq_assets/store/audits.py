"""Audits: which snapshots belong together, whether their gates are open, what is kept of them.

A table is fresh when its fingerprint is the one that the newest inputs and settings give. An audit is recorded only when
all its tables are fresh, however they were materialized, so a row in `audits` means that the tables belong together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from dq_assets.audit.gates import Gate
from dq_assets.schema import ASSET_TABLES, TABLES
from dq_assets.settings import Settings, UserError
from dq_assets.store.lake import Lake, address
from dq_assets.store.tables import Version, read_table, upsert, versions

AUDITED_TABLES = ASSET_TABLES[: ASSET_TABLES.index("curated_dataset") + 1]
"""The tables of an audit; training_set and trained_model follow only where its gates are open."""

NOT_RESULTS = ("store", "automation")
"""Sections of the settings that change no table; they do not make a new audit."""


class GateClosedError(UserError):
    """A gate has not passed; training is held."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An audit that was recorded; `is_new` is false where nothing changed since the one before."""

    audit_id: int
    is_new: bool


def code_version(table: str, settings: Settings) -> str:
    """Hash of the algorithm's version and of the settings that a table depends on."""
    spec = TABLES[table]
    return f"{spec.algorithm}-{settings.digest(*spec.settings)}"


def fingerprint(table: str, settings: Settings, current: dict[str, Version], *, extra: str = "") -> str:
    """What a table would be computed from now. Raises UserError naming inputs that were never materialized.

    extra: identity of what is outside the tables and the settings (weights of the network).
    """
    missing = [name for name in TABLES[table].inputs if name not in current]
    if missing:
        raise UserError(f"{table} needs {', '.join(missing)}. Materialize them first.")
    parts = [code_version(table, settings), extra, *(f"{name}={current[name].digest}" for name in TABLES[table].inputs)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def stale_tables(settings: Settings, current: dict[str, Version], extras: dict[str, str]) -> list[str]:
    """Tables of an audit that are missing or were computed from something older. extras: see `fingerprint`."""
    stale: list[str] = []
    for table in AUDITED_TABLES:
        ready = table in current and all(name in current for name in TABLES[table].inputs)
        if not ready or current[table].fingerprint != fingerprint(table, settings, current, extra=extras.get(table, "")):
            stale.append(table)
    return stale


def record_audit(lake: Lake, dataset: str, settings: Settings, gates: Sequence[Gate], *, run_id: str, started: datetime) -> Recorded:
    """Write the verdicts and, last, the audit's row, in one commit. An audit equal to the latest one is not a new one."""
    current = versions(lake, dataset)
    digests = json.dumps({name: current[name].digest for name in AUDITED_TABLES}, sort_keys=True)
    as_json = settings_json(settings)
    latest = latest_audit(lake, dataset)
    same = latest is not None and latest["digests"] == digests and _results(latest["settings"]) == _results(as_json)
    audit_id = latest["audit_id"] if latest and same else (latest["audit_id"] if latest else 0) + 1
    with lake.transaction():
        upsert(lake, dataset, "gate_results", _gate_rows(lake, dataset, audit_id, gates))
        if not same:
            row = {
                "audit_id": audit_id,
                "snapshot_id": lake.snapshot(),
                "training_snapshot_id": None,
                "run_id": run_id,
                "started": started,
                "finished": datetime.now(UTC),
                "settings": as_json,
                "digests": digests,
                "tag": None,
                "pinned_by": None,
            }
            upsert(
                lake,
                dataset,
                "audits",
                pl.DataFrame([row], schema_overrides={"training_snapshot_id": pl.Int64, "tag": pl.String, "pinned_by": pl.String}),
            )
    return Recorded(audit_id, not same)


def settings_json(settings: Settings) -> str:
    """All settings as canonical JSON."""
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


def _results(as_json: str) -> dict[str, Any]:
    return {name: section for name, section in json.loads(as_json).items() if name not in NOT_RESULTS}


def _gate_rows(lake: Lake, dataset: str, audit_id: int, gates: Sequence[Gate]) -> pl.DataFrame:
    """The verdicts as rows; an override that a person gave on the same audit stays."""
    schema = {
        "check_name": pl.String,
        "verdict": pl.String,
        "blocking": pl.Boolean,
        "value": pl.Float64,
        "limit_value": pl.Float64,
        "reason": pl.String,
    }
    rows = pl.DataFrame([dataclasses.astuple(gate) for gate in gates], schema=schema, orient="row")
    before = read_table(lake, dataset, "gate_results").filter(pl.col("audit_id") == audit_id)
    overrides = before.select("check_name", "override_by", "override_reason")
    return rows.with_columns(audit_id=pl.lit(audit_id, pl.Int64)).join(overrides, on="check_name", how="left")


def latest_audit(lake: Lake, dataset: str) -> dict[str, Any] | None:
    """The row of the latest complete audit; None if there is none."""
    rows = history(lake, dataset)
    return rows.row(-1, named=True) if len(rows) else None


def history(lake: Lake, dataset: str) -> pl.DataFrame:
    """All complete audits, oldest first."""
    return read_table(lake, dataset, "audits")


def audit_row(lake: Lake, dataset: str, version: int | None) -> dict[str, Any]:
    """One complete audit, the latest if version is None. Raises UserError naming those that exist."""
    rows = history(lake, dataset)
    found = rows if version is None else rows.filter(pl.col("audit_id") == version)
    if found.is_empty():
        known = f"it has 1 to {len(rows)}" if len(rows) else "none is complete yet"
        wanted = "a complete audit" if version is None else f"audit {version}"
        raise UserError(f"Dataset {dataset} does not have {wanted}; {known}. Run `dq-assets audit`, or give another --version.")
    return found.row(-1, named=True)


def snapshot_of(lake: Lake, dataset: str, table: str, version: int | None) -> int | None:
    """The snapshot to read a table of an audit at; None (the newest) for ledgers. Raises UserError if it is not kept.

    table_versions without a version is the newest: it also has what follows an audit.
    """
    if TABLES[table].storage in ("ledger", "blocks") or (table == "table_versions" and version is None):
        return None
    row = audit_row(lake, dataset, version)
    if table == "training_set":
        if row["training_snapshot_id"] is None:
            raise UserError(f"Audit {row['audit_id']} of {dataset} has no training set. See `dq-assets gate --name {dataset}`.")
        return int(row["training_snapshot_id"])
    snapshot = int(row["snapshot_id"])
    if TABLES[table].storage == "matrix" and not all(file.exists() for file in _files(lake, dataset, table, snapshot)):
        raise UserError(f"{table} of audit {row['audit_id']} is no longer kept. Give a newer --version, or raise store.matrices_kept.")
    return snapshot


def read(lake: Lake, dataset: str, table: str, version: int | None = None) -> pl.DataFrame:
    """A table as of an audit. Raises UserError for an unknown dataset, table or audit."""
    if table not in TABLES:
        raise UserError(f"There is no table {table!r}. Tables: {', '.join(TABLES)}.")
    if not lake.has_dataset(dataset):
        raise UserError(f"The lake has no dataset {dataset!r}. Run `dq-assets audit PATH --name {dataset}` first.")
    return read_table(lake, dataset, table, snapshot=snapshot_of(lake, dataset, table, version))


def gate_results(lake: Lake, dataset: str, version: int | None = None) -> pl.DataFrame:
    """The verdicts on one audit. Raises UserError if the audit does not exist."""
    audit_id = audit_row(lake, dataset, version)["audit_id"]
    return read_table(lake, dataset, "gate_results").filter(pl.col("audit_id") == audit_id)


def closed_gates(verdicts: pl.DataFrame) -> pl.DataFrame:
    """The blocking gates that neither passed nor were overridden. Not run counts as not passed."""
    return verdicts.filter(pl.col("blocking") & (pl.col("verdict") != "passed") & pl.col("override_by").is_null())


def require_green(lake: Lake, dataset: str, settings: Settings, extras: dict[str, str], version: int | None = None) -> int:
    """The audit's id if training may go on. Raises GateClosedError naming every closed gate, or that the audit is outdated.

    Without a version the latest audit is meant, and it must describe the tables as they stand.
    """
    row = audit_row(lake, dataset, version)
    if version is None:
        current = versions(lake, dataset)
        now = {name: current[name].digest for name in AUDITED_TABLES if name in current}
        if now != json.loads(row["digests"]) or stale_tables(settings, current, extras):
            raise GateClosedError(f"The tables of {dataset} changed after audit {row['audit_id']}. Run the whole audit again.")
    verdicts = gate_results(lake, dataset, row["audit_id"])
    closed = closed_gates(verdicts)
    if verdicts.is_empty() or not closed.is_empty():
        why = "; ".join(f"{g['check_name']}: {g['reason']}" for g in closed.iter_rows(named=True)) or "no gate was evaluated"
        raise GateClosedError(
            f"Training on {dataset} is held by audit {row['audit_id']}: {why}. Mend the data, or change the limits under gates."
        )
    return int(row["audit_id"])


def record_training_set(lake: Lake, dataset: str, audit_id: int) -> None:
    """Note at which snapshot the training set of an audit stands, unless that is known."""
    with lake.transaction() as con:
        con.execute(
            f"UPDATE {address(dataset, 'audits')} SET training_snapshot_id = ? WHERE audit_id = ? AND training_snapshot_id IS NULL",
            [lake.snapshot(), audit_id],
        )


def _files(lake: Lake, dataset: str, table: str, snapshot: int) -> list[Path]:
    rows = lake.con.execute(
        "SELECT data_file FROM ducklake_list_files('lake', ?, schema => ?, snapshot_version => ?)", [table, dataset, snapshot]
    ).fetchall()
    return [Path(file) for (file,) in rows]


def prune_matrices(lake: Lake, dataset: str, keep: int) -> int:
    """Delete the files of matrices that no kept audit needs; returns how many. Call it under the dataset's audit lock.

    DuckLake expires whole snapshots, which would take the small tables' history along; see docs/decisions/.
    """
    rows = history(lake, dataset)
    kept = rows.filter(pl.col("tag").is_not_null() | pl.col("pinned_by").is_not_null() | (pl.int_range(pl.len()) >= pl.len() - keep))
    snapshots = [*kept["snapshot_id"].to_list(), lake.snapshot()]
    n_deleted = 0
    for table in (t.name for t in TABLES.values() if t.storage == "matrix"):
        needed = {file.resolve() for snapshot in snapshots for file in _files(lake, dataset, table, snapshot)}
        for file in (lake.home.lake / "data" / dataset / table).glob("*.parquet"):
            if file.resolve() not in needed:
                file.unlink()
                n_deleted += 1
    return n_deleted
