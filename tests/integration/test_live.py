"""GET /v1/live under load: it shows what /metrics and /v1/variants show, over time."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.engine import async_engine
from server.engine.model_runner import ModelRunner
from server.monitoring.live import LiveHistory
from server.monitoring.live_schema import LiveState
from tests.integration.live import MAX_MODEL_LEN, WAIT_SECONDS, Tiny, running
from tests.integration.metrics import scrape
from tests.integration.sabotage import between_steps

COMPLETIONS, LIVE = "/v1/completions", "/v1/live"
ENDLESS = {"prompt": "abc", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True, "stream": True}
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.monitoring.live_source.INTERVAL_SECONDS", 0.02)


def glance(client: httpx.Client, since: float | None = None) -> LiveState:
    response = client.get(LIVE, params={} if since is None else {"since": since})
    assert response.status_code == 200, response.text
    return LiveState.model_validate_json(response.content)


def wait_for_an_interval(client: httpx.Client, eventually: Eventually) -> LiveState:
    """Of which all happened after this call, and what is told then."""
    last = glance(client).now
    eventually(lambda: len(glance(client, last).series.time) > 1)
    return glance(client)


def test_load_is_seen_while_it_lasts_and_counted_when_it_has_ended(
    tiny: Tiny, eventually: Eventually
) -> None:
    with running(tiny) as live, live.client() as client:
        before = wait_for_an_interval(client, eventually)
        assert {*before.series.generation_tokens_per_second, *before.series.running} == {0}
        with client.stream("POST", COMPLETIONS, json={**ENDLESS, "n": 10, "sparsity": 0.1}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            eventually(lambda: 8 in glance(client).series.running)
            during = wait_for_an_interval(client, eventually)
            assert during.series.running[-1] == 8
            assert during.series.waiting[-1] == 2
            assert 0 < (during.series.kv_usage_ratio[-1] or 0) <= 1
            assert {v.name: v.running for v in during.variants if v.running} == {"tiny:s10": 8}
            # A step may take longer than an interval, which then has no tokens.
            eventually(lambda: bool(glance(client).series.generation_tokens_per_second[-1]))
            eventually(lambda: bool(glance(client).series.inter_token_p95_seconds[-1]))
        assert client.post(COMPLETIONS, json={"prompt": "a", "model": "made-up"}).status_code == 404
        eventually(lambda: live.generations.num_open == 0)
        after = wait_for_an_interval(client, eventually)
        samples = scrape(client)

    assert (after.series.running[-1], after.series.waiting[-1]) == (0, 0)
    assert after.series.inter_token_p50_seconds[-1] is None
    assert any(after.series.time_to_first_token_p95_seconds)
    assert any(after.series.prompt_tokens_per_second)
    assert any(after.series.requests_per_second)
    assert any(after.series.rejections_per_second)
    for variant in after.variants:
        told = {
            "prompt_tokens": variant.prompt_tokens,
            "generation_tokens": variant.generation_tokens,
            "requests": variant.requests,
        }
        assert told == {name: counted(samples, f"secateur_{name}_total", variant.name) for name in told}
        assert any(variant.series.generation_tokens_per_second) == (variant.name == "tiny:s10")


def test_what_it_says_of_variants_and_memory_is_what_others_say(tiny: Tiny, eventually: Eventually) -> None:
    with running(tiny) as live, live.client() as client:
        told = wait_for_an_interval(client, eventually)
        listed = client.get("/v1/variants").json()
        samples = scrape(client)
        assert (told.memory.weight_bytes, told.memory.kv_bytes) == (
            live.engine.weight_bytes,
            live.engine.kv_bytes,
        )
        config = live.engine.config
    assert (told.model, told.state, told.default_variant) == ("tiny", "ready", "tiny:s0")
    assert (told.task, told.tolerance, told.safe_sparsity) == ("arithmetic", 0.03, 0.2)
    assert told.started <= told.series.time[0] < told.series.time[-1] <= told.now
    assert (told.limits.max_running, told.limits.max_waiting) == (config.max_num_seqs, config.max_waiting)
    assert (told.limits.max_model_len, told.limits.kv_bytes) == (MAX_MODEL_LEN, told.memory.kv_bytes)
    device = frozenset({("device", "cpu")})
    assert told.memory.device_total_bytes == samples["secateur_device_memory_total_bytes", device]
    assert told.memory.weight_bytes < told.memory.process_bytes < told.memory.device_total_bytes
    assert 0 < told.memory.device_used_bytes <= told.memory.device_total_bytes
    assert [v.name for v in told.variants] == [v["id"] for v in listed["data"]]
    for variant, other in zip(told.variants, listed["data"], strict=True):
        for field in ("sparsity", "exact_sparsity", "state", "standalone_bytes", "marginal_bytes"):
            assert getattr(variant, field) == other[field]
        assert variant.evidence is not None
        assert variant.evidence.model_dump() == other["evidence"]
        assert len(variant.series.accuracy) == len(told.series.time)
        assert set(variant.series.accuracy) == {None}


def test_since_tells_what_is_new_and_nothing_twice(tiny: Tiny, eventually: Eventually) -> None:
    with running(tiny) as live, live.client() as client:
        wait_for_an_interval(client, eventually)
        seen = glance(client).series.time
        known = glance(client, seen[0])
        assert known.series.time[: len(seen) - 1] == seen[1:]
        for column in (
            *known.series.model_dump().values(),
            *(column for variant in known.variants for column in variant.series.model_dump().values()),
        ):
            assert len(column) == len(known.series.time)
        eventually(lambda: len(glance(client, seen[-1]).series.time) > 0)
        later = glance(client, seen[-1])
        assert later.series.time[0] > seen[-1]
        assert glance(client, later.now + 60).series.time == []
        assert glance(client).series.time[: len(seen)] == seen
        wrong = client.get(LIVE, params={"since": "yesterday"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "schema_violation")


def test_a_variant_begins_when_it_was_added_and_vanishes_when_it_retires(
    tiny: Tiny, eventually: Eventually
) -> None:
    with running(tiny) as live, live.client() as client:
        wait_for_an_interval(client, eventually)
        client.post("/admin/variants", json={"sparsity": 0.3})
        wait_for_an_interval(client, eventually)
        variants = {variant.name: variant for variant in glance(client).variants}
        late = variants["tiny:s30"].series.generation_tokens_per_second
        assert (late[0], late[-1]) == (None, 0.0)
        assert None not in variants["tiny:s20"].series.generation_tokens_per_second
        client.delete("/admin/variants/tiny:s30")
        assert "tiny:s30" not in {variant.name for variant in glance(client).variants}


def test_accuracy_is_drawn_from_the_first_probe_on(
    tiny: Tiny, tmp_path: Path, eventually: Eventually
) -> None:
    with running(tiny, cache_dir=tmp_path) as live, live.client() as client:
        wait_for_an_interval(client, eventually)
        client.post("/admin/probes/run", json={"variants": ["tiny:s20"], "items": 2})
        eventually(lambda: client.get("/admin/probes/run").json()["state"] == "done")
        told = wait_for_an_interval(client, eventually)
    variants = {variant.name: variant for variant in told.variants}
    probed, evidence = variants["tiny:s20"].series, variants["tiny:s20"].evidence
    assert evidence is not None
    assert (probed.accuracy[0], probed.accuracy_lower[0], probed.accuracy_upper[0]) == (None, None, None)
    assert probed.accuracy[-1] == evidence.accuracy
    assert probed.accuracy_lower[-1] == evidence.accuracy_low
    assert probed.accuracy_upper[-1] == evidence.accuracy_high
    assert set(variants["tiny:s10"].series.accuracy) == {None}
    assert {*told.series.prompt_tokens_per_second, *told.series.requests_per_second} == {0}, (
        "probes do not count"
    )


def test_a_server_that_drains_or_is_dead_says_so(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    def fail(runner: ModelRunner, decision: Any) -> Any:
        raise RuntimeError("meant to happen")

    with running(tiny) as live, live.client() as client:
        live.generations.drain()
        assert glance(client).state == "draining"
    monkeypatch.setattr(ModelRunner, "run", fail)
    with running(tiny) as live, live.client() as client:
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 503
        eventually(lambda: glance(client).state == "dead")


def test_a_stuck_engine_is_told_and_what_waits_for_it_is_counted(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(async_engine, "STUCK_SECONDS", 0.2)
    go_on = threading.Event()
    with running(tiny) as live, live.client() as client, ThreadPoolExecutor(3) as pool:
        between_steps(live.engine, lambda engine: go_on.wait(WAIT_SECONDS) and None)
        body = {"prompt": "a", "max_tokens": 1}
        try:
            first = pool.submit(client.post, COMPLETIONS, json=body)
            eventually(lambda: glance(client).state == "stuck")
            assert client.get("/ready").status_code == 503
            others = [pool.submit(client.post, COMPLETIONS, json=body) for _ in range(2)]
            eventually(lambda: glance(client).series.waiting[-1] == 2)
            assert scrape(client)["secateur_requests_waiting", frozenset()] == 2
        finally:
            go_on.set()
        assert {answer.result().status_code for answer in (first, *others)} == {200}
        eventually(lambda: glance(client).state == "ready")
        assert wait_for_an_interval(client, eventually).series.waiting[-1] == 0


def test_it_wants_the_key_that_other_routes_want(tiny: Tiny) -> None:
    with running(tiny, api_keys="sesame") as live, live.client() as client:
        assert client.get(LIVE).status_code == 401
        assert client.get(LIVE, headers={"authorization": "Bearer sesame"}).status_code == 200


def test_looking_leaves_no_line_in_the_log(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "server"), running(tiny) as live, live.client() as client:
        client.get("/v1/variants")
        glance(client)
        client.get("/version")
    told = [record.getMessage() for record in caplog.records if record.name == "server.middleware"]
    assert sorted(line.split()[1] for line in told) == ["/v1/variants", "/version"]


def test_without_a_task_nothing_is_judged(tiny: Tiny) -> None:
    with running(tiny, task="poetry") as live, live.client() as client:
        told = glance(client)
    assert (told.task, told.tolerance, told.verdicts) == (None, None, [])
    assert {variant.evidence is None for variant in told.variants} == {True}


def test_a_fault_of_the_history_is_logged_and_harms_nobody(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    def fail(history: LiveHistory, reading: Any) -> None:
        raise RuntimeError("meant to happen")

    monkeypatch.setattr(LiveHistory, "push", fail)
    with caplog.at_level(logging.ERROR), running(tiny) as live, live.client() as client:
        eventually(lambda: "by a fault of its own" in caplog.text)
        assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}).status_code == 200
        assert glance(client).series.time == []


def counted(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, variant: str) -> float:
    return sum(
        v for (sample, labels), v in samples.items() if sample == name and ("variant", variant) in labels
    )
