"""`secateur eval` and `secateur study` on real engines: in this process, behind a real server, and killed."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from eval.endpoint import Endpoint, open_endpoint
from eval.generate import Answer, Generate, GenerateError
from eval.study.results import load
from eval.subject import Strategy
from eval.tasks.arithmetic import ArithmeticTask
from server.__main__ import EXIT_FAILED, main
from server.judging.local import LocalSubject
from server.loading.profiles import open_model
from server.service import load_model
from server.settings import ServeSettings
from tests.integration.live import Live, Tiny, running
from tests.tiny import tiny_ranking

ROOT = Path(__file__).parents[2]
PROMPTS = [f"What is {i} and {i}?" for i in range(6)]
STRATEGY = Strategy("tiny", "random", "forward")
pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")


def at(url: str, ask: Callable[[Endpoint], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_endpoint(url, api_key=None, stop_on_loop=True, connections=8) as endpoint:
            return await ask(endpoint)

    return asyncio.run(run())


async def answers(generate: Generate, variant: str) -> list[Answer]:
    asked = (generate(prompt, variant=variant, max_tokens=24) for prompt in PROMPTS)
    return list(await asyncio.gather(*asked))


def subject(tiny: Tiny, live: Live, **changes: Any) -> LocalSubject:
    made = LocalSubject(
        STRATEGY, (0.1, 0.2), tiny.checkpoint, tiny.ranking, "uniform", live.engine.config, stop_on_loop=True
    )
    return replace(made, **changes)


def test_a_url_and_an_engine_in_this_process_answer_alike(tiny: Tiny, live: Live) -> None:
    async def in_turn(generate: Generate) -> list[Answer]:
        """One by one: which requests share a step may decide where two tokens are as likely (decision 2)."""
        return [await generate(prompt, variant="tiny:s20", max_tokens=24) for prompt in PROMPTS]

    async def here() -> list[Answer]:
        async with subject(tiny, live).open() as model:
            return await in_turn(model)

    there = at(live.url, in_turn)
    assert asyncio.run(here()) == there
    assert {answer.completion_tokens for answer in there} == {24}


def test_a_server_tells_what_its_variants_are(tiny: Tiny, live: Live) -> None:
    async def here() -> Any:
        async with subject(tiny, live).open() as model:
            return model.facts(0.2)

    async def there(endpoint: Endpoint) -> Any:
        return endpoint.variant_at(0.2)

    assert at(live.url, there) == asyncio.run(here())


def test_widths_mix_in_one_engine_and_each_is_itself(tiny: Tiny, live: Live) -> None:
    async def together() -> tuple[list[Answer], list[Answer]]:
        async with subject(tiny, live).open() as model:
            return tuple(await asyncio.gather(answers(model, "tiny:s10"), answers(model, "tiny:s20")))  # type: ignore[return-value]

    async def alone(sparsity: float) -> list[Answer]:
        async with subject(tiny, live, sparsities=(sparsity,)).open() as model:
            return await answers(model, f"tiny:s{100 * sparsity:g}")

    assert asyncio.run(together()) == (asyncio.run(alone(0.1)), asyncio.run(alone(0.2)))


def test_a_busy_server_is_waited_for(tiny: Tiny) -> None:
    async def ask(endpoint: Endpoint) -> list[Answer]:
        asked = (endpoint(prompt, variant="tiny:s10", max_tokens=2) for prompt in PROMPTS[:3])
        return list(await asyncio.gather(*asked))

    with running(tiny, max_num_seqs=1, max_waiting=0, max_num_batched_tokens=16) as busy:
        assert len(at(busy.url, ask)) == 3


def test_what_a_server_does_not_have_is_named(live: Live) -> None:
    async def unknown_sparsity(endpoint: Endpoint) -> object:
        return endpoint.variant_at(0.3)

    with pytest.raises(GenerateError, match=r"does not serve sparsity 0\.3, only 0, 0\.1, 0\.2, 0\.35"):
        at(live.url, unknown_sparsity)
    with pytest.raises(GenerateError, match="tiny:s99"):
        at(live.url, lambda endpoint: endpoint("a", variant="tiny:s99", max_tokens=2))


def test_where_no_server_is_it_says_so() -> None:
    with pytest.raises(GenerateError, match="is the server running there"):
        at("http://127.0.0.1:9", lambda endpoint: endpoint("a", variant="x", max_tokens=2))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the profile of math-mini is measured once."""
    directory = tmp_path_factory.mktemp("evaluation")
    places = ["--cache-dir", str(directory), "--out", str(directory / "profile.safetensors")]
    assert main(["profile", "--num-prompts", "6", *places]) == 0
    return directory


def study_arguments(cache: Path, out: Path, *more: str) -> list[str]:
    return [
        *("study", "--profile", str(cache / "profile.safetensors"), "--cache-dir", str(cache)),
        *("--out", str(out), "--sparsities", "0.1,0.6", "--random-seeds", "42", "--threads", "1", *more),
    ]


