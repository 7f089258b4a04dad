"""/metrics tells what clients saw."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from server.engine.engine import Engine
from server.engine.request import FinishReason
from server.errors import error_codes
from server.monitoring import gauges, live_source, metrics
from server.monitoring.memory import DeviceMemory
from server.variants import VariantState
from tests.integration.live import MAX_MODEL_LEN, WAIT_SECONDS, Live, Tiny, running
from tests.integration.metrics import scrape
from tests.integration.mixed_load import COMPLETIONS, send_mixed_load
from tests.integration.sabotage import between_steps


def by_variant(client: httpx.Client, name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for (sample, labels), value in scrape(client).items():
        if sample == name:
            variant = dict(labels)["variant"]
            found[variant] = found.get(variant, 0.0) + value
    return {variant: value for variant, value in found.items() if value}


def test_metrics_count_what_clients_count(
    tiny: Tiny, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """200 mixed requests: every token, ending and refusal; and no series that was not there before."""
    served = {"sparsities": (0.0, 0.1, 0.15, 0.2), "max_waiting": 200, "prompt_lookup_tokens": 12}
    with running(tiny, **served) as live, live.client() as client:
        client.post(COMPLETIONS, json={"prompt": "warm", "sparsity": 0.1})
        before = scrape(client)
        counted = send_mixed_load(client)
        eventually(lambda: live.generations.num_open == 0)
        after = scrape(client)

    assert after.keys() == before.keys()
    grown = {series: after[series] - before[series] for series in after}

    def by_variant(name: str) -> Counter[str]:
        found = {dict(labels)["variant"]: value for (each, labels), value in grown.items() if each == name}
        return Counter({variant: int(value) for variant, value in found.items() if value})

    def by_label(name: str, *wanted: str) -> dict[tuple[str, ...], float]:
        told = {labels: value for (each, labels), value in grown.items() if each == name and value}
        return {tuple(dict(labels)[key] for key in wanted): value for labels, value in told.items()}

    [left] = counted.left
    tokens = by_variant("secateur_generation_tokens_total")
    # What reached a leaver's stream is counted, also what was then lost on the way.
    assert tokens.pop(left) >= counted.seen[left] > 0
    assert tokens == counted.completion_tokens
    assert by_variant("secateur_prompt_tokens_total") == counted.prompt_tokens
    ended = by_label("secateur_requests_total", "variant", "finish_reason")
    assert ended == {**counted.ended, (left, "abort"): counted.left[left]}
    assert {reason for _, reason in ended} == {"stop", "length", "loop", "abort"}
    assert by_label("secateur_rejections_total", "reason") == {(c,): n for c, n in counted.refused.items()}
    assert len(counted.refused) >= 6
    answers = Counter({variant: 0 for variant, _ in ended})
    for (variant, _), number in ended.items():
        answers[variant] += int(number)
    for histogram in ("request", "queue", "time_to_first_token"):
        assert by_variant(f"secateur_{histogram}_seconds_count") == answers
    gaps = by_variant("secateur_inter_token_seconds_count")
    assert all(gaps[variant] + answers[variant] <= tokens[variant] for variant in tokens)
    first, later, whole = (
        by_label(f"secateur_{name}_seconds_sum", "variant")
        for name in ("time_to_first_token", "inter_token", "request")
    )
    assert all(first[variant] + later[variant] <= whole[variant] for variant in whole)
    traps = by_label("secateur_traps_total", "variant", "trap")
    assert {trap for _, trap in traps} == {"loop_before_answer", "missing_stop"}
    assert sum(traps.values()) == sum(n for (_, reason), n in ended.items() if reason in ("length", "loop"))


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


def test_answers_that_never_begin_are_slow_unless_their_clients_were_impatient(
    tiny: Tiny, eventually: Callable[[Callable[[], bool]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stands still: one client leaves soon, one late, and one is told that the engine has died."""
    dying = threading.Event()

    def stall_and_die(engine: Engine) -> None:
        dying.wait()
        raise RuntimeError("meant to happen")

    def leave_after(seconds: float, **fields: object) -> None:
        with pytest.raises(httpx.ReadTimeout):
            client.post(COMPLETIONS, json={**body, **fields}, timeout=seconds)

    def slow_and_all() -> tuple[float, float]:
        samples = scrape(client)
        name, variant = "secateur_time_to_first_token_seconds", ("variant", "tiny:s0")
        within = samples[f"{name}_bucket", frozenset({variant, ("le", "1.0")})]
        count = samples[f"{name}_count", frozenset({variant})]
        return count - within, count

    body = {"prompt": "abc", "max_tokens": 2}
    with running(tiny) as live, live.client() as client, ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patched:  # who wants no token waits for none
            patched.setattr(metrics, "FIRST_TOKEN_OBJECTIVE_SECONDS", 0.0)
            assert client.post(COMPLETIONS, json={**body, "max_tokens": 0, "echo": True}).status_code == 200
        between_steps(live.engine, stall_and_die)
        try:
            with monkeypatch.context() as patched:  # a busy machine must not make 0.1 s as long as 1
                patched.setattr(metrics, "FIRST_TOKEN_OBJECTIVE_SECONDS", WAIT_SECONDS)
                leave_after(0.1)
                eventually(lambda: live.generations.num_open == 0)
            assert slow_and_all() == (0, 0)
            with monkeypatch.context() as patched:
                patched.setattr(metrics, "FIRST_TOKEN_OBJECTIVE_SECONDS", 0.0)
                leave_after(0.1, max_tokens=0, echo=True)
                eventually(lambda: live.generations.num_open == 0)
            assert slow_and_all() == (0, 0)
            waiting = pool.submit(client.post, COMPLETIONS, json=body)
            eventually(lambda: live.generations.num_open == 1)
            leave_after(metrics.FIRST_TOKEN_OBJECTIVE_SECONDS + 0.1)
            eventually(lambda: slow_and_all() == (1, 1))
        finally:
            dying.set()
        assert waiting.result().json()["error"]["code"] == "engine_down"
        eventually(lambda: slow_and_all() == (2, 2))


