"""What one HTTP request has running in the engine: every prompt times every choice, begun and ended together.

Between the routes and the engine. Knows neither schemas nor text beyond what the engine's streams deliver.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from server.engine.async_engine import AsyncEngine
from server.engine.request import FinishReason, RequestStats, SamplingParams, ScoringParams, TokenLogprobs
from server.engine.stream import RequestStream, TextDelta
from server.engine.variant import Variant
from server.errors import InvalidValueError, ShuttingDownError
from server.monitoring.metrics import Metrics
from server.policy import Ask, Decision, VariantPolicy
from server.variants import VariantRegistry

# Log-probabilities that one request may come to, alternatives included: written down as chat does they take
# some 600 bytes each at the end, 1.2 GB in all.
MAX_KEPT_LOGPROBS = 2_000_000


@dataclass
class Choice:
    """One finished answer."""

    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one HTTP request. A prompt counts once, however many choices it has."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Origin:
    """Where a request came from: its URL's path, and its headers by lower-case name."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class GenerationRecord:
    """A request that is over, one way or the other. Times are monotonic seconds.

    What it did not come to is None: a decision where it was refused before, sampling where none was queued.

    Attributes:
        opened_time, closed_time: from when its body was being read until its response was sent, or was not.
        answers: one for each prompt and choice that was queued, in order.
        error_code: of the error that it was answered with.
    """

    request_id: str
    origin: Origin
    opened_time: float
    closed_time: float
    ask: Ask | None
    decision: Decision | None
    sampling: SamplingParams | None
    num_choices: int
    is_streamed: bool
    answers: Sequence[RequestStats]
    usage: TokenUsage
    error_code: str | None


class GenerationObserver(Protocol):
    """Is told of every request when it is over."""

    def closed(self, record: GenerationRecord) -> None: ...


class AnswerSampler(Protocol):
    """Looks closer at some of the answers."""

    def recorded_logprobs(self, variant: Variant) -> int | None:
        """Alternatives to record with each token of an answer about to begin; None to leave it alone."""

    def take(self, stream: RequestStream) -> None:
        """An answer that was recorded has ended by itself."""


class Generations:
    """All generations under way, and the door through which new ones come.

    Args:
        max_requests: engine requests that may run and wait at once.
        max_waiting: those of them that may wait.
        sampler: takes a share of the answers; None for none.
        observer: None for none.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        registry: VariantRegistry,
        policy: VariantPolicy,
        metrics: Metrics,
        max_requests: int,
        max_waiting: int,
        sampler: AnswerSampler | None = None,
        observer: GenerationObserver | None = None,
    ) -> None:
        self.engine = engine
        self.registry = registry
        self.policy = policy
        self.metrics = metrics
        self.max_requests = max_requests
        self.sampler = sampler
        self._observer = observer
        self._max_waiting = max_waiting
        self._open: set[Generation] = set()
        self._draining = False

    @property
    def is_draining(self) -> bool:
        """Whether the process is about to end."""
        return self._draining

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Users' requests that waited after the engine's last step."""
        step = self.metrics.workload.last_step if self.engine.num_unfinished else None
        return step.num_waiting if step else 0

    def load(self) -> float:
        """The share of the queue that is taken: what waits, of what may. 0..1"""
        return min(1.0, self.num_waiting / self._max_waiting) if self._max_waiting else 0.0

    def drain(self) -> None:
        """From now on `open` refuses; what runs goes on."""
        self._draining = True

    def abort_all(self) -> None:
        """Ends what still runs; each client is told that the server is shutting down."""
        for generation in list(self._open):
            generation.abort()

    def open(self, origin: Origin) -> "Generation":
        """A place for one request; close it in a `finally`.

        Raises:
            ShuttingDownError: the door is shut.
        """
        if self._draining:
            raise ShuttingDownError("the server is shutting down and takes no new requests")
        generation = Generation(self, uuid.uuid4().hex, origin)
        self._open.add(generation)
        return generation

    def forget(self, generation: "Generation") -> None:
        """For the generations: this one is closed."""
        if generation not in self._open:
            return
        try:
            if self._observer is not None:
                self._observer.closed(generation.record())
        finally:
            self._open.remove(generation)


