"""The live view in a real browser: it says what the server says, and goes on by itself whatever happens."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from server.engine import async_engine
from server.routes.console import DIRECTORY
from tests.console.conftest import PATIENCE_MS, OpenPage, serving
from tests.integration.live import Live, Tiny
from tests.integration.sabotage import between_steps, reverse_neurons

DENSE, PRUNED = "math-mini:s0", "math-mini:s20"
NUM_CHARTS = 8
NUM_INTERVALS = 5
HAS_CHARTS = (DIRECTORY / "vendor" / "uPlot.js").exists()  # else it could not be fetched here


def ask(live: Live, variant: str, times: int) -> None:
    body = {"model": variant, "messages": [{"role": "user", "content": "7 + 5"}], "max_tokens": 4}
    with live.client() as client:
        for _ in range(times):
            assert client.post("/v1/chat/completions", json=body).status_code == 200


def cell(page: Page, variant: str, column: str) -> Locator:
    """Of the table of sizes."""
    expect(page.locator("#live-variants thead")).to_contain_text(column)  # it comes with the first answer
    headings = page.locator("#live-variants thead th").all_inner_texts()
    row = page.locator("#live-variants tbody tr").filter(has=page.get_by_role("rowheader", name=variant))
    return row.locator("th, td").nth(headings.index(column))


def test_numbers_change_by_themselves(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini) as live, open_page(live, "#live") as page:
        expect(page.locator("#connection")).to_contain_text("Serving math-mini since")
        expect(cell(page, PRUNED, "Requests")).to_have_text("0")
        ask(live, PRUNED, 3)
        expect(cell(page, PRUNED, "Requests")).to_have_text("3")
        expect(cell(page, DENSE, "Requests")).to_have_text("0")
        expect(page.locator("#charts canvas")).to_have_count(NUM_CHARTS if HAS_CHARTS else 0)
        first = page.locator("#figures > div").filter(has_text="First token, p95").locator("dd")
        expect(first).to_contain_text("s")
        # A chart's numbers are those of the API, newest first.
        chart = page.get_by_role("figure").filter(has_text="Tokens per second")
        chart.locator("details").evaluate("details => (details.open = true)")
        with live.client() as client:
            series = client.get("/v1/live").json()["series"]
        most = max(value for value in series["generation_tokens_per_second"])
        told = f"{most:,.0f}" if most >= 100 else f"{most:.3g}"
        expect(chart.get_by_role("cell", name=told, exact=True).first).to_be_attached()


def test_what_says_the_same_stays_where_it_is(live: Live, open_page: OpenPage) -> None:
    with open_page(live, "#live") as page:
        shown = [
            page.locator("#figures > div").filter(has_text="Accuracy").locator("dd"),
            page.get_by_role("rowheader", name=PRUNED),
            cell(page, PRUNED, "State").locator(".pill"),
            page.locator("#verdicts li"),
        ]
        nodes = [locator.element_handle() for locator in shown]
        for _ in range(2):
            with page.expect_response("**/v1/live?since=*"):
                pass
        assert [node.evaluate("node => node.isConnected") for node in nodes] == [True] * 4


def test_a_restart_is_survived(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini) as live:
        port = httpx.URL(live.url).port
        opened = open_page(live, "#live")
        page = opened.__enter__()
        ask(live, PRUNED, 2)
        expect(cell(page, PRUNED, "Requests")).to_have_text("2")
    try:
        expect(page.locator("#connection")).to_have_text("Reconnecting …")
        expect(cell(page, PRUNED, "Requests")).to_have_text("2")  # what was known stays
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        with serving(math_mini, port=port) as live:
            expect(page.locator("#connection")).to_contain_text("Serving math-mini since")
            expect(cell(page, PRUNED, "Requests")).to_have_text("0")
            assert f"{live.url}/v1/live" in asked  # another process: its history anew, from the beginning
            ask(live, PRUNED, 1)
            expect(cell(page, PRUNED, "Requests")).to_have_text("1")
    finally:
        opened.__exit__(None, None, None)


def test_a_server_that_answers_nothing_any_more_is_away(math_mini: Tiny, open_page: OpenPage) -> None:
    with serving(math_mini) as live, open_page(live, "#live") as page:
        expect(page.locator("#connection")).to_contain_text("Serving math-mini since")
        loop, thaw = live.generations.engine._loop, threading.Event()
        loop.call_soon_threadsafe(thaw.wait, PATIENCE_MS / 1000)
        try:
            expect(page.locator("#connection")).to_have_text("Reconnecting …")
        finally:
            thaw.set()
        expect(page.locator("#connection")).to_contain_text("Serving math-mini since")


def test_a_stuck_engine_is_told(
    math_mini: Tiny, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_engine, "STUCK_SECONDS", 0.2)
    go_on = threading.Event()
    with serving(math_mini) as live, open_page(live, "#live") as page:
        connection = page.locator("#connection")
        expect(connection).to_contain_text("Serving math-mini since")
        between_steps(live.engine, lambda engine: go_on.wait(PATIENCE_MS / 1000) and None)
        asking = threading.Thread(target=ask, args=(live, DENSE, 1))
        asking.start()
        try:
            expect(connection).to_contain_text("The engine of math-mini is stuck in a step that does not end")
            expect(connection).to_have_class("connection lost")
        finally:
            go_on.set()
            asking.join()
        expect(connection).to_contain_text("Serving math-mini since")


def test_a_demotion_is_seen(math_mini: Tiny, open_page: OpenPage, tmp_path: Path) -> None:
    judge = {"probe_tolerance": 0.3, "max_num_seqs": 24, "sparsities": (0.0, 0.2)}
    with serving(math_mini, **judge, cache_dir=tmp_path) as live, open_page(live, "#live") as page:
        expect(cell(page, PRUNED, "State")).to_have_text("unproven")
        expect(page.locator("#verdicts")).to_contain_text("No verdict has changed yet.")
        # Asked for, not by themselves: before the page is there they could have shown that it is safe.
        between_steps(live.engine, reverse_neurons)
        with live.client() as client:
            assert client.post("/admin/probes/run", json={"items": 40}).status_code == 202
        expect(cell(page, PRUNED, "State")).to_have_text("degraded")
        verdict = page.locator("#verdicts li").filter(has_text=PRUNED)
        expect(verdict.first).to_contain_text("unproven → degraded")
        # The same numbers in the chart's table: accuracy and interval of each size.
        chart = page.get_by_role("figure").filter(has_text="Accuracy by size")
        chart.locator("details").evaluate("details => (details.open = true)")
        expect(chart.get_by_role("rowheader")).to_have_text([DENSE, PRUNED])
        expect(chart).to_contain_text("Safe up to 20 %")
        expect(chart).to_contain_text("Tolerated")


@pytest.mark.parametrize("count", [1, 12])
def test_one_size_and_twelve(math_mini: Tiny, open_page: OpenPage, count: int) -> None:
    sparsities = tuple(round(0.05 * i, 2) for i in range(count))
    with serving(math_mini, sparsities=sparsities, allow_unsafe=True) as live:
        with open_page(live, "#live") as page:
            expect(page.locator("#live-variants tbody tr")).to_have_count(count)
        with open_page(live) as page:
            expect(page.locator(".lane")).to_have_count(min(count, 2))
            expect(page.locator(".lane").first.get_by_role("slider")).to_have_attribute("max", str(count - 1))


def test_without_the_chart_library_tables_say_the_same(live: Live, open_page: OpenPage) -> None:
    with open_page(live) as page:
        page.route("**/vendor/*", lambda route: route.fulfill(status=404))
        page.goto(f"{live.url}/#variants")
        page.reload()
        page.get_by_role("link", name="Live").click()
        tables = page.locator("#charts table")
        expect(tables).to_have_count(NUM_CHARTS)
        expect(tables.nth(1).get_by_role("columnheader")).to_have_text(["Time", "generated", "prompts"])
        expect(tables.nth(1).locator("tbody tr").first).to_be_visible()
        expect(page.locator("#charts canvas")).to_have_count(0)


def show_history(live: Live, page: Page, **columns: Sequence[float | None]) -> None:
    """The live view of a server that has this history and says nothing more for a day."""
    with live.client() as client:
        answer = client.get("/v1/live").json()
    time = [answer["now"] - 2 * i for i in reversed(range(NUM_INTERVALS))]
    nothing = {name: [None] * NUM_INTERVALS for name in answer["series"]}
    series = {**nothing, "time": time, **columns}
    told = {**answer, "interval_seconds": 86_400, "series": series, "variants": []}
    page.route("**/v1/live*", lambda route: route.fulfill(json=told))
    page.reload()
    page.get_by_role("link", name="Live").click()


def test_ticks_of_what_is_counted_are_whole(live: Live, open_page: OpenPage) -> None:
    """9 at once: 2.5 between two ticks would be room enough, and be told as 0, 3, 5, 8."""
    record = """
        const { fillText } = CanvasRenderingContext2D.prototype;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
            const figure = this.canvas.closest("figure");
            if (figure) (figure.told ??= new Set()).add(text);
            return fillText.call(this, text, ...place);
        };
    """

    with open_page(live) as page:
        page.add_init_script(record)
        show_history(live, page, running=[9] * NUM_INTERVALS)
        chart = page.get_by_role("figure").filter(has_text="Requests at once")
        expect(chart).to_contain_text("running 9")
        if not HAS_CHARTS:
            return
        ticks = sorted(int(text) for text in chart.evaluate("f => [...f.told]") if text.isdecimal())
        assert len(ticks) > 1
        assert ticks == list(range(0, ticks[-1] + 1, ticks[1]))


def test_requests_are_counted_where_they_end_and_called_so(live: Live, open_page: OpenPage) -> None:
    with open_page(live) as page:
        show_history(live, page, requests_per_second=[1.5] * NUM_INTERVALS)
        chart = page.get_by_role("figure").filter(has_text="Requests per second")
        expect(chart).to_contain_text("ended 1.5")
        expect(page.locator("#figures")).to_contain_text("1.5 answers/s")


def test_what_is_known_of_one_moment_is_drawn_and_told(live: Live, open_page: OpenPage) -> None:
    """Now and then a request: nothing is known just before it, nor after."""
    once = [None, None, 0.25, None, None]
    with open_page(live) as page:
        show_history(live, page, time_to_first_token_p50_seconds=once)
        chart = page.get_by_role("figure").filter(has_text="Time to first token")
        expect(chart).to_contain_text("median 250 ms")
        if HAS_CHARTS:
            page.wait_for_function(COLOURED, arg=chart.locator("canvas").element_handle())


# Whether anything on a canvas has the colour of first lines. Nothing else there has it.
COLOURED = """canvas => {
    const wanted = getComputedStyle(document.querySelector(".legend i")).backgroundColor.match(/\\d+/g);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.length; i += 4)
        if (data[i + 3] === 255 && wanted.every((value, j) => data[i + j] === Number(value))) return true;
    return false;
}"""


def told(started: float, time: list[float], **variants: list[int]) -> dict[str, Any]:
    """An answer of /v1/live, as far as history.js looks at it."""
    series = {"time": time, "running": [int(at) for at in time]}
    found = [{"name": name, "series": {"accuracy": column}} for name, column in variants.items()]
    return {"started": started, "series": series, "variants": found}


def test_answers_add_up_to_a_history(live: Live, open_page: OpenPage) -> None:
    """New variants begin late, those that are gone are forgotten, and a quarter of an hour is kept."""
    answers = [
        told(1, [10, 12], old=[1, 2], kept=[3, 4]),
        told(1, [14], kept=[5], new=[6]),
        told(1, []),
        told(1, [912.5], kept=[7]),
    ]
    with open_page(live) as page:
        histories = page.evaluate(
            """async (answers) => {
                const app = document.querySelector('script[type="module"]').src;
                const { extend, knownUntil } = await import(app.replace("app.js", "history.js"));
                const histories = [];
                let history = null;
                for (const answer of answers) {
                    history = extend(history, answer);
                    histories.push([knownUntil(history), JSON.stringify(history)]);
                }
                return histories;
            }""",
            answers,
        )
    assert [until for until, _ in histories] == [12, 14, 14, 912.5]
    first, second, third, fourth = (json.loads(history) for _, history in histories)
    assert first == answers[0]
    assert second == told(1, [10, 12, 14], kept=[3, 4, 5], new=[None, None, 6])
    assert (third["series"], third["variants"]) == (second["series"], [])
    assert fourth == told(1, [14, 912.5], kept=[None, 7])
