"""A browser, pages that hold themselves to the console's promises, and a server to show them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.browser import EXECUTABLE, MISSING, chromium
from tests.integration.conftest import eventually as eventually
from tests.integration.live import Live, Tiny, running
from tests.integration.sabotage import ranked_math_mini

# What a loaded machine may need; nothing is asserted about time.
PATIENCE_MS = 60_000
TEST_SECONDS = 600
OpenPage = Callable[..., AbstractContextManager[Page]]

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time than other tests have for those of this directory: a server and a browser for each."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: while Playwright runs, no other test could start an event loop."""
    if EXECUTABLE is None:
        pytest.skip(MISSING)
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> OpenPage:
    """A new page on a server, in a session of its own: `open_page(live, "#live", color_scheme="dark")`.

    When the block ends, no script has failed, nothing was against the page's policy, and nobody but the
    server was asked for anything.
    """

    @contextmanager
    def open_page(live: Live, fragment: str = "", **options: Any) -> Iterator[Page]:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None)
        page.on("request", lambda r: None if r.url.startswith(live.url) else faults.append(r.url))
        page.goto(f"{live.url}/{fragment}")
        try:
            yield page
        finally:
            context.close()
        assert faults == []

    return open_page


@pytest.fixture(scope="module")
def math_mini(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return ranked_math_mini(tmp_path_factory.mktemp("console"))


@contextmanager
def serving(math_mini: Tiny, **changes: Any) -> Iterator[Live]:
    """math-mini at 0, 20 and 60 percent; the last is beyond what is safe, and answers otherwise."""
    limits = {"max_model_len": 512, "max_num_batched_tokens": 512, "kernels": "torch"}
    with running(math_mini, **{**limits, "sparsities": (0.0, 0.2, 0.6), **changes}) as live:
        yield live


@pytest.fixture(scope="module")
def live(math_mini: Tiny) -> Iterator[Live]:
    """For tests that leave it as they found it."""
    with serving(math_mini) as live:
        yield live
