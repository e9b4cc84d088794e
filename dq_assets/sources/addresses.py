"""Paths and addresses as people write them in lists and commands, and the exact address that is stored for each.

What does not belong here: opening anything.
"""

from __future__ import annotations

import os
import posixpath
import urllib.parse

from dq_assets.settings import UserError
from dq_assets.sources.folder import local_path
from dq_assets.sources.layout import as_text
from dq_assets.sources.objects import PROTOCOLS, uri_of

WEB = ("http", "https")


def is_remote(text: str) -> bool:
    """Whether this is an address and no path of this machine."""
    return "://" in text


def scheme_of(address: str) -> str:
    """`s3` of s3://bucket/key; empty for a path."""
    return address.partition("://")[0].lower() if is_remote(address) else ""


def shown(address: str) -> str:
    """For people: without the query, which may hold a signature, and without a password."""
    text = address.partition("?")[0] if is_remote(address) else address
    return as_text(_without_user(text))


def shown_uri(uri: str) -> str:
    """A stored address for people: a path of this machine as such."""
    return shown(local_path(uri) if uri.startswith("file://") else uri)


def refuse_password(address: str) -> None:
    """Raises UserError for an address with user:password@, before it is stored or shown anywhere."""
    if is_remote(address) and _without_user(address) != address:
        what = f"{shown(address)} was given with a user or password in it, which would be stored"
        raise UserError(f"{what}. Leave it out; for http(s) put it into ~/.netrc.")


def suffix_of(address: str) -> str:
    """In lower case, with the dot."""
    return os.path.splitext(urllib.parse.urlsplit(address).path if scheme_of(address) in WEB else address)[1].lower()


def folder_of(address: str) -> str:
    """Where a list lies: an absolute folder, or an address without `/` at its end."""
    if not is_remote(address):
        return os.path.abspath(os.path.dirname(address))
    return address.partition("?")[0].rpartition("/")[0] if scheme_of(address) in WEB else address.rpartition("/")[0]


def within(folder: str, path: str) -> str:
    """A path or address in its one spelling: relative to the `folder` (absolute, or an address) where it lies in it."""
    if is_remote(path) or is_remote(folder):
        return joined(folder, path).removeprefix(f"{folder}/")
    path = os.path.normpath(path)
    inside = os.path.isabs(path) and os.path.commonpath([path, folder]) == folder
    return os.path.relpath(path, folder) if inside else path


def joined(folder: str, path: str) -> str:
    """Where a path leads that is taken from a folder. From a remote folder, no path leads to this machine."""
    if is_remote(path):
        return path
    if not is_remote(folder):
        return os.path.join(folder, path)
    path = posixpath.normpath(path)
    if scheme_of(folder) in WEB:
        return urllib.parse.urljoin(f"{folder}/", path if path.startswith("/") else f"./{path}")
    return f"{folder}/{path.lstrip('/')}"


def stored_uri(address: str) -> str | None:
    """The exact, percent-encoded form of a remote address; None if it is of no kind that is read."""
    import requests

    scheme = scheme_of(address)
    if scheme in PROTOCOLS:
        return uri_of(scheme, address.partition("://")[2])
    # What is encoded already stays; spaces and letters that an address cannot hold are encoded.
    return str(requests.utils.requote_uri(address)) if scheme in WEB and urllib.parse.urlsplit(address).netloc else None


def _without_user(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    # In a bucket's name `@` names an account and is no password (abfs style), and a query may hold any.
    if not separator or "@" not in host or "?" in host.partition("@")[0]:
        return address
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
