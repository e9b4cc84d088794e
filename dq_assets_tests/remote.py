"""A stand-in for the network: a server that passes requests on to another one, breaks some of them on purpose, and counts all."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[[str, str], str | None]
"""What becomes of a request (method, path): a status such as 503, `reset`, `cut` (half of the body), or None: it passes."""

ERRORS = {
    "503": ("SlowDown", "Please reduce your request rate."),
    "500": ("InternalError", "We encountered an internal error. Please try again."),
    "403": ("AccessDenied", "Access Denied"),
}


class FaultyProxy:
    """In front of host:port. `requests` has (method, path) of all that came; `fault` decides what becomes of each."""

    def __init__(self, host: str, port: int) -> None:
        self.fault: Fault = lambda method, path: None
        self.rewrite: Callable[[str], str] = lambda path: path
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _pass(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                with proxy.lock:
                    proxy.requests.append((self.command, self.path))
                    fault = proxy.fault(self.command, self.path)
                if fault == "reset":
                    self.close_connection = True
                    return
                if fault is not None and fault != "cut":
                    code, message = ERRORS[fault]
                    self._answer(int(fault), [], f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())
                    return
                upstream = http.client.HTTPConnection(host, port, timeout=30)
                upstream.request(self.command, proxy.rewrite(self.path), body, dict(self.headers))
                answer = upstream.getresponse()
                data = answer.read()
                headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "connection", "transfer-encoding")]
                size = answer.getheader("Content-Length") if self.command == "HEAD" else None
                upstream.close()
                self._answer(answer.status, headers, data, cut=fault == "cut", size=size)

            def _answer(
                self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False, size: str | None = None
            ) -> None:
                self.send_response(status)
                for key, value in headers:
                    self.send_header(key, value)
                self.send_header("Content-Length", size or str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                self.close_connection = self.close_connection or cut

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def count(self, method: str, part: str = "") -> int:
        """Requests so far."""
        with self.lock:
            return sum(m == method and part in path for m, path in self.requests)

    def reset(self) -> None:
        """No faults, nothing counted."""
        with self.lock:
            self.requests.clear()
        self.fault, self.rewrite = (lambda method, path: None), (lambda path: path)


@contextmanager
def running(proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """While it serves."""
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()


def each_once(*faults: str, method: str = "GET", suffix: str = ".png") -> Fault:
    """Each file's first requests fail with these faults, one after the other; then it passes."""
    seen: dict[str, int] = {}

    def fault(m: str, path: str) -> str | None:
        plain = path.partition("?")[0]
        if m != method or not plain.endswith(suffix):
            return None
        seen[plain] = seen.get(plain, 0) + 1
        return faults[seen[plain] - 1] if seen[plain] <= len(faults) else None

    return fault


def first_time(fault: str, part: str) -> Fault:
    """The first request whose address has this part fails."""
    seen: list[str] = []

    def decide(method: str, path: str) -> str | None:
        if part not in path or seen:
            return None
        seen.append(path)
        return fault

    return decide
