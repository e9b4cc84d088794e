"""Buckets and the web, against servers on 127.0.0.1 that throttle, fail, break off and lie."""

from __future__ import annotations

import csv
import io
import logging
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

from dq_assets import read
from dq_assets.audit.scan import scan
from dq_assets.cli import main
from dq_assets.defs.automation import decide, partition_changes
from dq_assets.settings import Dataset, Home, Images, Settings
from dq_assets.sources import objects, retries, web
from dq_assets.sources.addresses import stored_uri
from dq_assets.sources.layout import Facts, Listing, ListingError
from dq_assets.sources.listing import list_source
from dq_assets.sources.reading import Reader
from dq_assets_tests.conftest import CLASSES, draw
from dq_assets_tests.remote import FaultyProxy, each_once, first_time, running

BIN = Path(sys.executable).parent / "dq-assets"
FAST = Images(threads=2)
AS_SHIPPED = objects._OPTIONS["s3"]
ONE_ATTEMPT = {"max_concurrency": 1, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
"""The SDK's own back-off takes seconds; retries of this package go on."""


def png(seed: int = 0, kind: str | None = None) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)) if kind is None else draw(kind, rng)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="module")
def proxy(moto: tuple[str, int]) -> Iterator[FaultyProxy]:
    with running(FaultyProxy(*moto)) as served:
        yield served


@pytest.fixture
def s3(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server behind the faulty network, and an environment that leads dq-assets there."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setitem(objects._OPTIONS, "s3", ONE_ATTEMPT)
    objects._filesystem.cache_clear()
    proxy.reset()
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    proxy.reset()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="photos"):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket="photos", Key=entry["Key"])
    client.delete_bucket(Bucket="photos")
    objects._filesystem.cache_clear()


def put(s3: Any, members: dict[str, bytes]) -> None:
    for key, data in members.items():
        s3.put_object(Bucket="photos", Key=key, Body=data)


def listed(path: str, **lists: str) -> Listing:
    return list_source(Dataset("d", path, **lists))


def rows(listing: Listing, *columns: str) -> list[tuple[Any, ...]]:
    return listing.files.select(columns).rows()


def scanned(path: str, settings: Images = FAST) -> dict[str, tuple[str, str | None]]:
    dataset = Dataset("d", path, settings=Settings(images=settings))
    files = list_source(dataset).files
    records = pl.concat(scan(files.filter(pl.col("status").is_null()), settings, Reader.of(dataset)))
    joined = files.select("path", "uri").join(records, on="uri", maintain_order="left")
    return {path: (status, reason) for path, status, reason in joined.select("path", "status", "reason").iter_rows()}


# Buckets


def test_a_bucket_is_listed_by_the_rules_of_a_folder_with_sizes_times_and_etags(s3: Any) -> None:
    put(s3, {f"set/train/cat/{name}": b"x" * 10 for name in ("1.png", "a b#%é?.png", "猫.jpg", ".2.png")})
    put(s3, {"set/test/dog/3.png": b"yy", "set/readme.md": b"x", "set/empty/": b"", "settee/4.png": b"x"})
    listing = listed("s3://photos/set")
    assert rows(listing, "path", "split", "given_label", "bytes") == [
        ("test/dog/3.png", "test", "dog", 2),
        ("train/cat/1.png", "train", "cat", 10),
        ("train/cat/a b#%é?.png", "train", "cat", 10),
        ("train/cat/猫.jpg", "train", "cat", 10),
    ]
    assert listing.skipped == {"hidden": 1, "without an image suffix": 1, "folders without images": 1}
    assert listing.files["uri"][2] == "s3://photos/set/train/cat/a%20b%23%25%C3%A9%3F.png"
    assert listing.files.select(pl.col("etag", "mtime").null_count()).row(0) == (0, 0)
    assert Reader().read(listing.files["uri"][2]) == b"x" * 10
    assert listed("s3://photos/set/").digest() == listing.digest()


def test_one_request_reads_an_object(s3: Any, proxy: FaultyProxy) -> None:
    put(s3, {f"cat/{n}.png": png(n) for n in range(20)})
    proxy.reset()
    assert set(scanned("s3://photos").values()) == {("ok", None)}
    assert (proxy.count("GET", ".png"), proxy.count("HEAD"), proxy.count("GET", "list-type")) == (20, 0, 1)


