"""Progress of long work: bars with rate and time left in a terminal, lines in a log elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]
"""Called with how many more are done."""


def as_total(advance: Advance) -> Advance:
    """A callback for functions that report how many are done so far, rather than how many more."""
    done = 0

    def report(total_done: int) -> None:
        nonlocal done
        advance(total_done - done)
        done = total_done

    return report


class Reporter(Protocol):
    """Where progress goes."""

    def bar(self, label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """A bar for `total` units of work, 0 for none or an unknown number; the context's value advances it."""
        ...

    def say(self, line: str) -> None:
        """One line of text."""
        ...


class LogReporter:
    """Writes a line when a bar begins and ends, and every `seconds` between."""

    def __init__(self, write: Callable[[str], None], seconds: float = 15) -> None:
        self._write = write
        self._seconds = seconds

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """See Reporter."""
        done, started = 0, time.monotonic()
        last = started

        def advance(n: int) -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last >= self._seconds and done:
                last = now
                rate = done / max(now - started, 1e-9)
                left = f", {max(total - done, 0) / rate:.0f} s left" if total else ""
                self._write(f"{label}: {_of(done, total)}, {rate:.0f}/s{left}")

        yield advance
        if total or done:
            self._write(f"{label}: {_of(done, total)} in {time.monotonic() - started:.1f} s")

    def say(self, line: str) -> None:
        """See Reporter."""
        self._write(line)


def _of(done: int, total: int) -> str:
    return f"{done} of {total}" if total else str(done)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Units per second; blank before the first."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class TerminalReporter:
    """Bars on standard error; plain lines where that is no terminal."""

    def __init__(self) -> None:
        # Without `emoji=False` a label `:cat:` is printed as a cat.
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._plain = LogReporter(self.say)

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """See Reporter."""
        if not self._console.is_terminal or total == 0:
            with self._plain.bar(label, total) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(label, total=total)
            yield lambda n: progress.advance(task, n)

    def say(self, line: str) -> None:
        """See Reporter."""
        # Rich would break a line at 80 characters where there is no terminal.
        self._console.print(line, soft_wrap=True)
