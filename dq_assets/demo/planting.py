"""Known issues planted into a copy of a folder of class folders, with the truth about every image. Scoring: `scoreboard`.

Planted are label flips, near-duplicates, exact copies, copies under a second class, and pictures that belong to no class;
copies often stand in another split than their source, which is leakage. Files get neutral numbers in random order, the
suffix, size and colour mode of the source, so that nothing but the picture tells what was planted.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageEnhance, ImageOps

from dq_assets.demo.drawings import OUTLIERS
from dq_assets.demo.sources import one_builder, whole_folder
from dq_assets.settings import UserError

EDITS = ("crop", "resize", "brightness", "jpeg", "mirror", "combined")
"""How a near-duplicate differs: 5 to 10 % cropped off each side length, scaled by .7 to .9, brightness by .8 to 1.25, JPEG
quality 60, mirrored, or all of these."""

SMALL_EDITS = ("brightness", "jpeg", "shift")
"""Edits of pictures with a side under 64 px: there a crop or a scaling leaves another picture, and a mirrored 2 is no 2."""

TRUTH: dict[str, Any] = {
    "path": pl.String,  # relative to images/
    "given_label": pl.String,
    "true_label": pl.String,  # null for outliers
    "is_label_error": pl.Boolean,  # null for outliers
    "dup_group": pl.Int64,  # null outside planted groups; the source image is a member
    "dup_kind": pl.String,  # original, exact, or the edit
    "is_outlier": pl.Boolean,
    "split": pl.String,
    "planted": pl.String,  # none, label_flip, near_duplicate, exact_duplicate, cross_label, outlier
    "source_path": pl.String,  # relative to the source; null for outliers
}

_MARKER = "planting.json"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test", "unused": "unused"}


@dataclass(frozen=True)
class Planted:
    """A planted copy. path: the folder to audit; splits_csv: columns path, split; truth: columns of `TRUTH`, by path."""

    path: Path
    splits_csv: Path
    truth: pl.DataFrame
    counts: dict[str, int]


@dataclass(frozen=True)
class _Original:
    """An image of the source. pixels: hash of what it shows, None if it cannot be read."""

    path: str
    label: str
    split: str | None
    pixels: str | None


@dataclass(frozen=True)
class _Row:
    """One image of the copy, before it has a name. original: its source; of an outlier the image whose size and mode it takes."""

    original: _Original
    given: str
    split: str
    planted: str = "none"
    dup_group: int | None = None
    dup_kind: str | None = None
    turn: int = 0  # of a near-duplicate: which edit to try first; of an outlier: which kind to draw


def plant(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    label_flips: float = 0.05,
    near_duplicates: float = 0.02,
    exact_duplicates: float = 0.01,
    cross_label: float = 0.005,
    outliers: float = 0.01,
    test_share: float = 0.2,
) -> Planted:
    """Copy the class folders of `source` to out/images with issues planted; write out/splits.csv and out/truth.parquet.

    The five shares are of the number of images in the source, at least one image each unless 0. test_share: of the images,
    put into test; half as many go into validation; a source with split folders keeps its own splits. An image gets at most
    one issue, and images whose pixels stand more than once in the source get none: a flip would make its twin wrong as
    well. Deterministic for a seed; a finished copy of the same source with the same arguments is reused.
    Unchanged images are hard links where the file system can: do not edit them in place.
    Raises UserError if the source has fewer than two classes or too few images, or `out` holds something else.
    """
    shares = {
        "label_flip": label_flips,
        "near_duplicate": near_duplicates,
        "exact_duplicate": exact_duplicates,
        "cross_label": cross_label,
        "outlier": outliers,
    }
    files = _image_files(source)
    listing = "\n".join(f"{file} {(source / file).stat().st_size}" for file in files)
    record = {"source": hashlib.sha256(listing.encode()).hexdigest(), "seed": seed, "test_share": test_share, **shares}
    with one_builder(out):
        marker = out / _MARKER
        if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != record:
            rng = np.random.default_rng(seed)
            rows = _decide(_read(source, files), shares, test_share, rng)
            with whole_folder(out, _MARKER) as draft:
                _write(source, draft, rows, seed, rng)
                (draft / _MARKER).write_text(json.dumps(record) + "\n", encoding="utf-8")
    truth = pl.read_parquet(out / "truth.parquet")
    planted = Counter(truth["planted"].to_list())
    return Planted(out / "images", out / "splits.csv", truth, {"images": truth.height, **{kind: planted[kind] for kind in shares}})


def _image_files(source: Path) -> list[str]:
    found = (path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)
    files = sorted(path.as_posix() for path in found if len(path.parts) > 1 and not any(part.startswith(".") for part in path.parts))
    if not files:
        raise UserError(f"{source} has no images in class folders. Give a folder of class folders.")
    return files


def _read(source: Path, files: list[str]) -> list[_Original]:
    """Label, split and pixel hash of every image. A split level is one where every top folder is named as a split."""
    has_splits = all(file.split("/")[0].lower() in _SPLITS for file in files) and all(file.count("/") > 1 for file in files)

    def read(file: str) -> _Original:
        parts = file.split("/")
        split = _SPLITS[parts[0].lower()] if has_splits else None
        try:
            image = _open(source / file)
        except (OSError, Image.DecompressionBombError):  # copied as it is; nothing is planted on it
            return _Original(file, parts[has_splits], split, None)
        return _Original(file, parts[has_splits], split, _pixel_hash(image))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(read, files))


def _open(path: Path) -> Image.Image:
    """Decode upright, as L where the file is L, else as RGB."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("L" if image.mode == "L" else "RGB")


