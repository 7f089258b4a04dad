"""What the scheduler decides: how many tokens of which request the next step computes. Counts, no tensors."""

from dataclasses import dataclass, field

from server.engine.request import Request


@dataclass(slots=True)
class ScheduledRequest:
    """`num_tokens` more of this request are computed in this step; not changed once made.

    `guesses` are computed after them; only a request that gets a new token has any.

    Attributes:
        catches_up: whether the step computes all of the request's tokens that were left.
        num_samples: tokens that it gets, one after its last token and one after each guess, if it wants any.
        rows_to_score: the positions of this step whose logits the request wants scored.
    """

    request: Request
    num_tokens: int
    guesses: tuple[int, ...] = ()
    catches_up: bool = field(init=False)
    num_samples: int = field(init=False)
    rows_to_score: range = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        start = request.num_computed_tokens
        self.catches_up = start + self.num_tokens == request.num_tokens
        samples = self.catches_up and request.sampling.max_tokens > 0
        self.num_samples = 1 + len(self.guesses) if samples else 0
        self.rows_to_score = request.rows_to_score(start, start + self.num_tokens)

    @property
    def decodes(self) -> bool:
        """Whether the step computes its newest token, all before it being computed. Holds until `update`."""
        return self.num_tokens == 1 and self.request.num_computed_tokens >= len(self.request.prompt_token_ids)


@dataclass(frozen=True)
class SchedulerOutput:
    """One step. Preemptions and prefix counts are users'; the latter are tokens."""

    scheduled: tuple[ScheduledRequest, ...]
    preemptions: int
    prefix_queries: int
    prefix_hits: int

    @property
    def num_solo_rows(self) -> int:
        """As in StepStats. Holds until `update`."""
        if len({item.request.variant.name for item in self.scheduled}) > 1:
            return 0
        if any(item.request.is_background or not item.decodes for item in self.scheduled):
            return 0
        return sum(item.num_tokens + len(item.guesses) for item in self.scheduled)
