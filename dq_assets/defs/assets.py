"""The asset graph of one dataset, made from the schema: one asset per table, edges from its inputs.

Two pairs of tables share an op: what one decode gives, and the label issues with their evidence, since the pictures of the first show both.
A body asks whether its table is fresh, runs its stage if not, and reports the version. Nothing is computed here.
"""

# No `from __future__ import annotations` here: Dagster inspects the type of `context` and refuses a string.

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from dq_assets.defs.automation import downstream_condition
from dq_assets.defs.pictures import pictures_of
from dq_assets.defs.session import Session, session_key
from dq_assets.defs.stages import content, copies, curated, labels, nearest
from dq_assets.schema import ASSET_TABLES, TABLES, Table
from dq_assets.settings import Dataset
from dq_assets.store import audits
from dq_assets.store.tables import Version

STAGES: dict[str, Callable[[Session], Version]] = {
    "embeddings": content.embeddings,
    "neighbors": nearest.nearest,
    "duplicate_groups": copies.duplicate_groups,
    "folds": labels.assigned_folds,
    "oof_probs": labels.oof_probs,
    "label_issues": labels.label_issues,
    "label_evidence": labels.label_evidence,
    "outliers": nearest.outlier_scores,
    "near_dups": copies.duplicate_verdicts,
    "class_report": labels.class_report,
    "ontology_report": labels.ontology_report,
    "curated_dataset": curated.curated_dataset,
    "trained_model": curated.trained_model,
}
"""What computes each table but the scanned two, which share one decode, label_noise, which comes with label_issues, and training_set,
which asks the gates."""

SCANNED = ("raw_manifest", "image_properties")
JUDGED = ("label_issues", "label_noise", "label_evidence")


def asset_key(dataset: Dataset, table: str) -> dg.AssetKey:
    """[name, table]; the name keeps its hyphens."""
    return dg.AssetKey([dataset.name, table])


def dataset_assets(dataset: Dataset) -> list[dg.AssetsDefinition]:
    """All assets of a dataset."""
    single = [_single_asset(dataset, name) for name in ASSET_TABLES if name not in (*SCANNED, *JUDGED)]
    return [_scan_asset(dataset), _labels_asset(dataset), *single]


def _spec(dataset: Dataset, table: Table) -> dict[str, Any]:
    """What Dagster shows of an asset before it ever ran."""
    columns = [
        dg.TableColumn(
            c.name, c.type, description=c.doc, constraints=dg.TableColumnConstraints(nullable=c.nullable, unique=table.key == (c.name,))
        )
        for c in table.columns
    ]
    return {
        "key": asset_key(dataset, table.name),
        "deps": [asset_key(dataset, name) for name in table.inputs],
        "description": f"{table.doc}\n\nKey: {', '.join(table.key)}.",
        "metadata": {"dagster/column_schema": dg.TableSchema(columns), "dagster/table_name": f"{dataset.name}.{table.name}"},
        "owners": [dataset.settings.automation.owner],
        "group_name": dataset.slug,
        "kinds": set(table.kinds),
        "code_version": audits.code_version(table.name, dataset.settings),
    }


def _session(context: Any, dataset: Dataset) -> Session:
    session: Session = getattr(context.resources, session_key(dataset))
    return session


def _metadata(session: Session, table: str, version: Version, *, computed: bool) -> dict[str, Any]:
    numbers = {key: value for key, value in version.metrics.items() if not isinstance(value, list) and value is not None}
    lists = {key: str([round(v, 4) for v in value]) for key, value in version.metrics.items() if isinstance(value, list)}
    return {
        "dagster/row_count": version.n_rows,
        "computed": computed,
        **{key: float(value) if isinstance(value, float) else value for key, value in numbers.items()},
        **lists,
        **pictures_of(session, table),
    }


def _scan_asset(dataset: Dataset) -> dg.AssetsDefinition:
    # Both come from one decode; the first has no inputs, so the second needs no edge to it.
    specs = [dg.AssetSpec(**_spec(dataset, TABLES[name])) for name in SCANNED]

    @dg.multi_asset(name=f"{dataset.slug}__scan", specs=specs, required_resource_keys={session_key(dataset)})
    def scan(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        session = _session(context, dataset)
        for name, version in zip(SCANNED, content.raw_manifest(session), strict=True):
            yield dg.MaterializeResult(
                asset_key=asset_key(dataset, name),
                data_version=dg.DataVersion(version.digest),
                metadata=_metadata(session, name, version, computed=True),
            )

    return scan


def _labels_asset(dataset: Dataset) -> dg.AssetsDefinition:
    specs = [dg.AssetSpec(**_spec(dataset, TABLES[name]), automation_condition=downstream_condition()) for name in JUDGED]

    @dg.multi_asset(name=f"{dataset.slug}__labels", specs=specs, required_resource_keys={session_key(dataset)})
    def labels(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        session = _session(context, dataset)
        judged = _judged(session)  # all before the pictures of the first
        for name, (version, computed) in zip(JUDGED, judged, strict=True):
            yield dg.MaterializeResult(
                asset_key=asset_key(dataset, name),
                data_version=dg.DataVersion(version.digest),
                metadata=_metadata(session, name, version, computed=computed),
            )

    return labels


def _single_asset(dataset: Dataset, name: str) -> dg.AssetsDefinition:
    @dg.asset(  # type: ignore[untyped-decorator]
        **_spec(dataset, TABLES[name]),
        automation_condition=downstream_condition(),
        required_resource_keys={session_key(dataset)},
    )
    def table(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        session = _session(context, dataset)
        version, computed = _training_set(session) if name == "training_set" else _fresh(session, name)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version.digest), metadata=_metadata(session, name, version, computed=computed)
        )

    asset: dg.AssetsDefinition = table
    return asset


def _fresh(session: Session, name: str) -> tuple[Version, bool]:
    """The table's version, computed now if its inputs or settings changed; and whether it was computed."""
    current = session.versions().get(name)
    if current is not None and current.fingerprint == session.fingerprint(name):
        return current, False
    return STAGES[name](session), True


def _judged(session: Session) -> list[tuple[Version, bool]]:
    """As `_fresh`, of JUDGED: label_issues brings label_noise with it, and is computed again if either is outdated."""
    current, together = session.versions(), ("label_issues", "label_noise")
    computed = any(name not in current or current[name].fingerprint != session.fingerprint(name) for name in together)
    if computed:
        STAGES["label_issues"](session)
    return [*((session.versions()[name], computed) for name in together), _fresh(session, "label_evidence")]


def _training_set(session: Session) -> tuple[Version, bool]:
    """As `_fresh`, but only for an audit whose gates are open: a blocking check holds its own run alone."""
    audit_id = audits.require_green(session.lake, session.dataset.name, session.settings, session.extras())
    current = session.versions().get("training_set")
    if current is not None and current.fingerprint == session.fingerprint("training_set", curated.training_extra(audit_id)):
        return current, False
    return curated.training_set(session, audit_id), True


def selection(dataset: Dataset, names: Sequence[str] = ASSET_TABLES) -> dg.AssetSelection:
    """The dataset's assets of these tables."""
    return dg.AssetSelection.assets(*(asset_key(dataset, name) for name in names))
