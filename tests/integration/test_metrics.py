"""/metrics tells what clients saw."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from server.engine.request import FinishReason
from server.errors import error_codes
from server.variants import VariantState
from tests.integration.live import MAX_MODEL_LEN, Live, Tiny, running
from tests.integration.metrics import scrape
from tests.integration.sse import chunks

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def by_variant(client: httpx.Client, name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for (sample, labels), value in scrape(client).items():
        if sample == name:
            variant = dict(labels)["variant"]
            found[variant] = found.get(variant, 0.0) + value
    return {variant: value for variant, value in found.items() if value}


def test_tokens_counted_by_clients_are_the_tokens_in_metrics(
    tiny: Tiny, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    usages: list[tuple[str, dict[str, int]]] = []
    leavers: list[tuple[str, int]] = []

    def ask(client: httpx.Client, number: int) -> None:
        sparsity = (0, 0.1, 0.2)[number % 3]
        body: dict[str, Any] = {"max_tokens": 5 + number, "n": 1 + number % 2, "sparsity": sparsity}
        prompt = (
            {"prompt": ["abc", "de"]} if number % 4 < 2 else {"messages": [{"role": "user", "content": "f"}]}
        )
        path = COMPLETIONS if "prompt" in prompt else CHAT
        if number % 5 == 0:
            *_, last = chunks(client, path, {**body, **prompt, "stream_options": {"include_usage": True}})
        else:
            last = client.post(path, json={**body, **prompt}).json()
        usages.append((last["model"], last["usage"]))

    def leave(client: httpx.Client, number: int) -> None:
        variant = f"tiny:s{(0, 10, 20)[number]}"
        body = {"prompt": "abc", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True, "logprobs": 0}
        with client.stream("POST", COMPLETIONS, json={**body, "model": variant, "stream": True}) as response:
            lines = response.iter_lines()
            seen = sum(next(lines).count('"text_offset"') for _ in range(9))
        leavers.append((variant, seen))

    with running(tiny, max_waiting=100) as live, live.client() as client, ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(ask, client, number) for number in range(20)]
        jobs += [pool.submit(leave, client, number) for number in range(3)]
        for job in jobs:
            job.result()
        eventually(lambda: live.generations.num_open == 0)
        prompt_tokens = by_variant(client, "secateur_prompt_tokens_total")
        generation_tokens = by_variant(client, "secateur_generation_tokens_total")
        samples = scrape(client)

    for variant in ("tiny:s0", "tiny:s10", "tiny:s20"):
        mine = [usage for model, usage in usages if model == variant]
        assert prompt_tokens[variant] == sum(usage["prompt_tokens"] for usage in mine) + len("abc")
        # What reached a leaver's stream is counted, also what was then lost on the way.
        completed = sum(usage["completion_tokens"] for usage in mine)
        seen = sum(number for name, number in leavers if name == variant)
        assert completed + seen <= generation_tokens[variant]
        first = samples["secateur_time_to_first_token_seconds_count", frozenset({("variant", variant)})]
        later = samples["secateur_inter_token_seconds_count", frozenset({("variant", variant)})]
        assert first + later <= generation_tokens[variant]  # a first delivery may hold several tokens
        ended = {
            reason.value: samples[
                "secateur_requests_total",
                frozenset({("variant", variant), ("finish_reason", reason.value)}),
            ]
            for reason in FinishReason
        }
        assert first == sum(ended.values())
        assert ended["abort"] == 1
        assert ended["error"] == 0
        assert samples["secateur_request_seconds_count", frozenset({("variant", variant)})] == sum(
            ended.values()
        )


def test_completed_answers_are_counted_to_the_token(tiny: Tiny) -> None:
    with running(tiny) as live, live.client() as client:
        expected: dict[str, list[int]] = {}
        for number in range(9):
            body = {
                "prompt": ["abc", "d"],
                "max_tokens": 3 + number,
                "n": 2,
                "sparsity": (0, 0.1, 0.2)[number % 3],
            }
            answer = client.post(COMPLETIONS, json=body).json()
            counted = expected.setdefault(answer["model"], [0, 0])
            counted[0] += answer["usage"]["prompt_tokens"]
            counted[1] += answer["usage"]["completion_tokens"]
        assert by_variant(client, "secateur_prompt_tokens_total") == {k: v[0] for k, v in expected.items()}
        assert by_variant(client, "secateur_generation_tokens_total") == {
            k: v[1] for k, v in expected.items()
        }
        assert by_variant(client, "secateur_requests_total") == dict.fromkeys(expected, 12.0)


def test_gauges_show_what_runs_and_fall_back_to_zero(
    tiny: Tiny, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    body = {"prompt": "abc", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True, "stream": True}
    with running(tiny) as live, live.client() as client:
        with client.stream("POST", COMPLETIONS, json={**body, "n": 10, "sparsity": 0.1}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            # The ten are submitted one after another, so the first step may run before the last is there.
            eventually(lambda: by_variant(client, "secateur_requests_running") == {"tiny:s10": 8})
            samples = scrape(client)
            assert samples["secateur_requests_waiting", frozenset()] == 2
            assert 0 < samples["secateur_kv_usage_ratio", frozenset()] <= 1
        eventually(lambda: live.generations.num_open == 0)
        eventually(lambda: by_variant(client, "secateur_requests_running") == {})
        samples = scrape(client)
        assert samples["secateur_requests_waiting", frozenset()] == 0
        assert samples["secateur_kv_usage_ratio", frozenset()] == 0


def test_memory_and_variants_are_those_of_the_engine(client: httpx.Client, live: Live) -> None:
    samples = scrape(client)
    assert samples["secateur_weight_bytes", frozenset()] == live.engine.weight_bytes
    assert samples["secateur_kv_bytes", frozenset()] == live.engine.kv_bytes
    own, used, total = (
        samples[f"secateur_device_memory_{kind}_bytes", frozenset({("device", "cpu")})]
        for kind in ("process", "used", "total")
    )
    assert live.engine.weight_bytes + live.engine.kv_bytes < own < total
    assert 0 < used <= total
    for variant in client.get("/v1/variants").json()["data"]:
        label = ("variant", variant["id"])
        assert samples["secateur_variant_standalone_bytes", frozenset({label})] == variant["standalone_bytes"]
        assert samples["secateur_variant_marginal_bytes", frozenset({label})] == 0
        assert samples["secateur_variant_sparsity_ratio", frozenset({label})] == variant["exact_sparsity"]
        # All but the norms and biases multiplies, and the head is the embedding: float32, two FLOPs a weight.
        read = samples["secateur_weight_bytes_per_token", frozenset({label})]
        assert read == variant["standalone_bytes"]
        assert 0.95 < samples["secateur_flops_per_token", frozenset({label})] / (read / 4 * 2) < 1
        for ratio in ("flops", "bytes"):
            relative = samples[f"secateur_variant_relative_{ratio}_ratio", frozenset({label})]
            assert (relative == 1) == (variant["sparsity"] == 0)
            assert 1 - variant["exact_sparsity"] <= relative <= 1
        states = {
            state.value: samples["secateur_variant_state", frozenset({label, ("state", state.value)})]
            for state in VariantState
        }
        assert states == {"ready": 1, "degraded": 0, "retiring": 0}


def test_series_are_there_before_the_first_request_with_closed_labels(tiny: Tiny) -> None:
    with running(tiny) as live, live.client() as client:
        client.post(COMPLETIONS, json={"prompt": "a", "model": "made-up"})
        samples = scrape(client)
    reasons = {dict(labels)["reason"] for name, labels in samples if name == "secateur_rejections_total"}
    assert reasons == set(error_codes())
    variants = {value for _, labels in samples for label, value in labels if label == "variant"}
    assert variants == {"tiny:s0", "tiny:s10", "tiny:s20", "tiny:s35"}
    assert sum(name == "secateur_requests_total" for name, _ in samples) == 4 * len(FinishReason)


def test_guesses_that_come_true_are_counted(tiny: Tiny) -> None:
    body = {"prompt": "abcabcabcabcabc", "max_tokens": 48, "temperature": 0, "ignore_eos": True}
    with running(tiny, prompt_lookup_tokens=12) as live, live.client() as client:
        answer = client.post(COMPLETIONS, json=body).json()
        samples = scrape(client)
    right = samples["secateur_right_guesses_total", frozenset()]
    steps = samples["secateur_step_seconds_count", frozenset()]
    assert 0 < right <= samples["secateur_guessed_tokens_total", frozenset()]
    assert steps + right == answer["usage"]["completion_tokens"]
