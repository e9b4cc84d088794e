"""What runs the network: the same vectors from each backend, the choice among them, memory that does not suffice, and no telemetry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit import backends, engine
from dq_assets.audit.backends import Backend, OpenVINOBackend, TorchBackend, is_out_of_memory, rows_that_fit
from dq_assets.audit.encoder import Encoder, encoder_id
from dq_assets.audit.engine import TOLERANCE, Engine, choose
from dq_assets.audit.pixels import LITE0, Preprocessing
from dq_assets.settings import UserError

FLOAT32 = Engine("torch", "cpu", "float32", "a test")
SMALL = Preprocessing((64, 64), 1.0, "squash", "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module", autouse=True)
def _few_rows() -> Iterator[None]:
    """Fewer rows per pass, for speed; one thread of torch, since others spin on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "FORWARD_ROWS", 4)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos() -> NDArray[np.uint8]:
    """Nine crops of two photos, 224 x 224."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images = [Image.fromarray(image) for image in load_sample_images().images]
    return np.stack([np.asarray(images[i % 2].resize((500, 330)).crop((20 * i, 8 * i, 20 * i + 224, 8 * i + 224))) for i in range(9)])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Row by row."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def torch_vectors(photos: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Encoder(settings.Encoder(backend="torch"))(photos)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_openvino_gives_the_vectors_of_torch_and_none_depends_on_its_batch(
    photos: NDArray[np.uint8], torch_vectors: NDArray[np.float32], cache: Path
) -> None:
    encoder = Encoder(settings.Encoder(backend="openvino"), cache=cache)
    vectors = encoder(photos)
    assert vectors.dtype == np.float32
    assert vectors.shape == (9, encoder.dim) == torch_vectors.shape
    assert cosine(vectors, torch_vectors).min() > 1 - TOLERANCE["float32"]
    assert np.abs(vectors - torch_vectors).max() < 1e-4 * np.abs(torch_vectors).max()
    for i in (0, 4, 8):
        np.testing.assert_array_equal(encoder(photos[i : i + 1])[0], vectors[i])


def test_a_converted_network_is_kept_and_read_back(cache: Path, photos: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    first = Encoder(settings.Encoder(backend="openvino"), cache=cache)
    kept = sorted(path.suffix for path in (cache / "openvino").iterdir())
    assert kept == [".bin", ".xml"]
    monkeypatch.setattr(OpenVINOBackend, "_converted", lambda *_: pytest.fail("converted again"))
    again = Encoder(settings.Encoder(backend="openvino"), cache=cache)
    np.testing.assert_array_equal(first(photos), again(photos))


def test_bfloat16_is_near_float32_nearly_the_same_on_both_backends_and_does_not_depend_on_the_batch(
    photos: NDArray[np.uint8], torch_vectors: NDArray[np.float32], cache: Path
) -> None:
    found = []
    for backend in ("torch", "openvino"):
        try:
            encoder = Encoder(settings.Encoder(backend=backend, precision="bfloat16"), cache=cache)
        except UserError as error:
            pytest.skip(str(error))  # a processor without it
        found.append(encoder(photos))
        assert 0.98 < cosine(found[-1], torch_vectors).min() < 1 - TOLERANCE["bfloat16"]  # it is not float32 under another name
        np.testing.assert_array_equal(encoder(photos[8:])[0], found[-1][8])
    assert cosine(*found).min() > 1 - TOLERANCE["bfloat16"]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_openvino_converts_other_networks(name: str) -> None:
    torch.manual_seed(0)
    more = {} if name == "resnet18" else {"img_size": 64}
    network = timm.create_model(name, pretrained=False, num_classes=0, **more).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = TorchBackend(network, SMALL, FLOAT32)(pixels)
    found = OpenVINOBackend(lambda: network, SMALL, FLOAT32, name, None)(pixels)
    assert cosine(found, expected).min() > 1 - TOLERANCE["float32"]


def test_nothing_of_openvinos_telemetry_is_loaded_or_written(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import torch\n"
        "from dq_assets.audit.backends import OpenVINOBackend\n"
        "from dq_assets.audit.engine import Engine\n"
        "from dq_assets.audit.pixels import LITE0\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
        "OpenVINOBackend(lambda: net, LITE0, Engine('openvino', 'cpu', 'float32', ''), 'k', None)\n"
        "import openvino.tools.ovc as ovc\n"
        "print(ovc.telemetry.__class__.__module__, [m for m in sys.modules if m.startswith('openvino_telemetry.')])"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}  # no CI variable, which would silence it too
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "[]"], done.stderr
    assert not (tmp_path / "intel").exists()


@pytest.mark.parametrize(
    ("backend", "precision", "has", "chosen"),
    [
        ("auto", "auto", {"openvino"}, ("openvino", "cpu", "float32")),
        ("auto", "auto", set(), ("torch", "cpu", "float32")),
        ("auto", "auto", {"openvino", "gpu"}, ("torch", "cuda", "float32")),
        ("auto", "auto", {"openvino", "arm"}, ("torch", "cpu", "float32")),
        ("torch", "auto", {"openvino"}, ("torch", "cpu", "float32")),
        ("openvino", "auto", {"openvino", "gpu"}, ("openvino", "cpu", "float32")),
        ("auto", "bfloat16", {"openvino"}, ("openvino", "cpu", "bfloat16")),
        ("torch", "bfloat16", {"gpu"}, ("torch", "cuda", "bfloat16")),
    ],
)
def test_the_choice_of_the_backend(backend: str, precision: str, has: set[str], chosen: tuple[str, str, str]) -> None:
    found = choose(backend, precision, openvino="openvino" in has, gpu=lambda: "gpu" in has, x86="arm" not in has)
    assert (found.backend, found.device, found.precision) == chosen
    assert found.why


def test_a_backend_that_is_not_installed_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed\. Run pip install 'dq-assets\[openvino\]'"):
        engine.engine_of(settings.Encoder(backend="openvino"))
    assert "pip install" in engine.engine_of(settings.Encoder()).why


def test_the_identity_has_the_precision_and_not_the_backend() -> None:
    of = {p: {encoder_id(settings.Encoder(backend=b, precision=p)) for b in ("auto", "torch", "openvino")} for p in ("auto", *TOLERANCE)}
    assert of["auto"] == of["float32"]
    assert len(of["float32"]) == len(of["bfloat16"]) == 1
    assert of["float32"] != of["bfloat16"]


class Scarce(Backend):
    """A backend whose memory holds `fits` images; its vectors are the images' first pixels."""

    def __init__(self, fits: int, error: Exception, said: list[str]) -> None:
        super().__init__(16, 2, padded=True, say=said.append)
        self.fits, self.error, self.shrunk, self.seen = fits, error, 0, 0

    def run(self, batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        assert len(batches) <= self.passes
        assert all(len(pixels) == self.rows for pixels in batches)
        if self.rows > self.fits:
            raise self.error
        return [pixels[:, 0, 0].astype(np.float32) for pixels in batches]

    def shrink(self) -> None:
        self.shrunk += 1


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Exception from src/inference: std::bad_alloc"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__ + str(error)[:12])
def test_a_batch_that_does_not_fit_is_halved_and_that_is_said_once(error: Exception) -> None:
    said: list[str] = []
    scarce = Scarce(4, error, said)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 2, 2, 3), dtype=np.uint8)
    for _ in range(2):
        np.testing.assert_array_equal(scarce(pixels), pixels[:, 0, 0])
    assert said == [f"{n} images at once do not fit into memory; going on with {n // 2}." for n in (16, 8)]
    assert (scarce.rows, scarce.shrunk) == (4, 2)


