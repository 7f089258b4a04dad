"""The `secateur` command's arguments: one flag for each setting, made from server/settings/.

Parses; runs nothing. Values stay strings here, the settings validate them like any other source's.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from eval.tasks.registry import task_table
from server import __version__
from server.settings import COMMANDS, ENV_PREFIX, CommandSettings, CommonSettings, groups, load_settings

UNTOLD = ("cache_dir", "log_level")  # change nothing that is found


def parse_arguments(argv: Sequence[str]) -> CommandSettings:
    """The settings of the command that `argv` names; prints and exits for --help, --version and `tasks`.

    Raises:
        SettingsError: a value from flags, environment or file is unfit.
    """
    given: dict[str, Any] = vars(_parser().parse_args(argv))
    command = given.pop("command")
    if command == "tasks":
        print(task_list())
        raise SystemExit(0)
    return load_settings(COMMANDS[command], given)


def task_list() -> str:
    """What `secateur tasks` prints: every task, its held-out items, how they are graded, what it needs."""
    return "\n".join(
        f"{name}\n  items   {kind.items}\n  graded  {kind.grading}\n  needs   {kind.needs}"
        for name, kind in task_table()
    )


def flag(name: str) -> str:
    """The flag that sets `name`."""
    return "--" + name.replace("_", "-")


def default_text(field: FieldInfo) -> str:
    """A default as one would write it on the command line, "" for none."""
    default = field.default
    if field.is_required() or default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return _listed(default)
    return str(default)


def command_line(command: str, settings: CommonSettings) -> str:
    """The command that leads to these settings from the defaults, as it can be read elsewhere.

    Without keys, and without the folders that things happen to lie in here.
    """
    words = ["secateur", command]
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value is None or value == field.default or name in UNTOLD or isinstance(value, SecretStr):
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            words += [flag(name), _value_text(value)]
    return shlex.join(words)


def _listed(values: tuple[str | float, ...]) -> str:
    return ",".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return _listed(value)
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secateur",
        description="Serve one language model at several sparsities at once, from one copy of its weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, kind in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=str(kind.__doc__).partition("\n")[0],
            description=kind.__doc__,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            epilog=f"Every flag is also a variable ({ENV_PREFIX}PORT for --port) and a line of the file that "
            "--config names (port: 8000); flags go before variables, variables before the file.",
        )
        for title, fields in groups(kind).items():
            group = command.add_argument_group(title)
            for field_name, field in fields.items():
                _add_flag(group, field_name, field)
    listing = "List the tasks: what they need, how many items they have, how those are graded."
    commands.add_parser("tasks", help=listing, description=listing, allow_abbrev=False)
    return parser


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    default = default_text(field)
    text = f"{field.description} [{default}]" if default else str(field.description)
    options: dict[str, Any] = {"dest": name, "help": text.replace("%", "%%")}
    if field.annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = _metavar(name, field)
    group.add_argument(flag(name), **options)


def _metavar(name: str, field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    if SecretStr in choices:
        return "KEY"
    return name.split("_")[-1].upper()