def test_throttling_failures_resets_and_cut_bodies_are_tried_again(s3: Any, proxy: FaultyProxy) -> None:
    put(s3, {f"cat/{n}.png": png(n) for n in range(6)})
    for faults in (("503",), ("500",), ("reset",), ("cut", "cut"), ("503", "reset", "cut")):
        proxy.reset()
        proxy.fault = each_once(*faults)
        assert set(scanned("s3://photos").values()) == {("ok", None)}, faults
        assert proxy.count("GET", ".png") >= 6 * (1 + len(faults)), faults


def test_what_stays_away_or_is_denied_or_is_gone_is_a_row(s3: Any, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, {f"cat/{name}.png": png() for name in ("broken", "denied", "fine", "gone", "large")})
    put(s3, {"cat/large.png": bytes(5000)})
    proxy.fault = lambda method, path: {"broken": "503", "denied": "403"}.get(path.rpartition("/")[2][:6]) if "cat/" in path else None
    dataset = Dataset("d", "s3://photos", settings=Settings(images=Images(max_bytes=3000)))
    files = list_source(dataset).files
    s3.delete_object(Bucket="photos", Key="cat/gone.png")
    (records,) = scan(files, Images(max_bytes=3000), Reader.of(dataset))
    assert records["status"].to_list() == ["unreadable", "no_permission", "ok", "missing", "too_large"]
    assert records["reason"].to_list()[:2] == ["Please reduce your request rate.", "Access Denied"]
    assert proxy.count("GET", "broken") == retries.ATTEMPTS
    assert (proxy.count("GET", "denied"), proxy.count("GET", "large")) == (1, 0)


def small_pages(path: str) -> str:
    return f"{path}&max-keys=5" if "list-type=2" in path else path


def test_a_listing_of_several_pages_is_whole_or_fails(s3: Any, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, {f"cat/{n:02d}.png": b"x" for n in range(12)})
    proxy.rewrite = small_pages
    assert len(listed("s3://photos").files) == 12
    assert proxy.count("GET", "continuation-token") == 2
    for fault in ("503", "500", "reset", "cut"):
        proxy.fault = first_time(fault, "continuation")
        assert len(listed("s3://photos").files) == 12, fault
    for fault, says in (("500", "internal error"), ("reset", "."), ("403", "Access Denied.*Check the AWS credentials"), ("cut", ".")):
        proxy.fault = lambda method, path, fault=fault: fault if "continuation" in path else None
        with pytest.raises(ListingError, match=f"Cannot list s3://photos .*{says}") as caught:
            listed("s3://photos")
        assert "\n" not in str(caught.value)


def test_the_client_as_shipped_repeats_a_page_and_an_object(s3: Any, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objects._OPTIONS, "s3", AS_SHIPPED)
    objects._filesystem.cache_clear()
    put(s3, {f"cat/{n}.png": png(n) for n in range(6)})
    proxy.reset()
    proxy.rewrite, proxy.fault = small_pages, first_time("503", "continuation")
    assert len(listed("s3://photos").files) == 6
    assert (proxy.count("GET", "continuation"), proxy.count("GET", "list-type")) == (2, 3)  # the first page is not asked for again
    proxy.fault = first_time("500", "cat/3.png")
    assert set(scanned("s3://photos").values()) == {("ok", None)}
    assert (proxy.count("GET", ".png"), proxy.count("HEAD")) == (7, 0)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("s3://no-such-bucket/x", r"bucket does not exist\)\. Check the address"),
        ("s3://photos/nothing", r"No image was found under s3://photos/nothing \(nothing else was there\)"),
        ("s3://photos/list.csv", r"Cannot read s3://photos/list.csv \(no such object\)"),
        ("s3://photos/a.zip", r"Cannot read s3://photos/a.zip as zip \(no such object\)"),
    ],
)
def test_what_is_not_there_is_one_line(s3: Any, path: str, says: str) -> None:
    with pytest.raises(ListingError, match=says):
        listed(path)


