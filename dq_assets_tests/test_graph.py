"""The whole graph in process: from files with planted findings to a trained model, in an ephemeral $DQ_HOME."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from PIL import Image

from dq_assets.definitions import AuditRun, build_defs, instance_of, run_audit
from dq_assets.defs.automation import job_name
from dq_assets.report.markdown import escaped
from dq_assets.report.pictures import DRAWN, MOST_BYTES
from dq_assets.report.progress import LogReporter
from dq_assets.report.summary import summarize
from dq_assets.schema import ASSET_TABLES, TABLES
from dq_assets.settings import Dataset, Home, Settings
from dq_assets.store import audits
from dq_assets.store.integrity import checks_of
from dq_assets.store.lake import Lake
from dq_assets.store.tables import versions
from dq_assets_tests.conftest import CLASSES, Planted, draw

LENIENT = {"gates.max_unreadable_share": "0.1"}
"""One of 79 files is broken, which is above the default limit."""


def dataset(pictures: Planted, name: str = "test-shapes", **settings: str) -> Dataset:
    values = {key.replace("__", "."): value for key, value in settings.items()}
    return Dataset(name, str(pictures.root), settings=Settings().with_values(LENIENT | values))


def run(one: Dataset, home: Home) -> AuditRun:
    return run_audit(one, home, LogReporter(lambda line: None))


def table(home: Home, name: str, dataset: str = "test-shapes", version: int | None = None) -> pl.DataFrame:
    with Lake.open(home) as lake:
        found = audits.read(lake, dataset, name, version)
        if "image_id" in found.columns and "path" not in found.columns:
            found = audits.read(lake, dataset, "raw_manifest", version).select("image_id", "path").join(found, on="image_id")
        return found


@pytest.fixture(scope="module")
def audited(
    template: Planted, tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]
) -> tuple[Home, Planted, AuditRun]:
    """One whole audit that several tests read."""
    home = new_home(tmp_path_factory.mktemp("audited") / "home")
    return home, template, run(dataset(template), home)


def test_the_audit_is_complete_and_its_gates_are_open(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, _, outcome = audited
    assert outcome.failure is None
    with Lake.open(home) as lake:
        summary = summarize(lake, "test-shapes")
    assert summary.audit_id == 1
    assert summary.images == 79
    assert summary.unreadable == 1
    assert summary.closed == []


def test_the_broken_file_is_a_row_with_a_reason(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    row = table(home, "raw_manifest").filter(path=planted.broken).row(0, named=True)
    assert row["status"] == "unreadable"
    assert row["reason"]
    assert row["content_sha256"]


def test_the_planted_copies_are_found_with_their_kind(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    groups = {row["path"]: row for row in table(home, "near_dups").iter_rows(named=True)}
    for pair, kind in ((planted.exact, "exact"), (planted.near, "near"), (planted.cross_label, "exact")):
        first, second = (groups[path] for path in pair)
        assert first["group_id"] == second["group_id"] is not None
        assert first["kind"] == second["kind"] == kind
        assert first["is_keeper"] != second["is_keeper"]
    assert groups[planted.cross_label[0]]["label_conflict"]
    assert not groups[planted.exact[0]]["label_conflict"]


def test_the_wrong_label_of_a_conflict_is_named(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    groups = {row["path"]: row for row in table(home, "near_dups").iter_rows(named=True)}
    right, wrong = planted.cross_label
    assert groups[wrong]["is_wrong_label"]
    assert not groups[right]["is_wrong_label"]
    assert groups[wrong]["resolved_label"] == "stripe"


def test_the_flipped_labels_have_the_lowest_scores(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    issues = table(home, "label_issues").sort("label_score")
    assert set(planted.flipped) <= set(issues["path"].head(6))
    flagged = issues.filter(pl.col("path").is_in(planted.flipped))
    assert flagged["is_label_issue"].all()
    assert {p.split("/9")[1].removesuffix(".png") for p in flagged["path"]} == set(flagged["suggested_label"])


def test_each_asset_shows_its_pictures_within_the_limit(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    shown = {}
    with instance_of(home) as instance:
        for name in ASSET_TABLES:
            event = instance.get_latest_materialization_event(dg.AssetKey(["test-shapes", name]))
            assert event is not None
            assert event.asset_materialization is not None
            entries = event.asset_materialization.metadata
            shown[name] = {key: str(value.value) for key, value in entries.items() if isinstance(value, dg.MarkdownMetadataValue)}
    assert {name for name, entries in shown.items() if entries} == set(DRAWN) - {
        "image_properties",
        "embeddings",
    }  # no check flags these shapes; no encoder was chosen
    assert all(sum(len(text.encode()) for text in entries.values()) <= MOST_BYTES for entries in shown.values())
    pictures = shown["near_dups"]["duplicate groups"] + shown["label_issues"]["worst label issues"]
    for path in (*planted.exact, *planted.cross_label, planted.flipped[0]):
        assert escaped(path.split("/")[-1]) in pictures


def test_every_image_is_curated_exactly_once(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    curated = table(home, "curated_dataset")
    assert sorted(curated["path"]) == sorted(table(home, "raw_manifest")["path"])
    actions = dict(curated.select("path", "action").iter_rows())
    assert actions[planted.broken] == "drop"
    assert "drop" in {actions[p] for p in planted.exact}
    assert all(curated["reason"].str.len_chars() > 0)


def test_copies_share_a_fold_and_every_row_sums_to_one(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    folds = dict(table(home, "folds").select("path", "fold").iter_rows())
    for pair in (planted.exact, planted.near, planted.cross_label):
        assert len({folds[path] for path in pair}) == 1
    probs = table(home, "oof_probs")
    assert probs["probs"].list.len().unique().to_list() == [len(CLASSES)]
    assert (probs["probs"].list.sum() - 1).abs().max() < 1e-3  # type: ignore[operator]


def test_a_model_was_trained_on_raw_and_on_curated_labels(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, _, _ = audited
    row = table(home, "trained_model").row(0, named=True)
    assert row["held_out"] == "fold 0"
    assert row["n_train_curated"] < row["n_train_raw"]
    assert row["accuracy_raw"] > 0.5
    assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert set(table(home, "training_set")["split"]) == {"train", "test"}


def test_every_asset_shows_rows_columns_version_and_owner(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, planted, _ = audited
    graph = build_defs(home, [dataset(planted)]).resolve_asset_graph()
    with instance_of(home) as instance:
        for name in ASSET_TABLES:
            key = dg.AssetKey(["test-shapes", name])
            node = graph.get(key)
            assert node.description
            assert node.owners == ["team:data-quality"]
            assert node.kinds
            assert node.group_name == "test_shapes"
            assert node.code_version
            schema = node.metadata["dagster/column_schema"]
            assert [c.name for c in schema.columns] == list(TABLES[name].column_names)
            event = instance.get_latest_materialization_event(key)
            assert event is not None
            assert event.asset_materialization is not None
            assert event.asset_materialization.metadata["dagster/row_count"].value is not None
            assert len(event.asset_materialization.tags["dagster/data_version"]) == 64


def test_every_integrity_check_ran_and_passed(audited: tuple[Home, Planted, AuditRun]) -> None:
    home, _, _ = audited
    with instance_of(home) as instance:
        for name in audits.AUDITED_TABLES:
            for check in checks_of(TABLES[name]):
                key = dg.AssetCheckKey(dg.AssetKey(["test-shapes", name]), check)
                record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
                assert record.status.value == "SUCCEEDED", (name, check)


def materializations(home: Home, run_id: str) -> dict[str, dict[str, object]]:
    """Metadata of every table that a run materialized."""
    with instance_of(home) as instance:
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        found = [e.dagster_event.step_materialization_data.materialization for e in events if e.dagster_event]
        return {m.asset_key.path[-1]: {k: v.value for k, v in m.metadata.items()} for m in found}


def test_an_unchanged_audit_reads_no_image_and_computes_nothing(pictures: Planted, home: Home) -> None:
    assert run(dataset(pictures), home).failure is None
    for file in pictures.root.rglob("*.png"):  # any look at the bytes would fail from here on
        info = file.stat()
        file.write_bytes(b"x" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    again = run(dataset(pictures), home)
    assert again.failure is None
    shown = materializations(home, again.run_id)
    assert [name for name, metadata in shown.items() if metadata["computed"]] == ["raw_manifest", "image_properties"]
    assert len(shown) == len(ASSET_TABLES)
    with Lake.open(home) as lake:
        assert audits.history(lake, "test-shapes")["audit_id"].to_list() == [1]


def test_an_added_a_changed_and_a_removed_file_make_a_new_audit_and_the_old_one_stays(pictures: Planted, home: Home) -> None:
    assert run(dataset(pictures), home).failure is None
    ids = dict(table(home, "raw_manifest").select("path", "image_id").iter_rows())
    shutil.copy(pictures.root / "grid/001.png", pictures.root / "grid/new.png")
    Image.new("RGB", (90, 90), "red").save(pictures.root / "ball/002.png")
    (pictures.root / "stripe/003.png").unlink()
    outcome = run(dataset(pictures), home)
    assert outcome.failure is None
    shown = materializations(home, outcome.run_id)
    assert shown["embeddings"]["embedded now"] == 1  # the changed one; the added one is a copy
    now = dict(table(home, "raw_manifest").select("path", "image_id").iter_rows())
    assert "stripe/003.png" not in now
    assert now["grid/new.png"] == max(ids.values()) + 1
    assert all(now[path] == image_id for path, image_id in ids.items() if path in now)
    assert "stripe/003.png" in table(home, "raw_manifest", version=1)["path"]
    folds = [dict(table(home, "folds", version=v).select("image_id", "fold").iter_rows()) for v in (1, 2)]
    assert all(folds[0][i] == folds[1][i] for i in folds[0].keys() & folds[1].keys())


def test_a_removed_file_that_comes_back_has_its_old_id(pictures: Planted, home: Home) -> None:
    assert run(dataset(pictures), home).failure is None
    before = dict(table(home, "raw_manifest").select("path", "image_id").iter_rows())
    file = pictures.root / "grid/004.png"
    data = file.read_bytes()
    file.unlink()
    assert run(dataset(pictures), home).failure is None
    file.write_bytes(data)
    assert run(dataset(pictures), home).failure is None
    assert dict(table(home, "raw_manifest").select("path", "image_id").iter_rows()) == before


def test_a_closed_gate_holds_training_in_the_run_in_later_runs_and_opens_again(pictures: Planted, home: Home) -> None:
    strict = dataset(pictures, gates__max_unreadable_share="0.001")
    outcome = run(strict, home)
    assert outcome.failure is None  # the audit itself is complete
    shown = materializations(home, outcome.run_id)
    assert "curated_dataset" in shown
    assert "training_set" not in shown
    assert "trained_model" not in shown
    with Lake.open(home) as lake:
        assert audits.closed_gates(audits.gate_results(lake, "test-shapes"))["check_name"].to_list() == ["unreadable_share"]
    # A later run that asks for the training set alone is refused by the asset itself.
    with instance_of(home) as instance:
        later = dg.materialize(
            build_defs(home, [strict]).assets or [],
            instance=instance,
            selection=[dg.AssetKey(["test-shapes", "training_set"])],
            resources=dict(build_defs(home, [strict]).resources or {}),
            raise_on_error=False,
        )
        assert not later.success
        assert "unreadable_share" in str(later.all_events)
    (pictures.root / pictures.broken).unlink()
    assert "trained_model" in materializations(home, run(strict, home).run_id)


def test_leakage_over_splits_is_mended_by_curation(pictures: Planted, home: Home, tmp_path: Path) -> None:
    files = sorted(p.relative_to(pictures.root).as_posix() for p in pictures.root.rglob("*.png"))
    test = {pictures.exact[0], pictures.near[0], *files[::5]} - {pictures.exact[1]}
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\n" + "".join(f"{p},{'test' if p in test else 'train'}\n" for p in files))
    one = Dataset("test-shapes", str(pictures.root), splits=str(splits), settings=Settings().with_values(LENIENT))
    assert run(one, home).failure is None
    near_dups = table(home, "near_dups").filter("crosses_split")
    assert set(pictures.exact) <= set(near_dups["path"])
    curated = {row["path"]: row for row in table(home, "curated_dataset").iter_rows(named=True)}
    assert curated[pictures.exact[0]]["action"] != "drop"
    assert curated[pictures.exact[1]]["action"] == "drop"
    assert "leaks" in curated[pictures.exact[1]]["reason"]
    assert table(home, "trained_model")["held_out"].to_list() == ["test split"]


def test_a_file_that_changes_between_scan_and_embedding_stops_the_audit_and_a_second_run_completes_it(
    pictures: Planted, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dq_assets.defs import assets

    real = assets.STAGES["embeddings"]

    def late(session):  # type: ignore[no-untyped-def]
        Image.new("RGB", (90, 90), "blue").save(pictures.root / "ball/005.png")
        return real(session)

    monkeypatch.setitem(assets.STAGES, "embeddings", late)
    outcome = run(dataset(pictures), home)
    assert outcome.failure is not None
    assert "Run the audit again" in outcome.failure
    with Lake.open(home) as lake:
        assert audits.history(lake, "test-shapes").is_empty()
    monkeypatch.undo()
    again = run(dataset(pictures), home)
    assert again.failure is None
    assert materializations(home, again.run_id)["embeddings"]["embedded now"] == 1


@pytest.mark.parametrize("unlabelled", ["no label at all", "a single class"])
def test_data_without_labels_to_compare_gets_its_other_findings_and_a_closed_gate(pictures: Planted, home: Home, unlabelled: str) -> None:
    root = pictures.root
    if unlabelled == "no label at all":
        for number, file in enumerate(sorted(root.rglob("*.*"))):
            file.rename(root / f"{number}{file.suffix}")
    else:
        shutil.rmtree(root / "ball")
        shutil.rmtree(root / "stripe")
    outcome = run(dataset(pictures), home)
    assert outcome.failure is None
    with Lake.open(home) as lake:
        summary = summarize(lake, "test-shapes")
    assert summary.noise_rate is None
    assert {"noise_estimate"} <= {g["check_name"] for g in summary.closed}
    assert summary.duplicate_groups >= 1
    assert table(home, "label_issues")["is_label_issue"].null_count() == summary.images - summary.unreadable


def hostile(root: Path) -> dict[bytes, str]:
    """A folder in which whatever can go wrong does; the status that each listed file has to get, by its path."""
    rng = np.random.default_rng(5)
    fine = [b"ball/%d.png" % n for n in range(6)] + [b"stripe/%d.png" % n for n in range(6)]
    fine += [b"single/one.png", b"ball/a b.png", b"ball/quo'te\".png", b"ball/new\nline.png", b"ball/\xff\xfe.png"]
    fine += [b"stripe/<script>alert(1)<.png", b"stripe/'; drop table raw_manifest; --.png", b"stripe/x..%2f..%2fetc.png"]
    for name in fine:
        os.makedirs(os.path.dirname(os.fsencode(root) + b"/" + name), exist_ok=True)
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            draw("ball" if name.startswith(b"ball") else "stripe", rng).save(file, "PNG")
    whole = (root / "ball/0.png").read_bytes()
    Image.new("RGB", (1, 1), "red").save(root / "ball/pixel.png")
    Image.new("RGB", (20_000, 10), "blue").save(root / "ball/strip.png")
    Image.new("RGB", (500, 500), "teal").save(root / "ball/large.bmp")
    bad = {
        "zero.jpg": b"",
        "page.jpg": b"<html>404</html>",
        "lfs.jpg": b"version https://git-lfs.github.com/spec/v1\n",
        "cut.png": whole[:900],
        "rotten.png": whole[:400] + bytes(byte ^ 0x55 for byte in whole[400:]),
        "crc.png": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
    }
    for name, data in bad.items():
        (root / "stripe" / name).write_bytes(data)
    (root / "ball/wrong.jpg").write_bytes(whole)
    (root / "empty").mkdir()
    for name in (".DS_Store", "Thumbs.db", ".hidden.png"):
        (root / "ball" / name).write_bytes(whole)
    os.mkfifo(root / "ball/pipe.jpg")
    (root / "ball/loop").symlink_to(root)
    (root / "ball/out.png").symlink_to("/etc/hostname")
    statuses = dict.fromkeys(fine, "ok") | {b"ball/pixel.png": "ok", b"ball/strip.png": "ok", b"ball/wrong.jpg": "ok"}
    statuses |= {b"ball/large.bmp": "too_large", b"ball/pipe.jpg": "not_regular"}
    return statuses | {b"stripe/" + name.encode(): "unreadable" for name in bad}


def test_a_folder_in_which_everything_is_wrong_gets_a_whole_audit_and_every_file_is_accounted_for(home: Home, tmp_path: Path) -> None:
    root = tmp_path / "hostile"
    expected = hostile(root)
    strict = Settings().with_values({"images.max_pixels": "200001", "folds.min_components": "3"})  # large.bmp has more
    outcome = run(Dataset("hostile", str(root), settings=strict), home)
    assert outcome.failure is None, outcome.trace
    manifest = table(home, "raw_manifest", "hostile")
    shown = {name.decode("utf-8", "backslashreplace"): status for name, status in expected.items()}
    assert dict(manifest.select("path", "status").iter_rows()) == shown
    assert manifest.filter(pl.col("status") != "ok")["reason"].null_count() == 0
    assert manifest.filter(path="ball/wrong.jpg")["reason"].to_list() == ["bytes are PNG, suffix is .jpg"]
    curated = table(home, "curated_dataset", "hostile")
    assert sorted(curated["path"]) == sorted(shown)
    assert set(curated.filter(pl.col("path").is_in([p for p, s in shown.items() if s != "ok"]))["action"]) == {"drop"}
    metrics = materializations(home, outcome.run_id)["raw_manifest"]
    assert (metrics["skipped: hidden"], metrics["skipped: links not followed"], metrics["skipped: folders without images"]) == (3, 2, 1)
    with Lake.open(home) as lake:
        assert "unreadable_share" in {gate["check_name"] for gate in summarize(lake, "hostile").closed}


def test_a_folder_of_one_picture_over_and_over_gets_a_whole_audit(home: Home, tmp_path: Path) -> None:
    for label in ("ball", "stripe"):
        (tmp_path / "same" / label).mkdir(parents=True)
        for number in range(6):
            draw("ball", np.random.default_rng(1)).save(tmp_path / "same" / label / f"{number}.png")
    outcome = run(Dataset("same", str(tmp_path / "same")), home)
    assert outcome.failure is None, outcome.trace
    with Lake.open(home) as lake:
        summary = summarize(lake, "same")
    assert (summary.images, summary.duplicate_groups) == (12, 1)
    groups = table(home, "near_dups", "same")
    assert set(groups["kind"]) == {"exact"}
    assert groups["label_conflict"].all()
    assert groups["is_keeper"].sum() == 1
    curated = table(home, "curated_dataset", "same")
    assert curated["action"].value_counts().filter(action="drop")["count"].to_list() == [11]
    assert table(home, "neighbors", "same")["distances"].list.max().max() == 0


def test_importing_the_definitions_loads_no_heavy_library(home: Home) -> None:
    script = (
        "import sys, dq_assets.definitions; print([m for m in ('torch', 'timm', 'faiss', 'cv2', 'sklearn', 'scipy') if m in sys.modules])"
    )
    environment = {**os.environ, "DQ_HOME": str(home.root)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_two_datasets_stand_side_by_side(template: Planted, home: Home) -> None:
    home.register(dataset(template))
    home.register(dataset(template, name="other"))
    definitions = build_defs(home)
    graph = definitions.resolve_asset_graph()
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"test-shapes", "other"}
    assert definitions.resolve_job_def(job_name(dataset(template))).name == "full_audit__test_shapes"
    assert {s.name for s in definitions.schedules or []} == {"full_audit__test_shapes", "full_audit__other"}
    dg.Definitions.validate_loadable(definitions)


def test_tables_that_do_not_belong_together_are_no_audit(pictures: Planted, home: Home) -> None:
    assert run(dataset(pictures), home).failure is None
    changed = dataset(pictures, labels__flag_above="0.7")
    definitions = build_defs(home, [changed])
    key = dg.AssetKey(["test-shapes", "curated_dataset"])
    with instance_of(home) as instance:
        job = definitions.resolve_job_def(job_name(changed))
        job.execute_in_process(instance=instance, asset_selection=[key], raise_on_error=False)
    with Lake.open(home) as lake:
        assert audits.history(lake, "test-shapes")["audit_id"].to_list() == [1]
        with pytest.raises(audits.GateClosedError, match="changed after audit 1"):
            audits.require_green(lake, "test-shapes", changed.settings, {})
    assert run(changed, home).failure is None
    with Lake.open(home) as lake:
        assert audits.history(lake, "test-shapes")["audit_id"].to_list() == [1, 2]


def test_an_added_file_compares_only_its_own_pairs(pictures: Planted, home: Home) -> None:
    assert run(dataset(pictures), home).failure is None
    with Image.open(pictures.root / "grid/001.png") as image:
        image.resize((140, 140)).save(pictures.root / "grid/new.jpg")
    outcome = run(dataset(pictures), home)
    assert outcome.failure is None
    shown = materializations(home, outcome.run_id)["duplicate_groups"]
    assert 0 < int(str(shown["pairs compared now"])) < int(str(shown["candidate pairs"])) / 4


def test_the_users_probabilities_take_the_place_of_ours_until_their_file_changes(
    audited: tuple[Home, Planted, AuditRun], tmp_path: Path
) -> None:
    first, planted, _ = audited
    home = Home(shutil.copytree(first.root, tmp_path / "home"))
    labelled = table(home, "label_issues").select("path", "given_label")
    sure = labelled.with_columns(pl.when(pl.col("given_label") == kind).then(0.98).otherwise(0.01).alias(kind) for kind in CLASSES)
    sure.write_parquet(tmp_path / "probs.parquet")
    own = dataclasses.replace(dataset(planted), pred_probs=str(tmp_path / "probs.parquet"))
    assert run(own, home).failure is None
    assert table(home, "label_issues")["p_given"].to_list() == pytest.approx([0.98] * len(labelled))
    assert table(home, "label_issues")["is_label_issue"].sum() == 0
    with Lake.open(home) as lake:
        assert versions(lake, "test-shapes")["oof_probs"].metrics["source"].endswith("probs.parquet")
    flipped = pl.when(pl.col("path") == "ball/005.png").then(pl.lit("grid")).otherwise("given_label")
    labelled.with_columns(pl.when(flipped == kind).then(0.98).otherwise(0.01).alias(kind) for kind in CLASSES).write_parquet(
        tmp_path / "probs.parquet"
    )
    assert run(own, home).failure is None
    flagged = table(home, "label_issues").filter("is_label_issue")
    assert flagged.select("path", "suggested_label").rows() == [("ball/005.png", "grid")]
    sure.head(-1).write_parquet(tmp_path / "probs.parquet")
    failure = run(own, home).failure
    assert failure is not None
    assert "no row for 1 of 78 images" in failure
