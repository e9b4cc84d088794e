"""Lists that people made: CSV and Parquet files of paths with labels, splits and groups.

Every value is text, every complaint names the file and what to do.
"""

from __future__ import annotations

import errno
import io
import os
import urllib.parse
from collections import Counter
from collections.abc import Container
from typing import BinaryIO

import polars as pl
import polars.selectors as cs

from dq_assets.sources.addresses import folder_of, is_remote, joined, refuse_password, shown, stored_uri, suffix_of, within
from dq_assets.sources.folder import facts_of, file_uri
from dq_assets.sources.layout import COLUMNS, REPEATED, SPLIT_NAMES, Facts, Listing, ListingError, as_text
from dq_assets.sources.objects import explained
from dq_assets.sources.reading import Reader


def _opened(file: str) -> BinaryIO:
    if is_remote(file):
        return io.BytesIO(Reader().read(stored_uri(file) or file))
    if not os.path.isfile(file):
        raise FileNotFoundError(errno.ENOENT, "not a file")
    return open(file, "rb")


def _read_list(file: str) -> pl.DataFrame:
    """A CSV or Parquet list with every value as text ("01" is not 1), empty ones as null, and lower-case column names.

    The file is opened here and not by polars, which takes brackets and stars in a path for a pattern.
    """
    try:
        if suffix_of(file) == ".parquet":
            with _opened(file) as opened:
                schema = pl.read_parquet_schema(opened)
                # Others are no text, and a column of pictures would be read whole.
                textual = [name for name, kind in schema.items() if not kind.is_nested() and kind != pl.Binary]
                opened.seek(0)
                frame = pl.read_parquet(opened, columns=textual).with_columns(cs.float().fill_nan(None)).cast(pl.String)
        else:
            with _opened(file) as opened:
                data = opened.read()
            data.decode()  # polars refuses other bytes in a value, but replaces them in a header
            frame = pl.read_csv(data, infer_schema=False)
        return frame.select(pl.all().replace("", None)).rename({c: c.strip().lstrip("\ufeff").lower() for c in frame.columns})
    except OSError as error:
        raise ListingError(f"Cannot read {shown(file)} ({error.strerror or error}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise ListingError(f"{shown(file)} is not UTF-8 (at byte {error.start}). Save it as UTF-8.") from error
    except pl.exceptions.DuplicateError as error:
        raise ListingError(f"{shown(file)} has two columns of one name, but for case or spaces. Rename one.") from error
    except pl.exceptions.PolarsError as error:
        what = str(error).splitlines()[0]
        raise ListingError(f"Cannot read {shown(file)}: {what}. Save it as UTF-8 CSV with a header, or as Parquet.") from error


def _required(frame: pl.DataFrame, file: str, *names: str) -> None:
    missing = [n for n in names if n not in frame.columns]
    if missing:
        has = ", ".join(frame.columns)
        raise ListingError(f"{shown(file)} has no column {', '.join(missing)} (it has: {has}). Add it or rename one.")


def list_manifest(file: str) -> Listing:
    """The files that a CSV or Parquet list names, with what it says of them. Raises ListingError."""
    frame = _read_list(file)
    _required(frame, file, "path", "label")
    skipped: Counter[str] = Counter()
    for name in frame.columns:
        if name not in ("path", "label", "split", "group"):
            skipped[f"column {name}"] += 1
    absent = [pl.lit(None, pl.String).alias(n) for n in ("split", "group") if n not in frame.columns]
    frame = frame.with_columns(absent).select("path", "label", "split", "group")
    if n_empty := frame["path"].null_count():
        skipped["rows without a path"] += n_empty
    frame = frame.drop_nulls("path")
    for path in frame["path"]:
        refuse_password(path)
    folder = folder_of(file)
    frame = frame.with_columns(pl.Series("path", [within(folder, path) for path in frame["path"]], pl.String), _split_column(frame, file))
    frame = _without_repeats(frame, file)
    placed = _looked_up([joined(folder, path) for path in frame["path"]], file)
    uris = pl.Series("uri", [uri for uri, _ in placed], pl.String)
    facts = pl.DataFrame([each for _, each in placed], schema={name: COLUMNS[name] for name in Facts._fields}, orient="row")
    files = pl.concat([frame.with_columns(uri=uris, given_label="label"), facts], how="horizontal")
    files = files.with_columns(reason=pl.coalesce("reason", "note")).select(list(COLUMNS)).sort("path")
    return Listing(files, dict(skipped))


def manifest_paths(file: str) -> list[str]:
    """The paths of a manifest as raw_manifest has them, in the order of its rows, repeated ones too. Raises ListingError."""
    frame = _read_list(file)
    _required(frame, file, "path")
    folder = folder_of(file)
    return [within(folder, path) for path in frame["path"].drop_nulls()]


def _looked_up(addresses: list[str], file: str) -> list[tuple[str, Facts]]:
    """(uri, facts) of every file that a list names. Raises ListingError if there are remote ones and not one could be asked for."""
    remote = {a: uri for a in addresses if is_remote(a) and (uri := stored_uri(a)) is not None}
    known = dict(zip(remote, Reader().facts(list(remote.values())), strict=True))
    if remote and all(isinstance(answer, OSError) for answer in known.values()):
        why = explained(next(answer for answer in known.values() if isinstance(answer, OSError)))
        what = f"None of the {len(remote)} addresses in {shown(file)} could be asked for ({why})"
        raise ListingError(f"{what}. Check the network and try again.")
    found = []
    for address in addresses:
        answer = known.get(address)
        if answer is not None:  # one that could not be asked for is read all the same, which tells why
            found.append((remote[address], answer if isinstance(answer, Facts) else Facts()))
        elif is_remote(address):
            unknown = Facts(status="missing", reason="not a usable path: an unknown kind of address")
            found.append((urllib.parse.quote(address, safe="/:?&=%"), unknown))
        else:
            found.append(_stat_row(address))
    return found


def _stat_row(file: str) -> tuple[str, Facts]:
    try:
        return file_uri(file), facts_of(os.stat(file))
    except FileNotFoundError:
        return file_uri(file), Facts(status="missing", reason="the manifest names it, but there is no such file")
    except PermissionError:
        return file_uri(file), Facts(status="no_permission", reason="its folder may not be read")
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL byte
        return file_uri(file.replace("\0", "")), Facts(status="missing", reason=f"not a usable path: {error}")


def _without_repeats(frame: pl.DataFrame, file: str) -> pl.DataFrame:
    """One row per path with a column `note`; raises if a path stands there with two different values of another column."""
    columns = [c for c in frame.columns if c != "path"]
    grouped = frame.group_by("path", maintain_order=True).agg(
        pl.col(columns).first(), pl.col(columns).n_unique().name.suffix(" values"), n=pl.len()
    )
    for column in columns:
        clashing = grouped.filter(pl.col(f"{column} values") > 1)["path"]
        if not clashing.is_empty():
            clashes = "; ".join(
                f"{path} is {', '.join(frame.filter(pl.col('path') == path)[column].fill_null('empty').unique().sort())}"
                for path in clashing.head(5)
            )
            raise ListingError(f"{shown(file)} gives {len(clashing)} paths more than one {column}: {clashes}. Keep one row for each.")
    note = pl.when(pl.col("n") > 1).then(pl.format(REPEATED, "n"))
    return grouped.select("path", *columns, note=note)


def _split_column(frame: pl.DataFrame, file: str) -> pl.Series:
    """The column `split` in canonical names."""
    split = frame["split"].str.strip_chars().str.to_lowercase()
    unknown = sorted(set(split.drop_nulls()) - SPLIT_NAMES.keys())
    if unknown:
        raise ListingError(f"{shown(file)} has unknown splits: {', '.join(unknown[:5])}. Use {', '.join(sorted(SPLIT_NAMES))}.")
    return split.replace_strict(SPLIT_NAMES, default=None, return_dtype=pl.String)


def with_column(listing: Listing, root: str, column: str, file: str) -> Listing:
    """Replace a column by a CSV's values; files that are not in it get null and are counted.

    root: the folder of the dataset, absolute, or its address; paths in the file may be relative to it.
    """
    wanted = {"given_label": "label"}.get(column, column)
    frame = _read_list(file)
    _required(frame, file, "path", wanted)
    frame = frame.select("path", wanted).drop_nulls("path")
    if column == "split":
        frame = frame.with_columns(_split_column(frame, file))
    paths = set(listing.files["path"])
    folders = (root, folder_of(file))
    resolved = pl.Series("path", [resolve_path(p, *folders, paths) for p in frame["path"]], pl.String)
    matched = frame.with_columns(resolved).drop_nulls("path")
    if matched.is_empty():
        theirs = frame["path"][0] if len(frame) else "(no rows)"
        raise ListingError(
            f"No path of {shown(file)} is a file of the dataset: it has {theirs!r}, the dataset {listing.files['path'][0]!r}."
            " Give paths relative to PATH or to the CSV's folder."
        )
    n_unmatched = len(frame) - len(matched)
    matched = _without_repeats(matched, file).select("path", pl.col(wanted).alias(column))
    files = listing.files.drop(column).join(matched, on="path", how="left", maintain_order="left").select(list(COLUMNS))
    name = as_text(os.path.basename(file))
    counts = {f"rows of {name} without a file": n_unmatched, f"files not in {name}": len(paths) - len(matched)}
    return Listing(files, listing.skipped | {reason: n for reason, n in counts.items() if n})


def resolve_path(path: str, root: str, folder: str, known: Container[str]) -> str | None:
    """A CSV's path as the listing's: relative to PATH first, then to the CSV's folder (both absolute, or addresses)."""
    for candidate in (within(root, path), within(root, joined(folder, path))):
        if candidate in known:
            return candidate
    return None
