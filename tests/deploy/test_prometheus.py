"""A real Prometheus scrapes a real server under mixed load: every panel, rule and alert has data."""

import math
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from matplotlib.text import Text

from deploy.dashboards.queries import DIRECTORY, annotations, filled_in, load, panels, variables
from deploy.dashboards.render import Source, draw, shown
from server.engine.engine import Engine
from tests.deploy.prometheus import PROMETHEUS, Prometheus, eventually, scraping
from tests.integration.live import Live, running
from tests.integration.sabotage import between_steps, ranked_math_mini

# Two servers, load and more than a hundred expressions: on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(600)

COMPLETIONS, CHAT, RUN = "/v1/completions", "/v1/chat/completions", "/admin/probes/run"
SPARSITIES = (0.0, 0.1, 0.2, 0.9)
SERVED = SPARSITIES[:3]  # the last is unsafe, and so narrow that probes find out
Metered = tuple[Live, Prometheus]


def ask(client: httpx.Client, sparsity: float, **fields: Any) -> httpx.Response:
    question = (
        "Tom has 3 boxes with 12 eggs in each. Tom sells 7 of the eggs. How many eggs does Tom have now?"
    )
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 48, "sparsity": sparsity}
    return client.post(CHAT, json={**body, "temperature": 0, **fields})


def leave(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}
    with client.stream("POST", COMPLETIONS, json=body) as response:
        assert next(response.iter_lines()).startswith("data: ")


def overfill(live: Live, client: httpx.Client, pool: ThreadPoolExecutor) -> None:
    """While the engine stands still, one takes all seats, and the next is refused."""
    engine = live.generations.engine
    eventually(lambda: engine.num_unfinished == 0, lambda: "somebody stays")
    going_on = threading.Event()
    between_steps(live.engine, lambda _: going_on.wait())
    all_seats = {"prompt": ["a"] * live.generations.max_requests, "max_tokens": 1}
    whole = pool.submit(client.post, COMPLETIONS, json=all_seats)
    try:
        # More than that where the server scores an earlier answer for itself: it has room of its own.
        eventually(lambda: engine.num_unfinished >= live.generations.max_requests, lambda: "not full")
        assert ask(client, 0.0).status_code == 429
    finally:
        going_on.set()
    assert whole.result().status_code == 200


def mixed_load(live: Live, client: httpx.Client) -> None:
    """Each size alone, so that its speed is known; all at once; mistakes; more than there is room for."""
    for sparsity in SERVED:
        assert ask(client, sparsity, ignore_eos=True).status_code == 200
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda i: ask(client, SERVED[i % 3], n=1 + i % 2).status_code, range(24))
        assert set(answers) == {200}
        assert ask(client, 0.123).status_code == 400
        overfill(live, client, pool)
    leave(client)


def ask_again(live: Live) -> None:
    """Many expressions look at the last minute alone: on a slow machine the load was longer ago by now."""
    with live.client() as client:
        for sparsity in SERVED:
            assert ask(client, sparsity).status_code == 200


def judge(client: httpx.Client) -> None:
    """A few probes for all, and for the narrowest as many as show what it is."""
    for run in ({"items": 4}, {"items": 16, "variants": ["math-mini:s90"]}):
        assert client.post(RUN, json=run).status_code == 202
        while client.get(RUN).json()["state"] == "running":
            time.sleep(0.05)


@contextmanager
def metered(directory: Path) -> Iterator[Path]:
    """A made-up powercap tree of a machine that takes 20 W: most machines let root alone read theirs."""
    zone = directory / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "262143328850"}.items():
        (zone / name).write_text(f"{text}\n")
    ended = threading.Event()

    def count() -> None:
        joules = 0
        while not ended.wait(0.1):
            joules += 2
            (zone / "energy_uj.new").write_text(f"{joules * 1_000_000}\n")
            (zone / "energy_uj.new").replace(zone / "energy_uj")

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield directory
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    """A server that has been scraped since before its first request, and has had every kind of them."""
    directory = tmp_path_factory.mktemp("prometheus")
    limits = {"max_model_len": 256, "max_num_seqs": 24, "max_waiting": 16, "kernels": "torch"}
    judged = {
        "sparsities": SPARSITIES,
        "probe_tolerance": 0.1,
        "shadow_share": 1.0,
        "prompt_lookup_tokens": 4,
    }
    with (
        metered(directory / "powercap") as powercap,
        running(ranked_math_mini(directory), powercap=powercap, **limits, **judged) as live,
        scraping(live.url.removeprefix("http://"), directory) as prometheus,
        live.client() as client,
    ):
        prometheus.wait_for('up{job="secateur"} == 1')
        mixed_load(live, client)
        judge(client)
        yield live, prometheus


def chosen(prometheus: Prometheus, dashboard: dict[str, Any]) -> dict[str, list[str]]:
    """All values of each variable, asked for as Grafana does."""
    values: dict[str, list[str]] = {}
    for name, (selector, label) in variables(dashboard).items():
        match = {"match[]": filled_in(selector, values, "1m")}
        values[name] = prometheus.get(f"/api/v1/label/{label}/values", **match)
    return values


