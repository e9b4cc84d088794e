"""What starts audits by itself: the nightly schedule, the sensor that watches the source, and the downstream condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
import polars as pl

from dq_assets.settings import Dataset, Home, UserError
from dq_assets.sources.layout import Listing
from dq_assets.sources.listing import list_source
from dq_assets.store.audits import latest_audit
from dq_assets.store.lake import Lake
from dq_assets.store.tables import read_table, versions


@dataclass(frozen=True)
class Changes:
    """How a listing differs from the audited one, in files."""

    added: int
    changed: int
    removed: int

    def __str__(self) -> str:
        return f"{self.added} files added, {self.changed} changed, {self.removed} removed"


@dataclass(frozen=True)
class Decision:
    """What the sensor does: request an audit or not, why, and the cursor to remember."""

    request: bool
    reason: str
    cursor: str


def job_name(dataset: Dataset) -> str:
    """The job that runs the whole graph."""
    return f"full_audit__{dataset.slug}"


def downstream_condition() -> dg.AutomationCondition:  # type: ignore[type-arg]
    """Materialize when an input's content changed, not merely when it was materialized again.

    `eager()` reacts to every materialization of an input; with content digests as data versions that would repeat work.
    """
    changed = dg.AutomationCondition.data_version_changed() | dg.AutomationCondition.will_be_requested()
    eager = dg.AutomationCondition.eager()
    replaced = eager.replace("any_deps_updated", dg.AutomationCondition.any_deps_match(changed).with_label("any_deps_changed"))
    return (replaced & dg.AutomationCondition.all_deps_blocking_checks_passed()).with_label("content of an input changed")


def automation_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions. Dagster's own default sensor starts stopped, so that no condition would ever fire."""
    return dg.AutomationConditionSensorDefinition(
        "automation", target=dg.AssetSelection.all(), default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=30
    )


def schedules(dataset: Dataset) -> Sequence[dg.ScheduleDefinition]:
    """The schedule full_audit__<name>, or none if the setting is empty."""
    cron = dataset.settings.automation.schedule
    if not cron:
        return []
    return [
        dg.ScheduleDefinition(
            name=job_name(dataset), job_name=job_name(dataset), cron_schedule=cron, default_status=dg.DefaultScheduleStatus.RUNNING
        )
    ]


def partition_changes(listing: Listing, audited: pl.DataFrame) -> Changes:
    """Files of the listing against the audited raw_manifest, by path, size, time, ETag, label, split and group."""
    facts = ["bytes", "mtime", "etag", "given_label", "split", "group"]
    both = listing.files.select("path", *facts).join(audited.select("path", *facts), on="path", how="inner", suffix="_audited")
    # A listing that does not know the sizes says nothing of them.
    both = both.with_columns(bytes=pl.coalesce("bytes", "bytes_audited"))
    differs = pl.any_horizontal(pl.col(fact).ne_missing(pl.col(f"{fact}_audited")) for fact in facts)
    return Changes(len(listing.files) - len(both), both.filter(differs).height, len(audited) - len(both))


def decide(digest: str, audited_digest: str | None, cursor: str | None, changes: Changes | None) -> Decision:
    """Whether a listing asks for an audit.

    digest: of the listing now. audited_digest: of the listing of the latest complete audit, None without one.
    cursor: the listing that was last requested or found unchanged. A removed and re-added file is a new listing each time.
    """
    if digest == audited_digest:
        return Decision(False, "The source is as the latest audit saw it.", digest)
    if digest == cursor:
        return Decision(False, "An audit of this listing was requested and has not completed; see its run.", digest)
    return Decision(True, f"The source changed: {changes}." if changes else "The source was never audited.", digest)


def source_sensor(dataset: Dataset, home: Home) -> dg.SensorDefinition:
    """Re-audits when files are added, changed, removed or re-added, or labels, splits or groups change.

    No run_key: Dagster would skip a key that it has seen, and so a file that was removed and added again.
    """

    @dg.sensor(
        name=f"watch__{dataset.slug}",
        job_name=job_name(dataset),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=dataset.settings.automation.sensor_seconds,
        description=f"Audits {dataset.name} when its source changes.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            listing = list_source(dataset)
        except UserError as error:  # not an empty listing: the cursor stays, and the tick says why
            return dg.SkipReason(f"The source could not be listed: {error}")
        audited_digest, changes = _audited(dataset, home, listing)
        decision = decide(listing.digest(), audited_digest, context.cursor, changes)
        if not decision.request:
            return dg.SensorResult(skip_reason=decision.reason, cursor=decision.cursor)
        return dg.SensorResult(run_requests=[dg.RunRequest(tags={"dq_assets/reason": decision.reason[:200]})], cursor=decision.cursor)

    return watch


def _audited(dataset: Dataset, home: Home, listing: Listing) -> tuple[str | None, Changes | None]:
    """(listing digest of the latest complete audit, how the listing differs from it)."""
    with Lake.open(home, dataset.settings.store) as lake:
        if not lake.has_dataset(dataset.name) or (latest := latest_audit(lake, dataset.name)) is None:
            return None, None
        snapshot = latest["snapshot_id"]
        digest = versions(lake, dataset.name, snapshot=snapshot)["raw_manifest"].metrics["listing_digest"]
        if digest == listing.digest():
            return digest, None
        return digest, partition_changes(listing, read_table(lake, dataset.name, "raw_manifest", snapshot=snapshot))
