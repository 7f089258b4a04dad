"""The engine behind its streams: text, endings, aborts, a full queue, a death."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from eval.traps import Trap
from server.engine import async_engine
from server.engine.async_engine import AsyncEngine
from server.engine.engine import Engine
from server.engine.errors import EngineDeadError, QueueFullError
from server.engine.request import (
    BACKGROUND,
    FinishReason,
    RequestStats,
    SamplingParams,
    ScoringParams,
)
from server.engine.stats import StepStats
from server.engine.stream import RequestStream, TextDelta
from tests.server.engine.support import GREEDY, Loaded, generate, prompt


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.delivered: list[tuple[str, int, bool]] = []
        self.ended: list[RequestStats] = []

    def step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def tokens(self, variant: str, count: int, *, first: bool, seconds: float) -> None:
        assert seconds >= 0
        self.delivered.append((variant, count, first))

    def finished(self, stats: RequestStats) -> None:
        self.ended.append(stats)


@dataclasses.dataclass
class Running:
    loaded: Loaded
    inner: Engine
    engine: AsyncEngine
    observer: Recorder

    def submit(
        self, name: str, token_ids: list[int], sampling: SamplingParams = GREEDY, **options: Any
    ) -> RequestStream:
        variant = self.loaded.dense
        return self.engine.submit(
            request_id=name, prompt_token_ids=token_ids, variant=variant, sampling=sampling, **options
        )

    async def all_blocks_are_free(self) -> bool:
        for _ in range(3_000):  # a minute: a busy machine must not decide
            if self.inner.num_free_kv_blocks == self.inner.num_kv_blocks and not self.inner.num_unfinished:
                return True
            await asyncio.sleep(0.02)
        return False


@pytest.fixture
def run(load: Callable[..., Loaded]) -> Callable[..., None]:
    """Runs a coroutine function against a started engine, on an event loop of its own."""

    def runner(test: Callable[[Running], Awaitable[None]], **limits: object) -> None:
        async def main() -> None:
            async with started(**limits) as running:
                await test(running)

        asyncio.run(main())

    @contextlib.asynccontextmanager
    async def started(**limits: object) -> AsyncIterator[Running]:
        loaded, observer = load("qwen2"), Recorder()
        inner = loaded.engine(**limits)
        tokenizer = loaded.checkpoint.tokenizer()
        engine = AsyncEngine(inner, tokenizer._tokenizer, observer)
        engine.start()
        try:
            yield Running(loaded, inner, engine, observer)
        finally:
            await engine.stop()

    return runner


async def collect(stream: RequestStream) -> list[TextDelta]:
    return [delta async for delta in stream]


def test_streams_carry_what_the_engine_generates(run) -> None:
    async def test(running: Running) -> None:
        prompts = [prompt(seed, 30 + seed) for seed in range(5)]
        streams = [running.submit(str(i), p) for i, p in enumerate(prompts)]
        answers = await asyncio.gather(*map(collect, streams))
        expected = generate(running.loaded.engine(), [(p, running.loaded.dense) for p in prompts])
        for deltas, token_ids in zip(answers, expected, strict=True):
            assert [t for delta in deltas for t in delta.token_ids] == token_ids
            assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
            assert deltas[-1].finish_reason is FinishReason.LENGTH
        observer = running.observer
        assert len(observer.ended) == 5
        assert sum(stats.generated_tokens for stats in observer.ended) == 5 * GREEDY.max_tokens
        assert sum(count for _, count, _ in observer.delivered) == 5 * GREEDY.max_tokens
        assert sum(first for _, _, first in observer.delivered) == 5
        assert running.engine.num_unfinished == 0
        assert await running.all_blocks_are_free()

    run(test)


def test_a_stop_string_ends_the_text_and_the_request(run) -> None:
    async def test(running: Running) -> None:
        sampling = dataclasses.replace(GREEDY, max_tokens=60)
        whole = "".join(d.text for d in await collect(running.submit("a", prompt(1, 20), sampling)))
        stop = whole[8:11]
        stopping = dataclasses.replace(sampling, stop=(stop,))
        stream = running.submit("b", prompt(1, 20), stopping)
        deltas = await collect(stream)
        assert "".join(d.text for d in deltas) == whole[: whole.index(stop)]
        assert deltas[-1].finish_reason is FinishReason.STOP
        assert stream.stats is not None
        assert stream.stats.generated_tokens == sum(len(d.token_ids) for d in deltas) < 60
        assert await running.all_blocks_are_free()

    run(test)


def test_an_abort_frees_the_blocks_and_ends_the_stream(run) -> None:
    async def test(running: Running) -> None:
        stream = running.submit("a", prompt(2, 40), dataclasses.replace(GREEDY, max_tokens=200))
        await anext(stream)
        stream.abort()
        stream.abort()
        assert await running.all_blocks_are_free()
        assert len(running.observer.steps) < 200, "it was aborted, not computed to its end"
        assert await collect(stream) == []
        [stats] = running.observer.ended
        assert stats.finish_reason is FinishReason.ABORT
        assert stats.generated_tokens >= 1

    run(test)


def test_an_abort_wakes_a_reader_that_waits(run) -> None:
    async def test(running: Running) -> None:
        running.inner._runner.run = lambda output: asyncio.run(asyncio.sleep(0.2))  # a step without an end
        stream = running.submit("a", prompt(2, 40))
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0.05)
        stream.abort()
        assert await asyncio.wait_for(reader, 60) == []

    run(test)


def test_a_full_queue_refuses(run) -> None:
    async def test(running: Running) -> None:
        streams = [running.submit(str(i), prompt(i, 10)) for i in range(5)]
        with pytest.raises(QueueFullError, match=r"5 requests .*max_num_seqs 2 \+ max_waiting 3"):
            running.submit("one more", prompt(9, 10))
        streams.pop().abort()
        with pytest.raises(QueueFullError, match="2 more are too many"):
            running.engine.check([10, 10], 1)
        running.engine.check([10], 1)
        await asyncio.gather(*map(collect, streams))
        await collect(running.submit("later", prompt(9, 10)))

    run(test, max_num_seqs=2, max_waiting=3)


def hang_in_steps(running: Running) -> tuple[threading.Event, threading.Event]:
    """Steps say that they have begun, and do not end before they are told to."""
    compute, begun, end = running.inner._runner.run, threading.Event(), threading.Event()

    def hang(output: Any) -> Any:
        begun.set()
        end.wait(60)
        return compute(output)

    running.inner._runner.run = hang
    return begun, end


def test_a_step_that_does_not_end_is_seen_by_its_age(run) -> None:
    async def test(running: Running) -> None:
        assert running.engine.step_age_seconds == 0
        begun, end = hang_in_steps(running)
        stream = running.submit("a", prompt(1, 10))
        try:
            await asyncio.to_thread(begun.wait, 60)
            age = running.engine.step_age_seconds
            await asyncio.sleep(0.1)
            assert running.engine.step_age_seconds > age > 0
            assert running.engine.is_alive, "nothing has failed"
        finally:
            end.set()
        await collect(stream)
        assert running.engine.step_age_seconds == 0

    run(test)


def test_what_users_ask_while_a_step_runs_is_not_taken_yet(run) -> None:
    async def test(running: Running) -> None:
        begun, end = hang_in_steps(running)
        streams = [running.submit("a", prompt(1, 10))]
        try:
            await asyncio.to_thread(begun.wait, 60)
            assert running.engine.num_untaken == 0
            streams += [running.submit(name, prompt(2, 10)) for name in "bc"]
            streams.insert(0, running.submit("probe", prompt(3, 10), priority=BACKGROUND))
            assert running.engine.num_untaken == 2
            streams.pop().abort()
            assert running.engine.num_untaken == 1
        finally:
            end.set()
        await asyncio.gather(*map(collect, streams))
        assert running.engine.num_untaken == 0

    run(test)


def test_a_step_that_does_not_end_is_left_behind(
    run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(async_engine, "STOP_SECONDS", 0.1)

    async def test(running: Running) -> None:
        begun, end = hang_in_steps(running)
        running.submit("a", prompt(1, 10))
        try:
            await asyncio.to_thread(begun.wait, 60)
            await running.engine.stop()
            assert not end.is_set()
            assert "step does not end" in caplog.text
        finally:
            end.set()

    run(test)


def test_an_abort_before_the_engine_took_the_request_is_no_less_one(run) -> None:
    """Else it would run to its end with nobody to read it."""

    async def test(running: Running) -> None:
        begun, end = hang_in_steps(running)
        kept = running.submit("kept", prompt(1, 10), dataclasses.replace(GREEDY, max_tokens=4))
        try:
            await asyncio.to_thread(begun.wait, 60)
            running.submit("left", prompt(2, 30)).abort()
        finally:
            end.set()
        await collect(kept)
        assert await running.all_blocks_are_free()
        assert sum(sum(step.batch_tokens.values()) for step in running.observer.steps) == 10 + 3
        assert [stats.finish_reason for stats in running.observer.ended].count(FinishReason.ABORT) == 1

    run(test)


def test_a_dying_engine_tells_every_stream(run, caplog: pytest.LogCaptureFixture) -> None:
    async def test(running: Running) -> None:
        stream = running.submit("a", prompt(1, 10), dataclasses.replace(GREEDY, max_tokens=200))
        await anext(stream)

        def fail(output: object) -> None:
            raise RuntimeError("out of memory")

        running.inner._runner.run = fail  # the one thing that cannot be had for real
        with pytest.raises(EngineDeadError, match="RuntimeError: out of memory"):
            await collect(stream)
        assert not running.engine.is_alive
        assert running.engine.step_age_seconds == 0
        assert isinstance(running.engine.death, RuntimeError)
        with pytest.raises(EngineDeadError):
            running.submit("b", prompt(1, 10))
        [stats] = running.observer.ended
        assert stats.finish_reason is FinishReason.ERROR

    run(test)
    assert "out of memory" in caplog.text


def test_steps_are_reported(run) -> None:
    async def test(running: Running) -> None:
        await collect(running.submit("a", prompt(1, 20)))
        await collect(running.submit("b", prompt(1, 20)))
        steps, name = running.observer.steps, running.loaded.dense.name
        assert sum(step.batch_tokens[name] for step in steps) == 2 * (20 + GREEDY.max_tokens - 1) - 16
        assert sum(step.prefix_hits for step in steps) == 16
        assert sum(step.prefix_queries for step in steps) == 40
        assert all(step.running == {name: 1} and step.step_seconds > 0 for step in steps)
        assert steps[0].kv_usage_ratio > 0 == steps[-1].kv_usage_ratio

    run(test)


def test_a_timeline_is_in_order(run) -> None:
    async def test(running: Running) -> None:
        await collect(running.submit("a", prompt(1, 20)))
        [stats] = running.observer.ended
        assert stats.first_scheduled_time is not None
        assert stats.first_output_time is not None
        assert stats.last_output_time is not None
        assert stats.first_token_time is not None
        assert stats.arrival_time <= stats.first_scheduled_time <= stats.first_output_time
        assert stats.first_output_time <= stats.first_token_time  # computed before delivered
        assert stats.first_output_time < stats.last_output_time <= stats.finished_time

    run(test)


# Whatever the model thinks, it says token 5 again and again.
LOOPING = SamplingParams(max_tokens=300, temperature=0, logit_bias={5: 1000.0})


@pytest.mark.parametrize(
    ("answered", "trap"),
    [
        (None, Trap.LOOP_BEFORE_ANSWER),
        (lambda text: True, Trap.LOOP_AFTER_ANSWER),
        (lambda text: False, Trap.LOOP_BEFORE_ANSWER),
    ],
)
def test_an_answer_that_loops_ends_where_it_was_asked_to(run, answered: Any, trap: Trap) -> None:
    async def test(running: Running) -> None:
        running.engine._answered = answered
        stopping = dataclasses.replace(LOOPING, stop_on_loop=True)
        deltas = await collect(running.submit("a", prompt(1, 10), stopping))
        whole = await collect(running.submit("b", prompt(1, 10), LOOPING))
        assert deltas[-1].finish_reason is FinishReason.LOOP
        assert whole[-1].finish_reason is FinishReason.LENGTH
        ended, cut_off = running.observer.ended
        assert ended.trap is cut_off.trap is trap
        assert 0 < ended.generated_tokens < cut_off.generated_tokens == 300
        text = "".join(d.text for d in deltas)
        assert text == "".join(d.text for d in whole)[: len(text)]
        assert len(text) == ended.generated_tokens  # one character a token: nothing is held back
        assert await running.all_blocks_are_free()

    run(test, max_model_len=400)


def test_answers_that_end_or_go_on_without_a_loop(run) -> None:
    async def test(running: Running) -> None:
        for sampling in (GREEDY, dataclasses.replace(GREEDY, logit_bias={5: 1000.0}, stop_token_ids={5})):
            await collect(running.submit("a", prompt(1, 10), sampling))
        await collect(running.submit("a", prompt(1, 10), dataclasses.replace(GREEDY, max_tokens=0)))
        assert [s.trap for s in running.observer.ended] == [Trap.MISSING_STOP, Trap.NONE, Trap.NONE]

    run(test)


def test_recorded_alternatives_are_kept_and_not_reported(run) -> None:
    async def test(running: Running) -> None:
        plain = dataclasses.replace(GREEDY, logprobs=2)
        for reported in (2, None):
            sampling = dataclasses.replace(GREEDY, logprobs=reported, recorded_logprobs=20)
            stream = running.submit("a", prompt(1, 10), sampling)
            deltas = await collect(stream)
            assert [p.token_id for p in stream.recorded] == stream.token_ids
            assert {len(p.top) for p in stream.recorded} == {20}
            told = [p for delta in deltas for p in delta.logprobs]
            if reported is None:
                assert told == []
        for only_reported in (plain, dataclasses.replace(GREEDY, logprobs=2, recorded_logprobs=20)):
            stream = running.submit("a", prompt(1, 10), only_reported)
            told = [p for delta in await collect(stream) for p in delta.logprobs]
            assert len(told) == GREEDY.max_tokens
            assert {len(p.top) for p in told} == {2}

    run(test)


def test_background_is_not_told_as_users_requests_are(run) -> None:
    async def test(running: Running) -> None:
        background = running.submit("probe", prompt(1, 20), priority=BACKGROUND)
        deltas = await collect(background)
        assert [t for d in deltas for t in d.token_ids] == background.token_ids
        assert background.stats is not None
        assert background.stats.generated_tokens == GREEDY.max_tokens
        observer, name = running.observer, running.loaded.dense.name
        assert observer.ended == observer.delivered == []
        computed = 20 + GREEDY.max_tokens - 1
        assert sum(step.background_tokens.get(name, 0) for step in observer.steps) == computed
        assert all(not step.batch_tokens and not step.running for step in observer.steps)
        assert all(step.num_background == 1 for step in observer.steps[:-1])
        assert observer.steps[-1].num_background == 0

    run(test)


def test_background_takes_no_place_in_the_users_queue(run) -> None:
    async def test(running: Running) -> None:
        submit = running.submit
        streams = [submit(f"b{i}", prompt(i, 10), priority=BACKGROUND) for i in range(3)]
        with pytest.raises(QueueFullError):
            submit("b4", prompt(0, 10), priority=BACKGROUND)
        streams += [submit(f"u{i}", prompt(i, 10)) for i in range(3)]
        with pytest.raises(QueueFullError):
            submit("u4", prompt(0, 10))
        answers = await asyncio.gather(*map(collect, streams))
        tokens = [[t for delta in deltas for t in delta.token_ids] for deltas in answers]
        assert tokens[:3] == tokens[3:], "preempted or not, the answers are the same"

    run(test, max_num_seqs=1, max_waiting=2)


def test_scores_come_with_the_first_delta(run) -> None:
    async def test(running: Running) -> None:
        scoring = ScoringParams(start=150, top=1)
        sampling = dataclasses.replace(GREEDY, max_tokens=0)
        [delta] = await collect(running.submit("a", prompt(1, 200), sampling, scoring=scoring))
        assert delta.finish_reason is FinishReason.LENGTH
        assert delta.token_ids == ()
        assert delta.text == ""
        assert [p.token_id for p in delta.prompt_logprobs] == prompt(1, 200)[150:]
        first, *later = await collect(running.submit("b", prompt(1, 200), scoring=scoring))
        assert len(first.prompt_logprobs) == 50
        assert not any(delta.prompt_logprobs for delta in later)
        assert running.observer.delivered[0][1] > 0, "no token was told for the request that had none"
        assert await running.all_blocks_are_free()

    run(test)


def test_an_aborted_scoring_request_returns_its_blocks(run) -> None:
    async def test(running: Running) -> None:
        sampling = dataclasses.replace(GREEDY, max_tokens=0)
        scoring = ScoringParams()
        for priority in (0, BACKGROUND):
            stream = running.submit("a", prompt(1, 250), sampling, scoring=scoring, priority=priority)
            while not running.observer.steps:
                await asyncio.sleep(0.001)
            stream.abort()
            assert await collect(stream) == []
            assert await running.all_blocks_are_free()
            running.observer.steps.clear()

    run(test, max_num_batched_tokens=16)
