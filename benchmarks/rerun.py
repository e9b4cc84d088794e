"""How long does it take to audit again what did not change?

The whole command, `dq-assets audit FOLDER`, once as the first audit and then again. That nothing was decoded or computed is told by its
standard error, where every stage that works announces itself; and proved by a last audit after each file's content was replaced by
zeros, of the same size and modification time: a program that opened one would find no image in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.harness import Benchmark, Measured, Row, Work, median, process

TARGET_SECONDS = 10
REPEATS = 3
STAGES = ("Reading images", "Embedding", "Searching neighbours", "Comparing pictures", "Cross-validating")
OPEN_OR_CLOSED = (0, 3)
"""Exit codes of an audit that is complete; made images may well close a gate."""

FEWER_PAIRS = ["--set", "duplicates.cosine_distance=0.02"]
"""Made images resemble each other: comparing seven pairs per image would take most of the first audit, and none of the others."""


def run(size: int, work: Work) -> list[Row]:
    """One row for the first audit, one for those without a change, one for that on zeroed files (made images only)."""
    folder = work.images(size)

    def audit() -> Measured:
        command = str(Path(sys.executable).with_name("dq-assets"))
        argv = [command, "audit", str(folder), "--name", "bench", *([] if work.given else FEWER_PAIRS)]
        return process(argv, env={"DQ_HOME": str(work.folder / "home")}, accept=OPEN_OR_CLOSED)

    first = audit()
    again = [audit() for _ in range(REPEATS)]
    rows = [_row("first audit", [first]), _row(f"unchanged, median of {REPEATS}", again)]
    if work.given is None:
        _zero(folder)
        blind = audit()
        same = _findings(blind) == _findings(again[-1])
        rows.append(_row("unchanged, contents zeroed: " + ("same findings" if same else "OTHER FINDINGS"), [blind]))
    return rows


def _row(what: str, runs: list[Measured]) -> Row:
    seconds = median(runs, "wall")
    return {
        "audit": what,
        "s": seconds,
        "CPU s": median(runs, "cpu"),
        "peak MB": median(runs, "peak_mb"),
        "stages that worked": ", ".join(stage for stage in STAGES if any(f"{stage}:" in run.stderr for run in runs)) or "none",
        f"under {TARGET_SECONDS} s": None if what == "first audit" else seconds < TARGET_SECONDS,
    }


def _findings(audit: Measured) -> list[str]:
    """What it printed, without the number of the audit and the seconds that it took."""
    return [line for line in audit.stdout.splitlines() if not line.startswith(("Audit ", "Done in"))]


def _zero(folder: Path) -> None:
    """Replace every file's bytes by zeros; size and modification time stay."""
    for path in folder.rglob("*.jpg"):
        info = path.stat()
        path.write_bytes(bytes(info.st_size))
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


SIZES = {"quick": 300, "standard": 5_000, "large": 20_000}

BENCHMARK = Benchmark("rerun", "How long does it take to audit again what did not change?", "images", SIZES, run)
