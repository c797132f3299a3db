from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the live page needs the serve extra: pip install 'normlab[serve]'")
pytest.importorskip("starlette", reason="the live page needs the serve extra: pip install 'normlab[serve]'")

from tests.report import browser
from tests.report.running import Running, server

lacking = browser.missing()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(lacking is not None, reason=str(lacking))]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as chromium:
        yield chromium


@pytest.fixture(autouse=True)
def quiet(driver: Any) -> None:
    """Every test begins without a page, so that no server's end is on the next one's console."""
    driver.get("about:blank")
    browser.complaints(driver)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    study = Running(tmp_path)
    study.start(study.ids[0])
    study.epoch(study.ids[0], 1)
    study.epoch(study.ids[0], 2)
    yield study
    study.close()


def shown_epochs(driver: Any) -> str:
    return str(driver.execute_script("return document.querySelector('#rows td:nth-child(4)')?.textContent"))


def wait_for(driver: Any, script: str) -> None:
    """Wait until `script` is true; fails after what no machine needs."""
    started = time.monotonic()
    while not driver.execute_script(f"return {script}"):
        assert time.monotonic() - started < 300, f"never: {script}"
        time.sleep(0.05)


def test_a_new_epoch_shows_by_itself(driver: Any, running: Running) -> None:
    with server(running.directory) as port:
        browser.emulate(driver, width=1280)
        driver.get(f"http://127.0.0.1:{port}/")
        browser.ready(driver)
        assert driver.execute_script("return document.querySelectorAll('#figures svg').length") == 4
        assert shown_epochs(driver) == "2/5"
        running.epoch(running.ids[0], 3)
        wait_for(driver, "document.querySelector('#rows td:nth-child(4)').textContent === '3/5'")
        assert "1 running, 3 queued" in driver.find_element("id", "summary").text
        running.start(running.ids[1])
        running.end(running.ids[1], "failed", "</td><script>alert(1)</script>")
        wait_for(driver, "document.body.innerText.includes('<script>alert(1)</script>')")
        assert browser.complaints(driver) == []


def test_the_page_survives_a_restart_of_the_server(driver: Any, running: Running) -> None:
    with server(running.directory) as port:
        driver.get(f"http://127.0.0.1:{port}/")
        browser.ready(driver)
    wait_for(driver, "document.getElementById('banner').innerText.includes('does not answer')")
    running.epoch(running.ids[0], 3)
    with server(running.directory, port):
        wait_for(driver, "document.querySelector('#rows td:nth-child(4)').textContent === '3/5'")
        wait_for(driver, "document.getElementById('banner').hidden")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(driver: Any, tmp_path: Path, width: int) -> None:
    study = Running(tmp_path, batch_sizes="8,128", lrs="0.1,0.01")
    study.start(study.ids[0])
    study.epoch(study.ids[0], 1)
    study.end(study.ids[0], "failed", "something long went wrong, and the reason is told in full " * 3)
    with server(tmp_path) as port:
        browser.emulate(driver, width=width, dark=True)
        driver.get(f"http://127.0.0.1:{port}/")
        browser.ready(driver)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.complaints(driver) == []
    study.close()
