"""Charts as PNG, drawn by Altair. Labels are drawn as text, so hostile ones are only ugly."""

from __future__ import annotations

import base64

import polars as pl

MAX_LABEL = 40
"""Characters of a label that a chart shows."""


def corrections_chart(corrections: pl.DataFrame) -> bytes:
    """PNG of the most common corrections: bars of count by `given -> suggested`.

    corrections: given_label, suggested_label, count, most frequent first.
    """
    import altair as alt

    short = [pl.col(c).str.replace_all(r"[\p{C}]", " ").str.slice(0, MAX_LABEL) for c in ("given_label", "suggested_label")]
    pairs = corrections.select(pl.format("{} → {}", *short).alias("correction"), "count")
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
    """Render a chart on white, so that it reads on a dark page too."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=1.5, allowed_base_urls=[]))  # type: ignore[attr-defined]


def data_uri(image: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
