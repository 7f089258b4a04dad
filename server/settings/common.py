"""What several commands have in common: the task, the model, and which neurons go first."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from eval.tasks.jsonl import Match
from eval.tasks.registry import TaskOptions
from server.settings.fields import DEFAULT_SCORE, AllocationName, ScoreName
from server.settings.sources import YamlSource

ENV_PREFIX = "SECATEUR_"


class CommandSettings(BaseSettings):
    """Where settings come from, and what is logged"""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_ignore_empty=True, validate_default=True
    )

    config: Path | None = Field(None, description="YAML file with any of these settings, spelled with _")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlSource(settings_cls, known_names())


class TaskSettings(BaseSettings):
    """The task: what neurons are measured on, and what variants are judged by"""

    task: str = Field(
        "arithmetic", description="arithmetic, gsm8k, humaneval, mbpp (secateur tasks), or a name of your own"
    )
    prompts: Path | None = Field(None, description="JSON lines file with the task's problems")
    distractors: Path | None = Field(
        None,
        description="JSON lines file with prompts foreign to the task; built-in ones have made-up stories",
    )
    prompt_field: str = Field("prompt", description="field of your own task's prompts")
    answer_field: str | None = Field(
        None, description="field of your own task's expected answers; default: it has none"
    )
    match: Match = Field("exact", description="how your own task's answers are held to the expected ones")
    i_accept_unsandboxed_code: bool = Field(
        False, description="run model-written code even where no sandbox can be had"
    )

    def task_options(self) -> TaskOptions:
        """The same for eval/tasks/registry.py."""
        return TaskOptions(
            path=self.prompts,
            distractors_path=self.distractors,
            prompt_field=self.prompt_field,
            answer_field=self.answer_field,
            match=self.match,
            accept_unsandboxed_code=self.i_accept_unsandboxed_code,
        )


class CommonSettings(TaskSettings, CommandSettings):
    """Which model, and where"""

    model: str = Field("math-mini", description="checkpoint directory, GGUF file, hub id, or math-mini")
    cache_dir: Path | None = Field(
        None, description="where profiles, answers and evidence are kept; default: ~/.cache/secateur"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...; auto takes CUDA where there is one")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="of weights and KV; auto: bfloat16, exporting as it is, measuring on a CPU float32 where "
        "the model is small or the CPU does not multiply bfloat16",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of one operation on the CPU; default: torch's, or what a container's CPU quota "
        "feeds",
    )


class ProfiledSettings(CommonSettings):
    """What is known of the neurons"""

    profile: Path | None = Field(
        None, description="profile of the model; default: the cached one, measured on first use"
    )


class RankingSettings(ProfiledSettings):
    """Which neurons go first"""

    ranking: Path | None = Field(
        None, description="an order that `secateur rank` or `compare` wrote, in place of a score"
    )
    score: ScoreName = Field(DEFAULT_SCORE, description="what makes a neuron important")
    order: Literal["forward", "reverse"] = Field(
        "forward", description="reverse removes the most important first, for experiments"
    )
    allocation: AllocationName = Field(
        "auto", description="one width for all layers, or one order of all neurons; auto: as the score allows"
    )

    @model_validator(mode="after")
    def _one_order(self) -> "RankingSettings":
        if self.ranking is not None and "score" in self.model_fields_set:
            raise ValueError(f"ranking {self.ranking} and score {self.score} both say which neurons go first")
        return self


def known_names() -> set[str]:
    """Every setting of every command."""
    return {name for kind in _subclasses(CommandSettings) for name in kind.model_fields}


def _subclasses(kind: type[CommandSettings]) -> list[type[CommandSettings]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _subclasses(child))]
