"""What the commands that judge variants can be told."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode

from server.settings.common import RankingSettings
from server.settings.fields import DEFAULT_SEED, ScoreName, Share, Sparsities, Sparsity, split_commas
from server.settings.serving import EngineSettings


class QuestionSettings(BaseSettings):
    """The questions"""

    items: int | None = Field(
        None, ge=1, description="held-out items of the task; default: all, or 500 of an endless task"
    )
    seed: int = Field(DEFAULT_SEED, ge=0, description="which items are drawn")
    stop_on_loop: bool = Field(
        True, description="end answers that go round in circles: a loop does not end by itself"
    )
    api_key: SecretStr | None = Field(None, description="bearer key, where --model is the URL of a server")


class EvaluatedSettings(BaseSettings):
    """The variant"""

    sparsity: Sparsity = Field(0.0, description="share of MLP neurons left out; 0: the dense model")
    delta: Path | None = Field(
        None, description="file of `secateur compensate` or `recover` that corrects the variant"
    )
    out: Path | None = Field(None, description="JSON file to write: every answer, and what they amount to")


class EvalSettings(EvaluatedSettings, QuestionSettings, EngineSettings, RankingSettings):
    """Measure how well one variant does at a task.

    --model is a checkpoint, loaded into this process, or the URL of an OpenAI-style server. Accuracy comes
    with its 95% Wilson interval, and traps are answers that did not end.
    """


class ExperimentSettings(BaseSettings):
    """The experiment"""

    sparsities: Sparsities = Field(
        (0.1, 0.15, 0.2, 0.3, 0.35), description="shares of MLP neurons to leave out, besides 0"
    )
    compare_scores: Annotated[tuple[ScoreName, ...], NoDecode, BeforeValidator(split_commas)] = Field(
        (), description="further scores, with commas: selectivity is that of arXiv 2604.27115"
    )
    random_seeds: Annotated[tuple[int, ...], NoDecode, BeforeValidator(split_commas)] = Field(
        (42, 33), description="of random orders, the control that a score has to beat"
    )
    reverse: bool = Field(True, description="also remove the most useful neurons first")
    tolerance: Share = Field(0.03, gt=0, lt=0.5, description="accuracy that a safe variant may lose")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the intervals, and of what is called safe")
    so_far: bool = Field(
        False, description="ask nothing: report on the cells that an interrupted study has completed"
    )
    out: Path | None = Field(
        None, description="directory of report and answers so far; default: studies/MODEL-TASK"
    )


class StudySettings(ExperimentSettings, QuestionSettings, EngineSettings, RankingSettings):
    """Find out how much of a model may go: every strategy at every sparsity, on the same items.

    Each strategy says which neurons go first: --score, --compare-scores, random orders, and --score in
    reverse. A paired test against the dense model finds the largest sparsity that is safe, and `secateur
    serve` takes it from there. The answers are kept as they come: a study that was interrupted goes on where
    it was when it is run again, and with more items or sparsities only what is new is computed. --model may
    be the URL of a Secateur server: then only its sparsities are studied, as it serves them.
    """

    @model_validator(mode="after")
    def _scores_differ(self) -> "StudySettings":
        scores = self.compare_scores if self.ranking is not None else (self.score, *self.compare_scores)
        if len({*scores, *self.random_seeds}) < len(scores) + len(self.random_seeds):
            raise ValueError(f"a strategy is named twice among {scores} and random_seeds {self.random_seeds}")
        return self
