"""With a real browser: the Dagster UI shows the graph, the checks and the pictures of findings. Run by `make test-system`.

The pictures of docs/images are made here: DQ_BROWSER_HOME names a $DQ_HOME with the openmoji demo, DQ_SCREENSHOTS a folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from dq_assets.definitions import instance_of
from dq_assets.report import galleries
from dq_assets.report.markdown import escaped, picture, table
from dq_assets.settings import Home
from dq_assets_tests.conftest import Planted
from dq_assets_tests.test_live import FAST, command, running_ui
from dq_assets_tests.test_markdown import HOSTILE

pytestmark = pytest.mark.system

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

ENTRIES = {
    "raw_manifest": ("class distribution", 1),
    "image_properties": ("quality examples", 1),
    "oof_probs": ("reliability", 1),
    "label_issues": ("worst label issues", 4),
    "outliers": ("top outliers", 1),
    "near_dups": ("duplicate groups", 6),
    "ontology_report": ("most common corrections", 1),
    "curated_dataset": ("what curation changed", 1),
}
"""By asset, an entry of its metadata and the least number of pictures in it: the planted copies are three pairs."""


@dataclass(frozen=True)
class Shown:
    """A running UI and the dataset in it. given: the home is the user's, for screenshots."""

    url: str
    name: str
    home: Home
    given: bool


@pytest.fixture(scope="module")
def shown(template: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The UI of $DQ_BROWSER_HOME's openmoji-planted, else of a small dataset made here, with a stranger and three strips."""
    given = os.environ.get("DQ_BROWSER_HOME")
    home = Home(Path(given) if given else tmp_path_factory.mktemp("browser") / "home")
    with running_ui(home, tmp_path_factory.mktemp("log")) as url:
        if not given:
            root = tmp_path_factory.mktemp("pictures") / "shapes"
            shutil.copytree(template.root, root)
            noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "grid/noise.png")
            for number in range(3):  # three, since the UI opens no dialog for Markdown of less than 1,000 characters
                with Image.open(root / f"grid/{number:03d}.png") as image:
                    image.crop((0, 50, 160, 100)).save(root / f"grid/strip{number}.png")
            done = command(home, url, "audit", str(root), *FAST)
            assert done.returncode == 0, done.stderr
        yield Shown(url, "openmoji-planted" if given else "shapes", home, bool(given))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where screenshots go."""
    return Path(os.environ.get("DQ_SCREENSHOTS") or tmp_path)


def open_page(browser: Any, theme: str = "light", height: int = 950) -> tuple[Any, list[str]]:
    """A page in a theme of the UI, and the errors that scripts raise on it."""
    context = browser.new_context(viewport={"width": 1500, "height": height}, color_scheme=theme)
    context.add_init_script(f"localStorage.setItem('theme', JSON.stringify('{theme}'))")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    return page, errors


def open_entry(page: Any, url: str, entry: str) -> Any:
    """The dialog with a Markdown entry of an asset's metadata."""
    page.goto(url)
    row = page.locator("tr", has_text=entry)
    row.first.wait_for(timeout=60_000)
    row.first.get_by_text("[Show Markdown]").click()
    dialog = page.locator("[role=dialog], .bp5-dialog, [class*=Dialog]").filter(has=page.get_by_role("button", name="Close")).last
    dialog.wait_for()
    page.wait_for_timeout(700)  # it is faded in
    return dialog


def test_the_ui_shows_graph_and_checks(shown: Shown, browser: Any, out: Path) -> None:
    pages = {
        "asset-graph": (f"/locations/__repository__@dq_assets/asset-groups/{shown.name.replace('-', '_')}/lineage", "curated_dataset"),
        "asset-checks": (f"/assets/{shown.name}/curated_dataset?view=checks", "unreadable_share"),
    }
    page, errors = open_page(browser)
    for name, (path, text) in pages.items():
        page.goto(shown.url + path)
        page.get_by_text(text).first.wait_for(timeout=60_000)
        page.get_by_text(text).first.scroll_into_view_if_needed()
        page.wait_for_timeout(2_500)  # the graph's layout is animated
        if name == "asset-graph":
            page.mouse.click(1473, 801)  # the zoom-out button, to have all of it in view
        page.wait_for_timeout(1_000)
        page.screenshot(path=out / f"{name}.png")
        assert (out / f"{name}.png").stat().st_size > 20_000
    assert errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pictures_of_each_asset_are_shown(shown: Shown, browser: Any, out: Path, theme: str) -> None:
    page, errors = open_page(browser, theme, height=1150)
    for asset, (entry, least) in ENTRIES.items():
        dialog = open_entry(page, f"{shown.url}/assets/{shown.name}/{asset}", entry)
        images = dialog.locator("img[src^='data:image/']")
        widths = images.evaluate_all("all => all.map(image => image.complete ? image.naturalWidth : 0)")
        assert len(widths) >= least, asset
        assert min(widths) >= galleries.TINY, asset
        box = dialog.bounding_box()
        assert box["x"] >= 0, asset  # a table that is too wide for the window would reach beyond it
        assert box["x"] + box["width"] <= 1500, asset
        dialog.get_by_text(entry).first.scroll_into_view_if_needed()  # the focus is on the button at its end
        page.wait_for_timeout(300)
        page.screenshot(path=out / f"pictures-{asset}{'-dark' * (theme == 'dark')}.png")
    assert errors == []


def test_a_hostile_text_is_shown_and_does_nothing(shown: Shown, browser: Any) -> None:
    if shown.given:
        pytest.skip("writes into the instance, which is the user's here")
    image = np.zeros((1, 1, 3), np.uint8)
    dot = shown.home.root / "dot.png"
    Image.fromarray(image).save(dot)
    rows = [["label", "picture"], *[[escaped(text), picture(dot.read_bytes(), "png", text)] for text in HOSTILE]]
    with instance_of(shown.home) as instance:
        metadata = {"hostile": dg.MetadataValue.md(table(rows))}
        instance.report_runless_asset_event(dg.AssetMaterialization([shown.name, "class_report"], metadata=metadata))
    page, errors = open_page(browser)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    dialog = open_entry(page, f"{shown.url}/assets/{shown.name}/class_report", "hostile")
    cells = dialog.locator("td:first-child").evaluate_all("all => all.map(cell => cell.textContent)")
    assert [" ".join(cell.split()) for cell in cells] == [" ".join(text.split()) for text in HOSTILE]
    assert dialog.locator("td img").evaluate_all("all => all.map(image => image.alt)") == HOSTILE
    assert dialog.locator("a, script, input, td:first-child *").count() == 0
    assert [url for url in asked if not url.startswith((shown.url, shown.url.replace("http", "ws"), "data:", "blob:"))] == []
    assert errors == []
