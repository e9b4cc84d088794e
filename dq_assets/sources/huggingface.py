"""Hugging Face datasets on disk: what `save_to_disk` wrote (Arrow files), and folders or files of Parquet with an image column.

The package `datasets` is not needed. An address is `arrow+file:///...#column/row` or `parquet+file:///...#column/row`. The bytes of the
images are read row by row: Arrow through a memory map, Parquet in batches.
"""

from __future__ import annotations

import bisect
import errno
import functools
import json
import os
import re
import threading
import urllib.parse
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_assets.sources.folder import file_uri, local_path
from dq_assets.sources.layout import COLUMNS, SPLIT_NAMES, Facts, Listing, ListingError, as_text, is_hidden

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS, BATCHES_KEPT = 8, 4
"""Rows of Parquet that are unpacked at once, and how many such batches stay in memory: threads ask a little out of order."""


def is_huggingface(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` or holds Parquet with an image column, or a file is such Parquet."""
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return True
        first = next(_parquet_files(path), None)
        return first is not None and _image_column(_schema("parquet", first)) is not None
    if path.suffix.lower() != ".parquet":
        return False
    schema = _schema("parquet", path)
    return "path" not in map(str.lower, schema.names) and _image_column(schema) is not None


def list_huggingface(root: Path) -> Listing:
    """One row per image row of the dataset's tables. `path` is the table's path and `#row`. Raises ListingError."""
    import polars as pl

    tables = list(_arrow_files(root)) if root.is_dir() and not next(_parquet_files(root), None) else []
    kind = "arrow" if tables else "parquet"
    if not tables:
        tables = [(file, _split_of(file, root)) for file in (_parquet_files(root) if root.is_dir() else [root])]
    frames, skipped = [], Counter[str]()
    for file, split in tables:
        schema = _schema(kind, file)
        image = _image_column(schema)
        if image is None:
            skipped["tables without an image column"] += 1
            continue
        labels = _labels(kind, file, schema)
        info, relative = file.stat(), as_text(str(file.relative_to(root if root.is_dir() else root.parent)))
        # All rows of a table change with its file.
        facts = Facts(None, info.st_mtime, f"table:{info.st_size}-{info.st_mtime_ns}")
        uri = f"{kind}+{file_uri(str(file))}#{urllib.parse.quote(image, safe='')}/"
        row = pl.int_range(len(labels), eager=True).cast(pl.String)
        # Padded, so that the order of the names is that of the rows.
        named = {"path": f"{relative}#" + row.str.zfill(8), "uri": uri + row, "given_label": labels, "split": split, "group": None}
        values = {**facts._asdict(), **named}
        frames.append(pl.DataFrame({name: values[name] for name in COLUMNS}, schema=COLUMNS))
    return Listing(pl.concat(frames) if frames else pl.DataFrame(schema=COLUMNS), dict(skipped))


def read_row(uri: str, most: int) -> bytes:
    """The bytes of the image in a row. Raises FileNotFoundError, or OSError (EFBIG: more than `most`)."""
    import pyarrow as pa

    kind, _, rest = uri.partition("+")
    address, _, place = rest.partition("#")
    column, _, row = place.rpartition("/")
    file = local_path(address)
    info = os.stat(file)
    try:
        table = _opened(kind, file, urllib.parse.unquote(column), f"{info.st_size}-{info.st_mtime_ns}")
        value = table.value(int(row))
        if value is None or not value.is_valid or not value["bytes"].is_valid:
            path = value["path"].as_py() if value is not None and value.is_valid and "path" in value else None
            raise FileNotFoundError(errno.ENOENT, f"the row holds no bytes, only the path {path!r}" if path else "the row holds no image")
        content = value["bytes"]
        if content.as_buffer().size > most:
            raise OSError(errno.EFBIG, f"{content.as_buffer().size} bytes, more than images.max_bytes = {most}")
        data: bytes = content.as_py()
        return data
    except pa.ArrowException as error:
        raise OSError(errno.EIO, f"damaged table: {str(error).splitlines()[0]}") from error


def _parquet_files(root: Path) -> Iterator[Path]:
    """Below the folder, in order of their names; hidden ones not."""
    return iter(sorted(f for f in root.rglob("*.parquet") if f.is_file() and not any(map(is_hidden, f.relative_to(root).parts))))


def _arrow_files(root: Path) -> Iterator[tuple[Path, str | None]]:
    """(file, split) as the JSON files of `save_to_disk` name them."""
    names = _json(root / "dataset_dict.json")["splits"] if (root / "dataset_dict.json").is_file() else [None]
    for name in names:
        folder = root if name is None else root / _file_name(name, root)
        for entry in _json(folder / "state.json")["_data_files"]:
            yield folder / _file_name(entry["filename"], folder), SPLIT_NAMES.get(str(name).lower())


def _file_name(name: str, folder: Path) -> str:
    """A name from a JSON file, which must stay in its folder."""
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise ListingError(f"{as_text(str(folder))} names a file outside of it: {name!r}. Save the dataset again.")
    return name


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ListingError(f"Cannot read {as_text(str(file))} ({error}). Save the dataset again with save_to_disk.") from error


def _split_of(file: Path, root: Path) -> str | None:
    """By a folder of that name, or the file's first word: train-00000-of-00002.parquet."""
    parts = file.relative_to(root).parts if file != root else (file.name,)
    words = [*parts[:-1], re.split(r"[-_.\d]", parts[-1])[0]]
    return next((SPLIT_NAMES[word.lower()] for word in words if word.lower() in SPLIT_NAMES), None)


def _schema(kind: str, file: Path) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == "parquet":
            return pq.read_schema(file)
        with pa.OSFile(str(file)) as opened:
            return pa.ipc.open_stream(opened).schema
    except (OSError, pa.ArrowException) as error:
        raise ListingError(f"Cannot read {as_text(str(file))} ({str(error).splitlines()[0]}). Check that it was copied whole.") from error


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` noted of the columns: {name: {"_type": "ClassLabel", "names": [...]}}."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in noted.items() if isinstance(feature, dict)} if isinstance(noted, dict) else {}


def _image_column(schema: pa.Schema) -> str | None:
    """The column that holds images: structs with a binary field `bytes`. Of several the one called image, else the first."""
    import pyarrow as pa

    def is_image(kind: pa.DataType) -> bool:
        if not pa.types.is_struct(kind) or (at := kind.get_field_index("bytes")) < 0:
            return False
        return bool(pa.types.is_binary(kind.field(at).type) or pa.types.is_large_binary(kind.field(at).type))

    noted = _features(schema)
    found = [f.name for f in schema if is_image(f.type) and noted.get(f.name, {}).get("_type", "Image") == "Image"]
    return "image" if "image" in found else next(iter(found), None)


def _label_column(schema: pa.Schema, file: Path) -> str | None:
    """The column called label or labels, else the only one of class labels."""
    named = next((name for name in ("label", "labels") if name in schema.names), None)
    classes = [name for name, feature in _features(schema).items() if feature.get("_type") == "ClassLabel"]
    if named is None and len(classes) > 1:
        raise ListingError(
            f"{as_text(str(file))} has several columns of labels: {', '.join(classes)}. Rename the one that is to be audited to label."
        )
    return named or next(iter(classes), None)


def _labels(kind: str, file: Path, schema: pa.Schema) -> list[str | None]:
    """The label of each row, class numbers as their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = _label_column(schema, file)
    try:
        if column is None:
            return [None] * (pq.read_metadata(file).num_rows if kind == "parquet" else len(_arrow_table(str(file))))
        if pa.types.is_nested(schema.field(column).type):
            raise ListingError(f"{as_text(str(file))} has several labels for an image (column {column}). Give one label for each.")
        table = pq.ParquetFile(file).read([column]) if kind == "parquet" else _arrow_table(str(file))
        values = table[column].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ListingError(f"Cannot read {as_text(str(file))} ({str(error).splitlines()[0]}). Check that it was copied whole.") from error
    names = _features(schema).get(column, {}).get("names")
    known = dict(enumerate(names)) if isinstance(names, list) else {}
    if known:  # -1 is how `datasets` says that there is none
        return [None if v is None or v == -1 else str(known.get(v, v)) for v in values]
    return [None if v is None or v == "" else str(v) for v in values]


def _arrow_table(file: str) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(file)).read_all()


@functools.lru_cache(maxsize=8)
def _opened(kind: str, file: str, column: str, mark: str) -> _Arrow | _Parquet:
    return _Parquet(file, column) if kind == "parquet" else _Arrow(file, column)


class _Arrow:
    """A column of an Arrow file that is mapped, not read."""

    def __init__(self, file: str, column: str) -> None:
        self._values = _arrow_table(file)[column]
        self._values.validate(full=True)  # offsets from a file could point anywhere

    def value(self, row: int) -> Any:
        """A struct scalar, or None past the end."""
        return self._values[row] if row < len(self._values) else None


class _Parquet:
    """A column of a Parquet file: read onwards in batches, from the start of the row group for what lies behind."""

    def __init__(self, file: str, column: str) -> None:
        import pyarrow.parquet as pq

        self._file, self._column = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False), column
        self._groups: list[int] = []  # first row of each row group, and the end
        at = 0
        for group in range(self._file.num_row_groups):
            self._groups.append(at)
            at += self._file.metadata.row_group(group).num_rows
        self._n_rows = at
        self._batches: Iterator[Any] = iter(())
        self._at = self._group = -1
        self._kept: deque[tuple[int, Any]] = deque(maxlen=BATCHES_KEPT)
        self._lock = threading.Lock()

    def value(self, row: int) -> Any:
        """A struct scalar, or None past the end."""
        if row >= self._n_rows:
            return None
        with self._lock:
            while (held := self._held(row)) is None:
                group = bisect.bisect_right(self._groups, row) - 1
                if group != self._group or row < self._at:
                    self._batches = self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False)
                    self._group, self._at = group, self._groups[group]
                column = next(self._batches).column(0)
                self._kept.append((self._at, column))
                self._at += len(column)
            return held

    def _held(self, row: int) -> Any:
        return next((column[row - first] for first, column in self._kept if first <= row < first + len(column)), None)
