"""Galleries show the findings that matter, say why, and stay small, whatever the files and the labels are."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from dq_assets.report import galleries
from dq_assets.report.galleries import duplicate_gallery, label_gallery, outlier_gallery, quality_gallery
from dq_assets.report.thumbnails import MOST_BYTES, thumbnail
from dq_assets.schema import QUALITY_CHECKS
from dq_assets.sources.folder import local_path, read_file
from dq_assets_tests.test_markdown import HOSTILE

EMBEDDED = re.compile(r"!\[[^\]]*\]\(data:image/webp;base64,([A-Za-z0-9+/=]+)\)")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shown(data: bytes, sha: str | None = None, side: int = 96, max_pixels: int = 10**8) -> Image.Image:
    """The thumbnail of a file with these bytes."""
    image = Image.open(io.BytesIO(thumbnail(lambda uri: data, "file:///x", sha, side=side, max_pixels=max_pixels, memory_mb=920)))
    image.load()
    assert (image.format, image.size) == ("WEBP", (side, side))
    return image.convert("RGBA")


def is_card(image: Image.Image) -> bool:
    """Whether it is a grey card with text."""
    corner = image.getpixel((1, 1))
    dark = (np.asarray(image.convert("L")) < 120).sum()
    return corner[3] == 255 and abs(corner[0] - 210) < 12 and dark > 20


def test_a_thumbnail_is_upright_whole_and_transparent_around() -> None:
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (0, 0, 100, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: shown, the left half is on top
    found = shown(encoded(image, "JPEG", exif=exif))
    assert found.getpixel((3, 48))[3] == 0
    assert found.getpixel((48, 10))[2] > 200
    assert found.getpixel((48, 85))[0] > 200
    assert shown(encoded(image, "JPEG")).getpixel((48, 3))[3] == 0


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (2000, 3), (3, 2000), (1500, 1000)], ids=str)
def test_every_shape_gives_a_square(size: tuple[int, int]) -> None:
    found = shown(encoded(Image.new("RGB", size, "green"), "PNG"))
    assert np.asarray(found)[47:49, 47:49, 3].max() == 255
    assert not is_card(found)


def test_a_file_that_cannot_be_shown_gets_a_card_that_says_so(tmp_path: Path) -> None:
    def gone(uri: str) -> bytes:
        return read_file(str(tmp_path / "gone.jpg"))

    good = encoded(Image.new("RGB", (50, 50), "red"), "PNG")
    cards = [
        thumbnail(gone, "file:///x", None, side=96, max_pixels=10**8, memory_mb=920),
        thumbnail(lambda uri: good[:60], "file:///x", None, side=96, max_pixels=10**8, memory_mb=920),
        thumbnail(lambda uri: good, "file:///x", None, side=96, max_pixels=100, memory_mb=920),
        thumbnail(lambda uri: good, "file:///x", "0" * 64, side=96, max_pixels=10**8, memory_mb=920),
    ]
    assert len(set(cards)) == 4
    assert all(is_card(Image.open(io.BytesIO(card)).convert("RGBA")) for card in cards)
    (tmp_path / "pipe").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    assert thumbnail(lambda uri: read_file(str(tmp_path / "pipe")), "x", None, side=96, max_pixels=9, memory_mb=920) == cards[1]


def test_a_thumbnail_is_the_same_each_time_and_never_heavy() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    first = thumbnail(lambda uri: data, "x", None, side=128, max_pixels=10**8, memory_mb=920)
    assert first == thumbnail(lambda uri: data, "x", None, side=128, max_pixels=10**8, memory_mb=920)
    tiny = encoded(Image.fromarray(noise[:128, :128]), "PNG")
    assert len(thumbnail(lambda uri: tiny, "x", None, side=128, max_pixels=10**8, memory_mb=920)) <= MOST_BYTES


def manifest_of(paths: list[str], labels: list[str | None]) -> pl.DataFrame:
    n = len(paths)
    splits = pl.Series([["train", "test", None][i % 3] for i in range(n)], dtype=pl.String)
    return pl.DataFrame(
        {
            "image_id": range(n),
            "path": paths,
            "uri": [f"file:///{i}" for i in range(n)],
            "given_label": pl.Series(labels, dtype=pl.String),
            "split": splits,
            "content_sha256": pl.Series([None] * n, dtype=pl.String),
        }
    )


def pixel(uri: str, sha: str | None, side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side), "red"), "WEBP")


def issues_of(n: int, given: list[str], suggested: list[str]) -> pl.DataFrame:
    columns = {"image_id": np.arange(n), "given_label": given, "suggested_label": suggested, "is_label_issue": [True] * n}
    return pl.DataFrame(
        {**columns, "error_probability": [1 - i / (2 * n) for i in range(n)], "kind": ["mislabeled", "ambiguous"] * (n // 2)}
    )


def evidence_of(issues: pl.DataFrame, given_id: int, suggested_id: int) -> pl.DataFrame:
    """label_evidence that names the same two images for each issue; a second one is farther and never shown."""
    schema = {
        "image_id": pl.Int64,
        "role": pl.String,
        "rank": pl.Int32,
        "label": pl.String,
        "neighbor_id": pl.Int64,
        "distance": pl.Float32,
    }
    rows = [
        (row["image_id"], role, rank, label, neighbor if rank == 1 else neighbor + 1, rank / 4)
        for row in issues.iter_rows(named=True)
        for role, label, neighbor in (("given", row["given_label"], given_id), ("suggested", row["suggested_label"], suggested_id))
        for rank in (1, 2)
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def cells(markdown: str) -> list[list[str]]:
    """Rows of the table; the line under the header is left out."""
    lines = [line for line in markdown.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|:-:")]


def test_the_worst_label_issues_come_first_with_their_words_and_their_evidence() -> None:
    manifest = manifest_of([f"cat/{i}.jpg" for i in range(40)], ["cat"] * 40)
    issues = issues_of(40, ["cat"] * 40, ["dog"] * 40)
    found = label_gallery(issues.reverse(), evidence_of(issues, 30, 35), manifest, pixel)
    assert found is not None
    assert found.startswith("The worst 24 of 40 flagged labels")
    assert len(EMBEDDED.findall(found)) == 3 * galleries.MAX_ISSUES
    rows = cells(found)
    assert rows[0] == ["flagged", "has the given label", "has the suggested label"] * 2
    assert rows[2] == ["cat → **dog**", "cat", "dog"] * 2
    assert rows[3][0::3] == ["> 99% wrong", "99% wrong, ambiguous"]
    assert rows[3][1:3] == ["distance 0.25"] * 2
    assert rows[4] == ["0&#46;jpg", "30&#46;jpg", "35&#46;jpg", "1&#46;jpg", "30&#46;jpg", "35&#46;jpg"]


def test_an_issue_without_a_neighbour_is_shown_all_the_same() -> None:
    issues = issues_of(2, ["cat", "dog"], ["dog", "cat"]).with_columns(kind=pl.Series(["multi_label", "mislabeled"]))
    evidence = evidence_of(issues, 0, 1).filter((pl.col("image_id") == 0) & (pl.col("role") == "suggested"))
    found = label_gallery(issues.head(1), evidence, manifest_of(["a", "b"], ["cat", "dog"]), pixel)
    assert found is not None
    rows = cells(found)
    assert rows[0] == ["flagged", "has the given label", "has the suggested label"]
    assert len(EMBEDDED.findall(found)) == 2
    assert rows[1][1] == "*none*"
    assert rows[2] == ["cat → **dog**", "", "dog"]
    assert rows[3][0] == "> 99% wrong, several labels"


def test_nothing_found_is_no_gallery() -> None:
    manifest = manifest_of(["a.jpg"], ["cat"])
    quiet = issues_of(2, ["cat"] * 2, ["cat"] * 2).with_columns(is_label_issue=pl.lit(None, pl.Boolean))
    assert label_gallery(quiet, evidence_of(quiet, 0, 0), manifest, pixel) is None
    calm = pl.DataFrame({"image_id": [0], "outlier_score": [0.5], "is_outlier_issue": [False]})
    assert outlier_gallery(calm, manifest, pixel) is None
    assert duplicate_gallery(near_dups([(0, None, "cat", False, False)]), manifest, pixel) is None
    assert quality_gallery(properties(1, {}), manifest, pixel) is None


def test_outliers_come_farthest_first() -> None:
    scores = {"image_id": range(5), "outlier_score": [0.3, 0.1, 0.2, 0.9, None], "is_outlier_issue": [True, True, True, False, None]}
    found = outlier_gallery(pl.DataFrame(scores), manifest_of(["a", "b", "c", "d", "e"], ["x", None, "", "x", "x"]), pixel)
    assert found is not None
    rows = cells(found)
    assert rows[1] == ["***none***", "***blank***", "**x**"]
    assert rows[2] == ["score 0.100", "score 0.200", "score 0.300"]
    assert rows[3] == ["b", "c", "a"]


def near_dups(rows: list[tuple[int, int | None, str, bool, bool]]) -> pl.DataFrame:
    """(image_id, group_id, resolved_label, label_conflict, is_keeper)."""
    schema = {
        "image_id": pl.Int64,
        "group_id": pl.Int64,
        "resolved_label": pl.String,
        "label_conflict": pl.Boolean,
        "is_keeper": pl.Boolean,
    }
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.with_columns(
        kind=pl.lit("near"),
        near_duplicate_score=pl.lit(0.02),
        crosses_split=pl.lit(False),
        is_wrong_label=pl.col("label_conflict") & ~pl.col("is_keeper"),
        confidence=pl.lit(0.97),
    )


def test_groups_under_two_labels_come_first_and_the_keeper_leads() -> None:
    table = near_dups([(0, 0, "cat", False, True), (1, 0, "cat", False, False), (2, 2, "dog", True, False), (3, 2, "dog", True, True)])
    found = duplicate_gallery(table, manifest_of(["0", "1", "2", "3"], ["cat", "cat", "cat", "dog"]), pixel)
    assert found is not None
    rows = cells(found)
    assert rows[1][0] == "label conflict"
    assert rows[2] == ["→ **dog** (97%)", "**dog**", "**cat**"]
    assert rows[3] == ["2 copies", "keep, train", "wrong label"]
    assert rows[4] == ["", "3", "2"]
    assert rows[6][0] == "near"
    assert rows[9] == ["", "0", "1"]


def test_a_large_group_is_cut_and_says_so() -> None:
    table = near_dups([(i, 0, "cat", False, i == 7) for i in range(9)])
    found = duplicate_gallery(table, manifest_of([str(i) for i in range(9)], ["cat"] * 9), pixel)
    assert found is not None
    assert len(EMBEDDED.findall(found)) == galleries.MAX_COPIES
    assert "9 copies, 4 not shown" in found


def properties(n: int, flagged: dict[str, list[int]]) -> pl.DataFrame:
    columns: dict[str, object] = {"image_id": range(n)}
    for check in QUALITY_CHECKS:
        columns[f"{check}_score"] = [0.1 if i in flagged.get(check, []) else 1.0 for i in range(n)]
        columns[f"is_{check}_issue"] = [i in flagged.get(check, []) for i in range(n)]
    return pl.DataFrame(columns)


def test_each_check_that_flags_has_a_row_with_its_count() -> None:
    table = properties(9, {"dark": [3], "odd_size": list(range(8))})
    found = quality_gallery(table, manifest_of([str(i) for i in range(9)], ["cat"] * 9), pixel)
    assert found is not None
    assert found.startswith("2 of 7 checks flag images")
    rows = cells(found)
    assert [row[0] for row in rows[1:3]] == ["**dark**", "1 image"]
    assert [row[0] for row in rows[5:7]] == ["**odd size**", "8 images"]
    assert len(EMBEDDED.findall(found)) == 1 + galleries.COLUMNS - 1


def test_hostile_labels_and_paths_stay_in_their_cells() -> None:
    n = len(HOSTILE) // 2 * 2
    texts = HOSTILE[:n]
    manifest = manifest_of([f"{text}\n" for text in texts], list(texts))
    conflict = near_dups([(i, i // 2, texts[i], True, i % 2 == 0) for i in range(n)])
    scores = pl.DataFrame({"image_id": range(n), "outlier_score": [0.1] * n, "is_outlier_issue": [True] * n})
    found = [
        label_gallery(issues_of(n, texts, texts[::-1]), evidence_of(issues_of(n, texts, texts[::-1]), 0, 1), manifest, pixel),
        outlier_gallery(scores, manifest, pixel),
        duplicate_gallery(conflict, manifest, pixel),
        quality_gallery(properties(n, {"dark": list(range(n))}), manifest, pixel),
    ]
    for text in found:
        assert text is not None
        rest = EMBEDDED.sub("", text).replace("<!-- -->", "")
        assert not re.search(r"[<`\[\]\\!]|://|javascript:", rest)
        assert len({line.count("|") for line in rest.split("\n") if line.startswith("|")}) == 1


def test_a_gallery_stays_below_its_limit_with_the_heaviest_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    paths = [("猫" * 40 + "|") * 3 + str(i) for i in range(200)]
    manifest = manifest_of(paths, ["<" * 300] * 200)

    def thumb(uri: str, sha: str | None, side: int) -> bytes:
        return thumbnail(lambda uri: data, uri, None, side=side, max_pixels=10**8, memory_mb=920)

    issues = issues_of(200, ["|" * 300] * 200, ["*" * 300] * 200)
    found = [
        label_gallery(issues, evidence_of(issues, 0, 1), manifest, thumb),
        duplicate_gallery(near_dups([(i, i // 5, "|" * 300, True, i % 5 == 0) for i in range(200)]), manifest, thumb),
        quality_gallery(properties(200, {check: list(range(9)) for check in QUALITY_CHECKS}), manifest, thumb),
    ]
    for text in found:
        assert text is not None
        assert len(EMBEDDED.findall(text)) >= 10
        assert len(text.encode()) <= galleries.MAX_BYTES + 1_000


def test_thumbnails_of_files_are_read_by_their_address(tmp_path: Path) -> None:
    name = tmp_path / "a b#?.png"
    Image.new("RGB", (40, 40), "blue").save(name)
    uri = name.as_uri()
    manifest = manifest_of(["a b#?.png"], ["cat"]).with_columns(uri=pl.lit(uri))
    scores = pl.DataFrame({"image_id": [0], "outlier_score": [0.1], "is_outlier_issue": [True]})
    found = outlier_gallery(
        scores,
        manifest,
        lambda uri, sha, side: thumbnail(lambda uri: read_file(local_path(uri)), uri, sha, side=side, max_pixels=10**6, memory_mb=920),
    )
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(EMBEDDED.findall(found)[0]))).convert("RGB")
    assert image.getpixel((64, 64))[2] > 200
