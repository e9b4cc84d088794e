"""Objects in buckets: s3://, gs:// and az://, through fsspec. Credentials are the SDK's own affair and are never seen here.

An address is `<protocol>://<bucket>/<key>`, the key percent-encoded.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import urllib.parse
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from dq_assets.sources.layout import Facts, Listing, ListingError, arranged, as_text, nominated
from dq_assets.sources.retries import TransientError, with_retries

PROTOCOLS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}
"""Protocol: the package that speaks it, the extra that installs it."""

_OPTIONS: dict[str, dict[str, Any]] = {
    # One request per object: without max_concurrency s3fs asks for each size first. The SDK tries each request three times, so that
    # one page of a listing does not start it anew; what is left of that, and a body that breaks off, is for `with_retries`.
    "s3": {
        "max_concurrency": 1,
        "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 3}, "connect_timeout": 10, "read_timeout": 30},
    }
}

_HINTS = {
    "s3": "the AWS credentials (environment, profile or role)",
    "gs": "the Google credentials (GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login)",
    "az": "the Azure credentials (AZURE_STORAGE_ACCOUNT_NAME and a key, or az login)",
}


def list_objects(url: str) -> Listing:
    """The image objects under a bucket or prefix. Raises ListingError, also if it breaks off half-way."""
    protocol, _, path = url.rstrip("/").partition("://")
    try:
        found = with_retries(lambda: _asked(protocol, lambda store: store.find(path, detail=True)))
    except OSError as error:
        raise ListingError(f"Cannot list {as_text(url)} ({explained(error)}). {_advice(protocol, error)}") from error
    skipped: Counter[str] = Counter()
    names = [(name.removeprefix(path).removeprefix("/"), uri_of(protocol, name), facts_of(info)) for name, info in sorted(found.items())]
    return arranged(nominated(((name, uri, facts) for name, uri, facts in names if name), skipped), skipped)


def read_object(uri: str, most: int, size: int | None = None) -> bytes:
    """The bytes of an object, in one attempt. Raises as `web.fetch` does.

    size: what the listing said; other bytes were replaced or cut off on the way.
    """
    protocol, path = _path_of(uri)
    if size is None:
        size = facts(uri).bytes
    if size is not None and size > most:
        raise OSError(errno.EFBIG, f"{size} bytes, more than images.max_bytes = {most}")
    data: bytes = _asked(protocol, lambda store: store.cat_file(path))
    if size is not None and len(data) != size:
        raise TransientError(errno.ESTALE, f"{len(data)} bytes came of {size}")
    return data


def open_object(uri: str) -> Any:
    """A seekable file over ranges of an object."""
    protocol, path = _path_of(uri)
    return _asked(protocol, lambda store: store.open(path, "rb", block_size=4 << 20, cache_type="readahead"))


def facts(uri: str) -> Facts:
    """Size, time and ETag of one object. Raises FileNotFoundError, PermissionError, TransientError."""
    protocol, path = _path_of(uri)
    return facts_of(_asked(protocol, lambda store: store.info(path)))


def facts_of(info: dict[str, Any]) -> Facts:
    """From what a store says of an object; each has its own names."""
    changed = next((info[name] for name in ("LastModified", "last_modified", "updated", "mtime") if info.get(name)), None)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    etag = next((str(info[name]) for name in ("ETag", "etag") if info.get(name)), None)
    return Facts(info.get("size"), changed.timestamp() if isinstance(changed, datetime) else changed, etag and etag.strip('"'))


def uri_of(protocol: str, path: str) -> str:
    """The address of bucket/key."""
    return f"{protocol}://{urllib.parse.quote(path, safe='/', errors='surrogateescape')}"


def explained(error: OSError) -> str:
    """An error of a store on one line."""
    return " ".join((error.strerror or str(error) or type(error).__name__).split())[:200]


def filesystem(protocol: str) -> Any:
    """The store's client: one per process, since fsspec would make one per thread. Raises ListingError if its package is missing."""
    return _filesystem(protocol, os.getpid())


@functools.cache
def _filesystem(protocol: str, pid: int) -> Any:
    package, extra = PROTOCOLS[protocol]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ListingError(f"{protocol}:// needs the package {package}. Run pip install 'dq-assets[{extra}]'.") from error
    import fsspec

    # A listing from a cache would hide what changed.
    client = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(protocol, {}))
    if protocol == "s3":
        client.retries = 1  # s3fs repeats what the SDK has repeated: 75 requests for an object that is not to be had
    return client


def _path_of(uri: str) -> tuple[str, str]:
    protocol, _, path = uri.partition("://")
    return protocol, urllib.parse.unquote(path, errors="surrogateescape")


def _asked(protocol: str, request: Callable[[Any], Any]) -> Any:
    """The answer of a request, its failures as FileNotFoundError, PermissionError, OSError, and TransientError for what may pass."""
    store = filesystem(protocol)
    refused, broken = _failures(protocol)
    try:
        return request(store)
    except FileNotFoundError as error:  # with a cause it is the store's own word, else only the path
        raise FileNotFoundError(errno.ENOENT, "no such object" if error.__cause__ is None else explained(error)) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, explained(error)) from error
    except refused as error:
        raise PermissionError(errno.EACCES, str(error)) from error
    except broken as error:
        # s3fs says EINVAL for a request that the store finds wrong in itself; the same request will not do better.
        kind = OSError if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.ENOSYS) else TransientError
        raise kind(getattr(error, "errno", None) or errno.EIO, explained(error) if isinstance(error, OSError) else str(error)) from error


def _failures(protocol: str) -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """(what an SDK raises for want of credentials, what it raises for the network), beside OSError."""
    if protocol == "s3":
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

        return (NoCredentialsError, PartialCredentialsError, ProfileNotFound), (OSError, BotoCoreError, ClientError)
    if protocol == "gs":
        from aiohttp import ClientError as WebError
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError

        return (GoogleAuthError,), (OSError, HttpError, WebError)
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    # adlfs says ValueError for an account that is not named.
    return (ClientAuthenticationError, ValueError), (OSError, AzureError)


def _advice(protocol: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"Check {_HINTS[protocol]} and the right to list it."
    return "Check the address." if isinstance(error, FileNotFoundError) else "Try again."
