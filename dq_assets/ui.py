"""Telling a running Dagster UI that a dataset was registered; without it a new dataset does not show until a restart."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request

DEFAULT_URL = "http://127.0.0.1:3000"
LOCATION = "dq_assets"
MUTATION = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on PythonError { message }
  }
}
"""


def reload_ui(url: str | None = None, *, seconds: float = 30) -> str:
    """Ask the UI at $DQ_UI_URL (http://127.0.0.1:3000) to load its code location again; returns one line that says what came of it."""
    address = (url or os.environ.get("DQ_UI_URL") or DEFAULT_URL).rstrip("/")
    body = json.dumps({"query": MUTATION, "variables": {"name": LOCATION}}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    try:
        # A proxy of the environment has no business between this process and a local server.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as answer:
            kind = json.load(answer)["data"]["reloadRepositoryLocation"]["__typename"]
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError, KeyError, TypeError):
        return f"No Dagster UI answered at {address}; `make dev` starts one."
    if kind == "WorkspaceLocationEntry":
        return f"The Dagster UI at {address} shows it."
    return f"The Dagster UI at {address} could not load it ({kind}); see its Deployment page."
