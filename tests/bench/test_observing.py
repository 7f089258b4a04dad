"""With and without metrics the same work is done; the verdicts follow from the numbers."""

import asyncio
import json
from pathlib import Path

import pytest

from bench.measure import spread, summary
from bench.observing import Timed, watching
from bench.results import Results
from bench.tables import TABLES
from bench.targets import FIGURES, NOT_PROBED, PROBED, WITH_METRICS, WITHOUT_METRICS, verdicts
from server.engine.stats import StepStats
from server.monitoring.metrics import Metrics
from tests.tiny import tiny_checkpoint


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens metrics were told of."""
    counts: list[int] = []
    tokens = Metrics.tokens

    def counting(self: Metrics, variant: str, count: int, *, first: bool, seconds: float) -> None:
        counts.append(count)
        tokens(self, variant, count, first=first, seconds=seconds)

    monkeypatch.setattr(Metrics, "tokens", counting)
    return counts


def test_both_sides_get_as_many_tokens_and_one_is_counted(tmp_path: Path, told: list[int]) -> None:
    found = asyncio.run(watching(tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=4096), rounds=1))
    figures = {name: contender["figures"]["W2"] for name, contender in found["contenders"].items()}
    assert set(figures) == {WITH_METRICS, WITHOUT_METRICS}
    assert all(len(figure["rounds"]) == 1 for figure in figures.values())
    assert sum(told) == 2 * 32 * 128  # the round and the warm-up before it


def test_what_is_timed_is_told() -> None:
    metrics = Metrics()
    timed = Timed(metrics)
    stats = StepStats(step_seconds=1.0, batch_tokens={}, running={}, num_waiting=0, kv_usage_ratio=0.0)
    timed.step(stats)
    timed.tokens("a", 3, first=True, seconds=0.5)
    assert metrics.workload.last_step is stats
    assert metrics.totals().generation_tokens == {"a": 3}
    assert timed.seconds > 0


def test_the_page_tells_what_was_lost(tmp_path: Path) -> None:
    def rounds(*speeds: float) -> dict:
        figures = [{FIGURES["W2"]: speed, "observer_ratio": 0.01} for speed in speeds]
        return {"figures": {"W2": summary(figures)}}

    document = {
        "scraping": {
            "variants": 12,
            "requests": 9,
            "series": 7,
            "bytes": 150_000,
            "seconds": spread([0.025]),
        },
        "contenders": {WITH_METRICS: rounds(99.5, 50.0), WITHOUT_METRICS: rounds(100.0, 50.0)},
    }
    (tmp_path / "observing.json").write_text(json.dumps(document))
    found = [(verdict.measured, verdict.reached) for verdict in verdicts(Results(tmp_path))]
    assert found == [(25, False), (150, True), (pytest.approx(0.9975), True)]
    assert "| 0.998 " in TABLES["watching"](Results(tmp_path))


@pytest.mark.parametrize(("probed", "kept"), [(98.5, True), (97.0, False)])
def test_the_page_tells_what_probes_cost(tmp_path: Path, probed: float, kept: bool) -> None:
    def rounds(speed: float, share: float) -> dict:
        return {"figures": {"W2": summary([{FIGURES["W2"]: speed, "background_share": share}])}}

    contenders = {PROBED: rounds(probed, 0.02), NOT_PROBED: rounds(100.0, 0.0)}
    (tmp_path / "probes.json").write_text(json.dumps({"budget": 0.02, "contenders": contenders}))
    [verdict] = verdicts(Results(tmp_path))
    assert (verdict.reached, verdict.wanted) == (kept, 0.98)
    table = TABLES["probing"](Results(tmp_path))
    assert f"| {probed / 100:.3f} " in table
    assert "| probes, of all tokens computed | 2.0 " in table
