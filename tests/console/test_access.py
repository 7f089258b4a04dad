"""Everybody can use the console: axe finds nothing serious, keys do all, 360 pixels are enough."""

from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.console.conftest import OpenPage, serving
from tests.integration.live import Live

VIEWS = {
    "playground": "#lanes .answer",
    "live": "#live-variants tbody tr",
    "variants": "#variant-table tbody tr",
}
MARKED = urlencode(
    [
        ("prompt", "Jack has 2 boxes with 7 toys in each. Jack sells 3 of the toys. How many has he now?"),
        *(("size", f"math-mini:s{size}") for size in (0, 20, 60)),
        ("allow_unsafe", "1"),
        ("max_tokens", "64"),
    ]
)


def show(page: Page, view: str) -> None:
    """A view with all that it may have: answers, one of them marked, charts, numbers, forms."""
    page.get_by_role("link", name=view).click()
    expect(page.locator(VIEWS[view]).first).to_be_visible()
    if view == "playground":
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#ask-status")).to_have_text("All have answered.")
        expect(page.locator("mark")).not_to_have_count(0)
    page.locator(f"#{view} details").evaluate_all("all => all.forEach(details => (details.open = true))")


def serious(page: Page) -> list[Any]:
    found = Axe().run(page).response["violations"]
    return [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(live: Live, open_page: OpenPage, scheme: str) -> None:
    with open_page(live, f"#playground?{MARKED}", color_scheme=scheme) as page:
        for view in VIEWS:
            show(page, view)
            assert serious(page) == [], view


def test_axe_is_content_with_the_question_for_a_key(math_mini: Any, open_page: OpenPage) -> None:
    with serving(math_mini, api_keys=("sesame",)) as live, open_page(live) as page:
        expect(page.get_by_role("dialog")).to_be_visible()
        assert serious(page) == []
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("button", name="Give a key")).to_be_visible()
        assert serious(page) == []


def test_a_phone_scrolls_down_only(live: Live, open_page: OpenPage) -> None:
    small = {"width": 360, "height": 640}
    with open_page(live, f"#playground?{MARKED}", viewport=small) as page:
        for view in VIEWS:
            show(page, view)
            assert page.evaluate("document.scrollingElement.scrollWidth") == 360, view


def test_keys_reach_what_a_mouse_does(live: Live, open_page: OpenPage) -> None:
    with open_page(live, f"#playground?{MARKED}") as page:
        expect(page.locator(".lane")).to_have_count(3)
        page.keyboard.press("Tab")
        reached = []
        for _ in range(14):
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
            page.keyboard.press("Tab")
    assert reached[0] == "skip"
    wanted = ["prompt", "run", "add-lane", "copy-link", "variant", "plain remove", "slider", "answer"]
    order = [name for name in reached if name in wanted]
    assert order[: len(wanted)] == wanted


@pytest.mark.parametrize("view", VIEWS)
def test_the_skip_link_leads_into_the_view_that_is_shown(live: Live, open_page: OpenPage, view: str) -> None:
    with open_page(live, f"#{view}") as page:
        expect(page.locator(f"#{view}")).to_be_visible()
        page.locator(".skip").press("Enter")
        expect(page.locator("#main")).to_be_focused()
        expect(page.locator(f"#{view}")).to_be_visible()


def test_escape_closes_the_options(live: Live, open_page: OpenPage) -> None:
    with open_page(live) as page:
        page.get_by_text("Options").press("Enter")
        limit = page.get_by_label("Most tokens of an answer")
        expect(limit).to_be_visible()
        limit.press("Escape")
        expect(limit).to_be_hidden()
        expect(page.get_by_text("Options")).to_be_focused()


def test_nothing_moves_for_those_who_want_it_so(live: Live, open_page: OpenPage) -> None:
    for motion, moving in (("no-preference", "blink"), ("reduce", "none")):
        with open_page(live, reduced_motion=motion) as page:
            expect(page.locator(".answer").first).to_be_attached()
            animation = page.locator(".answer").first.evaluate(
                "answer => (answer.ariaBusy = 'true', getComputedStyle(answer, '::after').animationName)"
            )
            assert animation == moving
