"""The summary of an audit as text, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from dq_assets.store import audits
from dq_assets.store.lake import Lake


@dataclass(frozen=True)
class Summary:
    """What an audit found, in numbers. noise_rate is null if no label could be checked."""

    dataset: str
    audit_id: int
    images: int
    unreadable: int
    classes: int
    label_issues: int
    outliers: int
    duplicate_groups: int
    duplicate_images: int
    cross_label_groups: int
    leaking_groups: int
    noise_rate: float | None
    actions: dict[str, int]
    gates: list[dict[str, object]]

    @property
    def closed(self) -> list[dict[str, object]]:
        """Blocking gates that neither passed nor were overridden."""
        return [g for g in self.gates if g["blocking"] and g["verdict"] != "passed" and g["override_by"] is None]


def summarize(lake: Lake, dataset: str, version: int | None = None) -> Summary:
    """Read the numbers of one audit. Raises UserError if the audit does not exist."""
    audit_id = audits.audit_row(lake, dataset, version)["audit_id"]
    manifest, issues, outliers, near_dups, curated = (
        audits.read(lake, dataset, name, audit_id) for name in ("raw_manifest", "label_issues", "outliers", "near_dups", "curated_dataset")
    )
    groups = near_dups.filter(pl.col("group_id").is_not_null())
    checked = issues["error_probability"].drop_nulls()
    return Summary(
        dataset=dataset,
        audit_id=audit_id,
        images=len(manifest),
        unreadable=manifest.filter(pl.col("status") != "ok").height,
        classes=manifest["given_label"].drop_nulls().n_unique(),
        label_issues=int(issues["is_label_issue"].sum()),
        outliers=int(outliers["is_outlier_issue"].sum()),
        duplicate_groups=groups["group_id"].n_unique(),
        duplicate_images=len(groups),
        cross_label_groups=groups.filter("label_conflict")["group_id"].n_unique(),
        leaking_groups=groups.filter("crosses_split")["group_id"].n_unique(),
        noise_rate=float(checked.mean()) if len(checked) else None,  # type: ignore[arg-type]
        actions=dict(curated["action"].value_counts().sort("action").iter_rows()),
        gates=audits.gate_results(lake, dataset, audit_id).to_dicts(),
    )


def render(summary: Summary) -> str:
    """The summary for a terminal, with the commands to look further."""
    s = summary
    noise = "not checked" if s.noise_rate is None else f"{s.noise_rate:.1%} of the labels are estimated to be wrong"
    rows = [
        ("images", f"{s.images:,} in {s.classes} classes"),
        ("unreadable", f"{s.unreadable:,}"),
        ("label issues", f"{s.label_issues:,}"),
        ("noise estimate", noise),
        ("outliers", f"{s.outliers:,}"),
        ("duplicate groups", f"{s.duplicate_groups:,} ({s.duplicate_images:,} images)"),
        ("  under two labels", f"{s.cross_label_groups:,}"),
        ("  across splits", f"{s.leaking_groups:,}"),
        ("curated", ", ".join(f"{action} {n:,}" for action, n in s.actions.items())),
    ]
    lines = [f"Audit {s.audit_id} of {s.dataset}", *(f"  {name:<20} {value}" for name, value in rows), "  gates"]
    for gate in s.gates:
        state = {"passed": "open", "failed": "CLOSED", "not_run": "NOT RUN"}[str(gate["verdict"])]
        state = state if gate["blocking"] or gate["verdict"] == "passed" else "advice"
        state = f"{state} (overridden by {gate['override_by']})" if gate["override_by"] else state
        lines.append(f"    {state:<8} {gate['check_name']:<20} {gate['reason']}")
    lines += [
        "",
        f"  Look further: dq-assets export --name {s.dataset} --out DIR --format csv label_issues near_dups outliers",
        "                make dev   (the Dagster UI on http://127.0.0.1:3000)",
    ]
    return "\n".join(lines)
