"""The command line. It parses, calls one function of a layer below, prints, and turns the answer into an exit code.

Exit codes: 0 done and fit; 3 done, a gate is closed; 2 misused; 1 failed, with the trace in a log file that is named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, cast

import click

from dq_assets import __version__
from dq_assets.settings import NAME_PATTERN, Dataset, Home, UserError

OK, FAILED, MISUSED, GATE_CLOSED = 0, 1, 2, 3

LEAST_FREE = 64 << 10
"""A failure on a disk with fewer free bytes is a full disk's."""

FILE = click.Path(dir_okay=False, path_type=Path)
name_option = click.option("--name", required=True, help="The dataset's name.")
version_option = click.option("--version", type=click.IntRange(min=1), help="An audit_id; the latest complete audit by default.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def reporting_errors(command: Callable[..., int | None]) -> Callable[..., None]:
    """Every outcome as an exit code, every error as one line."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs) or OK
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            code = MISUSED
        except KeyboardInterrupt:
            click.echo("Interrupted. Run the same command again to go on where it stopped.", err=True)
            code = 130
        except click.ClickException:
            raise
        except Exception as error:  # the last line of defence: say what failed and where the trace is
            _tell_failure(Home.from_environment(), f"{type(error).__name__}: {' '.join(str(error).split())[:300]}.", traceback.format_exc())
            code = FAILED
        sys.exit(code)

    return run


def _tell_failure(home: Home, what: str, trace: str) -> None:
    """One line that says what failed, and where the trace is; of a full disk, whoever noticed it first, what to do."""
    if _is_full(home, what + trace):
        what = f"No space left under {home.root}; the lake is at its last commit. Free some space and run the same command again."
    log = write_log(home, trace)
    click.echo(f"Error: {what}" + (f" The trace is in {log}." if log else ""), err=True)


def _is_full(home: Home, trace: str) -> bool:
    """Whether a failure is that of a full disk: by its words, or, since SQLite only says "disk I/O error", by asking the disk."""
    words = ("No space left on device", "No space left under", "database or disk is full", "Disk quota exceeded")
    if any(word in trace for word in words):
        return True
    folder = next((f for f in (home.root, *home.root.parents) if f.is_dir()), Path("/"))
    return shutil.disk_usage(folder).free < LEAST_FREE


def write_log(home: Home, text: str) -> Path | None:
    """Keep a trace; returns its file, which is in the folder for temporary files if home takes none, or None if that does not either."""
    for folder in (home.logs, Path(tempfile.gettempdir())):
        file = folder / f"dq-assets-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                file.unlink()
        else:
            return file
    return None


class _WithoutEventErrors:
    """Standard error without Dagster's remark, of several lines, on every event that a full disk does not take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Exception while writing logger call to event log") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dq-assets")
def main() -> None:
    """Find and fix label issues, outliers and near-duplicates in image datasets.

    Everything is kept under $DQ_HOME (./data by default).
    """


@main.command()
@click.argument("path")
@click.option("--name", help="The dataset's name ([a-z0-9][a-z0-9_-]*); made from PATH by default.")
@click.option("--labels", type=FILE, help="CSV or Parquet with path, label; replaces the labels of PATH.")
@click.option("--splits", type=FILE, help="CSV or Parquet with path, split; replaces the splits of PATH.")
@click.option("--groups", type=FILE, help="CSV or Parquet with path, group; images of a group never straddle folds.")
@click.option(
    "--pred-probs",
    type=FILE,
    help="Your own out-of-sample probabilities (.npy or .parquet), in place of ours. See docs/inputs.md.",
)
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting, such as encoder.model=resnet50; repeatable. See docs/settings.md.",
)
@reporting_errors
def audit(path: str, name: str | None, values: tuple[str, ...], **files: Path | None) -> int:
    """Audit PATH: a folder of class folders, or a CSV / Parquet manifest (path, label[, split, group]).

    Also an s3://, gs:// or az:// address of either, an https:// address of a manifest, a .zip or .tar archive, and a Hugging Face
    dataset on disk. See docs/inputs.md.

    The dataset is registered under its name, with its settings; from then on the Dagster UI shows, schedules and watches it.
    Run it again to re-audit what changed; options that are not given stay as they are registered. An interrupted audit goes on
    where it stopped.
    """
    home = Home.from_environment()
    dataset = dataset_from(home, path, name, values, files)
    return audit_and_print(dataset, home)


def dataset_from(home: Home, path: str, name: str | None, values: tuple[str, ...], files: dict[str, Path | None]) -> Dataset:
    """The dataset that the arguments describe, on top of its registration if it has one. files: labels, splits ... of `Dataset`.

    Raises UserError for a name or a setting that is not valid.
    """
    from dq_assets.sources.addresses import refuse_password

    refuse_password(path)
    pairs = dict(value.partition("=")[::2] for value in values)
    absolute = path if "://" in path else str(Path(path).expanduser().absolute())
    chosen = name or _name_of(absolute)
    before = home.dataset(chosen) if home.is_registered(chosen) else Dataset(chosen, absolute)
    if before.path != absolute:
        click.echo(f"{chosen} was registered for {before.path} and now is {absolute}. To keep both, give another --name.", err=True)
    given = {role: str(file.expanduser().absolute()) for role, file in files.items() if file is not None}
    return dataclasses.replace(before, path=absolute, settings=before.settings.with_values(pairs), **given)