def unanswered(prometheus: Prometheus, exprs: set[str]) -> set[str]:
    """Those that have no series with a number."""
    return {
        expr
        for expr in exprs
        if not any(math.isfinite(float(series["value"][1])) for series in prometheus.query(expr))
    }


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load((PROMETHEUS / name).read_text()) for name in ("recording.yml", "alerts.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def told_either_way(expr: str) -> str:
    """Comparisons say 0 or 1 instead of letting through: labels that do not match still leave nothing.

    What is absent where all is well is looked for instead.
    """
    return re.sub(r"(==|>)(?= )", r"\1 bool", re.sub(r"^absent\((.+)\)$", r"\1", expr))


def test_every_expression_has_data(scraped: Metered) -> None:
    live, prometheus = scraped
    exprs = {told_either_way(rule["expr"]) if "alert" in rule else rule["expr"] for rule in rules()}
    assert len(exprs) == len(rules())
    for path in DIRECTORY.iterdir():
        dashboard = load(path.stem)
        values = chosen(prometheus, dashboard)
        assert values["model"] == ["math-mini"]
        assert values["variant"] == [f"math-mini:s{percent}" for percent in (0, 10, 20, 90)]
        pruned = {**values, "variant": ["math-mini:s20"]}
        exprs |= {filled_in(expr, values, "1m") for expr in annotations(dashboard)}
        for panel in panels(dashboard):
            exprs |= {filled_in(query.expr, values, "1m") for query in panel.queries}
            if panel.repeat:
                assert panel.repeat == "variant"
                exprs |= {filled_in(query.expr, pruned, "1m") for query in panel.queries}
    assert len(exprs) > 100

    def all_answered() -> bool:
        ask_again(live)
        return not unanswered(prometheus, exprs)

    eventually(all_answered, lambda: "\n".join(["no data:", *sorted(unanswered(prometheus, exprs))]))


def test_what_prometheus_says_is_what_happened(scraped: Metered) -> None:
    live, prometheus = scraped
    ask_again(live)
    prometheus.wait_for("instance:secateur_tokens_per_joule:rate1m > 0")
    (default,) = prometheus.query("secateur_variant_default == 1")
    assert default["metric"]["variant"] == "math-mini:s0"
    speeds = prometheus.query("variant:secateur_speed_to_dense:ratio1h")
    assert {series["metric"]["variant"] for series in speeds} == {f"math-mini:s{p}" for p in (0, 10, 20)}
    dense = [float(s["value"][1]) for s in speeds if s["metric"]["variant"] == "math-mini:s0"]
    assert dense == pytest.approx([1])
    assert prometheus.query("instance:secateur_queue_full:ratio5m > 0")


@pytest.mark.parametrize("name", ["engine", "overview", "variants"])
def test_the_dashboards_can_be_drawn(scraped: Metered, name: str) -> None:
    _, prometheus = scraped
    end = time.time()
    figure = draw(name, Source(prometheus.client, end - 600, end))
    told = {text.get_text() for text in figure.findobj(Text)}
    titles = {panel.title.replace("$variant", "math-mini:s0") for panel in panels(load(name))}
    assert titles <= told
    assert any("not Grafana" in text for text in told)
    assert "No data" not in told


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9375, "percentunit", "93.8%"),
        (0.5, "percentunit", "50%"),
        (0.0425, "s", "42.5 ms"),
        (2.5, "s", "2.5 s"),
        (17_301_504, "bytes", "16.5 MiB"),
        (8.6e6, "suffix:FLOP", "8.6 MFLOP"),
        (31.25, "suffix:tok/s", "31.2 tok/s"),
        (1600, "suffix:tok/s", "1,600 tok/s"),
        (math.nan, "s", "-"),
    ],
)
def test_values_are_written_with_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


# The last: it takes the engine with it.
def test_alerts_reach_prometheus_with_their_texts(scraped: Metered) -> None:
    live, prometheus = scraped

    def die(engine: Engine) -> None:
        raise RuntimeError("meant to happen")

    between_steps(live.engine, die)
    with live.client() as client:
        assert ask(client, 0.0).status_code == 503
    for name in ("SecateurVariantDegraded", "SecateurEngineDead"):
        prometheus.wait_for(f'ALERTS{{alertname="{name}", alertstate="firing"}}')
    alerts = [a for a in prometheus.get("/api/v1/alerts")["alerts"] if a["state"] == "firing"]
    summaries = {alert["labels"]["alertname"]: alert["annotations"]["summary"] for alert in alerts}
    instance = live.url.removeprefix("http://")
    assert summaries["SecateurVariantDegraded"] == f"math-mini:s90 on {instance} is degraded"
    assert summaries["SecateurEngineDead"] == f"The engine of {instance} has died"
    health = [
        rule["health"] for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]
    ]
    assert health == ["ok"] * len(rules())
