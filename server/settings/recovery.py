"""What `secateur recover` can be told."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode

from server.settings.common import RankingSettings
from server.settings.fields import DEFAULT_SEED, Sparsity, sorted_once, split_commas
from server.settings.making import MemorySettings


class RecoveredSettings(BaseSettings):
    """The variants, and what trains them"""

    sparsity: Sparsity | None = Field(None, description="share of MLP neurons that the variant leaves out")
    sparsities: Annotated[
        tuple[Sparsity, ...], NoDecode, BeforeValidator(split_commas), AfterValidator(sorted_once)
    ] = Field(
        (),
        description="several shares that one training recovers, where --sparsity names none; each gets a "
        "delta of its own",
    )
    out: Path = Field(description="file to write; unfinished work is kept in OUT.work beside it")
    init: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_commas)] = Field(
        (),
        description="delta of the variant, or of each, e.g. one that `secateur compensate` fitted: it stays "
        "as it is, and what is trained is added to it",
    )
    num_prompts: int = Field(
        1024, ge=1, description="prompts of the task; the dense model's answers to them are trained on"
    )
    top_tokens: int = Field(
        32, ge=1, description="likeliest tokens of the dense model, to whose probabilities it is held"
    )


class TrainingSettings(BaseSettings):
    """The training"""

    rank: int = Field(16, ge=1, description="of the matrices added to each of the seven maps of a layer")
    alpha: float = Field(
        32.0, gt=0, allow_inf_nan=False, description="what the matrices add is scaled by alpha / rank"
    )
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False, description="at its peak")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls to zero, or that it does not"
    )
    warmup: float = Field(
        0.05, ge=0, lt=1, allow_inf_nan=False, description="share of the steps in which it rises"
    )
    epochs: int = Field(2, ge=1, description="how often every answer is read")
    batch_tokens: int = Field(1024, ge=1, description="tokens of prompts and answers in a step, about")
    row_tokens: int = Field(1024, ge=1, description="tokens computed at once: less takes less memory")
    ce_weight: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="of the cross-entropy beside the divergence"
    )
    evaluations: int = Field(10, ge=1, description="how often held-out answers are measured on the way")
    patience: int = Field(
        8, ge=1, description="so many of these measurements without a gain end the training"
    )
    seed: int = Field(DEFAULT_SEED, ge=0, description="of prompts, their order and the first matrices")
    recompute: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compute activations again on the way back, for a quarter more time; auto: where "
        "--max-memory has no room for them",
    )
    save_seconds: float = Field(
        60.0, ge=0, allow_inf_nan=False, description="time between writes of the training's progress"
    )


class RecoverSettings(TrainingSettings, MemorySettings, RecoveredSettings, RankingSettings):
    """Bring pruned variants back by training: low-rank matrices beside every linear map.

    They are trained on the dense model's own answers and held to its probabilities. The file is a delta,
    which serve, eval and export take; a report with the curves lies beside it. A training that was
    interrupted, at any moment, goes on where it was when it is run again. Several devices train together
    where torchrun starts a process for each.
    """

    @property
    def variants(self) -> tuple[float, ...]:
        """Their sparsities, rising."""
        return self.sparsities if self.sparsity is None else (self.sparsity,)

    @model_validator(mode="after")
    def _has_variants(self) -> "RecoverSettings":
        if not self.variants:
            raise ValueError("neither --sparsity nor --sparsities says which variants to recover: give one")
        if 0 in self.variants:
            raise ValueError("at sparsity 0 there is nothing to recover")
        if len(self.init) not in (0, len(self.variants)):
            raise ValueError(
                f"init names {len(self.init)} deltas for {len(self.variants)} variants: give one of each, "
                "or none"
            )
        return self
