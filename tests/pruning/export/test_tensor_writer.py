import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.export.tensor_writer import TensorLayout, write_tensors

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.arange(5, dtype=torch.bfloat16),
    "transposed": torch.arange(6, dtype=torch.float16).view(3, 2).T,
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 4),
    "é": torch.tensor([True, False]),
}


def layouts(tensors: dict[str, torch.Tensor]) -> dict[str, TensorLayout]:
    return {name: TensorLayout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_files_are_those_of_the_library_bit_by_bit(tmp_path: Path) -> None:
    written: list[int] = []
    write_tensors(tmp_path / "ours", layouts(TENSORS), TENSORS.__getitem__, written.append)
    save_file({k: v.contiguous() for k, v in TENSORS.items()}, tmp_path / "theirs", metadata={"format": "pt"})

    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sum(written) == sum(tensor.nbytes for tensor in TENSORS.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(3).to(dtype)
    write_tensors(tmp_path / "x", {"x": TensorLayout(dtype, (3,))}, lambda _: tensor, lambda _: None)

    loaded = load_file(tmp_path / "x")["x"]
    assert (loaded.dtype, loaded.tolist()) == (dtype, [0, 1, 2])


def test_only_one_tensor_is_alive_at_a_time(tmp_path: Path) -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    def tensor_of(name: str) -> torch.Tensor:
        assert all(reference() is None for reference in given)
        tensor = TENSORS[name].clone()
        given.append(weakref.ref(tensor))
        return tensor

    write_tensors(tmp_path / "x", layouts(TENSORS), tensor_of, lambda _: None)
    assert len(given) == len(TENSORS)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "x", layouts(TENSORS), TENSORS.__getitem__, lambda _: None)
    assert (tmp_path / "x").read_text() == "mine"
