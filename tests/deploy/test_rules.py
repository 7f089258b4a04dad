"""Prometheus' own tool accepts configuration and rules; alerts are explained, and tested both ways."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards.queries import DIRECTORY
from server.monitoring.metrics import FIRST_TOKEN_OBJECTIVE_SECONDS, FIRST_TOKEN_SECONDS
from tests.deploy.prometheus import PROMETHEUS, tool

ROOT = Path(__file__).parents[2]
CASES = sorted((PROMETHEUS / "tests").iterdir())


def groups(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return found


ALERTS = [rule for group in groups("alerts.yml") for rule in group["rules"]]
RECORDED = [rule for group in groups("recording.yml") for rule in group["rules"]]


def promtool(*arguments: str) -> None:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_rules_do_what_their_cases_say(case: Path) -> None:
    promtool("test", "rules", str(case))


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """Which means: an instance or variant that the case feeds, and that the alert leaves alone."""
    cases = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]
    for alert in ALERTS:
        tested = [
            (case, test)
            for case in cases
            for test in case["alert_rule_test"]
            if test["alertname"] == alert["alert"]
        ]
        severity = alert["labels"]["severity"]
        fired = [
            (c, t) for c, t in tested if any(e["exp_labels"]["severity"] == severity for e in t["exp_alerts"])
        ]
        assert fired, alert["alert"]
        for case, test in fired:
            fed = set(re.findall(r'(?:instance|variant)="([^"]+)"', str(case["input_series"])))
            heard = {v for e in test["exp_alerts"] for v in e["exp_labels"].values() if severity in str(e)}
            assert fed - heard, alert["alert"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_it_means_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    assert anchor == alert["alert"].lower()


def test_the_server_knows_the_objective() -> None:
    """From there on it counts answers that ended before their first token."""
    bounds = re.findall(r'time_to_first_token_seconds_bucket\{le="([^"]+)"\}', str(RECORDED))
    assert {float(bound) for bound in bounds} == {FIRST_TOKEN_OBJECTIVE_SECONDS}
    assert FIRST_TOKEN_OBJECTIVE_SECONDS in FIRST_TOKEN_SECONDS


def test_every_recorded_series_is_used() -> None:
    users = "".join(path.read_text() for path in DIRECTORY.iterdir())
    users += "".join(rule["expr"] for rule in [*RECORDED, *ALERTS])
    assert [rule["record"] for rule in RECORDED if rule["record"] not in users] == []


def test_every_metric_asked_for_is_documented() -> None:
    asked = "".join(path.read_text() for path in DIRECTORY.iterdir())
    asked += "".join(rule["expr"] for rule in [*RECORDED, *ALERTS])
    plain = re.findall(r"(?<![\w:-])secateur_\w+(?!\w*:)", asked)
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(secateur_\w+)`", page, flags=re.MULTILINE))
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in plain}
    assert names - documented == set()
