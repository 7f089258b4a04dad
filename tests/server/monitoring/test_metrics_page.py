"""docs/reference/metrics.md lists a live server's metrics, with types, labels and meanings, and no other."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.monitoring.metrics_page import PAGE, fill, make_up_joules, table
from tests.integration.live import make_tiny, running

PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a server on a machine whose energy is counted."""
    directory = tmp_path_factory.mktemp("page")
    make_up_joules(directory / "powercap")
    with running(make_tiny(directory), powercap=directory / "powercap") as live, live.client() as client:
        yield client


def test_the_page_is_what_a_live_server_says_of_itself(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    page = PAGE.read_text(encoding="utf-8")
    families = text_string_to_metric_families(response.text)
    assert fill(page, table(families)) == page, "run `make metrics-page`"


def test_a_page_that_lacks_a_metric_or_has_one_too_many_is_not_the_same(client: httpx.Client) -> None:
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, table(families[:-1])) != page
    assert fill(page, table([*families, Metric("secateur_new", "Of late.", "gauge")])) != page


def test_energy_is_there_where_the_machine_counts_it_and_else_absent(
    client: httpx.Client, tmp_path: Path
) -> None:
    name = 'secateur_energy_joules_total{source="rapl:package-0"} '
    assert name in client.get("/metrics").text
    with running(make_tiny(tmp_path), powercap=tmp_path / "none") as live, live.client() as other:
        assert "secateur_energy" not in other.get("/metrics").text


QUERIES = re.findall(r"```promql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
# A dense variant and one of half its FLOPs, for an hour: 0.1 and 0.05 s a step, 5 and 3 tokens/s.
SERIES = {
    'secateur_solo_step_seconds_total{instance="a", variant="m:s0", rows="1"}': "0+6x60",
    'secateur_solo_steps_total{instance="a", variant="m:s0", rows="1"}': "0+60x60",
    'secateur_solo_step_seconds_total{instance="a", variant="m:s50", rows="1"}': "0+2x60",
    'secateur_solo_steps_total{instance="a", variant="m:s50", rows="1"}': "0+40x60",
    'secateur_solo_step_seconds_total{instance="a", variant="m:s50", rows="2-4"}': "0+2x60",
    'secateur_solo_steps_total{instance="a", variant="m:s50", rows="2-4"}': "0+40x60",
    'secateur_variant_relative_flops_ratio{instance="a", variant="m:s0"}': "1x60",
    'secateur_variant_relative_flops_ratio{instance="a", variant="m:s50"}': "0.5x60",
    'secateur_flops_per_token{instance="a", variant="m:s0"}': "100x60",
    'secateur_flops_per_token{instance="a", variant="m:s50"}': "50x60",
    'secateur_generation_tokens_total{instance="a", variant="m:s0"}': "0+300x60",
    'secateur_generation_tokens_total{instance="a", variant="m:s50"}': "0+180x60",
    'secateur_device_memory_process_bytes{instance="a", device="cpu"}': "2e9x60",
    'secateur_energy_joules_total{instance="a", source="rapl:package-0"}': "0+1200x60",
    'secateur_energy_joules_total{instance="a", source="rapl:package-1"}': "0+1200x60",
    'secateur_background_tokens_total{instance="a", variant="m:s0"}': "0+60x60",
    'secateur_batch_tokens_sum{instance="a", variant="m:s0"}': "0+540x60",
}
EXPECTED = [
    [('{instance="a"}', 650)],  # 5 · 100 + 3 · 50
    [('{instance="a", rows="1", variant="m:s0"}', 1), ('{instance="a", rows="1", variant="m:s50"}', 2)],
    [('{instance="a"}', 4)],  # 8 tokens a second for 2 GB
    [('{instance="a"}', 0.2)],  # 8 tokens a second for 40 W
    [("{}", 0.1)],
]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
def test_the_queries_on_the_page_say_what_it_says_of_them(tmp_path: Path) -> None:
    cases = [
        {
            "expr": query,
            "eval_time": "1h",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in expected],
        }
        for query, expected in zip(QUERIES, EXPECTED, strict=True)
    ]
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    tests = {
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": cases}],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps(tests))
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
