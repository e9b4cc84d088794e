"""The lake: publishing by difference, matrices, blocks, locks, kills, and audits that never mix versions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from dq_assets.audit.gates import Gate
from dq_assets.schema import ASSET_TABLES, TABLES
from dq_assets.settings import Home, Settings, UserError
from dq_assets.store import audits
from dq_assets.store.contents import borrow_vectors, compared_pairs, read_vectors
from dq_assets.store.integrity import check_integrity, checks_of
from dq_assets.store.lake import Lake, StoreError, audit_lock
from dq_assets.store.tables import (
    Version,
    append,
    matrix_blocks,
    publish,
    publish_matrix,
    read_matrix,
    read_table,
    record_version,
    upsert,
    versions,
)

NAME = "shop-photos"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(scope="session")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with one empty dataset, made once; copying it is faster than making it, and shows that a lake may be moved."""
    root = tmp_path_factory.mktemp("template") / "home"
    with Lake.open(Home(root)) as lake:
        lake.ensure_dataset(NAME)
    return root


@pytest.fixture
def lake(home: Home, empty_lake: Path) -> Iterator[Lake]:
    shutil.copytree(empty_lake, home.root)
    with Lake.open(home) as lake:
        yield lake


def classes(*rows: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "class_name": name,
                "n": n,
                "noise_rate": None,
                "noise_rate_low": None,
                "noise_rate_high": None,
                "inverse_noise_rate": 0.25,
                "accuracy": 1.0,
                "most_common_correction": None,
                "n_corrections": 0,
                "is_learnable": True,
            }
            for name, n in rows
        ],
        schema_overrides={
            "most_common_correction": pl.String,
            **dict.fromkeys(("noise_rate", "noise_rate_low", "noise_rate_high"), pl.Float32),
        },
    )


def probabilities(values: np.ndarray, step: int) -> Iterator[pa.Table]:
    for start in range(0, len(values), step):
        part = values[start : start + step]
        yield pa.table(
            {
                "image_id": np.arange(start, start + len(part)),
                "fold": pa.array(np.zeros(len(part)), pa.int32()),
                "probs": pa.array(part.tolist(), pa.list_(pa.float32())),
            }
        )


def test_published_rows_come_back_in_key_order(lake: Lake) -> None:
    publish(lake, NAME, "class_report", classes(("b", 2), ("a", 1)), fingerprint="f")
    assert read_table(lake, NAME, "class_report")["class_name"].to_list() == ["a", "b"]


def test_equal_content_publishes_no_snapshot(lake: Lake) -> None:
    first = publish(lake, NAME, "class_report", classes(("a", 1), ("b", 2)), fingerprint="f")
    before = lake.snapshot()
    assert publish(lake, NAME, "class_report", classes(("b", 2), ("a", 1)), fingerprint="f") == first
    assert lake.snapshot() == before


def test_only_changed_rows_stand_in_the_change_feed(lake: Lake) -> None:
    publish(lake, NAME, "class_report", classes(("a", 1), ("b", 2), ("c", 3)), fingerprint="f")
    publish(lake, NAME, "class_report", classes(("b", 2), ("c", 4), ("d", 5)), fingerprint="f")
    feed = lake.con.execute(
        "SELECT change_type, class_name FROM ducklake_table_changes('lake', ?, 'class_report', ?, ?) ORDER BY ALL",
        [NAME, lake.snapshot(), lake.snapshot()],
    ).fetchall()
    assert feed == [("delete", "a"), ("insert", "d"), ("update_postimage", "c"), ("update_preimage", "c")]


