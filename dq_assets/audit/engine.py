"""Which backend, device and precision a dataset is embedded with (decision 9). The backends are in `dq_assets.audit.backends`.

In one precision all backends give the same vectors, within TOLERANCE, so precision is part of a vector's identity and the backend is not.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass

from dq_assets import settings
from dq_assets.settings import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3}
"""Most that 1 - cosine of two backends' vectors of an image may be. PyTorch and OpenVINO on 700 photos: 1.5e-7 and 8.3e-5 at most.
bfloat16 and float32 are up to 9.9e-3 apart: 5.9 % of the ten nearest neighbours are others."""


@dataclass(frozen=True)
class Engine:
    """backend: torch or openvino; device: cpu or cuda; precision: float32 or bfloat16; why: the reason of the choice."""

    backend: str
    device: str
    precision: str
    why: str

    def __str__(self) -> str:
        name = {"torch": "PyTorch", "openvino": "OpenVINO"}[self.backend]
        return f"{name} on the {'GPU' if self.device == 'cuda' else 'CPU'} in {self.precision}: {self.why}"


def engine_of(options: settings.Encoder) -> Engine:
    """What will run on this machine. Loads torch only for a look at the GPU. Raises UserError if what is named is not there."""
    require_backend(options)
    openvino = importlib.util.find_spec("openvino") is not None
    return choose(options.backend, options.precision, openvino=openvino, gpu=_has_gpu, x86=platform.machine() in ("x86_64", "AMD64"))


def require_backend(options: settings.Encoder) -> None:
    """Raises UserError if the named backend is not installed; imports nothing."""
    if options.backend == "openvino" and importlib.util.find_spec("openvino") is None:
        raise UserError("openvino is not installed. Run pip install 'dq-assets[openvino]', or --set encoder.backend=auto.")


def choose(backend: str, precision: str, *, openvino: bool, gpu: Callable[[], bool], x86: bool) -> Engine:
    """The rule of `auto`, from the settings and what the machine has."""
    chosen = precision_of(precision)
    if backend == "openvino":
        return Engine("openvino", "cpu", chosen, "encoder.backend names it")
    if gpu():
        return Engine("torch", "cuda", chosen, "PyTorch sees a GPU")
    if backend == "torch":
        return Engine("torch", "cpu", chosen, "encoder.backend names it")
    if not x86:
        return Engine("torch", "cpu", chosen, "this is no x86-64 processor")
    if openvino:
        return Engine("openvino", "cpu", chosen, "it is installed, and faster than PyTorch")
    return Engine("torch", "cpu", chosen, "openvino is not installed; pip install 'dq-assets[openvino]' makes it faster")


def precision_of(precision: str) -> str:
    """float32 for auto, on every machine: so the same data has the same vectors everywhere."""
    return "float32" if precision == "auto" else precision


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
