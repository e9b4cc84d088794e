"""Charts as PNG, drawn by Altair from the frames of `tallies`. Labels are drawn as text, so hostile ones are only ugly."""

from __future__ import annotations

import io
from typing import Any

import polars as pl
from PIL import Image

from dq_assets.audit.calibration import Reliability

MAX_LABEL = 40
"""Characters of a label that a chart shows."""

MAX_CLASSES = 30
"""Classes that a chart of class sizes shows: with more, the largest 20 and the smallest 9, and a line for those between."""

MAX_CHANGED = 15
"""Classes that the chart of curation shows, the most changed first."""

BLUE, ORANGE, PURPLE, AMBER, GREY = "#3b6ea8", "#d9772b", "#8a6bb1", "#dfb43c", "#a7afb9"
WIDTH = 560


def corrections_chart(corrections: pl.DataFrame) -> bytes:
    """PNG of the most common corrections: bars of count by `given -> suggested`.

    corrections: given_label, suggested_label, count, most frequent first.
    """
    pairs = corrections.select(pl.format("{} → {}", _short("given_label"), _short("suggested_label")).alias("correction"), "count")
    rows = pairs.with_columns(correction=_told_apart("correction"))
    return _bars(rows, "correction", "count", title=_title("Most common corrections (given → suggested)"), x_title="flagged images")


def class_chart(sizes: pl.DataFrame) -> bytes:
    """PNG of the images of each class, largest first, by split where there are splits. sizes: frame of `tallies.class_sizes`."""
    import altair as alt

    totals = sizes.group_by("class_name").agg(total=pl.col("n").sum()).sort(["total", "class_name"], descending=[True, False])
    n_classes, n_images = len(totals), int(totals["total"].sum())
    title = _title(f"Images per class: {n_images:,} readable in {n_classes:,} classes", _spread(totals))
    shown = _gap(totals)
    order = shown["bar"].to_list()
    splits = sizes.filter(pl.col("split").is_not_null())
    if splits.is_empty():
        return _bars(shown.select("bar", n="total"), "bar", "n", title=title, x_title="images")
    names = ["train", "validation", "test", "unused", "no split"]
    parts = shown.join(sizes, on="class_name").select("bar", split=pl.col("split").fill_null("no split"), n="n")
    present = [name for name in names if name in set(parts["split"])]
    parts = pl.concat([parts, shown.filter(pl.col("total").is_null()).select("bar", split=pl.lit(present[0]), n=pl.lit(0, pl.Int64))])
    parts = parts.with_columns(order=pl.col("split").replace_strict({name: at for at, name in enumerate(names)}, return_dtype=pl.Int64))
    colours = dict(zip(names, (BLUE, PURPLE, ORANGE, GREY, GREY), strict=True))
    y = _class_axis("bar", order)
    bars = (
        alt.Chart(alt.Data(values=parts.to_dicts()))
        .mark_bar(height=14)
        .encode(
            y=y,
            x=alt.X("n:Q", title="images", axis=alt.Axis(tickMinStep=1, grid=False)),
            color=alt.Color("split:N", title=None, scale=_scale(colours, present), legend=_legend()),
            order="order:Q",
        )
    )
    labels = shown.filter(pl.col("total").is_not_null()).select("bar", "total")
    numbers = (
        alt.Chart(alt.Data(values=labels.to_dicts()))
        .mark_text(align="left", dx=4, fontSize=12)
        .encode(y=y, x="total:Q", text=alt.Text("total:Q", format=","))
    )
    return png((bars + numbers).properties(width=WIDTH, height=max(20 * len(order), 44), title=title))


def histogram(bins: pl.DataFrame, cut: float, *, name: str, flagged: str, title: str, subtitle: str) -> bytes:
    """PNG of a score's distribution with its cut. bins: frame of `tallies.score_bins`; flagged: "above" or "below", the side of the issues.

    Counts are on a symmetric log scale: a hundred issues among a million images stay visible.
    """
    import altair as alt

    most = max([1, *bins["n"].to_list()])
    ticks = [0, *(step * 10**power for power in range(len(str(most))) for step in (1, 3) if step * 10**power <= most)]
    rows = bins.with_columns(state=pl.when(pl.col("beyond") == flagged).then(pl.lit("flagged")).otherwise(pl.lit("not flagged")))
    bars = (
        alt.Chart(alt.Data(values=rows.filter(pl.col("n") > 0).with_columns(base=pl.lit(0)).to_dicts()))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low:Q", title=name, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False, values=[x / 10 for x in range(11)])),
            x2="high:Q",
            y=alt.Y(
                "n:Q",
                title="images (log scale)",
                scale=alt.Scale(type="symlog", domain=[0, 2 * most], nice=False),
                axis=alt.Axis(values=ticks),
            ),
            y2="base:Q",
            color=alt.Color("state:N", title=None, scale=_scale({"flagged": ORANGE, "not flagged": BLUE}), legend=_legend()),
        )
    )
    at = alt.Chart(alt.Data(values=[{"cut": cut, "text": f"flagged {flagged} {cut:.3g}"}]))
    rule = at.mark_rule(color="#222222", strokeDash=[4, 3], strokeWidth=1.5).encode(x="cut:Q")
    towards = "left" if cut < 0.5 or (flagged == "above" and cut < 0.75) else "right"
    text = at.mark_text(align=towards, dx=5 if towards == "left" else -5, y=8, fontSize=12).encode(x="cut:Q", text="text:N")
    return png((bars + rule + text).properties(width=WIDTH, height=220, title=_title(title, subtitle)))


