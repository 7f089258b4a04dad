"""Answers that the server looks at more closely, without its clients noticing."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.engine.stream import RequestStream
from server.engine.variant import Variant
from tests.integration.live import Live
from tests.integration.sse import chunks


class Collector:
    """Takes every answer of pruned variants."""

    def __init__(self) -> None:
        self.taken: list[RequestStream] = []

    def recorded_logprobs(self, variant: Variant) -> int | None:
        return 64 if variant.sparsity else None

    def take(self, stream: RequestStream) -> None:
        self.taken.append(stream)


@pytest.fixture
def collector(live: Live) -> Iterator[Collector]:
    live.generations.sampler = Collector()
    yield live.generations.sampler
    live.generations.sampler = None


@pytest.mark.parametrize("logprobs", [None, 1])
def test_an_answer_is_recorded_and_told_as_any_other(
    client: httpx.Client, live: Live, collector: Collector, logprobs: int | None
) -> None:
    body: dict[str, Any] = {"prompt": "abc", "max_tokens": 7, "temperature": 0, "ignore_eos": True}
    body |= {"logprobs": logprobs, "n": 2, "sparsity": 0.1}
    whole = client.post("/v1/completions", json=body).json()["choices"]
    chunks(client, "/v1/completions", body)
    client.post("/v1/completions", json={**body, "sparsity": 0})
    live.generations.sampler = None
    for told, plain in zip(whole, client.post("/v1/completions", json=body).json()["choices"], strict=True):
        assert told["text"] == plain["text"]
        for choice in (told, plain):
            top = choice["logprobs"] and choice["logprobs"]["top_logprobs"]
            assert top is None if logprobs is None else [len(entry) for entry in top] == [1] * 7
    assert len(collector.taken) == 4  # two choices, whole and streamed; none of the dense variant
    for stream in collector.taken:
        assert len(stream.prompt_token_ids) == 3
        assert len(stream.token_ids) == len(stream.recorded) == 7
        assert {len(position.top) for position in stream.recorded} == {64}
        assert [position.token_id for position in stream.recorded] == stream.token_ids
