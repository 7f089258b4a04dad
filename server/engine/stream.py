"""One request's answer on the event loop: tokens in, text out, until something ends it.

Finds stop strings and loops, and keeps the times. Knows nothing of the engine's thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from eval.traps import LoopDetector, Trap, classify
from server.engine.detokenizer import Detokenizer
from server.engine.engine import TokenOutput
from server.engine.errors import EngineDeadError
from server.engine.request import FinishReason, Request, RequestStats, TokenLogprobs
from server.engine.stats import EngineObserver
from server.engine.variant import Variant


@dataclass(frozen=True)
class TextDelta:
    """What one or more new tokens added to an answer. `finish_reason` is set on the last.

    A request of `max_tokens` 0 has one delta, without tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]  # one a token where asked for, else empty
    finish_reason: FinishReason | None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # what `ScoringParams` asked for, on the first delta


class RequestStream:
    """The answer to one request as it comes: an async iterator of `TextDelta`.

    Iterating raises EngineDeadError if the engine dies first, and ends without a finish reason if the request
    is aborted meanwhile. `abort()` belongs in a `finally`.

    Args:
        answered: as in `AsyncEngine`.
        on_end: called once, when the request has ended in whatever way.

    Attributes:
        token_ids: of the answer, as far as it has been delivered.
        recorded: one a token where `SamplingParams.recorded_logprobs` asks for it, else empty.
        stats: None until the request has ended.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer,
        observer: EngineObserver,
        answered: Callable[[str], bool] | None,
        on_end: Callable[[Request], None],
    ) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._observer = observer
        self._answered = answered
        self._on_end = on_end
        self._loop_detector = LoopDetector()
        self._text: list[str] = []
        self._inbox: asyncio.Queue[TokenOutput | EngineDeadError | None] = asyncio.Queue()
        self._first_output_time: float | None = None
        self._last_output_time: float | None = None
        self._first_token_time: float | None = None
        self._last_delivery = request.arrival_time
        self.token_ids: list[int] = []
        self.recorded: list[TokenLogprobs] = []
        self.stats: RequestStats | None = None

    @property
    def variant(self) -> Variant:
        return self._request.variant

    @property
    def is_background(self) -> bool:
        return self._request.is_background

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        return self._request.prompt_token_ids

    @property
    def num_prompt_tokens(self) -> int:
        return len(self._request.prompt_token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_cached_tokens(self) -> int:
        return self._request.num_cached_tokens

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        if self.stats is not None:
            raise StopAsyncIteration
        outputs: list[TokenOutput] = []
        item = await self._inbox.get()
        while isinstance(item, TokenOutput):  # a slow reader gets all there is at once
            outputs.append(item)
            if self._inbox.empty():
                return self._take(outputs)
            item = self._inbox.get_nowait()
        if outputs:
            self._inbox.put_nowait(item)
            return self._take(outputs)
        if item is None:
            raise StopAsyncIteration
        self._end(FinishReason.ERROR)
        raise item

    def abort(self) -> None:
        """Ends the request if it has not ended. May be called at any time, any number of times."""
        self._end(FinishReason.ABORT)
        self._inbox.put_nowait(None)

    def put(self, item: TokenOutput | EngineDeadError) -> None:
        """For the engine: the next thing to deliver."""
        self._inbox.put_nowait(item)

    def _take(self, outputs: list[TokenOutput]) -> TextDelta:
        text, reason, looping = "", None, False
        for count, output in enumerate(outputs, start=1):
            if output.token_id is not None:
                text += self._detokenizer.push(output.token_id)
                looping = self._loop_detector.push(output.token_id)
            reason = output.finish_reason
            if looping and reason is None and self._request.sampling.stop_on_loop:
                reason = FinishReason.LOOP
            if reason is not None and not self._detokenizer.stopped:
                text += self._detokenizer.flush()
            if self._detokenizer.stopped:
                reason = FinishReason.STOP
            if reason is not None:
                outputs = outputs[:count]
                break
        if self._first_output_time is None:
            self._first_output_time = outputs[0].time
        self._last_output_time = outputs[-1].time
        token_ids = tuple(output.token_id for output in outputs if output.token_id is not None)
        logprobs = [output.logprobs for output in outputs if output.logprobs is not None]
        delta = TextDelta(
            text=text,
            token_ids=token_ids,
            logprobs=self._reported(logprobs),
            finish_reason=reason,
            prompt_logprobs=() if self.token_ids else tuple(self._request.scored),
        )
        self._text.append(text)
        self._keep(token_ids, logprobs)
        if reason is not None:
            self._end(reason)
        return delta

    def _reported(self, logprobs: Sequence[TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
        """As many alternatives as the client asked for: the engine gives all that somebody did."""
        count = self._request.sampling.logprobs
        if count is None:
            return ()
        return tuple(replace(position, top=position.top[:count]) for position in logprobs)

    def _keep(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        if not token_ids:
            return
        now = time.monotonic()
        first = self._first_token_time is None
        if first:
            self._first_token_time = now
        self.token_ids += token_ids
        if self._request.sampling.recorded_logprobs is not None:
            self.recorded += logprobs
        if not self.is_background:
            self._observer.tokens(
                self.variant.name, len(token_ids), first=first, seconds=now - self._last_delivery
            )
        self._last_delivery = now

    def _end(self, reason: FinishReason) -> None:
        if self.stats is not None:
            return
        self.stats = RequestStats(
            variant=self.variant,
            finish_reason=reason,
            arrival_time=self._request.arrival_time,
            first_scheduled_time=self._request.first_scheduled_time,
            first_output_time=self._first_output_time,
            first_token_time=self._first_token_time,
            last_output_time=self._last_output_time,
            finished_time=time.monotonic(),
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached_tokens,
            wanted_tokens=self._request.sampling.max_tokens,
            generated_tokens=self.num_generated_tokens,
            trap=self._trap(reason),
        )
        self._on_end(self._request)
        if not self.is_background:
            self._observer.finished(self.stats)

    def _trap(self, reason: FinishReason) -> Trap:
        if not self.token_ids:  # the prompt alone was wanted
            return Trap.NONE
        looping = self._loop_detector.looping_when_cut_off
        return classify("".join(self._text), reason.value, self._answered, looping=looping)
