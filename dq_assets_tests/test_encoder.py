"""The encoder on real photographs: right weights, right preprocessing, vectors that depend on nothing but the image."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
from PIL import Image, ImageFilter

from dq_assets import settings
from dq_assets.audit import backends, networks, pixels
from dq_assets.audit import encoder as encoding
from dq_assets.audit.decoding import decode_rgb
from dq_assets.audit.encoder import Encoder, embed_files, encoder_id
from dq_assets.settings import UserError

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
DAISY, PALACE = 985, 698  # ImageNet classes
LIMIT = 178_956_970
TORCH = settings.Encoder(backend="torch")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of torch that spin while they wait for each other on a busy machine made these tests 4 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    """With fewer rows per forward pass, for speed: one image costs a whole pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "FORWARD_ROWS", 4)
        yield Encoder(TORCH)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """13 crops of two photos, with a file that is no image at position 5 and a missing one at 11."""
    folder = tmp_path_factory.mktemp("photos")
    photos = [Image.open(PHOTOS / name) for name in ("flower.jpg", "china.jpg")]
    paths = []
    for i in range(13):
        paths.append(str(folder / f"{i:02}.jpg"))
        photos[i % 2].crop((10 * i, 5 * i, 10 * i + 200, 5 * i + 150)).save(paths[-1])
    Path(paths[5]).write_bytes(b"not an image")
    Path(paths[11]).unlink()
    return paths


def photo(name: str) -> Image.Image:
    return Image.open(PHOTOS / name).convert("RGB")


@pytest.mark.parametrize(("name", "label"), [("flower.jpg", DAISY), ("china.jpg", PALACE)])
def test_the_photo_is_what_the_network_says_and_wrong_normalisation_scores_lower(
    encoder: Encoder, name: str, label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = networks.load_packaged(num_classes=1000).classifier

    def classes() -> torch.Tensor:
        with torch.inference_mode():
            return head(torch.from_numpy(encoder(encoder.preprocess(photo(name))[None]))).softmax(1)[0]

    right = classes()
    assert int(right.argmax()) == label
    assert right[label] > 0.25
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for wrong in (imagenet, ((0.0,) * 3, (1.0,) * 3)):
        scale = tuple(torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in wrong)
        with monkeypatch.context() as patch:
            patch.setattr(encoder._backend, "_scale", scale)
            assert classes()[label] < right[label] - 0.03


def test_folding_batch_norm_into_convolutions_changes_no_vector() -> None:
    pixels = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        plain = networks.load_packaged()(pixels)
        folded = networks.fold_batch_norm(networks.load_packaged())
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        assert float((folded(pixels) - plain).norm() / plain.norm()) < 1e-4


def test_the_preprocessing_is_timms_own() -> None:
    network = networks.load_packaged(num_classes=1000)
    assert networks.preprocessing_of(network) == pixels.LITE0
    assert pixels.LITE0.mean == pixels.LITE0.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (257, 255), (30, 41), (1, 1), (60, 900)], ids=str)
def test_resize_and_crop_give_the_pixels_of_timms_transform(size: tuple[int, int], mode: str) -> None:
    # Smooth: on noise the two differ where values are clipped between the passes, which PIL orders by the shape of the result.
    image = photo("china.jpg").resize(size).filter(ImageFilter.GaussianBlur(2))
    transform = timm.data.create_transform((3, 224, 224), crop_pct=0.875, crop_mode=mode, interpolation="bicubic", use_prefetcher=True)
    how = pixels.Preprocessing((224, 224), 0.875, mode, "bicubic", (0.5,) * 3, (0.5,) * 3)
    ours = pixels.preprocess(image, how)
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - np.moveaxis(np.asarray(transform(image)), 0, -1)).max() <= 2


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)], ids=str)
def test_a_thread_of_pixels_is_embedded_without_blowing_it_up(size: tuple[int, int], encoder: Encoder) -> None:
    assert encoder.preprocess(Image.new("RGB", size, "red")).shape == (224, 224, 3)


