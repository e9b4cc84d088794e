"""With a real `dagster dev`: a dataset shows, files are dropped in, the sensor re-audits, a gate closes and training is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dq_assets.definitions import instance_of
from dq_assets.settings import Home
from dq_assets.store import audits
from dq_assets.store.lake import Lake
from dq_assets_tests.conftest import Planted

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
FAST = ("--set", "automation.sensor_seconds=5", "--set", "gates.max_unreadable_share=0.1")


def command(home: Home, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DQ_HOME": str(home.root), "DQ_UI_URL": url}
    return subprocess.run([str(BIN / "dq-assets"), *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False)


def ask(url: str, query: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)["data"]
        return found


def wait_for(what: str, is_so: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if is_so():
                return
        except OSError:  # the server is not up yet
            pass
        time.sleep(1)
    pytest.fail(f"{what} did not happen within {seconds} s")


@contextlib.contextmanager
def running_ui(home: Home, logs: Path) -> Iterator[str]:
    """The address of a real `dagster dev` on a free port; ended by its process group."""
    with instance_of(home):
        pass  # places dagster.yaml
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "DQ_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster)}
    log = (logs / "dagster.log").open("w")
    server = subprocess.Popen(
        [str(BIN / "dagster"), "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for("the UI", lambda: "version" in ask(url, "{version}"))
        yield url
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


@pytest.fixture
def ui(home: Home, tmp_path: Path) -> Iterator[str]:
    """A UI with no dataset registered."""
    with running_ui(home, tmp_path) as url:
        yield url


def audit_ids(home: Home, name: str) -> list[int]:
    with Lake.open(home) as lake:
        return audits.history(lake, name)["audit_id"].to_list() if lake.has_dataset(name) else []


def asset_keys(url: str) -> set[str]:
    return {"/".join(node["assetKey"]["path"]) for node in ask(url, "{assetNodes {assetKey {path}}}")["assetNodes"]}


def test_dropped_files_are_audited_and_a_closed_gate_refuses_training(ui: str, home: Home, pictures: Planted) -> None:
    assert asset_keys(ui) == set()
    first = command(home, ui, "audit", str(pictures.root), "--name", "live-shapes", *FAST)
    assert first.returncode == 0, first.stderr
    assert f"The Dagster UI at {ui} shows it." in first.stdout
    assert "live-shapes/trained_model" in asset_keys(ui)
    assert audit_ids(home, "live-shapes") == [1]

    # One in five files is now broken: the sensor has to see them, and the gate has to close.
    for number in range(20):
        (pictures.root / "grid" / f"bad{number}.jpg").write_bytes(b"not an image")
    wait_for("the re-audit", lambda: audit_ids(home, "live-shapes") == [1, 2])
    gate = command(home, ui, "gate", "--name", "live-shapes", "--json")
    assert gate.returncode == 3
    verdicts = {g["check_name"]: g["verdict"] for g in json.loads(gate.stdout)["gates"]}
    assert verdicts["unreadable_share"] == "failed"
    with Lake.open(home) as lake:
        assert audits.history(lake, "live-shapes")["training_snapshot_id"].is_null().to_list() == [False, True]
        with pytest.raises(audits.GateClosedError, match="unreadable_share"):
            audits.require_green(lake, "live-shapes", home.dataset("live-shapes").settings, {}, version=2)

    # Removed again: the same listing as in audit 1 is a change all the same.
    for file in pictures.root.glob("grid/bad*.jpg"):
        file.unlink()
    wait_for("the audit after the removal", lambda: audit_ids(home, "live-shapes") == [1, 2, 3])
    wait_for("training", lambda: command(home, ui, "gate", "--name", "live-shapes").returncode == 0)

    def trained() -> bool:
        with Lake.open(home) as lake:
            return audits.read(lake, "live-shapes", "trained_model")["audit_id"].to_list() == [1, 3]

    wait_for("training on the mended data", trained)
