"""What a dashboard asks Prometheus, read from its JSON: panels, queries, variables filled in as Grafana does.

Asks nobody. Needs no Grafana library, so that it reads what is committed and nothing else.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parents[1] / "grafana" / "dashboards"

Values = Mapping[str, Sequence[str]]  # of each variable, those that are chosen


@dataclass(frozen=True)
class Asked:
    """One query of a panel."""

    expr: str
    legend: str
    ref: str


@dataclass(frozen=True)
class Shown:
    """A panel.

    Attributes:
        repeat: the variable that it, or its row, is repeated for.
        json: all of it, as Grafana reads it.
    """

    title: str
    row: str
    kind: str
    repeat: str | None
    queries: Sequence[Asked]
    json: Mapping[str, Any]


def load(name: str) -> dict[str, Any]:
    """The committed dashboard of this name."""
    found: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[Shown]:
    """In order; rows are not among them, but told of each."""
    row: Mapping[str, Any] = {"title": ""}
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel
            continue
        queries = [
            Asked(target["expr"], target.get("legendFormat", ""), target["refId"])
            for target in panel["targets"]
        ]
        repeat = panel.get("repeat") or row.get("repeat")
        yield Shown(panel["title"], row["title"], panel["type"], repeat, queries, panel)


def annotations(dashboard: Mapping[str, Any]) -> list[str]:
    """The expressions of events that are drawn on all panels."""
    return [annotation["expr"] for annotation in dashboard["annotations"]["list"]]


def variables(dashboard: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (selector of series, label whose values it takes), of those that ask for label_values."""
    asked = {
        variable["name"]: re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
    assert all(asked.values()), "variables take values of labels"
    return {name: (match[1], match[2]) for name, match in asked.items() if match}


def filled_in(text: str, values: Values, rate_interval: str) -> str:
    """`text` as Prometheus gets to see it: several values are an alternation, their characters escaped."""
    text = text.replace("$__rate_interval", rate_interval)
    for name, chosen in values.items():
        escaped = [re.escape(value).replace("\\", "\\\\") for value in chosen]
        text = text.replace(f"${name}", escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})")
    return text
