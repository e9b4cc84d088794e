"""With a real browser: the Dagster UI shows the graph, an asset's metadata with its chart, and the checks. Run by `make test-system`.

The pictures of docs/images are made here: DQ_BROWSER_HOME names a $DQ_HOME with the openmoji demo, DQ_SCREENSHOTS a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq_assets.settings import Home
from dq_assets_tests.conftest import Planted
from dq_assets_tests.test_live import FAST, command, running_ui

pytestmark = pytest.mark.system

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def shown(template: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address of a UI, name of the dataset in it): $DQ_BROWSER_HOME's openmoji-planted, else a small one made here."""
    given = os.environ.get("DQ_BROWSER_HOME")
    home = Home(Path(given) if given else tmp_path_factory.mktemp("browser") / "home")
    with running_ui(home, tmp_path_factory.mktemp("log")) as url:
        if not given:
            done = command(home, url, "audit", str(template.root), *FAST)
            assert done.returncode == 0, done.stderr
        yield url, "openmoji-planted" if given else "shapes"


def test_the_ui_shows_graph_metadata_and_checks(shown: tuple[str, str], tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    url, name = shown
    out = Path(os.environ.get("DQ_SCREENSHOTS") or tmp_path)
    pages = {
        "asset-graph": (f"/locations/__repository__@dq_assets/asset-groups/{name.replace('-', '_')}/lineage", "curated_dataset"),
        "asset-metadata": (f"/assets/{name}/ontology_report", "most common corrections"),
        "asset-checks": (f"/assets/{name}/curated_dataset?view=checks", "unreadable_share"),
    }
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        for picture, (path, text) in pages.items():
            page.goto(url + path)
            page.get_by_text(text).first.wait_for(timeout=60_000)
            page.get_by_text(text).first.scroll_into_view_if_needed()
            page.wait_for_timeout(2_500)  # the graph's layout is animated
            if picture == "asset-graph":
                page.mouse.click(1473, 801)  # the zoom-out button, to have all of it in view
            if picture == "asset-metadata":
                page.get_by_text("[Show Markdown]").first.click()
                chart = page.locator("img[src^='data:image/png']").first
                chart.wait_for()
                assert chart.evaluate("image => image.naturalWidth") > 300
            page.wait_for_timeout(1_000)
            page.screenshot(path=out / f"{picture}.png")
            assert (out / f"{picture}.png").stat().st_size > 20_000
        browser.close()
    assert errors == []
