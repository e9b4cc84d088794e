"""Writes the reference pages from the code that they describe: tables, settings, checks, commands.

`python -m docs.generate` writes them; `--check` fails if one is out of date or a link between pages leads nowhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from dq_assets.audit.gates import ADVISORY, GATES
from dq_assets.cli import main as command_line
from dq_assets.schema import TABLES, Column
from dq_assets.settings import Settings, all_settings
from dq_assets.store.integrity import CHECKS, checks_of

HERE = Path(__file__).parent
NOTE = "<!-- Written by `python -m docs.generate`; edit the code instead. -->"


def tables_page() -> str:
    """docs/tables.md."""
    parts = [
        "# Tables",
        NOTE,
        "One schema per dataset in the lake. `dq_assets.read(name, table, version=None)` reads one; scores lie in [0, 1], 0 is worst.",
    ]
    for table in TABLES.values():
        inputs = ", ".join(table.inputs) or "the source"
        storage = {
            "rows": "published by difference",
            "matrix": "replaced whole; kept for the last `store.matrices_kept` audits",
            "blocks": "only grows",
            "ledger": "one row per audit, read at the newest snapshot",
        }[table.storage]
        rows = [f"| `{c.name}` | {c.type} | {'yes' if c.nullable else ''} | {_meaning(c)} |" for c in table.columns]
        parts += [
            f"## {table.name}",
            table.doc,
            f"Key: {', '.join(f'`{k}`' for k in table.key)}. "
            + (f"Computed from {inputs}. " if table.is_asset else "")
            + f"Storage: {storage}.",
            "\n".join(["| column | type | nullable | meaning |", "|---|---|---|---|", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


def _meaning(column: Column) -> str:
    bounds = (
        f" In [{column.low:g}, {column.high:g}]." if column.low is not None and column.high is not None and "In [" not in column.doc else ""
    )
    values = f" One of {', '.join(column.values)}." if column.values and not all(v in column.doc for v in column.values) else ""
    return _cell(column.doc + bounds + values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_page() -> str:
    """docs/settings.md."""
    rows = []
    for name, field in all_settings().items():
        meta = field.metadata
        allowed = ", ".join(meta["choices"]) or (
            f"{meta['low']} to {'any' if meta['high'] is None else meta['high']}" if meta["low"] is not None else ""
        )
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        rows.append(f"| `{name}` | `{default}` | {allowed} | {_cell(meta['doc'])} |")
    used = [f"| {t.name} | {', '.join(t.settings)} |" for t in TABLES.values() if t.settings]
    return (
        "\n\n".join(
            [
                "# Settings",
                NOTE,
                "Give one with `dq-assets audit ... --set section.name=value`, or edit `$DQ_HOME/datasets/<name>.yaml`."
                " Settings that change a table's"
                " content are part of its code version: changing one computes that table and what follows again, and nothing else.",
                "\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows]),
                "## Which settings change which table",
                "\n".join(["| table | sections |", "|---|---|", *used]),
                "## Environment",
                "| variable | meaning |\n|---|---|\n| `DQ_HOME` | Folder that holds everything; `./data` by default. |\n"
                "| `DQ_UI_URL` | Dagster UI that is told of new datasets; `http://127.0.0.1:3000` by default. |",
            ]
        )
        + "\n"
    )


def checks_page() -> str:
    """docs/checks.md."""
    gates = [f"| `{name}` | {'no' if name in ADVISORY else 'yes'} | {_cell(doc)} |" for name, doc in GATES.items()]
    integrity = [
        f"| `{name}` | {_cell(doc)} | {', '.join(t.name for t in TABLES.values() if t.is_asset and name in checks_of(t))} |"
        for name, doc in CHECKS.items()
    ]
    return (
        "\n\n".join(
            [
                "# Checks",
                NOTE,
                "Integrity checks block where they stand: a table that breaks one is not computed with."
                " Gates stand on `curated_dataset`: a bad dataset"
                " still gets its findings, and only `training_set` and `trained_model` are held. A gate that could not run has not passed.",
                "## Gates",
                "\n".join(["| gate | blocks training | what it holds |", "|---|---|---|", *gates]),
                "Limits are settings ([gates](settings.md)). Verdicts are in table [gate_results](tables.md#gate_results);"
                " `dq-assets gate` gives them"
                " to other schedulers as an exit code.",
                "## Integrity",
                "\n".join(["| check | what it holds | tables |", "|---|---|---|", *integrity]),
            ]
        )
        + "\n"
    )


def commands_page() -> str:
    """docs/commands.md."""
    parts = ["# Commands", NOTE]
    for name, command in [("", command_line), *sorted(command_line.commands.items())]:
        title = f"dq-assets {name}".strip()
        context = click.Context(command, info_name=title, max_content_width=110)
        parts += [f"## {title}", f"```text\n{command.get_help(context)}\n```"]
    parts += [
        "## Exit codes",
        "| code | meaning |\n|---|---|\n| 0 | done and fit |\n| 3 | done, a gate is closed |\n| 2 | misused: one line says how |\n"
        "| 1 | failed: one line says what, the trace is in the log file that it names |\n"
        "| 130 | interrupted; the same command goes on where it stopped |",
    ]
    return "\n\n".join(parts) + "\n"


PAGES = {"tables.md": tables_page, "settings.md": settings_page, "checks.md": checks_page, "commands.md": commands_page}


def dead_links() -> list[str]:
    """Relative links of all pages that lead to no file."""
    root = HERE.parent
    pages = [*root.glob("*.md"), *HERE.rglob("*.md")]
    return [
        f"{page.relative_to(root)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("data:") and not (page.parent / target).exists()
    ]


def main() -> int:
    """Write the pages, or with --check say which differ; returns the exit code."""
    assert Settings() == Settings().with_values({})
    if "--check" not in sys.argv:
        for name, page in PAGES.items():
            (HERE / name).write_text(page(), encoding="utf-8")
        return 0
    stale = [name for name, page in PAGES.items() if not (HERE / name).exists() or (HERE / name).read_text(encoding="utf-8") != page()]
    dead = dead_links()
    for name in stale:
        print(f"docs/{name} is out of date. Run python -m docs.generate.")
    for link in dead:
        print(f"dead link in {link}. Mend it.")
    return 1 if stale or dead else 0


if __name__ == "__main__":
    sys.exit(main())
