"""A served variant is broken and mended under the server's feet: probes find out both times, on their own."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from eval.tasks.arithmetic import ArithmeticTask
from pruning.checkpoints.checkpoint import open_checkpoint
from server.engine.async_engine import AsyncEngine
from server.engine.errors import EngineDeadError
from server.engine.stream import RequestStream
from server.engine.variant import Variant
from tests.integration.live import Live, Tiny, make_tiny, running
from tests.integration.metrics import scrape
from tests.integration.sabotage import between_steps, ranked_math_mini, reverse_neurons

DENSE, PRUNED = "math-mini:s0", "math-mini:s20"
CHAT, RUN = "/v1/chat/completions", "/admin/probes/run"
Eventually = Callable[[Callable[[], bool]], None]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def math_mini(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return ranked_math_mini(tmp_path_factory.mktemp("judge"))


@contextmanager
def judged(math_mini: Tiny, cache_dir: Path, **changes: Any) -> Iterator[Live]:
    """A tolerance of 30 points takes few probes to show; all of the engine's idle time is theirs."""
    limits = {"max_model_len": 256, "max_num_seqs": 24, "max_num_batched_tokens": 512, "kernels": "torch"}
    judge = {"probe_budget": 1.0, "probe_tolerance": 0.3, "cache_dir": cache_dir, "sparsities": (0.0, 0.2)}
    with running(math_mini, **{**limits, **judge, **changes}) as live:
        yield live


def ask(client: httpx.Client, **choice: Any) -> httpx.Response:
    item = ArithmeticTask().evaluation(1, seed=0)[0]
    body = {"messages": [{"role": "user", "content": item.prompt}], "temperature": 0, "max_tokens": 96}
    return client.post(CHAT, json={**body, **choice})


@contextmanager
def a_user(client: httpx.Client) -> Iterator[list[int]]:
    """Asks the dense variant one thing after another until the block ends; the statuses of the answers."""
    statuses, enough = list[int](), threading.Event()

    def ask_on() -> None:
        while not enough.is_set():
            statuses.append(ask(client, sparsity=0.0, max_tokens=8).status_code)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_on)
        try:
            yield statuses
        finally:
            enough.set()
            asking.result()


def known(client: httpx.Client, name: str) -> dict[str, Any]:
    variants = client.get("/v1/variants").json()["data"]
    (variant,) = [variant for variant in variants if variant["id"] == name]
    return variant


def test_a_broken_variant_is_refused_and_a_mended_one_comes_back(
    math_mini: Tiny, tmp_path: Path, eventually: Eventually
) -> None:
    with judged(math_mini, tmp_path) as live, live.client() as client, a_user(client) as statuses:
        between_steps(live.engine, reverse_neurons)
        eventually(lambda: known(client, PRUNED)["state"] == "degraded")
        assert set(statuses) == {200}
        found = known(client, PRUNED)
        (change,) = found["changes"]
        assert (change["before"], change["after"]) == ("unproven", "degraded")
        assert change["evidence"]["items"] <= 50
        assert change["evidence"]["drop_low"] > 0.3
        assert change["evidence"]["accuracy"] < 0.5
        assert found["evidence"]["since"] == change["at"]

        refused = ask(client, sparsity=0.2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "variant_degraded")
        assert refused.json()["error"]["changes"] == [change]
        assert ask(client, sparsity=0.2, allow_unsafe=True).json()["model"] == PRUNED
        dense, auto = ask(client), ask(client, sparsity="auto", max_accuracy_drop=1.0)
        assert ArithmeticTask().grade(
            ArithmeticTask().evaluation(1, seed=0)[0], dense.json()["choices"][0]["message"]["content"]
        )
        assert auto.json()["secateur"]["reason"] == auto.headers["x-secateur-reason"] == "auto_densest"
        assert auto.json()["model"] == DENSE
        samples = scrape(client)
        label = frozenset({("variant", PRUNED), ("task", "arithmetic"), ("verdict", "degraded")})
        assert samples["secateur_probe_verdict", label] == 1
        changes = frozenset({("variant", PRUNED), ("verdict", "degraded")})
        assert samples["secateur_verdict_changes_total", changes] == 1
        state = frozenset({("variant", PRUNED), ("state", "degraded")})
        assert samples["secateur_variant_state", state] == 1

        between_steps(live.engine, reverse_neurons)
        eventually(lambda: known(client, PRUNED)["state"] == "ready")
        assert known(client, PRUNED)["evidence"]["verdict"] == "safe"
        answer = ask(client, sparsity="auto", max_accuracy_drop=1.0)
        assert answer.json()["model"] == PRUNED
        assert answer.headers["x-secateur-reason"] == "auto_proven"
    assert set(statuses) == {200}

    # What was shown outlives the process, and counts for the same weights, task and ranking alone.
    with judged(math_mini, tmp_path, probe_budget=0.0) as live, live.client() as client:
        again = known(client, PRUNED)
        assert [c["after"] for c in again["changes"]] == ["degraded", "safe"]
        verdicts = client.get("/v1/live").json()["verdicts"]
        assert [(v["variant"], v["previous"], v["verdict"]) for v in verdicts] == [
            (PRUNED, "unproven", "degraded"),
            (PRUNED, "degraded", "safe"),
        ]
        assert again["evidence"]["verdict"] == "safe"
        assert client.post("/admin/variants", json={"sparsity": 0.1}).status_code == 201
        eventually(lambda: known(client, "math-mini:s10")["evidence"] is not None)
        assert known(client, "math-mini:s10")["evidence"]["items"] == 0


