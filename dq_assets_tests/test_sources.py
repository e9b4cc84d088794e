"""Folders, archives and tables on this machine: what is read is what was listed, and nothing leads anywhere else."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dq_assets.audit.images import inspect
from dq_assets.audit.scan import scan
from dq_assets.settings import Dataset, Images, Settings, UserError
from dq_assets.sources import archives, gzip_index, huggingface, reading
from dq_assets.sources.folder import file_uri, read_file
from dq_assets.sources.gzip_index import SeekableGzip
from dq_assets.sources.layout import Facts, Listing, ListingError, nominated
from dq_assets.sources.listing import list_source
from dq_assets.sources.reading import Reader, _Window


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def listed(path: Path, **lists: Path) -> Listing:
    return list_source(Dataset("d", str(path), **{name: str(file) for name, file in lists.items()}))


def rows(listing: Listing, *columns: str) -> list[tuple[object, ...]]:
    return listing.files.select(columns).rows()


def scanned(path: Path, settings: Images = Images(threads=2)) -> pl.DataFrame:  # noqa: B008 (frozen)
    dataset = Dataset("d", str(path), settings=Settings(images=settings))
    files = list_source(dataset).files
    records = pl.concat(scan(files.filter(pl.col("status").is_null()), settings, Reader.of(dataset)))
    return files.select("path", "uri").join(records, on="uri", how="left", maintain_order="left")


# Folders


def test_a_link_that_is_swapped_after_the_listing_is_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    root, secret = tmp_path / "photos", tmp_path / "secret.png"
    (root / "cat").mkdir(parents=True)
    secret.write_bytes(png(1))
    (root / "cat/1.png").write_bytes(png(2))
    (root / "cat/link.png").symlink_to("1.png")
    records = [inspect(str(root / name), Images(), str(root)) for name in ("cat/1.png", "cat/link.png")]
    assert [record.status for record in records] == ["ok", "ok"]
    (root / "cat/link.png").unlink()
    (root / "cat/link.png").symlink_to(secret)
    record = inspect(str(root / "cat/link.png"), Images(), str(root))
    assert (record.status, record.content_sha256) == ("no_permission", None)
    assert record.reason == "it leads out of the folder; not followed"


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_is_put_in_between_looking_and_opening_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    root, outside = tmp_path / "photos", tmp_path / "outside"
    for folder in (root / "cat", outside):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(folder.name.encode())
    real = os.path.realpath
    calls = 0

    def swapping(path: str, **kwargs: bool) -> str:
        nonlocal calls
        answer, calls = real(path, **kwargs), calls + 1
        if calls == 2:  # both paths were resolved and found to be fine
            victim = root / "cat/1.png" if what == "file" else root / "cat"
            victim.rename(tmp_path / "away")
            victim.symlink_to(outside / "1.png" if what == "file" else outside)
        return answer

    monkeypatch.setattr(os.path, "realpath", swapping)
    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        read_file(str(root / "cat/1.png"), str(root))


def test_a_root_that_is_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to("photos")
    assert read_file(str(tmp_path / "link/1.png"), str(tmp_path / "link")) == b"x"


def test_a_flat_list_of_names_is_passed_over_and_counted_as_a_folder_is(tmp_path: Path) -> None:
    names = [
        "cat/1.jpg",
        "cat/.2.jpg",
        "cat/Thumbs.db",
        "cat/notes.txt",
        ".hidden/3.jpg",
        ".hidden/4.jpg",
        "empty/x.md",
        "a/b/c/5.jpg",
        "deep/er/",
    ]
    root = tmp_path / "photos"
    for name in names:
        file = root / name
        (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            file.write_bytes(b"x")
    skipped: Counter[str] = Counter()
    kept = nominated([(name, name, Facts()) for name in names], skipped)
    folder = listed(root)
    assert sorted(name for name, _, _ in kept) == [path for (path,) in rows(folder, "path")]
    assert dict(skipped) == folder.skipped == {"hidden": 3, "without an image suffix": 2, "folders without images": 2}


# Archives


def zipped(file: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 5, 6, 7, 8, 10)), data, method)
    return file


def tarred(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz" if file.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return file


def packed(file: Path, members: dict[str, bytes]) -> Path:
    return (zipped if file.suffix == ".zip" else tarred)(file, members)


KINDS = ("photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz")


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_listed_by_the_rules_of_a_folder_and_its_members_are_read_in_place(tmp_path: Path, name: str) -> None:
    members = {f"train/{kind}/{n}.png": png(n) for n, kind in enumerate(("dog", "cat", "cat"))}
    members |= {"test/cat/ä #%.png": png(7), "train/notes.txt": b"x", "__MACOSX/._1.png": b"x", "train/more.zip": b"PK"}
    file = packed(tmp_path / name, members)
    listing = listed(file)
    assert [path for (path,) in rows(listing, "path")] == [n for n in members if n.endswith(".png") and "._" not in n]  # in its order
    assert rows(listing, "split", "given_label")[:2] == [("train", "dog"), ("train", "cat")]
    assert listing.skipped == {"hidden": 1, "without an image suffix": 2, "folders without images": 1}
    assert all(uri.isascii() and uri.startswith(("zip+file:///", "tar+file:///")) for (uri,) in rows(listing, "uri"))
    read = scanned(file)
    assert read["status"].to_list() == ["ok"] * 4
    assert [Reader().read(uri) for uri in listing.files["uri"]] == [members[path] for path in listing.files["path"]]
    assert sorted(os.listdir(tmp_path)) == [name]


@pytest.mark.parametrize("name", KINDS[:3])
def test_hostile_names_and_links_lead_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    inside = tmp_path / "in"
    inside.mkdir()
    members = {"../secret.png": png(2), "/abs/1.png": png(3), "./cat/2.png": png(4), "cat/../../secret.png": png(5), "cat\\3.png": png(6)}
    file = packed(inside / name, members)
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "a") as archive:
            link = zipfile.ZipInfo("cat/link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "../../secret.png")
        n_links = 1
    else:
        with tarfile.open(file, "w:gz" if name.endswith("gz") else "w") as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo("cat/link.png")
                info.type, info.linkname = kind, "../../secret.png"
                archive.addfile(info)
            info = tarfile.TarInfo("cat/pipe.png")
            info.type = tarfile.FIFOTYPE
            archive.addfile(info)
        n_links = 2
    listing = listed(file)
    paths = dict(rows(listing, "path", "status"))
    assert [path for path in paths if path != "cat/pipe.png"] == ["abs/1.png", "cat/2.png", "cat\\3.png"]
    assert paths.get("cat/pipe.png") == (None if name.endswith(".zip") else "not_regular")
    assert listing.skipped == {"names that lead out of the archive": 2, "links not followed": n_links}
    assert [Reader().read(uri) for uri in listing.files.filter(pl.col("status").is_null())["uri"]] == [png(3), png(4), png(6)]
    assert os.listdir(inside) == [name]


def test_of_two_members_of_one_name_the_later_one_is_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        for name, data in (("1.png", png(1)), ("./1.png", png(2))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    listing = listed(file)
    assert listing.skipped == {"members that a later one of the name replaces": 1}
    assert Reader().read(listing.files["uri"][0]) == png(2)


def test_a_bomb_and_an_encrypted_member_are_rows_and_the_others_go_on(tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.zip", {"bomb.png": bytes(4 << 20), "fine.png": png(), "locked.png": png(1), "rotten.png": png(2)})
    data = bytearray(file.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"locked.png"))
    data[at + 8] |= 1  # the flag of an encrypted member
    with zipfile.ZipFile(file) as archive:
        rotten = archive.getinfo("rotten.png").header_offset
    data[rotten + 30 + len("rotten.png") + 200] ^= 0xFF
    file.write_bytes(data)
    assert len(data) < 20_000
    read = scanned(file, Images(max_bytes=1 << 20))
    assert dict(read.select("path", "status").rows()) == {
        "bomb.png": "too_large", "fine.png": "ok", "locked.png": "unreadable", "rotten.png": "unreadable",
    }  # fmt: skip
    reasons = dict(read.select("path", "reason").rows())
    assert "images.max_bytes" in reasons["bomb.png"]
    assert reasons["locked.png"] == "encrypted member of a zip archive"
    assert reasons["rotten.png"].startswith("damaged member")


def test_a_zip_that_understates_the_size_of_a_member_gives_no_more_than_it_states(tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.zip", {"1.png": bytes(4 << 20)})
    data = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(signature)
        data[at + offset : at + offset + 4] = struct.pack("<I", 1000)
    file.write_bytes(data)
    assert scanned(file)["status"].to_list() == ["unreadable"]


def test_a_tar_header_of_absurd_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20)))
    with pytest.raises(ListingError, match=r"a header of 67\d+ bytes.*Check that it is whole"):
        listed(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("name", KINDS[:3])
def test_a_broken_archive_is_one_line(tmp_path: Path, name: str) -> None:
    file = packed(tmp_path / name, {f"{n}.png": png(n) for n in range(30)})
    whole = file.read_bytes()
    for broken in (b"", b"not an archive" * 100, whole[: len(whole) // 2 + 100]):
        file.write_bytes(broken)
        with pytest.raises(ListingError) as caught:
            listed(file)
        assert "\n" not in str(caught.value)
        os.utime(file, ns=(1, time.time_ns()))


@pytest.mark.parametrize("name", KINDS[:3])
def test_a_changed_archive_is_read_again_and_only_what_changed_where_members_have_a_mark(tmp_path: Path, name: str) -> None:
    file = packed(tmp_path / name, {"1.png": png(1), "2.png": png(2)})
    before = listed(file)
    assert listed(file).digest() == before.digest()
    packed(file, {"1.png": png(1), "2.png": png(3)})
    os.utime(file, ns=(1, 1))
    after = listed(file)
    same = [a == b for a, b in zip(rows(before, "etag"), rows(after, "etag"), strict=True)]
    assert same == ([True, False] if name.endswith(".zip") else [False, False])


def test_gzip_data_is_read_at_any_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_index, "STEP", 1 << 16)
    rng = np.random.default_rng(5)
    raw = b"".join(rng.bytes(500) + bytes(1500) for _ in range(500))
    for data in (gzip.compress(raw), gzip.compress(raw[:123_456]) + gzip.compress(raw[123_456:]) + bytes(512)):
        file = io.BufferedReader(SeekableGzip(io.BytesIO(data)))
        for _ in range(100):
            start, size = (int(v) for v in rng.integers(0, (len(raw), 5000)))
            file.seek(start)
            assert file.read(size) == raw[start : start + size]
    cut = io.BufferedReader(SeekableGzip(io.BytesIO(gzip.compress(raw)[:-2000])))
    with pytest.raises(EOFError):
        cut.read()
    rotten = bytearray(gzip.compress(raw))
    rotten[len(rotten) // 2 : len(rotten) // 2 + 50] = bytes(50)
    with pytest.raises(zlib.error):
        io.BufferedReader(SeekableGzip(io.BytesIO(bytes(rotten)))).read()


def test_labels_of_a_csv_go_to_the_members_of_an_archive(tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.zip", {"x/1.png": b"", "x/2.png": b""})
    (tmp_path / "labels.csv").write_text(f"path,label\nx/1.png,cat\n{file}/x/2.png,dog\n")
    assert rows(listed(file, labels=tmp_path / "labels.csv"), "path", "given_label") == [("x/1.png", "cat"), ("x/2.png", "dog")]


# Hugging Face datasets on disk


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `datasets` itself writes: save_to_disk of two splits, and the same as Parquet."""
    import datasets

    root = tmp_path_factory.mktemp("huggingface")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def made(start: int, n: int) -> datasets.Dataset:
        images = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(start, start + n)]
        return datasets.Dataset.from_dict(
            {"image": images, "label": [seed % 2 if seed % 7 else -1 for seed in range(start, start + n)]}, features
        )

    both = datasets.DatasetDict({"train": made(0, 30), "test": made(100, 5)})
    both.save_to_disk(root / "arrow", num_shards={"train": 2, "test": 1})
    both["train"].save_to_disk(root / "single")
    for split, part in both.items():
        (root / "parquet/data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(root / f"parquet/data/{split}-00000-of-00001.parquet", batch_size=12)
    return root


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_hugging_face_dataset_gives_its_splits_labels_and_bytes(saved: Path, kind: str) -> None:
    listing = listed(saved / kind)
    train = listing.files.filter(pl.col("split") == "train")
    assert (len(train), len(listing.files)) == (30, 35)
    assert train["given_label"].to_list() == [None if seed % 7 == 0 else ("cat", "dog")[seed % 2] for seed in range(30)]
    assert [Reader().read(uri) for uri in train["uri"]] == [png(seed) for seed in range(30)]
    assert listing.files["path"].n_unique() == 35
    assert listing.files["path"].is_sorted() or kind == "arrow"  # test before train as files, train first in dataset_dict.json
    assert scanned(saved / kind)["status"].to_list() == ["ok"] * 35


def test_one_split_and_one_parquet_file_are_sources_too(saved: Path) -> None:
    assert set(listed(saved / "single").files["split"]) == {None}
    one = listed(saved / "parquet/data/test-00000-of-00001.parquet")
    assert rows(one, "split", "path")[0] == ("test", "test-00000-of-00001.parquet#00000000")


def test_rows_of_parquet_are_found_in_any_order_and_from_many_threads(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 4)
    huggingface._opened.cache_clear()
    uris = listed(saved / "parquet").files.filter(pl.col("split") == "train")["uri"].to_list()
    order = np.random.default_rng(3).permutation(30).tolist()
    with reading.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(Reader().read, [uris[i] for i in order])) == [png(i) for i in order]


