"""The page is to the last byte what prometheus-client would write, whatever came and went before."""

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from server.engine.request import FinishReason
from server.monitoring.exposition import Exposition
from server.monitoring.metrics import Metrics

ODD_NAME = 'odd "name"\\ of\ntwo\x0blines:s20'


class Gauges(Collector):
    """A gauge by variant, and a family of each other kind that gauges.py has."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("a_ratio", "Of\nwhat \\ it is.", labels=["variant"])
        for variant, value in self.values.items():
            gauge.add_metric([variant], value)
        yield gauge
        yield GaugeMetricFamily("bare", "No labels.", 3)
        counter = CounterMetricFamily("joules", "Spent.", labels=["source"])
        counter.add_metric(["rapl:0"], 1.5e9)
        yield counter
        yield InfoMetricFamily("build", "1; what runs.", {"version": "1", "model": "m"})


def test_counters_and_histograms_are_written_as_the_library_does() -> None:
    metrics = Metrics()
    metrics.declare(ODD_NAME)
    for _ in range(3):
        assert metrics.exposition.page() == generate_latest(metrics.registry)
        metrics.tokens(ODD_NAME, 2, first=False, seconds=0.02)
        metrics.prompt("m:s0", 10**7)
        metrics.rejected("queue_full")
    assert FinishReason.STOP.value.encode() in metrics.exposition.page()


def test_series_come_change_and_go() -> None:
    registry, gauges = CollectorRegistry(), Gauges()
    registry.register(gauges)
    exposition = Exposition(registry)
    for values in (
        {"m:s0": 1.0},
        {"m:s0": math.nan, "m:s20": math.inf, ODD_NAME: -math.inf},
        {"m:s20": 12345678.0},
        {},
        {"m:s0": 0.0},
    ):
        gauges.values = values
        assert exposition.page() == generate_latest(registry)


def test_retired_variants_leave_nothing_behind() -> None:
    registry, gauges = CollectorRegistry(), Gauges()
    registry.register(gauges)
    exposition = Exposition(registry)
    exposition.page()
    kept = len(exposition._series)
    for number in range(50):
        gauges.values = {f"m:{number}": 1.0}
        exposition.page()
    assert len(exposition._series) == kept + 1
