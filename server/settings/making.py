"""What the commands that make files of a model can be told: profiles, orders, corrections, checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode

from server.settings.common import CommonSettings, ProfiledSettings, RankingSettings
from server.settings.fields import (
    DEFAULT_NUM_PROMPTS,
    DEFAULT_SCORE,
    DEFAULT_SEED,
    AllocationName,
    Paths,
    ScoreName,
    Share,
    Sparsities,
    Sparsity,
    named_once,
    split_commas,
)


class MemorySettings(BaseSettings):
    """The memory"""

    max_memory: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="that weights and what is computed may take, GiB: less takes longer, with the same "
        "result; default: what is free",
    )


class CalibrationSettings(BaseSettings):
    """The measurement"""

    out: Path | None = Field(None, description="file to write; default: the cache, where serve looks")
    force: bool = Field(False, description="measure again though there is a profile")
    num_prompts: int = Field(
        DEFAULT_NUM_PROMPTS, ge=1, description="prompts of the task, and as many distractors"
    )
    seed: int = Field(DEFAULT_SEED, ge=0, description="which prompts are drawn")


class ProfileSettings(CalibrationSettings, MemorySettings, CommonSettings):
    """Measure what every neuron does on a task, and keep it."""


class StepSettings(BaseSettings):
    """The steps"""

    out: Path = Field(description="file to write, which --ranking takes")
    score: ScoreName = Field(DEFAULT_SCORE, description="what makes a neuron important")
    allocation: AllocationName = Field(
        "auto",
        description="one order of all neurons, or as many out of each layer; auto: as the score allows",
    )
    step: float = Field(
        0.05,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="share of the neurons that goes between measurements",
    )
    max_sparsity: Sparsity = Field(0.5, gt=0, description="up to which the order is measured anew")
    reweigh: bool = Field(
        False, description="count tokens by how far the pruned model is from the dense one at them"
    )
    force: bool = Field(False, description="measure from the beginning, whatever there is")
    num_prompts: int = Field(DEFAULT_NUM_PROMPTS, ge=1, description="prompts of the task to measure on")
    seed: int = Field(DEFAULT_SEED, ge=0, description="which prompts are drawn")


class RankSettings(StepSettings, MemorySettings, CommonSettings):
    """Put neurons in order by taking a few away, measuring what is left, and so on.

    So a neuron is judged in the network that will do without those before it. Every step is kept beside
    --out: an order that was interrupted goes on where it was when the command is run again.
    """


class ComparisonSettings(BaseSettings):
    """The comparison"""

    scores: Annotated[
        tuple[ScoreName, ...], NoDecode, BeforeValidator(split_commas), AfterValidator(named_once)
    ] = Field((), description="what makes a neuron important, with commas; default: all there are")
    allocations: Annotated[
        tuple[Literal["global", "uniform"], ...],
        NoDecode,
        BeforeValidator(split_commas),
        Field(min_length=1),
        AfterValidator(named_once),
    ] = Field(("global", "uniform"), description="of widths; global where the score compares across layers")
    protect_neurons: Annotated[
        tuple[Share, ...],
        NoDecode,
        BeforeValidator(split_commas),
        Field(min_length=1),
        AfterValidator(named_once),
    ] = Field((0.0,), description="shares of each layer's neurons, the strongest by act_l2, that go last")
    protect_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        NoDecode,
        BeforeValidator(split_commas),
        Field(min_length=1),
        AfterValidator(named_once),
    ] = Field((0,), description="how many first and last layers go last")
    rankings: Paths = Field((), description="files that `secateur rank` wrote, to be compared as well")
    sparsities: Sparsities = Field((0.1, 0.2, 0.3), description="shares of MLP neurons to leave out")
    items: int = Field(64, ge=2, description="held-out items whose answers are compared")
    seed: int = Field(DEFAULT_SEED, ge=0, description="which items are drawn")
    out: Path | None = Field(
        None, description="directory of result and answers so far; default: comparisons/MODEL-TASK"
    )


class CompareSettings(ComparisonSettings, ProfiledSettings):
    """Find out which way of ranking neurons leaves a model most like its dense self.

    Every candidate reads the dense model's own answers to held-out items, at every sparsity, and its
    next-token distributions are held against the dense ones. What is measured is kept: an interrupted
    comparison goes on where it was when the command is run again. The recommended order is written as well:
    `serve --ranking` takes it.
    """

    @model_validator(mode="after")
    def _pruned(self) -> "CompareSettings":
        if 0 in self.sparsities:
            raise ValueError("at sparsity 0 all candidates are the dense model")
        return self


class VariantExportSettings(BaseSettings):
    """The checkpoint"""

    sparsity: Sparsity = Field(description="share of MLP neurons to leave out")
    out: Path = Field(description="directory to write; empty, or not there yet")
    uniform: bool = Field(False, description="one width for all layers, whatever allocation says")
    delta: Path | None = Field(
        None, description="file of `secateur compensate` or `recover` to merge into the weights"
    )


class ExportSettings(VariantExportSettings, RankingSettings):
    """Write one variant as a stock checkpoint that other engines load."""


class FitSettings(BaseSettings):
    """The fit"""

    sparsity: Sparsity = Field(description="share of MLP neurons that the variant leaves out")
    rank: int = Field(64, ge=1, description="of the matrices added to each layer's W_d")
    out: Path = Field(description="file to write; unfinished work is kept in OUT.work beside it")
    num_prompts: int = Field(512, ge=1, description="prompts of the task whose answers are fitted")
    seed: int = Field(DEFAULT_SEED, ge=0, description="which prompts are drawn")


class CompensateSettings(FitSettings, MemorySettings, RankingSettings):
    """Correct one variant without training: low-rank matrices that make up for the neurons left out.

    They are fitted by least squares on the dense model's own answers, layer after layer. The file is a delta,
    which serve, eval and export take. A fit that was interrupted goes on where it was when it is run again.
    """
