"""What a training takes is known before it starts; where that is too much, activations are computed again."""

from pathlib import Path

import pytest
import torch

from pruning.errors import MemoryBoundError
from pruning.recovery.memory import GIB, TrainingMemory
from pruning.recovery.network import AdaptedNetwork
from pruning.recovery.packing import pack
from tests.pruning.recovery.support import ADAPTER, WIDE, adapted, network, open_tiny, random_sequences
from tests.tiny import FAMILIES, tiny_ranking

PARTS = TrainingMemory(weights=8 * GIB, matrices=GIB, logits=GIB, activations=6 * GIB, recomputed=GIB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_about_those_that_are_kept(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, family)
    net = AdaptedNetwork(network(checkpoint, dtype), tiny_ranking(), (WIDE,), ADAPTER)
    row = pack([one for seed in range(9) for one in random_sequences(9, seed)], net.device)
    estimate = TrainingMemory.of(
        checkpoint, WIDE, ADAPTER.rank, row_tokens=row.input_ids.shape[1], dtype=dtype
    ).activations
    weights = {tensor.untyped_storage().data_ptr() for tensor in net._model.state_dict().values()}
    held: dict[int, torch.Tensor] = {}  # tensors, so that no place is used twice

    def see(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        output = net.hidden(row, 0)
    kept = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in weights)
    assert output.requires_grad
    assert 0.7 * estimate < kept < estimate


# Qwen3-0.6B's heads are twice as wide together as its residual stream.
@pytest.mark.parametrize("heads", [{}, {"num_attention_heads": 8, "num_key_value_heads": 8}])
def test_matrices_are_those_that_are_trained(heads: dict[str, int], tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, "qwen3", **heads)
    found = TrainingMemory.of(checkpoint, WIDE, ADAPTER.rank, row_tokens=300, dtype=torch.float32)
    trained = sum(parameter.nbytes for parameter in adapted(checkpoint).parameters().values())
    assert found.matrices == 5 * trained  # the value, the best, its gradient and two moments
    more = TrainingMemory.of(
        checkpoint, WIDE, ADAPTER.rank, row_tokens=300, start_parameters=1000, dtype=torch.float32
    )
    assert more.matrices == found.matrices + 4000


def test_activations_are_computed_again_only_where_there_is_no_room() -> None:
    assert PARTS.choose_recompute(None, 16 * GIB) is False
    assert PARTS.choose_recompute(None, 15 * GIB) is True
    assert PARTS.choose_recompute(True, 99 * GIB) is True
    with pytest.raises(MemoryBoundError, match=r"take 16.00 GiB: .* allows 15.00: .* set --recompute on"):
        PARTS.choose_recompute(False, 15 * GIB)
    with pytest.raises(MemoryBoundError, match=r"take 11.00 GiB: .* allows 10.00: .* lower --row-tokens"):
        PARTS.choose_recompute(None, 10 * GIB)
