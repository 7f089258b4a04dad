"""`python -m server.monitoring.metrics_page`: puts the table of all metrics into docs/reference/metrics.md.

The rest of that page is written by hand. The table is made of what a server says of itself: here of the
embedded model's, that nobody asks anything.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import Metric

from server.loading.profiles import open_model
from server.service import assemble, load_model
from server.settings import ServeSettings, load_settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
_MARKED = re.compile(r"(<!-- metrics -->\n).*?(<!-- end -->)", re.DOTALL)


def table(families: Iterable[Metric]) -> str:
    """Name, type, labels and meaning of each, as Markdown; the same of a registry and of its page parsed."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in families:
        name, kind = family.name, family.type
        if kind == "counter":
            name = f"{name.removesuffix('_total')}_total"
        elif kind == "info":  # in Prometheus' own format that is a gauge
            name, kind = f"{name}_info", "gauge"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        lines.append(f"| `{name}` | {kind} | {', '.join(sorted(labels))} | {family.documentation} |")
    return "\n".join(lines)


def fill(page: str, metrics: str) -> str:
    """The page with its table made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{metrics}\n{match[2]}", page)


def make_up_joules(powercap: Path) -> None:
    """A CPU package as the kernel shows it, so that no metric depends on the machine."""
    zone = powercap / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, content in {"name": "package-0", "max_energy_range_uj": "1000", "energy_uj": "0"}.items():
        (zone / name).write_text(content, encoding="ascii")


def main() -> None:
    with TemporaryDirectory() as directory:
        make_up_joules(Path(directory))
        settings = load_settings(ServeSettings, {})
        service = assemble(settings, load_model(settings, open_model(settings)), powercap=Path(directory))
        families = service.generations.metrics.registry.collect()
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), table(families)), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
