"""What is counted of a step: solo steps by how many tokens they computed."""

import pytest

from server.engine.stats import StepStats
from server.monitoring.metrics import Metrics
from tests.integration.metrics import parsed


def solo(rows: int, seconds: float = 0.5) -> StepStats:
    return StepStats(
        step_seconds=seconds,
        batch_tokens={"m:s0": min(rows, 3)},
        running={"m:s0": 3},
        num_waiting=0,
        kv_usage_ratio=0.0,
        num_solo_rows=rows,
    )


def counted(metrics: Metrics, name: str) -> dict[str, float]:
    """By rows, where there is anything."""
    samples = parsed(metrics.exposition.page().decode())
    return {
        dict(labels)["rows"]: value for (each, labels), value in samples.items() if each == name and value
    }


@pytest.mark.parametrize(
    ("rows", "bucket"),
    [
        (1, "1"),
        (2, "2-4"),
        (4, "2-4"),
        (5, "5-8"),
        (8, "5-8"),
        (9, "9-16"),
        (16, "9-16"),
        (17, "17-32"),
        (32, "17-32"),
        (33, "33+"),
        (500, "33+"),
    ],
)
def test_a_solo_step_counts_in_the_bucket_of_its_rows(rows: int, bucket: str) -> None:
    metrics = Metrics()
    metrics.declare("m:s0")
    metrics.step(solo(rows))
    metrics.step(solo(rows, seconds=0.25))
    assert counted(metrics, "secateur_solo_steps_total") == {bucket: 2}
    assert counted(metrics, "secateur_solo_step_seconds_total") == {bucket: 0.75}


def test_a_step_with_company_is_not_solo() -> None:
    metrics = Metrics()
    metrics.declare("m:s0")
    metrics.step(solo(0))
    assert counted(metrics, "secateur_solo_steps_total") == {}
