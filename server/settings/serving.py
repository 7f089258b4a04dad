"""What `secateur serve` can be told; the engine's part of it, other commands as well."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode

from server.engine.config import Kernels, Quantization
from server.settings.common import RankingSettings
from server.settings.fields import Key, Paths, Share, Sparsities, Sparsity, a_port, some_keys


class VariantSettings(BaseSettings):
    """The sizes on offer"""

    sparsities: Sparsities = Field(
        (0.0, 0.1, 0.15, 0.2), description="shares of MLP neurons to leave out, one variant each"
    )
    deltas: Paths = Field(
        (),
        description="files of `secateur compensate` or `recover`: one corrected variant each, beside the "
        "plain ones",
    )
    default_sparsity: Sparsity | None = Field(
        None, description="of requests that do not say; default: the smallest served"
    )
    safe_sparsity: Sparsity | None = Field(
        None,
        description="beyond it a variant is served only where allowed; default: what `secateur study` found "
        "for this model, else 0.2",
    )
    allow_unsafe: bool = Field(False, description="serve sparsities beyond safe_sparsity to everyone")


class JudgeSettings(BaseSettings):
    """What is measured while serving, and what follows from it"""

    probe_budget: Share = Field(
        0.02, description="share of the engine's capacity that probes may take; 0: only when asked for"
    )
    # From 0.5 on no reference could solve twice as much, and nothing would ever be safe.
    probe_tolerance: Share = Field(
        0.03, lt=0.5, description="accuracy that a variant may lose to the dense model and count as safe"
    )
    guard_prompts: Path | None = Field(
        None,
        description="JSON lines file of general prompts, on which variants are held against the densest one; "
        "default: some of the task's distractors",
    )
    on_degraded: Literal["refuse", "fallback"] = Field(
        "refuse", description="a degraded variant answers 409, or the next denser safe one answers"
    )
    auto_accuracy_drop: Share = Field(
        0.01,
        description='loss that "sparsity": "auto" takes on an idle server; probe_tolerance on a full one',
    )
    shadow_share: Share = Field(
        0.01, description="share of pruned answers that the dense variant scores as well; 0: none"
    )


class EngineSettings(BaseSettings):
    """How much the engine holds and does at once"""

    kv_cache_gib: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="memory for KV blocks, GiB; default: 1 on CPU, 4 on CUDA"
    )
    block_size: int = Field(16, ge=1, le=256, description="tokens in a KV block")
    max_model_len: int | None = Field(
        None, ge=2, description="tokens of one prompt and answer; default: the model's, 4096 at most"
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="requests that run at once; default: 64 on CPU, 256 on CUDA"
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of one step, prompt and output together; default: 512 on CPU, 4096 on CUDA",
    )
    max_waiting: int = Field(
        256, ge=0, description="requests beyond max_num_seqs that are taken; one more is a 429"
    )
    # With 12 rows a step still takes about as long as with one: it waits for the weights.
    prompt_lookup_tokens: int = Field(
        12, ge=0, description="steps of fewer tokens guess greedy answers ahead, up to so many; 0: never"
    )
    prefix_caching: bool = Field(True, description="keep the KV of finished requests for prompts alike")
    quantization: Quantization = Field(
        "none",
        description="int8 rounds matrices, and what they multiply, to 8 bits: half the memory, faster, "
        "slightly other answers",
    )
    kernels: Kernels = Field(
        "auto",
        description="torch computes with torch alone; auto uses our own kernels where it can (compiled on a "
        "CPU, Triton's and CUDA graphs on CUDA), avx512 leaves the CPU's matrix unit (AMX) out",
    )


class HttpSettings(BaseSettings):
    """The server"""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, BeforeValidator(a_port)] = Field(
        8000, ge=0, le=65535, description="port to listen on; 0 takes a free one"
    )
    api_keys: Annotated[tuple[Key, ...], NoDecode, BeforeValidator(some_keys)] = Field(
        (), description="bearer keys for /v1 and /tokenize; none: open to all"
    )
    admin_key: Key | None = Field(
        None,
        description="bearer key for /admin; none: loopback peers alone, at localhost or an address, and no "
        "other site's page",
    )
    console: bool = Field(True, description="the web page at /")
    traces: bool = Field(
        False, description="OpenTelemetry spans of requests; the OTEL_* variables say where they go"
    )
    max_body_bytes: int = Field(4 * 2**20, ge=1, description="largest body that is read")
    shutdown_timeout_seconds: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="time that running requests have after SIGTERM"
    )


class ServeSettings(HttpSettings, EngineSettings, JudgeSettings, VariantSettings, RankingSettings):
    """Serve a model at every configured sparsity."""

    @property
    def default_variant_sparsity(self) -> float:
        """Of requests that do not say."""
        return self.sparsities[0] if self.default_sparsity is None else self.default_sparsity

    @model_validator(mode="after")
    def _default_is_served(self) -> "ServeSettings":
        if self.default_variant_sparsity not in self.sparsities:
            served = ", ".join(map(str, self.sparsities))
            raise ValueError(f"default_sparsity {self.default_sparsity} is not among sparsities {served}")
        return self

    @model_validator(mode="after")
    def _tolerances_agree(self) -> "ServeSettings":
        if self.auto_accuracy_drop > self.probe_tolerance:
            raise ValueError(
                f"auto_accuracy_drop {self.auto_accuracy_drop:g} is beyond probe_tolerance "
                f"{self.probe_tolerance:g}, which probes hold variants to: lower the one or raise the other"
            )
        return self