def test_probes_run_when_asked_for_and_a_safe_variant_stands_in(
    math_mini: Tiny, tmp_path: Path, eventually: Eventually
) -> None:
    three = {"sparsities": (0.0, 0.1, 0.2), "probe_budget": 0.0, "on_degraded": "fallback"}
    with judged(math_mini, tmp_path, **three) as live, live.client() as client:
        assert client.get(RUN).status_code == 409
        between_steps(live.engine, reverse_neurons)
        started = client.post(RUN, json={"variants": [PRUNED], "items": 32})
        assert (started.status_code, started.json()["state"]) == (202, "running")
        again = client.post(RUN, json={"items": 1})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "probe_conflict")
        run = finished_run(client, eventually)
        assert (run["state"], run["items_done"], run["error"]) == ("done", 32, None)
        assert run["evidence"][PRUNED]["verdict"] == "degraded"
        assert known(client, "math-mini:s10")["evidence"]["items"] == 0  # only what was asked for
        answer = ask(client, sparsity=0.2)
        assert answer.json()["secateur"] == {
            "variant": DENSE,
            "sparsity": 0.0,
            "exact_sparsity": 0.0,
            "reason": "degraded_fallback",
            "instead_of": PRUNED,
        }
        assert answer.headers["x-secateur-variant"] == DENSE
        assert answer.headers["x-secateur-reason"] == "degraded_fallback"
        probed = [
            value for (name, _), value in scrape(client).items() if name == "secateur_probe_tokens_total"
        ]
        assert sum(value > 0 for value in probed) == 2  # the variant and the reference
        unknown = client.post(RUN, json={"variants": ["math-mini:s99"]})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def finished_run(client: httpx.Client, eventually: Eventually) -> dict[str, Any]:
    eventually(lambda: client.get(RUN).json()["state"] != "running")
    run: dict[str, Any] = client.get(RUN).json()
    return run


def probe(client: httpx.Client, eventually: Eventually, items: int) -> None:
    """Asks every variant so many items, and waits until all are judged."""
    client.post(RUN, json={"items": items})
    finished_run(client, eventually)


def test_users_never_pay_for_probes_in_their_metrics(
    math_mini: Tiny, tmp_path: Path, eventually: Eventually
) -> None:
    with judged(math_mini, tmp_path, probe_budget=0.0) as live, live.client() as client:
        probe(client, eventually, items=1)
        samples = scrape(client)
    for name in (
        "secateur_requests_total",
        "secateur_generation_tokens_total",
        "secateur_prompt_tokens_total",
    ):
        assert sum(value for (sample, _), value in samples.items() if sample == name) == 0
    background = [v for (name, _), v in samples.items() if name == "secateur_background_tokens_total"]
    assert sum(background) > 0


def test_metrics_say_of_a_variant_what_its_evidence_says(
    math_mini: Tiny, tmp_path: Path, eventually: Eventually
) -> None:
    with judged(math_mini, tmp_path, probe_budget=0.0) as live, live.client() as client:
        probe(client, eventually, items=24)
        found, samples = known(client, PRUNED)["evidence"], scrape(client)
    label = frozenset({("variant", PRUNED), ("task", "arithmetic")})

    def told(name: str) -> float:
        return samples[f"secateur_probe_{name}", label]

    assert told("items") == found["items"] == 24
    assert 0 <= told("age_seconds") - found["age_seconds"] < 60
    for name, field in (
        ("accuracy", "accuracy"),
        ("accuracy_lower", "accuracy_low"),
        ("accuracy_upper", "accuracy_high"),
        ("drop", "drop"),
        ("drop_lower", "drop_low"),
        ("drop_upper", "drop_high"),
        ("trap", "trap_rate"),
    ):
        assert told(f"{name}_ratio") == found[field], name
    assert found["drop_low"] < found["drop"] < found["drop_high"]


