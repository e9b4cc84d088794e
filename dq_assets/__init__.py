"""Finds and fixes mislabeled images, outliers and near-duplicates in image-classification datasets, as Dagster assets.

`read(name, table, version=None)` returns a table of a dataset as polars, as of a complete audit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

__version__ = "0.1.0"


def read(name: str, table: str, version: int | None = None) -> pl.DataFrame:
    """A table of dataset `name` as of audit `version`, the latest complete one by default.

    Raises `dq_assets.settings.UserError` for an unknown dataset, table or audit. Reads the lake under $DQ_HOME (./data).
    """
    from dq_assets.settings import Home
    from dq_assets.store import audits
    from dq_assets.store.lake import Lake

    with Lake.open(Home.from_environment()) as lake:
        return audits.read(lake, name, table, version)