def _name_of(path: str) -> str:
    """`My Photos (2)` becomes my-photos-2."""
    made = re.sub(r"[^a-z0-9_]+", "-", Path(path).stem.lower()).strip("-_")
    if not NAME_PATTERN.fullmatch(made):
        raise UserError(f"No name can be made from {path!r}. Give one with --name.")
    return made


def audit_and_print(dataset: Dataset, home: Home) -> int:
    """Register, audit, print the summary; returns the exit code."""
    from dq_assets.audit.encoder import encoder_id
    from dq_assets.audit.encoder_choice import AUTO, candidates
    from dq_assets.audit.engine import require_backend
    from dq_assets.audit.pred_probs import check_file
    from dq_assets.definitions import run_audit
    from dq_assets.report.progress import TerminalReporter
    from dq_assets.report.summary import render, summarize
    from dq_assets.sources.listing import list_source
    from dq_assets.store.lake import Lake
    from dq_assets.ui import reload_ui

    list_source(dataset)  # a wrong PATH is told before anything is registered
    if dataset.pred_probs is not None:
        check_file(Path(dataset.pred_probs))
    if dataset.settings.encoder.model == AUTO:
        candidates(dataset.settings.encoder.candidates)
    else:
        encoder_id(dataset.settings.encoder)
    require_backend(dataset.settings.encoder)
    home.register(dataset)
    started = time.monotonic()
    with contextlib.redirect_stderr(cast(TextIO, _WithoutEventErrors(sys.stderr))):
        outcome = run_audit(dataset, home, TerminalReporter())
    if outcome.failure is not None:
        _tell_failure(home, outcome.failure, outcome.trace or outcome.failure)
        return FAILED
    with Lake.open(home, dataset.settings.store) as lake:
        summary = summarize(lake, dataset.name)
    click.echo(render(summary))
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. {reload_ui()}")
    return GATE_CLOSED if summary.closed else OK


@main.command()
@click.argument("source", default="openmoji", type=click.Choice(("openmoji", "digits", "fashion-mnist")))
@reporting_errors
def demo(source: str) -> int:
    """Audit a real dataset that needs no download: as it is, and again with known issues planted into a copy.

    Prints how many of the planted issues were found and how many findings were false. Kept under $DQ_HOME/demo.
    """
    from dq_assets.demo.planting import plant
    from dq_assets.demo.scoreboard import render, scoreboard
    from dq_assets.demo.sources import build
    from dq_assets.report.progress import TerminalReporter, as_total

    home = Home.from_environment()
    folder = home.root / "demo"
    with contextlib.ExitStack() as bars:
        built = build(source, folder / source, _bar_of_unknown_length(TerminalReporter(), f"Building {source}", bars, as_total))
    click.echo(f"{built.n_images:,} images in {built.path}\n{built.credit}\n")
    as_it_is = Dataset(source, str(built.path))
    failed = audit_and_print(as_it_is, home) == FAILED
    click.echo("\nPlanting known issues into a copy.")
    planted = plant(built.path, folder / f"{source}-planted")
    click.echo("  " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in planted.counts.items()) + "\n")
    copy = Dataset(f"{source}-planted", str(planted.path), splits=str(planted.splits_csv))
    failed |= audit_and_print(copy, home) == FAILED
    if failed:
        return FAILED
    found, baseline = _findings(home, copy), _findings(home, as_it_is)
    click.echo(f"\nScoreboard: what was planted into {copy.name}, and what the audit made of it\n")
    click.echo(render(scoreboard(planted.truth, **found, baseline=baseline)))
    return OK


def _bar_of_unknown_length(reporter: Any, label: str, bars: contextlib.ExitStack, as_total: Any) -> Callable[[int, int], None]:
    """A callback (done, total) that opens the bar when the total is known."""
    opened: list[Callable[[int], None]] = []

    def report(done: int, total: int) -> None:
        if not opened:
            opened.append(as_total(bars.enter_context(reporter.bar(label, total))))
        opened[0](done)

    return report


def _findings(home: Home, dataset: Dataset) -> dict[str, Any]:
    """The tables that a scoreboard compares, with the path of each image first."""
    from dq_assets.store import audits
    from dq_assets.store.lake import Lake

    with Lake.open(home, dataset.settings.store) as lake:
        paths = audits.read(lake, dataset.name, "raw_manifest").select("path", "image_id")
        tables = {"label_issues": "label_issues", "near_dups": "near_dups", "outliers": "outliers", "curated": "curated_dataset"}
        return {argument: paths.join(audits.read(lake, dataset.name, table), on="image_id") for argument, table in tables.items()}