def test_eval_grades_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "eval.json"
    assert main(["eval", "--items", "16", "--out", str(out), "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    correct = sum(answer["correct"] for answer in found["answers"].values())
    assert len(found["answers"]) == found["score"]["items"] == 16
    assert found["score"]["correct"] == correct >= 13
    assert f"{correct} of 16" in shown
    assert found["variant"]["name"] == "math-mini:s0"


def test_a_killed_study_goes_on_and_finds_the_same(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # In bfloat16 a near tie may go either way with the batch, and batches differ once it was killed.
    options = ("--items", "40", "--dtype", "float32")
    command = [sys.executable, "-m", "server", *study_arguments(cache, killed, *options)]
    journal = killed / "answers.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env={**os.environ})
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 5_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle"
    assert not (killed / "results.json").exists()

    assert main(study_arguments(cache, killed, *options)) == 0
    assert main(study_arguments(cache, whole, *options)) == 0
    first, second = load(killed / "results.json"), load(whole / "results.json")
    assert [cell.right for cell in first.cells] == [cell.right for cell in second.cells]
    assert [cell.variant for cell in first.cells] == [cell.variant for cell in second.cells]
    assert [strategy.name for strategy in first.strategies] == [
        "taylor2_mixed",
        "random-42",
        "taylor2_mixed, reversed",
    ]
    assert first.of(first.strategies[2])[1].score.correct == 0, "without its best neurons it knows nothing"
    report = (killed / "report.md").read_text()
    assert "accuracy.svg" in report
    assert (killed / "accuracy.svg").exists()


def test_a_study_of_a_server_has_its_sparsities(live: Live, tmp_path: Path) -> None:
    arguments = ["study", "--model", live.url, "--items", "2", "--out", str(tmp_path)]
    assert main([*arguments, "--sparsities", "0.1,0.2"]) == 0
    found = load(tmp_path / "results.json")
    assert [cell.variant for cell in found.cells] == ["tiny:s0", "tiny:s10", "tiny:s20"]
    assert main([*arguments, "--sparsities", "0.3"]) == EXIT_FAILED


def test_what_an_interrupted_study_has_completed_can_be_told(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = study_arguments(cache, tmp_path / "study", "--items", "16", "--no-reverse")
    own_cache = ["--cache-dir", str(tmp_path / "cache"), "--tolerance", "0.3"]
    assert main([*arguments, *own_cache, "--so-far"]) == EXIT_FAILED
    assert "nothing to report yet" in capsys.readouterr().err
    assert main([*arguments, *own_cache, "--sparsities", "0.1", "--random-seeds", ""]) == 0
    shutil.rmtree(tmp_path / "cache" / "safety")

    assert main([*arguments, *own_cache, "--so-far"]) == 0
    found = load(tmp_path / "study" / "results.json")
    assert [(cell.strategy, cell.sparsity) for cell in found.cells] == [
        ("taylor2_mixed", 0.0),
        ("taylor2_mixed", 0.1),
    ]
    assert not (tmp_path / "cache" / "safety").exists(), "a part says nothing of what is safe"


def test_serve_finds_the_safe_sparsity_of_a_study(cache: Path, tmp_path: Path) -> None:
    arguments = study_arguments(cache, tmp_path, "--items", "16", "--no-reverse", "--tolerance", "0.3")
    assert main(arguments) == 0
    kept = list((cache / "safety").iterdir())
    assert len(kept) == 1
    found = load(tmp_path / "results.json").threshold
    served = {"profile": cache / "profile.safetensors", "cache_dir": cache, "sparsities": (0.0,)}
    settings = ServeSettings(**served)
    margin = load_model(settings, open_model(settings)).margin
    assert margin.sparsity == found.sparsity
    assert margin.source.startswith("studied on arithmetic, 16 items: ")
    settings = ServeSettings(**served, quantization="int8")
    assert load_model(settings, open_model(settings)).margin.source.startswith("arXiv"), "another model"


def test_what_was_answered_in_other_numbers_is_another_answer(tiny: Tiny, live: Live) -> None:
    config, other_ends = live.engine.config, replace(tiny.checkpoint)
    other_ends.__dict__["eos_token_ids"] = frozenset([1, 2])
    made = [
        subject(tiny, live),
        subject(tiny, live, config=replace(config, quantization="int8")),
        subject(tiny, live, config=replace(config, dtype="bfloat16")),
        subject(tiny, live, ranking=tiny_ranking(seed=2)),
        subject(tiny, live, checkpoint=other_ends),
    ]
    assert len({json.dumps(each.identity(0.1)) for each in made}) == len(made)
    assert made[0].identity(0.1) == subject(tiny, live).identity(0.1)
    dense = [json.dumps(each.identity(0.0)) for each in (made[0], made[3])]
    assert dense[0] == dense[1], "of the dense model it does not matter which neurons would go"


def test_a_study_of_what_the_dense_model_cannot_solve_keeps_no_safe_sparsity(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ArithmeticTask, "grade", lambda *_: False)
    arguments = study_arguments(
        cache, tmp_path / "study", "--items", "8", "--no-reverse", "--tolerance", "0.3"
    )
    assert main([*arguments, "--cache-dir", str(tmp_path / "cache"), "--sparsities", "0.1"]) == 0
    assert "the dense model solves 0 of 8 items" in capsys.readouterr().out
    assert "too little to lose" in (tmp_path / "study" / "report.md").read_text()
    assert not (tmp_path / "cache" / "safety").exists()
