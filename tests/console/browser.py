"""Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

EXECUTABLE = shutil.which("chromium")
MISSING = "there is no chromium: apt-get install -y --no-install-recommends chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser, until the block ends."""
    assert EXECUTABLE is not None, MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=EXECUTABLE,
            args=["--no-sandbox", "--disable-dev-shm-usage"],  # root in a container has neither
        )
        try:
            yield browser
        finally:
            browser.close()
