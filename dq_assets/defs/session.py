"""What a run works with: the dataset's open lake, its settings, and where progress goes.

The session is a Dagster resource of the whole run: it holds the dataset's audit lock, so that two audits of one dataset never
interleave, and one connection to the lake.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from dq_assets.audit import pred_probs
from dq_assets.audit.encoder import encoder_id
from dq_assets.report.progress import LogReporter, Reporter
from dq_assets.schema import TABLES
from dq_assets.settings import Dataset, Home, Settings
from dq_assets.store.audits import fingerprint
from dq_assets.store.lake import Lake, audit_lock
from dq_assets.store.tables import Version, publish, publish_matrix, read_table, versions


class Session:
    """One dataset, open for one run."""

    def __init__(self, dataset: Dataset, home: Home, lake: Lake, reporter: Reporter) -> None:
        self.dataset = dataset
        self.home = home
        self.lake = lake
        self.report = reporter
        self.started = datetime.now(UTC)

    @property
    def settings(self) -> Settings:
        """The dataset's settings."""
        return self.dataset.settings

    def versions(self) -> dict[str, Version]:
        """What every table was computed from, as of now."""
        return versions(self.lake, self.dataset.name)

    def table(self, name: str, *columns: str) -> pl.DataFrame:
        """A table as it stands, in key order."""
        return read_table(self.lake, self.dataset.name, name, columns=columns)

    def fine(self, *columns: str) -> pl.DataFrame:
        """The manifest's rows that could be read, in image_id order."""
        return self.table("raw_manifest").filter(pl.col("status") == "ok").select("image_id", *columns)

    def extras(self) -> dict[str, str]:
        """Identity of what is outside tables and settings, by table: see `store.audits.fingerprint`."""
        # One decode makes raw_manifest and the raw scores of image_properties: a new formula has to read every file again.
        return {
            **self._pred_probs,
            "raw_manifest": f"properties {TABLES['image_properties'].algorithm}",
            "embeddings": encoder_id(self.settings.encoder),
        }

    @functools.cached_property
    def _pred_probs(self) -> dict[str, str]:
        """Identity of the user's probabilities, read once per run: 5 GB take some seconds."""
        return {"oof_probs": f"pred_probs {pred_probs.identity(self.dataset)}"} if self.dataset.pred_probs else {}

    def fingerprint(self, table: str, extra: str = "") -> str:
        """What the table would be computed from now."""
        return fingerprint(table, self.settings, self.versions(), extra=extra or self.extras().get(table, ""))

    def publish(self, name: str, frame: pl.DataFrame, metrics: dict[str, Any] | None = None, *, extra: str = "") -> Version:
        """Publish a row table."""
        return publish(self.lake, self.dataset.name, name, frame, fingerprint=self.fingerprint(name, extra), metrics=metrics)

    def publish_matrix(self, name: str, blocks: Any, metrics: dict[str, Any] | None = None) -> Version:
        """Publish a large table from blocks."""
        return publish_matrix(self.lake, self.dataset.name, name, blocks, fingerprint=self.fingerprint(name), metrics=metrics)


def session_resource(dataset: Dataset, home: Home, reporter: Reporter | None) -> dg.ResourceDefinition:
    """The session as a resource; it lives as long as the run. Without a reporter progress goes to the run's log."""

    @dg.resource(description=f"The lake, opened for one run on {dataset.name} under its audit lock.")
    @contextlib.contextmanager
    def session(context: dg.InitResourceContext) -> Iterator[Session]:
        assert context.log is not None
        report = reporter or LogReporter(context.log.info)
        with audit_lock(home, dataset.name, report.say), Lake.open(home, dataset.settings.store) as lake:
            lake.ensure_dataset(dataset.name)
            yield Session(dataset, home, lake, report)

    return session


def session_key(dataset: Dataset) -> str:
    """The resource's key."""
    return f"session__{dataset.slug}"
