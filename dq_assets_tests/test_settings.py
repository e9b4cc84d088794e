"""Settings are parsed, bounded and hashed; registrations survive what people do to files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dq_assets.settings import Dataset, Home, Settings, UserError, all_settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize("dotted", sorted(all_settings()))
def test_every_setting_has_a_meaning_and_a_default_that_it_accepts(dotted: str) -> None:
    spec = all_settings()[dotted]
    assert spec.metadata["doc"].endswith(".")
    section, name = dotted.split(".")
    assert getattr(getattr(Settings().with_values({dotted: str(spec.default)}), section), name) == spec.default


@pytest.mark.parametrize("dotted", sorted(all_settings()))
def test_every_number_has_a_lower_bound(dotted: str) -> None:
    spec = all_settings()[dotted]
    if type(spec.default) in (int, float):
        assert spec.metadata["low"] is not None


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("folds.n_folds", "7", 7),
        ("duplicates.cosine_distance", "2", 2.0),
        ("outliers.false_alarm_rate", "1e-2", 0.01),
        ("training.include_review", "FALSE", False),
        ("curation.label_issues", "review", "review"),
        ("automation.schedule", "", ""),
        ("automation.schedule", "@daily", "@daily"),
        ("automation.owner", "someone@example.org", "someone@example.org"),
        ("store.memory_limit", "512 MiB", "512 MiB"),
    ],
)
def test_a_text_becomes_the_type_of_its_default(dotted: str, text: str, value: Any) -> None:
    section, name = dotted.split(".")
    found = getattr(getattr(Settings().with_values({dotted: text}), section), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("dotted", "text", "says"),
    [
        ("folds.n_folds", "5.5", "is not a whole number"),
        ("folds.n_folds", "", "is not a whole number"),
        ("folds.n_folds", "1", "out of range"),
        ("folds.n_folds", "101", "out of range"),
        ("outliers.false_alarm_rate", "nan", "is not a number"),
        ("outliers.false_alarm_rate", "inf", "is not a number"),
        ("outliers.false_alarm_rate", "-0.1", "out of range"),
        ("training.include_review", "1", "is not true or false"),
        ("curation.label_issues", "delete", "is not one of relabel, review, drop, keep"),
        ("automation.schedule", "every night", "is not valid"),
        ("automation.owner", "me", "is not valid"),
        ("store.memory_limit", "lots", "is not valid"),
        ("nonsense", "1", "Unknown setting"),
        ("folds", "1", "Unknown setting"),
        ("folds.", "1", "Unknown setting"),
        ("folds.n_folds.more", "1", "Unknown setting"),
        ("digest.x", "1", "Unknown setting"),
        ("__class__.__name__", "1", "Unknown setting"),
    ],
)
def test_a_setting_that_is_not_valid_is_named_in_one_line(dotted: str, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Settings().with_values({dotted: text})
    assert "\n" not in str(caught.value)
    assert dotted in str(caught.value)


def test_setting_values_changes_a_copy_and_nothing_else() -> None:
    before = Settings()
    after = before.with_values({"neighbors.k": "3", "folds.n_folds": "4"})
    assert before == Settings()
    assert (after.neighbors.k, after.folds.n_folds) == (3, 4)
    assert after.images == before.images
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.neighbors.k = 5  # type: ignore[misc]


def test_the_digest_is_of_what_changes_answers() -> None:
    base = Settings()
    assert base.digest("encoder", "images") == base.with_values({"encoder.batch_size": "1", "images.threads": "3"}).digest(
        "encoder", "images"
    )
    assert base.digest("quality") != base.with_values({"quality.dark_below": "0.3"}).digest("quality")
    assert base.digest("encoder") == base.with_values({"quality.dark_below": "0.3"}).digest("encoder")
    assert base.digest("encoder") != base.digest("images")


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a b", "a/b", "../a", "a.b", "a\n", "ä", "a" + "\0"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="Choose another"):
        Dataset(name, "/photos")


def test_the_home_is_dq_home_made_absolute_else_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for value, expected in (("here", tmp_path / "here"), ("", tmp_path / "data"), (str(tmp_path / "x"), tmp_path / "x")):
        monkeypatch.setenv("DQ_HOME", value)
        assert Home.from_environment().root == expected
    monkeypatch.delenv("DQ_HOME")
    assert Home.from_environment().root == tmp_path / "data"


def test_a_registration_comes_back_as_it_was_written(home: Home) -> None:
    settings = Settings().with_values({"neighbors.k": "3", "training.include_review": "false", "automation.schedule": ""})
    dataset = Dataset("my-photos_2", '/photos/naïve: #1 "x"', labels="/l.csv", settings=settings)
    file = home.register(dataset)
    assert home.dataset("my-photos_2") == dataset
    assert home.datasets() == [dataset]
    assert [p.name for p in file.parent.iterdir()] == ["my-photos_2.yaml"]


@pytest.mark.parametrize("name", ["1", "on", "null", "1e5", "true", "2024-01-01"])
def test_a_name_that_yaml_would_take_for_something_else_stays_a_name(home: Home, name: str) -> None:
    home.register(Dataset(name, "5"))
    assert home.dataset(name) == Dataset(name, "5")


def test_a_path_that_is_no_utf8_comes_back(home: Home) -> None:
    path = os.fsdecode(b"/photos/\xff")
    home.register(Dataset("bytes", path))
    assert home.dataset("bytes").path == path


def test_registering_again_replaces_the_registration(home: Home) -> None:
    home.register(Dataset("a", "/one"))
    home.register(Dataset("a", "/two"))
    assert [d.path for d in home.datasets()] == ["/two"]


def test_a_name_that_collides_in_dagster_is_refused(home: Home) -> None:
    home.register(Dataset("a-b", "/one"))
    with pytest.raises(UserError, match="collides with 'a-b'"):
        home.register(Dataset("a_b", "/two"))
    assert [d.name for d in home.datasets()] == ["a-b"]


def test_a_damaged_registration_does_not_stop_another_from_being_written(home: Home) -> None:
    home.registration("broken").parent.mkdir(parents=True)
    home.registration("broken").write_text("{", encoding="utf-8")
    home.register(Dataset("fine", "/photos"))
    assert home.dataset("fine").path == "/photos"


def test_a_dataset_that_was_never_registered_is_told_with_those_that_were(home: Home) -> None:
    home.register(Dataset("known", "/photos"))
    for name in ("unknown", "../known", "known/"):
        with pytest.raises(UserError, match=r"Registered: known\. Run `dq-assets audit"):
            home.dataset(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "name and path are required"),
        ("- a", "name and path are required"),
        ("name: hand", "name and path are required"),
        ("name: hand\npath:\n", "name and path are required"),
        ("name: other\npath: /p", "registers 'other'"),
        ("name: hand\npath: /p\nlables: /x.csv", "unknown entries: lables"),
        ("name: hand\npath: /p\n5: x", "unknown entries: 5"),
        ("name: [hand\npath: /p", "not valid YAML"),
        ("name: hand\npath: !!python/object:os.system /p", "not valid YAML"),
        ("name: hand\npath: /p\nsettings: [1]", "not a mapping"),
        ("name: hand\npath: /p\nsettings:\n  folds: 5", "not a mapping"),
        ("name: hand\npath: /p\nsettings:\n  folds:\n    n_fold: 5", "Unknown setting 'folds.n_fold'"),
        ("name: hand\npath: /p\nsettings:\n  folds:\n    n_folds:\n", "is not a whole number"),
    ],
)
def test_a_registration_that_is_damaged_is_one_line_that_names_the_file(home: Home, text: str, says: str) -> None:
    file = home.registration("hand")
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        home.dataset("hand")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_registration_in_another_encoding_is_told(home: Home) -> None:
    file = home.registration("hand")
    file.parent.mkdir(parents=True)
    file.write_bytes("name: hand\npath: /é".encode("latin-1"))
    with pytest.raises(UserError, match="not valid YAML"):
        home.dataset("hand")


def test_a_registration_written_by_hand_may_leave_out_what_has_a_default(home: Home) -> None:
    file = home.registration("hand")
    file.parent.mkdir(parents=True)
    file.write_text(
        yaml.safe_dump({"name": "hand", "path": "/p", "labels": None, "settings": {"automation": {"schedule": None}, "folds": None}})
    )
    found = home.dataset("hand")
    assert found.labels is None
    assert found.settings == Settings().with_values({"automation.schedule": ""})


def test_a_registration_holds_only_what_is_not_the_default(tmp_path: Path) -> None:
    home = Home(tmp_path)
    file = home.register(Dataset("shop", "/photos", settings=Settings().with_values({"neighbors.k": "7"})))
    assert yaml.safe_load(file.read_text())["settings"] == {"neighbors": {"k": 7}}
    assert home.dataset("shop").settings.neighbors.k == 7
