"""The tables agree with the settings, with each other, and with what other programs were promised."""

from __future__ import annotations

import dataclasses

import pytest

from dq_assets.schema import ASSET_TABLES, KINDS, QUALITY_CHECKS, SPLITS, STATUSES, TABLES, Column, Table
from dq_assets.settings import Settings

PROMISED = {
    "raw_manifest": "image_id path uri given_label split group content_sha256 pixel_hash width height format mode bytes mtime status"
    " reason",
    "image_properties": "image_id phash dark_score is_dark_issue odd_size_score is_odd_size_issue grayscale_score is_grayscale_issue",
    "embeddings": "content_sha256 encoder vector",
    "neighbors": "image_id neighbor_ids distances",
    "duplicate_groups": "image_id group_id kind distance",
    "folds": "image_id component_id fold",
    "oof_probs": "image_id fold probs",
    "label_issues": "image_id given_label suggested_label label_score is_label_issue p_given p_suggested error_probability kind"
    " candidate_labels",
    "outliers": "image_id outlier_score is_outlier_issue",
    "near_dups": "image_id group_id kind near_duplicate_score label_conflict crosses_split is_wrong_label resolved_label"
    " confidence is_keeper",
    "class_report": "class_name n noise_rate inverse_noise_rate accuracy most_common_correction n_corrections",
    "ontology_report": "class_a class_b n_a_to_b n_b_to_a overlap",
    "curated_dataset": "image_id final_label action reason source",
    "audits": "audit_id snapshot_id run_id started finished settings digests tag pinned_by",
    "gate_results": "audit_id check_name verdict blocking value limit_value reason override_by override_reason",
}
TYPES = {
    *("BIGINT", "INTEGER", "DOUBLE", "FLOAT", "BOOLEAN", "VARCHAR", "TIMESTAMPTZ"),
    *("FLOAT[]", "BIGINT[]", "VARCHAR[]"),
}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
every_column = pytest.mark.parametrize(
    ("table", "column"), [pytest.param(t, c, id=f"{t.name}.{c.name}") for t in TABLES.values() for c in t.columns]
)


@pytest.mark.parametrize("name", PROMISED)
def test_the_promised_columns_are_there(name: str) -> None:
    assert set(PROMISED[name].split()) <= set(TABLES[name].column_names)


@every_table
def test_a_table_names_each_column_once_and_its_key_first_among_them(table: Table) -> None:
    assert len(set(table.column_names)) == len(table.columns)
    assert table.column_names[: len(table.key)] == table.key
    assert not any(column.nullable for column in table.columns if column.name in table.key)


@every_table
def test_a_table_is_computed_from_tables_that_stand_before_it(table: Table) -> None:
    order = list(TABLES)
    assert all(order.index(source) < order.index(table.name) for source in table.inputs)


@every_table
def test_a_table_depends_on_settings_that_exist(table: Table) -> None:
    assert set(table.settings) <= {section.name for section in dataclasses.fields(Settings)}


@every_table
def test_a_table_with_a_row_per_image_is_keyed_by_image(table: Table) -> None:
    if table.rows != "other":
        assert table.key == ("image_id",)
    if table.storage == "matrix":
        assert [c.type.endswith("[]") for c in table.columns].count(True) >= 1


@every_column
def test_a_column_has_a_type_the_store_knows_and_a_meaning(table: Table, column: Column) -> None:
    assert column.type in TYPES
    assert column.doc.endswith(".")
    if column.low is not None or column.high is not None:
        assert column.type not in ("VARCHAR", "BOOLEAN")
    if column.values:
        assert column.type == "VARCHAR"
        assert len(set(column.values)) == len(column.values)


@every_column
def test_every_score_lies_in_0_to_1_and_every_issue_is_a_boolean(table: Table, column: Column) -> None:
    if column.name.endswith("_score"):
        assert (column.low, column.high, column.type) == (0, 1, "FLOAT")
        assert f"is_{column.name.removesuffix('_score')}_issue" in table.column_names
    if column.name.startswith("is_"):
        assert column.type == "BOOLEAN"


def test_quality_checks_have_a_score_and_an_issue_in_their_order() -> None:
    found = [name for name in TABLES["image_properties"].column_names if name.endswith("_score")]
    assert found == [f"{check}_score" for check in QUALITY_CHECKS]


def test_words_that_are_used_in_two_tables_are_the_same() -> None:
    values = {(t.name, c.name): c.values for t in TABLES.values() for c in t.columns}
    assert values["raw_manifest", "status"] == STATUSES
    assert values["raw_manifest", "split"] == SPLITS
    assert values["duplicate_groups", "kind"] == values["near_dups", "kind"] == KINDS
    assert set(values["training_set", "split"]) < set(SPLITS)


def test_the_graph_is_the_one_that_was_designed() -> None:
    inputs = {name: set(TABLES[name].inputs) for name in ASSET_TABLES}
    assert "duplicate_groups" in inputs["folds"]
    assert "folds" in inputs["oof_probs"]
    assert {"duplicate_groups", "oof_probs"} <= inputs["near_dups"]
    findings = {"label_issues", "outliers", "near_dups", "class_report", "ontology_report", "image_properties"}
    assert findings <= inputs["curated_dataset"]
    assert "curated_dataset" in inputs["training_set"]
    assert "training_set" in inputs["trained_model"]


def test_the_lakes_own_books_are_no_assets() -> None:
    assert set(TABLES) - set(ASSET_TABLES) == {
        "image_ids",
        "compared_pairs",
        "neighbor_cells",
        "encoder_choice",
        "table_versions",
        "audits",
        "gate_results",
    }
