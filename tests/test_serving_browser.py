"""The page of `rdmpipe browse` in a real browser: search while typing, keyboard, phone, dark mode, untrusted text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builds import folder_of, quiet_build
from tests.generations import add_view
from tests.serving import running
from tests.test_gallery_browser import CHROMIUM, DRIVER, FLAGS, press, text, wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Chromium and its driver"),
]

HOSTILE = "</script><img src=x onerror=window.broken=1>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("browser")
    home = folder / "home"
    pictures = folder_of(folder / "pictures", 90)
    table = (pictures / "metadata.csv").read_text().replace("picture number 7\n", f"{HOSTILE}\n")
    (pictures / "metadata.csv").write_text(table)
    quiet_build(pictures, name="mine", home=str(home), images="thumbnail")
    add_view(home, "mine", "odd", "style = 'odd'")
    with running(home, allow_generate=True) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)
    browser.get("about:blank")
    browser.get(address)
    wait_until(browser, lambda: cards(browser) >= 60)
    return browser


def cards(page: Any) -> int:
    return int(page.execute_script("return document.querySelectorAll('main .picture').length"))


def test_results_follow_the_words_and_the_rest_comes_while_scrolling(page: Any) -> None:
    press(page, "/", *"a cat")
    wait_until(page, lambda: "90 pictures, nearest first" in text(page, "count"))
    wait_until(page, lambda: page.execute_script("return document.querySelector('.frame img').naturalWidth") > 0)
    scores = page.execute_script("return [...document.querySelectorAll('.number')].map(n => Number(n.textContent))")
    assert scores == sorted(scores, reverse=True)
    page.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait_until(page, lambda: cards(page) == 90)
    titles = page.execute_script("return [...document.querySelectorAll('.words')].map(n => n.textContent)")
    assert len(set(titles)) == 90
    assert HOSTILE in titles and page.execute_script("return window.broken ?? null") is None


def test_the_keyboard_alone_searches_opens_and_continues_from_a_picture(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, "/", *"a cat", Keys.ENTER)
    wait_until(page, lambda: text(page, "parts").startswith("+a cat"))
    wait_until(page, lambda: "nearest first" in text(page, "count"))
    press(page, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    wait_until(page, lambda: page.execute_script("return document.getElementById('detail').open"))
    title = text(page, "detail-title")
    wait_until(page, lambda: page.execute_script("return document.querySelectorAll('#near button').length") == 12)
    assert page.execute_script("return document.activeElement.id") == "panel"
    press(page, Keys.ARROW_RIGHT)
    wait_until(page, lambda: text(page, "detail-title") != title)
    press(page, Keys.ESCAPE)
    wait_until(page, lambda: "picture" in page.switch_to.active_element.get_attribute("class"))
    press(page, "s")
    wait_until(page, lambda: page.execute_script("return document.querySelectorAll('.part').length") == 1)
    wait_until(page, lambda: "89 of 90 pictures, nearest first" in text(page, "count"))


def test_the_filter_offers_columns_and_values(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page.find_element(By.ID, "filter-toggle").click()
    box = page.find_element(By.ID, "where")
    box.send_keys("sty")
    wait_until(page, lambda: text(page, "offers").startswith("style"))
    box.send_keys(Keys.ARROW_DOWN, Keys.ENTER, "= ")
    wait_until(page, lambda: "odd" in text(page, "offers"))
    box.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    assert box.get_attribute("value") == "style = 'odd'"
    wait_until(page, lambda: text(page, "count") == "45 of 90 pictures")
    box.send_keys(" AND")
    wait_until(page, lambda: box.get_attribute("aria-invalid") == "true")
    assert cards(page) == 45 and "the pictures are the previous ones" in text(page, "count")
    page.find_element(By.ID, "search").click()
    box.clear()
    box.send_keys(" ")
    wait_until(page, lambda: text(page, "count") == "90 pictures")
    page.execute_script("document.querySelector('.facet li button').click()")
    wait_until(page, lambda: text(page, "count") == "45 of 90 pictures")
    page.refresh()
    wait_until(page, lambda: text(page, "count") == "45 of 90 pictures")


def test_databases_stand_side_by_side_and_other_views_open(page: Any) -> None:
    from selenium.webdriver.common.by import By

    page.find_element(By.CSS_SELECTOR, ".several").click()
    page.execute_script("[...document.querySelectorAll('#databases button')].at(-1).click()")
    wait_until(page, lambda: page.execute_script("return document.querySelectorAll('.column').length") == 2)
    for view, selector in (
        ("Map", ".map canvas"),
        ("Draw", ".drawform"),
        ("Runs", ".runbar"),
        ("Failures", ".reasons"),
    ):
        page.find_element(By.XPATH, f"//div[@id='views']/button[text()='{view}']").click()
        wait_until(page, lambda found=selector: page.find_elements(By.CSS_SELECTOR, found))
    page.back()
    wait_until(page, lambda: page.find_elements(By.CSS_SELECTOR, ".runbar"))


def test_the_page_logs_no_error_and_every_control_has_a_name(page: Any) -> None:
    page.execute_script("document.querySelector('.picture').click()")
    wait_until(page, lambda: page.execute_script("return document.querySelectorAll('#near button').length") == 12)
    nameless = page.execute_script(
        "return [...document.querySelectorAll('button, input:not([type=file]), select, a')].filter(e => e.offsetParent)"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert [
        entry for entry in page.get_log("browser") if entry["level"] == "SEVERE" and "400" not in entry["message"]
    ] == []


@pytest.mark.parametrize("width", [360, 390, 820])
def test_a_phone_scrolls_only_vertically(page: Any, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.refresh()
    wait_until(page, lambda: cards(page) >= 60)
    for view in ("Pictures", "Map", "Draw", "Failures"):
        page.execute_script(
            "[...document.querySelectorAll('#views button')].find(b => b.textContent === arguments[0]).click()", view
        )
        wide = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1] == width, view


def test_the_page_follows_the_dark_mode_of_the_system(page: Any) -> None:
    def ground() -> int:
        colour = page.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    for scheme, dark in (("light", False), ("dark", True)):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        assert (ground() < 120) == dark
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
