"""The committed dashboards are what the code builds, fit Grafana's types, and teach."""

import json
import re
import subprocess
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards.queries import DIRECTORY, Shown, annotations, filled_in, load, panels, variables
from tests.deploy.prometheus import tool

NAMES = ("engine", "overview", "variants")


def sdk() -> Any:
    return pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk needs Python 3.11")


def test_the_committed_files_are_what_the_code_builds() -> None:
    sdk()
    from deploy.dashboards.__main__ import DASHBOARDS, written

    assert {path.name for path in DIRECTORY.iterdir()} == {f"{name}.json" for name in DASHBOARDS}
    for name, build in DASHBOARDS.items():
        committed = (DIRECTORY / f"{name}.json").read_text(encoding="utf-8")
        assert committed == written(build()), f"{name} has changed: make dashboards"


def lost(committed: Any, back: Any, path: str = "") -> list[str]:
    """Where the second lacks something of the first, or has something else; what it adds are defaults."""
    if isinstance(committed, dict) and isinstance(back, dict):
        missing = [f"{path}/{key}" for key in committed if key not in back]
        parts = [(committed[key], back[key], f"{path}/{key}") for key in committed if key in back]
    elif isinstance(committed, list) and isinstance(back, list) and len(committed) == len(back):
        missing = []
        parts = [
            (one, other, f"{path}/{i}") for i, (one, other) in enumerate(zip(committed, back, strict=True))
        ]
    else:
        return [] if committed == back else [path]
    return missing + [found for part in parts for found in lost(*part)]


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_own_types_know_every_field(name: str) -> None:
    """What a type does not know it drops: nothing is lost on the way through them and back."""
    sdk()
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()

    def there_and_back(dashboard: dict[str, Any]) -> Any:
        return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))

    committed = load(name)
    assert lost(committed, there_and_back(committed)) == []
    committed["panels"][1]["fieldConfig"]["defaults"]["unti"] = "s"
    assert lost(committed, there_and_back(committed)) == ["/panels/1/fieldConfig/defaults/unti"]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_teaches_and_asks_the_chosen_data_source(name: str) -> None:
    dashboard = load(name)
    titles = [(panel.row, panel.title) for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert len(panel.json["description"]) > 20, panel.title
        assert panel.json["fieldConfig"]["defaults"]["unit"], panel.title
        assert panel.queries, panel.title
        sources = [panel.json["datasource"], *(target["datasource"] for target in panel.json["targets"])]
        assert {source["uid"] for source in sources} == {"${DS_PROMETHEUS}"}, panel.title
    assert list(variables(dashboard)) == ["model", "instance", "variant"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    places = [panel["gridPos"] for panel in load(name)["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    for top in {place["y"] for place in places}:
        assert sum(place["w"] for place in places if place["y"] == top) == 24


@pytest.mark.parametrize("name", NAMES)
def test_every_expression_follows_the_variables(name: str) -> None:
    dashboard = load(name)
    for expr in [query.expr for panel in panels(dashboard) for query in panel.queries] + annotations(
        dashboard
    ):
        plain = re.sub(r"(and )?on \(job, instance, variant\) secateur_variant_\w+ == [01]", "", expr)
        selectors = re.findall(r"[a-z_0-9:]*secateur_[a-z_0-9:]+(\{[^}]*\})?", plain)
        assert selectors, expr
        assert all('instance=~"$instance"' in selector for selector in selectors), expr
        values = {name: ["x"] for name in variables(dashboard)}
        assert "$" not in filled_in(expr, values, "1m")


def panel_of(name: str, title: str) -> Shown:
    (found,) = [panel for panel in panels(load(name)) if panel.title == title]
    return found


def evaluated_by_prometheus(
    directory: Path, series: Mapping[str, float], expected: Mapping[str, Mapping[str, float]]
) -> None:
    """Fails where an expression is not, for each variant, what `expected` says."""
    test = {
        "interval": "10s",
        "input_series": [{"series": name, "values": str(value)} for name, value in series.items()],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": "0s",
                "exp_samples": [
                    {"labels": f'{{variant="{name}"}}', "value": value} for name, value in values.items()
                ],
            }
            for expr, values in expected.items()
        ],
    }
    case = directory / "case.yml"
    case.write_text(yaml.safe_dump({"evaluation_interval": "10s", "tests": [test]}))
    command = [tool("promtool"), "test", "rules", str(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_share_of_the_traffic_is_one_of_all_of_it(tmp_path: Path) -> None:
    """Also where one size alone is chosen; what another server has answered does not count."""
    rate = 'variant:secateur_requests:rate5m{job="secateur", instance="%s", variant="%s"}'
    series = {rate % ("a", "m:s0"): 3.0, rate % ("a", "m:s20"): 1.0, rate % ("b", "m:s20"): 6.0}
    (query,) = panel_of("overview", "Share of the traffic").queries
    one, both = (
        filled_in(query.expr, {"instance": ["a"], "variant": chosen}, "1m")
        for chosen in (["m:s20"], ["m:s0", "m:s20"])
    )
    evaluated_by_prometheus(tmp_path, series, {one: {"m:s20": 0.25}, both: {"m:s0": 0.75, "m:s20": 0.25}})


def test_a_line_of_the_sizes_is_the_worst_that_a_server_has(tmp_path: Path) -> None:
    """Two servers; m:s35 is degraded on the one, and retiring on the other."""
    of_both = {
        "Accuracy": ("secateur_probe_accuracy_ratio", 0.9, 0.8, 0.8),
        "Low": ("secateur_probe_accuracy_lower_ratio", 0.85, 0.7, 0.7),
        "High": ("secateur_probe_accuracy_upper_ratio", 0.95, 0.88, 0.95),
        "Probes": ("secateur_probe_items", 300.0, 100.0, 100.0),
        "Lost": ("secateur_probe_drop_ratio", 0.01, 0.11, 0.11),
        "Speed of dense": ("variant:secateur_speed_to_dense:ratio1h", 1.5, 1.25, 1.25),
    }
    names = {"job": "secateur", "variant": "m:s35"}

    def of(metric: str, instance: str, **labels: str) -> str:
        told = {**names, "instance": instance, **labels}
        return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in told.items()) + "}"

    series = {}
    for metric, first, second, _ in of_both.values():
        series |= {of(metric, "a"): first, of(metric, "b"): second}
    for state, first, second in (("ready", 0.0, 0.0), ("degraded", 1.0, 0.0), ("retiring", 0.0, 1.0)):
        series[of("secateur_variant_state", "a", state=state)] = first
        series[of("secateur_variant_state", "b", state=state)] = second
    columns = {query.legend: query.expr for query in panel_of("overview", "Sizes").queries}
    expected = {title: worst for title, (_, _, _, worst) in of_both.items()} | {"State": 2.0}
    assert expected.keys() <= columns.keys()
    values = {"instance": ["a", "b"], "variant": ["m:s35"]}
    evaluated_by_prometheus(
        tmp_path,
        series,
        {filled_in(columns[title], values, "1m"): {"m:s35": value} for title, value in expected.items()},
    )


def test_each_state_of_the_sizes_is_named() -> None:
    overrides = panel_of("overview", "Sizes").json["fieldConfig"]["overrides"]
    (mappings,) = [
        each["value"] for override in overrides for each in override["properties"] if each["id"] == "mappings"
    ]
    named = {int(value): shown["text"] for value, shown in mappings[0]["options"].items()}
    assert named == {0: "ready", 1: "retiring", 2: "degraded"}


def test_a_band_lies_between_the_bounds() -> None:
    (panel,) = [panel for panel in panels(load("variants")) if panel.title == "Accuracy"]
    assert [query.legend for query in panel.queries] == ["accuracy", "low", "high"]
    fills = [
        (override["matcher"]["options"], value["value"])
        for override in panel.json["fieldConfig"]["overrides"]
        for value in override["properties"]
        if value["id"] == "custom.fillBelowTo"
    ]
    assert fills == [("high", "low")]


def test_variables_are_filled_in_as_grafana_does() -> None:
    values = {"variant": ["m:s0", "m.x:s20"], "instance": ["a:1"]}
    expr = filled_in('m{instance=~"$instance", variant=~"$variant"}[$__rate_interval]', values, "30s")
    assert expr == 'm{instance=~"a:1", variant=~"(m:s0|m\\\\.x:s20)"}[30s]'


def test_all_of_a_repeated_row_is_repeated() -> None:
    assert {panel.repeat for panel in panels(load("variants"))} == {"variant"}
    repeated = [panel.title for panel in panels(load("overview")) if panel.repeat]
    assert repeated == ["$variant"]