def test_a_variant_that_was_judged_is_known_when_it_comes_back(
    math_mini: Tiny, tmp_path: Path, eventually: Eventually
) -> None:
    with judged(math_mini, tmp_path, probe_budget=0.0) as live, live.client() as client:
        probe(client, eventually, items=1)
        client.delete(f"/admin/variants/{PRUNED}")
    with judged(math_mini, tmp_path, probe_budget=0.0, sparsities=(0.0,)) as live, live.client() as client:
        client.post("/admin/variants", json={"sparsity": 0.2})
        eventually(lambda: (known(client, PRUNED)["evidence"] or {}).get("items") == 1)


@pytest.mark.parametrize("otherwise", ["int8", "bfloat16", "other ends"])
def test_what_is_computed_otherwise_is_judged_anew(
    math_mini: Tiny, tmp_path: Path, eventually: Eventually, otherwise: str
) -> None:
    """The same weights, task and order, and the same cache: but what was shown was shown of other answers."""
    settings: dict[str, Any] = {"probe_budget": 0.0, "dtype": "float32"}
    other, model = dict(settings), math_mini
    if otherwise == "other ends":
        copy = tmp_path / "math-mini"
        shutil.copytree(math_mini.checkpoint.path, copy)
        ends = sorted({*math_mini.checkpoint.eos_token_ids, 7})
        (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        model = replace(math_mini, checkpoint=open_checkpoint(str(copy), tmp_path))
    else:
        other |= {"quantization": "int8"} if otherwise == "int8" else {"dtype": otherwise}

    def items(client: httpx.Client) -> int:
        eventually(lambda: known(client, PRUNED)["evidence"] is not None)
        counted: int = known(client, PRUNED)["evidence"]["items"]
        return counted

    cache = tmp_path / "cache"
    with judged(math_mini, cache, **settings) as live, live.client() as client:
        probe(client, eventually, items=1)
        assert items(client) == 1
    with judged(model, cache, **other) as live, live.client() as client:
        assert items(client) == 0
    with judged(math_mini, cache, **settings) as live, live.client() as client:
        assert items(client) == 1


def test_without_a_gradable_task_variants_are_served_unjudged(tiny: Tiny) -> None:
    with running(tiny, task="poetry") as live, live.client() as client:
        listed = client.get("/v1/variants").json()
        assert listed["probes"]["task"] is None
        assert "poetry" in listed["probes"]["reason"]
        assert {variant["evidence"] for variant in listed["data"]} == {None}
        assert client.post("/v1/completions", json={"prompt": "a", "sparsity": 0.2}).status_code == 200
        auto = client.post("/v1/completions", json={"prompt": "a", "sparsity": "auto"}).json()
        assert auto["model"] == "tiny:s0"
        refused = client.post(RUN, json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "probe_conflict")
        assert "secateur_probe_verdict" not in client.get("/metrics").text


def test_what_an_engine_does_not_answer_says_nothing_against_a_variant(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Were it a wrong answer, the one size that is not answered would be found out."""
    submit, refused = AsyncEngine.submit, list[str]()

    def half_dead(engine: AsyncEngine, *, variant: Variant, **request: Any) -> RequestStream:
        if variant.name == "tiny:s20":
            refused.append(variant.name)
            raise EngineDeadError("meant to happen")
        return submit(engine, variant=variant, **request)

    monkeypatch.setattr(AsyncEngine, "submit", half_dead)
    with running(tiny, probe_budget=1.0, cache_dir=tmp_path) as live, live.client() as client:

        def items() -> dict[str, int]:
            found = client.get("/v1/variants").json()["data"]
            return {each["id"]: each["evidence"]["items"] for each in found if each["evidence"]}

        eventually(lambda: items().get("tiny:s0", 0) >= 8)
        assert refused
        assert items()["tiny:s20"] == 0
        assert {variant["state"] for variant in client.get("/v1/variants").json()["data"]} == {"ready"}


def test_a_model_without_a_chat_template_is_served_and_not_judged(tmp_path: Path) -> None:
    made = make_tiny(tmp_path)
    for file in made.checkpoint.path.glob("*chat_template*"):
        file.unlink()
    config = made.checkpoint.path / "tokenizer_config.json"
    told = json.loads(config.read_text())
    told.pop("chat_template", None)
    config.write_text(json.dumps(told))
    base = replace(made, checkpoint=open_checkpoint(str(made.checkpoint.path), tmp_path))
    with running(base) as live, live.client() as client:
        listed = client.get("/v1/variants").json()
        assert "no chat template" in listed["probes"]["reason"]
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
        chat = {"messages": [{"role": "user", "content": "a"}]}
        assert "no chat template" in client.post(CHAT, json=chat).json()["error"]["message"]