def _pixel_hash(image: Image.Image) -> str:
    return hashlib.blake2b(repr(image.size).encode() + image.convert("RGB").tobytes(), digest_size=16).hexdigest()


def _decide(originals: list[_Original], shares: dict[str, float], test_share: float, rng: np.random.Generator) -> list[_Row]:
    """Every image of the copy. Which edit a near-duplicate gets is settled in `_write_image`, where its pixels are seen."""
    classes = sorted({original.label for original in originals})
    issues = _choose(originals, len(classes), shares, rng)
    splits = _splits(originals, test_share, rng)
    present = sorted(set(splits) - {"unused"}) or ["train"]
    rows = []
    copies: Counter[str] = Counter()
    for number, (original, split) in enumerate(zip(originals, splits, strict=True)):
        issue = issues.get(number, "none")
        other = _another(classes, original.label, rng)
        if issue in ("none", "label_flip"):
            rows.append(_Row(original, original.label if issue == "none" else other, split, issue))
            continue
        # Half of the copies stand in another split than their source: that is the planted leakage.
        copy_split = _another(present, split, rng) if rng.random() < 0.5 else split
        label = other if issue == "cross_label" else original.label
        group = copies.total()
        rows.append(_Row(original, original.label, split, dup_group=group, dup_kind="original"))
        rows.append(_Row(original, label, copy_split, issue, group, "exact", turn=copies[issue]))
        copies[issue] += 1
    readable = [original for original in originals if original.pixels is not None]
    for number in range(_count(shares["outlier"], originals)):
        like = readable[int(rng.integers(len(readable)))]
        rows.append(_Row(like, str(rng.choice(classes)), str(rng.choice(splits)), "outlier", turn=number))
    return rows


def _choose(originals: list[_Original], n_classes: int, shares: dict[str, float], rng: np.random.Generator) -> dict[int, str]:
    """Number of the original -> its issue; never two for one image, none for images shown more than once."""
    kinds = [kind for kind, share in shares.items() if kind != "outlier" for _ in range(_count(share, originals))]
    shown = Counter(original.pixels for original in originals)
    free = [number for number, original in enumerate(originals) if original.pixels is not None and shown[original.pixels] == 1]
    if n_classes < 2 or not free or len(kinds) > len(free):
        raise UserError(
            f"{len(kinds)} issues do not fit on {len(free)} different images in {n_classes} classes. "
            "Give a source of at least 2 classes and more images, or plant less."
        )
    return dict(zip(rng.permutation(free).tolist(), kinds, strict=False))


def _count(share: float, originals: list[_Original]) -> int:
    return max(1, round(share * len(originals))) if share > 0 else 0


def _splits(originals: list[_Original], test_share: float, rng: np.random.Generator) -> list[str]:
    """The source's splits, or drawn ones. Twins of the source share theirs, so that exact leakage is only the planted one."""
    drawn: dict[str, str] = {}
    splits = []
    for original in originals:
        value = rng.random()
        split = "test" if value < test_share else "validation" if value < 1.5 * test_share else "train"
        splits.append(original.split or drawn.setdefault(original.pixels or original.path, split))
    return splits


