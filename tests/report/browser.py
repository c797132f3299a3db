"""A headless Chromium for tests: no network, a fresh profile, and the console read afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def missing() -> str | None:
    """What these tests lack on this machine, as a reason to skip; None where all is there."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "Chromium is missing: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is missing: pip install selenium"
    return None


@contextmanager
def chromium(*, width: int = 1280, height: int = 900, offline: bool = True) -> Iterator[Any]:
    """A WebDriver for Chromium; with `offline`, every host name and address but the local one is unreachable."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        if offline:
            options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.set_page_load_timeout(300)
            yield driver
        finally:
            driver.quit()


def emulate(driver: Any, *, width: int, height: int = 900, dark: bool = False, media: str = "screen") -> None:
    """Set the size of the page, the colour scheme and screen or print."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": scheme})


def ready(driver: Any, seconds: float = 20) -> None:
    """Wait until the page says that all its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, seconds, poll_frequency=0.1).until(
        lambda d: d.execute_script("return document.documentElement.dataset.ready") == "yes"
    )


def picture(driver: Any, path: Path) -> None:
    """A screenshot of the whole page, not only of what fits the window."""
    import base64

    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    answer = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(answer["data"]))


def complaints(driver: Any) -> list[str]:
    """The errors and warnings that the page has written to the console."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
