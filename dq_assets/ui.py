"""Telling a running Dagster UI that a dataset was registered; without it a new dataset does not show until a restart."""

from __future__ import annotations

import http.client
import json
import os
import urllib.request

DEFAULT_URL = "http://127.0.0.1:3000"
LOCATION = "dq_assets"
MOST_BYTES = 1_000_000
"""Of an answer; a UI's is under 1 kB."""
MUTATION = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on WorkspaceLocationEntry { locationOrLoadError { __typename } }
  }
}
"""


def reload_ui(url: str | None = None, *, seconds: float = 30) -> str:
    """Ask the UI at $DQ_UI_URL (http://127.0.0.1:3000) to load its code location again; returns one line that says what came of it."""
    address = (url or os.environ.get("DQ_UI_URL") or DEFAULT_URL).rstrip("/")
    body = json.dumps({"query": MUTATION, "variables": {"name": LOCATION}}).encode()
    try:
        request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
        # A proxy of the environment has no business between this process and a local server.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as answer:
            entry = json.loads(answer.read(MOST_BYTES))["data"]["reloadRepositoryLocation"]
            kind, loaded = entry["__typename"], entry.get("locationOrLoadError") or {}
            # A location that was reloaded and failed to load is an entry too; its error stands inside.
            kind = loaded.get("__typename", kind)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return f"No Dagster UI answered at {address}; `make dev` starts one."
    if kind in ("RepositoryLocation", "WorkspaceLocationEntry"):
        return f"The Dagster UI at {address} shows it."
    return f"The Dagster UI at {address} could not load it ({kind}); see its Deployment page."
