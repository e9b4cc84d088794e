"""Fits that are kept: cells that an added image does not move, and when they are fitted anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from dq_assets.audit import encoder
from dq_assets.audit.cells import Cells
from dq_assets.defs.session import Session
from dq_assets.defs.stages import nearest
from dq_assets.report.progress import LogReporter
from dq_assets.schema import TABLES
from dq_assets.settings import Dataset, Home, Settings
from dq_assets.store import audits
from dq_assets.store.fitted import stored_cells
from dq_assets.store.lake import Lake
from dq_assets.store.tables import Version, append, read_table, record_version
from dq_assets_tests.test_cells import clustered

NAME = "grown"
IDENTITY = encoder.encoder_id(Settings().encoder)
VECTORS = clustered(700, d=64)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A dataset of which only vectors matter; 20 x k images are the fewest that an index is used for."""
    settings = Settings().with_values({"neighbors.exact_up_to": "0", "neighbors.k": "5"})
    home = Home(tmp_path / "home")
    with Lake.open(home) as lake:
        lake.ensure_dataset(NAME)
        said: list[str] = []
        one = Session(Dataset(NAME, str(tmp_path), settings=settings), home, lake, LogReporter(said.append))
        one.said = said  # type: ignore[attr-defined]
        yield one


def last_said(session: Session) -> str:
    """What was last said of cells."""
    lines = [line for line in session.said if "cells" in line]  # type: ignore[attr-defined]
    return f"{len(lines)}: {lines[-1]}"


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def search(session: Session, n: int) -> Version:
    """Publish the first n images with their vectors, and neighbors."""
    empty = {c.name: pl.lit(None) for c in TABLES["raw_manifest"].columns}
    known = {"image_id": pl.col("image_id"), "content_sha256": pl.col("content_sha256"), "status": pl.lit("ok")}
    known |= {name: pl.col("content_sha256") for name in ("path", "uri")}
    contents = [sha(number) for number in range(n)]
    manifest = pl.DataFrame({"image_id": range(n), "content_sha256": contents}).select(**(empty | known))
    session.publish("raw_manifest", manifest)
    rows = pl.DataFrame({"content_sha256": contents, "encoder": IDENTITY, "vector": [row.tolist() for row in VECTORS[:n]]})
    append(session.lake, NAME, "embeddings", rows)
    record_version(session.lake, NAME, "embeddings", Version("f", f"vectors of {n}", n, {}))
    return nearest.nearest(session)


def digest(session: Session) -> str:
    found = stored_cells(session.lake, NAME, IDENTITY)
    assert found is not None
    return found.cells.digest()


def test_added_images_leave_the_cells_of_the_others_as_they_are(session: Session) -> None:
    first = search(session, 300)
    before = digest(session)
    assert first.metrics["cells version"] == 1
    line = f"1: Partitions of neighbour cells 1: {first.metrics['partitions']} fitted, as there were none for this encoder."
    assert last_said(session) == line
    second = search(session, 330)
    assert digest(session) == before
    assert (second.metrics["cells version"], second.metrics["partitions"]) == (1, first.metrics["partitions"])
    assert second.metrics["recall on a sample"] >= 0.98
    assert second.n_rows == 330
    assert last_said(session) == line


def test_stored_cells_are_the_ones_that_were_used_to_the_bit(session: Session) -> None:
    version = search(session, 300)
    assert nearest.nearest(session).digest == version.digest
    stored = read_table(session.lake, NAME, "neighbor_cells")
    assert stored["partition"].unique().to_list() == list(range(1 + version.metrics["partitions"]))


def test_cells_are_fitted_anew_when_the_data_outgrew_them_and_the_old_ones_stay(session: Session) -> None:
    search(session, 300)
    before = digest(session)
    assert search(session, 700).metrics["cells version"] == 2
    assert digest(session) != before
    assert last_said(session).endswith("fitted, as there are 700 images, and were 300.")
    table = read_table(session.lake, NAME, "neighbor_cells")
    assert table.group_by("version", maintain_order=True).agg(pl.col("n_images").unique().sort())["n_images"].to_list() == [[300], [700]]
    assert search(session, 310).metrics["cells version"] == 3


def test_a_partition_that_is_added_where_recall_fell_leaves_the_first_ones_as_they_are(session: Session) -> None:
    search(session, 300)
    first = stored_cells(session.lake, NAME, IDENTITY)
    assert first is not None
    more = Cells(first.cells.rotation, (*first.cells.centres, first.cells.centres[0][::2].copy()))
    assert nearest._keep_cells(session, more, 310, IDENTITY, first, first) == 1
    assert last_said(session).endswith("1 added, as with 1 partitions recall was below 0.95 on 310 images.")
    now = stored_cells(session.lake, NAME, IDENTITY)
    assert now is not None
    assert (now.version, now.n_images, now.cells.digest()) == (1, 300, more.digest())
    assert search(session, 310).metrics["partitions"] == 2  # also where one would do


def test_cells_of_another_encoder_are_not_used(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    search(session, 300)
    assert stored_cells(session.lake, NAME, "another@1") is None
    monkeypatch.setattr("dq_assets.store.fitted.VERSION", 99)
    assert stored_cells(session.lake, NAME, IDENTITY) is None


def test_few_images_are_searched_exactly_and_store_no_cells(session: Session) -> None:
    assert "cells version" not in search(session, 90).metrics
    assert read_table(session.lake, NAME, "neighbor_cells").is_empty()


def test_what_a_model_chose_is_read_as_of_an_audit(session: Session) -> None:
    session.publish("raw_manifest", read_table(session.lake, NAME, "raw_manifest"))
    fits = [Version("f", digest, 1, {"temperature": value}) for digest, value in (("a", 1.5), ("b", 2.5))]
    for audit_id, fit in enumerate(fits, 1):
        record_version(session.lake, NAME, "oof_probs", fit)
        with session.lake.transaction() as con:
            con.execute(
                f"INSERT INTO lake.{NAME}.audits (audit_id, snapshot_id, digests) VALUES (?, ?, '{{}}')",
                [audit_id, session.lake.snapshot()],
            )
    for audit_id, fit in enumerate(fits, 1):
        known = audits.read(session.lake, NAME, "table_versions", audit_id)
        metrics = dict(known.select("table_name", "metrics").iter_rows())
        assert json.loads(metrics["oof_probs"]) == fit.metrics
