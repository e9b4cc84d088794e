"""Charts come out as pictures whatever the labels are."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from dq_assets.audit.calibration import reliability
from dq_assets.report.charts import class_chart, corrections_chart, curation_chart, histogram, reliability_chart
from dq_assets.report.tallies import class_sizes, curation_changes, score_bins
from dq_assets_tests.test_markdown import HOSTILE


def table(*rows: tuple[str | None, str | None, int]) -> pl.DataFrame:
    schema = {"given_label": pl.String, "suggested_label": pl.String, "count": pl.UInt32}
    return pl.DataFrame(rows, schema=schema, orient="row")


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    image.load()
    return image.convert("RGB")


def drawn(corrections: pl.DataFrame) -> Image.Image:
    return opened(corrections_chart(corrections))


def share(image: Image.Image, colour: tuple[int, int, int]) -> float:
    """Share of the pixels that have about this colour."""
    return float((np.abs(np.asarray(image, np.int16) - colour).max(axis=2) < 12).mean())


BLUE, ORANGE, PURPLE, AMBER, GREY = (59, 110, 168), (217, 119, 43), (138, 107, 177), (223, 180, 60), (167, 175, 185)


def n_bars(image: Image.Image) -> int:
    """Runs of rows that hold the bars' blue."""
    pixels = np.asarray(image, np.int16)
    has_bar = (pixels[:, :, 2] > pixels[:, :, 0] + 60).any(axis=1)
    return int((np.diff(has_bar.astype(np.int8), prepend=0) == 1).sum())


def test_each_correction_is_a_bar() -> None:
    image = drawn(table(("cat", "dog", 9), ("dog", "cat", 5), ("owl", "cat", 1)))
    assert n_bars(image) == 3
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_the_most_frequent_correction_is_on_top() -> None:
    image = drawn(table(("zebra", "yak", 100), ("ant", "bee", 1)))
    pixels = np.asarray(image, np.int16)
    upper, lower = np.array_split((pixels[:, :, 2] > pixels[:, :, 0] + 60).sum(axis=1), 2)
    assert upper.sum() > 10 * lower.sum()


@pytest.mark.parametrize(
    "label",
    [
        "",
        " ",
        "x" * 500,
        "a\nb\tc\r\0d",
        "\x1b[31mred\u202e\u200b",
        "<script>alert(1)</script>&amp;",
        "</svg><image href='http://127.0.0.1:9/x.png'/>",
        "' + datum.count + '",
        "{{x}} ${x} {0} %s \\",
        "datum['count']",
        "猫🐈‍⬛ العربية",
        "null",
        "2024-01-01",
        "0",
    ],
    ids=repr,
)
def test_a_hostile_label_is_drawn_as_text(label: str) -> None:
    assert n_bars(drawn(table((label, "dog", 3), ("dog", label, 2)))) == 2


def test_missing_labels_and_an_empty_table_are_drawn() -> None:
    assert drawn(table((None, "dog", 3))).width > 100
    assert n_bars(drawn(table())) == 0


def test_pairs_that_look_alike_when_cut_stay_two_bars() -> None:
    long = "a" * 60
    assert n_bars(drawn(table((long + "1", "dog", 3), (long + "2", "dog", 2), ("a\tb", "c", 2), ("a b", "c", 1)))) == 4


def test_a_chart_is_small_enough_for_metadata() -> None:
    rows = [(f"class number {n}", f"class number {n + 1}", 100 - n) for n in range(15)]
    assert len(corrections_chart(table(*rows))) < 25_000


def manifest(labels: list[str | None], splits: list[str | None] | None = None, status: str = "ok") -> pl.DataFrame:
    columns = {"given_label": labels, "split": splits or [None] * len(labels), "status": [status] * len(labels)}
    frame = pl.DataFrame(columns, schema={"given_label": pl.String, "split": pl.String, "status": pl.String})
    return frame.with_row_index("image_id").with_columns(pl.col("image_id").cast(pl.Int64))


def test_class_sizes_count_what_can_be_read() -> None:
    both = pl.concat([manifest(["cat", "cat", None], ["train", "test", "train"]), manifest(["cat", "owl"], status="unreadable")])
    assert class_sizes(both).rows() == [("(no label)", "train", 1), ("cat", "test", 1), ("cat", "train", 1)]


def test_classes_are_bars_and_splits_are_colours() -> None:
    plain = opened(class_chart(class_sizes(manifest(["cat"] * 5 + ["dog"] * 2))))
    assert n_bars(plain) == 2
    split = opened(class_chart(class_sizes(manifest(["cat"] * 4, ["train", "validation", "test", "unused"]))))
    assert all(share(split, colour) > 0.01 for colour in (BLUE, PURPLE, ORANGE, GREY))
    assert share(plain, ORANGE) == share(plain, PURPLE) == 0


