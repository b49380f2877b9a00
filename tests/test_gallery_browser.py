"""The gallery in a real headless browser: search, keyboard, phone, dark mode, untrusted text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.generation.gallery import write_gallery
from tests.gallery_demo import make_run, thumbnails

pytestmark = pytest.mark.process

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
         "--disable-background-networking", "--disable-sync", "--force-color-profile=srgb")  # fmt: skip
PROMPTS = ["a harbour at dawn", "a castle by the sea", "two dancers", "still life with lemons"]
DATABASES = ["artbench-baroque", "artbench-ukiyo_e", "wikiart"]
HOSTILE = '</script><script>window.broken = 1</script><img src=x onerror="window.broken = 2"> \'quoted\' & "so"'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        reason = "needs Chromium and its driver (Debian: chromium, chromium-driver)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    storage, table = make_run(
        folder, shared, [*PROMPTS, HOSTILE], DATABASES, unfinished=1, neighbour={"title": HOSTILE}
    )
    write_gallery(storage, table, thumbnails(shared), "Evening <b>run</b>")
    return folder / "index.html"


@pytest.fixture
def page(browser: Any, gallery: Path) -> Any:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)
    browser.get("about:blank")
    browser.get(gallery.as_uri())
    return browser


def shown(page: Any) -> list[str]:
    """The names of the visible cards."""
    from selenium.webdriver.common.by import By

    return [
        card.get_attribute("aria-label")
        for card in page.find_elements(By.CSS_SELECTOR, ".picture")
        if card.is_displayed()
    ]


def wait_until(page: Any, condition: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10, poll_frequency=0.05).until(lambda _: condition())


def press(page: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(page).send_keys(key).perform()


def opened(page: Any) -> bool:
    return bool(page.execute_script("return document.getElementById('detail').open"))


def text(page: Any, name: str) -> str:
    return str(page.execute_script("return document.getElementById(arguments[0]).textContent", name))


def test_pictures_of_a_prompt_are_side_by_side_for_every_database(page: Any) -> None:
    sections = page.execute_script(
        "return [...document.querySelectorAll('.prompt')].map(s => s.querySelectorAll('.picture').length)"
    )
    assert sections == [3] * 5 and text(page, "count") == "15 pictures"
    heads = page.execute_script("return [...document.querySelectorAll('.columns span')].map(s => s.textContent)")
    assert heads[1:] == DATABASES
    wait_until(page, lambda: page.execute_script("return document.querySelector('.frame img').naturalWidth") > 0)
    assert page.execute_script("return document.querySelectorAll('.picture .failed').length") == 1


def test_the_search_box_and_the_databases_filter(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    press(page, "/")
    press(page, *"castle")
    wait_until(page, lambda: text(page, "count") == "3 of 15 pictures")
    page.find_elements(By.CSS_SELECTOR, "#chips button")[1].click()
    wait_until(page, lambda: text(page, "count") == "1 of 15 pictures")
    assert len(shown(page)) == 1 and "castle" in shown(page)[0]
    press(page, "/", *"zzz")
    wait_until(page, lambda: not shown(page))
    page.find_element(By.ID, "clear").click()
    assert len(shown(page)) == 15
    assert page.switch_to.active_element.get_attribute("id") == "search"
    press(page, Keys.ARROW_DOWN)
    assert page.switch_to.active_element.get_attribute("data-index") == "0"


def test_the_keyboard_alone_opens_turns_and_closes(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, "/", Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("data-index") == "1"
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus can be seen"
    press(page, Keys.ENTER)
    assert opened(page) and (text(page, "detail-title"), text(page, "detail-place")) == (PROMPTS[0], DATABASES[1])
    press(page, Keys.ARROW_RIGHT)
    assert text(page, "detail-place") == DATABASES[2]
    press(page, Keys.ARROW_RIGHT)
    assert (text(page, "detail-title"), text(page, "detail-place")) == (PROMPTS[1], DATABASES[0])
    press(page, Keys.ESCAPE)
    wait_until(page, lambda: not opened(page))
    # The browser first puts the focus where it was before the dialog, and tells of the closing afterwards.
    wait_until(page, lambda: page.switch_to.active_element.get_attribute("data-index") == "3")


def test_an_opened_picture_says_what_it_was_drawn_from(page: Any) -> None:
    page.execute_script("document.querySelector('.picture').click()")
    rows = page.execute_script("return [...document.querySelectorAll('#neighbours li')].map(li => li.innerText)")
    assert len(rows) == 6
    assert all("Public domain" in row and "paintings" in row and "similarity 0." in row for row in rows)
    link = page.execute_script("const a = document.querySelector('#neighbours a'); return [a.href, a.rel]")
    assert link == ["https://example.org/work", "noopener noreferrer"]
    assert "seed 7" in text(page, "detail-facts") and "ddim" in text(page, "settings")


def test_the_focus_is_not_cut_off_at_the_edges(page: Any) -> None:
    for outermost in (0, 2):
        room = page.execute_script(
            "const card = document.querySelectorAll('.picture')[arguments[0]]; card.focus();"
            "const [a, b] = [card.getBoundingClientRect(), card.closest('.prompt').getBoundingClientRect()];"
            "return Math.min(a.left - b.left, b.right - a.right)",
            outermost,
        )
        assert room >= 5, "three pixels of outline, two beside the picture"


def test_the_panel_scrolls_beside_no_other_scroll_bar(page: Any) -> None:
    page.execute_script("window.scrollTo(0, 700); document.querySelectorAll('.picture')[6].click()")
    covered = (
        "return [document.getElementById('panel').getBoundingClientRect().right, document.documentElement.clientWidth]"
    )
    right, width = page.execute_script(covered)
    assert right <= width
    page.execute_script("document.getElementById('close').click()")
    assert page.execute_script("return window.scrollY") > 0, "the page is where it was left"


def test_a_small_picture_opens_larger_than_its_card(browser: Any, tmp_path: Path, shared: Path) -> None:
    storage, table = make_run(tmp_path, shared, ["a harbour"], DATABASES, side=64)
    write_gallery(storage, table, thumbnails(shared), "Small")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)
    browser.get((tmp_path / "index.html").as_uri())
    widths = (
        "return ['.frame', '#detail-image'].map(name => document.querySelector(name).getBoundingClientRect().width)"
    )
    browser.execute_script("document.querySelector('.picture').click()")
    wait_until(
        browser, lambda: browser.execute_script("return document.getElementById('detail-image').naturalWidth") == 64
    )
    card, large = browser.execute_script(widths)
    assert 0 < card < large


def test_untrusted_words_are_shown_and_run_nothing(page: Any) -> None:
    titles = page.execute_script("return [...document.querySelectorAll('.prompt h2')].map(h => h.textContent)")
    assert titles == [*PROMPTS, HOSTILE]
    page.execute_script("document.querySelectorAll('.picture')[12].click()")
    assert text(page, "detail-title") == HOSTILE
    assert HOSTILE in text(page, "neighbours")
    assert page.execute_script("return window.broken ?? null") is None
    assert page.title.startswith("Evening <b>run</b>")


def test_the_page_makes_no_foreign_requests_and_logs_no_error(page: Any) -> None:
    page.execute_script("document.querySelector('.picture').click()")
    asked = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(("data:", "file:", "blob:")) for name in asked)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [360, 390, 820])
def test_a_phone_scrolls_only_vertically(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    page.refresh()
    for _ in range(2):  # the page, then a picture open
        wide = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1] == width
        page.execute_script("document.querySelectorAll('.picture')[12].click()")
    assert opened(page)
    panel = page.execute_script("const p = document.getElementById('panel'); return [p.scrollWidth, p.clientWidth]")
    assert panel[0] <= panel[1]


def test_the_page_follows_the_dark_mode_of_the_system(page: Any) -> None:
    def ground() -> int:
        colour = page.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    for scheme, dark in (("light", False), ("dark", True)):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        assert (ground() < 120) == dark
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_of_many_pictures_only_those_in_sight_are_decoded(browser: Any, tmp_path: Path, shared: Path) -> None:
    storage, table = make_run(tmp_path, shared, [f"prompt number {i}" for i in range(30)], DATABASES, k=2)
    write_gallery(storage, table, thumbnails(shared), "Many", embedded_bytes=0)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get((tmp_path / "index.html").as_uri())
    wait_until(
        browser, lambda: browser.execute_script("return document.querySelector('.frame img')?.naturalWidth ?? 0") > 0
    )
    loaded = "return [...document.querySelectorAll('.frame img')].filter(i => i.src && i.naturalWidth > 0).length"
    assert 0 < browser.execute_script(loaded) < 60
    browser.execute_script("document.querySelectorAll('.picture')[89].scrollIntoView()")
    last = "return document.querySelectorAll('.picture')[89].querySelector('img').naturalWidth"
    wait_until(browser, lambda: browser.execute_script(last) > 0)