def encoded(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def by_pil(data: bytes) -> np.ndarray:
    return pixels.preprocess(decode_rgb(data, max_pixels=LIMIT, min_side=pixels.min_side(pixels.LITE0)), pixels.LITE0)


PLAIN = {
    "colour": lambda: encoded(photo("china.jpg")),
    "grey": lambda: encoded(photo("flower.jpg").convert("L")),
    "progressive": lambda: encoded(photo("china.jpg"), progressive=True, quality=70),
    "full chroma": lambda: encoded(photo("flower.jpg"), subsampling=0),
    "small": lambda: encoded(photo("china.jpg").resize((90, 70))),
    "halved while decoded": lambda: encoded(photo("china.jpg").resize((1520, 1240))),
}

OTHERS = {
    "turned": lambda: encoded(photo("china.jpg"), exif=turned()),
    "CMYK": lambda: encoded(photo("china.jpg").convert("CMYK")),
    "long": lambda: encoded(photo("china.jpg").resize((1300, 300))),
    "large": lambda: encoded(photo("china.jpg").resize((1700, 1300))),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_jpeg_decoded_the_faster_way_has_the_vector_that_pil_gives(
    name: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PLAIN[name]()
    expected = by_pil(data)
    monkeypatch.setattr(pixels, "decode_rgb", lambda *_, **__: pytest.fail("PIL was asked"))
    found = encoder.decode(data, max_pixels=LIMIT)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 3
    assert difference.mean() < 0.02
    a, b = encoder(np.stack([found, expected])).astype(np.float64)
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 1 - 1e-4


@pytest.mark.parametrize("name", OTHERS)
def test_other_jpegs_are_decoded_by_pil(name: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    data = OTHERS[name]()
    expected = by_pil(data)
    monkeypatch.setattr(pixels, "_decode_jpeg", lambda *_: pytest.fail("OpenCV was asked"))
    np.testing.assert_array_equal(encoder.decode(data, max_pixels=LIMIT), expected)


def test_a_jpeg_that_ends_early_is_a_failure_as_pil_has_it(encoder: Encoder) -> None:
    whole = encoded(photo("china.jpg"))
    for length in (len(whole) // 2, len(whole) - 2):
        with pytest.raises(OSError, match="truncated"):
            encoder.decode(whole[:length], max_pixels=LIMIT)


def test_a_vector_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (backends.FORWARD_ROWS + 3, *encoder.input_size, 3), dtype=np.uint8)
    together = encoder(batch)
    assert together.shape == (len(batch), encoder.dim) == (len(batch), 1280)
    assert together.dtype == np.float32
    for i in (0, 3, len(batch) - 1):
        np.testing.assert_array_equal(encoder(batch[i : i + 1])[0], together[i])
    assert encoder(batch[:0]).shape == (0, 1280)


def test_files_come_in_order_and_a_bad_one_is_a_failure_with_a_reason(encoder: Encoder, files: list[str]) -> None:
    batches = list(embed_files(files, encoder, batch_size=4, threads=2, max_pixels=LIMIT))
    assert [len(b.positions) + len(b.failures) for b in batches] == [4, 4, 4, 1]
    positions = np.concatenate([b.positions for b in batches])
    assert positions.tolist() == [i for i in range(13) if i not in (5, 11)]
    failures = {position: reason for b in batches for position, reason in b.failures.items()}
    assert sorted(failures) == [5, 11]
    assert all(reason and "\n" not in reason for reason in failures.values())
    vectors = np.concatenate([b.vectors for b in batches])
    whole = next(iter(embed_files(files, encoder, batch_size=100, threads=1, max_pixels=LIMIT)))
    np.testing.assert_array_equal(vectors, whole.vectors)
    np.testing.assert_array_equal(vectors[0], encoder(encoder.decode(Path(files[0]).read_bytes(), max_pixels=LIMIT)[None])[0])


def test_a_file_whose_bytes_are_not_those_expected_is_a_failure(encoder: Encoder, files: list[str]) -> None:
    contents = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files[:3]]
    contents[1] = contents[0]
    (batch,) = embed_files(files[:3], encoder, batch_size=4, threads=1, max_pixels=LIMIT, content_sha256=contents)
    assert batch.positions.tolist() == [0, 2]
    assert "changed" in batch.failures[1]


def test_batches_of_nothing_but_failures_and_of_no_files_work(encoder: Encoder, files: list[str]) -> None:
    (batch,) = embed_files([files[5], files[11]], encoder, batch_size=2, threads=1, max_pixels=LIMIT)
    assert batch.vectors.shape == (0, 1280)
    assert sorted(batch.failures) == [0, 1]
    assert list(embed_files([], encoder, batch_size=2, threads=1, max_pixels=LIMIT)) == []


def test_an_image_with_too_many_pixels_is_a_failure(encoder: Encoder, files: list[str]) -> None:
    (batch,) = embed_files(files[:1], encoder, batch_size=2, threads=1, max_pixels=100)
    assert "100" in batch.failures[0]


def test_a_vector_that_is_not_finite_is_a_failure(encoder: Encoder, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std = encoder._backend._scale
    monkeypatch.setattr(encoder._backend, "_scale", (mean, std * float("nan")))
    (batch,) = embed_files(files[:2], encoder, batch_size=2, threads=1, max_pixels=LIMIT)
    assert len(batch.positions) == len(batch.vectors) == 0
    assert batch.failures == {0: "the vector is not finite", 1: "the vector is not finite"}


def test_closing_early_ends_the_threads(encoder: Encoder, files: list[str]) -> None:
    batches = embed_files(files * 20, encoder, batch_size=2, threads=3, max_pixels=LIMIT)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_only_a_few_batches_are_decoded_ahead(encoder: Encoder, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = encoding._load
    monkeypatch.setattr(encoding, "_load", lambda path, *rest: (loaded.append(path), load(path, *rest))[1])
    batches = embed_files(files * 20, encoder, batch_size=2, threads=2, max_pixels=LIMIT)
    next(batches)
    time.sleep(0.2)
    assert len(loaded) <= 2 * (encoding.PREFETCH + 1)
    batches.close()


def test_the_identity_needs_neither_torch_nor_timm() -> None:
    code = (
        "import sys, time; from dq_assets import settings; from dq_assets.audit.encoder import encoder_id; t = time.perf_counter();"
        "print(encoder_id(settings.Encoder()), time.perf_counter() - t, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    identity, seconds, *imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert identity == encoder_id(settings.Encoder())
    assert float(seconds) < 0.5  # 0.03 when nothing else runs
    assert imported == ["False", "False"]


def test_the_identity_changes_with_model_and_preprocessing_and_not_with_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = encoder_id(settings.Encoder())
    assert identity.startswith("tf_efficientnet_lite0@")
    assert encoder_id(settings.Encoder(batch_size=7)) == identity
    assert encoder_id(settings.Encoder(model="resnet18")).startswith("resnet18@timm-")
    squashed = pixels.Preprocessing((224, 224), 1.0, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setitem(pixels.LITE, networks.DEFAULT_MODEL, squashed)
    assert encoder_id(settings.Encoder()) != identity


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = torch.load(networks.packaged_weights(networks.DEFAULT_MODEL), weights_only=True)
    name, tensor = next(iter(stored.items()))
    monkeypatch.setattr(networks, "packaged_weights", lambda model: str(tmp_path / "weights.pth"))
    torch.save({**stored, name: tensor[:5]}, tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"do not fit conv_stem\.weight"):
        networks.load_packaged()
    torch.save(dict(list(stored.items())[:-1]), tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match="has 295 tensors"):
        networks.load_packaged()


def test_an_unknown_model_is_answered_with_close_names() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet_18'.*resnet18.*--set encoder\.model"):
        Encoder(settings.Encoder("resnet_18"))


def test_a_model_without_weights_is_refused_rather_than_random() -> None:
    with pytest.raises(UserError, match=r"no pretrained weights for 'efficientnet_b6'.*--set"):
        Encoder(settings.Encoder("efficientnet_b6"))


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> socket.socket:
    """A hub that takes connections and never answers, and an empty cache."""
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "hf_endpoint")]:
        monkeypatch.delenv(name)
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(networks, "HUB_SECONDS", 0.5)
    return server


def test_a_hub_that_does_not_answer_is_one_clear_error(silent_hub: socket.socket) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"'resnet18' cannot be fetched .*--set encoder\.model=tf_efficientnet_lite0\.$") as caught:
        Encoder(settings.Encoder("resnet18"))
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    silent_hub.close()


def test_a_hub_that_is_not_there_is_one_clear_error(silent_hub: socket.socket) -> None:
    silent_hub.close()
    with pytest.raises(UserError, match=r"'resnet18' cannot be fetched .*--set encoder\.model=tf_efficientnet_lite0\.$"):
        Encoder(settings.Encoder("resnet18"))
