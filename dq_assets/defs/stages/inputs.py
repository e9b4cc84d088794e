"""What several stages read: of the images that could be read, in image_id order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dq_assets.audit import folds
from dq_assets.audit.rows import Streamed
from dq_assets.defs.session import Session
from dq_assets.store.contents import read_vectors
from dq_assets.store.tables import matrix_blocks, read_matrix

PUBLISH_ROWS = 8192
"""Rows per block of a matrix while it is published."""


def image_vectors(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """(image_id (n,), vectors (n, d)) of the readable images, in image_id order."""
    fine = session.fine("content_sha256")
    vectors = read_vectors(session.lake, session.dataset.name, session.encoder_id(), fine["content_sha256"].to_list())
    return fine["image_id"].to_numpy(), vectors


def vector_reader(session: Session) -> Callable[[np.ndarray], np.ndarray]:
    """What reads the vectors (m, d) of some positions among the readable images."""
    contents, identity = session.fine("content_sha256")["content_sha256"], session.encoder_id()
    return lambda chosen: read_vectors(session.lake, session.dataset.name, identity, contents.gather(chosen).to_list())


def read_neighbors(session: Session, image_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions in image_id (n, k), distances (n, k)) from the published graph."""
    _, ids = read_matrix(session.lake, session.dataset.name, "neighbors", "neighbor_ids")
    _, distances = read_matrix(session.lake, session.dataset.name, "neighbors", "distances")
    return np.searchsorted(image_id, ids), distances


def group_of(session: Session, image_id: np.ndarray) -> np.ndarray:
    """(n,) duplicate group of each image, -1 for none."""
    groups = session.table("duplicate_groups", "image_id", "group_id")
    found = np.full(len(image_id), -1, np.int64)
    found[np.searchsorted(image_id, groups["image_id"].to_numpy())] = groups["group_id"].to_numpy()
    return found


def classes(session: Session) -> tuple[list[str], np.ndarray]:
    """Class names in sorted order, and (n,) codes of the readable images, -1 for unlabelled."""
    labels = session.fine("given_label")["given_label"]
    names = sorted(labels.drop_nulls().unique())
    index = {name: code for code, name in enumerate(names)}
    return names, np.array([index.get(label, -1) for label in labels], np.int64)


def learnable_classes(session: Session, names: list[str]) -> np.ndarray:
    """(K,) whether a class has enough independent images."""
    labels = session.fine("given_label")["given_label"].to_list()
    components = session.table("folds", "component_id")["component_id"].to_numpy()
    found = folds.learnable_classes(labels, components, session.settings.folds.min_components)
    return np.array([name in found for name in names], bool)


def streamed_probs(session: Session, shape: tuple[int, int]) -> Streamed:
    """(n, K) out-of-fold probabilities in image_id order, read from the lake block by block whenever they are gone over."""
    return Streamed(shape, lambda: (values for _, values in matrix_blocks(session.lake, session.dataset.name, "oof_probs", "probs")))


def arrow_blocks(image_id: np.ndarray, **columns: np.ndarray) -> Iterator[pa.Table]:
    """Rows as Arrow tables of PUBLISH_ROWS; 2-D arrays become list columns."""
    for start in range(0, len(image_id), PUBLISH_ROWS):
        part = slice(start, start + PUBLISH_ROWS)
        yield pa.table({"image_id": image_id[part], **{name: _arrow(values[part]) for name, values in columns.items()}})


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32) if values.shape[1] else np.zeros(len(values) + 1, np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).ravel())


def cache_folder(session: Session) -> Path:
    """A folder for what a stage keeps on disk while it runs."""
    cache = session.home.cache / session.dataset.name
    cache.mkdir(parents=True, exist_ok=True)
    return cache
