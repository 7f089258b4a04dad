"""What variants are corrected by is not judged by what it was made of."""

import dataclasses
from pathlib import Path

import pytest

from pruning.errors import DeltaError
from server.loading.deltas import read_delta
from tests.pruning.test_delta import delta


@pytest.mark.parametrize(
    ("made_for", "task", "refused"),
    [("humaneval", "mbpp", True), ("humaneval", "humaneval", False), ("mbpp", "mbpp", False)],
)
def test_one_that_has_read_both_halves_of_a_task_is_not_judged_by_it(
    made_for: str, task: str, refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "d.safetensors"
    made = delta()
    dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, task=made_for)).save(path)
    if refused:
        with pytest.raises(DeltaError, match=r"made for humaneval, of both halves of mbpp.*--task humaneval"):
            read_delta(path, task)
    else:
        assert read_delta(path, task).name == "d"
