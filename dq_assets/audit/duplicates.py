"""Which images show the same picture: nominate pairs cheaply, confirm them on pixels, and group them.

Perceptual hashes and the embedding nominate (`candidate_pairs`), aligned pixels confirm (`confirm_pairs`, by `witness`),
`duplicate_groups` forms the table. What the groups mean for labels and splits is in `near_dups`.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dq_assets import settings
from dq_assets.audit.threads import map_in_order
from dq_assets.audit.witness import WITNESS_VERSION, Prepared, aligned_correlation, correlation, prepare

__all__ = ["WITNESS_VERSION", "aligned_correlation", "candidate_pairs", "confirm_pairs", "duplicate_groups"]

Ints = NDArray[np.int64]

GROUPS_SCHEMA = {"image_id": pl.Int64, "group_id": pl.Int64, "kind": pl.String, "distance": pl.Float32}

ALWAYS_NEAREST = 3
"""So many nearest neighbours are looked at up to twice the cosine distance: recall .951 -> .988 of altered photos for 1.7 x the pairs."""

MAX_PARTNERS = 32
"""Pairs by hash that an image may nominate. Plain pictures share a hash by the thousand."""

MAX_BUCKET = 1000
"""Images of one bucket that an image is compared with by hash."""

_CHUNK = 4_000_000
_BUCKETED = 32_768
_BLOCK = 2048
_CACHED = 4096


def candidate_pairs(phash: NDArray[np.uint64], neighbors: Ints, distances: NDArray[np.float32], settings: settings.Duplicates) -> Ints:
    """Pairs worth a look at their pixels: (m, 2) positions with i < j, unique, sorted.

    phash: (n,) 64-bit perceptual hashes. neighbors: (n, k) positions by rising distance, -1 for none. distances: (n, k) cosine.
    By hash: at most `settings.phash_distance` bits apart, found by multi-index hashing (Norouzi et al. 2012): 64 bits in four
    bands, one of which must be nearly equal. Bounds, so that degenerate hashes do not explode: an image is compared with at
    most MAX_BUCKET others per bucket, and a pair stands only if it is among the MAX_PARTNERS closest of one of its images; of
    images with one and the same hash each is compared with the MAX_PARTNERS that follow it, and the first four with other hashes.
    By embedding: at most `settings.cosine_distance` apart, and twice that for the ALWAYS_NEAREST nearest.
    So there are at most n * (MAX_PARTNERS + k) pairs. Raises ValueError if the shapes do not fit.
    """
    if neighbors.shape != distances.shape or neighbors.ndim != 2 or len(neighbors) != len(phash):
        raise ValueError(f"phash {phash.shape}, neighbors {neighbors.shape} and distances {distances.shape} do not fit together.")
    near = distances <= settings.cosine_distance
    near[:, :ALWAYS_NEAREST] |= distances[:, :ALWAYS_NEAREST] <= 2 * settings.cosine_distance
    row, column = np.nonzero(near & (neighbors >= 0))
    by_embedding = np.stack([row, neighbors[row, column]], axis=1).astype(np.int64)
    return _unique_pairs(np.concatenate([by_embedding, _hash_pairs(phash, settings.phash_distance)]), len(phash))


def confirm_pairs(
    pairs: Ints,
    load: Callable[[int], NDArray[np.uint8]],
    settings: settings.Duplicates,
    *,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Look at the pixels of each pair: (m,) 1 - `aligned_correlation` where that is at least `settings.min_correlation`.

    NaN where the pictures differ; +inf where one of the two could not be loaded, so that `np.isinf(...).sum()` counts these.
    pairs: (m, 2) positions; sorted pairs load fewest images. load: RGB uint8 of a position, called from `threads` threads, again
    for an image that fell out of the cache of 4,096 (some 200 MB); its OSError and ValueError mean not loadable, others pass.
    progress: called with the number of pairs done so far.
    """
    import cv2

    answer = np.full(len(pairs), np.nan, dtype=np.float32)
    held: OrderedDict[int, Prepared | None] = OrderedDict()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pool has the cores; OpenCV's own threads on top made it slower
    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for start in range(0, len(pairs), _BLOCK):
                block = pairs[start : start + _BLOCK]
                _hold(held, np.unique(block).tolist(), load, pool)
                looks = pool.map(lambda pair: _distance(held[pair[0]], held[pair[1]], settings), block.tolist())
                answer[start : start + len(block)] = list(looks)
                if progress is not None:
                    progress(start + len(block))
    finally:
        cv2.setNumThreads(before)
    return answer


