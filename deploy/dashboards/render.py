"""Draws a dashboard's panels from a real Prometheus with matplotlib, where no Grafana is at hand.

    python -m deploy.dashboards.render --url http://localhost:9090 --minutes 6 --out docs/images/dashboards

Reads the committed JSON: expressions, legends, units, places on the grid and bands are Grafana's to come. The
looks are not, and every picture says so.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from deploy.dashboards.queries import DIRECTORY, Shown, Values, filled_in, load, panels, variables

RATE_INTERVAL = "40s"  # four scrapes, as Grafana takes it
NOT_GRAFANA = "drawn with matplotlib from Prometheus' data: not Grafana's own picture"
COLUMN_INCHES, LINE_INCHES = 0.72, 0.34
DOTS_PER_INCH = 100  # a colon can still be told from an i
EDGE = 0.03  # of the height, so that a line at 0% or 100% does not lie on the frame


@dataclass(frozen=True)
class Series:
    """One line of a panel; `y` is NaN where nothing is known."""

    name: str
    ref: str
    labels: Mapping[str, str]
    x: Sequence[float]
    y: Sequence[float]

    @property
    def last(self) -> float:
        return next((value for value in reversed(self.y) if math.isfinite(value)), math.nan)


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the minutes of it to draw."""

    client: httpx.Client
    start: float
    end: float
    step: float = 2.0

    def series(self, panel: Shown, values: Values) -> list[Series]:
        """What each query of a panel gives, oldest first."""
        found = []
        for query in panel.queries:
            asked = {
                "query": filled_in(query.expr, values, RATE_INTERVAL),
                "start": self.start,
                "end": self.end,
            }
            answer = self.client.post("/api/v1/query_range", data={**asked, "step": self.step})
            for line in answer.raise_for_status().json()["data"]["result"]:
                name = query.legend
                for label, value in line["metric"].items():
                    name = name.replace(f"{{{{{label}}}}}", value)
                x, y = zip(
                    *((float(at) - self.start, float(value)) for at, value in line["values"]), strict=True
                )
                found.append(Series(name, query.ref, line["metric"], x, y))
        return found

    def values(self, dashboard: Mapping[str, Any]) -> dict[str, list[str]]:
        """All values of each of the dashboard's variables."""
        values: dict[str, list[str]] = {}
        for name, (selector, label) in variables(dashboard).items():
            match = {"match[]": filled_in(selector, values, RATE_INTERVAL)}
            answer = self.client.get(f"/api/v1/label/{label}/values", params=match)
            values[name] = answer.raise_for_status().json()["data"]
        return values


def draw(name: str, source: Source) -> Figure:
    """The whole dashboard; of a row that is repeated, the middle one."""
    dashboard = load(name)
    values = source.values(dashboard)
    placed = list(_placed(dashboard, values))
    height = max(at["y"] + at["h"] for _, _, at in placed)
    figure = Figure(figsize=(24 * COLUMN_INCHES, height * LINE_INCHES + 0.6))
    headed: set[str] = set()
    for panel, chosen, at in placed:
        left, width = (at["x"] + 1.0) / 24.2, (at["w"] - 1.4) / 24.2
        bottom, tall = (height - at["y"] - at["h"] + 0.9) / (height + 2), (at["h"] - 2.1) / (height + 2)
        axes = figure.add_axes((left, bottom, width, tall))
        axes.set_title(_named(panel.title, chosen), fontsize=9, loc="left", fontweight="bold")
        if panel.row not in headed:
            headed.add(panel.row)
            heading = (0.008, (height - at["y"] + 0.1) / (height + 2))
            figure.text(*heading, _named(panel.row, chosen), fontsize=11, color="tab:blue")
        _draw(axes, panel, source.series(panel, chosen))
    figure.suptitle(f"{dashboard['title']}   ({NOT_GRAFANA})", fontsize=11, x=0.03, ha="left", y=0.995)
    return figure


def _named(text: str, values: Values) -> str:
    """A title with its variables' values in it, which are for people here."""
    for name, chosen in values.items():
        text = text.replace(f"${name}", " + ".join(chosen))
    return text


