"""The page of /metrics, written so often that what never changes on it is written once.

prometheus-client puts every line together anew, and that is most of a scrape's time, in which the event loop
does nothing else. Here it writes each line's name and labels when the line first appears.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString


class Exposition:
    """A registry in Prometheus' text format 0.0.4, as `prometheus_client.generate_latest` writes it.

    For registries without timestamps, exemplars and `_created` series. Not for several threads at once.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._heads: dict[str, str] = {}
        self._series: dict[tuple[str, ...], str] = {}

    def page(self) -> bytes:
        """All series as they are now."""
        lines = []
        series = {}  # what is not collected any more is not kept either
        for family in self._registry.collect():
            if family.name not in self._heads:
                self._heads[family.name] = _written(family, [])
            lines.append(self._heads[family.name])
            for sample in family.samples:
                key = (sample.name, *sample.labels.values())
                text = self._series.get(key)
                if text is None:
                    text = _written(family, [sample._replace(value=0.0)]).split("\n")[-2].removesuffix("0.0")
                series[key] = text
                lines.append(f"{text}{floatToGoString(sample.value)}\n")  # type: ignore[no-untyped-call]
        self._series = series
        return "".join(lines).encode()


def _written(family: Metric, samples: list[Sample]) -> str:
    """What the library makes of a family that has only these samples."""
    metric = Metric(family.name, family.documentation, family.type)
    metric.samples = samples
    return generate_latest(_Only(metric)).decode()


@dataclass(frozen=True)
class _Only(Collector):
    metric: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric
