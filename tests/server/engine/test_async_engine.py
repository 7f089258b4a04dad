"""The engine behind its streams: text, endings, aborts, a full queue, a death."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from server.engine.async_engine import AsyncEngine, Delta, RequestStream
from server.engine.engine import Engine
from server.engine.errors import EngineDeadError, QueueFullError
from server.engine.request import FinishReason, RequestStats, SamplingParams
from server.engine.stats import StepStats
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

    def submit(self, name: str, token_ids: list[int], sampling: SamplingParams = GREEDY) -> RequestStream:
        variant = self.loaded.dense
        return self.engine.submit(
            request_id=name, prompt_token_ids=token_ids, variant=variant, sampling=sampling
        )

    async def all_blocks_are_free(self) -> bool:
        for _ in range(100):
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


async def collect(stream: RequestStream) -> list[Delta]:
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
        assert await asyncio.wait_for(reader, 1) == []

    run(test)


def test_a_full_queue_refuses(run) -> None:
    async def test(running: Running) -> None:
        streams = [running.submit(str(i), prompt(i, 10)) for i in range(5)]
        with pytest.raises(QueueFullError, match=r"5 requests .*max_num_seqs 2 \+ max_waiting 3"):
            running.submit("one more", prompt(9, 10))
        await asyncio.gather(*map(collect, streams))
        await collect(running.submit("later", prompt(9, 10)))

    run(test, max_num_seqs=2, max_waiting=3)


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
