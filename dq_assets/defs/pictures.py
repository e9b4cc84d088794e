"""Pictures in an asset's metadata: Markdown with images as data URIs, which the Dagster UI shows inline."""

from __future__ import annotations

from typing import Any

import dagster as dg

from dq_assets.audit.ontology import corrections
from dq_assets.defs.session import Session
from dq_assets.report.charts import corrections_chart, data_uri

TOP = 15
"""Corrections that the chart shows."""


def pictures_of(session: Session, table: str, digest: str) -> dict[str, Any]:
    """Metadata entries with pictures of a table whose content has this digest; none for most tables."""
    if table != "ontology_report":
        return {}
    # Drawing takes a second, the content is the same whenever the digest is, and an unchanged audit should cost nothing.
    drawn = session.home.cache / session.dataset.name / "pictures" / f"{table}-{digest[:16]}.png"
    if not drawn.exists():
        top = corrections(session.table("label_issues"), TOP)
        if top.is_empty():
            return {}
        drawn.parent.mkdir(parents=True, exist_ok=True)
        draft = drawn.with_suffix(".tmp")
        draft.write_bytes(corrections_chart(top))
        draft.replace(drawn)
    return {"most common corrections": dg.MetadataValue.md(f"![given label to suggested label, count]({data_uri(drawn.read_bytes())})")}
