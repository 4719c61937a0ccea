"""The HTML report works in headless Chromium: it draws, reacts to mouse and keyboard, sorts and filters.

Screenshots go to the folder named by ABCFX_SCREENSHOTS; with ABCFX_AXE, a path to axe.min.js, axe runs as well.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from models import seeded, sequential, small_gpt

import abcfx

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver on this machine"),
]
IDS = torch.zeros(2, 16, dtype=torch.long)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    result = abcfx.transform(small_gpt(64, 12), IDS, base=small_gpt(16, 12), optimizer="adamw", lr=0.01)
    result.to_html(folder / "gpt.html")
    large = abcfx.transform(
        seeded(sequential, 8, 10, 4, 998),
        torch.zeros(2, 10),
        base=seeded(sequential, 4, 10, 4, 998),
        capture=abcfx.Capture(verify=False),
    )
    large.to_html(folder / "deep.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Chrome, path: Path, width: int = 1280) -> Chrome:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get_log("performance")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    return browser


def all_of(browser: Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements("css selector", selector)


def text_of(browser: Chrome, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def click(browser: Chrome, element: WebElement) -> None:
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", element)


def box(browser: Chrome, name: str) -> WebElement:
    (found,) = [b for b in all_of(browser, "g.box") if str(b.get_attribute("aria-label")).startswith(name)]
    return found


def first_column(browser: Chrome) -> list[str]:
    return [row.text for row in all_of(browser, "#table tbody td:first-child")]


def screenshot(browser: Chrome, name: str) -> None:
    folder = os.environ.get("ABCFX_SCREENSHOTS")
    if folder:
        clip = {"x": 0, "y": 0, "width": browser.execute_script("return innerWidth"), "height": 1250, "scale": 0.8}
        image = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (Path(folder) / name).write_bytes(base64.b64decode(image["data"]))


def test_nothing_is_asked_of_the_network(browser: Chrome, files: Path) -> None:
    opened(browser, files / "gpt.html")
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("width", [1280, 600])
def test_the_page_is_no_wider_than_the_window(browser: Chrome, files: Path, width: int) -> None:
    opened(browser, files / "gpt.html", width)
    click(browser, box(browser, "attn.qkv"))
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    graph = all_of(browser, "#graph")[0].rect
    detail = all_of(browser, "#detail")[0].rect
    side_by_side = detail["x"] >= graph["x"] + graph["width"]
    assert side_by_side == (width == 1280)
    screenshot(browser, f"report_{width}.png")


def test_a_click_explains(browser: Chrome, files: Path) -> None:
    opened(browser, files / "gpt.html")
    assert len(all_of(browser, "g.box")) == 14
    click(browser, box(browser, "attn.qkv"))
    told = text_of(browser, "#detail")
    assert "What keeps c = 1 from" in told
    assert "r(blocks.0.attn.qkv) = 0 <= c - alpha = 1 - 1 = 0" in told
    assert "12 parameters are alike: blocks.{0..11}.attn.qkv.weight" in told
    (select,) = all_of(browser, "#detail select")
    browser.execute_script("arguments[0].selectedIndex = 7; arguments[0].dispatchEvent(new Event('change'))", select)
    assert "blocks.7.attn.qkv" in text_of(browser, "#detail h3")
    assert box(browser, "attn.qkv").get_attribute("aria-pressed") == "true"


def test_the_keyboard_reaches_every_box(browser: Chrome, files: Path) -> None:
    opened(browser, files / "gpt.html")
    assert len(all_of(browser, 'g.box[tabindex="0"]')) == 1
    browser.execute_script("document.querySelector('g.box[tabindex=\"0\"]').focus()")
    keys = webdriver.Keys
    for _ in range(13):
        webdriver.ActionChains(browser).send_keys(keys.ARROW_DOWN).perform()
    webdriver.ActionChains(browser).send_keys(keys.ENTER).perform()
    assert text_of(browser, "#detail h3") == "head"


def test_repeated_blocks_are_opened(browser: Chrome, files: Path) -> None:
    opened(browser, files / "gpt.html")
    once, full = all_of(browser, "#view-buttons button")
    full.click()
    assert len(all_of(browser, "g.box")) == 14 + 11 * 9
    screenshot(browser, "report_full.png")
    click(browser, all_of(browser, ".frame .open")[0])
    assert len(all_of(browser, "g.box")) == 14
    assert once.get_attribute("aria-pressed") == "true"


def test_the_table_sorts_and_filters(browser: Chrome, files: Path) -> None:
    opened(browser, files / "gpt.html")
    assert "blocks.{0..11}.attn.qkv.weight" in first_column(browser)
    folded = len(first_column(browser))
    all_of(browser, "#folded")[0].click()
    assert len(first_column(browser)) == 149 > folded
    all_of(browser, "#filter-name")[0].send_keys("blocks.3.mlp")
    assert first_column(browser) == [f"blocks.3.mlp.{x}" for x in ("up.weight", "up.bias", "down.weight", "down.bias")]
    assert text_of(browser, "#count") == "4 of 149 parameters"
    (rate,) = [b for b in all_of(browser, "#table th button") if b.text == "lr"]
    rate.click()
    assert first_column(browser)[0].endswith("weight")
    assert len(all_of(browser, '#table th[aria-sort="ascending"]')) == 1
    rate.click()
    assert first_column(browser)[0].endswith("bias")
    all_of(browser, "#table tbody button")[0].click()
    assert "blocks.3.mlp" in text_of(browser, "#detail h3")
    browser.execute_script(
        "const s = document.getElementById('filter-role'); s.value = 'hidden';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert len(first_column(browser)) == 2


def test_a_model_of_a_thousand_layers_does_not_freeze(browser: Chrome, files: Path) -> None:
    start = time.perf_counter()
    opened(browser, files / "deep.html")
    assert len(all_of(browser, "g.box")) == 3
    assert time.perf_counter() - start < 10
    start = time.perf_counter()
    all_of(browser, "#view-buttons button")[1].click()
    assert len(all_of(browser, "g.box")) == 1000
    all_of(browser, "#folded")[0].click()
    assert len(all_of(browser, "#table tbody tr")) == 500
    assert time.perf_counter() - start < 10
    all_of(browser, "#more")[0].click()
    assert len(all_of(browser, "#table tbody tr")) == 1000


def test_the_report_is_copied(browser: Chrome, files: Path) -> None:
    opened(browser, files / "gpt.html")
    browser.execute_script("window.copied = null; navigator.clipboard.writeText = async (t) => { window.copied = t; }")
    all_of(browser, "#copy-all")[0].click()
    found = json.loads(browser.execute_script("return window.copied"))
    assert len(found["parameters"]) == 149
    assert "Copied" in text_of(browser, "#copied")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.skipif("ABCFX_AXE" not in os.environ, reason="ABCFX_AXE does not name an axe.min.js")
def test_axe_finds_nothing(browser: Chrome, files: Path, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    opened(browser, files / "gpt.html")
    click(browser, box(browser, "attn.qkv"))
    browser.execute_script(Path(os.environ["ABCFX_AXE"]).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document).then(arguments[arguments.length - 1])")
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []
    assert len(found["passes"]) > 30