class Generation:
    """One HTTP request's share of the engine. Made by `Generations.open`.

    Attributes:
        request_id: the server's own, unique; the client's x-request-id need not be.
        is_streamed, error_code: for whoever answers to set: how, and the error if it is one.
    """

    def __init__(self, owner: Generations, request_id: str, origin: Origin) -> None:
        self._owner = owner
        self.request_id = request_id
        self.is_streamed = False
        self.error_code: str | None = None
        self._origin = origin
        self._opened_time = time.monotonic()
        self._leases = ExitStack()
        self._ask: Ask | None = None
        self._decision: Decision | None = None
        self._sampling: SamplingParams | None = None
        self._num_choices = 1
        self._streams: list[RequestStream] = []

    def choose(self, ask: Ask) -> Decision:
        """Picks the variant and holds it until the generation is closed. Raises what the policy raises."""
        owner = self._owner
        self._ask = ask
        decision = owner.policy.resolve(ask, owner.registry.offer(), owner.load())
        self._leases.enter_context(owner.registry.lease(decision.variant))
        self._decision = decision
        return decision

    def check_places(self, num_prompts: int, num_choices: int) -> None:
        """Raises what `submit` would for so many, before any of them is tokenized.

        Raises:
            InvalidValueError: more answers than the server ever queues.
            EngineError: the engine has no places for them now, or is dead.
        """
        wanted, most = num_prompts * num_choices, self._owner.max_requests
        if wanted > most:
            raise InvalidValueError(
                f"{num_prompts} prompts times {num_choices} choices are {wanted} answers; this server runs "
                f"and queues {most} at once (max_num_seqs + max_waiting): send fewer at a time"
            )
        self._owner.engine.check_places(wanted)

    def submit(
        self,
        prompts: Sequence[list[int]],
        variant: Variant,
        sampling: SamplingParams,
        num_choices: int,
        scoring: ScoringParams | None = None,
    ) -> None:
        """Queues `num_choices` answers to each prompt; choice i of prompt p has index p * num_choices + i.

        With a seed, the choices of one prompt count up from it, so that they differ and can be repeated.

        Raises:
            InvalidValueError: more answers than the server ever queues, or log-probabilities than it keeps.
            EngineError: what the engine refuses; then nothing was queued.
        """
        self.check_places(len(prompts), num_choices)
        lengths = [len(prompt) for prompt in prompts for _ in range(num_choices)]
        self._owner.engine.check(lengths, sampling.max_tokens)
        _check_logprobs(lengths, sampling, scoring)
        self._num_choices, self._sampling = num_choices, sampling
        sampler = self._owner.sampler
        for number, prompt in enumerate(prompts):
            for choice in range(num_choices):
                seed = None if sampling.seed is None else sampling.seed + choice
                recorded = None if sampler is None else sampler.recorded_logprobs(variant)
                stream = self._owner.engine.submit(
                    request_id=f"{self.request_id}-{number}-{choice}",
                    prompt_token_ids=prompt,
                    variant=variant,
                    sampling=replace(sampling, seed=seed, recorded_logprobs=recorded),
                    scoring=scoring,
                )
                self._streams.append(stream)
            self._owner.metrics.prompt(variant.name, len(prompt))

    async def deltas(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """What every choice's stream delivers, as it comes, with the index of the choice.

        Raises:
            EngineDeadError: the engine died.
            ShuttingDownError: it was aborted by `Generations.abort_all`.
        """
        inbox: asyncio.Queue[tuple[int, TextDelta | None]] = asyncio.Queue()
        sampler = self._owner.sampler

        async def pump(index: int, stream: RequestStream) -> None:
            finish_reason: FinishReason | None = None
            try:
                async for delta in stream:
                    finish_reason = delta.finish_reason
                    inbox.put_nowait((index, delta))
            finally:
                inbox.put_nowait((index, None))
            if finish_reason is None:
                raise ShuttingDownError("the server is shutting down; the answer was cut off")
            if sampler is not None and stream.recorded:
                sampler.take(stream)

        pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(self._streams)]
        try:
            num_running = len(pumps)
            while num_running:
                index, item = await inbox.get()
                if isinstance(item, TextDelta):
                    yield index, item
                else:
                    num_running -= 1
                    await pumps[index]  # raises what ended the stream, if not its end
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def collect(self) -> list[Choice]:
        """Every choice, whole. Raises what `deltas` raises."""
        choices = [Choice() for _ in self._streams]
        async for index, delta in self.deltas():
            choice = choices[index]
            choice.text += delta.text
            choice.logprobs.extend(delta.logprobs)
            choice.prompt_logprobs.extend(delta.prompt_logprobs)
            choice.finish_reason = delta.finish_reason
        return choices

    def usage(self) -> TokenUsage:
        """Tokens up to now."""
        first_choices = self._streams[:: self._num_choices]
        return TokenUsage(
            prompt_tokens=sum(stream.num_prompt_tokens for stream in first_choices),
            cached_tokens=sum(stream.num_cached_tokens for stream in first_choices),
            completion_tokens=sum(stream.num_generated_tokens for stream in self._streams),
        )

    def record(self) -> GenerationRecord:
        """What became of it. Once it is closed."""
        return GenerationRecord(
            request_id=self.request_id,
            origin=self._origin,
            opened_time=self._opened_time,
            closed_time=time.monotonic(),
            ask=self._ask,
            decision=self._decision,
            sampling=self._sampling,
            num_choices=self._num_choices,
            is_streamed=self.is_streamed,
            answers=[stream.stats for stream in self._streams if stream.stats is not None],
            usage=self.usage(),
            error_code=self.error_code,
        )

    def abort(self) -> None:
        """Ends the streams that run; their blocks are free after the engine's current step."""
        for stream in self._streams:
            stream.abort()

    def close(self) -> None:
        """Aborts what runs and lets go of the variant. Any number of times."""
        self.abort()
        self._leases.close()
        self._owner.forget(self)


def _check_logprobs(
    prompt_lengths: Sequence[int], sampling: SamplingParams, scoring: ScoringParams | None
) -> None:
    count = 0
    if sampling.logprobs is not None:
        count += len(prompt_lengths) * sampling.max_tokens * (1 + sampling.logprobs)
    if scoring is not None:
        count += sum(max(0, length - scoring.start) for length in prompt_lengths) * (1 + scoring.top)
    if count > MAX_KEPT_LOGPROBS:
        raise InvalidValueError(
            f"{len(prompt_lengths)} answers could come to {count:,} log-probabilities, more than the "
            f"{MAX_KEPT_LOGPROBS:,} of one request: lower max_tokens, n or the number of alternatives, or "
            "send fewer prompts at a time"
        )
