"""What an interrupted scan already knows: blocks of file records under cache/, dropped when the manifest is published.

A scan of a million files takes an hour; Ctrl-C or a killed process loses one block of it, not the hour.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import polars as pl

from dq_assets.settings import Home


class ScanScratch:
    """The blocks of one dataset and one code version; records of another code version are not comparable."""

    def __init__(self, home: Home, dataset: str, code_version: str) -> None:
        self._root = home.cache / dataset / "scan"
        self._folder = self._root / code_version

    def add(self, block: pl.DataFrame) -> None:
        """Keep a block; it is whole or not there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f"{uuid.uuid4()}.tmp"
        block.write_parquet(draft)
        draft.replace(draft.with_suffix(".parquet"))

    def read(self, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
        """All records kept so far."""
        blocks = [pl.read_parquet(file) for file in sorted(self._folder.glob("*.parquet"))]
        return pl.concat(blocks) if blocks else pl.DataFrame(schema=schema)

    def clear(self) -> None:
        """Drop everything, of older code versions too."""
        for file in self._root.glob("*/*"):
            file.unlink(missing_ok=True)
        for folder in (*self._root.glob("*"), self._root):
            if Path(folder).is_dir():
                folder.rmdir()
