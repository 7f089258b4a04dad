"""What a study found is what serve reads, for the same variants and no others."""

from pathlib import Path

import pytest

from server.loading.safety import (
    UNMEASURED_SAFE_SPARSITY,
    SafeSparsity,
    read_safe_sparsity,
    safe_margin,
    write_safe_sparsity,
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


def test_what_was_written_is_read_for_these_variants_alone(tmp_path: Path) -> None:
    assert read_safe_sparsity(tmp_path, RANKING, "global") is None
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND)
    assert read_safe_sparsity(tmp_path, RANKING, "global") == FOUND
    assert read_safe_sparsity(tmp_path, RANKING, "uniform") is None
    assert read_safe_sparsity(tmp_path, OTHER, "global") is None
    assert read_safe_sparsity(tmp_path, RANKING, "global", "int8") is None
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND.model_copy(update={"sparsity": 0.1}), "int8")
    assert read_safe_sparsity(tmp_path, RANKING, "global") == FOUND
    assert safe_margin(None, tmp_path, RANKING, "global", "int8").sparsity == 0.1


def test_the_last_study_counts_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND)
    path = write_safe_sparsity(tmp_path, RANKING, "global", FOUND.model_copy(update={"sparsity": 0.1}))
    found = read_safe_sparsity(tmp_path, RANKING, "global")
    assert found is not None
    assert found.sparsity == 0.1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("items", "told"), [(499, True), (500, False), (501, False)])
def test_a_smaller_study_that_takes_the_place_of_a_larger_one_is_logged(
    tmp_path: Path, items: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND)
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND.model_copy(update={"items": items}))
    assert ("came of more items" in caplog.text) == told


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"sparsity": 1.0}'])
def test_a_damaged_file_is_told_and_not_used(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND).write_bytes(content)
    assert read_safe_sparsity(tmp_path, RANKING, "global") is None
    assert "not used" in caplog.text


def test_a_setting_wins_over_a_study_and_a_study_over_a_claim(tmp_path: Path) -> None:
    unmeasured = safe_margin(None, tmp_path, RANKING, "global")
    assert (unmeasured.sparsity, "not measured" in unmeasured.source) == (UNMEASURED_SAFE_SPARSITY, True)
    write_safe_sparsity(tmp_path, RANKING, "global", FOUND)
    studied = safe_margin(None, tmp_path, RANKING, "global")
    assert studied.sparsity == FOUND.sparsity
    assert all(word in studied.source for word in ("arithmetic", "500", "3 points", FOUND.measured_at))
    assert safe_margin(0.0, tmp_path, RANKING, "global").sparsity == 0.0
