"""The command: choose, run, print tables, keep the figures."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks import (
    duplicates,
    embedding,
    giants,
    imports,
    label_kinds,
    label_quality,
    label_scale,
    label_sets,
    labels,
    memory,
    neighbors,
    outlier_quality,
    rerun,
    scale,
    scan,
    search,
)
from benchmarks.harness import Benchmark, Work, machine, markdown, versions

MODULES = (
    rerun,
    imports,
    memory,
    giants,
    embedding,
    scan,
    labels,
    label_scale,
    label_kinds,
    label_quality,
    label_sets,
    neighbors,
    duplicates,
    outlier_quality,
    search,
    scale,
)
BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in MODULES}
BUSY = 0.5
"""Load per core, before a benchmark begins, above which its seconds say little; ratios and CPU seconds still do."""


def main() -> None:
    """Run what was asked for."""
    asked = _arguments()
    print(f"{datetime.date.today()}; {_line(machine())}; {_line(versions())}\n")
    for name in asked.names or BENCHMARKS:
        chosen = BENCHMARKS[name]
        size = chosen.sizes[asked.size] if asked.size in chosen.sizes else int(asked.size)
        with tempfile.TemporaryDirectory(prefix="dq-bench-") as folder:
            record = _measure(chosen, size, Work(Path(folder), asked.images))
        if asked.json:
            with asked.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def _measure(chosen: Benchmark, size: int, work: Work) -> dict[str, object]:
    """Run one, print it, and return all that is worth keeping of it."""
    before, started = os.getloadavg()[0], time.monotonic()
    rows = chosen.run(size, work)
    taken, after = time.monotonic() - started, os.getloadavg()[0]
    busy = " (busy: believe ratios and CPU seconds, not seconds)" if before > BUSY * (os.cpu_count() or 1) else ""
    images = ", given images" if work.given else ""
    print(f"## {chosen.name}: {size:,} {chosen.unit}{images}\n\n{chosen.question}\n\n{markdown(rows)}\n")
    print(f"Load average {before:.1f} before, {after:.1f} after{busy}; {taken:.0f} s in all.\n", flush=True)
    return {
        "benchmark": chosen.name,
        "size": size,
        "made_images": work.given is None,
        "date": str(datetime.date.today()),
        "machine": machine(),
        "versions": versions(),
        "load_before": round(before, 2),
        "load_after": round(after, 2),
        "rows": rows,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure dq-assets, where there is one against a peer.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--size", default="standard", help="quick, standard, large or a number (default: standard)")
    parser.add_argument("--images", type=Path, help="a folder of class folders in place of made images; it is only read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file, a line of JSON per benchmark")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - BENCHMARKS.keys())
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}. Choose from {', '.join(BENCHMARKS)}.")
    if asked.size not in ("quick", "standard", "large") and not (asked.size.isdigit() and int(asked.size) >= 100):
        parser.error(f"--size {asked.size} is neither quick, standard, large nor a number of at least 100.")
    if asked.images and not asked.images.is_dir():
        parser.error(f"--images {asked.images} is not a folder.")
    asked.images = asked.images.absolute() if asked.images else None
    return asked


def _line(facts: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    main()