def duplicate_groups(
    image_id: Ints,
    content: Sequence[str | None],
    pixel_hash: Sequence[str | None],
    pairs: Ints,
    distances: NDArray[np.float32],
) -> pl.DataFrame:
    """Table duplicate_groups: (image_id, group_id, kind, distance), sorted by image_id, only images in a group of two or more.

    image_id: (n,) ascending. content, pixel_hash: (n,), None where unknown. pairs: (m, 2) positions; distances: (m,), of which
    finite ones are confirmed.

    Equal bytes and equal pixels are one image. Near pairs are not chained, as a row of look-alikes would glue half a class
    together: the image with most confirmed partners becomes a hub and takes its free partners, then the next one (smaller
    image_id on a tie); an image whose partners all went to other hubs follows its closest partner. So every image
    with a confirmed partner is in a group, and is at most two confirmed steps from its hub.
    """
    node, kind = _equal_images(content, pixel_hash)
    confirmed = np.isfinite(distances)
    edges = np.concatenate([pairs[confirmed], pairs[confirmed][:, ::-1]])
    length = np.tile(distances[confirmed], 2).astype(np.float32)
    group = _hub_groups(node, node[edges], length)
    inside = group[edges[:, 0]] == group[edges[:, 1]]
    closest = np.full(len(image_id), np.inf, dtype=np.float32)
    np.minimum.at(closest, edges[inside, 0], length[inside])
    frame = pl.DataFrame({"image_id": image_id, "group": group, "kind": kind, "distance": np.clip(closest, 0, 1)})
    equal = pl.col("kind") != "near"
    return (
        frame.filter(pl.len().over("group") > 1)
        .with_columns(group_id=pl.col("image_id").min().over("group"), distance=pl.when(equal).then(0.0).otherwise("distance"))
        .select(pl.col(name).cast(dtype) for name, dtype in GROUPS_SCHEMA.items())
        .sort("image_id")
    )