def test_an_old_version_stays_readable(lake: Lake) -> None:
    publish(lake, NAME, "class_report", classes(("a", 1)), fingerprint="f")
    snapshot = lake.snapshot()
    publish(lake, NAME, "class_report", classes(("a", 9)), fingerprint="f")
    assert read_table(lake, NAME, "class_report", snapshot=snapshot)["n"].to_list() == [1]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        pytest.param(classes(("a", 1), ("a", 2)), "repeat a key", id="repeated key"),
        pytest.param(classes(("a", 1)).drop("n"), "column n is missing", id="missing column"),
        pytest.param(classes(("a", 1)).with_columns(extra=1), "column extra is unknown", id="unknown column"),
        pytest.param(classes(("a", 1)).with_columns(n=pl.lit(None)), "column n has nulls", id="null where none may be"),
        pytest.param(classes(("a", 1)).with_columns(n=pl.lit("many")), "not published", id="wrong type"),
    ],
)
def test_a_frame_that_breaks_the_schema_is_refused(lake: Lake, frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        publish(lake, NAME, "class_report", frame, fingerprint="f")
    assert read_table(lake, NAME, "class_report").is_empty()


def test_a_failed_transaction_leaves_the_last_commit(lake: Lake) -> None:
    publish(lake, NAME, "class_report", classes(("a", 1)), fingerprint="f")
    with pytest.raises(duckdb.CatalogException), lake.transaction() as con:
        con.execute(f'DELETE FROM lake."{NAME}".class_report; SELECT * FROM lake."{NAME}".no_such_table')
    assert len(read_table(lake, NAME, "class_report")) == 1


def test_the_digest_of_a_matrix_does_not_depend_on_its_blocks(lake: Lake) -> None:
    values = np.random.default_rng(0).random((1000, 7)).astype(np.float32)
    one = publish_matrix(lake, NAME, "oof_probs", probabilities(values, 1000), fingerprint="f")
    before = lake.snapshot()
    many = publish_matrix(lake, NAME, "oof_probs", probabilities(values, 33), fingerprint="f")
    assert one == many
    assert lake.snapshot() == before
    assert len(list((lake.home.lake / "data" / NAME / "oof_probs").glob("*.parquet"))) == 1
    ids, back = read_matrix(lake, NAME, "oof_probs", "probs")
    assert np.array_equal(ids, np.arange(1000))
    assert np.array_equal(back, values)


def test_a_matrix_is_read_in_order_while_other_queries_run_and_though_it_lies_out_of_order(lake: Lake) -> None:
    values = np.random.default_rng(0).random((6000, 3)).astype(np.float32)
    publish_matrix(lake, NAME, "oof_probs", probabilities(values, 1000), fingerprint="f")
    parts = []
    for ids, block in matrix_blocks(lake, NAME, "oof_probs", "probs"):
        assert len(read_table(lake, NAME, "oof_probs", columns=["fold"])) == 6000
        parts.append((ids, block))
    assert np.array_equal(np.concatenate([ids for ids, _ in parts]), np.arange(6000))
    assert np.array_equal(np.concatenate([block for _, block in parts]), values)
    with lake.transaction() as con:  # the first half moves into a file behind the second
        con.execute(f'UPDATE lake."{NAME}".oof_probs SET fold = fold + 1 WHERE image_id < 3000')
    ids, back = read_matrix(lake, NAME, "oof_probs", "probs")
    assert np.array_equal(ids, np.arange(6000))
    assert np.array_equal(back, values)


def test_an_empty_matrix_is_an_empty_table(lake: Lake) -> None:
    publish_matrix(lake, NAME, "oof_probs", iter(()), fingerprint="f")
    assert read_matrix(lake, NAME, "oof_probs", "probs")[1].shape == (0, 0)
    assert read_table(lake, NAME, "oof_probs").columns == ["image_id", "fold", "probs"]


def test_blocks_out_of_order_are_refused_and_leave_no_file(lake: Lake) -> None:
    blocks = list(probabilities(np.full((20, 2), 0.5, np.float32), 10))
    with pytest.raises(StoreError, match="ascending"):
        publish_matrix(lake, NAME, "oof_probs", reversed(blocks), fingerprint="f")
    assert not list((lake.home.lake / "data" / NAME / "oof_probs").glob("*.parquet"))


def vectors(*shas: str) -> pl.DataFrame:
    rows = [{"content_sha256": s, "encoder": "e", "vector": [float(ord(s[0])), 1.0]} for s in shas]
    return pl.DataFrame(rows, schema_overrides={"vector": pl.List(pl.Float32)})


def test_vectors_come_back_in_the_order_that_was_asked_for(lake: Lake) -> None:
    append(lake, NAME, "embeddings", vectors("a", "b"))
    append(lake, NAME, "embeddings", vectors("b", "c"))
    assert read_vectors(lake, NAME, "e", ["c", "a", "a"])[:, 0].tolist() == [99.0, 97.0, 97.0]
    assert len(read_table(lake, NAME, "embeddings")) == 3


def test_a_missing_vector_is_an_error_not_a_zero(lake: Lake) -> None:
    append(lake, NAME, "embeddings", vectors("a"))
    with pytest.raises(StoreError, match="1 images"):
        read_vectors(lake, NAME, "e", ["a", "zz"])


def test_vectors_are_borrowed_from_another_dataset(lake: Lake) -> None:
    append(lake, NAME, "embeddings", vectors("a", "b"))
    lake.ensure_dataset("other")
    assert borrow_vectors(lake, "other", "e", {"a", "zz"}) == 1
    assert borrow_vectors(lake, "other", "another encoder", {"a"}) == 0
    assert read_table(lake, "other", "embeddings")["content_sha256"].to_list() == ["a"]


def test_verdicts_on_pairs_are_shared_by_the_datasets_of_the_lake(lake: Lake) -> None:
    known = pl.DataFrame(
        {"content_a": ["a", "a", "b"], "content_b": ["b", "c", "zz"], "witness": ["1"] * 3, "distance": [0.05, None, 0.01]},
        schema_overrides={"distance": pl.Float32},
    )
    append(lake, NAME, "compared_pairs", known)
    lake.ensure_dataset("other")
    contents = pl.DataFrame({"content_sha256": ["a", "b", "c", "x"], "number": [0, 1, 2, 3]})
    found = compared_pairs(lake, "other", "1", contents).sort("b")
    assert found.select("a", "b").rows() == [(0, 1), (0, 2)]
    assert found["distance"].to_list() == [pytest.approx(0.05), None]
    assert compared_pairs(lake, "other", "2", contents).is_empty()


def test_a_pair_that_two_datasets_compared_is_known_once_by_the_dataset_itself(lake: Lake) -> None:
    lake.ensure_dataset("other")
    for dataset, distance in ((NAME, 0.05), ("other", 0.07)):
        row = {"content_a": ["a"], "content_b": ["b"], "witness": ["1"], "distance": [distance]}
        append(lake, dataset, "compared_pairs", pl.DataFrame(row, schema_overrides={"distance": pl.Float32}))
    contents = pl.DataFrame({"content_sha256": ["a", "b"], "number": [0, 1]})
    assert compared_pairs(lake, "other", "1", contents)["distance"].to_list() == [pytest.approx(0.07)]


def test_every_table_of_the_schema_is_created(lake: Lake) -> None:
    assert all(read_table(lake, NAME, name).is_empty() for name in TABLES)


WRITER = """
    import sys
    from pathlib import Path
    import polars as pl
    from dq_assets.settings import Home
    from dq_assets.store.lake import Lake
    from dq_assets.store.tables import append
    home, who, n = Home(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    with Lake.open(home) as lake:
        print("ready", flush=True)
        for i in range(n):
            row = {"content_sha256": f"{who}-{i}", "encoder": "e", "vector": [1.0, 2.0]}
            append(lake, "shop-photos", "embeddings", pl.DataFrame([row], schema_overrides={"vector": pl.List(pl.Float32)}))
"""


def start_writer(home: Home, who: str, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(home.root), who, str(n)], stdout=subprocess.PIPE, text=True)


