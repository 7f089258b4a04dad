"""`secateur eval` loses nothing that it took long to find out."""

from pathlib import Path

import pytest

from eval import evaluation as evaluations
from server.__main__ import EXIT_FAILED, main
from tests.server.commands.counting import profiled_arguments


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    given = profiled_arguments(tmp_path_factory.mktemp("evaluating"), 8)
    return ["eval", *given, "--items", "2", "--dtype", "float32", "--max-model-len", "1024"]


def test_the_directory_of_the_result_is_made(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "eval.json"
    assert main([*arguments, "--out", str(out)]) == 0
    assert evaluations.load(out).score.items == 2
    assert [file.name for file in out.parent.iterdir()] == ["eval.json"]


def test_nothing_is_asked_where_nothing_can_be_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("server.commands.evaluating.answer_items", None)
    assert main([*arguments, "--out", str(tmp_path / "file" / "eval.json")]) == EXIT_FAILED
    assert "nothing can be written beside" in capsys.readouterr().err


def test_what_was_found_is_told_where_it_cannot_be_written_any_more(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "eval.json"
    out.write_text("an older one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main([*arguments, "--out", str(out)]) == EXIT_FAILED
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "of 2" in told
    assert out.read_text() == "an older one"
