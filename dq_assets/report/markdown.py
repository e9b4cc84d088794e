"""Markdown that the Dagster UI shows: tables with pictures as data URIs, and text that stays text whatever it says.

The UI drops raw HTML, but it would load a remote picture and show a link, so labels and paths are escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, line ends and what turns the direction of writing; not the joiners that emoji and Indic scripts need."""

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")

_LINKED = re.compile(r"(?i)(?<=www)(?=\.)|(?<=http)(?=s?:)|(?=@)")
"""Where a bare address is cut in two. GitHub's Markdown makes links of addresses after entities are read, so those do not stop it."""


def escaped(text: str | None, most: int | None = None) -> str:
    """Text as Markdown that shows exactly it: every ASCII punctuation mark is a character reference, which is never syntax.

    None and blank text are said to be so. most: longer text loses its middle. What is invisible becomes U+FFFD.
    """
    if text is None:
        return "*none*"
    clean = text if most is None else clipped(text, most)
    return "<!-- -->".join(map(_references, _LINKED.split(clean))) if clean.strip() else "*blank*"


def _references(text: str) -> str:
    visible = _INVISIBLE.sub("\ufffd", text)
    return _PUNCTUATION.sub(lambda mark: f"&#{ord(mark.group())};", visible)


def clipped(text: str, most: int) -> str:
    """At most this many characters, the middle replaced by one ellipsis: the end of a file name tells more than its middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def picture(data: bytes, kind: str, alt: str) -> str:
    """An image as a data URI. kind: png or webp. alt: any text, which is escaped; shown where the image is not."""
    return f"![{_references(alt)}](data:image/{kind};base64,{base64.b64encode(data).decode()})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are Markdown already, centred; the first row is the header, short rows are filled up."""
    width = max(map(len, rows))
    lines = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    lines.insert(1, "|" + ":-:|" * width)
    return "\n".join(lines)