def test_two_processes_write_at_once_and_lose_nothing(lake: Lake) -> None:
    writers = [start_writer(lake.home, who, 20) for who in ("one", "two")]
    assert [w.wait(timeout=60) for w in writers] == [0, 0]
    assert len(read_table(lake, NAME, "embeddings")) == 40


def test_a_killed_writer_leaves_whole_commits_and_no_lock(lake: Lake) -> None:
    writer = start_writer(lake.home, "victim", 10_000)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(read_table(lake, NAME, "embeddings")) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)  # not a fixed time: on a busy machine the first commit took more than a second
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=10)
    kept = read_table(lake, NAME, "embeddings")
    assert len(kept) > 0
    append(lake, NAME, "embeddings", vectors("a"))
    assert len(read_table(lake, NAME, "embeddings")) == len(kept) + 1


def test_a_second_audit_says_for_whom_it_waits(home: Home) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from dq_assets.settings import Home
        from dq_assets.store.lake import audit_lock
        with audit_lock(Home(Path(sys.argv[1])), "shop-photos", print):
            print("held", flush=True)
            time.sleep(1.5)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(home.root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []
    with audit_lock(home, NAME, said.append):
        pass
    assert holder.wait(timeout=10) == 0
    assert len(said) == 1
    assert f"process {holder.pid}" in said[0]


# Audits. The tables' content does not matter here, only that their fingerprints fit together.


def settle(lake: Lake, settings: Settings) -> None:
    """Give every audited table the version that it would have after a full run."""
    current: dict[str, Version] = {}
    for name in audits.AUDITED_TABLES:
        current[name] = Version(audits.fingerprint(name, settings, current), f"digest of {name}", 0, {})
    rows = [
        {"table_name": name, "fingerprint": v.fingerprint, "digest": v.digest, "n_rows": 0, "metrics": "{}"} for name, v in current.items()
    ]
    with lake.transaction():
        upsert(lake, NAME, "table_versions", pl.DataFrame(rows))


def gate(verdict: str, *, blocking: bool = True) -> Gate:
    return Gate("unreadable_share", verdict, blocking, 0.5, 0.01, "half of the files could not be read")


def record(lake: Lake, settings: Settings, *gates: Gate) -> audits.Recorded:
    return audits.record_audit(lake, NAME, settings, gates, run_id="run", started=datetime.now(UTC))


def test_audits_are_numbered_and_an_unchanged_one_is_not_new(lake: Lake) -> None:
    settings = Settings()
    settle(lake, settings)
    assert record(lake, settings, gate("passed")) == audits.Recorded(1, True)
    assert record(lake, settings, gate("passed")) == audits.Recorded(1, False)
    other_cron = settings.with_values({"automation.schedule": "0 3 * * *"})
    assert record(lake, other_cron, gate("passed")) == audits.Recorded(1, False)
    stricter = settings.with_values({"gates.max_noise_rate": "0.1"})
    assert record(lake, stricter, gate("failed")) == audits.Recorded(2, True)
    assert json.loads(audits.history(lake, NAME)["settings"][1])["gates"]["max_noise_rate"] == 0.1


def test_a_changed_setting_makes_its_table_and_what_follows_stale(lake: Lake) -> None:
    settings = Settings()
    settle(lake, settings)
    assert audits.stale_tables(settings, versions(lake, NAME), {}) == []
    changed = settings.with_values({"outliers.false_alarm_rate": "0.02"})
    assert audits.stale_tables(changed, versions(lake, NAME), {}) == ["outliers"]
    record_version(lake, NAME, "outliers", Version(audits.fingerprint("outliers", changed, versions(lake, NAME)), "another digest", 0, {}))
    assert audits.stale_tables(changed, versions(lake, NAME), {}) == ["curated_dataset"]


def test_threads_and_batches_make_nothing_stale(lake: Lake) -> None:
    settings = Settings()
    settle(lake, settings)
    faster = settings.with_values({"images.threads": "7", "encoder.batch_size": "5", "encoder.block_size": "9"})
    assert audits.stale_tables(faster, versions(lake, NAME), {}) == []


@pytest.mark.parametrize("verdict", ["failed", "not_run"])
def test_training_is_held_by_a_gate_that_has_not_passed(lake: Lake, verdict: str) -> None:
    settle(lake, Settings())
    record(lake, Settings(), gate(verdict))
    with pytest.raises(audits.GateClosedError, match="half of the files"):
        audits.require_green(lake, NAME, Settings(), {})


def test_an_advisory_gate_holds_nothing(lake: Lake) -> None:
    settle(lake, Settings())
    record(lake, Settings(), gate("passed"), Gate("unlearnable_classes", "failed", False, 1, 0, "one class"))
    assert audits.require_green(lake, NAME, Settings(), {}) == 1


def test_training_is_held_without_any_verdict(lake: Lake) -> None:
    settle(lake, Settings())
    record(lake, Settings())
    with pytest.raises(audits.GateClosedError, match="no gate was evaluated"):
        audits.require_green(lake, NAME, Settings(), {})


def test_training_is_held_when_tables_changed_after_the_audit(lake: Lake) -> None:
    settle(lake, Settings())
    record(lake, Settings(), gate("passed"))
    record_version(lake, NAME, "outliers", Version("newer", "newer", 0, {}))
    with pytest.raises(audits.GateClosedError, match="changed after audit 1"):
        audits.require_green(lake, NAME, Settings(), {})
    assert audits.require_green(lake, NAME, Settings(), {}, version=1) == 1


def test_an_override_lets_training_go_on_and_survives_an_unchanged_audit(lake: Lake) -> None:
    settle(lake, Settings())
    record(lake, Settings(), gate("failed"))
    with lake.transaction() as con:
        con.execute(f"UPDATE lake.\"{NAME}\".gate_results SET override_by = 'ann', override_reason = 'known'")
    record(lake, Settings(), gate("failed"))
    assert audits.require_green(lake, NAME, Settings(), {}) == 1


def test_unknown_names_and_versions_are_one_line_errors(lake: Lake) -> None:
    settle(lake, Settings())
    record(lake, Settings(), gate("passed"))
    for ask in (
        lambda: audits.read(lake, NAME, "no_such_table"),
        lambda: audits.read(lake, "nobody", "outliers"),
        lambda: audits.read(lake, NAME, "outliers", 7),
        lambda: audits.read(lake, NAME, "training_set"),
    ):
        with pytest.raises(UserError) as error:
            ask()
        assert "\n" not in str(error.value)


def test_old_matrices_are_dropped_and_pinned_ones_stay(lake: Lake) -> None:
    settings = Settings()
    for number in range(5):
        settle(lake, settings)
        publish_matrix(lake, NAME, "oof_probs", probabilities(np.full((20, 2), number / 10, np.float32), 20), fingerprint=f"f{number}")
        recorded = record(lake, settings, gate("passed"))
        assert recorded.audit_id == number + 1
        if number == 0:
            with lake.transaction() as con:
                con.execute(f"UPDATE lake.\"{NAME}\".audits SET pinned_by = 'ann'")
    assert audits.prune_matrices(lake, NAME, keep=2) == 2
    assert audits.read(lake, NAME, "oof_probs", 1)["probs"][0][0] == 0
    assert audits.read(lake, NAME, "oof_probs", 5)["probs"][0][0] == pytest.approx(0.4)
    with pytest.raises(UserError, match="no longer kept"):
        audits.read(lake, NAME, "oof_probs", 2)
    assert audits.read(lake, NAME, "class_report", 2).is_empty()


def test_integrity_finds_planted_offenders(lake: Lake) -> None:
    publish(lake, NAME, "class_report", classes(("a", 1)), fingerprint="f")
    assert all(v.passed for v in check_integrity(lake, NAME, "class_report"))
    with lake.transaction() as con:
        con.execute(f"INSERT INTO lake.\"{NAME}\".class_report VALUES ('a', -1, 'nan', NULL, NULL, 2, NULL, NULL, 0, NULL)")
    verdicts = {v.check: v for v in check_integrity(lake, NAME, "class_report")}
    assert verdicts["keys"].sample == ("a",)
    # n below 0, noise_rate not finite, inverse_noise_rate above 1, is_learnable missing; NaN is also above every bound.
    assert verdicts["values"].n_offenders >= 4


def test_integrity_misses_no_row_and_no_vector(lake: Lake) -> None:
    with lake.transaction() as con:
        columns = "(image_id, status, content_sha256, given_label)"
        con.execute(f"INSERT INTO lake.\"{NAME}\".raw_manifest {columns} VALUES (1, 'ok', 's', 'a')")
        con.execute(f'INSERT INTO lake."{NAME}".oof_probs VALUES (2, 0, [0.4])')
        con.execute(f'INSERT INTO lake."{NAME}".folds VALUES (2, 2, 1)')
    found = {v.check: v.sample for v in check_integrity(lake, NAME, "oof_probs")}
    assert set(found["complete"]) == {"no row for 1", "unexpected row of 2"}
    assert found["probabilities"] == ("row of 2",)
    assert found["out_of_fold"] == ("fold of 2", "fold of 2")
    assert {v.check: v.sample for v in check_integrity(lake, NAME, "embeddings", encoder="e")}["complete"] == ("no vector for s",)


@pytest.mark.parametrize("name", ASSET_TABLES)
def test_every_integrity_query_runs(lake: Lake, name: str) -> None:
    assert [v.check for v in check_integrity(lake, NAME, name)] == list(checks_of(TABLES[name]))