def reliability_chart(curve: Reliability) -> bytes:
    """PNG of the reliability curve with 95 % intervals, over the number of images in each bin."""
    import altair as alt

    base = alt.Chart(alt.Data(values=curve.bins.with_columns(zero=pl.lit(0)).to_dicts()))
    zero_to_one = alt.Scale(domain=[0, 1])
    axis = alt.Axis(values=[x / 5 for x in range(6)], format=".1f")
    x = alt.X("mean_probability:Q", title="probability of the most probable class (mean of the bin)", scale=zero_to_one, axis=axis)
    diagonal = (
        alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(color=GREY, strokeDash=[5, 4]).encode(x="x:Q", y="y:Q")
    )
    y = alt.Y("agreement:Q", title="agreement with the given label", scale=zero_to_one, axis=axis)
    spread = base.mark_rule(color=BLUE, opacity=0.5, strokeWidth=2).encode(x=x, y="agreement_low:Q", y2="agreement_high:Q")
    line = base.mark_line(color=BLUE, strokeWidth=2, point=alt.OverlayMarkDef(color=BLUE, size=55)).encode(x=x, y=y)
    upper = (diagonal + spread + line).properties(width=WIDTH - 140, height=280)
    lower = (
        base.mark_bar(color=GREY)
        .encode(
            x=alt.X("low:Q", title="probability of the most probable class", scale=zero_to_one, axis=axis),
            x2="high:Q",
            y=alt.Y("n:Q", title="images", axis=alt.Axis(tickCount=3, format=",d", grid=False)),
            y2="zero:Q",
        )
        .properties(width=WIDTH - 140, height=70)
    )
    error = "" if curve.ece is None else f"Expected calibration error {curve.ece:.3f} over {curve.n:,} labelled images."
    meaning = "Above the dashed line the probabilities are too low, below it too high. Upright lines: 95% intervals."
    title = _title("Reliability of the probabilities, against the given labels", error, meaning)
    return png(alt.vconcat(upper, lower, spacing=12).properties(title=title))


def curation_chart(changes: pl.DataFrame) -> bytes:
    """PNG of each class before and after curation, the most changed classes first. changes: frame of `tallies.curation_changes`."""
    import altair as alt

    changed = pl.col("n").filter(pl.col("part") != "kept").sum()
    totals = changes.group_by("class_name").agg(changed=changed).sort(["changed", "class_name"], descending=[True, False])
    top = totals.head(MAX_CHANGED).with_columns(bar=_short("class_name")).with_columns(bar=_told_apart("bar"))
    rows = top.join(changes, on="class_name", maintain_order="left")
    parts = {"kept": BLUE, "relabelled": PURPLE, "review": AMBER, "dropped": GREY}
    rows = rows.with_columns(order=pl.col("part").replace_strict({part: at for at, part in enumerate(parts)}, return_dtype=pl.Int64))
    sums = rows.group_by("bar", "side", maintain_order=True).agg(total=pl.col("n").sum())
    before, after = (
        {side: int(n) for side, n in changes.group_by("side").agg(pl.col("n").sum()).iter_rows()}.get(s, 0) for s in ("before", "after")
    )
    rest = len(totals) - len(top)
    more = f" The {MAX_CHANGED} most changed of {len(totals):,} classes." if rest > 0 else ""
    title = _title(
        f"Images per class before and after curation: {before:,} → {after:,}",
        f"Upper bar: by given label. Lower bar: by final label, without what is dropped.{more}",
    )
    offset = alt.YOffset("side:N", sort=["before", "after"], scale=alt.Scale(paddingInner=0.12))
    y = _class_axis("bar", top["bar"].to_list())
    bars = (
        alt.Chart(alt.Data(values=rows.select("bar", "side", "part", "n", "order").to_dicts()))
        .mark_bar()
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X("n:Q", title="images", axis=alt.Axis(tickMinStep=1, grid=False)),
            color=alt.Color("part:N", title=None, scale=_scale(parts), legend=_legend()),
            order="order:Q",
        )
    )
    numbers = alt.Chart(alt.Data(values=sums.to_dicts())).mark_text(align="left", dx=4, fontSize=11)
    numbers = numbers.encode(y=y, yOffset=offset, x="total:Q", text=alt.Text("total:Q", format=","))
    return png((bars + numbers).properties(width=WIDTH, height=max(38 * len(top), 44), title=title))


