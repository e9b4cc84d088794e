"""How long does the code location take to load, and does it stay without torch?

A whole interpreter that imports `dq_assets.definitions`, with no dataset registered and with as many as the size says.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Benchmark, Row, Work, alternate, median, process

TARGET_SECONDS = 3
REPEATS = 5
STATEMENT = "import dq_assets.definitions, sys; print([m for m in ('torch', 'timm', 'faiss', 'sklearn', 'altair') if m in sys.modules])"


def register(home: str, n: int) -> dict[str, int]:
    """Register n datasets under a $DQ_HOME."""
    from pathlib import Path

    from dq_assets.settings import Dataset, Home

    for i in range(n):
        Home(Path(home)).register(Dataset(f"bench-{i}", "/nowhere"))
    return {"datasets": n}


def run(size: int, work: Work) -> list[Row]:
    """A row without a dataset, a row with `size` of them, and an interpreter that imports nothing for comparison."""
    from benchmarks.harness import child

    homes = {0: work.folder / "home-0", size: work.folder / f"home-{size}"}
    for n, home in homes.items():
        child("imports", "register", home=str(home), n=n)
    runs = {f"import dq_assets.definitions, {n} datasets": (STATEMENT, str(home)) for n, home in homes.items()}
    runs["nothing"] = ("print([])", "")
    found = alternate(
        {name: lambda of=of: process([sys.executable, "-c", of[0]], env={"DQ_HOME": of[1]}) for name, of in runs.items()}, REPEATS
    )
    return [
        {
            "interpreter": name,
            "s": median(taken, "wall"),
            "CPU s": median(taken, "cpu"),
            "peak MB": median(taken, "peak_mb"),
            "heavy modules loaded": taken[0].stdout.strip(" []\n") or "none",
            f"under {TARGET_SECONDS} s": median(taken, "wall") < TARGET_SECONDS if name != "nothing" else None,
        }
        for name, taken in found.items()
    ]


BENCHMARK = Benchmark("import", "How long does the code location take to load?", "datasets", {"quick": 5, "standard": 10, "large": 50}, run)
