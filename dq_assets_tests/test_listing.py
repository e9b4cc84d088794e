"""What a folder or a manifest holds is listed as it is: odd names, links, lists that people made, and failures that are loud."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dq_assets.settings import Dataset
from dq_assets.sources.folder import local_path
from dq_assets.sources.layout import COLUMNS, Listing, ListingError
from dq_assets.sources.listing import list_source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def put(root: Path, *names: str | bytes) -> None:
    """Files with a byte each: a listing opens none."""
    for name in names:
        file = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(b"x")


def listed(path: Path | str, **lists: Path) -> Listing:
    return list_source(Dataset("d", str(path), **{name: str(file) for name, file in lists.items()}))


def rows(listing: Listing, *columns: str) -> list[tuple[Any, ...]]:
    return listing.files.select(columns).rows()


def csv(file: Path, text: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


# Folders


def test_the_class_is_the_first_folder(root: Path) -> None:
    put(root, "cat/1.jpg", "cat/deep/er/2.PNG", "dog/3.jpeg", "4.jpg")
    listing = listed(root)
    assert rows(listing, "path", "given_label", "split") == [
        ("4.jpg", None, None),
        ("cat/1.jpg", "cat", None),
        ("cat/deep/er/2.PNG", "cat", None),
        ("dog/3.jpeg", "dog", None),
    ]
    assert dict(listing.files.schema) == COLUMNS
    assert set(listing.files["status"]) == {None}


def test_a_split_level_is_read_when_every_top_folder_is_a_split(root: Path) -> None:
    put(root, "train/cat/1.jpg", "val/cat/2.jpg", "valid/dog/3.jpg", "validation/dog/4.jpg", "test/5.jpg", "unused/dog/6.jpg")
    assert rows(listed(root), "split", "given_label") == [
        ("test", None),
        ("train", "cat"),
        ("unused", "dog"),
        ("validation", "cat"),
        ("validation", "dog"),
        ("validation", "dog"),
    ]


def test_one_top_folder_that_is_no_split_makes_all_of_them_classes(root: Path) -> None:
    put(root, "train/1.jpg", "test/2.jpg", "bus/3.jpg")
    assert rows(listed(root), "given_label", "split") == [("bus", None), ("test", None), ("train", None)]


def test_a_picture_beside_split_folders_has_neither_split_nor_label(root: Path) -> None:
    put(root, "banner.png", "train/cat/1.jpg", "test/dog/2.jpg")
    assert rows(listed(root), "path", "split", "given_label") == [
        ("banner.png", None, None),
        ("test/dog/2.jpg", "test", "dog"),
        ("train/cat/1.jpg", "train", "cat"),
    ]


def test_folders_without_images_do_not_hide_a_split_level(root: Path) -> None:
    put(root, "train/cat/1.jpg", "docs/readme.txt", ".git/x.jpg")
    listing = listed(root)
    assert rows(listing, "split", "given_label") == [("train", "cat")]
    assert listing.skipped == {"hidden": 1, "without an image suffix": 1, "folders without images": 1}


def test_what_is_passed_over_is_counted_by_reason(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg", "cat/.2.jpg", "cat/._1.jpg", "cat/Thumbs.db", "cat/notes.txt", "cat/noext", ".hidden/3.jpg", "empty/x.md")
    (root / "bare").mkdir()
    (root / "cat/dangling.jpg").symlink_to("nowhere.jpg")
    listing = listed(root)
    assert rows(listing, "path") == [("cat/1.jpg",)]
    assert listing.skipped == {"hidden": 4, "without an image suffix": 3, "folders without images": 2, "links not followed": 1}


def test_names_with_newlines_quotes_spaces_and_other_scripts_are_exact(root: Path) -> None:
    names = ["cat\ndog/a\nb.jpg", "\"q'/,;.jpg", " lead /trail .jpg", "猫/ä%20#?.jpg", "-rf/*.jpg", "e\u0301/1.jpg", "\u00e9/1.jpg"]
    put(root, *names)
    listing = listed(root)
    assert sorted(listing.files["path"]) == sorted(names)
    assert sorted(listing.files["given_label"]) == sorted(name.split("/")[0] for name in names)
    for path, uri in rows(listing, "path", "uri"):
        assert uri.isascii()
        assert local_path(uri) == str(root / path)


def test_names_that_are_no_utf8_become_escapes_and_keep_an_exact_address(root: Path) -> None:
    put(root, b"caf\xe9/\xff\xfe.jpg")
    listing = listed(root)
    assert rows(listing, "path", "given_label") == [("caf\\xe9/\\xff\\xfe.jpg", "caf\\xe9")]
    assert os.fsencode(local_path(listing.files["uri"][0])) == os.fsencode(root) + b"/caf\xe9/\xff\xfe.jpg"
    assert Path(local_path(listing.files["uri"][0])).read_bytes() == b"x"


def test_a_name_that_looks_like_the_escapes_of_another_gets_a_path_of_its_own(root: Path) -> None:
    put(root, b"\xff.jpg", "\\xff.jpg", "%FF.jpg", "%25FF.jpg", b" \xff.jpg", " \\xff.jpg", "%20%FF.jpg")
    listing = listed(root)
    assert listing.files["path"].n_unique() == listing.files["uri"].n_unique() == 7
    assert all(os.path.exists(local_path(uri)) for uri in listing.files["uri"])


def test_a_root_whose_name_is_no_utf8_can_be_listed(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    put(root, "cat/1.jpg")
    assert rows(listed(root), "path") == [("cat/1.jpg",)]
    empty = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    empty.mkdir()
    with pytest.raises(ListingError) as caught:
        listed(empty)
    assert str(caught.value).isprintable()


def test_a_relative_root_and_an_absolute_one_give_the_same_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg")
    absolute = listed(root)
    monkeypatch.chdir(root.parent)
    assert listed("photos").files.equals(absolute.files)
    assert listed("photos/../photos/").files.equals(absolute.files)


def test_a_root_that_is_a_link_to_a_folder_is_listed(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg")
    (tmp_path / "link").symlink_to(root)
    assert rows(listed(tmp_path / "link"), "path") == [("cat/1.jpg",)]


def test_links_are_followed_to_files_within_the_root_and_nowhere_else(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg")
    put(tmp_path, "secret.jpg", "photos-of-others/1.jpg")
    (root / "cat/inside.jpg").symlink_to("1.jpg")
    (root / "cat/chain.jpg").symlink_to("inside.jpg")
    (root / "cat/outside.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "cat/sibling.jpg").symlink_to(tmp_path / "photos-of-others/1.jpg")
    (root / "cat/up.jpg").symlink_to("../../secret.jpg")
    (root / "dog").symlink_to("cat")
    (root / "all").symlink_to(tmp_path)
    listing = listed(root)
    assert rows(listing, "path") == [("cat/1.jpg",), ("cat/chain.jpg",), ("cat/inside.jpg",)]
    assert listing.skipped == {"links not followed": 5}


def test_loops_of_links_end(root: Path) -> None:
    put(root, "cat/1.jpg")
    (root / "cat/self.jpg").symlink_to("self.jpg")
    (root / "cat/a.jpg").symlink_to("b.jpg")
    (root / "cat/b.jpg").symlink_to("a.jpg")
    (root / "cat/parent").symlink_to("..")
    listing = listed(root)
    assert rows(listing, "path") == [("cat/1.jpg",)]
    assert listing.skipped == {"links not followed": 4}


def test_a_pipe_a_socket_and_a_folder_named_like_pictures_are_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg", "cat/folder.jpg/2.jpg")
    os.mkfifo(root / "cat/pipe.jpg")
    (root / "cat/link.jpg").symlink_to("pipe.jpg")
    monkeypatch.chdir(root)  # the name of a socket is at most 108 bytes
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("cat/socket.jpg")
    found: list[Listing] = []
    thread = threading.Thread(target=lambda: found.append(listed(root)), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "the listing waits for someone to write into the pipe"
    assert rows(found[0], "path", "status") == [
        ("cat/1.jpg", None),
        ("cat/folder.jpg/2.jpg", None),
        ("cat/pipe.jpg", "not_regular"),
        ("cat/socket.jpg", "not_regular"),
    ]
    assert found[0].skipped == {"links not followed": 1}


def intercept(monkeypatch: pytest.MonkeyPatch, name: str, ending: str, act: Callable[[str], None]) -> None:
    """Runs `act` just before os.<name> of a path with that ending."""
    real = getattr(os, name)

    def intercepted(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str) and path.endswith(ending):
            act(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, name, intercepted)


def refuse(path: str) -> None:
    raise PermissionError(13, "Permission denied", path)


def test_a_file_that_vanishes_while_listing_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg", "cat/2.jpg")
    intercept(monkeypatch, "stat", "2.jpg", os.remove)
    listing = listed(root)
    assert rows(listing, "path") == [("cat/1.jpg",)]
    assert listing.skipped == {"gone while listing": 1}


def test_a_link_whose_target_vanishes_or_loops_while_listing_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg", "cat/2.jpg")
    (root / "cat/link.jpg").symlink_to("2.jpg")

    def swap(path: str) -> None:
        os.remove(path)
        os.symlink("link.jpg", path)

    intercept(monkeypatch, "stat", "link.jpg", swap)
    listing = listed(root)
    assert rows(listing, "path") == [("cat/1.jpg",), ("cat/2.jpg",)]
    assert listing.skipped == {"gone while listing": 1}


def test_a_file_in_a_folder_that_may_be_listed_but_not_entered_is_a_row(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg", "cat/2.jpg")
    intercept(monkeypatch, "stat", "2.jpg", refuse)
    assert rows(listed(root), "path", "status", "bytes") == [("cat/1.jpg", None, 1), ("cat/2.jpg", "no_permission", None)]


@pytest.mark.parametrize("ending", ["photos", "photos/cat"])
def test_a_folder_that_may_not_be_read_fails_the_listing(root: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    put(root, "cat/1.jpg", "dog/1.jpg")
    intercept(monkeypatch, "scandir", ending, refuse)
    with pytest.raises(ListingError, match=r"Cannot list .*\(Permission denied\)\. Give this user permission"):
        listed(root)


def test_a_folder_that_vanishes_while_listing_fails_the_listing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg", "dog/1.jpg")
    intercept(monkeypatch, "scandir", "photos/cat", shutil.rmtree)
    with pytest.raises(ListingError, match=r"No such file or directory.*try again"):
        listed(root)


def test_a_disk_that_fails_fails_the_listing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg")

    def fail(path: str) -> None:
        raise OSError(5, "Input/output error")

    intercept(monkeypatch, "stat", "1.jpg", fail)
    with pytest.raises(ListingError, match="Input/output error"):
        listed(root)


def test_an_empty_folder_is_an_error_that_says_what_else_was_there(root: Path) -> None:
    with pytest.raises(ListingError, match=r"No image was found under .*photos \(nothing else was there\)"):
        listed(root)
    put(root, "a.txt", ".b.jpg")
    with pytest.raises(ListingError, match=r"\(1 hidden, 1 without an image suffix\)"):
        listed(root)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing/here", "No such file or directory"),
        ("ftp://host/photos", r"of no kind that can be read.*s3://"),
        ("https://host/photos", "the web has no folders"),
        ("notes.txt", "neither a folder nor"),
        ("pipe.csv", "neither a folder nor"),
        ("notes.txt/x", "Not a directory"),
    ],
)
def test_a_path_that_cannot_be_listed_is_one_line_that_says_why(tmp_path: Path, path: str, says: str) -> None:
    csv(tmp_path / "notes.txt", "")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ListingError, match=says) as caught:
        listed(path if "://" in path else tmp_path / path)
    assert "\n" not in str(caught.value)


# Manifests


def test_a_manifest_in_any_dialect_of_csv_gives_the_same_rows(root: Path) -> None:
    put(root, "1.jpg", "2.jpg")
    plain = listed(csv(root / "m.csv", "path,label\n1.jpg,cat\n2.jpg,dog\n"))
    for text in (
        b"\xef\xbb\xbfpath,label\n1.jpg,cat\n2.jpg,dog\n",
        b'\xef\xbb\xbf"path","label"\r\n"1.jpg","cat"\r\n"2.jpg","dog"\r\n',
        b" Path , LABEL \n1.jpg,cat\n2.jpg,dog",
        b"label,path\ncat,1.jpg\ndog,2.jpg\n\n",
    ):
        assert listed(csv(root / "m.csv", text)).files.equals(plain.files)


def test_labels_are_text_and_an_empty_one_is_none(root: Path) -> None:
    put(root, *(f"{n}.jpg" for n in range(7)))
    labels = ["01", "1", "", '""', "null", "1e3", " cat"]
    manifest = csv(root / "m.csv", "path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    assert listed(manifest).files["given_label"].to_list() == ["01", "1", None, None, "null", "1e3", " cat"]


def test_values_with_commas_newlines_and_quotes_are_one_value(root: Path) -> None:
    put(root, 'a,\n"b.jpg')
    listing = listed(csv(root / "m.csv", 'path,label\r\n"a,\n""b.jpg","cat, ""big""\ndog"\r\n'))
    assert rows(listing, "path", "given_label", "status") == [('a,\n"b.jpg', 'cat, "big"\ndog', None)]


def test_a_parquet_manifest_is_read_as_text_whatever_its_types(root: Path) -> None:
    put(root, *(f"{n}.jpg" for n in range(3)))
    frame = pl.DataFrame(
        {
            "path": [f"{n}.jpg" for n in range(3)],
            "label": [1, 2, None],
            "split": pl.Series(["train", "val", None], dtype=pl.Categorical),
            "group": [1.5, float("nan"), None],
            "image": [b"\xff\xd8", b"", None],
            "box": [{"x": 1}, None, {"x": 2}],
            "tags": [["a"], [], None],
        }
    )
    frame.write_parquet(root / "m.parquet")
    listing = listed(root / "m.parquet")
    assert rows(listing, "given_label", "split", "group") == [("1", "train", "1.5"), ("2", "validation", None), (None, None, None)]


def test_a_manifest_of_strings_is_the_same_as_csv_and_as_parquet(root: Path) -> None:
    put(root, "1.jpg", "2.jpg")
    frame = pl.DataFrame({"path": ["1.jpg", "2.jpg"], "label": ["01", ""], "split": ["Train", " TEST "], "group": ["g", None]})
    frame.write_csv(root / "m.csv")
    frame.write_parquet(root / "m.PARQUET")
    assert listed(root / "m.csv").files.equals(listed(root / "m.PARQUET").files)
    assert rows(listed(root / "m.csv"), "split", "group") == [("train", "g"), ("test", None)]


def test_brackets_and_stars_in_a_path_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "photos [2] *{a}"
    put(folder, "1.jpg")
    manifest = csv(folder / "m[1].csv", "path,label\n1.jpg,cat\n")
    pl.read_csv(manifest.read_bytes()).write_parquet((folder / "m[1].parquet").open("wb"))
    assert rows(listed(manifest), "given_label") == [("cat",)]
    assert rows(listed(folder / "m[1].parquet"), "given_label") == [("cat",)]
    assert rows(listed(folder, labels=manifest), "given_label") == [("cat",)]


def test_headers_that_look_like_patterns_are_only_names(root: Path) -> None:
    put(root, "1.jpg")
    listing = listed(csv(root / "m.csv", "path,label,*,^p.*$\n1.jpg,cat,x,y\n"))
    assert rows(listing, "path", "given_label") == [("1.jpg", "cat")]
    assert listing.skipped == {"column *": 1, "column ^p.*$": 1}


def test_every_spelling_of_a_path_is_one_path(root: Path) -> None:
    put(root, "cat/1.jpg")
    spellings = ["cat/1.jpg", "./cat/1.jpg", "cat//1.jpg", "dog/../cat/1.jpg", str(root / "cat/1.jpg")]
    listing = listed(csv(root / "m.csv", "path,label\n" + "".join(f"{path},cat\n" for path in spellings)))
    assert rows(listing, "path", "given_label", "reason") == [("cat/1.jpg", "cat", "stands 5 times in the list")]


def test_absolute_paths_and_paths_out_of_the_folder_are_taken_as_the_manifest_says(root: Path, tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/1.jpg", "photos/2.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    manifest = csv(root / "m.csv", f"path,label\n{tmp_path}/elsewhere/1.jpg,a\n../elsewhere/1.jpg,b\n{root}/2.jpg,c\nlink.jpg,d\n")
    listing = listed(manifest)
    assert sorted(rows(listing, "path", "given_label", "status")) == sorted(
        [(f"{tmp_path}/elsewhere/1.jpg", "a", None), ("../elsewhere/1.jpg", "b", None), ("2.jpg", "c", None), ("link.jpg", "d", None)]
    )
    assert {local_path(uri) for uri in listing.files["uri"]} == {
        str(tmp_path / "elsewhere/1.jpg"),
        str(root / "2.jpg"),
        str(root / "link.jpg"),
    }


def test_files_that_cannot_be_had_are_rows_with_a_status(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "fine.jpg", "secret/1.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    names = [
        "fine.jpg",
        "gone.jpg",
        "fine.jpg/x.jpg",
        "secret",
        "pipe.jpg",
        "loop.jpg",
        "x" * 300 + ".jpg",
        "nul\0.jpg",
        "secret/1.jpg",
        ".",
    ]
    intercept(monkeypatch, "stat", "secret/1.jpg", refuse)
    listing = listed(csv(root / "m.csv", "path,label\n" + "".join(f"{name},cat\n" for name in names)))
    assert dict(rows(listing, "path", "status")) == {
        "fine.jpg": None,
        "gone.jpg": "missing",
        "fine.jpg/x.jpg": "missing",
        "secret": "not_regular",
        "pipe.jpg": "not_regular",
        "loop.jpg": "missing",
        "x" * 300 + ".jpg": "missing",
        "nul\0.jpg": "missing",
        "secret/1.jpg": "no_permission",
        ".": "not_regular",
    }
    assert listing.files.filter(pl.col("status").is_not_null())["reason"].null_count() == 0
    assert listing.files.filter(pl.col("status") == "missing")["bytes"].null_count() == 5


def test_a_path_with_two_labels_is_an_error_that_lists_them(root: Path) -> None:
    put(root, "1.jpg", "2.jpg", "3.jpg")
    manifest = csv(root / "m.csv", "path,label\n1.jpg,dog\n2.jpg,cat\n1.jpg,cat\n2.jpg,\n3.jpg,cat\n")
    with pytest.raises(ListingError, match=r"gives 2 paths more than one label: 1\.jpg is cat, dog; 2\.jpg is cat, empty\. Keep one row"):
        listed(manifest)


@pytest.mark.parametrize("column", ["split", "group"])
def test_a_path_with_two_splits_or_groups_is_an_error_too(root: Path, column: str) -> None:
    put(root, "1.jpg")
    manifest = csv(root / "m.csv", f"path,label,{column}\n1.jpg,cat,train\n1.jpg,cat,test\n")
    with pytest.raises(ListingError, match=rf"more than one {column}: 1\.jpg is test, train"):
        listed(manifest)


def test_a_split_that_two_rows_call_by_two_names_is_one_split(root: Path) -> None:
    put(root, "1.jpg")
    listing = listed(csv(root / "m.csv", "path,label,split\n1.jpg,cat,val\n1.jpg,cat,Valid\n"))
    assert rows(listing, "split", "reason") == [("validation", "stands 2 times in the list")]


def test_an_unknown_split_is_an_error_that_lists_the_known_ones(root: Path) -> None:
    put(root, "1.jpg")
    with pytest.raises(ListingError, match=r"unknown splits: holdout\. Use test, train, training, unused, val"):
        listed(csv(root / "m.csv", "path,label,split\n1.jpg,cat,Holdout\n"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.csv", b"", "empty CSV"),
        ("m.csv", b"file,label\n1.jpg,cat\n", r"has no column path \(it has: file, label\)"),
        ("m.csv", b"path;label\n1.jpg;cat\n", r"has no column path, label \(it has: path;label\)"),
        ("m.csv", b"path,label\n1.jpg,cat,more\n", "Cannot read"),
        ("m.csv", "path,label\né.jpg,cat\n".encode("latin-1"), "Save it as UTF-8"),
        ("m.csv", "path,label\n1.jpg,cat\n".encode("utf-16"), "Save it as UTF-8"),
        ("m.csv", b'path,label\n"1.jpg,cat\n', "Cannot read"),
        ("m.csv", b"path,label,Label\n1.jpg,cat,dog\n", "two columns of one name"),
        ("m.csv", b"path,label\n", "No image was found"),
        ("m.csv", b"path,label\n,cat\n", r"No image was found under .* \(1 rows without a path\)"),
        ("m.parquet", b"", "Cannot read"),
        ("m.parquet", b"path,label\n1.jpg,cat\n", "Cannot read"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line_that_says_what_to_do(root: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(ListingError, match=says) as caught:
        listed(csv(root / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert str(caught.value).endswith(".")


# Lists of labels, splits and groups


def test_a_labels_file_replaces_the_labels_and_counts_what_it_does_not_match(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    labels = csv(tmp_path / "labels.csv", "path,label\ncat/1.jpg,01\ncat/2.jpg,\nbird/9.jpg,bird\n,dog\n")
    listing = listed(root, labels=labels)
    assert rows(listing, "path", "given_label") == [("cat/1.jpg", "01"), ("cat/2.jpg", None), ("dog/3.jpg", None)]
    assert listing.skipped == {"rows of labels.csv without a file": 1, "files not in labels.csv": 1}
    assert dict(listing.files.schema) == COLUMNS


@pytest.mark.parametrize("where", ["photos/l.csv", "photos/cat/l.csv", "l.csv", "lists/l.csv"])
@pytest.mark.parametrize("relative_to", ["PATH", "the list's folder", "nothing"])
def test_paths_of_a_list_are_relative_to_the_dataset_or_to_the_list_or_absolute(
    root: Path, tmp_path: Path, where: str, relative_to: str
) -> None:
    put(root, "cat/1.jpg")
    file = tmp_path / where
    base = {"PATH": root, "the list's folder": file.parent, "nothing": None}[relative_to]
    path = os.path.relpath(root / "cat/1.jpg", base) if base else str(root / "cat/1.jpg")
    listing = listed(root, groups=csv(file, f"path,group\n./{path},g\n" if base else f"path,group\n{path},g\n"))
    assert rows(listing, "path", "given_label", "group") == [("cat/1.jpg", "cat", "g")]


def test_relative_to_the_dataset_comes_before_relative_to_the_list(root: Path) -> None:
    put(root, "1.jpg", "sub/1.jpg")
    listing = listed(root, groups=csv(root / "sub/g.csv", "path,group\n1.jpg,g\n"))
    assert rows(listing, "path", "group") == [("1.jpg", "g"), ("sub/1.jpg", None)]


def test_lists_with_relative_names_follow_the_working_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "cat/1.jpg")
    csv(root.parent / "l.csv", "path,label\nphotos/cat/1.jpg,x\n")
    monkeypatch.chdir(root.parent)
    assert rows(listed("photos", labels=Path("l.csv")), "given_label") == [("x",)]


def test_a_list_written_by_an_export_matches_names_that_are_no_utf8(root: Path, tmp_path: Path) -> None:
    put(root, b"cat/\xff.jpg")
    exported = tmp_path / "out.csv"
    listed(root).files.select("path", label="given_label").write_csv(exported)
    assert rows(listed(root, labels=exported), "path", "given_label") == [("cat/\\xff.jpg", "cat")]


def test_a_list_that_matches_nothing_is_an_error_that_shows_one_of_each(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg")
    with pytest.raises(ListingError, match=r"it has 'images\\\\cat\\\\1\.jpg', the dataset 'cat/1\.jpg'"):
        listed(root, splits=csv(tmp_path / "s.csv", "path,split\nimages\\cat\\1.jpg,train\n"))
    with pytest.raises(ListingError, match=r"it has '\(no rows\)'"):
        listed(root, splits=csv(tmp_path / "s.csv", "path,split\n"))


def test_lists_are_checked_like_manifests(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg")
    with pytest.raises(ListingError, match="more than one split"):
        listed(root, splits=csv(tmp_path / "s.csv", "path,split\ncat/1.jpg,train\n./cat/1.jpg,test\n"))
    with pytest.raises(ListingError, match="unknown splits: dev"):
        listed(root, splits=csv(tmp_path / "s.csv", "path,split\ncat/1.jpg,dev\n"))
    with pytest.raises(ListingError, match=r"has no column group \(it has: path, split\)"):
        listed(root, groups=csv(tmp_path / "s.csv", "path,split\ncat/1.jpg,train\n"))
    os.mkfifo(tmp_path / "pipe.csv")
    for file in ("gone.csv", "photos", "pipe.csv"):
        with pytest.raises(ListingError, match=rf"Cannot read .*{file} \(not a file\)\. Check the path"):
            listed(root, labels=tmp_path / file)


def test_a_list_applies_to_a_manifest_too(root: Path, tmp_path: Path) -> None:
    put(root, "1.jpg", "2.jpg")
    manifest = csv(root / "m.csv", f"path,label,split\n{root}/1.jpg,cat,train\n2.jpg,dog,test\n")
    listing = listed(manifest, splits=csv(tmp_path / "s.csv", f"path,split\n{root}/2.jpg,val\nphotos/1.jpg,unused\n"))
    assert rows(listing, "path", "given_label", "split") == [("1.jpg", "cat", "unused"), ("2.jpg", "dog", "validation")]


# The digest


def test_the_digest_changes_with_what_an_audit_depends_on_and_with_nothing_else(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg", "cat/2.jpg")
    before = listed(root).digest()
    put(root, "cat/notes.txt")
    assert listed(root).digest() == before
    digests = {before}
    digests.add(listed(root, groups=csv(tmp_path / "g.csv", "path,group\ncat/1.jpg,g\n")).digest())
    os.utime(root / "cat/1.jpg", (1, 1))
    digests.add(listed(root).digest())
    (root / "cat/1.jpg").write_bytes(b"longer")
    os.utime(root / "cat/1.jpg", (1, 1))
    digests.add(listed(root).digest())
    (root / "cat/2.jpg").rename(root / "cat/3.jpg")
    digests.add(listed(root).digest())
    assert len(digests) == 5


def test_the_digest_does_not_depend_on_where_the_dataset_lies(root: Path, tmp_path: Path) -> None:
    put(root, "cat/1.jpg")
    before = listed(root).digest()
    root.rename(tmp_path / "moved")
    assert listed(tmp_path / "moved").digest() == before
