"""What the benchmarks share: processes that are timed and weighed, the machine in three facts, tables.

Everything measured runs in a process of its own. The process that starts them stays small (no numpy here), because Linux counts the
peak of the process that started a program as the least peak of the program.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("dagster", "duckdb", "faiss-cpu", "numpy", "openvino", "pillow", "polars", "scikit-learn", "timm", "torch")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""For children with small arrays, whose seconds nobody compares. label_quality took 43 CPU seconds in place of 10: threads that spin."""

Row = dict[str, Any]
"""One line of a table: column to value; all rows of a table have the same columns."""


@dataclass(frozen=True)
class Measured:
    """One process: wall and CPU seconds, peak resident memory in MB, what it printed, and the JSON that a child answered."""

    wall: float
    cpu: float
    peak_mb: float
    exit_code: int
    stdout: str
    stderr: str
    answer: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A temporary folder, and a folder of images if the user gave one instead of made ones."""

    folder: Path
    given: Path | None = None

    def images(self, n: int) -> Path:
        """A folder of class folders with n made images, or the given folder. Made once."""
        made = self.folder / f"images-{n}"
        if self.given is None and not made.exists():
            child("images", "make", folder=str(made), n=n)
        return self.given or made


@dataclass(frozen=True)
class Benchmark:
    """A question, the sizes at which it is asked, and what answers it: run(size, work) gives the rows of a table."""

    name: str
    question: str
    unit: str
    sizes: Mapping[str, int]
    run: Callable[[int, Work], list[Row]]


def process(argv: list[str], *, env: Mapping[str, str] | None = None, accept: tuple[int, ...] = (0,)) -> Measured:
    """Run a program to its end. Raises SystemExit with its standard error if its exit code is none of `accept`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        running = subprocess.Popen(argv, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(running.pid, 0)
        wall = time.monotonic() - started
        running.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        unit = 2**20 if sys.platform == "darwin" else 2**10
        found = Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, running.returncode, out.read(), err.read())
    if found.exit_code not in accept:
        raise SystemExit(f"{' '.join(argv)} ended with {found.exit_code}:\n{found.stderr[-3000:]}")
    return found


def child(module: str, function: str, *, env: Mapping[str, str] | None = None, **arguments: Any) -> Measured:
    """Call benchmarks.<module>.<function>(**arguments) in a new interpreter; its dict is the answer."""
    call = "import json, sys; from importlib import import_module as m; f = getattr(m(sys.argv[1]), sys.argv[2])"
    answer = "json.dump(f(**json.loads(sys.argv[3])), open(sys.argv[4], 'w'))"  # not printed: libraries print too, an hour's run was lost
    with tempfile.NamedTemporaryFile("r") as file:
        argv = [sys.executable, "-c", f"{call}; {answer}", f"benchmarks.{module}", function, json.dumps(arguments), file.name]
        found = process(argv, env=env)
        return Measured(**{**vars(found), "answer": json.load(file) or {}})


def answers(module: str, function: str, each: Sequence[Row]) -> list[Row]:
    """The "rows" of function(**arguments), for each of the arguments, in one list.

    As many calls at a time as there are cores, with one thread each: for what is scored and not timed.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda arguments: child(module, function, env=ONE_THREAD, **arguments), each)
        return [one for run in runs for one in run.answer["rows"]]


def alternate(runs: Mapping[str, Callable[[], Measured]], repeats: int) -> dict[str, list[Measured]]:
    """Each run `repeats` times, in turns, so that what else the machine does meets all of them alike."""
    found: dict[str, list[Measured]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
    return found


def median(runs: list[Measured], key: str) -> float:
    """The median of an attribute, or else of an entry of the answers."""
    return statistics.median(getattr(run, key) if hasattr(run, key) else run.answer[key] for run in runs)


class Clock:
    """Wall and CPU seconds of a with-block, for children: `return {..., **clock.seconds}`."""

    def __enter__(self) -> Clock:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


def machine() -> Row:
    """Cores, memory and CPU model; nothing else about the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cores": os.cpu_count(), "memory_gb": round(memory), "cpu": models[0] if models else platform.machine()}


def versions() -> dict[str, str]:
    """What the figures depend on; a peer is named where it is installed."""
    installed = {name: metadata.version(name) for name in PACKAGES if list(metadata.distributions(name=name))}
    return {"python": platform.python_version(), **installed}


def markdown(rows: list[Row]) -> str:
    """A Markdown table; numbers with three significant digits."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_shown(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