def test_one_image_that_does_not_fit_is_an_error_and_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(UserError, match=r"Not even one image.*choose a smaller encoder\.model"):
        Scarce(0, MemoryError(), [])(np.zeros((3, 2, 2, 3), np.uint8))
    with pytest.raises(RuntimeError, match="shapes"):
        Scarce(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), [])(np.zeros((3, 2, 2, 3), np.uint8))


def test_a_real_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_openvino_compiles_anew_for_half_the_rows(photos: NDArray[np.uint8], torch_vectors: NDArray[np.float32], cache: Path) -> None:
    said: list[str] = []
    encoder = Encoder(settings.Encoder(backend="openvino"), cache=cache, say=said.append)
    run, asked = encoder._backend.run, []

    def once(batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        asked.append(len(batches[0]))
        if len(asked) == 1:
            raise MemoryError
        return run(batches)

    encoder._backend.run = once  # type: ignore[method-assign]
    assert cosine(encoder(photos), torch_vectors).min() > 1 - TOLERANCE["float32"]
    assert asked == [4, 2, 2, 2]
    assert said == ["4 images at once do not fit into memory; going on with 2."]


@pytest.mark.parametrize(("free", "per_image", "rows"), [(16 << 30, 10 << 20, 256), (80 << 30, 1 << 20, 512), (100, 100, 1), (0, 0, 1)])
def test_rows_on_a_gpu_are_a_power_of_two_that_fits(free: int, per_image: int, rows: int) -> None:
    assert rows_that_fit(free, per_image) == rows


class PretendedGpu(TorchBackend):
    """All that is done for a GPU, on the CPU."""

    places = {"cuda": "cpu"}  # noqa: RUF012


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_way_of_a_gpu_gives_the_vectors_of_the_cpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []
    released: list[bool] = []
    for name, value in {"memory_allocated": 0, "max_memory_allocated": 4 << 20, "mem_get_info": (32 << 20, 0)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(len(tensor)), tensor)[1])
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    said: list[str] = []
    gpu = PretendedGpu(network, SMALL, Engine("torch", "cuda", precision, "a test"), said.append)
    assert (gpu.rows, gpu.passes, gpu.batch) == (8, 2, 16)  # a quarter of 32 MB in images of 1 MB
    pixels = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
    del pinned[:]
    expected = TorchBackend(network, SMALL, Engine("torch", "cpu", precision, "a test"))(pixels)
    assert cosine(gpu(pixels), expected).min() > 1 - TOLERANCE[precision]
    assert pinned == [8, 8, 5]  # as the batches are: nothing is padded
    forward = gpu._forward

    def scarce(pixels: NDArray[np.uint8]) -> torch.Tensor:
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(pixels)

    gpu._forward = scarce  # type: ignore[method-assign]
    assert cosine(gpu(pixels), expected).min() > 1 - TOLERANCE[precision]
    assert said == ["8 images at once do not fit into memory; going on with 4."]
    assert released == [True]
    assert not torch.backends.cudnn.allow_tf32


def test_lite0_is_not_loaded_when_its_conversion_is_kept(cache: Path) -> None:
    Encoder(settings.Encoder(backend="openvino"), cache=cache)
    kept = OpenVINOBackend(lambda: pytest.fail("loaded"), LITE0, FLOAT32, encoder_id(settings.Encoder()), cache)
    assert kept.batch == kept.rows * kept.passes
