"""Progress is lines in a log and bars in a terminal, and prints labels as they are."""

from __future__ import annotations

import pytest

from dq_assets.report import progress
from dq_assets.report.progress import LogReporter, Reporter, TerminalReporter, as_total


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_has_a_line_in_every_interval_and_one_at_the_end(clock: Clock) -> None:
    lines: list[str] = []
    with LogReporter(lines.append, seconds=10).bar("Reading", 100) as advance:
        for _ in range(10):
            clock.now += 3
            advance(10)
    assert lines == [
        "Reading: 40 of 100, 3/s, 18 s left",
        "Reading: 80 of 100, 3/s, 6 s left",
        "Reading: 100 of 100 in 30.0 s",
    ]


def test_nothing_to_do_is_not_worth_a_line() -> None:
    lines: list[str] = []
    with LogReporter(lines.append).bar("Reading", 0):
        pass
    assert lines == []


def test_an_unknown_number_is_counted_without_a_total(clock: Clock) -> None:
    lines: list[str] = []
    with LogReporter(lines.append, seconds=1).bar("Exporting", 0) as advance:
        clock.now += 2
        advance(4)
    assert lines == ["Exporting: 4, 2/s", "Exporting: 4 in 2.0 s"]


def test_more_than_was_announced_leaves_no_negative_time(clock: Clock) -> None:
    lines: list[str] = []
    with LogReporter(lines.append, seconds=1).bar("Reading", 2) as advance:
        clock.now += 2
        advance(4)
    assert lines[0] == "Reading: 4 of 2, 2/s, 0 s left"


def test_an_interval_of_nothing_divides_by_nothing(clock: Clock) -> None:
    lines: list[str] = []
    with LogReporter(lines.append, seconds=0).bar("Reading", 2) as advance:
        advance(0)
        advance(1)
    assert len(lines) == 2


def test_work_that_fails_is_not_reported_as_done() -> None:
    lines: list[str] = []
    with pytest.raises(RuntimeError), LogReporter(lines.append).bar("Reading", 2):
        raise RuntimeError
    assert lines == []


def test_a_total_so_far_becomes_how_many_more() -> None:
    steps: list[int] = []
    report = as_total(steps.append)
    for total in (3, 3, 10):
        report(total)
    assert steps == [3, 0, 7]


HOSTILE = "[red]:cat: {task} %s [/]\t" + "long " * 40


def test_without_a_terminal_lines_are_plain_whole_and_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    reporter: Reporter = TerminalReporter()
    reporter.say(HOSTILE)
    with reporter.bar("[b]Reading", 3) as advance:
        advance(3)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.split() == HOSTILE.split()
    assert second.startswith("[b]Reading: 3 of 3 in ")


@pytest.mark.parametrize("total", [0, 3])
def test_in_a_terminal_a_bar_shows_its_label_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    reporter = TerminalReporter()
    with reporter.bar("[b]:cat: {x}", total) as advance:
        advance(3)
    reporter.say(":cat: [b]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[b]:cat: {x}" in err
    assert err.splitlines()[-1].endswith(":cat: [b]")