@main.command()
@name_option
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(("parquet", "csv", "imagefolder", "huggingface")),
    default="parquet",
    show_default=True,
    help="Tables as parquet or csv, or images as folders per class or as a Hugging Face imagefolder with metadata.csv.",
)
@click.option("--copy/--link", "copy", default=False, help="Copy the image files, or link them where the disk allows it (the default).")
@version_option
@click.argument("tables", nargs=-1, metavar="[TABLE ...]")
@reporting_errors
def export(name: str, out: Path, file_format: str, copy: bool, version: int | None, tables: tuple[str, ...]) -> int:
    """Write tables (parquet, csv) or the curated images (imagefolder, huggingface) of an audit to a folder.

    Without TABLE every table is written. The image formats leave out what curation dropped.
    """
    from dq_assets.report.progress import TerminalReporter, as_total
    from dq_assets.sources.reading import Reader
    from dq_assets.store.audits import audit_row
    from dq_assets.store.export import export_images, export_tables
    from dq_assets.store.lake import Lake

    home = Home.from_environment()
    dataset = home.dataset(name)
    with Lake.open(home, dataset.settings.store) as lake:
        audit_id = audit_row(lake, name, version)["audit_id"]
        if file_format in ("parquet", "csv"):
            counts = export_tables(lake, name, out, file_format, tables, audit_id)
        else:
            if tables:
                raise UserError(f"--format {file_format} writes images and takes no TABLE. Leave {', '.join(tables)} out.")
            with contextlib.ExitStack() as bars:
                counts = export_images(
                    lake,
                    name,
                    out,
                    file_format,
                    audit_id,
                    link=not copy,
                    include_review=dataset.settings.training.include_review,
                    progress=_bar_of_unknown_length(TerminalReporter(), "Exporting images", bars, as_total),
                    reader=Reader.of(dataset),
                )
    for what, n in counts.items():
        click.echo(f"{what:<28} {n:>10,}")
    click.echo(f"Audit {audit_id} of {name} is in {out}.")
    return OK


@main.command()
@name_option
@version_option
@json_option
@reporting_errors
def history(name: str, version: int | None, as_json: bool) -> int:
    """List the complete audits of a dataset, or one of them."""
    from dq_assets.store import audits
    from dq_assets.store.lake import Lake

    home = Home.from_environment()
    dataset = home.dataset(name)
    with Lake.open(home, dataset.settings.store) as lake:
        found = audits.history(lake, name).to_dicts() if lake.has_dataset(name) else []
        if version is not None and lake.has_dataset(name):
            found = [audits.audit_row(lake, name, version)]
        for row in found:
            row["closed_gates"] = audits.closed_gates(audits.gate_results(lake, name, row["audit_id"]))["check_name"].to_list()
    if as_json:
        entries = [{**row, "settings": json.loads(row["settings"]), "digests": json.loads(row["digests"])} for row in found]
        click.echo(json.dumps(entries, default=str, indent=2))
        return OK
    for row in found:
        gates = f"closed: {', '.join(row['closed_gates'])}" if row["closed_gates"] else "gates open"
        click.echo(f"{row['audit_id']:>5}  {row['finished']:%Y-%m-%d %H:%M:%S %Z}  {gates}  {row['tag'] or ''}".rstrip())
    if not found:
        click.echo(f"No audit of {name} is complete yet.")
    return OK


@main.command()
@name_option
@version_option
@json_option
@reporting_errors
def status(name: str, version: int | None, as_json: bool) -> int:
    """Print the summary of an audit. Exit code 3 if a gate is closed."""
    from dataclasses import asdict

    from dq_assets.report.summary import render

    summary = _summary(name, version)
    click.echo(json.dumps(asdict(summary), default=str, indent=2) if as_json else render(summary))
    return GATE_CLOSED if summary.closed else OK


@main.command()
@name_option
@version_option
@json_option
@reporting_errors
def gate(name: str, version: int | None, as_json: bool) -> int:
    """May this data be trained on? Exit code 0 if every gate is open, 3 if one is closed.

    For schedulers other than Dagster: put it before the training command.
    """
    summary = _summary(name, version)
    if as_json:
        entry = {"dataset": name, "audit_id": summary.audit_id, "open": not summary.closed, "gates": summary.gates}
        click.echo(json.dumps(entry, default=str, indent=2))
    else:
        for verdict in summary.gates:
            click.echo(f"{verdict['verdict']:<8} {verdict['check_name']:<20} {verdict['reason']}")
        click.echo(f"Audit {summary.audit_id} of {name}: {'closed' if summary.closed else 'open'}.")
    return GATE_CLOSED if summary.closed else OK


def _summary(name: str, version: int | None) -> Any:
    from dq_assets.report.summary import summarize
    from dq_assets.store.lake import Lake

    home = Home.from_environment()
    dataset = home.dataset(name)
    with Lake.open(home, dataset.settings.store) as lake:
        if not lake.has_dataset(name):
            raise UserError(f"No audit of {name} is complete yet. Run `dq-assets audit {dataset.path} --name {name}`.")
        return summarize(lake, name, version)


if __name__ == "__main__":
    main()
