"""Asset checks of one dataset: integrity of every table, and the policy gates on curated_dataset.

All block: integrity where it stands, the gates before training_set, so that a bad dataset still gets its findings. One op per
asset: an op costs 0.1 s. The gates' op is also what completes an audit.
"""

# No `from __future__ import annotations` here: Dagster inspects the type of `context` and refuses a string.

from collections.abc import Iterator
from typing import Any

import dagster as dg

from dq_assets.audit.gates import ADVISORY, GATES, Gate, evaluate_gates
from dq_assets.defs.automation import job_name
from dq_assets.defs.session import Session, session_key
from dq_assets.schema import TABLES
from dq_assets.settings import Dataset
from dq_assets.store import audits
from dq_assets.store.integrity import CHECKS, check_integrity, checks_of


def dataset_checks(dataset: Dataset) -> list[dg.AssetChecksDefinition]:
    """All checks of a dataset."""
    integrity = [_integrity(dataset, name) for name in (*audits.AUDITED_TABLES, "training_set")]
    return [*integrity, _gates(dataset)]


def gates_op_name(dataset: Dataset) -> str:
    """Name of the op that evaluates the gates; that it fails means that a gate is closed, not that the audit failed."""
    return f"{dataset.slug}__gates"


def _integrity(dataset: Dataset, name: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey([dataset.name, name])
    specs = [dg.AssetCheckSpec(check, asset=key, description=CHECKS[check], blocking=True) for check in checks_of(TABLES[name])]

    @dg.multi_asset_check(specs=specs, name=f"{dataset.slug}__{name}__integrity", required_resource_keys={session_key(dataset)})
    def integrity(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        session: Session = getattr(context.resources, session_key(dataset))
        identity = session.encoder_id() if name == "embeddings" else ""
        for verdict in check_integrity(session.lake, dataset.name, name, encoder=identity):
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=verdict.check,
                passed=verdict.passed,
                severity=dg.AssetCheckSeverity.ERROR,
                description="no offender" if verdict.passed else f"{verdict.n_offenders} offenders, such as {', '.join(verdict.sample)}",
                metadata={"offenders": verdict.n_offenders, "first offenders": list(verdict.sample)},
            )

    return integrity


def _gates(dataset: Dataset) -> dg.AssetChecksDefinition:
    key = dg.AssetKey([dataset.name, "curated_dataset"])
    specs = [dg.AssetCheckSpec(name, asset=key, description=doc, blocking=name not in ADVISORY) for name, doc in GATES.items()]

    @dg.multi_asset_check(specs=specs, name=gates_op_name(dataset), required_resource_keys={session_key(dataset)})
    def gates(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        session: Session = getattr(context.resources, session_key(dataset))
        stale = audits.stale_tables(session.settings, session.versions(), session.extras())
        verdicts = evaluate(session, stale)
        if stale:  # tables that do not belong together are no audit; the latest complete one stays the latest
            session.report.say(f"No audit of {dataset.name} is recorded: outdated are {', '.join(stale)}. Run {job_name(dataset)}.")
            yield from (_result(key, gate, None) for gate in verdicts)
            return
        recorded = audits.record_audit(
            session.lake, dataset.name, session.settings, verdicts, run_id=context.run.run_id, started=session.started
        )
        audits.prune_matrices(session.lake, dataset.name, session.settings.store.matrices_kept)
        session.report.say(f"Audit {recorded.audit_id} of {dataset.name} is {'complete' if recorded.is_new else 'unchanged'}.")
        for gate in verdicts:
            yield _result(key, gate, recorded.audit_id)

    return gates


def evaluate(session: Session, stale: list[str]) -> list[Gate]:
    """The verdict of every gate on the tables as they stand, of which `stale` are outdated."""
    return evaluate_gates(
        manifest=session.table("raw_manifest"),
        curated=session.table("curated_dataset"),
        label_issues=session.table("label_issues"),
        near_dups=session.table("near_dups"),
        class_report=session.table("class_report"),
        stale=stale,
        limits=session.settings.gates,
    )


def _result(key: dg.AssetKey, gate: Gate, audit_id: int | None) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"verdict": gate.verdict, **({} if audit_id is None else {"audit": audit_id})}
    if gate.value is not None:
        metadata |= {"value": float(gate.value), "limit": float(gate.limit_value or 0)}
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=gate.check_name,
        passed=gate.verdict == "passed",
        severity=dg.AssetCheckSeverity.ERROR if gate.blocking else dg.AssetCheckSeverity.WARN,
        description=gate.reason,
        metadata=metadata,
    )
