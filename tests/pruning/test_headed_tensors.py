"""Files of tensors with a header: what is none is told as one thing, whatever is wrong with it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning import delta
from pruning.calibration import profile
from pruning.errors import DeltaError, ProfileError, RankingError, SecateurError
from pruning.headed_tensors import DamagedFileError, read_headed
from pruning.ranking import ranking_file, stepwise
from pruning.recovery.progress import METADATA_KEY as PROGRESS_KEY
from pruning.recovery.progress import ProgressFile

TENSORS = {"position": torch.arange(6).view(2, 3)}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "f", metadata={"mine": '{"a": [1, 2]}'})
    header, tensors = read_headed(tmp_path / "f", "mine")
    assert header == {"a": [1, 2]}
    assert torch.equal(tensors["position"], TENSORS["position"])
    with pytest.raises(FileNotFoundError):
        read_headed(tmp_path / "absent", "mine")


@pytest.mark.parametrize("metadata", [None, {"other": "{}"}, {"mine": "{"}, {"mine": "[1]"}, {"mine": "7"}])
def test_another_header_is_damage(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "f", metadata=metadata)
    with pytest.raises(DamagedFileError):
        read_headed(tmp_path / "f", "mine")


@pytest.mark.parametrize("header", ["[]", "{}", '{"format": 1}', '{"format": 2, "provenance": 7}'])
@pytest.mark.parametrize(
    ("load", "key", "error"),
    [
        (profile.load, profile.METADATA_KEY, ProfileError),
        (delta.load_delta, delta.METADATA_KEY, DeltaError),
        (ranking_file.load_ranking, ranking_file.METADATA_KEY, RankingError),
        (lambda path: stepwise.load_steps(path, "k"), stepwise.METADATA_KEY, RankingError),
        (lambda path: ProgressFile(path, "k").load(), PROGRESS_KEY, DeltaError),
    ],
)
def test_every_kind_of_file_tells_what_is_wrong(
    load: object, key: str, error: type[SecateurError], header: str, tmp_path: Path
) -> None:
    save_file(TENSORS, tmp_path / "f", metadata={key: header})
    with pytest.raises(error, match=str(tmp_path / "f")):
        load(tmp_path / "f")