def test_a_row_without_bytes_is_missing_and_one_that_is_too_large_says_so(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": None, "path": "/etc/passwd"}, None, {"bytes": png(), "path": None}, {"bytes": bytes(5000), "path": None}]
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": ["a", "b", "c", "c"]}), tmp_path / "train.parquet")
    read = scanned(tmp_path, Images(max_bytes=4000))
    assert read["status"].to_list() == ["missing", "missing", "ok", "too_large"]
    assert read["reason"].to_list()[:2] == ["the row holds no bytes, only the path '/etc/passwd'", "the row holds no image"]


def test_a_parquet_list_with_paths_stays_a_list(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    image = pa.array([{"bytes": b"x", "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"path": ["1.png"], "label": ["cat"], "image": image}), tmp_path / "m.parquet")
    assert rows(listed(tmp_path / "m.parquet"), "path") == [("1.png",)]


def test_damaged_tables_are_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(ListingError, match="names a file outside of it"):
        listed(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    for data in (b"", b"nothing" * 9, next((saved / "single").glob("*.arrow")).read_bytes()[:3000]):
        (tmp_path / "x.arrow").write_bytes(data)
        with pytest.raises(ListingError) as caught:
            listed(tmp_path)
        assert "\n" not in str(caught.value)


# Reading ahead


class Source:
    """Gives bytes after a while, and knows how many it has given that nobody took."""

    def __init__(self, size: int) -> None:
        self.size, self.asked, self.taken, self.most = size, 0, 0, 0
        self.lock = threading.Lock()

    def read(self, uri: str, size: int | None = None) -> bytes:
        with self.lock:
            self.asked += 1
            self.most = max(self.most, self.asked - self.taken)
        time.sleep(0.002)
        return uri.encode().ljust(self.size)


@pytest.mark.parametrize("known", [True, False], ids=["known sizes", "unknown sizes"])
def test_no_more_is_read_ahead_than_the_window_holds(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setattr(reading, "WINDOW_BYTES", 1000)
    source, uris = Source(100), [str(n) for n in range(200)]
    with reading.ThreadPoolExecutor(8) as pool:
        sizes = [100 if known else None] * len(uris)
        window = _Window(iter(zip(uris, sizes, strict=True)), lambda uri, size: pool.submit(source.read, uri, size), source.read)
        for uri in uris:
            assert window.take(uri) == uri.encode().ljust(100)
            with source.lock:
                source.taken += 1
    assert source.asked == 200
    assert source.most <= (11 if known else 2)


def test_many_threads_take_all_files_in_any_order_and_repeated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WINDOW_BYTES", 500)
    source = Source(100)
    uris = [str(n % 150) for n in range(200)]
    with reading.ThreadPoolExecutor(4) as pool, reading.ThreadPoolExecutor(6) as takers:
        window = _Window(iter([(uri, 100) for uri in uris]), lambda uri, size: pool.submit(source.read, uri, size), source.read)
        order: list[int] = np.random.default_rng(0).permutation(200).tolist()
        assert list(takers.map(window.take, [uris[i] for i in order])) == [uris[i].encode().ljust(100) for i in order]


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    for address in ("https://me:hunter2@host/list.csv", "s3://key:hunter2@bucket/photos"):
        with pytest.raises(UserError, match=r"~/\.netrc") as caught:
            list_source(Dataset("d", address))
        assert "hunter2" not in str(caught.value)


def test_an_address_and_its_file_are_one_to_one(tmp_path: Path) -> None:
    file = tmp_path / "a b#%.zip"
    uri = listed(zipped(file, {"c d#%.png": png()})).files["uri"][0]
    assert uri == f"zip+{file_uri(str(file))}#c%20d%23%25.png"
    assert archives.read_member(uri, 10_000) == png()
