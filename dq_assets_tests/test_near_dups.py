from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dq_assets.audit.duplicates import GROUPS_SCHEMA
from dq_assets.audit.near_dups import near_dups
from dq_assets.audit.rows import Streamed
from dq_assets.schema import TABLES

CLASSES = ["cat", "dog", "fox"]
POLARS = {"BIGINT": pl.Int64, "VARCHAR": pl.String, "FLOAT": pl.Float32, "BOOLEAN": pl.Boolean}


def manifest(labels: list[str | None], splits: list[str | None] | None = None, **columns: list[int | None]) -> pl.DataFrame:
    n = len(labels)
    frame = {"image_id": list(range(10, 10 + n)), "given_label": labels, "split": splits or [None] * n}
    sizes = {name: columns.get(name, [100] * n) for name in ("width", "height", "bytes")}
    schema = {"image_id": pl.Int64, "given_label": pl.String, "split": pl.String, "width": pl.Int32, "height": pl.Int32, "bytes": pl.Int64}
    return pl.DataFrame(frame | sizes, schema=schema)


def groups(*rows: tuple[int, int, str, float]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=GROUPS_SCHEMA, orient="row")


def probs(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


SURE_CAT, SURE_DOG, UNSURE = (0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (1 / 3, 1 / 3, 1 / 3)
PAIR = groups((10, 10, "near", 0.05), (11, 10, "near", 0.05))


def test_the_frame_has_the_columns_and_types_of_the_table() -> None:
    frame = near_dups(manifest(["cat", "cat", None]), PAIR, probs(SURE_CAT, SURE_CAT, UNSURE), CLASSES)
    assert frame.schema == pl.Schema({column.name: POLARS[column.type] for column in TABLES["near_dups"].columns})
    assert not any(frame.get_column(c.name).has_nulls() for c in TABLES["near_dups"].columns if not c.nullable)


def test_an_image_without_a_partner_is_its_own_keeper_with_score_one() -> None:
    frame = near_dups(manifest(["cat", "cat", "dog"]), PAIR, probs(SURE_CAT, SURE_CAT, SURE_DOG), CLASSES)
    assert frame.row(2) == (12, None, None, 1.0, False, False, False, False, None, None, True)


def test_copies_score_zero_and_near_duplicates_their_distance() -> None:
    table = groups((10, 10, "exact", 0.0), (11, 10, "pixel", 0.0), (12, 10, "near", 0.07))
    frame = near_dups(manifest(["cat"] * 3), table, probs(*[SURE_CAT] * 3), CLASSES)
    assert frame.get_column("near_duplicate_score").to_list() == pytest.approx([0, 0, 0.07])


def test_the_model_decides_when_two_copies_disagree() -> None:
    frame = near_dups(manifest(["cat", "dog"]), PAIR, probs(SURE_DOG, SURE_DOG), CLASSES)
    assert frame.get_column("label_conflict").to_list() == [True, True]
    assert frame.get_column("is_wrong_label").to_list() == [True, False]
    assert frame.get_column("resolved_label").to_list() == ["dog", "dog"]
    # One vote each cancels; what stays is .9 against .05, and .05 / 18 for the class that nobody voted for.
    assert frame.get_column("confidence")[0] == pytest.approx(0.9 / (0.9 + 0.05 + 0.05 / 18), rel=1e-4)


def test_two_votes_outweigh_a_model_that_leans_the_other_way() -> None:
    table = groups(*[(i, 10, "exact", 0.0) for i in (10, 11, 12)])
    frame = near_dups(manifest(["cat", "cat", "dog"]), table, probs(*[(0.3, 0.6, 0.1)] * 3), CLASSES)
    assert frame.get_column("resolved_label").to_list() == ["cat"] * 3
    assert frame.get_column("is_wrong_label").to_list() == [False, False, True]


TRIPLE = groups(*[(i, 10, "near", 0.05) for i in (10, 11, 12)])


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_odd_one_of_three_labels_is_wrong_whichever_it_is(odd: int) -> None:
    labels: list[str | None] = ["cat"] * 3
    labels[odd] = "dog"
    frame = near_dups(manifest(labels), TRIPLE, probs(*[UNSURE] * 3), CLASSES)
    assert frame.get_column("is_wrong_label").to_list() == [i == odd for i in range(3)]
    # Two votes against one: 18 to 1, and 1 to 18 x 18 for the class without any.
    assert frame.get_column("confidence")[0] == pytest.approx(1 / (1 + 1 / 18 + 1 / 18**2), rel=1e-4)


def test_a_very_sure_model_outweighs_two_votes_and_says_how_sure_it_is() -> None:
    frame = near_dups(manifest(["cat", "cat", "dog"]), TRIPLE, probs(*[(0.005, 0.99, 0.005)] * 3), CLASSES)
    assert frame.get_column("is_wrong_label").to_list() == [True, True, False]
    assert frame.get_column("confidence")[0] == pytest.approx(198 / (198 + 18 + 1 / 18), rel=1e-3)


def test_of_three_different_labels_the_model_chooses_one() -> None:
    frame = near_dups(manifest(["cat", "dog", "fox"]), TRIPLE, probs(*[(0.2, 0.1, 0.7)] * 3), CLASSES)
    assert frame.get_column("resolved_label").to_list() == ["fox"] * 3
    assert frame.get_column("is_wrong_label").to_list() == [True, True, False]
    assert frame.get_column("confidence")[0] == pytest.approx(0.7, rel=1e-4)


def test_two_against_two_is_the_models_to_decide() -> None:
    table = groups(*[(i, 10, "near", 0.05) for i in (10, 11, 12, 13)])
    frame = near_dups(manifest(["cat", "dog", "cat", "dog"]), table, probs(*[SURE_DOG] * 4), CLASSES)
    assert frame.get_column("is_wrong_label").to_list() == [True, False, True, False]


def test_a_label_that_no_copy_contradicts_stands_with_low_confidence() -> None:
    frame = near_dups(manifest(["cat", None]), PAIR, probs((0.001, 0.998, 0.001), (0.001, 0.998, 0.001)), CLASSES)
    assert frame.get_column("label_conflict").to_list() == [False, False]
    assert frame.get_column("resolved_label").to_list() == ["cat", "cat"]
    assert frame.get_column("confidence")[0] < 0.1


def test_a_missing_label_is_neither_a_conflict_nor_wrong() -> None:
    table = groups(*[(i, 10, "exact", 0.0) for i in (10, 11, 12)])
    frame = near_dups(manifest(["cat", None, "dog"]), table, probs(*[SURE_CAT] * 3), CLASSES)
    assert frame.get_column("is_wrong_label").to_list() == [False, False, True]


def test_a_group_without_any_label_takes_the_label_of_the_model() -> None:
    frame = near_dups(manifest([None, None]), PAIR, probs(SURE_DOG, SURE_DOG), CLASSES)
    assert frame.get_column("resolved_label").to_list() == ["dog", "dog"]


def test_without_classes_nothing_is_resolved() -> None:
    frame = near_dups(manifest([None, None]), PAIR, np.empty((2, 0), dtype=np.float32), [])
    assert frame.get_column("resolved_label").to_list() == [None, None]
    assert frame.get_column("is_keeper").to_list() == [True, False]


@pytest.mark.parametrize(
    ("splits", "leaks"),
    [
        (["train", "test"], True),
        (["validation", "train"], True),
        (["train", "train"], False),
        (["train", "unused"], False),
        (["test", None], False),
    ],
    ids=["train and test", "validation and train", "one split", "unused does not count", "null does not count"],
)
def test_only_train_validation_and_test_leak(splits: list[str | None], leaks: bool) -> None:
    frame = near_dups(manifest(["cat", "cat"], splits), PAIR, probs(SURE_CAT, SURE_CAT), CLASSES)
    assert frame.get_column("crosses_split").to_list() == [leaks, leaks]


@pytest.mark.parametrize(
    ("frame", "keeper"),
    [
        (manifest(["dog", "cat"], ["test", "validation"]), 10),
        (manifest(["cat", "dog"], ["train", "validation"]), 11),
        (manifest(["cat", "cat"], ["unused", "train"]), 11),
        (manifest(["dog", "cat"], width=[500, 100]), 11),
        (manifest(["cat", "cat"], width=[100, 101]), 11),
        (manifest(["cat", "cat"], width=[100, 50], height=[10, 20], bytes=[5, 6]), 11),
        (manifest(["cat", "cat"], width=[None, 1], bytes=[None, None]), 11),
        (manifest(["cat", "cat"]), 10),
    ],
    ids=["test even if wrong", "validation", "train over unused", "right label", "pixels", "bytes", "unknown size last", "lowest id"],
)
def test_the_keeper_is_by_split_then_label_then_size_then_id(frame: pl.DataFrame, keeper: int) -> None:
    found = near_dups(frame, PAIR, probs(SURE_CAT, SURE_CAT), CLASSES)
    assert found.filter("is_keeper").get_column("image_id").to_list() == [keeper]


def test_every_group_has_one_keeper_and_blocks_do_not_change_the_answer() -> None:
    rng = np.random.default_rng(0)
    n = 10_000
    labels = rng.choice(np.array(CLASSES), n).tolist()
    table = groups(*[(10 + i, 10 + i - i % 2, "near", 0.01) for i in range(n)])
    p = rng.dirichlet([1, 1, 1], n).astype(np.float32)
    frame = near_dups(manifest(labels), table, p, CLASSES)
    assert (frame.group_by("group_id").agg(pl.col("is_keeper").sum()).get_column("is_keeper") == 1).all()
    last = near_dups(manifest(labels[-2:]), PAIR, p[-2:], CLASSES)
    assert frame.tail(2).get_column("confidence").to_list() == pytest.approx(last.get_column("confidence").to_list(), rel=1e-5)


@pytest.mark.parametrize(
    ("frame", "table", "p", "message"),
    [
        (manifest(["cat", "cat"]), PAIR, probs(SURE_CAT), "does not fit"),
        (manifest(["cat", "owl"]), PAIR, probs(SURE_CAT, SURE_CAT), "owl"),
        (manifest(["cat"]), PAIR, probs(SURE_CAT), "not in the manifest"),
    ],
    ids=["rows", "label without class", "group of another manifest"],
)
def test_what_does_not_fit_is_refused(frame: pl.DataFrame, table: pl.DataFrame, p: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        near_dups(frame, table, p, CLASSES)


def test_no_groups_at_all_is_fine() -> None:
    frame = near_dups(manifest(["cat", "dog"]), groups(), probs(SURE_CAT, SURE_DOG), CLASSES)
    assert frame.get_column("is_keeper").to_list() == [True, True]


def test_a_stream_of_probabilities_gives_the_same_verdicts_as_an_array() -> None:
    rng = np.random.default_rng(0)
    labels = [CLASSES[code] for code in rng.integers(0, 3, 60)]
    p = rng.dirichlet(np.ones(3), 60).astype(np.float32)
    table = groups(*[(image, image // 3, "near", 0.1) for image in range(12, 51)])
    stream = Streamed((60, 3), lambda: iter(np.split(p, [4, 31])))
    assert near_dups(manifest(labels), table, stream, CLASSES).equals(near_dups(manifest(labels), table, p, CLASSES))