def _bars(rows: pl.DataFrame, name: str, count: str, *, title: Any, x_title: str) -> bytes:
    """Horizontal bars of `count` with their numbers, in the order given; a null count has no bar."""
    import altair as alt

    base = alt.Chart(alt.Data(values=rows.to_dicts()))
    y = _class_axis(name, rows[name].to_list())
    x = alt.X(f"{count}:Q", title=x_title, axis=alt.Axis(tickMinStep=1, grid=False))
    bars = base.mark_bar(color=BLUE, height=14).encode(y=y, x=x)
    numbers = base.mark_text(align="left", dx=4, fontSize=12).encode(y=y, x=x, text=alt.Text(f"{count}:Q", format=","))
    return png((bars + numbers).properties(width=WIDTH - 140, height=max(21 * len(rows), 44), title=title))


def _gap(totals: pl.DataFrame) -> pl.DataFrame:
    """(bar, class_name, total) of the classes to show; those between the largest and the smallest are one row without a total."""
    named = totals.with_columns(bar=_short("class_name"))
    if len(named) > MAX_CLASSES:
        largest, smallest = MAX_CLASSES * 2 // 3, MAX_CLASSES - MAX_CLASSES * 2 // 3 - 1
        between = named.slice(largest, len(named) - largest - smallest)
        sizes = between["total"].to_list()
        text = f"… and {len(between):,} more, {min(sizes):,} to {max(sizes):,} each …"
        line = pl.DataFrame({"class_name": [None], "total": [None], "bar": [text]}, schema=named.schema)
        named = pl.concat([named.head(largest), line, named.tail(smallest)])
    return named.with_columns(bar=_told_apart("bar"))


def _spread(totals: pl.DataFrame) -> str:
    sizes = sorted(totals["total"].to_list())
    if not sizes:
        return "No image is readable."
    return f"Largest {sizes[-1]:,}, median {sizes[len(sizes) // 2]:,}, smallest {sizes[0]:,}."


def _short(column: str) -> pl.Expr:
    """A label as a chart shows it: no control characters, at most MAX_LABEL characters."""
    clean = pl.col(column).fill_null("(none)").str.replace_all(r"[\p{C}]", " ")
    return pl.when(clean.str.len_chars() > MAX_LABEL).then(clean.str.slice(0, MAX_LABEL - 1) + "…").otherwise(clean)


def _told_apart(column: str) -> pl.Expr:
    """Bars are told apart by their text, so one that looks like an earlier one gets a number."""
    nth = pl.int_range(1, pl.len() + 1).over(column)
    return pl.when(nth > 1).then(pl.format("{} ({})", column, nth)).otherwise(column)


def _class_axis(name: str, order: list[str]) -> Any:
    import altair as alt

    # `sort` as a list: with None two layers of one chart would each bring an order of their own.
    return alt.Y(f"{name}:N", sort=order, title=None, axis=alt.Axis(labelLimit=340, labelFontSize=12, ticks=False, domain=False))


def _scale(colours: dict[str, str], names: list[str] | None = None) -> Any:
    import altair as alt

    chosen = names or list(colours)
    return alt.Scale(domain=chosen, range=[colours[name] for name in chosen])


def _legend() -> Any:
    import altair as alt

    return alt.Legend(orient="top", direction="horizontal", labelFontSize=12, symbolType="square", offset=4)


def _title(text: str, *subtitle: str) -> Any:
    import altair as alt

    # Plain text: a title is never made of labels, so it has nothing to escape.
    return alt.Title(text, subtitle=list(subtitle), anchor="start", fontSize=14, subtitleFontSize=12, subtitleColor="#555555", offset=10)


def png(chart: Any) -> bytes:
    """Render a chart on white, so that it reads on a dark page too, in 64 colours: a tenth of the bytes."""
    import vl_convert

    styled = chart.configure_view(stroke=None).configure_axis(
        titleFontSize=12, titleFontWeight="normal", labelFontSize=11, gridColor="#e6e8eb"
    )
    full = bytes(vl_convert.vegalite_to_png(styled.properties(padding=12).to_json(), scale=1.5, allowed_base_urls=[]))
    small = io.BytesIO()
    Image.open(io.BytesIO(full)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
