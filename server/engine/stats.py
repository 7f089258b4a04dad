"""What one engine step did, as plain numbers for whoever counts them. No torch, no Prometheus."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepStats:
    """Taken after each step. Tokens are those the step computed, prompt and output alike."""

    step_seconds: float
    batch_tokens: dict[str, int]  # variant name -> tokens
    num_running: int
    num_waiting: int
    kv_usage_ratio: float
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache in this step
    prefix_hits: int = 0  # ... and found there
    preemptions: int = 0
    num_running_by_variant: dict[str, int] = field(default_factory=dict)
