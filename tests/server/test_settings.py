"""File < environment < flags; what is wrong is named; docs and --help say what the code does."""

import os
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from pruning.ranking.scores import DEFAULT_SCORE, SCORES
from pruning.ranking.widths import Allocation
from server import __version__
from server.__main__ import EXIT_USAGE, main
from server.cli import COMMANDS, command_line, default_text, flag, parse_arguments
from server.settings import (
    ENV_PREFIX,
    ExportSettings,
    ProfileSettings,
    ServeSettings,
    SettingsError,
    StudySettings,
    groups,
    load_settings,
    unknown_variables,
)
from tests.processes import printed_by

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


def serve_settings(*arguments: str) -> ServeSettings:
    settings = parse_arguments(["serve", *arguments])
    assert isinstance(settings, ServeSettings)
    return settings


@pytest.mark.parametrize(
    "given", [["--admin-key", ""], ["--admin-key", " "], ["--api-keys", ""], ["--api-keys", ","]], ids=str
)
def test_keys_that_are_none_are_refused(given: list[str], tmp_path: Path) -> None:
    """As a variable that is not set leaves them: they would open the server to all."""
    with pytest.raises(SettingsError, match=r"leave the setting out"):
        serve_settings(*given)
    file = tmp_path / "config.yaml"
    file.write_text("api_keys: ['']")
    with pytest.raises(SettingsError, match="the key is empty"):
        serve_settings("--config", str(file))


def test_each_source_wins_over_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secateur.yaml"
    file.write_text("port: 1\nhost: from-file\nblock_size: 8\n")
    monkeypatch.setenv("SECATEUR_PORT", "2")
    monkeypatch.setenv("SECATEUR_HOST", "from-environment")
    settings = serve_settings("--config", str(file), "--port", "3")
    assert (settings.port, settings.host, settings.block_size) == (3, "from-environment", 8)
    assert settings.max_waiting == ServeSettings.model_fields["max_waiting"].default


def test_the_file_may_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secateur.yaml"
    file.write_text("port: 1\n")
    monkeypatch.setenv("SECATEUR_CONFIG", str(file))
    assert serve_settings().port == 1


def test_lists_are_written_with_commas_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (0.0, 0.1, 0.35)
    assert serve_settings("--sparsities", "0.35,0,0.1").sparsities == expected
    monkeypatch.setenv("SECATEUR_SPARSITIES", "0, 0.1, 0.35")
    assert serve_settings().sparsities == expected
    monkeypatch.delenv("SECATEUR_SPARSITIES")
    file = tmp_path / "secateur.yaml"
    for text in ("sparsities: [0.35, 0.1, 0]", "sparsities: 0,0.1,0.35"):
        file.write_text(text)
        assert serve_settings("--config", str(file)).sparsities == expected


