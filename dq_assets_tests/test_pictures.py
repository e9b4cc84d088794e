"""Pictures are drawn once for each content, and a failure to draw is said and does not end the audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from PIL import Image

from dq_assets.defs import pictures as wiring
from dq_assets.defs.pictures import pictures_of
from dq_assets.defs.session import Session
from dq_assets.report import pictures
from dq_assets.report.progress import LogReporter
from dq_assets.settings import Dataset, Home, Settings
from dq_assets.store.lake import Lake
from dq_assets.store.tables import publish

N = 12


def manifest(folder: Path) -> pl.DataFrame:
    rows = [
        {"image_id": i, "path": f"cat/{i}.png", "uri": (folder / f"{i}.png").as_uri(), "given_label": "cat|`", "status": "ok", "mtime": 1.0}
        for i in range(N)
    ]
    texts = dict.fromkeys(("split", "group", "content_sha256", "pixel_hash", "format", "mode", "reason", "etag"), pl.String)
    numbers = {"width": pl.Int32, "height": pl.Int32, "bytes": pl.Int64}
    return pl.DataFrame(rows).with_columns(pl.lit(None, kind).alias(name) for name, kind in (texts | numbers).items())


def outliers(flagged: int) -> pl.DataFrame:
    scores = [0.1 + i / 20 for i in range(N)]
    frame = pl.DataFrame({"image_id": range(N), "outlier_score": scores, "is_outlier_issue": [i < flagged for i in range(N)]})
    return frame.with_columns(pl.col("outlier_score").cast(pl.Float32))


def put(session: Session, name: str, frame: pl.DataFrame) -> None:
    """Publish a table without those that it is computed from."""
    publish(session.lake, session.dataset.name, name, frame, fingerprint="")


@pytest.fixture
def said() -> list[str]:
    """What the audit said."""
    return []


@pytest.fixture
def session(home: Home, tmp_path: Path, said: list[str]) -> Iterator[Session]:
    """A lake with a manifest of red pictures and outliers among them."""
    for i in range(N):
        Image.new("RGB", (20, 20), "red").save(tmp_path / f"{i}.png")
    with Lake.open(home) as lake:
        lake.ensure_dataset("reds")
        found = Session(Dataset("reds", str(tmp_path)), home, lake, LogReporter(said.append))
        put(found, "raw_manifest", manifest(tmp_path))
        put(found, "outliers", outliers(3))
        yield found


def texts(entries: dict[str, Any]) -> dict[str, str]:
    return {name: str(value.value) for name, value in entries.items() if isinstance(value, dg.MarkdownMetadataValue)}


def count_drawings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    drawn: list[str] = []

    def counted(name: str, drawing: pictures.Drawing) -> dict[str, str]:
        drawn.append(name)
        return pictures.pictures(name, drawing)

    monkeypatch.setattr(wiring, "pictures", counted)
    return drawn


def test_pictures_are_drawn_once_and_read_from_the_cache_after(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count_drawings(monkeypatch)
    first = texts(pictures_of(session, "outliers"))
    assert list(first) == ["top outliers", "outlier scores"]
    assert first["top outliers"].count("data:image/webp") == 3
    assert texts(pictures_of(session, "outliers")) == first
    assert drawn == ["outliers"]


def test_other_content_settings_and_looks_are_drawn_anew(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count_drawings(monkeypatch)
    pictures_of(session, "outliers")
    put(session, "outliers", outliers(5))
    assert texts(pictures_of(session, "outliers"))["top outliers"].count("data:image/webp") == 5
    session.dataset = Dataset("reds", session.dataset.path, settings=Settings().with_values({"outliers.false_alarm_rate": "0.02"}))
    pictures_of(session, "outliers")
    put(session, "raw_manifest", session.table("raw_manifest").with_columns(given_label=pl.lit("dog")))
    assert "dog" in texts(pictures_of(session, "outliers"))["top outliers"]
    monkeypatch.setattr(wiring, "DRAWING", "another")
    pictures_of(session, "outliers")
    assert len(drawn) == 5
    assert len(list((session.home.cache / "reds" / "pictures").iterdir())) == 1  # what is out of date is removed


def test_a_file_that_is_gone_does_not_keep_the_others_from_being_shown(session: Session, said: list[str]) -> None:
    for i in range(N):
        (Path(session.dataset.path) / f"{i}.png").unlink()
    assert texts(pictures_of(session, "outliers"))["top outliers"].count("data:image/webp") == 3
    assert said == []


def test_a_failure_to_draw_is_said_and_does_not_raise(session: Session, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, drawing: pictures.Drawing) -> dict[str, str]:
        raise RuntimeError("no font\nanywhere")

    with monkeypatch.context() as broken:
        broken.setattr(wiring, "pictures", fails)
        entries = pictures_of(session, "outliers")
    assert entries["pictures"].text == "could not be drawn: RuntimeError: no font anywhere. The trace is in the run's log."
    assert len(said) == 1
    assert "The pictures of outliers could not be drawn" in said[0]
    assert "top outliers" in pictures_of(session, "outliers")  # the failure is not kept


def test_tables_without_pictures_have_none(session: Session) -> None:
    assert pictures_of(session, "folds") == {}
