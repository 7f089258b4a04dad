"""A real engine answers general prompts and scores the answers; what it finds is told, and kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from eval.task import TaskError
from tests.integration.live import Tiny, running
from tests.integration.metrics import scrape

RUN = "/admin/probes/run"
Eventually = Callable[[Callable[[], bool]], None]


def guards(client: httpx.Client) -> dict[str, dict[str, Any] | None]:
    return {variant["id"]: variant["guard"] for variant in client.get("/v1/variants").json()["data"]}


def run_probes(client: httpx.Client, items: int, eventually: Eventually) -> None:
    assert client.post(RUN, json={"items": items}).status_code == 202
    eventually(lambda: client.get(RUN).json()["state"] == "done")


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """A file of one, so that all runs see the same."""
    file = tmp_path / "general.jsonl"
    file.write_text(json.dumps({"prompt": "Tell me of the sea."}))
    return file


def test_variants_are_held_against_dense_on_prompts_beside_the_task(
    tiny: Tiny, tmp_path: Path, prompt: Path, eventually: Eventually
) -> None:
    # 0.001 rounds to all neurons: the dense network by another name.
    options = {"sparsities": (0.0, 0.001, 0.6), "cache_dir": tmp_path, "guard_prompts": prompt}
    with running(tiny, **options) as live, live.client() as client:
        assert set(guards(client).values()) == {None}
        run_probes(client, 1, eventually)
        found = guards(client)
        twin, pruned = found["tiny:s0.1"], found["tiny:s60"]
        assert twin
        assert found["tiny:s0"]
        assert {**found["tiny:s0"], "age_seconds": 0} == {**twin, "age_seconds": 0}  # one network, one key
        assert pruned
        assert twin["answers"] == pruned["answers"] == 1
        assert twin["top1_agreement"] == 1.0
        assert twin["kl_nats"] == pytest.approx(0, abs=1e-5)
        assert pruned["top1_agreement"] < 1
        assert pruned["kl_nats"] > 0.01
        assert 0 < pruned["tokens"] <= 64
        samples = scrape(client)
        for name, key in {
            "agreement_ratio": "top1_agreement",
            "kl_nats": "kl_nats",
            "tokens": "tokens",
        }.items():
            told = samples[f"secateur_guard_{name}", frozenset({("variant", "tiny:s60")})]
            assert told == pytest.approx(pruned[key])
        assert client.get("/v1/variants").json()["probes"]["guard_prompts"] == 1
    with running(tiny, **options) as live, live.client() as client:
        again = guards(client)["tiny:s60"]
        assert again
        assert again["kl_nats"] == pruned["kl_nats"]


def test_without_a_file_they_are_the_task_s_distractors(tiny: Tiny, tmp_path: Path) -> None:
    with running(tiny, cache_dir=tmp_path) as live, live.client() as client:
        assert client.get("/v1/variants").json()["probes"]["guard_prompts"] >= 60


def test_a_file_that_cannot_be_read_is_told_at_the_start(tiny: Tiny, prompt: Path) -> None:
    prompt.write_text(json.dumps({"text": "a"}))
    with pytest.raises(TaskError, match="no text in field 'prompt'"), running(tiny, guard_prompts=prompt):
        pass
