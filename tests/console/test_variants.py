"""The list of variants in a real browser: what an administrator does there is done on the server."""

import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import OpenPage, serving
from tests.integration.live import Live, Tiny

DENSE, PRUNED, SPARSEST, ADDED = (f"math-mini:s{size}" for size in ("0", "20", "60", "12.3"))


def listed(live: Live) -> dict[str, dict[str, Any]]:
    with live.client() as client:
        return {variant["id"]: variant for variant in client.get("/v1/variants").json()["data"]}


def rows(page: Page) -> Locator:
    return page.locator("#variant-table tbody tr")


def look(page: Page, times: int) -> None:
    """Waits until the page has asked so often."""
    for _ in range(times):
        with page.expect_response("**/v1/live*"):
            pass


def add(page: Page, percent: str) -> None:
    form = page.locator("#add-variant")
    form.get_by_label("Neurons removed, %").fill(percent)
    form.get_by_role("button", name="Add").click()


def test_variants_come_and_go(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini) as live, open_page(live, "#variants") as page:
        told = page.locator("#variants-status")
        expect(rows(page)).to_have_count(3)
        expect(page.get_by_role("button", name=f"Retire {DENSE}")).to_be_disabled()
        add(page, "12.3")
        expect(told).to_have_text(f"{ADDED} is served now.")
        expect(rows(page).nth(1)).to_contain_text(ADDED)
        assert listed(live)[ADDED]["sparsity"] == 0.123
        add(page, "12.3")
        expect(told).to_have_text(f"{ADDED} is served already")
        page.get_by_role("button", name=f"Retire {ADDED}").click()
        expect(told).to_have_text(f"{ADDED} takes no new requests.")
        expect(rows(page)).to_have_count(3)
        assert ADDED not in listed(live)
        # What somebody else adds appears by itself, in the playground as well.
        with live.client() as client:
            client.post("/admin/variants", json={"sparsity": 0.123})
        expect(rows(page)).to_have_count(4)
        assert page.url == f"{live.url}/#variants"
        page.get_by_role("link", name="Playground").click()
        expect(page.locator(".lane").first.get_by_role("combobox").locator("option")).to_have_count(4)


def test_an_admin_key_is_wanted_where_there_is_one(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini, admin_key="sesame") as live, open_page(live, "#variants") as page:
        told = page.locator("#variants-status")
        expect(rows(page)).to_have_count(3)
        add(page, "12.3")
        expect(told).to_contain_text("the admin key is asked for below")
        assert ADDED not in listed(live)
        page.get_by_label("Key", exact=True).fill("sesame")
        page.get_by_role("button", name="Keep").click()
        add(page, "12.3")
        expect(told).to_have_text(f"{ADDED} is served now.")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert page.evaluate("Object.values(sessionStorage)") == ["sesame"]


def test_what_does_not_change_is_left_alone(math_mini: Tiny, open_page: OpenPage, tmp_path: Path) -> None:
    """What is selected and where somebody is outlives every look at the server."""
    with serving(math_mini, cache_dir=tmp_path) as live, open_page(live, "#variants") as page:
        with live.client() as client:
            client.post("/admin/probes/run", json={"variants": [PRUNED], "items": 2})
            while client.get("/admin/probes/run").json()["state"] == "running":
                time.sleep(0.05)
        expect(rows(page).nth(1)).to_contain_text("2 items")
        look(page, 2)  # the second one began after all of that
        retire = page.get_by_role("button", name=f"Retire {SPARSEST}")
        retire.focus()
        page.evaluate(OBSERVE, "#main")
        page.get_by_role("rowheader", name=SPARSEST).select_text()
        look(page, 3)  # in which the evidence grows older
        assert page.evaluate("written") == 0
        # What does change, above it, moves nothing else.
        page.evaluate(OBSERVE, "#variant-table")
        with live.client() as client:
            client.post("/admin/variants", json={"sparsity": 0.123})
        expect(rows(page)).to_have_count(4)
        assert page.evaluate("written") == 1
        expect(retire).to_be_focused()
        assert page.evaluate("getSelection().toString().trim()") == SPARSEST
        with live.client() as client:
            client.delete(f"/admin/variants/{ADDED}")
        expect(rows(page)).to_have_count(3)
        expect(retire).to_be_focused()
        assert page.evaluate("getSelection().toString().trim()") == SPARSEST


# Counts the nodes that come and go from now on.
OBSERVE = """selector => {
    globalThis.written = 0;
    globalThis.observer?.disconnect();
    const count = ({ addedNodes, removedNodes }) => (written += addedNodes.length + removedNodes.length);
    globalThis.observer = new MutationObserver((records) => records.forEach(count));
    observer.observe(document.querySelector(selector), { childList: true, subtree: true });
}"""


def test_an_api_key_that_is_not_known_any_more_is_told_as_such(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini, api_keys=("sesame",), admin_key="open") as live, open_page(live) as page:
        dialog, trouble = page.get_by_role("dialog"), page.locator("#trouble")
        dialog.get_by_label("API key").fill("sesame")
        dialog.get_by_role("button", name="Go on").click()
        page.get_by_role("link", name="Variants").click()
        expect(rows(page)).to_have_count(3)
        page.get_by_role("link", name="Live").click()
        expect(page.locator("#connection")).to_contain_text("Serving")
        page.evaluate("sessionStorage.setItem('secateur-api-key', 'old')")
        expect(page.locator("#connection")).to_contain_text("not a key that the server knows")
        expect(trouble).to_contain_text("The server does not know this API key.")
        page.locator("#verdicts").scroll_into_view_if_needed()
        expect(page.get_by_role("button", name="Give a key")).to_be_in_viewport()
        page.get_by_role("link", name="Variants").click()
        told = page.locator("#variants-status")
        expect(told).to_contain_text("not a key that the server knows")
        expect(told).not_to_contain_text("admin key")
        page.get_by_role("button", name="Give a key").click()
        dialog.get_by_label("API key").fill("sesame")
        dialog.get_by_role("button", name="Go on").click()
        expect(trouble).to_be_hidden()
        expect(told).to_be_hidden()
        page.get_by_role("link", name="Live").click()
        expect(page.locator("#connection")).to_contain_text("Serving")


def test_probes_run_at_once(math_mini: Tiny, open_page: OpenPage, tmp_path: Path) -> None:
    with serving(math_mini, cache_dir=tmp_path) as live, open_page(live, "#variants") as page:
        expect(rows(page).nth(1)).to_contain_text("not measured")
        form = page.locator("#run-probes")
        form.get_by_label("Size").select_option(PRUNED)
        form.get_by_label("Items", exact=True).fill("2")
        form.get_by_role("button", name="Probe").click()
        expect(page.locator("#probe-told")).to_have_text("Done: 2 of 2 items.")
        expect(rows(page).nth(1)).to_contain_text("2 items")
        expect(rows(page).nth(2)).to_contain_text("not measured")  # the others were not asked
        assert listed(live)[PRUNED]["evidence"]["items"] == 2
