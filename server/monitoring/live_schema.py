"""What GET /v1/live says, as its readers parse it: the console, `secateur top`, tests.

Names and units are a promise to them; docs/reference/http.md tells what each means.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

ServerState = Literal["ready", "draining", "stuck", "dead"]
Numbers = list[float | None]
Counts = list[int | None]


class LiveModel(BaseModel):
    """A reader may be older or newer than the server: it skips what it does not know."""

    model_config = ConfigDict(frozen=True)


class Limits(LiveModel):
    """What the engine holds and does at once, and how long one request may be."""

    max_running: int
    max_waiting: int
    max_model_len: int
    max_num_batched_tokens: int
    kv_bytes: int


class Memory(LiveModel):
    """Bytes now. `process_bytes` is the resident set on the CPU, what torch holds on CUDA."""

    weight_bytes: int
    kv_bytes: int
    process_bytes: int
    device_used_bytes: int
    device_total_bytes: int


class Series(LiveModel):
    """One entry an interval, oldest first, all of one length; null where nothing is known."""

    time: list[float]
    generation_tokens_per_second: Numbers
    prompt_tokens_per_second: Numbers
    requests_per_second: Numbers
    rejections_per_second: Numbers
    running: Counts
    waiting: Counts
    kv_usage_ratio: Numbers
    time_to_first_token_p50_seconds: Numbers
    time_to_first_token_p95_seconds: Numbers
    inter_token_p50_seconds: Numbers
    inter_token_p95_seconds: Numbers
    process_bytes: Counts


class VariantSeries(LiveModel):
    """As long as `Series`; null while the variant was not there, or was not probed yet."""

    generation_tokens_per_second: Numbers
    accuracy: Numbers
    accuracy_lower: Numbers
    accuracy_upper: Numbers


class LiveEvidence(LiveModel):
    """The evidence of GET /v1/variants, whole; these are the fields of it that readers here look at."""

    model_config = ConfigDict(extra="allow")

    verdict: str
    items: int
    age_seconds: float | None
    accuracy: float | None
    accuracy_low: float
    accuracy_high: float


class LiveVariant(LiveModel):
    """One variant: totals since the start, levels now."""

    name: str
    sparsity: float
    exact_sparsity: float
    state: str
    running: int
    requests: int
    prompt_tokens: int
    generation_tokens: int
    standalone_bytes: int
    marginal_bytes: int
    evidence: LiveEvidence | None
    series: VariantSeries


class LiveVerdict(LiveModel):
    """A change of verdict, those before a restart among them."""

    time: float
    variant: str
    verdict: str
    previous: str | None


class LiveState(LiveModel):
    """The answer. Times are seconds since the epoch."""

    model: str
    version: str
    started: float
    now: float
    interval_seconds: float
    state: ServerState
    task: str | None
    tolerance: float | None
    safe_sparsity: float | None
    default_variant: str
    limits: Limits
    memory: Memory
    series: Series
    variants: list[LiveVariant]
    verdicts: list[LiveVerdict]
