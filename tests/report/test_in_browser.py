from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normlab.report import write
from normlab.report.records import EXPLAINED
from tests.report import browser
from tests.report.studies import HOSTILE, explained, results

lacking = browser.missing()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(lacking is not None, reason=str(lacking))]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study")
    made = results(norms=["bn", "gn", HOSTILE], batch_sizes=[8, 128], class_names=["cat", HOSTILE])
    (directory / "results.json").write_text(json.dumps(made))
    found = explained(norms=["bn", "gn", HOSTILE], class_names=["cat", HOSTILE], images=2)
    (directory / EXPLAINED).write_text(json.dumps(found))
    return write(directory)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_opens_from_disk_with_all_charts(driver: Any, page: Path, width: int, dark: bool) -> None:
    browser.emulate(driver, width=width, dark=dark)
    driver.get(page.as_uri())
    browser.ready(driver)
    assert browser.complaints(driver) == []
    drawn, places, page_width = driver.execute_script(
        "const seen = [...document.querySelectorAll('.chart')].filter((place) => !place.closest('[hidden]'));"
        "return [seen.filter((p) => p.querySelector('svg path, svg line')).length, seen.length,"
        " document.documentElement.scrollWidth]"
    )
    assert drawn == places >= 12
    assert page_width <= width
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{background[4:-1]}]")) < 150) == dark


def test_hostile_name_is_text(driver: Any, page: Path) -> None:
    browser.emulate(driver, width=1280)
    driver.get(page.as_uri())
    browser.ready(driver)
    text = driver.execute_script("return document.body.innerText")
    assert HOSTILE in text
    labels = driver.execute_script("return [...document.querySelectorAll('svg text')].map((t) => t.textContent)")
    assert any(label.startswith("</script>") for label in labels)
    assert browser.complaints(driver) == []


def test_charts_and_pictures_have_words_and_pictures_show(driver: Any, page: Path) -> None:
    driver.get(page.as_uri())
    browser.ready(driver)
    unnamed, broken = driver.execute_script(
        "const charts = [...document.querySelectorAll('.chart svg[role]')], images = [...document.images];"
        "return [charts.filter((c) => (c.getAttribute('aria-label') ?? '').length < 20).length,"
        " images.filter((i) => !i.complete || i.naturalWidth === 0 || !i.alt).length]"
    )
    assert (unnamed, broken) == (0, 0)
    assert driver.execute_script("return document.images.length") > 20


def test_the_download_is_the_records(driver: Any, page: Path) -> None:
    driver.get(page.as_uri())
    browser.ready(driver)
    cells = driver.execute_async_script(
        "const done = arguments[0]; unpacked('raw').then((text) => done(JSON.parse(text).cells.length))"
    )
    assert cells == 18
    button = driver.find_element("css selector", "button[data-name]")
    assert button.get_attribute("data-name").endswith(".json")


def test_hover_shows_every_norm_at_that_epoch(driver: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.emulate(driver, width=1280)
    driver.get(page.as_uri())
    browser.ready(driver)
    chart = driver.find_element("css selector", '[data-chart^="curve-val_accuracy"] svg')
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    ActionChains(driver).move_to_element(chart).move_by_offset(15, 10).perform()
    tip = driver.find_element("id", "tip")
    assert tip.is_displayed()
    assert "epoch" in tip.text
    assert "bn" in tip.text
    assert HOSTILE in tip.text


def test_picking_a_norm_fades_the_others_everywhere(driver: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(page.as_uri())
    browser.ready(driver)
    faint = (
        'return [...document.querySelectorAll(\'[data-chart^="curve"], [data-chart^="ranking"]\')]'
        ".filter((c) => !c.closest('[hidden]')).map((c) =>"
        " [...c.querySelectorAll('svg [opacity]')].some((m) => +m.getAttribute('opacity') === 0.12))"
    )
    assert not any(driver.execute_script(faint))
    driver.find_element("css selector", '.chip[data-norm="gn"]').click()
    WebDriverWait(driver, 5).until(lambda d: all(d.execute_script(faint)))
    assert driver.find_element("css selector", '.chip[data-norm="gn"]').get_attribute("aria-pressed") == "true"


def test_other_setting_is_drawn_when_picked(driver: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    driver.get(page.as_uri())
    browser.ready(driver)
    Select(driver.find_element("id", "pick-curves")).select_by_visible_text("batch 128")
    place = driver.find_element("css selector", '[data-group="pick-curves"]:not([hidden]) [data-chart]')
    WebDriverWait(driver, 5).until(lambda _: place.find_elements("css selector", "svg path"))
    assert place.is_displayed()


@pytest.mark.parametrize(("width", "slanted"), [(390, True), (1280, False)])
def test_names_above_a_matrix_are_slanted_where_they_have_no_room(
    driver: Any, page: Path, width: int, slanted: bool
) -> None:
    browser.emulate(driver, width=width)
    driver.get(page.as_uri())
    browser.ready(driver)
    turned, widest, cell = driver.execute_script(
        "const chart = document.querySelector('[data-chart=\"heatmap\"]');"
        "const widths = (marks) => [...chart.querySelectorAll(marks)].map((m) => m.getBoundingClientRect().width);"
        "return [[...chart.querySelectorAll('.role-axis-label text')].some((t) =>"
        " t.getAttribute('transform').includes('rotate(-45')),"
        " Math.max(...widths('.mark-text.role-mark text')), Math.max(...widths('.mark-rect.role-mark path'))]"
    )
    assert turned == slanted
    assert 0 < widest < cell


def test_a_printed_table_is_not_cut_off(driver: Any, page: Path) -> None:
    browser.emulate(driver, width=680, media="print")  # A4 without its margins
    driver.get(page.as_uri())
    browser.ready(driver)
    assert driver.execute_script("return document.querySelector('#result table').getBoundingClientRect().right") <= 680


def test_prints_in_light_without_controls(driver: Any, page: Path) -> None:
    browser.emulate(driver, width=1000, dark=True, media="print")
    driver.get(page.as_uri())
    browser.ready(driver)
    light, controls = driver.execute_script(
        "return [getComputedStyle(document.documentElement).getPropertyValue('--paper').trim(),"
        " getComputedStyle(document.querySelector('.pick')).display]"
    )
    assert (light, controls) == ("#ffffff", "none")
