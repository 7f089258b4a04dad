"""One function for each kind of panel, so that a dashboard reads as a list of what it shows.

Wraps Grafana's builders. Knows no metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# A variable of the dashboard, so that it works provisioned and imported, whatever the data source is called.
DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${DS_PROMETHEUS}")
GREEN, YELLOW, RED, BLUE = "green", "#EAB839", "red", "blue"

LEGEND = (
    common.VizLegendOptions()
    .show_legend(True)
    .display_mode(LegendDisplayMode.LIST)
    .placement(LegendPlacement.BOTTOM)
)

Steps = Sequence[tuple[float, str]]  # from this value on, this colour; below the first it is green
AnyPanel = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel | statetimeline.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, bargauge.Panel, table.Panel, statetimeline.Panel)


@dataclass(frozen=True)
class Query:
    """An expression of PromQL, and what its series are called; `{{label}}` stands for a label's value."""

    expr: str
    legend: str = "{{variant}}"


@dataclass(frozen=True)
class Face:
    """What every panel has.

    Attributes:
        description: what it teaches whoever points at it; never empty.
        unit: Grafana's id of it.
        span: columns of 24.
        height: lines of the grid.
    """

    title: str
    description: str
    unit: str
    span: int = 8
    height: int = 8


def lines(
    face: Face,
    *queries: Query,
    stacked: bool = False,
    steps: Steps = (),
    minimum: float | None = 0,
    maximum: float | None = None,
) -> timeseries.Panel:
    """Values over time; `steps` are drawn as dashed lines."""
    panel = (
        _panel(timeseries.Panel(), face, queries, steps)
        .line_width(1.5)
        .fill_opacity(25 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(LEGEND)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if steps:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    if minimum is not None:
        panel.min(minimum)
    if maximum is not None:
        panel.max(maximum)
    return panel


def band(
    face: Face,
    value: Query,
    low: Query,
    high: Query,
    *others: Query,
    repeat: str | None = None,
    steps: Steps = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> timeseries.Panel:
    """A value over time with its interval shaded around it.

    Args:
        repeat: a variable; one such panel for each of its values, four in a line.
    """
    panel = lines(face, value, low, high, *others, steps=steps, minimum=minimum, maximum=maximum)
    shared = [
        DynamicConfigValue("custom.lineWidth", 0),
        DynamicConfigValue("color", {"mode": "fixed", "fixedColor": BLUE}),
        DynamicConfigValue("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False}),
    ]
    fill = [
        DynamicConfigValue("custom.fillBelowTo", low.legend),
        DynamicConfigValue("custom.fillOpacity", 20),
    ]
    panel.override_by_name(value.legend, [DynamicConfigValue("color", shared[1].value)])
    panel.override_by_name(low.legend, shared)
    panel.override_by_name(high.legend, [*shared, *fill])
    if repeat is not None:
        panel.repeat(repeat).repeat_direction("h").max_per_row(4)
    return panel


def numbers(face: Face, *queries: Query, steps: Steps = (), trend: bool = True) -> stat.Panel:
    """The latest value of each series, large."""
    panel = _panel(stat.Panel(), face, queries, steps)
    panel.graph_mode(BigValueGraphMode.AREA if trend else BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel


def bars(face: Face, *queries: Query, maximum: float | None = None, steps: Steps = ()) -> bargauge.Panel:
    """The latest value of each series, as long as it is large."""
    panel = _panel(bargauge.Panel(), face, queries, steps)
    panel.orientation(VizOrientation.HORIZONTAL)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.min(0)
    if maximum is not None:
        panel.max(maximum)
    return panel


def history(face: Face, *queries: Query, states: Mapping[int, tuple[str, str]]) -> statetimeline.Panel:
    """Which state each series was in.

    Args:
        states: value -> what it is called, and its colour.
    """
    panel = _panel(statetimeline.Panel(), face, queries, ())
    panel.mappings([_named(states)])
    panel.legend(common.VizLegendOptions().show_legend(False))
    return panel


@dataclass(frozen=True)
class Column:
    """A column of a table: the value of `expr`, which must keep the table's label alone.

    Attributes:
        states: value -> what is written instead, and its colour.
    """

    title: str
    expr: str
    unit: str
    states: Mapping[int, tuple[str, str]] | None = None


def rows(face: Face, label: str, *columns: Column) -> table.Panel:
    """A line for each value of `label`."""
    panel = _panel(table.Panel(), face, [Query(column.expr, column.title) for column in columns], ())
    for number, column in enumerate(columns):
        shown = [DynamicConfigValue("displayName", column.title), DynamicConfigValue("unit", column.unit)]
        if column.states is not None:
            shown += [
                DynamicConfigValue("mappings", [_named(column.states)]),
                DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel.override_by_name(f"Value #{_letter(number)}", shown)
    panel.with_transformation(DataTransformerConfig("merge", options={}))
    panel.with_transformation(DataTransformerConfig("organize", options={"excludeByName": {"Time": True}}))
    panel.with_transformation(DataTransformerConfig("sortBy", options={"sort": [{"field": label}]}))
    return panel


def _panel(panel: P, face: Face, queries: Sequence[Query], steps: Steps) -> P:
    assert face.description, "every panel teaches something"
    thresholds = [Threshold(None, GREEN), *(Threshold(value, colour) for value, colour in steps)]
    panel = (
        panel.title(face.title)
        .description(face.description)
        .unit(face.unit)
        .span(face.span)
        .height(face.height)
        .datasource(DATA_SOURCE)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(thresholds))
    )
    for number, query in enumerate(queries):
        target = (
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id(_letter(number))
            .datasource(DATA_SOURCE)
        )
        if isinstance(panel, table.Panel):
            target.format(PromQueryFormat.TABLE).instant()
        else:
            target.range()
        panel.with_target(target)
    return panel


def _named(states: Mapping[int, tuple[str, str]]) -> ValueMapping:
    results = {str(value): ValueMappingResult(text, colour) for value, (text, colour) in states.items()}
    return ValueMap(results)


def _letter(number: int) -> str:
    return chr(ord("A") + number)
