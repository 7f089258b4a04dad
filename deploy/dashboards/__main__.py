"""Writes the dashboards to where Grafana finds them: `python -m deploy.dashboards`, or make dashboards."""

import json
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards.engine import engine
from deploy.dashboards.overview import overview
from deploy.dashboards.variants import variants

DIRECTORY = Path(__file__).parents[1] / "grafana" / "dashboards"
DASHBOARDS: dict[str, Callable[[], Dashboard]] = {
    "overview": overview,
    "variants": variants,
    "engine": engine,
}


def written(dashboard: Dashboard) -> str:
    """The dashboard as the text of its file."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, build in DASHBOARDS.items():
        (DIRECTORY / f"{name}.json").write_text(written(build()), encoding="utf-8")


if __name__ == "__main__":
    main()
