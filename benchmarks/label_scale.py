"""How fast are label issues from probabilities in a file, and how much memory do they take, against cleanlab?

The input is an .npy of size x 1000 float32, warm in the page cache, with 10 % of the labels wrong. Asked for are thresholds, joint,
flags, scores (normalized margin) and overlapping classes; on our side by the rules of cleanlab (the flags are compared) and by our own.
The data are made and say nothing of quality.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Benchmark, Clock, Row, Work, alternate, child, median

N_CLASSES = 1000
REPEATS = 1
"""The large size takes minutes; `--size` of a tenth, several times, shows the spread."""


def make(n: int, out: str) -> dict[str, Any]:
    """Labels and probabilities: a softmax with a tail, of which the true class leads."""
    import numpy as np

    rng = np.random.default_rng(0)
    probs = np.lib.format.open_memmap(f"{out}-probs.npy", "w+", np.float32, (n, N_CLASSES))
    true = rng.integers(0, N_CLASSES, n)
    given = np.where(rng.random(n) < 0.1, rng.integers(0, N_CLASSES, n), true)
    noise = (rng.normal(size=(2048, N_CLASSES)) * 1.5).astype(np.float32)
    for start in range(0, n, len(noise)):
        logits = np.roll(noise, int(rng.integers(N_CLASSES)), axis=1)[: n - start].copy()
        at = np.arange(len(logits))
        logits[at, true[start + at]] += rng.normal(9, 3, len(logits)).astype(np.float32)
        block = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs[start + at] = block / block.sum(axis=1, keepdims=True)
    np.save(f"{out}-given.npy", given)
    return {}


def _input(data: str) -> tuple[Any, Any]:
    from pathlib import Path

    import numpy as np

    from dq_assets.audit.rows import NpyRows

    return np.load(f"{data}-given.npy"), NpyRows(Path(f"{data}-probs.npy"))


def rules(data: str) -> dict[str, Any]:
    """find_label_issues, quality_scores and overlapping_classes of audit.cleanlab_rules."""
    import numpy as np

    from dq_assets.audit import cleanlab_rules

    given, rows = _input(data)
    with Clock() as clock:
        found = cleanlab_rules.find_label_issues(given, rows)
        cleanlab_rules.quality_scores(given, rows, method="normalized_margin", known=found.margins)
        cleanlab_rules.overlapping_classes(found.joint)
    np.save(f"{data}-rules.npy", found.issues)
    return {"issues": int(found.issues.sum()), **clock.seconds}


def ours(data: str) -> dict[str, Any]:
    """The tables label_issues, label_noise (thresholds, joint) and ontology_report (overlapping classes)."""
    import numpy as np

    from dq_assets.audit import confident, ontology
    from dq_assets.settings import Labels

    given, rows = _input(data)
    names = [f"class {k:04d}" for k in range(N_CLASSES)]
    with Clock() as clock:
        learnable = np.ones(N_CLASSES, bool)
        noise = confident.label_noise(given, rows, learnable)
        table = confident.issues_of(noise, np.arange(len(given)), given, class_names=names, settings=Labels())
        sums = ontology.class_sums(noise, given, class_names=names, learnable=learnable)
        ontology.ontology_report(sums, table)
    return {"issues": int(table["is_label_issue"].sum()), **clock.seconds}


def peer(data: str, scores: bool) -> dict[str, Any]:
    """cleanlab's find_label_issues alone, or with get_label_quality_scores and find_overlapping_classes."""
    import numpy as np
    from cleanlab.dataset import find_overlapping_classes
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given, probs = np.load(f"{data}-given.npy"), np.load(f"{data}-probs.npy")
    with Clock() as clock:
        issues = find_label_issues(given, probs)
        if scores:
            get_label_quality_scores(given, probs, method="normalized_margin")
            find_overlapping_classes(given, probs)
    np.save(f"{data}-peer.npy", issues)
    return {"issues": int(issues.sum()), **clock.seconds}


def same(data: str) -> dict[str, Any]:
    """Share of images on which the rules and cleanlab agree."""
    import numpy as np

    return {"same": float((np.load(f"{data}-rules.npy") == np.load(f"{data}-peer.npy")).mean())}


def run(size: int, work: Work) -> list[Row]:
    """A row each."""
    data = str(work.folder / f"scale-{size}")
    child("label_scale", "make", n=size, out=data)
    runs = {
        "`cleanlab_rules`": lambda: child("label_scale", "rules", data=data),
        "`confident` and `ontology`": lambda: child("label_scale", "ours", data=data),
        "cleanlab, find_label_issues alone": lambda: child("label_scale", "peer", data=data, scores=False),
        "cleanlab, all asked for": lambda: child("label_scale", "peer", data=data, scores=True),
    }
    found = alternate(runs, REPEATS)
    same_flags = child("label_scale", "same", data=data).answer["same"]
    whole = found["cleanlab, all asked for"]
    return [
        {
            "way": name,
            "s": median(taken, "seconds"),
            "CPU s, children not counted": median(taken, "cpu_seconds"),
            "times as fast as all of cleanlab": median(whole, "seconds") / median(taken, "seconds"),
            "peak MB": median(taken, "peak_mb"),
            "flagged": int(median(taken, "issues")),
            "flags as cleanlab's": same_flags if name == "`cleanlab_rules`" else None,
        }
        for name, taken in found.items()
    ]


SIZES = {"quick": 5_000, "standard": 100_000, "large": 1_281_167}

BENCHMARK = Benchmark("label_scale", "How fast are label issues from probabilities in a file?", f"x {N_CLASSES}", SIZES, run)
