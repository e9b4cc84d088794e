"""Pictures in an asset's metadata: Markdown tables with images as data URIs, which the Dagster UI shows inline."""

from __future__ import annotations

from typing import Any

import dagster as dg

from dq_assets.audit.ontology import corrections
from dq_assets.defs.session import Session
from dq_assets.report.charts import corrections_chart, data_uri

TOP = 15
"""Corrections that the chart shows."""


def pictures_of(session: Session, table: str) -> dict[str, Any]:
    """Metadata entries with pictures; none for most tables."""
    if table == "ontology_report":
        top = corrections(session.table("label_issues"), TOP)
        if len(top):
            return {"most common corrections": dg.MetadataValue.md(f"![given label to suggested label, count]({data_uri(corrections_chart(top))})")}
    return {}
