"""Pictures in an asset's metadata: Markdown with images as data URIs, which the Dagster UI shows inline.

Here is when they are drawn and what becomes of a failure; what they show is in `dq_assets.report.pictures`.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np

from dq_assets.defs.session import Session
from dq_assets.report.pictures import DRAWING, DRAWN, SHOWN_BESIDE, Drawing, pictures
from dq_assets.schema import TABLES
from dq_assets.sources.reading import Reader
from dq_assets.store.tables import matrix_blocks


def pictures_of(session: Session, table: str) -> dict[str, Any]:
    """Metadata entries with the pictures of a published table; none for some tables.

    What they show follows from tables and settings, so they are drawn once for each and kept in the cache: an unchanged audit reads
    one file. A failure to draw does not fail the audit, whose findings are published; the entry `pictures` says what failed.
    """
    if table not in DRAWN:
        return {}
    try:
        drawn = _drawn(session, table)
    except Exception as error:  # whatever it is: nothing that follows depends on a picture
        session.report.say(f"The pictures of {table} could not be drawn: {_one_line(error)}. The findings are published.")
        dg.get_dagster_logger().warning(f"The pictures of {table} could not be drawn:\n{traceback.format_exc()}")
        return {"pictures": dg.MetadataValue.text(f"could not be drawn: {_one_line(error)}. The trace is in the run's log.")}
    return {name: dg.MetadataValue.md(text) for name, text in drawn.items()}


def _drawn(session: Session, table: str) -> dict[str, str]:
    """Markdown by the entry's name, from the cache or drawn now."""
    folder = session.home.cache / session.dataset.name / "pictures"
    file = folder / f"{table}-{_key(session, table)}.json"
    if file.exists():
        kept: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    found = pictures(table, Drawing(session, Reader.of(session.dataset).read, lambda: _probabilities(session)))
    folder.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    for old in folder.glob(f"{table}-*"):
        if old != draft:
            old.unlink()
    draft.replace(file)
    return found


def _key(session: Session, table: str) -> str:
    """Changes with whatever the pictures show: their version, the content of the tables they are drawn from, and the settings."""
    versions = session.versions()
    tables = sorted({table, "raw_manifest", *SHOWN_BESIDE.get(table, ()), *TABLES[table].inputs} & versions.keys())
    parts = [
        str(DRAWING),
        *(f"{name} {versions[name].digest}" for name in tables),
        session.settings.digest("images", *TABLES[table].settings),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _probabilities(session: Session) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return matrix_blocks(session.lake, session.dataset.name, "oof_probs", "probs")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
