"""The file that settings may come from, and what to say of names that no setting has."""

import difflib
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from pruning.errors import SecateurError


class SettingsError(SecateurError):
    """A setting is unknown, malformed or at odds with another."""


class YamlSource(PydanticBaseSettingsSource):
    """The file that `config` names, be it by flag or by variable."""

    def __init__(self, settings_cls: type[BaseSettings], known: Set[str]) -> None:
        """`known`: every setting of every command, for one file may serve them all."""
        super().__init__(settings_cls)
        self._known = known

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
        known = self._known - {"config"}
        unknown = [str(key) for key in content if key not in known]
        if unknown:
            told = "; ".join(f"{key!r} is no setting{nearest(key, known)}" for key in unknown)
            raise SettingsError(f"{path}: {told}")
        return {key: value for key, value in content.items() if key in self.settings_cls.model_fields}


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
