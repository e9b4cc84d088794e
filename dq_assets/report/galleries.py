"""Galleries of findings as Markdown: pictures in a table, captions below them. Which images are shown, and what is said of each.

Frames of the lake's tables and a function that reads a file in, text out. Captions are cells, not drawn: the browser has fonts for
every script. A gallery stops at MAX_BYTES, whatever its pictures weigh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import polars as pl

from dq_assets.report.markdown import clipped, escaped, picture, table
from dq_assets.report.thumbnails import KIND
from dq_assets.schema import QUALITY_CHECKS

Thumb = Callable[[str, str | None, int], bytes]
"""(uri, content_sha256, side in pixels) to the bytes of a thumbnail."""

MAX_BYTES = 90_000
"""Most bytes of a gallery. With a chart beside it an asset's pictures stay below 120 kB, in an event log that keeps them for ever."""

SIDE = 128
SMALL = 104
TINY = 80
COLUMNS = 6
MAX_ISSUES = 24
MAX_OUTLIERS = 24
MAX_GROUPS = 20
MAX_COPIES = 5
LABEL, FILE = 24, 22
"""Characters of a label and of a file name in a caption."""

_KIND_WORDS = {"ambiguous": ", ambiguous", "multi_label": ", several labels"}


def label_gallery(issues: pl.DataFrame, evidence: pl.DataFrame, manifest: pl.DataFrame, thumb: Thumb) -> str | None:
    """The flagged labels with the highest error probability, each beside the nearest image of either label. None if no label is flagged.

    issues: table label_issues. evidence: table label_evidence. manifest: image_id, path, uri, content_sha256.
    """
    flagged = issues.filter(pl.col("is_label_issue"))
    worst = flagged.sort(["error_probability", "image_id"], descending=[True, False]).head(MAX_ISSUES)
    nearest = evidence.filter(pl.col("rank") == 1).rename({"image_id": "of", "neighbor_id": "image_id"})
    shown = nearest.join(worst.select(of="image_id"), on="of", how="semi")
    beside = {(row["of"], row["role"]): row for row in _with_files(shown, manifest)}

    def issue(row: dict[str, Any]) -> list[list[str]]:
        card = [
            _picture(row, thumb, SMALL),
            f"{escaped(row['given_label'], LABEL)} → **{escaped(row['suggested_label'], LABEL)}**",
            f"{_percent(row['error_probability'])} wrong{_KIND_WORDS.get(row['kind'], '')}",
            _file(row["path"], FILE - 4),
        ]
        neighbors = (beside.get((row["image_id"], role)) for role in ("given", "suggested"))
        return [card, *(["*none*", "", "", ""] if near is None else _neighbor(near, thumb) for near in neighbors)]

    every = map(issue, _with_files(worst, manifest))
    blocks = (_lines(card for cards in pair for card in cards) for pair in iter(lambda: list(islice(every, 2)), []))
    lead = (
        "The worst {} of {} flagged labels: **given → suggested label**, the probability that the given one is wrong, the file. Beside each"
        " the most similar images that have the given and the suggested label, copies and flagged ones left out, with their distance."
    )
    return _stacked(lead, blocks, ["flagged", "has the given label", "has the suggested label"] * min(len(worst), 2), len(flagged), width=3)


def _neighbor(row: dict[str, Any], thumb: Thumb) -> list[str]:
    return [_picture(row, thumb, TINY), escaped(row["label"], LABEL), f"distance {row['distance']:.2f}", _file(row["path"], FILE - 6)]


def outlier_gallery(outliers: pl.DataFrame, manifest: pl.DataFrame, thumb: Thumb) -> str | None:
    """The flagged images with the lowest outlier_score. None if none is flagged. manifest: given_label too."""
    flagged = outliers.filter(pl.col("is_outlier_issue"))
    worst = flagged.sort("outlier_score", "image_id").head(MAX_OUTLIERS)
    cards = (
        [_picture(row, thumb, SIDE), f"**{escaped(row['given_label'], LABEL)}**", f"score {row['outlier_score']:.3f}", _file(row["path"])]
        for row in _with_files(worst, manifest)
    )
    return _grid("The worst {} of {} outliers: **given label**, outlier_score (0 is worst), the file.", cards, len(flagged))


def duplicate_gallery(near_dups: pl.DataFrame, manifest: pl.DataFrame, thumb: Thumb) -> str | None:
    """Duplicate groups, one a row, copies side by side, the keeper first. None if there is no group.

    Groups under two labels come first, then those across splits, then the nearest. near_dups: the table. manifest: split too.
    """
    members = near_dups.filter(pl.col("group_id").is_not_null())
    ranked = (
        members.group_by("group_id")
        .agg(pl.col("label_conflict").any(), pl.col("crosses_split").any(), nearest=pl.col("near_duplicate_score").max())
        .sort(["label_conflict", "crosses_split", "nearest", "group_id"], descending=[True, True, False, False])
    )
    shown = ranked.head(MAX_GROUPS).select("group_id", rank=pl.int_range(pl.len()))
    rows = shown.join(members, on="group_id").sort(["rank", "is_keeper", "image_id"], descending=[False, True, False])
    lead = "{} of {} duplicate groups, those under two labels first: **given label**, verdict, split, the file."
    blocks = (_group(_with_files(group, manifest), thumb) for _, group in rows.group_by("rank", maintain_order=True))
    return _stacked(lead, blocks, ["group", "the copy to keep", "other copies"], len(ranked))


