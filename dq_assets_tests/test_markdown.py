"""Whatever a label says, Markdown shows it as text. That a browser shows it so is in test_browser."""

from __future__ import annotations

import html
import re

import pytest

from dq_assets.report.markdown import clipped, escaped, picture, table

HOSTILE = [
    "a|b",
    "\\|x\\",
    "`code`",
    "`|`",
    "**bold** _it_ ~~gone~~",
    "![x](javascript:alert(1))",
    "![x](http://127.0.0.1:9/x.png)",
    "[x](http://127.0.0.1:9/)",
    "![x][y]",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- x -->",
    "https://127.0.0.1:9/a",
    "HTTP://x.example www.x.example WWW.X.EXAMPLE",
    "<https://x.example>",
    "a@x.example mailto:a@x.example",
    "&amp; &#60;b&#62;",
    "# head",
    "- item",
    "1. x",
    "| --- |",
    "[^1] [ ] [x]",
    "'; drop table x; --",
    "../../etc/passwd",
    "{{x}} ${y} $z$",
    "猫🐈\u200d⬛ العربية नमस्ते",
]
"""Texts that mean something in Markdown, HTML, SQL or a shell; each is a valid label."""


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_a_hostile_text_keeps_its_characters_and_loses_its_syntax(text: str) -> None:
    shown = escaped(text)
    assert html.unescape(shown.replace("<!-- -->", "")) == text
    rest = re.sub(r"&#\d+;", "", shown.replace("<!-- -->", ""))
    assert not re.search(r"[!-/:-@\[-`{-~]", rest)  # no ASCII punctuation is left but that of the references
    assert not re.search(r"(?i)www&#46;|https?&#58;|[\w]&#64;", shown)  # the start of a bare address is cut off its rest


@pytest.mark.parametrize("char", ["\n", "\r", "\t", "\0", "\x1b", "\x85", "\u2028", "\u202e", "\u2066", "\ufeff", "\udc80"], ids=repr)
def test_an_invisible_character_is_seen(char: str) -> None:
    assert escaped(f"a{char}b") == "a\ufffdb"


def test_a_missing_and_a_blank_label_are_told_from_text() -> None:
    assert escaped(None) == "*none*"
    assert escaped("") == escaped("  ") == "*blank*"
    assert escaped("none") == "none"


def test_a_long_text_loses_its_middle() -> None:
    assert clipped("a" * 10 + "b" * 10, 9) == "aaaa…bbbb"
    assert clipped("abcdefgh", 8) == "abcdefgh"
    assert escaped("x" * 50 + ".jpg", 13) == "xxxxxx…xx&#46;jpg"


def test_no_text_breaks_out_of_a_table_or_a_picture() -> None:
    rows = table([["label", "picture"], *[[escaped(text), picture(b"\x89PNG", "png", text)] for text in [*HOSTILE, "a\nb"]]])
    lines = rows.split("\n")
    assert len(lines) == len(HOSTILE) + 3
    assert {line.count("|") for line in lines} == {3}
    assert all(re.fullmatch(r"\| .* \| !\[[^\]]*\]\(data:image/png;base64,iVBORw==\) \|", line) for line in lines[2:])


def test_short_rows_are_filled_up() -> None:
    assert table([["a"], ["b", "c"]]) == "| a |  |\n|:-:|:-:|\n| b | c |"
