"""The user's own out-of-sample probabilities (`--pred-probs`), in place of those of our heads: found, put in order, checked.

A Parquet file names its rows (column `path`) and its columns (one per class, or a list `probs` over the classes in sorted
order), so it cannot be misread. An .npy file names neither: its rows are those of the manifest, or of a folder by folder and
name as torchvision's ImageFolder lists them, and its columns the classes in sorted order. Against a wrong order there is one
defence: probabilities that agree with the labels no more than by chance are refused.

Nothing is held whole: an .npy is read by blocks; a Parquet file is first laid out by rows in a scratch file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_assets.audit.agreement import agreement
from dq_assets.audit.rows import Codes, Float, NpyRows, blocks
from dq_assets.settings import Dataset, UserError
from dq_assets.sources.listing import is_manifest, root_of
from dq_assets.sources.manifests import manifest_paths, resolve_path

TOLERANCE = 1e-3
"""How far the sum of a row may be from 1. A softmax rounded to float16 is within 5e-4."""
CHANCE_IMAGES = 50
"""Fewest labelled images on which agreement by chance is told from a real one."""


class PredProbsError(UserError):
    """The file of probabilities does not fit. The message is one line and ends with what to do."""


@dataclass(frozen=True)
class PredProbs:
    """Checked probabilities: row i of an image is `rows[order[i]]`. metrics: see `audit.agreement.agreement`, and `source`."""

    rows: NpyRows
    order: Codes
    metrics: dict[str, Any]

    def blocks(self, n_rows: int) -> Iterator[Float]:
        """float32 (at most n_rows, K), in the order of the images."""
        return (self.rows[self.order[start : start + n_rows]] for start in range(0, len(self.order), n_rows))


def identity(dataset: Dataset) -> str:
    """What the probabilities depend on: SHA-256 of the file and, where rows go by the manifest's order, of the manifest."""
    assert dataset.pred_probs is not None
    file = Path(dataset.pred_probs)
    parts = [_sha256(file)]
    if file.suffix.lower() == ".npy" and is_manifest(dataset.path):
        parts += manifest_paths(dataset.path)
    return " ".join(parts)


def check_file(file: Path) -> None:
    """Raises PredProbsError unless the file is there and is an .npy of rows or a Parquet file with a column path."""
    if file.suffix.lower() == ".npy":
        _open_npy(file)
    else:
        _open_parquet(file)


def read_pred_probs(
    dataset: Dataset,
    paths: Sequence[str],
    is_ok: NDArray[np.bool_],
    *,
    class_names: Sequence[str],
    labels: Codes,
    folds: NDArray[np.integer],
    scratch: Path,
) -> PredProbs:
    """Read and check the file of a dataset.

    paths: of all files of the manifest. is_ok: which of them are scored, those that could be read. labels, folds: of these.
    scratch: a folder for a copy of a Parquet file by rows; it has to outlive the result.

    Raises PredProbsError for a wrong number of rows or columns, images without a row, values that are not finite or below 0,
    rows whose sum is further than TOLERANCE from 1, and probabilities that agree with the labels no more than by chance.
    """
    assert dataset.pred_probs is not None
    file = Path(dataset.pred_probs)
    before = _stamp(file)
    ok_paths = [path for path, ok in zip(paths, is_ok, strict=True) if ok]
    ignored = 0
    if file.suffix.lower() == ".npy":
        rows = _open_npy(file)
        if rows.shape[1] != len(class_names):
            raise PredProbsError(f"{file} has {rows.shape[1]} columns; {_classes(class_names)}. Give one column per class, in that order.")
        order = _npy_order(rows.shape[0], dataset, paths, ok_paths, file)
    else:
        rows, ignored = _laid_out(file, dataset, ok_paths, class_names, scratch)
        order = np.arange(len(ok_paths))
    _check_values(rows, order, ok_paths, file)
    metrics = agreement(rows, labels, folds, int(folds.max(initial=-1)) + 1, order=order)
    _check_agreement(rows, order, labels, float(np.asarray(metrics["accuracy"])), file)
    if _stamp(file) != before:
        raise PredProbsError(f"{file} changed while it was read. Run the audit again.")
    counts = {"n_classes": float(len(class_names)), "n_labelled": float((labels >= 0).sum())}
    extra = {"rows without an image": ignored} if ignored else {}
    return PredProbs(rows, order, {"source": str(file), **metrics, **counts, **extra})