def _unique_pairs(pairs: Ints, n: int) -> Ints:
    """Pairs with i < j, once each, sorted."""
    low, high = pairs.min(axis=1, initial=n), pairs.max(axis=1, initial=-1)
    code = np.sort(low[low != high] * n + high[low != high])
    # np.unique hashes integers, which took 1 s for 4 million; sorting them takes .06 s.
    code = code[np.diff(code, prepend=-1) > 0]
    return np.stack([code // max(n, 1), code % max(n, 1)], axis=1)


def _hash_pairs(phash: NDArray[np.uint64], radius: int) -> Ints:
    """Pairs of positions with hashes at most `radius` bits apart, within the bounds of `candidate_pairs`."""
    order = np.argsort(phash, kind="stable")
    distinct, first, count = np.unique(phash[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    left = np.repeat(count, count) - rank - 1
    same = [np.stack([order[:-step], order[step:]], axis=1)[left[:-step] >= step] for step in range(1, min(MAX_PARTNERS + 1, len(order)))]
    apart = _pairs_within(distinct, radius)
    for a, b in itertools.product(range(4), range(4)):
        here = (count[apart[:, 0]] > a) & (count[apart[:, 1]] > b)
        same.append(np.stack([order[first[apart[here, 0]] + a], order[first[apart[here, 1]] + b]], axis=1))
    return _closest(np.concatenate([*same, np.empty((0, 2), dtype=np.int64)]), phash)


def _pairs_within(codes: NDArray[np.uint64], radius: int) -> Ints:
    """Pairs of distinct hashes at most `radius` bits apart; the closest MAX_PARTNERS of each."""
    found, waiting = np.empty((0, 2), dtype=np.int64), 0
    parts: list[Ints] = []
    for band in range(4):
        # Pigeonhole: of four bands one has at most radius // 4 differing bits; those after the remainder one fewer.
        reach = radius // 4 - (band > radius % 4)
        for near in _bucket_pairs(codes, _band(codes, band), reach, radius):
            parts.append(near)
            waiting += len(near)
            if waiting > _CHUNK:
                found, parts, waiting = _closest(np.concatenate([found, *parts]), codes), [], 0
    return _closest(np.concatenate([found, *parts]), codes)


def _band(codes: NDArray[np.uint64], band: int) -> Ints:
    """Every fourth bit, as a number of 16 bits: neighbouring bits of a DCT hash are alike, so a band of them would make few buckets."""
    key = np.zeros(len(codes), dtype=np.int64)
    for bit in range(16):
        key |= ((codes >> np.uint64(4 * bit + band)) & np.uint64(1)).astype(np.int64) << bit
    return key


def _bucket_pairs(codes: NDArray[np.uint64], key: Ints, reach: int, radius: int) -> Iterator[Ints]:
    """Pairs of positions at most `radius` bits apart whose 16-bit keys differ in at most `reach` bits.

    Of a bucket an image is compared with MAX_BUCKET at most.
    """
    order = np.argsort(key, kind="stable")
    key, codes = key[order], codes[order]
    start = np.searchsorted(key, np.arange(65537))
    # At most _CHUNK looks at a time, and _BUCKETED rows.
    step = _CHUNK // min(MAX_BUCKET, max(int(np.diff(start).max()), _CHUNK // _BUCKETED))

    def search(task: tuple[int, int]) -> Ints:
        mask, first = task
        mine = np.arange(first, min(first + step, len(key)))
        if mask:
            mine = mine[key[mine] < (key[mine] ^ mask)]
        low = start[key[mine] ^ mask] if mask else mine + 1
        many = np.clip(start[(key[mine] ^ mask) + 1] - low, 0, MAX_BUCKET)
        ends = np.cumsum(many)
        # What one image is compared with lies together.
        other = np.repeat(low - (ends - many), many) + np.arange(ends[-1] if len(ends) else 0)
        apart = np.bitwise_count(np.repeat(codes[mine], many) ^ codes[other])
        near = np.flatnonzero(apart <= radius)
        return np.stack([order[mine[np.searchsorted(ends, near, side="right")]], order[other[near]]], axis=1)

    masks = [sum(1 << bit for bit in bits) for flips in range(reach + 1) for bits in itertools.combinations(range(16), flips)]
    return map_in_order(search, ((mask, first) for mask in masks for first in range(0, len(key), step)))


def _closest(pairs: Ints, codes: NDArray[np.uint64]) -> Ints:
    """Pairs that are among the MAX_PARTNERS closest of at least one of their two: at most MAX_PARTNERS for each code."""
    n = len(codes)
    pairs = _unique_pairs(pairs, n)
    bits = np.bitwise_count(codes[pairs[:, 0]] ^ codes[pairs[:, 1]]).astype(np.int64)
    kept = []
    for mine, other in ((0, 1), (1, 0)):
        # Owner, bits and other in one number: sorting that is 10 times faster than np.lexsort, and fits for 370 million images.
        ranked = np.sort((pairs[:, mine] * 65 + bits) * n + pairs[:, other])
        owner = ranked // (65 * n)
        first = np.arange(len(owner)) - np.searchsorted(owner, owner) < MAX_PARTNERS
        kept.append(np.stack([owner[first], ranked[first] % n], axis=1))
    return _unique_pairs(np.concatenate(kept), n)


def _hold(
    held: OrderedDict[int, Prepared | None], needed: list[int], load: Callable[[int], NDArray[np.uint8]], pool: ThreadPoolExecutor
) -> None:
    """Prepare what is needed and not held; then let the longest unused go."""

    def prepared(position: int) -> Prepared | None:
        try:
            return prepare(load(position))
        except (OSError, ValueError):
            return None

    missing = [position for position in needed if position not in held]
    held.update(zip(missing, pool.map(prepared, missing), strict=True))
    for position in needed:
        held.move_to_end(position)
    while len(held) > max(_CACHED, len(needed)):
        held.popitem(last=False)


def _distance(a: Prepared | None, b: Prepared | None, settings: settings.Duplicates) -> float:
    if a is None or b is None:
        return float("inf")
    found = correlation(a, b, enough=settings.min_correlation, mirrored=settings.mirrored)
    return 1 - found if found >= settings.min_correlation else float("nan")


def _equal_images(content: Sequence[str | None], pixel_hash: Sequence[str | None]) -> tuple[Ints, list[str]]:
    """(n,) position of the first image with equal bytes or pixels, and the strongest kind of tie each image may have."""
    frame = pl.DataFrame({"exact": content, "pixel": pixel_hash}, schema={"exact": pl.String, "pixel": pl.String}).with_row_index("row")
    tied = {name: frame.select(pl.col(name).is_not_null() & (pl.len().over(name) > 1)).to_series() for name in ("exact", "pixel")}
    first = [
        frame.select(pl.when(tied[name]).then(pl.col("row").min().over(name)).otherwise("row").cast(pl.Int64)).to_series().to_numpy()
        for name in ("exact", "pixel")
    ]
    # Equal bytes are equal pixels, so two look-ups reach the first; the pixel hash of one of two equal files may be unknown.
    node = first[1][first[0]]
    kind = frame.select(pl.when(tied["exact"]).then(pl.lit("exact")).when(tied["pixel"]).then(pl.lit("pixel")).otherwise(pl.lit("near")))
    return node, kind.to_series().to_list()


def _hub_groups(node: Ints, edges: Ints, length: NDArray[np.float32]) -> Ints:
    """(n,) the hub of every image; one without a confirmed partner is its own. node: (n,) the image that stands for its equals."""
    edges, length = edges[edges[:, 0] != edges[:, 1]], length[edges[:, 0] != edges[:, 1]]
    order = np.lexsort((edges[:, 1], length, edges[:, 0]))
    partners: dict[int, list[int]] = {}
    for a, b in edges[order].tolist():
        partners.setdefault(a, []).append(b)
    hub: dict[int, int] = {}
    left: list[int] = []
    for image in sorted(partners, key=lambda each: (-len(set(partners[each])), each)):
        if image in hub:
            continue
        free = [other for other in partners[image] if other not in hub]
        if free:
            hub.update(dict.fromkeys([image, *free], image))
        else:
            left.append(image)
    # Only now, so that none follows one who follows: two that are left are never partners of each other.
    hub.update({image: hub[partners[image][0]] for image in left})
    root = np.arange(len(node))
    if hub:
        root[list(hub)] = list(hub.values())
    return root[node]
