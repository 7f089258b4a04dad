"""What /metrics says, as a mapping."""

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse_text


def scrape(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(sample, labels) -> value."""
    return parsed(client.get("/metrics").text)


def parsed(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The same of a page that was rendered."""
    families = parse_text(page)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
