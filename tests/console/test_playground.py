"""The playground in a real browser: what it shows is what the API says of the same question."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import OpenPage, serving
from tests.integration.live import Live, Tiny
from tests.integration.sabotage import between_steps

PROMPT = "Jack has 2 boxes with 7 toys in each. Jack sells 3 of the toys. How many toys does Jack have now?"
DENSE, PRUNED, UNSAFE = "math-mini:s0", "math-mini:s20", "math-mini:s60"


def link(*sizes: str, **options: str) -> str:
    pairs = [*{"prompt": PROMPT, **options}.items(), *(("size", size) for size in sizes)]
    return f"#playground?{urlencode(pairs)}"


def answer(live: Live, variant: str, **options: Any) -> dict[str, Any]:
    """The API's own, unstreamed."""
    body = {"model": variant, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    with live.client() as client:
        response = client.post("/v1/chat/completions", json={**body, "max_tokens": 128, **options})
    assert response.status_code == 200, response.text
    return response.json()


def lane(page: Page, number: int) -> Locator:
    return page.locator(".lane").nth(number)


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#ask-status")).to_have_text("All have answered.")


def measure(where: Locator, name: str) -> Locator:
    return where.locator(".measures > div").filter(has_text=name)


def test_a_size_is_picked_by_keyboard_and_answers_as_the_api_does(live: Live, open_page: OpenPage) -> None:
    with open_page(live, link(DENSE, max_tokens="128")) as page:
        slider = lane(page, 0).get_by_role("slider", name="Neurons removed")
        expect(slider).to_have_attribute("aria-valuetext", f"0 % removed, {DENSE}")
        slider.press("ArrowRight")
        expect(slider).to_have_attribute("aria-valuetext", f"20 % removed, {PRUNED}")
        expect(lane(page, 0).get_by_role("combobox", name="Size")).to_have_value(PRUNED)
        page.get_by_label("Prompt").press("Control+Enter")
        expect(page.locator("#ask-status")).to_have_text("All have answered.")

        expected = answer(live, PRUNED)
        expect(lane(page, 0).locator(".answer")).to_have_text(expected["choices"][0]["message"]["content"])
        expect(measure(lane(page, 0), "Tokens/s")).to_contain_text(
            f"{expected['usage']['completion_tokens']} tokens"
        )
        expect(measure(lane(page, 0), "First token")).to_contain_text("s")
        with live.client() as client:
            (dense, pruned, _) = client.get("/v1/variants").json()["data"]
        less = 1 - pruned["standalone_bytes"] / dense["standalone_bytes"]
        memory = f"{pruned['standalone_bytes'] / 2**20:.3g} MiB"
        expect(measure(lane(page, 0), "Memory")).to_contain_text(f"{memory}weights alone, {less:.0%}"[:-1])
        expect(measure(lane(page, 0), "Accuracy")).to_contain_text("not measured")


def test_sizes_are_compared_and_the_first_other_token_is_marked(live: Live, open_page: OpenPage) -> None:
    dense, pruned = (answer(live, name, logprobs=True, allow_unsafe=True) for name in (DENSE, UNSAFE))
    tokens = [[t["token"] for t in a["choices"][0]["logprobs"]["content"]] for a in (dense, pruned)]
    index = next(i for i, (one, other) in enumerate(zip(*tokens, strict=False)) if one != other)
    with open_page(live, link(UNSAFE, DENSE, DENSE, allow_unsafe="1", max_tokens="128")) as page:
        run(page)
        marked = lane(page, 0)
        assert marked.locator("mark").inner_text() == tokens[1][index]
        before = marked.locator(".answer").evaluate("answer => answer.firstChild.textContent")
        assert before == "".join(tokens[1][:index])
        expect(marked.locator(".divergence")).to_contain_text(f"Leaves {DENSE} at token {index + 1}:")
        expect(lane(page, 1).locator("mark")).to_have_count(0)
        expect(lane(page, 1).locator(".divergence")).to_be_hidden()  # it is what the others are held to
        expect(lane(page, 2).locator(".divergence")).to_have_text(f"Word for word what {DENSE} says.")


def said(*tokens: str, ended: bool = True, text: str | None = None) -> dict[str, Any]:
    return {"tokens": tokens, "text": "".join(tokens) if text is None else text, "ended": ended}


def test_where_an_answer_leaves_another(live: Live, open_page: OpenPage) -> None:
    reference = said("is", " 36", ".")
    half = "\ufffd"  # a token that is part of a character
    cases = [
        (reference, said("is", " 36", "."), None),
        (reference, said("is", " 35", "."), (1, 2, 5, " 36")),  # the whole token, though it begins alike
        (reference, said("is", ended=False), None),  # it may still say the same
        (reference, said("is", " 36", ".", "!"), (3, 6, 7, None)),
        (reference, said("is", " 36"), (2, 5, 5, ".")),
        (said("is", ended=False), said("is", " 35"), None),
        (said(half, half, "a", text="é" + "a"), said(half, half, "b", text="é" + "b"), (2, 1, 2, "a")),
    ]
    with open_page(live) as page:
        found = page.evaluate(
            """async (cases) => {
                const app = document.querySelector('script[type="module"]').src;
                const { divergence } = await import(app.replace("app.js", "divergence.js"));
                return cases.map(([reference, answer]) => divergence(reference, answer));
            }""",
            [case[:2] for case in cases],
        )
    wanted = [
        case[2] and dict(zip(("index", "start", "end", "instead"), case[2], strict=True)) for case in cases
    ]
    assert found == wanted


def test_one_to_four_sizes_stand_side_by_side(live: Live, open_page: OpenPage) -> None:
    with open_page(live) as page:
        # The dense one, and the sparsest that everybody may have.
        sizes = page.get_by_role("combobox", name="Size", exact=True).and_(page.locator(".variant"))
        expect(sizes).to_have_count(2)
        assert [sizes.nth(i).input_value() for i in range(2)] == [DENSE, PRUNED]
        add = page.get_by_role("button", name="Add a size")
        add.click()
        assert sizes.nth(2).input_value() == UNSAFE
        add.click()
        expect(sizes).to_have_count(4)
        expect(add).to_be_disabled()
        for left in (3, 2, 1):
            page.get_by_role("button", name="Remove").first.click()
            expect(sizes).to_have_count(left)
        expect(page.get_by_role("button", name="Remove")).to_have_count(0)


def test_a_link_brings_everything_back(live: Live, open_page: OpenPage) -> None:
    awkward = "What's 7 & 5 % of 20?\n“#?=+”"
    with open_page(live, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_label("Prompt").fill(awkward)
        page.get_by_role("button", name="Add a size").click()
        page.get_by_role("combobox", name="Size").first.select_option(PRUNED)
        page.get_by_text("Options").click()
        page.get_by_label("Most tokens of an answer").fill("17")
        page.get_by_label("Allow sizes").check()
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#ask-status")).to_have_text("Link copied.")
        copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"{live.url}/#playground?")
    with open_page(live, copied.removeprefix(f"{live.url}/")) as page:
        expect(page.locator(".lane")).to_have_count(3)
        sizes = [page.locator(".variant").nth(i).input_value() for i in range(3)]
        assert sizes == [PRUNED, PRUNED, UNSAFE]
        expect(page.get_by_label("Prompt")).to_have_value(awkward)
        expect(page.locator("#max-tokens")).to_have_value("17")
        expect(page.locator("#allow-unsafe")).to_be_checked()
        # Another view and back: nothing is lost.
        page.get_by_role("link", name="Variants").click()
        page.get_by_role("link", name="Playground").click()
        expect(page.get_by_label("Prompt")).to_have_value(awkward)
        assert page.url == copied


def test_the_address_follows_seldom_and_is_not_needed(live: Live, open_page: OpenPage) -> None:
    with open_page(live, link(DENSE), permissions=["clipboard-read", "clipboard-write"]) as page:
        expect(lane(page, 0)).to_be_visible()
        page.wait_for_function("document.querySelector('#curl-code').textContent !== ''")
        page.evaluate(TYPE, 100)
        expect(page).to_have_url(re.compile("x{100}&"))
        assert page.evaluate("addresses") == 1
        page.evaluate("() => { history.replaceState = () => { throw new DOMException('too often') } }")
        page.evaluate(TYPE, 100)
        expect(page.locator("#curl-code")).to_contain_text("x" * 200)
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#ask-status")).to_have_text("Link copied.")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert f"{'x' * 200}&size=" in copied
        page.wait_for_timeout(1_000)  # in which the page would have failed
        assert "x" * 101 not in page.url
        assert page.evaluate("addresses") == 1


# At once, as many changes of the prompt.
TYPE = """(count) => {
    globalThis.addresses = 0;
    const replace = history.replaceState;
    history.replaceState = function (...all) { addresses += 1; return replace.apply(this, all); };
    const prompt = document.querySelector("#prompt");
    for (let i = 0; i < count; i += 1) {
        prompt.value += "x";
        prompt.dispatchEvent(new Event("input", { bubbles: true }));
    }
}"""


def test_a_link_that_is_opened_in_the_same_tab_is_followed(live: Live, open_page: OpenPage) -> None:
    with open_page(live, link(DENSE)) as page:
        expect(page.locator(".lane")).to_have_count(1)
        page.goto(f"{live.url}/{link(UNSAFE, PRUNED, prompt='2 + 2', allow_unsafe='1', max_tokens='9')}")
        expect(page.locator(".lane")).to_have_count(2)
        assert [page.locator(".variant").nth(i).input_value() for i in range(2)] == [UNSAFE, PRUNED]
        expect(page.get_by_label("Prompt")).to_have_value("2 + 2")
        expect(page.locator("#max-tokens")).to_have_value("9")
        expect(page.locator("#allow-unsafe")).to_be_checked()


def test_the_accuracy_is_what_is_known_by_now(math_mini: Tiny, open_page: OpenPage, tmp_path: Path) -> None:
    with serving(math_mini, cache_dir=tmp_path) as live, open_page(live, link(PRUNED)) as page:
        accuracy = measure(lane(page, 0), "Accuracy")
        expect(accuracy).to_contain_text("not measured")
        with live.client() as client:
            client.post("/admin/probes/run", json={"variants": [PRUNED], "items": 2})
            while client.get("/admin/probes/run").json()["state"] == "running":
                time.sleep(0.05)
        run(page)
        expect(accuracy).to_contain_text("2 items")


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _curl(code: str) -> list[str]:
    read = "import json, sys; print(json.load(sys.stdin)['choices'][0]['message']['content'])"
    return ["bash", "-c", f'{code} | "$0" -c "$1"', sys.executable, read]


@pytest.mark.parametrize(("code", "command"), [("#python-code", _python), ("#curl-code", _curl)])
def test_the_code_asks_for_the_same(
    live: Live, open_page: OpenPage, code: str, command: Callable[[str], list[str]]
) -> None:
    with open_page(live, link(UNSAFE, allow_unsafe="1", max_tokens="128")) as page:
        # A quote, which both a shell and a string literal have to survive.
        prompt = f"{PROMPT} It's \"Jack's\" turn."
        page.get_by_label("Prompt").fill(prompt)
        run(page)
        page.get_by_text("The same from code").click()
        shown = lane(page, 0).locator(".answer").inner_text()
        done = subprocess.run(command(page.locator(code).inner_text()), capture_output=True, text=True)
    assert done.stdout.strip() == shown.strip(), done.stderr


def test_an_answer_can_be_stopped(live: Live, open_page: OpenPage) -> None:
    held = threading.Event()
    with open_page(live, link(DENSE)) as page:
        expect(page.get_by_role("button", name="Run")).to_be_enabled()
        between_steps(live.engine, lambda engine: held.wait(60) and None)
        try:
            page.get_by_role("button", name="Run").click()
            expect(page.locator("#ask-status")).to_have_text("Answering …")
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#ask-status")).to_have_text("Stopped.")
            expect(lane(page, 0).locator(".divergence")).to_have_text("Stopped.")
        finally:
            held.set()
        run(page)
        expected = answer(live, DENSE)["choices"][0]["message"]["content"]
        expect(lane(page, 0).locator(".answer")).to_have_text(expected)


def test_a_lane_that_is_taken_away_or_set_anew_generates_no_more(
    math_mini: Tiny, open_page: OpenPage, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    held = threading.Event()
    with serving(math_mini) as live, open_page(live, link(DENSE, PRUNED, PRUNED)) as page:
        expect(lane(page, 2)).to_be_visible()
        between_steps(live.engine, lambda engine: held.wait(60) and None)
        try:
            page.get_by_role("button", name="Run").click()
            eventually(lambda: live.generations.num_open == 3)
            lane(page, 2).get_by_role("button", name="Remove").click()
            eventually(lambda: live.generations.num_open == 2)
            lane(page, 1).locator(".variant").select_option(DENSE)
            eventually(lambda: live.generations.num_open == 1)
            expect(lane(page, 1).locator(".answer")).to_have_attribute("aria-busy", "false")
            expect(page.locator("#ask-status")).to_have_text("Answering …")
        finally:
            held.set()
        expect(page.locator("#ask-status")).to_have_text("1 of 2 have answered.")
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        expect(lane(page, 1).locator(".answer")).to_be_empty()
        expect(lane(page, 1).locator(".divergence")).to_be_hidden()
        run(page)
        assert lane(page, 1).locator(".answer").inner_text() == lane(page, 0).locator(".answer").inner_text()
        # The only one left that was asked: nobody answers then.
        lane(page, 1).get_by_role("button", name="Remove").click()
        held.clear()
        between_steps(live.engine, lambda engine: held.wait(60) and None)
        try:
            page.get_by_role("button", name="Run").click()
            eventually(lambda: live.generations.num_open == 1)
            lane(page, 0).locator(".variant").select_option(PRUNED)
            expect(page.locator("#ask-status")).to_have_text("Stopped.")
            expect(page.get_by_role("button", name="Run")).to_be_visible()
        finally:
            held.set()


def test_what_goes_wrong_is_told_in_words(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini) as live, open_page(live, link(DENSE, UNSAFE)) as page:
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#ask-status")).to_have_text("1 of 2 could not answer.")
        expect(lane(page, 1).get_by_role("alert")).to_contain_text("up to 0.2 is safe")
        expect(lane(page, 0).get_by_role("alert")).to_have_count(0)
        between_steps(live.engine, _die)
        page.get_by_role("button", name="Run").click()
        expect(lane(page, 0).get_by_role("alert")).to_contain_text("ngine")
        expect(page.locator("#ask-status")).to_have_text("2 of 2 could not answer.")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.get_by_role("button", name="Run").click()
        expect(lane(page, 0).get_by_role("alert")).to_have_text("The server cannot be reached.")


def _die(engine: Any) -> None:
    raise RuntimeError("meant to happen")


def test_a_key_is_asked_for_where_the_server_wants_one(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini, api_keys=("sesame",)) as live, open_page(live) as page:
        dialog = page.get_by_role("dialog", name="This server wants an API key")
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_be_hidden()
        expect(page.locator("#trouble")).to_contain_text("The server wants an API key.")
        with page.expect_response("**/v1/live*"):
            pass  # the page goes on trying, but asks nobody
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name="Give a key").click()
        for key in ("wrong", "sesame"):
            expect(dialog).to_be_visible()
            dialog.get_by_label("API key").fill(key)
            dialog.get_by_role("button", name="Go on").click()
        expect(page.locator(".lane")).to_have_count(2)
        expect(dialog).to_be_hidden()
        expect(page.locator("#trouble")).to_be_hidden()
        run(page)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert page.evaluate("Object.values(sessionStorage)") == ["sesame"]
        page.get_by_text("The same from code").click()
        for code in ("#curl-code", "#python-code"):
            text = page.locator(code).inner_text()
            assert "SECATEUR_API_KEY" in text
            assert "sesame" not in text
        assert "sesame" not in page.url