def _another(values: list[str], value: str, rng: np.random.Generator) -> str:
    others = [other for other in values if other != value]
    return others[int(rng.integers(len(others)))] if others else value


def _write(source: Path, draft: Path, rows: list[_Row], seed: int, rng: np.random.Generator) -> None:
    """Write images, truth.parquet and splits.csv. Each picture has its own random stream, so the order of threads is nothing."""
    numbers = rng.permutation(len(rows))
    for label in {row.given for row in rows}:
        (draft / "images" / label).mkdir(parents=True)

    def write(position: int) -> dict[str, object]:
        row = rows[position]
        path = f"{row.given}/{numbers[position]:06d}{Path(row.original.path).suffix}"
        dup_kind = _write_image(row, source / row.original.path, draft / "images" / path, np.random.default_rng([seed, position]))
        is_outlier = row.planted == "outlier"
        return {
            "path": path,
            "given_label": row.given,
            "true_label": None if is_outlier else row.original.label,
            "is_label_error": None if is_outlier else row.given != row.original.label,
            "dup_group": row.dup_group,
            "dup_kind": dup_kind,
            "is_outlier": is_outlier,
            "split": row.split,
            "planted": row.planted,
            "source_path": None if is_outlier else row.original.path,
        }

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        truth = pl.DataFrame(list(pool.map(write, range(len(rows)))), schema=TRUTH).sort("path")
    truth.write_parquet(draft / "truth.parquet")
    truth.select("path", "split").write_csv(draft / "splits.csv")


def _write_image(row: _Row, original: Path, target: Path, rng: np.random.Generator) -> str | None:
    """Link, copy, edit or draw one file; returns the dup_kind, for a near-duplicate the edit that was made."""
    if row.planted == "outlier":
        image = _open(original)
        drawn = OUTLIERS[row.turn % len(OUTLIERS)](rng).resize(image.size, Image.Resampling.LANCZOS).convert(image.mode)
        # Two colours may be one grey: without the stretch a third of the 28 px outliers were nearly blank.
        (ImageOps.autocontrast(drawn) if image.mode == "L" else drawn).save(target)
    elif row.planted == "near_duplicate":
        edit, edited = _near_duplicate(_open(original), row.turn, rng)
        if target.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            edited.save(target, quality=95)
        else:
            edited.save(target)
        return edit
    elif row.planted in ("exact_duplicate", "cross_label"):
        shutil.copyfile(original, target)  # two files of their own, as in a real folder
    else:
        try:
            os.link(original, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(original, target)
    return row.dup_kind


def _near_duplicate(image: Image.Image, turn: int, rng: np.random.Generator) -> tuple[str, Image.Image]:
    """The edit whose turn it is, or the next that changes a pixel: a mirrored circle is a circle, and white gets no brighter."""
    kinds = EDITS if min(image.size) >= 64 else SMALL_EDITS
    before = _pixel_hash(image)
    for step in range(len(kinds)):
        kind = kinds[(turn + step) % len(kinds)]
        edited = image
        for edit in ("crop", "resize", "brightness", "mirror", "jpeg") if kind == "combined" else (kind,):
            edited = _EDIT[edit](edited, rng)
        if _pixel_hash(edited) != before:
            return kind, edited
    return "pixel", image  # a small picture of one colour withstands them all


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * rng.uniform(0.9, 0.95))) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.7, 0.9)
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.LANCZOS)


def _brightness(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.8, 0.92) if rng.random() < 0.5 else rng.uniform(1.1, 1.25)
    return ImageEnhance.Brightness(image).enhance(factor)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=60)
    return Image.open(packed).convert(image.mode)


def _mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image)


def _shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One pixel in one of eight directions; the border is repeated."""
    down, right = [(y, x) for y in (0, 1, 2) for x in (0, 1, 2) if (y, x) != (1, 1)][int(rng.integers(8))]
    pixels = np.asarray(image)
    padded = np.pad(pixels, ((1, 1), (1, 1)) + ((0, 0),) * (pixels.ndim - 2), mode="edge")
    return Image.fromarray(padded[down : down + image.height, right : right + image.width])


_EDIT = {"crop": _crop, "resize": _resize, "brightness": _brightness, "jpeg": _jpeg, "mirror": _mirror, "shift": _shift}