def test_flags_switch_on_and_off() -> None:
    assert serve_settings("--allow-unsafe").allow_unsafe
    assert not serve_settings("--no-prefix-caching").prefix_caching


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "99999"], "port"),
        (["--sparsities", "0,1.2"], "sparsities"),
        (["--sparsities", "0,nan"], "sparsities"),
        (["--sparsities", "0.1,0.1"], "twice"),
        (["--default-sparsity", "0.5"], "not among"),
        (["--auto-accuracy-drop", "0.05"], "beyond probe_tolerance"),
        (["--probe-budget", "2"], "probe_budget"),
        (["--kv-cache-gib", "0"], "kv_cache_gib"),
        (["--kv-cache-gib", "inf"], "kv_cache_gib"),
        (["--score", "best"], "taylor2"),
    ],
)
def test_a_bad_value_is_named(arguments: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        serve_settings(*arguments)


def test_kubernetes_service_links_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(SettingsError, match="enableServiceLinks"):
        serve_settings()


def test_an_unknown_key_in_the_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "secateur.yaml"
    file.write_text("sparsites: [0]\n")
    with pytest.raises(SettingsError, match=r"'sparsites' is no setting \(did you mean sparsities\?\)"):
        serve_settings("--config", str(file))


@pytest.mark.parametrize("content", ["- a list", "port: [", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "secateur.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        serve_settings("--config", str(file))


def test_one_file_serves_all_commands(tmp_path: Path) -> None:
    file = tmp_path / "secateur.yaml"
    file.write_text("model: somewhere\nport: 1\nnum_prompts: 7\norder: reverse\nsparsity: 0.3\n")
    assert load_settings(ServeSettings, {"config": file}).port == 1
    profile = load_settings(ProfileSettings, {"config": file})
    assert (profile.num_prompts, profile.model) == (7, "somewhere")
    export = load_settings(ExportSettings, {"config": file, "out": tmp_path})
    assert (export.order, export.sparsity) == ("reverse", 0.3)


def test_an_export_needs_a_sparsity_and_a_place() -> None:
    with pytest.raises(SettingsError, match=r"sparsity: Field required\nout: Field required"):
        load_settings(ExportSettings, {})


def test_unknown_variables_are_named_with_the_nearest() -> None:
    assert unknown_variables({"SECATEUR_PROT": "1", "SECATEUR_PORT": "1", "HOME": "/"}) == [
        "SECATEUR_PROT is no setting (did you mean SECATEUR_PORT?)"
    ]


def test_keys_do_not_show_in_the_settings() -> None:
    settings = serve_settings("--api-keys", "sesame,open", "--admin-key", "root")
    assert [key.get_secret_value() for key in settings.api_keys] == ["sesame", "open"]
    assert not {"sesame", "open", "root"} & set(re.findall(r"\w+", repr(settings)))


def test_the_choices_are_those_of_the_pruning_package() -> None:
    fields = ServeSettings.model_fields
    assert set(get_args(fields["score"].annotation)) == set(SCORES)
    assert fields["score"].default == DEFAULT_SCORE
    assert set(get_args(fields["allocation"].annotation)) == {"auto", *get_args(Allocation)}


def test_the_docs_list_every_setting_and_no_other() -> None:
    documented = set(re.findall(r"^\| `--.*$", DOCS.read_text(), flags=re.MULTILINE))
    expected = set()
    for kind in COMMANDS.values():
        for fields in groups(kind).values():
            for name, field in fields.items():
                default = f"`{default_text(field)}`" if default_text(field) else "–"  # noqa: RUF001
                variable = f"{ENV_PREFIX}{name.upper()}"
                expected.add(f"| `{flag(name)}` | `{variable}` | {default} | {field.description} |")
    assert documented == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_every_flag_and_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for fields in groups(COMMANDS[command]).values():
        for name, field in fields.items():
            default = f" [{default_text(field)}]" if default_text(field) else ""
            assert flag(name) in shown
            assert f"{field.description}{default}" in shown.replace("- ", "-")


def test_a_bad_setting_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "x"]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("secateur: port: ")
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--version"], ["serve", "--help"]])
def test_help_and_version_do_not_load_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom server.__main__ import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    printed = printed_by(script)
    assert arguments != ["--version"] or printed.strip() == f"secateur {__version__}"


def test_a_command_can_be_read_elsewhere_and_leads_to_the_same_settings() -> None:
    told = "secateur study --task humaneval --model coder --sparsities 0.1,0.2 --random-seeds '' --no-reverse"
    settings = parse_arguments(shlex.split(told)[1:])
    assert isinstance(settings, StudySettings)
    assert command_line("study", settings) == told


def test_a_command_tells_neither_keys_nor_where_things_lie() -> None:
    here = ["--model", "/somewhere/coder", "--api-key", "secret", "--cache-dir", "/somewhere"]
    settings = parse_arguments(["study", *here])
    assert isinstance(settings, StudySettings)
    assert command_line("study", settings) == "secateur study --model coder"
