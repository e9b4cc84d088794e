"""The installed command, as a user or another program calls it: exit codes, output, exports, one-line errors."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from dq_assets.cli import dataset_from, main
from dq_assets.schema import TABLES
from dq_assets.settings import Home
from dq_assets.store import audits
from dq_assets.store.lake import Lake
from dq_assets_tests.conftest import Planted

BIN = Path(sys.executable).parent / "dq-assets"
LENIENT = ("--set", "gates.max_unreadable_share=0.1")


def call(home: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DQ_HOME": str(home), "DQ_UI_URL": "http://127.0.0.1:9"}
    return subprocess.run([str(BIN), *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.fixture(scope="module")
def audited(
    template: Planted, tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A home with one audit of `shapes`, made by the command."""
    home = new_home(tmp_path_factory.mktemp("cli") / "home").root
    return home, call(home, "audit", str(template.root), *LENIENT)


def test_audit_prints_a_summary_and_exits_0(audited: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = audited
    assert done.returncode == 0, done.stderr
    for word in (
        "Audit 1 of shapes",
        "79 in 3 classes",
        "unreadable",
        "label issues",
        "outliers",
        "duplicate groups",
        "gates",
        "dq-assets export",
    ):
        assert word in done.stdout
    assert "Reading images: 79 of 79" in done.stderr
    assert re.search(r"Embedding with (PyTorch|OpenVINO) on the [CG]PU in float32: \w+", done.stderr)


def test_a_second_audit_finds_nothing_to_do(audited: tuple[Path, subprocess.CompletedProcess[str]], template: Planted) -> None:
    home, _ = audited
    again = call(home, "audit", str(template.root), *LENIENT)
    assert again.returncode == 0
    assert "Audit 1 of shapes is unchanged." in again.stderr
    assert "Embedding" not in again.stderr


def test_a_closed_gate_exits_3(pictures: Planted, home: Home) -> None:
    done = call(home.root, "audit", str(pictures.root))
    assert done.returncode == 3
    assert "CLOSED   unreadable_share" in done.stdout
    assert call(home.root, "gate", "--name", "shapes").returncode == 3
    assert call(home.root, "status", "--name", "shapes").returncode == 3


def test_gate_status_and_history_speak_json(audited: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = audited
    gate = json.loads(call(home, "gate", "--name", "shapes", "--json").stdout)
    assert gate["open"] is True
    assert {g["verdict"] for g in gate["gates"]} == {"passed"}
    assert json.loads(call(home, "status", "--name", "shapes", "--json").stdout)["images"] == 79
    history = json.loads(call(home, "history", "--name", "shapes", "--json").stdout)
    assert [h["audit_id"] for h in history] == [1]
    assert history[0]["settings"]["gates"]["max_unreadable_share"] == 0.1


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_export_writes_every_table(audited: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, kind: str) -> None:
    home, _ = audited
    done = call(home, "export", "--name", "shapes", "--out", str(tmp_path / "out"), "--format", kind)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{name}.{kind}" for name in TABLES}
    read = pl.read_parquet if kind == "parquet" else pl.read_csv
    curated, manifest = read(tmp_path / "out" / f"curated_dataset.{kind}"), read(tmp_path / "out" / f"raw_manifest.{kind}")
    assert curated.columns[0] == manifest.columns[0] == "path"
    assert sorted(curated["path"]) == sorted(manifest["path"])
    assert curated["path"].n_unique() == len(curated) == 79


def test_export_writes_image_folders_without_dropped_images(audited: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    home, _ = audited
    done = call(home, "export", "--name", "shapes", "--out", str(tmp_path / "out"), "--format", "imagefolder")
    assert done.returncode == 0, done.stderr
    assert "Exporting images: " in done.stderr
    files = list((tmp_path / "out").rglob("*.*"))
    assert {f.parent.name for f in files} == {"ball", "grid", "stripe"}
    assert 70 < len(files) < 79
    for file in files[:5]:
        with Image.open(file) as image:
            image.load()
    again = call(home, "export", "--name", "shapes", "--out", str(tmp_path / "out"), "--format", "imagefolder")
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_export_writes_a_hugging_face_imagefolder(audited: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    home, _ = audited
    done = call(home, "export", "--name", "shapes", "--out", str(tmp_path / "out"), "--format", "huggingface", "--copy")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/train/metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"file_name", "label"} <= rows[0].keys()
    assert all((tmp_path / "out/train" / row["file_name"]).exists() for row in rows)
    assert {row["label"] for row in rows} == {"ball", "grid", "stripe"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("audit", "no/such/folder"), "Give a folder", id="missing PATH"),
        pytest.param(("audit", ".", "--name", "Bad Name"), "Choose another with --name", id="bad name"),
        pytest.param(("audit", ".", "--set", "neighbors.q=1"), "Unknown setting", id="unknown setting"),
        pytest.param(("audit", ".", "--set", "neighbors.k=many"), "is not a whole number", id="setting of the wrong type"),
        pytest.param(("gate", "--name", "nobody"), "dq-assets audit", id="unknown dataset"),
        pytest.param(("export", "--name", "nobody", "--out", "x"), "dq-assets audit", id="export of an unknown dataset"),
        pytest.param(("audit",), "Missing argument", id="no PATH"),
        pytest.param(("fly",), "No such command", id="unknown command"),
    ],
)
def test_misuse_exits_2_with_one_line_that_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = call(tmp_path / "home", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "datasets").exists()


def test_an_empty_folder_is_an_error_not_an_empty_audit(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = call(tmp_path / "home", "audit", str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "No image was found" in done.stderr


def test_an_unknown_table_or_version_exits_2(audited: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    home, _ = audited
    assert call(home, "export", "--name", "shapes", "--out", str(tmp_path / "x"), "nonsense").returncode == 2
    assert all(call(home, command, "--name", "shapes", "--version", "9").returncode == 2 for command in ("gate", "status", "history"))


def test_a_failed_audit_exits_1_and_names_its_log(pictures: Planted, tmp_path: Path) -> None:
    done = call(tmp_path / "home", "audit", str(pictures.root), "--set", "encoder.model=no_such_network")
    assert done.returncode == 1
    error = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(error) == 1
    assert "no_such_network" in error[0]
    log = Path(error[0].split("The trace is in ")[1].rstrip("."))
    assert "UserError" in log.read_text()


def test_ctrl_c_and_the_same_command_again_go_on_where_it_stopped(pictures: Planted, home: Home, tmp_path: Path) -> None:
    environment = {**os.environ, "DQ_HOME": str(home.root), "DQ_UI_URL": "http://127.0.0.1:9"}
    arguments = [str(BIN), "audit", str(pictures.root), *LENIENT, "--set", "encoder.block_size=16", "--set", "encoder.batch_size=4"]
    run = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    vectors = tmp_path / "home/lake/data/shapes/embeddings"
    end = time.monotonic() + 120
    # A second file is being written only after the first block was committed.
    while len(list(vectors.glob("*.parquet"))) < 2 and time.monotonic() < end and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert "Run the same command again" in stderr
    again = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "Reading images" not in again.stderr
    embedded = re.search(r"Embedding: (\d+) of \d+ in", again.stderr)
    assert embedded is not None
    assert 0 < int(embedded[1]) <= 76 - 16


def test_labels_that_are_html_sql_or_paths_stay_text(home: Home, tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        label = ["<script>alert(1)</script>", "'; drop table raw_manifest; --", "../../up"][number % 3]
        Image.effect_noise((64, 64), 20 + number).convert("RGB").save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", label))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    done = call(home.root, "audit", str(tmp_path / "list.csv"), "--name", "hostile", "--set", "gates.min_class_images=1")
    assert done.returncode in (0, 3), done.stderr
    out = tmp_path / "out"
    assert call(home.root, "export", "--name", "hostile", "--out", str(out), "--format", "imagefolder").returncode == 0
    assert {p.resolve().is_relative_to(out.resolve()) for p in out.rglob("*")} == {True}
    assert len(list(out.rglob("*.png"))) == 12


def test_every_command_and_option_has_help() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        assert all(getattr(p, "help", None) or p.param_type_name == "argument" for p in command.params), name


def test_options_that_are_not_given_stay_as_registered(tmp_path: Path) -> None:
    home = Home(tmp_path)
    splits = tmp_path / "splits.csv"
    home.register(dataset_from(home, "photos", "shop", ("neighbors.k=7", "folds.n_folds=4"), {"splits": splits, "labels": None}))
    again = dataset_from(home, "photos", "shop", ("neighbors.k=9",), {})
    assert again.splits == str(splits)
    assert again.settings.neighbors.k == 9
    assert again.settings.folds.n_folds == 4


def test_a_name_that_moves_to_another_path_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path)
    home.register(dataset_from(home, "photos", "shop", (), {}))
    assert dataset_from(home, "elsewhere", "shop", (), {}).path.endswith("elsewhere")
    assert "To keep both, give another --name" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all room of a disk."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
    return ballast


def test_a_full_disk_is_one_line_the_lake_stays_at_its_last_commit_and_the_next_run_completes(
    audited: tuple[Path, subprocess.CompletedProcess[str]], pictures: Planted, small_disk: Path
) -> None:
    home = small_disk / "home"
    shutil.copytree(audited[0], home)
    arguments = ("audit", str(pictures.root), "--name", "shapes", *LENIENT)
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (90, 90, 3), np.uint8)
        Image.fromarray(noise).save(pictures.root / f"ball/new{number}.png")
    ballast = fill(small_disk)
    failed = call(home, *arguments)
    told = [line for line in failed.stderr.splitlines() if not line.startswith(("Reading images", "Embedding", "shapes was registered"))]
    assert failed.returncode == 1, failed.stderr
    assert len(told) == 1, failed.stderr
    assert told[0].startswith(f"Error: No space left under {home}; the lake is at its last commit. Free some space and run")
    ballast.unlink()
    with Lake.open(Home(home)) as lake:
        assert audits.history(lake, "shapes")["audit_id"].to_list() == [1]
        assert len(audits.read(lake, "shapes", "raw_manifest", 1)) == 79
    done = call(home, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Audit 2 of shapes" in done.stdout
    assert "99 in 3 classes" in done.stdout


def test_a_home_that_cannot_be_written_is_one_line_that_says_what_to_do(pictures: Planted, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call(tmp_path / "file" / "home", "audit", str(pictures.root), "--name", "shapes")
    assert done.returncode == 2
    assert done.stderr == f"Error: Cannot write to {tmp_path}/file/home (Not a directory). Set DQ_HOME to a folder that you can write to.\n"
