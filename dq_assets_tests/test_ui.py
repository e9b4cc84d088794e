"""Asking the UI to reload says in one line what came of it, whoever answers on that port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dq_assets import ui

requests: list[tuple[str, dict[str, Any]]] = []


@contextmanager
def serving(body: bytes, status: int = 200) -> Iterator[str]:
    """A web server on 127.0.0.1 that answers every POST with `body`; its address. Requests are noted in `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def speaking(reply: bytes | None) -> Iterator[str]:
    """A server that is no web server: it sends `reply` and hangs up, or keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def answer() -> None:
            client, _ = server.accept()
            held.append(client)
            if reply is not None:
                client.recv(65536)
                client.sendall(reply)
                client.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)
        for client in held:
            client.close()


def answered(reload: Any) -> bytes:
    return json.dumps({"data": {"reloadRepositoryLocation": reload}}).encode()


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DQ_UI_URL", raising=False)
    requests.clear()


@pytest.mark.parametrize(
    "entry",
    [{"locationOrLoadError": {"__typename": "RepositoryLocation"}}, {"locationOrLoadError": None}, {}],
    ids=["loaded", "loading", "older"],
)
def test_a_ui_that_reloaded_shows_the_dataset(entry: dict[str, Any]) -> None:
    with serving(answered({"__typename": "WorkspaceLocationEntry"} | entry)) as address:
        assert ui.reload_ui(address + "/", seconds=5) == f"The Dagster UI at {address} shows it."
    ((path, sent),) = requests
    assert path == "/graphql"
    assert sent["variables"] == {"name": "dq_assets"}


@pytest.mark.parametrize(
    ("reload", "kind"),
    [
        ({"__typename": "WorkspaceLocationEntry", "locationOrLoadError": {"__typename": "PythonError"}}, "PythonError"),
        ({"__typename": "RepositoryLocationNotFound"}, "RepositoryLocationNotFound"),
        ({"__typename": "UnauthorizedError"}, "UnauthorizedError"),
    ],
    ids=["broken code", "another workspace", "read-only"],
)
def test_a_ui_that_could_not_load_it_says_what_it_answered(reload: dict[str, Any], kind: str) -> None:
    with serving(answered(reload)) as address:
        assert ui.reload_ui(address, seconds=5) == f"The Dagster UI at {address} could not load it ({kind}); see its Deployment page."


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"<html>Grafana</html>", 200),
        (b"", 200),
        (b"[]", 200),
        (b"null", 200),
        (b'{"data": null, "errors": []}', 200),
        (b'{"data": {"reloadRepositoryLocation": null}}', 200),
        (b'{"data": {"reloadRepositoryLocation": "yes"}}', 200),
        (b'{"data": {"reloadRepositoryLocation": {"__typename": "WorkspaceLocationEntry", "locationOrLoadError": "x"}}}', 200),
        (b"\xff\xfe\x00", 200),
        (b'"' + b"x" * 3_000_000 + b'"', 200),
        (b"not found", 404),
        (b"{}", 500),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_another_program_on_the_port_is_no_ui(body: bytes, status: int) -> None:
    with serving(body, status) as address:
        assert ui.reload_ui(address, seconds=5) == f"No Dagster UI answered at {address}; `make dev` starts one."


@pytest.mark.parametrize(
    "reply", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"], ids=["ssh", "nothing", "cut off"]
)
def test_a_server_that_speaks_no_http_or_hangs_up_is_no_ui(reply: bytes) -> None:
    with speaking(reply) as address:
        assert ui.reload_ui(address, seconds=5).startswith("No Dagster UI answered")


def test_a_server_that_keeps_silent_is_waited_for_as_long_as_said() -> None:
    started = time.monotonic()
    with speaking(None) as address:
        assert ui.reload_ui(address, seconds=0.3).startswith("No Dagster UI answered")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "nonsense", "http://a b/", "http://[", "ftp://127.0.0.1:9", "http://127.0.0.1:99999"]
)
def test_an_address_where_nothing_is_is_no_ui(address: str) -> None:
    assert ui.reload_ui(address, seconds=1) == f"No Dagster UI answered at {address.rstrip('/')}; `make dev` starts one."


def test_the_address_comes_from_the_environment_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(answered({"__typename": "WorkspaceLocationEntry"})) as address:
        monkeypatch.setenv("DQ_UI_URL", address)
        assert ui.reload_ui(seconds=5) == f"The Dagster UI at {address} shows it."


def test_dagsters_own_schema_accepts_the_request() -> None:
    import graphql
    from dagster_graphql.schema import create_schema

    schema = create_schema().graphql_schema
    assert graphql.validate(schema, graphql.parse(ui.MUTATION)) == []
