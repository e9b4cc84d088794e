"""Charts come out as pictures whatever the labels are."""

from __future__ import annotations

import base64
import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from dq_assets.report.charts import corrections_chart, data_uri


def table(*rows: tuple[str | None, str | None, int]) -> pl.DataFrame:
    schema = {"given_label": pl.String, "suggested_label": pl.String, "count": pl.UInt32}
    return pl.DataFrame(rows, schema=schema, orient="row")


def drawn(corrections: pl.DataFrame) -> Image.Image:
    image = Image.open(io.BytesIO(corrections_chart(corrections)))
    assert image.format == "PNG"
    image.load()
    return image.convert("RGB")


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
    uri = data_uri(corrections_chart(table(*rows)))
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body, validate=True).startswith(b"\x89PNG")
    assert len(uri) < 100_000
