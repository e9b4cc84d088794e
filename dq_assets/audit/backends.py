"""What runs a network: PyTorch on a CPU or a GPU, or OpenVINO. Each maps pixels (n, height, width, 3) uint8 to vectors (n, dim) float32.

Which of them runs is chosen in `dq_assets.audit.engine`.
"""

from __future__ import annotations

import abc
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.engine import Engine
from dq_assets.audit.pixels import Preprocessing
from dq_assets.audit.process import import_openvino, keep_freed_memory
from dq_assets.settings import UserError

if TYPE_CHECKING:
    import torch

FORWARD_ROWS = 16
"""Images in one forward pass on a CPU, always: other numbers of rows give other last bits, and a vector must not depend on its batch."""

MOST_ROWS = 512
"""Images in one forward pass on a GPU at most; more gain nothing and delay the first commit."""

NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "can not allocate", "alloc_failed", "bad_alloc")
"""What the messages of allocators say, in lower case: PyTorch on a CPU and on a GPU, cuDNN and cuBLAS, OpenVINO."""

Say = Callable[[str], None]


class Backend(abc.ABC):
    """Runs batches of any size in passes of `rows` images, `passes` of them at once; halves `rows` when memory does not suffice.

    padded: whether each pass has exactly `rows` images, the last ones zeros. Then no vector depends on its batch, not by a bit.
    """

    def __init__(self, rows: int, passes: int, *, padded: bool, say: Say | None) -> None:
        self.rows, self.passes, self._padded = rows, passes, padded
        self._say = say or logging.getLogger(__name__).warning

    @property
    def batch(self) -> int:
        """Images that one call works on at once."""
        return self.rows * self.passes

    @abc.abstractmethod
    def run(self, batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Vectors of at most `passes` batches, at once. Raises MemoryError or RuntimeError if memory does not suffice."""

    def shrink(self) -> None:  # noqa: B027 (not every backend has anything to do)
        """Called after `rows` was halved."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, height, width, 3), n at least 1 -> (n, dim). Raises UserError if not even one image fits into memory."""
        vectors: list[NDArray[np.float32]] = []
        done = 0
        while done < len(pixels):
            part = pixels[done : done + self.batch]
            try:
                vectors.append(np.concatenate(self.run(self._split(part)))[: len(part)])
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
            else:
                done += len(part)
        return np.concatenate(vectors)

    def _split(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        missing = -len(pixels) % self.rows if self._padded else 0
        if missing:
            pixels = np.concatenate((pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)))
        return [pixels[start : start + self.rows] for start in range(0, len(pixels), self.rows)]

    def _halve(self, error: Exception) -> None:
        if self.rows == 1:
            raise UserError("Not even one image fits into memory. Free some, or choose a smaller encoder.model.") from error
        self.rows //= 2
        self._say(f"{2 * self.rows} images at once do not fit into memory; going on with {self.rows}.")
        self.shrink()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is of an allocation. PyTorch and OpenVINO raise RuntimeError for it as for anything else."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY)


class TorchBackend(Backend):
    """PyTorch in eager mode, channels last. On a GPU: pinned memory, copies beside the computation, as many rows as fit."""

    places: ClassVar = {"cpu": "cpu", "cuda": "cuda"}
    """PyTorch's name of a device of Engine. Tests run what is for a GPU on a CPU."""

    def __init__(self, network: torch.nn.Module, how: Preprocessing, engine: Engine, say: Say | None = None) -> None:
        import torch

        keep_freed_memory()
        self._gpu, self._lower = engine.device == "cuda", engine.precision == "bfloat16"
        self._device = self.places[engine.device]
        self._network = network.eval().to(self._device, memory_format=torch.channels_last)
        self._scale = tuple(
            torch.tensor(values, dtype=torch.float32, device=self._device).mul(255).view(1, 3, 1, 1) for values in (how.mean, how.std)
        )
        super().__init__(FORWARD_ROWS, 2 if self._gpu else 1, padded=not self._gpu, say=say)
        if self._gpu:  # TF32, the default of convolutions, keeps 10 bits: these would be other vectors under the name of float32
            torch.backends.cudnn.allow_tf32 = False
            self.rows = self._rows_that_fit(how.input_size)

    def run(self, batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """See Backend. On a GPU all are queued before the first answer is waited for."""
        import torch

        with torch.inference_mode():
            queued = [self._forward(pixels) for pixels in batches]
            return [np.asarray(vectors.float().cpu()) for vectors in queued]

    def shrink(self) -> None:
        """Give what the larger batch left back to the device."""
        import torch

        if self._gpu:
            torch.cuda.empty_cache()

    def _forward(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        import torch

        mean, std = self._scale
        images = torch.from_numpy(pixels)
        if self._gpu:
            images = images.pin_memory().to(self._device, non_blocking=True)
        planes = images.permute(0, 3, 1, 2)  # NHWC permuted is channels_last already: nothing is copied
        with torch.autocast(self._device, torch.bfloat16, enabled=self._lower):
            vectors: torch.Tensor = self._network((planes.float() - mean) / std)
            return vectors

    def _rows_that_fit(self, size: tuple[int, int]) -> int:
        import torch

        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.run([np.zeros((FORWARD_ROWS, *size, 3), np.uint8)])
        return rows_that_fit(torch.cuda.mem_get_info()[0], (torch.cuda.max_memory_allocated() - before) // FORWARD_ROWS)


def rows_that_fit(free: int, per_image: int) -> int:
    """A power of two from 1 to MOST_ROWS such that two passes take at most half of the free bytes."""
    most = max(1, min(MOST_ROWS, free // (4 * max(1, per_image))))
    return 1 << (most.bit_length() - 1)


class OpenVINOBackend(Backend):
    """OpenVINO on the CPU: two passes at once, each of exactly `rows` images. Sends no telemetry.

    The network comes from torch by `torch.export`; that takes seconds, so the result is kept in `cache` under `key`, which has to name
    weights and architecture.
    """

    def __init__(
        self, load: Callable[[], torch.nn.Module], how: Preprocessing, engine: Engine, key: str, cache: Path | None, say: Say | None = None
    ) -> None:
        openvino = import_openvino()
        self._core = openvino.Core()
        if engine.precision == "bfloat16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("This processor has no bfloat16 that OpenVINO could use. Take --set encoder.precision=float32.")
        self._load, self._how, self._key, self._cache = load, how, key, cache
        self._precision = {"float32": "f32", "bfloat16": "bf16"}[engine.precision]
        super().__init__(FORWARD_ROWS, min(2, os.cpu_count() or 1), padded=True, say=say)
        self.shrink()

    def shrink(self) -> None:
        """Compile for the present number of rows."""
        openvino = import_openvino()
        self._requests: list[Any] = []  # frees what was compiled before
        model = self._model(openvino)
        adapter = openvino.preprocess.PrePostProcessor(model)
        adapter.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        adapter.input().model().set_layout(openvino.Layout("NCHW"))
        mean, std = ([255 * value for value in values] for values in (self._how.mean, self._how.std))
        adapter.input().preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
        compiled = self._core.compile_model(
            adapter.build(),
            "CPU",
            # Pinned threads would wait on one core while the other, which a decoding thread has left, is idle.
            {"INFERENCE_PRECISION_HINT": self._precision, "NUM_STREAMS": self.passes, "ENABLE_CPU_PINNING": False},
        )
        self._requests = [compiled.create_infer_request() for _ in range(self.passes)]

    def run(self, batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """See Backend."""
        used = self._requests[: len(batches)]
        for request, pixels in zip(used, batches, strict=True):
            request.start_async([np.ascontiguousarray(pixels)])
        for request in used:
            request.wait()
        return [request.get_output_tensor().data.copy() for request in used]

    def _model(self, openvino: Any) -> Any:
        """The network in OpenVINO's terms, from the cache or converted."""
        if self._cache is None:
            return self._converted(openvino)
        folder = self._cache / "openvino"
        name = f"{self._key}-{self.rows}-{openvino.__version__.partition('-')[0]}"
        xml, weights = folder / f"{name}.xml", folder / f"{name}.bin"
        if not xml.exists():
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f"{name}.{os.getpid()}.xml"
            openvino.save_model(self._converted(openvino), draft, compress_to_fp16=False)
            draft.with_suffix(".bin").replace(weights)
            draft.replace(xml)  # last, so its existence means that both are complete
        return self._core.read_model(xml, weights)

    def _converted(self, openvino: Any) -> Any:
        import torch

        example = torch.zeros(self.rows, 3, *self._how.input_size)
        with torch.no_grad():
            model = openvino.convert_model(torch.export.export(self._load().eval(), (example,)))
        model.reshape([self.rows, 3, *self._how.input_size])
        return model
