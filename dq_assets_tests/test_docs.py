"""The documentation: its code runs on a real lake, it names everything that there is, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dq_assets.audit.gates import GATES, Gate
from dq_assets.cli import main
from dq_assets.definitions import run_audit
from dq_assets.report.progress import LogReporter
from dq_assets.schema import ASSET_TABLES, QUALITY_CHECKS, STATUSES, TABLES
from dq_assets.settings import Dataset, Home, Settings, all_settings
from dq_assets.store import audits
from dq_assets.store.integrity import CHECKS
from dq_assets.store.lake import Lake
from dq_assets.store.tables import publish, read_table, versions
from dq_assets_tests.conftest import CLASSES, Planted, plant

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAME = "openmoji"
"""The dataset of the examples."""
GENERATED = ("tables.md", "settings.md", "checks.md", "commands.md")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
BY_HAND = [page for page in PAGES if page.is_relative_to(DOCS) and page.name not in GENERATED]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


QUERIES = blocks(page("lake.md"), "sql")


@dataclass(frozen=True)
class Opened:
    """What the page's Python block left behind, on a lake with a closed gate and two audits that differ in one image."""

    namespace: dict[str, Any]
    planted: Planted
    changed: str

    def rows(self, query: str) -> list[list[dict[str, Any]]]:
        """The rows of every statement that has a result."""
        con = self.namespace["con"]
        answers = [con.execute(statement).pl() for statement in con.extract_statements(query)]
        return [frame.to_dicts() for frame in answers if frame.columns != ["Success"]]


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Iterator[Opened]:
    root = tmp_path_factory.mktemp("docs")
    home, planted = new_home(root / "home"), plant(root / "shapes", per_class=12)
    outcome = run_audit(Dataset(NAME, str(planted.root)), home, LogReporter(lambda line: None))
    assert outcome.failure is None
    changed = second_audit(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQ_HOME", str(home.root))
        namespace: dict[str, Any] = {}
        for block in blocks(page("lake.md"), "python"):
            exec(block, namespace)
        yield Opened(namespace, planted, changed)
        namespace["con"].close()


def second_audit(home: Home) -> str:
    """Publish one image's action anew and record it as an audit; returns the image's path. Running the graph again takes 5 s."""
    with Lake.open(home) as lake:
        curated = read_table(lake, NAME, "curated_dataset")
        image_id = curated.filter(action="keep")["image_id"][0]
        other = pl.when(pl.col("image_id") == image_id).then(pl.lit("review")).otherwise("action")
        publish(
            lake,
            NAME,
            "curated_dataset",
            curated.with_columns(action=other),
            fingerprint=versions(lake, NAME)["curated_dataset"].fingerprint,
        )
        names = list(Gate.__dataclass_fields__)
        gates = [Gate(**row) for row in audits.gate_results(lake, NAME).select(names).to_dicts()]
        assert audits.record_audit(lake, NAME, Settings(), gates, run_id="second", started=datetime.now(UTC)).audit_id == 2
        return str(read_table(lake, NAME, "image_ids").filter(image_id=image_id)["path"][0])


def test_the_python_of_the_lake_page_opens_the_lake(opened: Opened) -> None:
    assert len(opened.namespace["issues"]) == opened.namespace["issues"].height > 0
    assert len(opened.namespace["worst"]) == 5
    assert opened.namespace["worst"]["label_score"].is_sorted()
    assert "keep" in set(opened.namespace["first"]["action"])


def test_the_lake_page_has_five_queries() -> None:
    assert len(QUERIES) == 5


def test_the_first_query_shows_the_planted_wrong_labels(opened: Opened) -> None:
    [rows] = opened.rows(QUERIES[0])
    assert set(opened.planted.flipped) <= {row["path"] for row in rows}
    assert [row["error_probability"] for row in rows] == sorted((row["error_probability"] for row in rows), reverse=True)


def test_the_second_query_shows_the_copy_under_another_label(opened: Opened) -> None:
    [rows] = opened.rows(QUERIES[1])
    members = [row["members"] for row in rows if row["resolved_label"] == "stripe"]
    right, wrong = opened.planted.cross_label
    assert members == [[f"{wrong} is ball", f"{right} is stripe"]]


def test_the_third_query_shows_the_one_image_that_changed(opened: Opened) -> None:
    [rows] = opened.rows(QUERIES[2])
    assert [(row["path"], row["was"], row["is_now"]) for row in rows] == [(opened.changed, "keep", "review")]


def test_the_fourth_query_shows_every_class(opened: Opened) -> None:
    [rows] = opened.rows(QUERIES[3])
    assert {row["class_name"] for row in rows} == set(CLASSES)
    assert any(row["most_common_correction"] for row in rows)


def test_the_fifth_query_shows_all_actions_and_the_closed_gate(opened: Opened) -> None:
    actions, closed = opened.rows(QUERIES[4])
    assert sum(row["images"] for row in actions) == len(opened.namespace["first"])
    assert "unreadable" in {row["kind_of_reason"] for row in actions}
    assert [row["check_name"] for row in closed] == ["unreadable_share"]


def test_the_lake_is_opened_for_reading_only(opened: Opened) -> None:
    import duckdb

    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        opened.namespace["con"].execute("DELETE FROM outliers")


def test_the_generated_pages_are_up_to_date_and_no_link_is_dead() -> None:
    done = subprocess.run([sys.executable, "-m", "docs.generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_anchor_of_a_link_is_a_heading() -> None:
    dead = []
    for source in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", source.read_text(encoding="utf-8")):
            file = source if not target else source.parent / target
            if "://" not in target and anchor not in anchors(file):
                dead.append(f"{source.relative_to(ROOT)}: {target}#{anchor}")
    assert dead == []


def anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_blocks(file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_and_column_is_documented(name: str) -> None:
    section = page("tables.md").split(f"## {name}\n")[1].split("\n## ")[0]
    assert [column for column in TABLES[name].column_names if f"| `{column}` |" not in section] == []


def test_every_setting_check_and_command_is_documented() -> None:
    assert [name for name in all_settings() if f"`{name}`" not in page("settings.md")] == []
    assert [name for name in [*GATES, *CHECKS] if f"`{name}`" not in page("checks.md")] == []
    assert [name for name in main.commands if f"## dq-assets {name}\n" not in page("commands.md")] == []


@pytest.mark.parametrize(
    ("file", "words"),
    [
        pytest.param("architecture.md", ASSET_TABLES, id="assets"),
        pytest.param(
            "methods.md", [*(f"`{name}`" for name in QUALITY_CHECKS), *(f"`{name}`" for name in GATES)], id="quality checks and gates"
        ),
        pytest.param("inputs.md", [f"`{name}`" for name in STATUSES], id="statuses"),
    ],
)
def test_the_pages_written_by_hand_explain_them_all(file: str, words: list[str]) -> None:
    assert [word for word in words if word not in page(file)] == []


@pytest.mark.parametrize("file", BY_HAND, ids=lambda file: file.name)
def test_settings_commands_and_modules_that_a_page_names_exist(file: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", without_blocks(file.read_text(encoding="utf-8")))
    sections = {name.split(".")[0] for name in all_settings()}
    for span in spans:
        if dotted := re.fullmatch(r"(?:--set )?([a-z]+)\.([a-z_]+)(?:=.*)?", span):
            section, name = dotted.groups()
            assert section not in sections or name == "py" or f"{section}.{name}" in all_settings(), span
        if command := re.match(r"dq-assets ([a-z]+)", span):
            assert command[1] in main.commands, span
        if re.fullmatch(r"[\w/]+\.py", span):
            assert any((folder / span).exists() for folder in (ROOT, ROOT / "dq_assets")), span
