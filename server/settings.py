"""Everything that can be set, once: a YAML file, then SECATEUR_* variables, then flags, each over the last.

The flags are made from these classes by server/cli.py; docs/reference/settings.md is held to them by a test.
Imports neither torch nor transformers, so that `secateur --help` answers at once.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from eval.tasks.jsonl import Match
from eval.tasks.registry import TaskOptions
from pruning.errors import SecateurError

ENV_PREFIX = "SECATEUR_"
DEFAULT_NUM_PROMPTS = 128
DEFAULT_SEED = 0


class SettingsError(SecateurError):
    """A setting is unknown, malformed or at odds with another."""


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def _sorted_once(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{', '.join(map(str, values))} names a sparsity twice")
    return tuple(sorted(values))


def _named_once(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{', '.join(values)} names something twice")
    return values


def _a_port(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            f"{value!r} is no port. Kubernetes sets this variable for a Service called secateur; give the "
            "Service another name or set enableServiceLinks: false"
        )
    return value


Sparsity = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Sparsities = Annotated[
    tuple[Sparsity, ...],
    NoDecode,
    BeforeValidator(_split_commas),
    Field(min_length=1),
    AfterValidator(_sorted_once),
]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_commas)]
ScoreName = Literal[
    "taylor2",
    "taylor1",
    "taylor2_wanda",
    "taylor2_mixed",
    "wanda",
    "flap",
    "act_l2",
    "selectivity",
    "magnitude",
    "random",
]
AllocationName = Literal["auto", "uniform", "global"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


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


class CommonSettings(TaskSettings):
    """Which model, and where"""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_ignore_empty=True, validate_default=True
    )

    config: Path | None = Field(None, description="YAML file with any of these settings, spelled with _")
    model: str = Field("math-mini", description="checkpoint directory, GGUF file, hub id, or math-mini")
    cache_dir: Path | None = Field(None, description="where profiles are kept; default: ~/.cache/secateur")
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...; auto takes CUDA where there is one")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="of weights and KV; auto: bfloat16, measuring on the CPU float32, exporting as it is",
    )
    threads: int | None = Field(
        None, ge=1, description="threads of one operation on the CPU; default: torch's"
    )
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
        return init_settings, env_settings, _YamlSource(settings_cls)


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
    score: ScoreName = Field("taylor2", description="what makes a neuron important")
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


class VariantSettings(BaseSettings):
    """The sizes on offer"""

    sparsities: Sparsities = Field(
        (0.0, 0.1, 0.15, 0.2), description="shares of MLP neurons to leave out, one variant each"
    )
    deltas: Paths = Field(
        (), description="files of `secateur compensate`: one corrected variant each, beside the plain ones"
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
    probe_tolerance: Share = Field(
        0.03, description="accuracy that a variant may lose to the dense model and count as safe"
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
    max_num_seqs: int = Field(64, ge=1, description="requests that run at once")
    # A prefill chunk delays every running request's next token; 512 is where CPU throughput levels off.
    max_num_batched_tokens: int = Field(
        512, ge=1, description="tokens of one step, prompt and output together"
    )
    max_waiting: int = Field(256, ge=0, description="requests that wait; one more is a 429")
    # With 12 rows a step still takes about as long as with one: it waits for the weights.
    prompt_lookup_tokens: int = Field(
        12, ge=0, description="steps of fewer tokens guess greedy answers ahead, up to so many; 0: never"
    )
    prefix_caching: bool = Field(True, description="keep the KV of finished requests for prompts alike")
    kernels: Literal["auto", "torch"] = Field(
        "auto", description="torch computes with torch alone; auto uses the compiled kernels where it can"
    )


class HttpSettings(BaseSettings):
    """The server"""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, BeforeValidator(_a_port)] = Field(
        8000, ge=0, le=65535, description="port to listen on; 0 takes a free one"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        (), description="bearer keys for /v1 and /tokenize; none: open to all"
    )
    admin_key: SecretStr | None = Field(None, description="bearer key for /admin; none: loopback peers alone")
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


class CalibrationSettings(BaseSettings):
    """The measurement"""

    out: Path | None = Field(None, description="file to write; default: the cache, where serve looks")
    force: bool = Field(False, description="measure again though there is a profile")
    num_prompts: int = Field(
        DEFAULT_NUM_PROMPTS, ge=1, description="prompts of the task, and as many distractors"
    )
    seed: int = Field(DEFAULT_SEED, ge=0, description="which prompts are drawn")


class ProfileSettings(CalibrationSettings, CommonSettings):
    """Measure what every neuron does on a task, and keep it."""


class StepSettings(BaseSettings):
    """The steps"""

    out: Path = Field(description="file to write, which --ranking takes")
    score: ScoreName = Field("taylor2", description="what makes a neuron important")
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
    force: bool = Field(False, description="measure from the beginning, whatever there is")
    num_prompts: int = Field(DEFAULT_NUM_PROMPTS, ge=1, description="prompts of the task to measure on")
    seed: int = Field(DEFAULT_SEED, ge=0, description="which prompts are drawn")


class RankSettings(StepSettings, CommonSettings):
    """Put neurons in order by taking a few away, measuring what is left, and so on.

    So a neuron is judged in the network that will do without those before it. Every step is kept beside
    --out: an order that was interrupted goes on where it was when the command is run again.
    """


class ComparisonSettings(BaseSettings):
    """The comparison"""

    scores: Annotated[
        tuple[ScoreName, ...], NoDecode, BeforeValidator(_split_commas), AfterValidator(_named_once)
    ] = Field((), description="what makes a neuron important, with commas; default: all there are")
    allocations: Annotated[
        tuple[Literal["global", "uniform"], ...],
        NoDecode,
        BeforeValidator(_split_commas),
        Field(min_length=1),
        AfterValidator(_named_once),
    ] = Field(("global", "uniform"), description="of widths; global where the score compares across layers")
    protect_neurons: Annotated[
        tuple[Share, ...], NoDecode, BeforeValidator(_split_commas), Field(min_length=1)
    ] = Field((0.0,), description="shares of each layer's neurons, the strongest by act_l2, that go last")
    protect_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], NoDecode, BeforeValidator(_split_commas), Field(min_length=1)
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
    delta: Path | None = Field(None, description="file of `secateur compensate` to merge into the weights")


class ExportSettings(VariantExportSettings, RankingSettings):
    """Write one variant as a stock checkpoint that other engines load."""


class FitSettings(BaseSettings):
    """The fit"""

    sparsity: Sparsity = Field(description="share of MLP neurons that the variant leaves out")
    rank: int = Field(64, ge=1, description="of the matrices added to each layer's W_d")
    out: Path = Field(description="file to write; unfinished work is kept in OUT.work beside it")
    num_prompts: int = Field(512, ge=1, description="prompts of the task whose answers are fitted")
    seed: int = Field(DEFAULT_SEED, ge=0, description="which prompts are drawn")
    max_memory: float = Field(
        8.0, gt=0, allow_inf_nan=False, description="memory that the fit may take, GiB; more is refused"
    )


class CompensateSettings(FitSettings, RankingSettings):
    """Correct one variant without training: low-rank matrices that make up for the neurons left out.

    They are fitted by least squares on the dense model's own answers, layer after layer. The file is a delta,
    which serve, eval and export take. A fit that was interrupted goes on where it was when it is run again.
    """


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
    delta: Path | None = Field(None, description="file of `secateur compensate` that corrects the variant")
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
    compare_scores: Annotated[tuple[ScoreName, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        (), description="further scores, with commas: selectivity is that of arXiv 2604.27115"
    )
    random_seeds: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        (42, 33), description="of random orders, the control that a score has to beat"
    )
    reverse: bool = Field(True, description="also remove the most useful neurons first")
    tolerance: Share = Field(0.03, gt=0, lt=1, description="accuracy that a safe variant may lose")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the intervals, and of what is called safe")
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


COMMANDS: dict[str, type[CommonSettings]] = {
    "serve": ServeSettings,
    "profile": ProfileSettings,
    "compensate": CompensateSettings,
    "rank": RankSettings,
    "compare": CompareSettings,
    "export": ExportSettings,
    "eval": EvalSettings,
    "study": StudySettings,
}
Settings = TypeVar("Settings", bound=CommonSettings)


def load_settings(kind: type[Settings], flags: Mapping[str, Any]) -> Settings:
    """Flags over environment over file over defaults.

    Raises:
        SettingsError: naming every setting at fault and what it may be.
    """
    try:
        return kind(**flags)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(line.replace("Value error, ", "") for line in told)) from error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """One line for each SECATEUR_* variable that no setting reads, with the nearest that one does."""
    known = [ENV_PREFIX + name.upper() for name in _known_names()]
    unknown = sorted(key for key in environment if key.startswith(ENV_PREFIX) and key not in known)
    return [f"{key} is no setting{_nearest(key, known)}" for key in unknown]


def groups(kind: type[CommonSettings]) -> dict[str, dict[str, FieldInfo]]:
    """The settings of a command under the headings of the classes they come from, common ones first."""
    bases = [base for base in reversed(kind.__mro__) if issubclass(base, BaseSettings)]
    return {
        str(base.__doc__): {
            name: base.model_fields[name] for name in base.__annotations__ if name in base.model_fields
        }
        for base in bases
        if base not in (BaseSettings, kind)
    }


class _YamlSource(PydanticBaseSettingsSource):
    """The file that `config` names, be it by flag or by variable."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the base class wants it; __call__ takes the whole file

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"cannot read the configuration {path}: {error}") from error
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise SettingsError(f"{path} must hold `name: value` lines, not a {type(content).__name__}")
        known = _known_names() - {"config"}
        unknown = [str(key) for key in content if key not in known]
        if unknown:
            told = "; ".join(f"{key!r} is no setting{_nearest(key, known)}" for key in unknown)
            raise SettingsError(f"{path}: {told}")
        # One file may serve all commands: each takes what it knows.
        return {key: value for key, value in content.items() if key in self.settings_cls.model_fields}


def _known_names() -> set[str]:
    return {name for kind in COMMANDS.values() for name in kind.model_fields}


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
