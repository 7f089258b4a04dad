"""What the engine is asked for, token ids in, token ids out. No torch, no text, no HTTP."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from eval.traps import Trap
from server.engine.variant import Variant

# Request.priority of work that may not cost users anything; theirs is 0.
BACKGROUND = 1


class FinishReason(str, Enum):
    """Why a request ended."""

    STOP = "stop"  # an end-of-sequence or stop token, or a stop string
    LENGTH = "length"  # max_tokens, or the model's context
    LOOP = "loop"  # the answer goes round in circles, and was asked to stop then
    ABORT = "abort"  # the client went away
    ERROR = "error"  # the engine died


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Validated at the edge; the engine trusts it.

    Attributes:
        max_tokens: new tokens at most; 0 only computes, and scores, the prompt.
        temperature: 0 is greedy and exact.
        top_k: candidates kept, 0 keeps all.
        top_p: smallest set of candidates whose probability reaches this, 1 keeps all.
        min_p: drops candidates less likely than this times the likeliest.
        repetition_penalty: divides (multiplies, if negative) logits of tokens seen in prompt or output.
        presence_penalty: subtracted once from tokens of the output.
        frequency_penalty: subtracted for each time a token is in the output.
        seed: makes sampling repeatable; None draws one.
        stop: strings that end the text; left out of it.
        stop_token_ids: tokens that end it, besides the model's own.
        ignore_eos: go on to max_tokens whatever is generated.
        stop_on_loop: end an answer that goes round in circles (eval/traps.py says when it does).
        logprobs: None for none, else how many alternatives to report with each chosen token.
        recorded_logprobs: as `logprobs`, for the server's own use: kept with the stream, not reported.
        logit_bias: added to the logits of these tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    stop_on_loop: bool = False
    logprobs: int | None = None
    recorded_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_predictable(self) -> bool:
        """Whether each token follows from the logits alone, not from chance or from what was said before."""
        penalised = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return self.temperature == 0 and not penalised

    @property
    def is_plainly_greedy(self) -> bool:
        """Whether the token of the largest logit is all that is wanted of the logits."""
        reported = self.logprobs is not None or self.recorded_logprobs is not None
        return self.is_predictable and not self.logit_bias and not reported


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, before temperature and truncation."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), likeliest first
    candidates: tuple[float, ...] = ()  # of the ids that `ScoringParams.candidates` asks about here


@dataclass(frozen=True)
class ScoringParams:
    """Which tokens of the prompt get log-probabilities, given all before them, while it is computed.

    Attributes:
        start: the first token that is scored, >= 1; nothing comes before token 0 that could predict it.
        top: how many of the likeliest tokens to report at each.
        candidates: for each scored token the ids to report besides; none at all where it is empty.
    """

    start: int = 1
    top: int = 1
    candidates: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class RequestStats:
    """A request's timeline, monotonic seconds, and its token counts. Taken when it has ended.

    Attributes:
        first_output_time, last_output_time: when the steps that computed what was delivered first and last
            had ended; making text of it and delivering it come after.
        first_token_time: when its first token was delivered.
        wanted_tokens: that were asked for at most; 0 where only the prompt was to be weighed.
    """

    variant: Variant
    finish_reason: FinishReason
    arrival_time: float
    first_scheduled_time: float | None
    first_output_time: float | None
    first_token_time: float | None
    last_output_time: float | None
    finished_time: float
    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose KV came from the prefix cache
    wanted_tokens: int
    generated_tokens: int
    trap: Trap  # how the answer failed to end, if it did


@dataclass(eq=False)
class Request:
    """A request inside the engine: what was asked for, and how far it has come.

    `priority` is 0 for users, BACKGROUND for the server's own work. `scored` grows with the prompt's chunks.
    """

    request_id: str
    prompt_token_ids: list[int]
    variant: Variant
    sampling: SamplingParams
    arrival_time: float = field(default_factory=time.monotonic)
    priority: int = 0
    scoring: ScoringParams | None = None

    scored: list[TokenLogprobs] = field(default_factory=list)
    output_token_ids: list[int] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks, oldest first
    num_remembered_blocks: int = 0  # ... that the prefix cache has been told of
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    first_scheduled_time: float | None = None
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.rng = random.Random(None if seed is None else seed % 2**64)  # by itself it drops the sign
        assert self.scoring is None or 1 <= self.scoring.start <= len(self.prompt_token_ids)

    @property
    def is_background(self) -> bool:
        return self.priority == BACKGROUND

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def rows_to_score(self, start: int, stop: int) -> range:
        """The positions within [start, stop) whose logits are still wanted; row p scores token p + 1."""
        if self.scoring is None:
            return range(0)
        first = self.scoring.start - 1 + len(self.scored)
        return range(max(start, first), min(stop, len(self.prompt_token_ids) - 1))

    def slice_tokens(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of prompt and output."""
        num_prompt = len(self.prompt_token_ids)
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        tail = self.output_token_ids[max(0, start - num_prompt) : stop - num_prompt]
        return self.prompt_token_ids[start:] + tail
