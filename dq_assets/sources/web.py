"""Files at http:// and https:// addresses, which a list names. Servers are strangers: sizes, times and redirects are bounded.

requests rather than fsspec's HTTP: that reads a body of any size whole, and needs aiohttp. No message holds an address, whose query
may carry a signature.
"""

from __future__ import annotations

import email.utils
import errno
import threading
import time
from typing import TYPE_CHECKING

from dq_assets.sources.layout import Facts
from dq_assets.sources.retries import TransientError, with_retries

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS, SILENT_SECONDS, MOST_SECONDS = 10, 30, 600
"""How long a server may take to answer a call, to send the next bytes, and to send the whole file."""

_MOST_REDIRECTS = 5
_CHUNK = 1 << 16
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "dq-assets"}
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_local = threading.local()


def facts(url: str) -> Facts:
    """Size, time and ETag by a HEAD request; nothing where the server does not say. Status missing for 404 and 410."""
    try:
        with with_retries(lambda: _request("HEAD", url)) as answer:
            headers = answer.headers
    except FileNotFoundError as error:
        return Facts(status="missing", reason=error.strerror)
    except TransientError:
        raise
    except OSError:  # some servers refuse HEAD: reading the file tells
        return Facts()
    size = headers.get("Content-Length", "")
    return Facts(int(size) if size.isdigit() else None, _time(headers.get("Last-Modified")), headers.get("ETag"))


def fetch(url: str, most: int, listed: int | None = None) -> bytes:
    """The body, in one attempt. Raises FileNotFoundError, PermissionError, OSError (EFBIG: more than `most` bytes), TransientError.

    listed: the size that a listing was told; of another one no more than that is read.
    """
    import requests
    import urllib3

    deadline = time.monotonic() + MOST_SECONDS
    body = bytearray()
    with _request("GET", url) as answer:
        size = answer.headers.get("Content-Length", "")
        if size.isdigit() and int(size) > most:
            raise OSError(errno.EFBIG, f"{size} bytes, more than images.max_bytes = {most}")
        try:
            # As it comes over the wire: a body that is unpacked here could be a thousand times as large.
            while chunk := answer.raw.read(_CHUNK, decode_content=False):
                body += chunk
                if listed is not None and len(body) > listed:
                    raise TransientError(errno.ESTALE, f"more bytes came than the {listed} that were listed")
                if len(body) > most:
                    raise OSError(errno.EFBIG, f"more than images.max_bytes = {most}")
                if time.monotonic() > deadline:
                    raise TransientError(errno.ETIMEDOUT, f"not sent in {MOST_SECONDS} s")
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientError(errno.EIO, f"the connection broke after {len(body)} bytes ({type(error).__name__})") from None
    if listed is not None and len(body) != listed:
        raise TransientError(errno.ESTALE, f"{len(body)} bytes came of {listed}")
    return bytes(body)


def _request(method: str, url: str) -> requests.Response:
    import requests

    try:
        answer: requests.Response = _session().request(
            method, url, stream=True, timeout=(CONNECT_SECONDS, SILENT_SECONDS), allow_redirects=True, headers=_HEADERS
        )
    except requests.TooManyRedirects:
        raise OSError(errno.ELOOP, f"more than {_MOST_REDIRECTS} redirects") from None
    except requests.Timeout:
        raise TransientError(errno.ETIMEDOUT, "the server did not answer in time") from None
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema):
        raise OSError(errno.EINVAL, "not an http:// or https:// address, or a redirect to one that is not") from None
    except requests.exceptions.SSLError:
        raise OSError(errno.EPROTO, "the server's certificate is not valid") from None
    except requests.RequestException as error:
        raise TransientError(errno.ECONNABORTED, f"no connection ({type(error).__name__})") from None
    if answer.status_code == 200:
        return answer
    answer.close()
    said = f"HTTP {answer.status_code}"
    if answer.status_code in (404, 410):
        raise FileNotFoundError(errno.ENOENT, said)
    if answer.status_code in (401, 403, 407, 451):
        raise PermissionError(errno.EACCES, said)
    raise (TransientError if answer.status_code in _AGAIN else OSError)(errno.EIO, said)


def _session() -> requests.Session:
    """One per thread. It knows http:// and https:// alone, so that no redirect leads to a file."""
    import requests

    if not hasattr(_local, "session"):
        _local.session = requests.Session()
        _local.session.max_redirects = _MOST_REDIRECTS
    session: requests.Session = _local.session
    return session


def _time(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None
