"""The benchmarks still run: what they name exists, and those without a peer outside the development tools answer at their smallest."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import benchmarks
from benchmarks import (
    images,
    imports,
    label_kinds,
    label_quality,
    label_scale,
    label_sets,
    labels,
    neighbors,
    outlier_quality,
    scale,
    scan,
    search,
    vectors,
)
from benchmarks.__main__ import MODULES

FILES = sorted(path for path in Path(benchmarks.__path__[0]).glob("*.py") if path.stem not in ("__init__", "__main__"))


def test_every_benchmark_is_offered_by_the_command() -> None:
    found = [importlib.import_module(f"benchmarks.{path.stem}") for path in FILES]
    assert {module.__name__ for module in found if hasattr(module, "BENCHMARK")} == {module.__name__ for module in MODULES}
    assert all(set(module.BENCHMARK.sizes) == {"quick", "standard", "large"} for module in MODULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_benchmark_names_of_ours_exists_and_takes_these_arguments(path: Path) -> None:
    """Also inside of functions that this suite does not call, as these take minutes or a peer."""
    tree, named = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("dq_assets", "benchmarks"):
            source = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(source, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                named[alias.asname or alias.name] = getattr(source, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and isinstance(named.get(node.value.id), ModuleType):
            assert hasattr(named[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("child", "answers"):
            _check_child(node)


def _check_child(call: ast.Call) -> None:
    """A child is named by text: its module and function exist and take these arguments. Names that are computed are not checked.

    The arguments of `child` are keywords, those of `answers` dicts in its last argument.
    """
    names = [one.value for one in call.args if isinstance(one, ast.Constant)]
    if len(names) == 2:
        target = getattr(importlib.import_module(f"benchmarks.{names[0]}"), names[1])
        keys = [key for one in ast.walk(call) if isinstance(one, ast.Dict) for key in one.keys]
        asked = [one.arg for one in call.keywords if one.arg and one.arg != "env"]
        asked += [key.value for key in keys if isinstance(key, ast.Constant)]
        whole = all(one.arg for one in call.keywords) and (len(call.args) == 2 or keys)  # else some are in a dict elsewhere
        bind = inspect.signature(target).bind if whole else inspect.signature(target).bind_partial
        bind(**dict.fromkeys(asked))


def test_the_record_of_runs_is_of_benchmarks_that_exist() -> None:
    lines = (Path(benchmarks.__path__[0]) / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["benchmark"] for line in lines} <= {module.BENCHMARK.name for module in MODULES}


def test_scan_and_registration_answer(tmp_path: Path) -> None:
    images.make(str(tmp_path / "images"), 8)
    assert all(one["cpu_seconds"] > 0 for one in scan.both(str(tmp_path / "images"), 8).values())
    assert imports.register(str(tmp_path / "home"), 2) == {"datasets": 2}


def test_speed_on_vectors_answers_with_the_quality_of_the_answer(tmp_path: Path) -> None:
    data = str(tmp_path / "made")
    vectors.make(300, data)
    assert labels.ours(data, vectors.N_CLASSES)["average precision"] > vectors.NOISE_RATE
    assert neighbors.ours(data)["shared"] == 1
    vectors.make_embeddings(400, data)
    assert search.searched(data)["recall"] == 1
    label_scale.make(500, data)
    assert label_scale.rules(data)["issues"] > 0
    assert label_scale.ours(data)["issues"] > 0


def test_an_audit_of_made_vectors_passes_its_checks_and_finds_the_copies(tmp_path: Path) -> None:
    data, home = str(tmp_path / "made"), str(tmp_path / "home")
    vectors.make_embeddings(400, data, n_classes=4)
    scale.fill(home, data)
    found = scale.audited(home, data)
    assert all(stage["checks passed"] for stage in found["stages"])
    assert found["copies found"] == found["copies nominated"] == 1
    assert found["labels"] > 0.5
    assert scale.recall_at_10(home, data)["recall at 10"] == 1


def test_label_kinds_makes_collages_of_two_classes_and_scores_the_calls(tmp_path: Path) -> None:
    images.make(str(tmp_path), 240)
    found = label_kinds.trials(str(tmp_path), 240)["rows"]
    assert len(found) == len(label_kinds.SHARES) * len(label_kinds.SEEDS)
    row = label_kinds._row(label_kinds.SHARES[0], found[: len(label_kinds.SEEDS)])
    assert 0 < row["of them flagged"] <= 1
    assert all(0 <= one["hits"] <= one["called"] and one["false"] == one["called"] - one["hits"] for one in found)
    a, b = Image.new("RGB", (90, 30), "red"), Image.new("RGB", (30, 90), "blue")
    for layout in label_kinds.LAYOUTS:
        colours = {colour for _, colour in label_kinds._collage(a, b, layout).getcolors()}
        assert {(255, 0, 0), (0, 0, 255)} <= colours


def test_label_quality_scores_ours_and_cleanlab_on_the_same_trials() -> None:
    found = label_quality.trials(400, 5, rates=(0.2,))["rows"]
    assert [(one["errors"], one["model"]) for one in found] == [
        (kind, model) for kind in label_quality.KINDS for model in label_quality.MODELS
    ]
    row = label_quality.means(found)
    assert row["which"] in label_quality.FILTERS
    assert row["best cut"] >= row["F1 of the flag"] > 0.2
    assert row["AP"] > 0.2, "the share of wrong labels is what chance would give"


def test_outlier_quality_scores_ours_and_datalab_on_the_same_sets() -> None:
    found = outlier_quality.made(400, 5, kinds=("far",))["rows"]
    assert [one["copied"] for one in found] == [0, 1]
    assert all(0 < one[name] <= 1 for one in found for name in ("AP", "Datalab AP"))


@pytest.mark.parametrize("name", ["digits", "12 classes, rectified"])
def test_label_sets_scores_five_kinds_of_errors_on_sets_unlike_each_other(name: str) -> None:
    found = label_sets.trials(500, name, rates=(0.2,))["rows"]
    assert [(one["errors"], one["model"]) for one in found] == [(kind, model) for kind in label_sets.KINDS for model in label_sets.MODELS]
    strong = label_sets._row([one for one in found if one["model"] == "strong"])
    assert strong["best cut"] >= strong["F1 of the flag"] > 0.2
    assert strong["near the better simple rule"].endswith(" of 5")
    assert strong["least difference"] <= strong["F1 of the flag"]


def test_label_sets_scores_given_pictures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images.make(str(tmp_path), 150)
    with pytest.raises(SystemExit, match="fewer than three of 40 pictures"):
        label_sets.trials(150, label_sets.GIVEN, str(tmp_path))
    monkeypatch.setattr(label_sets, "LEAST", 15)
    found = label_sets.trials(150, label_sets.GIVEN, str(tmp_path), rates=(0.2,))["rows"]
    assert [row["model"] for row in label_sets._by_kind(found, label_sets.GIVEN)] == list(label_sets.MODELS) * len(label_sets.KINDS)
    assert all(0 <= one["flag"] <= one["best cut"] <= 1 for one in found)