@pytest.mark.parametrize("splits", [False, True], ids=["plain", "by split"])
def test_a_thousand_classes_stay_readable(splits: bool) -> None:
    sizes = pl.DataFrame({"class_name": [f"class {n}" for n in range(1000)], "n": range(1000, 2000)})
    sizes = sizes.with_columns(split=pl.lit("train" if splits else None, pl.String))
    data = class_chart(sizes)
    image = opened(data)
    assert image.height < 1_200
    assert n_bars(image) - splits == 29  # 20 largest, 9 smallest; the legend is blue too
    assert len(data) < 40_000
    assert opened(class_chart(class_sizes(manifest([])))).width > 100


def test_the_cut_is_an_edge_of_the_bins_and_flags_as_the_audit_does() -> None:
    scores = pl.Series([0.0, 0.1, 0.33, 0.3300001, 0.9, 1.0, None], dtype=pl.Float32)
    bins = score_bins(scores, 0.33)
    assert 0.33 in bins["high"].to_list()
    assert bins["low"].to_list()[1:] == bins["high"].to_list()[:-1]
    assert (bins["low"][0], bins["high"][-1]) == (0, 1)
    assert dict(bins.group_by("beyond").agg(pl.col("n").sum()).iter_rows()) == {"below": 3, "above": 3}
    assert (bins["high"] - bins["low"]).max() < 0.03


@pytest.mark.parametrize("cut", [-0.5, 0.0, 1e-9, 0.5, 1.0, 1.5])
def test_a_cut_at_or_beyond_the_ends_is_drawn(cut: float) -> None:
    bins = score_bins(pl.Series([0.0, 0.5, 1.0]), cut)
    assert bins["n"].sum() == 3
    assert opened(histogram(bins, cut, name="x", flagged="above", title="t", subtitle="s")).width > 300


def test_a_hundred_issues_among_a_million_are_seen() -> None:
    scores = pl.Series(np.r_[np.full(1_000_000, 0.01), np.linspace(0.6, 0.99, 100)])
    image = opened(histogram(score_bins(scores, 0.5), 0.5, name="p", flagged="above", title="t", subtitle="s"))
    assert share(image, ORANGE) > 0.01
    assert share(image, BLUE) > 0.005
    other = opened(histogram(score_bins(scores, 0.5), 0.5, name="p", flagged="below", title="t", subtitle="s"))
    assert share(other, BLUE) == pytest.approx(share(image, ORANGE), abs=0.004)


def test_the_reliability_curve_is_drawn_also_of_one_bin() -> None:
    probs = np.array([[0.9, 0.1]] * 5, np.float32)
    image = opened(reliability_chart(reliability([(probs, np.zeros(5, np.int64))])))
    assert share(image, BLUE) > 0.0001
    assert share(image, GREY) > 0.001


def test_curation_moves_images_between_classes_and_loses_the_dropped() -> None:
    before = manifest(["cat", "cat", "cat", "dog", None])
    schema = {"image_id": pl.Int64, "final_label": pl.String, "action": pl.String}
    rows = [(0, "cat", "keep"), (1, "dog", "relabel"), (2, "cat", "drop"), (3, "dog", "review"), (4, None, "review")]
    changes = curation_changes(before, pl.DataFrame(rows, schema=schema, orient="row"))
    assert changes.rows() == [
        ("(no label)", "after", "review", 1),
        ("(no label)", "before", "review", 1),
        ("cat", "after", "kept", 1),
        ("cat", "before", "dropped", 1),
        ("cat", "before", "kept", 1),
        ("cat", "before", "relabelled", 1),
        ("dog", "after", "relabelled", 1),
        ("dog", "after", "review", 1),
        ("dog", "before", "review", 1),
    ]
    image = opened(curation_chart(changes))
    assert all(share(image, colour) > 0.005 for colour in (BLUE, PURPLE, AMBER, GREY))


def test_curation_of_many_classes_shows_the_most_changed() -> None:
    names = [f"class {n}" for n in range(200)]
    rows = [(name, side, part, 5) for name in names for side, part in (("before", "kept"), ("after", "kept"))]
    changed = [("class 150", "before", "dropped", 9)]
    schema = {"class_name": pl.String, "side": pl.String, "part": pl.String, "n": pl.Int64}
    image = opened(curation_chart(pl.DataFrame(rows + changed, schema=schema, orient="row")))
    assert image.height < 1_200
    assert share(image, GREY) > 0.01


def test_hostile_classes_are_drawn_as_text() -> None:
    n = len(HOSTILE)
    sizes = class_sizes(manifest([*HOSTILE, "a\nb", ""]))
    assert n_bars(opened(class_chart(sizes))) == n + 2
    kept = pl.DataFrame({"image_id": range(n), "final_label": HOSTILE, "action": ["keep"] * n})
    assert opened(curation_chart(curation_changes(manifest(list(HOSTILE)), kept))).width > 300


def test_the_same_chart_has_the_same_bytes() -> None:
    sizes = class_sizes(manifest(["cat"] * 5 + ["dog"] * 2, ["train"] * 3 + ["test"] * 4))
    assert class_chart(sizes) == class_chart(sizes)
