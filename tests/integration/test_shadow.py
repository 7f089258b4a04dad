"""The dense variant scores pruned answers behind the users' backs; how far they agree is told."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.engine.errors import EngineDeadError
from server.judging import shadow
from tests.integration.live import Tiny, running
from tests.integration.metrics import scrape

COMPLETIONS = "/v1/completions"
Eventually = Callable[[Callable[[], bool]], None]


def ask(client: httpx.Client, sparsity: float, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "abc", "max_tokens": 20, "ignore_eos": True, "seed": 1, "sparsity": sparsity, **fields}
    answer: dict[str, Any] = client.post(COMPLETIONS, json=body).json()
    return answer


def agreements(client: httpx.Client) -> dict[str, dict[str, Any] | None]:
    return {v["id"]: v["agreement"] for v in client.get("/v1/variants").json()["data"]}


def answers(client: httpx.Client, variant: str, outcome: str) -> float:
    key = frozenset({("variant", variant), ("outcome", outcome)})
    return scrape(client)["secateur_shadow_answers_total", key]


def test_a_share_of_pruned_answers_is_scored_and_told(tiny: Tiny, eventually: Eventually) -> None:
    # 0.001 rounds to all neurons: the dense network by another name.
    with running(tiny, shadow_share=1.0, sparsities=(0.0, 0.001, 0.2)) as live, live.client() as client:
        ask(client, 0.0)
        for sparsity in (0.001, 0.2):
            ask(client, sparsity, n=2)
        eventually(lambda: answers(client, "tiny:s20", "scored") == 2)
        found = agreements(client)
        assert found["tiny:s0"] is None
        twin, pruned = found["tiny:s0.1"], found["tiny:s20"]
        assert twin
        assert pruned
        assert (twin["answers"], twin["tokens"], twin["top1_agreement"]) == (2, 40, 1.0)
        assert twin["worst_kl_nats"] == pytest.approx(0, abs=1e-5)
        assert (pruned["answers"], pruned["tokens"]) == (2, 40)
        assert 0.01 < pruned["kl_nats"] < pruned["worst_kl_nats"]
        assert pruned["top1_agreement"] < 1
        samples = scrape(client)
        of_pruned = frozenset({("variant", "tiny:s20")})
        assert samples["secateur_shadow_tokens_total", of_pruned] == 40
        assert samples["secateur_shadow_kl_nats_total", of_pruned] == pytest.approx(40 * pruned["kl_nats"])
        agreed = samples["secateur_shadow_agreements_total", of_pruned]
        assert agreed == pytest.approx(40 * pruned["top1_agreement"])
        worst = [samples[f"secateur_shadow_worst_{what}_total", of_pruned] for what in ("tokens", "kl_nats")]
        assert worst == [8, pytest.approx(8 * pruned["worst_kl_nats"])]  # a fifth
        assert samples["secateur_generation_tokens_total", frozenset({("variant", "tiny:s0")})] == 20


def test_nothing_is_scored_without_the_dense_variant(tiny: Tiny) -> None:
    narrow = {"sparsities": (0.1, 0.2), "shadow_share": 1.0}
    with running(tiny, **narrow) as live, live.client() as client:
        for _ in range(2):  # the second is answered after the first would have been scored
            ask(client, 0.2)
        assert live.engine.num_unfinished == 0
        assert [answers(client, "tiny:s20", outcome) for outcome in ("scored", "dropped", "failed")] == [
            0
        ] * 3


def test_an_answer_that_cannot_be_scored_is_counted_and_the_next_one_is_scored(
    tiny: Tiny, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    rescore, asked = shadow.rescore, list[str]()

    async def refusing(*args: Any, request_id: str) -> Any:
        asked.append(request_id)
        if len(asked) == 1:
            raise EngineDeadError("meant to happen")
        return await rescore(*args, request_id=request_id)

    monkeypatch.setattr(shadow, "rescore", refusing)
    with running(tiny, shadow_share=1.0) as live, live.client() as client:
        ask(client, 0.2)
        eventually(lambda: answers(client, "tiny:s20", "failed") == 1)
        ask(client, 0.2)
        eventually(lambda: answers(client, "tiny:s20", "scored") == 1)
        assert answers(client, "tiny:s20", "failed") == 1


def test_what_nobody_has_time_for_is_dropped_and_counted(
    tiny: Tiny, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MAX_WAITING", 0)
    with running(tiny, shadow_share=1.0) as live, live.client() as client:
        ask(client, 0.2)
        eventually(lambda: answers(client, "tiny:s20", "dropped") == 1)
        assert agreements(client)["tiny:s20"] is None
