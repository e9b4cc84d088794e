"""Pictures that the tests draw themselves: three classes that a network tells apart, with planted findings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dq_assets.settings import Home

CLASSES = ("ball", "grid", "stripe")
SIDE = 160


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """One picture of a class: a shape of random colour, size and place on a mottled background."""
    ground = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) // 3 + rng.integers(60, 160)
    image = Image.fromarray(ground.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    if kind == "ball":
        for _ in range(3):
            x, y, r = (int(v) for v in rng.integers((20, 20, 12), (140, 140, 32)))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="black", width=2)
    elif kind == "grid":
        step = int(rng.integers(12, 26))
        for at in range(int(rng.integers(0, step)), SIDE, step):
            pen.line((at, 0, at, SIDE), fill=colour, width=3)
            pen.line((0, at, SIDE, at), fill=colour, width=3)
    else:
        step, slope = int(rng.integers(14, 30)), int(rng.integers(40, 140))
        for at in range(-SIDE, 2 * SIDE, step):
            pen.line((at, 0, at + slope, SIDE), fill=colour, width=step // 2)
    return image.filter(ImageFilter.GaussianBlur(0.6))


@dataclass(frozen=True)
class Planted:
    """A folder of pictures and what was planted there, as paths relative to it."""

    root: Path
    flipped: tuple[str, ...]
    exact: tuple[str, str]
    near: tuple[str, str]
    cross_label: tuple[str, str]
    broken: str


def plant(root: Path, per_class: int = 24) -> Planted:
    """Draw the classes and plant: three wrong labels, an exact copy, a re-encoded copy, a copy under another label, a broken file."""
    rng = np.random.default_rng(7)
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for number in range(per_class):
            draw(kind, rng).save(root / kind / f"{number:03d}.png")
    flipped = []
    for given, true in zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True):
        name = f"{given}/9{true}.png"
        draw(true, rng).save(root / name)
        flipped.append(name)
    shutil.copy(root / "ball/000.png", root / "ball/copy.png")
    with Image.open(root / "grid/000.png") as image:
        image.resize((128, 128), Image.Resampling.LANCZOS).save(root / "grid/small.jpg", quality=85)
    shutil.copy(root / "stripe/000.png", root / "ball/stray.png")
    (root / "grid/broken.jpg").write_bytes((root / "grid/small.jpg").read_bytes()[:400])
    return Planted(
        root,
        tuple(flipped),
        ("ball/000.png", "ball/copy.png"),
        ("grid/000.png", "grid/small.jpg"),
        ("stripe/000.png", "ball/stray.png"),
        "grid/broken.jpg",
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The planted pictures, drawn once; for reading only."""
    return plant(tmp_path_factory.mktemp("pictures") / "shapes")


@pytest.fixture
def pictures(template: Planted, tmp_path: Path) -> Planted:
    """A copy of the planted pictures that a test may change."""
    root = tmp_path / "shapes"
    shutil.copytree(template.root, root)
    return Planted(root, template.flipped, template.exact, template.near, template.cross_label, template.broken)


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Home]:
    """Makes a $DQ_HOME that is empty but for the converted network, which all share: converting it takes 5 s of CPU."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "openvino"
    shared.mkdir(exist_ok=True)

    def make(root: Path) -> Home:
        home = Home(root)
        home.cache.mkdir(parents=True)
        (home.cache / "openvino").symlink_to(shared)
        return home

    return make


@pytest.fixture
def home(tmp_path: Path, new_home: Callable[[Path], Home]) -> Home:
    """A $DQ_HOME without datasets."""
    return new_home(tmp_path / "home")
