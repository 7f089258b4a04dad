"""What is trained is what the delta says: the same network, at every width, merged into plain weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.delta import PROJECTIONS, Delta, DeltaProvenance, LowRank
from pruning.recovery.network import Layers
from pruning.recovery.packing import PackedRow, pack
from pruning.slicing import merge_delta, slice_model
from tests.pruning.recovery.support import (
    NARROW,
    WIDE,
    adapted,
    network,
    open_tiny,
    random_sequences,
    stir,
)
from tests.tiny import FAMILIES, tiny_ranking


def provenance(widths: tuple[int, ...]) -> DeltaProvenance:
    return DeltaProvenance("tiny", "m", "counting", tiny_ranking().digest, 0.3, widths, "recovery", {}, "now")


def merged_hidden(checkpoint: Checkpoint, widths: tuple[int, ...], layers: Layers, row: PackedRow) -> Tensor:
    merged = slice_model(network(checkpoint), tiny_ranking(), widths)
    merge_delta(merged, Delta(provenance(widths), layers))
    output = merged.model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False)
    return output.last_hidden_state[0, row.predicting]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_width_is_the_sliced_network_with_its_delta_merged(family: str, tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, family)
    net = adapted(checkpoint, (WIDE, NARROW))
    stir(net)
    net.round()  # as deltas are
    row = pack(random_sequences(3), net.device)
    for variant, widths in enumerate((WIDE, NARROW)):
        layers = net.layers(variant)
        with torch.no_grad():
            expected = merged_hidden(checkpoint, widths, layers, row)
            torch.testing.assert_close(net.hidden(row, variant), expected, rtol=2e-3, atol=2e-3)
            before = merged_hidden(checkpoint, widths, ({}, {}, {}), row)
        assert (before - expected).abs().max() > 0.1, "it does something"
        assert all(set(maps) == set(PROJECTIONS) for maps in layers)


def test_an_untrained_network_is_the_pruned_one(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path)
    net = adapted(checkpoint)
    row = pack(random_sequences(3), net.device)
    with torch.no_grad():
        torch.testing.assert_close(net.hidden(row, 0), merged_hidden(checkpoint, WIDE, ({}, {}, {}), row))
    assert {p.dtype for p in net.parameters().values()} == {torch.float32}


def test_what_variants_have_already_stays_beside_what_is_trained(tmp_path: Path) -> None:
    """As compensation makes it: W_d alone, of a larger rank, none in some layers; and as a training does."""
    checkpoint = open_tiny(tmp_path)
    trained = adapted(checkpoint, (WIDE, NARROW))
    stir(trained)
    made = trained.layers(0)
    fitted = {"down_proj": LowRank(made[0]["down_proj"].a.repeat(3, 1), torch.randn(64, 12).bfloat16())}
    starts = ((fitted, {}, {"down_proj": made[2]["down_proj"]}), trained.layers(1))
    net = adapted(checkpoint, (WIDE, NARROW), starts=starts)
    row = pack(random_sequences(3), net.device)
    for variant, (widths, start) in enumerate(zip((WIDE, NARROW), starts, strict=True)):
        with torch.no_grad():
            torch.testing.assert_close(
                net.hidden(row, variant), merged_hidden(checkpoint, widths, start, row), rtol=1e-3, atol=1e-3
            )
    stir(net, seed=1)
    net.round()
    for variant, widths in enumerate((WIDE, NARROW)):
        with torch.no_grad():
            expected = merged_hidden(checkpoint, widths, net.layers(variant), row)
            torch.testing.assert_close(net.hidden(row, variant), expected, rtol=5e-3, atol=5e-3)
    assert [pair.rank for pair in net.layers(0)[0].values()] == [4] * 6 + [12 + 4]
    assert torch.equal(net.layers(0)[0]["down_proj"].b[:, :12], fitted["down_proj"].b), "to the bit"
    assert [pair.rank for pair in net.layers(1)[1].values()] == [8] * 7
    net.forget()
    with torch.no_grad():
        plain = merged_hidden(checkpoint, WIDE, ({}, {}, {}), row)
        torch.testing.assert_close(net.hidden(row, 0), plain)


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path)
    gradients = []
    for recompute in (False, True):
        net = adapted(checkpoint, (WIDE, NARROW), recompute=recompute)
        stir(net)
        net.hidden(pack(random_sequences(4), net.device), 1).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters().values()])
    assert all(gradient is not None for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_neurons_that_a_variant_lacks_learn_nothing_from_it(tmp_path: Path) -> None:
    net = adapted(open_tiny(tmp_path), (WIDE, NARROW))
    stir(net)
    net.hidden(pack(random_sequences(4), net.device), 1).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.parameters().items()}
    for layer, width in enumerate(NARROW):
        assert gradients[f"{layer}.down_proj.a"][:, :width].abs().min() > 0
        assert not gradients[f"{layer}.down_proj.a"][:, width:].any()
        assert not gradients[f"{layer}.up_proj.b"][width:].any()
        assert not gradients[f"{layer}.gate_proj.b"][width:].any()


@pytest.mark.gpu
def test_a_gpu_finds_the_same_gradients(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from pruning.calibration.calibration import load_network
    from pruning.recovery.network import AdaptedNetwork
    from tests.pruning.recovery.support import ADAPTER

    checkpoint = open_tiny(tmp_path)
    gradients = []
    for device in ("cpu", "cuda"):
        model = load_network(checkpoint, torch.device(device), torch.float32)
        net = AdaptedNetwork(model, tiny_ranking(), (WIDE, NARROW), ADAPTER)
        stir(net)
        net.hidden(pack(random_sequences(4), net.device), 1).square().sum().backward()
        gradients.append([parameter.grad.cpu() for parameter in net.parameters().values()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)
