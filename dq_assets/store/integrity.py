"""Integrity checks of every table, derived from the schema. A check is one query that selects the offenders.

A table that breaks one is not fit to be computed with, so these block where they stand. Policy (is the data good enough?)
is not here but in `audit.gates`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dq_assets.schema import TABLES, Column, Table
from dq_assets.store.lake import Lake, address, literal, quoted

SAMPLE = 5
"""Offenders that a verdict shows."""

CHECKS = {
    "keys": "Keys are present and unique.",
    "values": "Columns have their types, required values are there, numbers are finite and in range, words are known ones.",
    "complete": "Each image that should have a row has exactly one, and no other image has any.",
    "probabilities": "Each row has one probability per class and they sum to 1 within 1e-3.",
    "out_of_fold": "Each image was scored exactly once, in the fold that is stored for it.",
}
"""Every integrity check; which of them a table has follows from its schema (`checks_of`)."""


@dataclass(frozen=True)
class IntegrityVerdict:
    """One check's answer: how many offenders, and the first few of them as text."""

    check: str
    n_offenders: int
    sample: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no offender."""
        return self.n_offenders == 0


def checks_of(table: Table) -> tuple[str, ...]:
    """The integrity checks that a table has."""
    complete = ("complete",) if table.rows != "other" or table.name == "embeddings" else ()
    special = ("probabilities", "out_of_fold") if table.name == "oof_probs" else ()
    return ("keys", "values", *complete, *special)


def check_integrity(lake: Lake, dataset: str, name: str, *, encoder: str = "") -> list[IntegrityVerdict]:
    """Run all checks of a table on its newest content. encoder: the one in use, for the completeness of embeddings."""
    table = TABLES[name]
    queries = {
        "keys": _keys,
        "values": _values,
        "complete": lambda d, t: _complete(d, t, encoder),
        "probabilities": _probabilities,
        "out_of_fold": _out_of_fold,
    }
    return [_verdict(lake, check, queries[check](dataset, table)) for check in checks_of(table)]


def _verdict(lake: Lake, check: str, query: str) -> IntegrityVerdict:
    """`query` selects one column: a description of each offender."""
    rows = lake.con.execute(
        f"WITH offenders(offender) AS ({query}) SELECT offender, count(*) OVER () FROM offenders LIMIT {SAMPLE}"
    ).fetchall()
    return IntegrityVerdict(check, rows[0][1] if rows else 0, tuple(str(offender) for offender, _ in rows))


def _keys(dataset: str, table: Table) -> str:
    key = ", ".join(quoted(k) for k in table.key)
    shown = " || ' / ' || ".join(f"coalesce({quoted(k)}::VARCHAR, 'null')" for k in table.key)
    missing = " OR ".join(f"{quoted(k)} IS NULL" for k in table.key)
    return f"SELECT {shown} FROM {address(dataset, table.name)} GROUP BY {key} HAVING count(*) > 1 OR {missing}"


def _values(dataset: str, table: Table) -> str:
    source = address(dataset, table.name)
    first_key = quoted(table.key[0])
    parts = [
        f"SELECT {literal(column.name + ' of ')} || {first_key}::VARCHAR FROM {source} WHERE {condition}"
        for column in table.columns
        for condition in _conditions(column)
    ]
    described = ", ".join(f"({literal(c.name)}, {literal(_described_type(c.type))})" for c in table.columns)
    types = (
        f"SELECT 'type of ' || c.name FROM (VALUES {described}) AS c(name, type) ANTI JOIN"
        f" (SELECT column_name AS name, data_type AS type FROM duckdb_columns()"
        f" WHERE database_name = 'lake' AND schema_name = {literal(dataset)} AND table_name = {literal(table.name)}) USING (name, type)"
    )
    return " UNION ALL ".join([types, *parts])


def _described_type(sql: str) -> str:
    return sql.replace("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE")


def _conditions(column: Column) -> list[str]:
    name, listed = quoted(column.name), column.type.endswith("[]")
    conditions = [] if column.nullable else [f"{name} IS NULL"]
    if column.type in ("FLOAT", "DOUBLE"):
        conditions.append(f"NOT isfinite({name})")
    if column.type == "FLOAT[]":
        # A sum is finite only if every member is; list_filter would copy each vector.
        conditions.append(f"NOT isfinite(list_sum({name}))")
    low, high = (f"list_min({name})", f"list_max({name})") if listed else (name, name)
    if column.low is not None:
        conditions.append(f"{low} < {column.low!r} - 1e-6")
    if column.high is not None:
        conditions.append(f"{high} > {column.high!r} + 1e-6")
    if column.values:
        conditions.append(f"{name} NOT IN ({', '.join(map(literal, column.values))})")
    return conditions


def _complete(dataset: str, table: Table, encoder: str) -> str:
    manifest = address(dataset, "raw_manifest")
    if table.name == "embeddings":
        return (
            f"SELECT DISTINCT 'no vector for ' || content_sha256 FROM {manifest} WHERE status = 'ok' AND content_sha256 NOT IN"
            f" (SELECT content_sha256 FROM {address(dataset, 'embeddings')} WHERE encoder = {literal(encoder)})"
        )
    expected = f"SELECT image_id FROM {manifest}" + ("" if table.rows == "every_image" else " WHERE status = 'ok'")
    surplus = f"SELECT 'unexpected row of ' || image_id FROM {address(dataset, table.name)} WHERE image_id NOT IN ({expected})"
    if table.rows == "some_images":
        return surplus
    missing = (
        f"SELECT 'no row for ' || image_id FROM ({expected}) WHERE image_id NOT IN (SELECT image_id FROM {address(dataset, table.name)})"
    )
    return f"{surplus} UNION ALL {missing}"


def _probabilities(dataset: str, table: Table) -> str:
    n_classes = f"(SELECT count(DISTINCT given_label) FROM {address(dataset, 'raw_manifest')} WHERE status = 'ok')"
    return (
        f"SELECT 'row of ' || image_id FROM {address(dataset, table.name)}"
        f" WHERE len(probs) <> {n_classes} OR (len(probs) > 0 AND abs(list_sum(probs) - 1) > 1e-3)"
    )


def _out_of_fold(dataset: str, table: Table) -> str:
    return (
        f"SELECT 'fold of ' || coalesce(p.image_id, f.image_id) FROM {address(dataset, table.name)} AS p"
        f" FULL JOIN {address(dataset, 'folds')} AS f ON p.image_id = f.image_id AND p.fold = f.fold"
        " WHERE p.image_id IS NULL OR f.image_id IS NULL"
    )
