"""Charts as PNG, drawn by Altair. Labels are drawn as text, so hostile ones are only ugly."""

from __future__ import annotations

import base64
import io

import polars as pl
from PIL import Image

MAX_LABEL = 40
"""Characters of a label that a chart shows."""


def corrections_chart(corrections: pl.DataFrame) -> bytes:
    """PNG of the most common corrections: bars of count by `given -> suggested`.

    corrections: given_label, suggested_label, count, most frequent first.
    """
    import altair as alt

    # Bars are told apart by their text, so a pair that looks like an earlier one after MAX_LABEL characters gets a number.
    short = [pl.col(c).str.replace_all(r"[\p{C}]", " ").str.slice(0, MAX_LABEL) for c in ("given_label", "suggested_label")]
    nth = pl.int_range(1, pl.len() + 1).over("correction")
    numbered = pl.when(nth > 1).then(pl.format("{} ({})", "correction", nth)).otherwise("correction")
    pairs = corrections.select(pl.format("{} → {}", *short).alias("correction"), "count").with_columns(correction=numbered)
    base = alt.Chart(alt.Data(values=pairs.to_dicts()))
    y = alt.Y("correction:N", sort=None, title=None, axis=alt.Axis(labelLimit=320, labelFontSize=12, ticks=False, domain=False))
    x = alt.X("count:Q", title="flagged images", axis=alt.Axis(tickMinStep=1, grid=False))
    bars = base.mark_bar(color="#3b6ea8", height=14).encode(y=y, x=x)
    numbers = base.mark_text(align="left", dx=4, fontSize=12).encode(y=y, x=x, text="count:Q")
    chart = (bars + numbers).properties(
        width=420, height=max(22 * len(pairs), 44), title=alt.Title("Most common corrections (given → suggested)", anchor="start")
    )
    return png(chart)


def png(chart: object) -> bytes:
    """Render a chart on white, so that it reads on a dark page too, in 64 colours: a tenth of the bytes."""
    import vl_convert

    full = bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=1.5, allowed_base_urls=[]))  # type: ignore[attr-defined]
    small = io.BytesIO()
    Image.open(io.BytesIO(full)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def data_uri(image: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