def test_a_denied_bucket_and_missing_credentials_are_one_line(
    s3: Any, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy.fault = lambda method, path: "403"
    with pytest.raises(ListingError, match=r"^Cannot list s3://photos \(Access Denied\)\. Check the AWS credentials .* list it\.$"):
        listed("s3://photos")
    proxy.reset()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    objects._filesystem.cache_clear()
    with pytest.raises(ListingError, match=r"^Cannot list s3://photos \(Unable to locate credentials\)\. Check the AWS credentials"):
        listed("s3://photos")


def test_a_server_that_is_not_there_is_one_line(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    objects._filesystem.cache_clear()
    with pytest.raises(ListingError, match=r"Could not connect.*Try again\.$"):
        listed("s3://photos")


def test_a_changed_object_is_a_change_and_an_unchanged_one_is_not(s3: Any) -> None:
    put(s3, {"cat/1.png": png(1), "cat/2.png": png(2)})
    before = listed("s3://photos")
    assert listed("s3://photos").digest() == before.digest()
    put(s3, {"cat/2.png": png(3)[:-1] + b"x" * (len(png(2)) - len(png(3)) + 1)})
    after = listed("s3://photos")
    assert before.files["bytes"].to_list() == after.files["bytes"].to_list()
    assert [a == b for a, b in zip(rows(before, "etag"), rows(after, "etag"), strict=True)] == [True, False]
    same_time = Listing(after.files.with_columns(before.files["mtime"]))
    changes = partition_changes(same_time, before.files)
    assert (changes.added, changes.changed, changes.removed) == (0, 1, 0)
    assert decide(same_time.digest(), before.digest(), before.digest(), changes).request


def test_a_list_in_a_bucket_names_objects_relative_to_it_or_by_address(s3: Any, tmp_path: Path) -> None:
    put(s3, {"set/a/1.png": png(1), "set/a/2 #.png": png(2), "elsewhere/3.png": png(3)})
    text = "path,label\na/1.png,cat\ns3://photos/set/a/2 #.png,dog\ns3://photos/elsewhere/3.png,cat\na/none.png,dog\n/etc/passwd.png,cat\n"
    put(s3, {"set/list.csv": (text + f"file://{tmp_path}/x.png,cat\n").encode()})
    listing = listed("s3://photos/set/list.csv")
    assert dict(rows(listing, "path", "status")) == {
        "a/1.png": None,
        "a/2 #.png": None,
        "a/none.png": "missing",
        "etc/passwd.png": "missing",  # below the list, not on this machine
        f"file://{tmp_path}/x.png": "missing",
        "s3://photos/elsewhere/3.png": None,
    }
    assert {Reader().read(uri) for uri in listing.files.filter(pl.col("status").is_null())["uri"]} == {png(1), png(2), png(3)}
    (tmp_path / "local.csv").write_text("path,label\ns3://photos/set/a/1.png,cat\n")
    assert rows(listed(str(tmp_path / "local.csv")), "path", "uri") == [("s3://photos/set/a/1.png",) * 2]


def test_labels_of_this_machine_go_to_objects(s3: Any, tmp_path: Path) -> None:
    put(s3, {"a/1.png": b"x", "a/2.png": b"x"})
    (tmp_path / "labels.csv").write_text("path,label\n1.png,cat\ns3://photos/a/2.png,dog\n")
    assert rows(listed("s3://photos/a", labels=str(tmp_path / "labels.csv")), "path", "given_label") == [("1.png", "cat"), ("2.png", "dog")]


def test_an_archive_in_a_bucket_is_read_by_ranges(s3: Any, proxy: FaultyProxy) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for n in range(5):
            archive.writestr(f"cat/{n}.png", png(n))
    put(s3, {"a.zip": file.getvalue()})
    assert set(scanned("s3://photos/a.zip").values()) == {("ok", None)}
    assert listed("s3://photos/a.zip").files["uri"][0] == "zip+s3://photos/a.zip#cat/0.png"


@pytest.fixture
def command(home: Home, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dq-assets command in this process; gives its exit code and output."""
    monkeypatch.setenv("DQ_HOME", str(home.root))
    monkeypatch.setenv("DQ_UI_URL", "http://127.0.0.1:9")

    def run(*arguments: str) -> tuple[int, str]:
        if arguments[:2] == ("audit", "s3://photos/set"):  # in a process of its own, whose threads are its own
            done = subprocess.run([str(BIN), *arguments], capture_output=True, text=True, timeout=300, check=False)
            return done.returncode, done.stdout + done.stderr
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output

    return run


def test_an_audit_of_a_bucket_reads_each_object_once_and_again_only_what_changed(
    s3: Any, proxy: FaultyProxy, command: Any, tmp_path: Path
) -> None:
    put(s3, {f"set/{kind}/{n}.png": png(10 * n, kind) for kind in CLASSES for n in range(7)})
    lenient = ("--set", "encoder.batch_size=8", "--set", "gates.max_noise_rate=1")
    proxy.reset()
    proxy.fault = each_once("503", suffix="3.png")
    code, output = command("audit", "s3://photos/set", *lenient)
    assert code in (0, 3), output
    assert "21 in 3 classes" in output
    n_first = proxy.count("GET", ".png")
    assert n_first >= 2 * 21  # to scan and to embed; no byte is kept
    manifest = read("set", "raw_manifest")
    assert manifest["status"].to_list() == ["ok"] * 21
    assert manifest["uri"][0] == "s3://photos/set/ball/0.png"
    assert manifest["etag"].null_count() == 0
    proxy.reset()
    code, output = command("audit", "s3://photos/set")
    assert "Audit 1 of set is unchanged" in output
    assert proxy.count("GET", ".png") == 0
    put(s3, {"set/ball/0.png": png(999, "ball")})
    proxy.reset()
    command("audit", "s3://photos/set")
    assert proxy.count("GET", "ball/0.png") >= 2
    others = [path for method, path in proxy.requests if method == "GET" and path.endswith(".png") and "ball/0" not in path]
    assert len(set(others)) == len(others)  # once at most, to be compared with the new picture
    assert read("set", "raw_manifest")["etag"][0] != manifest["etag"][0]
    code, output = command("export", "--name", "set", "--out", str(tmp_path / "out"), "--format", "huggingface")
    assert code == 0, output
    lines = list(csv.DictReader((tmp_path / "out/train/metadata.csv").open(encoding="utf-8")))
    assert lines
    assert all((tmp_path / "out/train" / line["file_name"]).read_bytes()[:4] == b"\x89PNG" for line in lines)
    put(s3, {"set/ball/1.png": png(998, "ball")})
    _, output = command("export", "--name", "set", "--out", str(tmp_path / "more"), "--format", "imagefolder")
    assert re.search(r"changed since the audit +1\n", output)


@pytest.mark.parametrize(("protocol", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")])
def test_a_store_whose_package_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, protocol: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    objects._filesystem.cache_clear()
    with pytest.raises(ListingError, match=rf"^{protocol}:// needs the package {package}\. Run pip install 'dq-assets\[{extra}\]'\.$"):
        listed(f"{protocol}://bucket/photos")
    objects._filesystem.cache_clear()


@pytest.mark.parametrize("protocol", ["gs", "az"])
def test_other_stores_go_the_same_way_with_their_own_words(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server speaks these protocols here: only the dispatch, the addresses and the names of the facts are tested."""

    class Store:
        def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]:
            assert (path, detail) == ("bucket/set", True)
            google = {"size": 3, "type": "file", "etag": "CJ/1=", "updated": "2024-05-06T07:08:10.500Z"}
            return {"bucket/set/cat/ä 1.png": google, "bucket/set/cat/2.png": {"size": 4, "etag": '"0x8D"', "last_modified": None}}

        def cat_file(self, path: str) -> bytes:
            assert path == "bucket/set/cat/ä 1.png"
            return b"abc"

    monkeypatch.setattr(objects, "filesystem", lambda name: Store() if name == protocol else pytest.fail(name))
    monkeypatch.setattr(objects, "_failures", lambda name: ((), (OSError,)))
    listing = listed(f"{protocol}://bucket/set")
    assert rows(listing, "path", "given_label", "bytes", "mtime", "etag") == [
        ("cat/2.png", "cat", 4, None, "0x8D"),
        ("cat/ä 1.png", "cat", 3, 1714979290.5, "CJ/1="),
    ]
    assert listing.files["uri"][1] == f"{protocol}://bucket/set/cat/%C3%A4%201.png"
    assert Reader().read(listing.files["uri"][1], 3) == b"abc"


# The web


class Web:
    """Files at addresses, and addresses that misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.heads: list[str] = []
        self.seen: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                site.heads.append(self.path)
                self.answer()

            def do_GET(self) -> None:
                site.seen.append(self.path)
                self.answer()

            def answer(self) -> None:
                path = self.path.partition("?")[0]
                redirect = {"/to-file.png": "file:///etc/passwd", "/loop.png": "/loop.png", "/moved.png": "/cat/1.png"}
                if path == "/no-head.png" and self.command == "HEAD":
                    self.send_error(405)
                elif path == "/denied.png":
                    self.send_error(403)
                elif path in redirect:
                    self.send_response(302)
                    self.send_header("Location", redirect[path])
                    self.end_headers()
                elif path == "/endless.png":
                    self.send_response(200)
                    self.end_headers()
                    if self.command == "GET":
                        self.endless()
                elif path in site.files:
                    data = site.files[path]
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data) + 50 * (path == "/short.png")))
                    self.send_header("ETag", f'"{hash(data)}"')
                    self.send_header("Last-Modified", "Mon, 06 May 2024 07:08:10 GMT")
                    self.end_headers()
                    if self.command == "GET":
                        self.wfile.write(data)
                else:
                    self.send_error(404)

            def endless(self) -> None:
                try:
                    while True:
                        self.wfile.write(bytes(1 << 16))
                except OSError:
                    pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    made = Web()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_list_on_the_web_names_files_relative_to_it_and_by_address(site: Web, tmp_path: Path) -> None:
    site.files = {"/cat/1.png": png(1), "/cat/%C3%A4%202.png": png(2), "/dog/3.png": png(3)}
    site.files["/cat/list.csv"] = f"path,label\n1.png,cat\nä 2.png,cat\n{site.url}/dog/3.png?size=L,dog\n/dog/3.png,dog\n".encode()
    listing = listed(f"{site.url}/cat/list.csv?token=abc")
    assert rows(listing, "path", "uri", "given_label") == [
        ("1.png", f"{site.url}/cat/1.png", "cat"),
        (f"{site.url}/dog/3.png", f"{site.url}/dog/3.png", "dog"),
        (f"{site.url}/dog/3.png?size=L", f"{site.url}/dog/3.png?size=L", "dog"),
        ("ä 2.png", f"{site.url}/cat/%C3%A4%202.png", "cat"),
    ]
    assert listing.files["bytes"].to_list() == [len(Reader().read(uri)) for uri in listing.files["uri"]]
    assert listing.files.select(pl.col("etag", "mtime").null_count()).row(0) == (0, 0)
    (tmp_path / "local.csv").write_text(f"path,label\n{site.url}/cat/1.png,cat\n")
    assert set(scanned(str(tmp_path / "local.csv")).values()) == {("ok", None)}


def test_web_servers_that_misbehave_give_rows(site: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENT_SECONDS", 2)
    site.files = {"/cat/1.png": png(1), "/no-head.png": png(2), "/short.png": png(3), "/page.png": b"<html>not found</html>"}
    names = ("cat/1", "no-head", "moved", "to-file", "loop", "endless", "short", "page", "denied", "gone")
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{site.url}/{name}.png,cat\n" for name in names))
    listing = listed(str(tmp_path / "m.csv"))
    assert listing.files.filter(status="missing")["path"].to_list() == [f"{site.url}/gone.png"]
    found = {path.rpartition("/")[2]: what for path, what in scanned(str(tmp_path / "m.csv"), Images(max_bytes=1 << 20)).items()}
    assert {name: status for name, (status, _) in found.items()} == {
        "1.png": "ok",
        "no-head.png": "ok",
        "moved.png": "ok",
        "to-file.png": "unreadable",
        "loop.png": "unreadable",
        "endless.png": "too_large",
        "short.png": "unreadable",
        "page.png": "unreadable",
        "denied.png": "no_permission",
    }
    assert found["to-file.png"][1] == "not an http:// or https:// address, or a redirect to one that is not"
    assert found["page.png"][1] == "HTML page, not an image"
    assert "broke after" in (found["short.png"][1] or "")


def test_a_web_that_cannot_be_reached_fails_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "m.csv").write_text(f"path,label\n{base}/1.png?X-Amz-Signature=secret,cat\n{base}/2.png,cat\n")
    with pytest.raises(ListingError, match=r"None of the 2 addresses in .* \(no connection \(ConnectionError\)\).*try again\.$") as caught:
        listed(str(tmp_path / "m.csv"))
    assert "secret" not in str(caught.value)
    with pytest.raises(ListingError, match="no connection"):
        listed(f"{base}/list.csv?X-Amz-Signature=secret")


def test_a_password_in_a_list_or_on_the_command_line_is_refused_before_anything_is_stored(tmp_path: Path, command: Any) -> None:
    (tmp_path / "m.csv").write_text("path,label\nhttps://me:hunter2@host/1.png,cat\n")
    for path in (str(tmp_path / "m.csv"), "https://me:hunter2@host/m.csv"):
        code, output = command("audit", path, "--name", "web")
        assert (code, "hunter2" in output) == (2, False), output
    assert not (tmp_path / "home/datasets").exists()


@pytest.mark.parametrize(
    ("address", "stored"),
    [
        ("https://h/a b/ä.png?x=1&y=ä", "https://h/a%20b/%C3%A4.png?x=1&y=%C3%A4"),
        ("https://h/a%20b.png", "https://h/a%20b.png"),
        ("s3://b/a%20b.png", "s3://b/a%2520b.png"),
        ("https:///nohost.png", None),
        ("ftp://h/1.png", None),
        ("file:///etc/passwd", None),
    ],
)
def test_an_address_is_stored_percent_encoded_once(address: str, stored: str | None) -> None:
    assert stored_uri(address) == stored


def test_facts_of_a_silent_server_are_empty(site: Web) -> None:
    assert web.facts(f"{site.url}/endless.png") == Facts()
    assert len(site.heads) == 1
