"""One streamed completion, timed. Counts are the server's own; times are when bytes arrive here."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Timing:
    """Seconds on the monotonic clock, and the server's token counts."""

    start: float
    first_token: float
    last_token: float
    prompt_tokens: int
    completion_tokens: int
    arrivals: tuple[float, ...]  # one for each event that carried text

    @property
    def ttft_seconds(self) -> float:
        return self.first_token - self.start

    @property
    def decode_tokens_per_second(self) -> float:
        """Of all tokens but the first."""
        return (self.completion_tokens - 1) / (self.last_token - self.first_token)

    @property
    def inter_token_seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


class BenchError(Exception):
    """The server answered with something that cannot be measured."""


class Client:
    """Sends greedy streaming completions that run to their full length."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def complete(self, prompt: str, max_tokens: int, fields: Mapping[str, Any]) -> Timing:
        """Sends `prompt`; `fields` are added to the body, over the defaults."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        start = time.monotonic()
        arrivals: list[float] = []
        usage: dict[str, int] | None = None
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                detail = (await response.aread()).decode(errors="replace")
                raise BenchError(f"the server answered {response.status_code}: {detail[:500]}")
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise BenchError(f"the stream broke: {event['error']}")
                usage = event.get("usage") or usage
                if any(choice.get("text") for choice in event.get("choices", ())):
                    arrivals.append(time.monotonic())
        if usage is None or len(arrivals) < 2:
            raise BenchError(f"a stream of {len(arrivals)} events, usage {usage}: nothing to measure")
        return Timing(
            start=start,
            first_token=arrivals[0],
            last_token=arrivals[-1],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            arrivals=tuple(arrivals),
        )