def test_memory_and_variants_are_those_of_the_engine(client: httpx.Client, live: Live) -> None:
    samples = scrape(client)
    assert samples["secateur_engine_up", frozenset()] == 1
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
        assert samples["secateur_variant_default", frozenset({label})] == variant["default"]
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


def test_every_start_has_a_time_of_its_own(tiny: Tiny) -> None:
    """What SecateurRestarting counts the changes of."""
    begun: list[float] = []
    for _ in range(2):
        before = time.time()
        with running(tiny) as live, live.client() as client:
            told = {scrape(client)["secateur_start_time_seconds", frozenset()] for _ in range(2)}
        [start] = told
        assert before <= start <= time.time()
        begun.append(start)
    assert begun[0] < begun[1]


def test_series_are_there_before_the_first_request_with_closed_labels(tiny: Tiny) -> None:
    with running(tiny) as live, live.client() as client:
        client.post(COMPLETIONS, json={"prompt": "a", "model": "made-up"})
        samples = scrape(client)
    reasons = {dict(labels)["reason"] for name, labels in samples if name == "secateur_rejections_total"}
    assert reasons == set(error_codes())
    variants = {value for _, labels in samples for label, value in labels if label == "variant"}
    assert variants == {"tiny:s0", "tiny:s10", "tiny:s20", "tiny:s35"}
    assert sum(name == "secateur_requests_total" for name, _ in samples) == 4 * len(FinishReason)


def test_where_the_device_answers_nothing_all_else_is_told(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fault on CUDA, when it matters most what the page says of the engine."""

    def broken(device: torch.device) -> DeviceMemory:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for module in (gauges, live_source):
        monkeypatch.setattr(module, "device_memory", broken)
    with running(tiny) as live, live.client() as client:
        samples = scrape(client)
        assert samples["secateur_engine_up", frozenset()] == 1
        assert not any(name.startswith("secateur_device_memory") for name, _ in samples)
        assert client.get("/v1/live").json()["memory"]["device_total_bytes"] == 0


def test_guesses_that_come_true_are_counted(tiny: Tiny) -> None:
    body = {"prompt": "abcabcabcabcabc", "max_tokens": 48, "temperature": 0, "ignore_eos": True}
    with running(tiny, prompt_lookup_tokens=12) as live, live.client() as client:
        answer = client.post(COMPLETIONS, json=body).json()
        samples = scrape(client)
    right = samples["secateur_right_guesses_total", frozenset()]
    steps = samples["secateur_step_seconds_count", frozenset()]
    assert 0 < right <= samples["secateur_guessed_tokens_total", frozenset()]
    assert steps + right == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("caching", [True, False])
def test_a_prompt_that_was_computed_before_is_found_again(tiny: Tiny, caching: bool) -> None:
    """In whole blocks of 16, and never its last token, which has to be computed for what comes next."""
    body = {"prompt": "z" * 97, "max_tokens": 2, "ignore_eos": True, "sparsity": 0.2}
    with running(tiny, prefix_caching=caching) as live, live.client() as client:
        told = [client.post(COMPLETIONS, json=body).json()["usage"] for _ in range(2)]
        samples = scrape(client)
    found = 96 if caching else 0
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in told] == [0, found]
    assert samples["secateur_prefix_cache_hits_total", frozenset()] == found
    assert samples["secateur_prefix_cache_queries_total", frozenset()] == (2 * 97 if caching else 0)


def test_solo_steps_are_the_decoding_steps_of_one_variant_alone(tiny: Tiny) -> None:
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0, "ignore_eos": True, "sparsity": 0.2}
    with running(tiny, prompt_lookup_tokens=0) as live, live.client() as client:
        client.post(COMPLETIONS, json=body)
        samples = scrape(client)
    alone = frozenset({("variant", "tiny:s20"), ("rows", "1")})
    assert samples["secateur_solo_steps_total", alone] == body["max_tokens"] - 1
    seconds = samples["secateur_solo_step_seconds_total", alone]
    assert 0 < seconds <= samples["secateur_step_seconds_sum", frozenset()]
    steps = sum(value for (name, _), value in samples.items() if name == "secateur_solo_steps_total")
    assert steps == samples["secateur_solo_steps_total", alone]


def test_a_request_that_is_refused_for_its_second_prompt_counts_nowhere(tiny: Tiny) -> None:
    with running(tiny) as live, live.client() as client:
        before = scrape(client)
        refused = client.post(COMPLETIONS, json={"prompt": ["short", "x" * 2 * MAX_MODEL_LEN]})
        after = scrape(client)
    assert refused.status_code == 400
    for name in ("secateur_requests_total", "secateur_prompt_tokens_total", "secateur_request_seconds_count"):
        assert {s: v for s, v in after.items() if s[0] == name} == {
            s: v for s, v in before.items() if s[0] == name
        }