def _stamp(file: Path) -> tuple[int, int]:
    try:
        info = file.stat()
    except OSError as error:
        raise _unreadable(file, error) from error
    return info.st_size, info.st_mtime_ns


def _unreadable(file: Path, error: OSError) -> PredProbsError:
    return PredProbsError(f"Cannot read {file} ({error.strerror or error}). Give the file again with --pred-probs.")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file, error) from error


def _classes(class_names: Sequence[str]) -> str:
    shown = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    return f"the dataset has {len(class_names)} classes ({shown})"


def _open_npy(file: Path) -> NpyRows:
    try:
        return NpyRows(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:
        raise PredProbsError(f"{file} {error}.") from error


def _npy_order(n: int, dataset: Dataset, paths: Sequence[str], ok_paths: list[str], file: Path) -> Codes:
    """(images,) the row of each readable image. The file has a row for every file of the dataset, or for the readable ones."""
    if is_manifest(dataset.path):
        listed, what = manifest_paths(dataset.path), "row of the manifest, in its order"
    else:
        listed, what = sorted(paths, key=_folder_order), "file, by folder and then by name"
    first_row: dict[str, int] = {}
    for path in listed:
        first_row.setdefault(path, len(first_row))
    if n == len(listed):
        at = {path: row for row, path in reversed(list(enumerate(listed)))}
    elif n == len(ok_paths):
        readable = sorted(ok_paths, key=first_row.__getitem__)
        at = {path: row for row, path in enumerate(readable)}
    else:
        raise PredProbsError(
            f"{file} has {n} rows; the dataset has {len(listed)} files, {len(ok_paths)} of them readable. Give a row for each {what},"
            " or a Parquet file with a column path."
        )
    return np.array([at[path] for path in ok_paths], np.int64)


def _folder_order(path: str) -> tuple[str, str, str]:
    """Classes in sorted order, then folders, then names: `cat` before `cat-big`, though "cat-big/1" < "cat/1"."""
    folder, name = os.path.split(path)
    return path.split("/")[0] if folder else "", folder, name


def _open_parquet(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix.lower() != ".parquet":
        raise PredProbsError(f"{file} is neither an .npy nor a .parquet file. Give one of these with --pred-probs.")
    try:
        opened = pq.ParquetFile(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    except pa.ArrowInvalid as error:
        raise PredProbsError(f"{file} is not a Parquet file ({str(error).splitlines()[0]}). Write it again.") from error
    if "path" not in opened.schema_arrow.names:
        raise PredProbsError(f"{file} has no column path. Add the path of each image, relative to PATH.")
    return opened


def _laid_out(file: Path, dataset: Dataset, paths: list[str], class_names: Sequence[str], scratch: Path) -> tuple[NpyRows, int]:
    """The file's rows in the order of `paths`, as an .npy in the scratch folder, and how many of its rows no image has."""
    opened = _open_parquet(file)
    columns = _columns(opened.schema_arrow, class_names, file)
    position = {path: row for row, path in enumerate(paths)}
    root = root_of(dataset.path)
    folder = os.path.abspath(file.parent)
    target = scratch / "pred_probs.npy"
    n_classes = len(class_names)
    np.lib.format.open_memmap(target, "w+", np.float32, (len(paths), n_classes)).flush()
    seen = np.zeros(len(paths), bool)
    ignored, known = 0, position.keys()
    for batch in opened.iter_batches(batch_size=max(1, 4_000_000 // max(n_classes, 1)), columns=["path", *columns]):
        found = [None if path is None else resolve_path(str(path), root, folder, known) for path in batch["path"].to_pylist()]
        used = np.array([row for row, path in enumerate(found) if path is not None], np.int64)
        ignored += len(found) - used.size
        at = np.array([position[path] for path in found if path is not None], np.int64)
        if seen[at].any() or np.unique(at).size < at.size:
            repeated = next(paths[row] for n, row in enumerate(at) if seen[row] or row in at[:n])
            raise PredProbsError(f"{file} has two rows for {repeated}. Keep one row for each image.")
        seen[at] = True
        # Opened anew for each batch, so that its pages are let go.
        np.lib.format.open_memmap(target, "r+")[at] = _values(batch, columns, n_classes, file)[used]
    if not seen.all():
        missing = int((~seen).sum())
        example = paths[int(np.flatnonzero(~seen)[0])]
        raise PredProbsError(f"{file} has no row for {missing} of {len(paths)} images, such as {example}. Add a row for each image.")
    return NpyRows(target), ignored


def _columns(schema: Any, class_names: Sequence[str], file: Path) -> list[str]:
    """The columns of the classes, in their order; or the one list column `probs`."""
    absent = [name for name in class_names if name not in schema.names or name == "path"]
    if not absent:
        return list(class_names)
    if "probs" in schema.names and _is_list(schema.field("probs").type):
        return ["probs"]
    raise PredProbsError(
        f"{file} has no column for {len(absent)} classes, such as {absent[0]!r}; {_classes(class_names)}. Give a column per class,"
        " or a list column probs over them in sorted order."
    )


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _values(batch: Any, columns: list[str], n_classes: int, file: Path) -> Float:
    """(rows, K) of a batch; nulls become NaN, which the check of values names."""
    import pyarrow.compute as pc

    if _is_list(batch[columns[0]].type):
        lists = batch[columns[0]]
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        if (lengths != n_classes).any():
            row = int(np.flatnonzero(lengths != n_classes)[0])
            what = f"{lengths[row]} probabilities for {batch['path'][row].as_py()}, not {n_classes}"
            raise PredProbsError(f"{file} has {what}. Give one per class, in sorted order of the classes' names.")
        return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(lists), n_classes)
    values = np.empty((batch.num_rows, n_classes), np.float32)
    for at, name in enumerate(columns):
        try:
            values[:, at] = batch[name].to_numpy(zero_copy_only=False)
        except (TypeError, ValueError) as error:
            raise PredProbsError(f"Column {name} of {file} is no number. Give probabilities.") from error
    return values


def _check_values(rows: NpyRows, order: Codes, paths: list[str], file: Path) -> None:
    """Raises PredProbsError for the first image whose probabilities are none."""
    for part in blocks(len(order), rows.shape[1]):
        block = rows[order[part]]
        total, least = block.sum(axis=1), block.min(axis=1, initial=0.0)
        bad = ~(np.abs(total - 1) <= TOLERANCE) | ~(least >= 0)
        if not bad.any():
            continue
        row = int(np.flatnonzero(bad)[0])
        path = paths[part.start + row]
        if not np.isfinite(block[row]).all():
            raise PredProbsError(f"{file} has a value that is not a finite number for {path}. Score that image again.")
        if least[row] < 0:
            raise PredProbsError(f"{file} has a negative probability for {path} ({least[row]:.3g}). Give probabilities, not logits.")
        raise PredProbsError(
            f"The probabilities of {path} in {file} sum to {total[row]:.4g}, not to 1 within {TOLERANCE:g}."
            " Give a softmax over the classes of the dataset alone, computed in float32."
        )


def _check_agreement(rows: NpyRows, order: Codes, labels: Codes, accuracy: float, file: Path) -> None:
    """Raises PredProbsError if the most probable classes fit the labels no better than if they were shuffled."""
    n_classes = rows.shape[1]
    labelled = labels >= 0
    n = int(labelled.sum())
    if n < CHANCE_IMAGES or len(np.unique(labels[labelled])) < 2:
        return
    best = np.concatenate([rows[order[part]].argmax(axis=1) for part in blocks(len(order), n_classes)])[labelled]
    shares = [np.bincount(codes, minlength=n_classes) / n for codes in (best, labels[labelled])]
    chance = float(shares[0] @ shares[1])
    # Three standard deviations: a shuffled file passes once in 700 times, a model that learnt anything fails hardly ever.
    if accuracy <= chance + 3 * np.sqrt(chance * (1 - chance) / n):
        raise PredProbsError(
            f"The most probable classes in {file} fit {accuracy:.1%} of the labels, no better than by chance ({chance:.1%} if shuffled)."
            " Check the order of rows and columns; a Parquet file with paths and class names has none."
        )
