"""What all dashboards share: the variables, the links between them, annotations, and rows of panels."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.models import dashboard as models

from deploy.dashboards.panels import DATA_SOURCE, AnyPanel

TAG = "secateur"
# Filters for expressions: metrics of servers, and of variants.
SERVERS = 'instance=~"$instance"'
VARIANTS = f'{SERVERS}, variant=~"$variant"'
# A change of a verdict matters on every graph: it explains why traffic, speed or errors changed.
VERDICT_CHANGES = (
    f"sum by (variant, verdict) (increase(secateur_verdict_changes_total{{{VARIANTS}}}[1m])) > 0"
)


def of_known(metric: str) -> str:
    """The mean over servers, of those that know it: one NaN would make it NaN for all."""
    return f"avg({metric} >= -1)"


@dataclass(frozen=True)
class Section:
    """Panels under a heading.

    Attributes:
        repeat: a variable; one such section for each of its values.
    """

    title: str
    panels: Sequence[AnyPanel]
    repeat: str | None = None


def board(uid: str, title: str, description: str, sections: Sequence[Section]) -> models.Dashboard:
    """The dashboard, with its panels numbered in order."""
    building = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("DS_PROMETHEUS").label("Data source").type("prometheus"))
        .with_variable(_variable("model", "Model", "label_values(secateur_build_info, model)"))
        .with_variable(
            _variable("instance", "Server", 'label_values(secateur_build_info{model=~"$model"}, instance)')
        )
        .with_variable(
            _variable("variant", "Variant", f"label_values(secateur_variant_state{{{SERVERS}}}, variant)")
        )
        .annotation(_verdict_changes())
        .link(_to_the_others())
    )
    for section in sections:
        row = Row(section.title)
        if section.repeat is not None:
            row.repeat(section.repeat)
        building.with_row(row)
        for panel in section.panels:
            building.with_panel(panel)
    built = building.build()
    for number, numbered in enumerate(built.panels or (), start=1):
        numbered.id_val = number
    return built


def _variable(name: str, label: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATA_SOURCE)
        .multi(True)
        .include_all(True)
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _verdict_changes() -> AnnotationQuery:
    return (
        AnnotationQuery()
        .name("Verdicts")
        .datasource(DATA_SOURCE)
        .enable(True)
        .icon_color("orange")
        .expr(VERDICT_CHANGES)
    )


def _to_the_others() -> DashboardLink:
    return (
        DashboardLink("Secateur")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .keep_time(True)
        .include_vars(True)
    )
