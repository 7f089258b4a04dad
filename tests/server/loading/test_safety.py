"""What a study found is what serve reads, for the same variants and no others."""

from pathlib import Path

import pytest

from server.loading.safety import (
    UNMEASURED_SAFE_SPARSITY,
    SafeSparsity,
    SafetyFile,
)

RANKING, OTHER = "a" * 64, "b" * 64
FOUND = SafeSparsity(
    sparsity=0.3,
    task="arithmetic",
    tolerance=0.03,
    confidence=0.95,
    items=500,
    measured_at="2026-11-23T12:00:00+00:00",
)


@pytest.fixture
def file(tmp_path: Path) -> SafetyFile:
    return SafetyFile(tmp_path, RANKING, "global")


def test_what_was_written_is_read_for_these_variants_alone(tmp_path: Path, file: SafetyFile) -> None:
    assert file.read() is None
    file.write(FOUND)
    assert file.read() == SafetyFile(tmp_path, RANKING, "global").read() == FOUND
    assert SafetyFile(tmp_path, RANKING, "uniform").read() is None
    assert SafetyFile(tmp_path, OTHER, "global").read() is None
    quantized = SafetyFile(tmp_path, RANKING, "global", "int8")
    assert quantized.read() is None
    quantized.write(FOUND.model_copy(update={"sparsity": 0.1}))
    assert file.read() == FOUND
    assert quantized.margin(None).sparsity == 0.1


def test_the_last_study_counts_and_leaves_nothing_else_behind(file: SafetyFile) -> None:
    file.write(FOUND)
    file.write(FOUND.model_copy(update={"sparsity": 0.1}))
    found = file.read()
    assert found is not None
    assert found.sparsity == 0.1
    assert list(file.path.parent.iterdir()) == [file.path]


@pytest.mark.parametrize(("items", "told"), [(499, True), (500, False), (501, False)])
def test_a_smaller_study_that_takes_the_place_of_a_larger_one_is_logged(
    file: SafetyFile, items: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file.write(FOUND)
    file.write(FOUND.model_copy(update={"items": items}))
    assert ("came of more items" in caplog.text) == told


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"sparsity": 1.0}'])
def test_a_damaged_file_is_told_and_not_used(
    file: SafetyFile, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write(FOUND)
    file.path.write_bytes(content)
    assert file.read() is None
    assert "not used" in caplog.text


def test_a_setting_wins_over_a_study_and_a_study_over_a_claim(file: SafetyFile) -> None:
    unmeasured = file.margin(None)
    assert (unmeasured.sparsity, "not measured" in unmeasured.source) == (UNMEASURED_SAFE_SPARSITY, True)
    file.write(FOUND)
    studied = file.margin(None)
    assert studied.sparsity == FOUND.sparsity
    assert all(word in studied.source for word in ("arithmetic", "500", "3 points", FOUND.measured_at))
    assert file.margin(0.0).sparsity == 0.0
