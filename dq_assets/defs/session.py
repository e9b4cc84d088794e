"""What a run works with: the dataset's open lake, its settings, and where progress goes.

The session is a Dagster resource of the whole run: it holds the dataset's audit lock, so that two audits of one dataset never
interleave, and one connection to the lake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from dq_assets.audit import pred_probs
from dq_assets.audit.encoder import encoder_id
from dq_assets.audit.encoder_choice import AUTO
from dq_assets.report.progress import LogReporter, Reporter
from dq_assets.schema import TABLES
from dq_assets.settings import Dataset, Encoder, Home, Settings, UserError
from dq_assets.store import fitted
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

    @property
    def encoder_question(self) -> str:
        """What a choice of the encoder answers; the same question is answered once."""
        options = self.settings.encoder
        return f"{options.choice}: {','.join(name.strip() for name in options.candidates.split(',')) or 'all'}"

    def encoder_choice(self) -> pl.DataFrame:
        """The rows of encoder_choice that hold; empty if none was made, or none is asked for."""
        if self.settings.encoder.model != AUTO:
            return pl.DataFrame()
        return fitted.encoder_choice(self.lake, self.dataset.name, self.encoder_question)

    def encoder(self) -> Encoder | None:
        """The encoder's settings, with the model that was chosen in place of auto; None if none is chosen yet."""
        if self.settings.encoder.model != AUTO:
            return self.settings.encoder
        choice = self.encoder_choice()
        return None if choice.is_empty() else dataclasses.replace(self.settings.encoder, model=choice["model"][0])

    def encoder_id(self) -> str:
        """Identity of the vectors in use. Raises UserError if no encoder is chosen yet."""
        options = self.encoder()
        if options is None:
            raise UserError(f"No encoder is chosen for {self.dataset.name} yet. Materialize embeddings first.")
        return encoder_id(options)

    def extras(self) -> dict[str, str]:
        """Identity of what is outside tables and settings, by table: see `store.audits.fingerprint`."""
        # One decode makes raw_manifest and the raw scores of image_properties: a new formula has to read every file again.
        return {
            **self._pred_probs,
            "raw_manifest": f"properties {TABLES['image_properties'].algorithm}",
            "embeddings": "no encoder is chosen yet" if self.encoder() is None else self.encoder_id(),
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
