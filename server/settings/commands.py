"""The commands and what each can be told; settings are loaded here."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from server.settings.common import ENV_PREFIX, CommandSettings, known_names
from server.settings.judging import EvalSettings, StudySettings
from server.settings.making import (
    CompareSettings,
    CompensateSettings,
    ExportSettings,
    ProfileSettings,
    RankSettings,
)
from server.settings.recovery import RecoverSettings
from server.settings.serving import ServeSettings
from server.settings.sources import SettingsError, nearest
from server.settings.watching import TopSettings

COMMANDS: dict[str, type[CommandSettings]] = {
    "serve": ServeSettings,
    "profile": ProfileSettings,
    "compensate": CompensateSettings,
    "recover": RecoverSettings,
    "rank": RankSettings,
    "compare": CompareSettings,
    "export": ExportSettings,
    "eval": EvalSettings,
    "study": StudySettings,
    "top": TopSettings,
}
Settings = TypeVar("Settings", bound=CommandSettings)


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
    known = [ENV_PREFIX + name.upper() for name in known_names()]
    unknown = sorted(key for key in environment if key.startswith(ENV_PREFIX) and key not in known)
    return [f"{key} is no setting{nearest(key, known)}" for key in unknown]


def groups(kind: type[CommandSettings]) -> dict[str, dict[str, FieldInfo]]:
    """The settings of a command under the headings of the classes they come from, common ones first."""
    bases = [base for base in reversed(kind.__mro__) if issubclass(base, BaseSettings)]
    return {
        str(base.__doc__): {
            name: base.model_fields[name] for name in base.__annotations__ if name in base.model_fields
        }
        for base in bases
        if base not in (BaseSettings, kind)
    }