def _placed(
    dashboard: Mapping[str, Any], values: Values
) -> Iterator[tuple[Shown, Values, Mapping[str, int]]]:
    """Panels, the values that each shows, and its place; a repeated panel once for each value."""
    for panel in panels(dashboard):
        at = panel.json["gridPos"]
        if panel.repeat is None:
            yield panel, values, at
        elif panel.json.get("repeat") is None:  # its row is
            several = values[panel.repeat]
            yield panel, {**values, panel.repeat: [several[len(several) // 2]]}, at
        else:
            several = values[panel.repeat]  # all of them in one line, however narrow
            for number, value in enumerate(several):
                width = 24 // len(several)
                place = {**at, "x": number * width, "w": width}
                yield panel, {**values, panel.repeat: [value]}, place


def _draw(axes: Axes, panel: Shown, found: list[Series]) -> None:
    kinds = {
        "timeseries": _lines,
        "stat": _numbers,
        "bargauge": _bars,
        "table": _table,
        "state-timeline": _states,
    }
    if any(math.isfinite(series.last) for series in found):
        kinds[panel.kind](axes, panel, found)
    else:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", color="grey", transform=axes.transAxes)
        axes.set_axis_off()


def _lines(axes: Axes, panel: Shown, found: list[Series]) -> None:
    defaults = panel.json["fieldConfig"]["defaults"]
    bands = {
        override["matcher"]["options"]: value["value"]
        for override in panel.json["fieldConfig"]["overrides"]
        for value in override["properties"]
        if value["id"] == "custom.fillBelowTo"
    }
    by_name = {series.name: series for series in found}
    for high, low in bands.items():
        if high in by_name and low in by_name:
            axes.fill_between(by_name[high].x, by_name[low].y, by_name[high].y, alpha=0.2, linewidth=0)
            found = [series for series in found if series.name not in (high, low)]
    if "stacking" in defaults.get("custom", {}):
        found = _on_one_clock(found)
        axes.stackplot(found[0].x, [series.y for series in found], labels=[s.name for s in found], alpha=0.6)
    else:
        for series in found:
            axes.plot(series.x, series.y, label=series.name, linewidth=1.2)
    for step in defaults["thresholds"]["steps"][1:]:
        if "thresholdsStyle" in defaults.get("custom", {}) and step["value"] <= 1.2 * axes.get_ylim()[1]:
            axes.axhline(step["value"], color="red", linestyle="--", linewidth=0.8)
    low, high = axes.set_ylim(defaults.get("min"), defaults.get("max"))
    axes.set_xlim(left=0)  # all panels begin together, whenever their first series does
    axes.set_ylim(low - EDGE * (high - low), high + EDGE * (high - low))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, defaults["unit"])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    is_crowded = len(found) > 8
    axes.legend(fontsize=4.5 if is_crowded else 6.5, ncols=4 if is_crowded else 2, loc="best", framealpha=0.6)


def _on_one_clock(found: list[Series]) -> list[Series]:
    """A stack needs a value of each at every time; where there is none it is 0."""
    times = sorted({at for series in found for at in series.x})
    return [
        replace(series, x=times, y=[dict(zip(series.x, series.y, strict=True)).get(at, 0.0) for at in times])
        for series in found
    ]


def _numbers(axes: Axes, panel: Shown, found: list[Series]) -> None:
    unit = panel.json["fieldConfig"]["defaults"]["unit"]
    for number, series in enumerate(found):
        at = (number + 0.5) / len(found)
        axes.text(at, 0.55, shown(series.last, unit), ha="center", va="center", fontsize=12, color="green")
        axes.text(at, 0.1, series.name, ha="center", va="center", fontsize=8, color="grey")
    axes.set_axis_off()


def _bars(axes: Axes, panel: Shown, found: list[Series]) -> None:
    unit = panel.json["fieldConfig"]["defaults"]["unit"]
    bars = axes.barh([series.name for series in found], [series.last for series in found], color="tab:green")
    axes.bar_label(bars, [shown(series.last, unit) for series in found], fontsize=7, padding=2)
    axes.set_xlim(0, 1.15)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)


def _table(axes: Axes, panel: Shown, found: list[Series]) -> None:
    cells = {(series.labels["variant"], series.name): series.last for series in found}
    lines = sorted({line for line, _ in cells})
    columns = [query.legend for query in panel.queries]
    settings = [
        {value["id"]: value["value"] for value in override["properties"]}
        for override in panel.json["fieldConfig"]["overrides"]
    ]
    text = [
        [
            line,
            *(
                _cell(cells.get((line, column), math.nan), own)
                for column, own in zip(columns, settings, strict=True)
            ),
        ]
        for line in lines
    ]
    table = axes.table(
        text, colLabels=["variant", *columns], loc="upper center", cellLoc="center", edges="horizontal"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    axes.set_axis_off()


def _cell(value: float, settings: Mapping[str, Any]) -> str:
    names = settings["mappings"][0]["options"] if "mappings" in settings else {}
    known = names.get(f"{value:g}", {}).get("text")
    return known or shown(value, settings["unit"])


def _states(axes: Axes, panel: Shown, found: list[Series]) -> None:
    names = panel.json["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for number, series in enumerate(found):
        for value, known in names.items():
            at = [x for x, y in zip(series.x, series.y, strict=True) if f"{y:g}" == value]
            axes.broken_barh([(x, 2.0) for x in at], (number - 0.4, 0.8), color=known["color"])
            if at:
                axes.text(at[0], number, f" {known['text']}", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), [series.name for series in found])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.tick_params(labelsize=7)


def shown(value: float, unit: str) -> str:
    """A value in one of Grafana's units, as a person reads it."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.1f}%".replace(".0%", "%")
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    scales = [(2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")] if unit == "bytes" else []
    scales += [(1e9, "G"), (1e6, "M")] if unit == "suffix:FLOP" else []
    for size, prefix in scales:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{'' if unit == 'bytes' else 'FLOP'}"
    names = {"reqps": "req/s", "ops": "/s", "watt": "W", "bytes": "B", "short": "", "none": ""}
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {names.get(unit, unit.removeprefix('suffix:'))}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the dashboards' panels from a Prometheus.")
    parser.add_argument("--url", default="http://127.0.0.1:9090", help="of Prometheus")
    parser.add_argument("--minutes", type=float, default=30.0, help="until now, that are drawn")
    parser.add_argument("--out", type=Path, required=True, help="directory of the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.time()
    with httpx.Client(base_url=arguments.url, timeout=30.0) as client:
        source = Source(client, end - 60 * arguments.minutes, end)
        for path in sorted(DIRECTORY.iterdir()):
            draw(path.stem, source).savefig(
                arguments.out / f"{path.stem}.png", dpi=DOTS_PER_INCH, pil_kwargs={"optimize": True}
            )


if __name__ == "__main__":
    main()
