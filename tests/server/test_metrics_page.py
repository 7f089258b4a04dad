"""docs/reference/metrics.md lists a live server's metrics, with types, labels and meanings, and no other."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from server.metrics_page import PAGE, fill, make_up_joules, table
from tests.integration.live import make_tiny, running

Parse = Callable[[str], Iterable[Metric]]
ACCEPTS: list[tuple[str, Parse]] = [
    ("text/plain", parse_text),
    ("application/openmetrics-text; version=1.0.0", parse_openmetrics),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a server on a machine whose energy is counted."""
    directory = tmp_path_factory.mktemp("page")
    make_up_joules(directory / "powercap")
    with running(make_tiny(directory), powercap=directory / "powercap") as live, live.client() as client:
        yield client


@pytest.mark.parametrize(("accept", "parse"), ACCEPTS)
def test_the_page_is_what_a_live_server_says_of_itself(
    client: httpx.Client, accept: str, parse: Parse
) -> None:
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith(accept.partition(";")[0])
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, table(parse(response.text))) == page, "run `make metrics-page`"


def test_a_page_that_lacks_a_metric_or_has_one_too_many_is_not_the_same(client: httpx.Client) -> None:
    families = list(parse_text(client.get("/metrics").text))
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
