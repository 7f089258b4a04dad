"""The kinds of values that several settings have, and how their text is read."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

DEFAULT_NUM_PROMPTS = 128
DEFAULT_SEED = 0


def split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def sorted_once(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{', '.join(map(str, values))} names a sparsity twice")
    return tuple(sorted(values))


def named_once(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{', '.join(values)} names something twice")
    return values


def some_keys(value: object) -> object:
    """Keys between commas; a text without any, as an unset variable leaves it, would open the server."""
    if isinstance(value, str) and not value.strip(", "):
        raise ValueError("there is no key in it: give one, or leave the setting out, which opens the server")
    return split_commas(value)


def a_key(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().strip():
        raise ValueError("the key is empty: give one, or leave the setting out")
    return value


def a_port(value: object) -> object:
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
    BeforeValidator(split_commas),
    Field(min_length=1),
    AfterValidator(sorted_once),
]
Key = Annotated[SecretStr, AfterValidator(a_key)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_commas)]
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
DEFAULT_SCORE: ScoreName = "taylor2_mixed"  # as in pruning/ranking/scores.py, which takes torch to import
AllocationName = Literal["auto", "uniform", "global"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