def quality_gallery(properties: pl.DataFrame, manifest: pl.DataFrame, thumb: Thumb) -> str | None:
    """For each quality check its worst images, one check a row. None if no check flags an image. properties: table image_properties."""

    def row_of(check: str) -> list[list[str]]:
        flagged = properties.filter(pl.col(f"is_{check}_issue"))
        worst = _with_files(flagged.sort(f"{check}_score", "image_id").head(COLUMNS - 1), manifest)
        first = [f"**{escaped(check.replace('_', ' '))}**", f"{len(flagged):,} image{'s' * (len(flagged) != 1)}", ""]
        cards = ([_picture(row, thumb, SMALL), f"{row[f'{check}_score']:.3f}", _file(row["path"], FILE - 4)] for row in worst)
        return _lines([first, *cards])

    found = [check for check in QUALITY_CHECKS if bool(properties[f"is_{check}_issue"].any())]
    lead = "{} of {} checks flag images. The worst of each, with their score (0 is worst)."
    return _stacked(lead, map(row_of, found), ["check", "worst"], len(QUALITY_CHECKS))


def _group(rows: list[dict[str, Any]], thumb: Thumb) -> list[list[str]]:
    first = rows[0]
    facts = ["label conflict"] * bool(first["label_conflict"]) + ["across splits"] * bool(first["crosses_split"])
    resolved = f"→ **{escaped(first['resolved_label'], LABEL)}** ({_percent(first['confidence'])})" if first["label_conflict"] else ""
    hidden = len(rows) - MAX_COPIES
    more = f"{len(rows)} copies" + (f", {hidden} not shown" if hidden > 0 else "")
    cards = [[", ".join(facts) or rows[-1]["kind"], resolved, more, ""]]
    for row in rows[:MAX_COPIES]:
        verdict = ["keep"] * row["is_keeper"] + ["wrong label"] * row["is_wrong_label"] or [row["kind"]]
        cards.append(
            [
                _picture(row, thumb, SMALL),
                f"**{escaped(row['given_label'], LABEL)}**",
                ", ".join(verdict + [row["split"]] * (row["split"] is not None)),
                _file(row["path"]),
            ]
        )
    return _lines(cards)


def _with_files(findings: pl.DataFrame, manifest: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts, with the manifest's columns where the findings lack them."""
    lacking = [c for c in manifest.columns if c == "image_id" or c not in findings.columns]
    return findings.join(manifest.select(lacking), on="image_id", how="left", maintain_order="left").to_dicts()


def _picture(row: dict[str, Any], thumb: Thumb, side: int) -> str:
    return picture(thumb(row["uri"], row["content_sha256"], side), KIND, clipped(row["path"], 80))


def _file(path: str, most: int = FILE) -> str:
    return escaped(path.rsplit("/", 1)[-1], most)


def _percent(share: float) -> str:
    """A probability in whole percent; never 100% of what is only nearly sure."""
    return "> 99%" if share > 0.99 else f"{share:.0%}"


def _lines(cards: Iterable[Sequence[str]]) -> list[list[str]]:
    """Cards side by side: their first entries are a row of the table, their second the next, and so on."""
    return [list(line) for line in zip(*cards, strict=True)]


def _grid(lead: str, cards: Iterable[list[str]], n_all: int) -> str | None:
    """Cards in rows of COLUMNS."""
    every = iter(cards)
    blocks = iter(lambda: list(islice(every, COLUMNS)), [])
    return _stacked(lead, map(_lines, blocks), [], n_all, width=1)


def _stacked(lead: str, blocks: Iterable[list[list[str]]], header: list[str], n_all: int, *, width: int = 0) -> str | None:
    """Blocks of table rows below each other, as many as MAX_BYTES hold. lead: with places for the number shown and that of all.

    width: columns of each thing that is shown; 0 if a block is one thing. header: may be empty.
    """
    rows: list[list[str]] = [header] if header else []
    used, shown = 0, 0
    for block in blocks:
        size = sum(len(cell.encode()) + 3 for line in block for cell in line)
        if used + size > MAX_BYTES:
            break
        used += size
        rows += [["&nbsp;"]] * (shown > 0) + block  # an empty row: else a caption is as near to the next picture as to its own
        shown += len(block[0]) // width if width else 1
    return f"{lead.format(f'{shown:,}', f'{n_all:,}')}\n\n{table(rows)}" if shown else None
