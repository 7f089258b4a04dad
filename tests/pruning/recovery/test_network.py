"""What is trained is what the delta says: the same network, at every width, merged into plain weights."""

from pathlib import Path

import pytest
import torch

from pruning.delta import PROJECTIONS, Delta, DeltaProvenance
from pruning.recovery.packing import pack
from pruning.slicing import merge_delta, slice_model
from tests.pruning.recovery.support import (
    NARROW,
    WIDE,
    adapted,
    network,
    open_tiny,
    order,
    random_sequences,
    stir,
)
from tests.tiny import FAMILIES


def provenance(widths: tuple[int, ...]) -> DeltaProvenance:
    return DeltaProvenance("tiny", "m", order().digest, 0.3, widths, "recovery", {}, "now")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_width_is_the_sliced_network_with_its_delta_merged(family: str, tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, family)
    net = adapted(checkpoint, (WIDE, NARROW))
    stir(net)
    net.load(net.layers(0))  # rounded as deltas are
    row = pack(random_sequences(3), net.device)
    for variant, widths in enumerate((WIDE, NARROW)):
        delta = Delta(provenance(widths), net.layers(variant))
        merged = merge_delta(slice_model(network(checkpoint), order(), widths), delta)
        with torch.no_grad():
            found = net.hidden(row, variant)
            expected = merged.model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False)
        expected = expected.last_hidden_state[0, row.predicting]
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        plain = slice_model(network(checkpoint), order(), widths)
        with torch.no_grad():
            before = plain.model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False)
        assert (before.last_hidden_state[0, row.predicting] - expected).abs().max() > 0.1, "it does something"
        assert all(set(maps) == set(PROJECTIONS) for maps in delta.layers)


def test_an_untrained_network_is_the_pruned_one(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path)
    net = adapted(checkpoint)
    row = pack(random_sequences(3), net.device)
    plain = slice_model(network(checkpoint), order(), WIDE)
    with torch.no_grad():
        expected = plain.model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False)
        torch.testing.assert_close(net.hidden(row, 0), expected.last_hidden_state[0, row.predicting])
    assert {p.dtype for p in net.parameters().values()} == {torch.float32}


def test_training_starts_where_a_delta_ended_whatever_its_ranks(tmp_path: Path) -> None:
    """As compensation makes them: W_d alone, of a larger rank, none in some layers."""
    checkpoint = open_tiny(tmp_path)
    trained = adapted(checkpoint)
    stir(trained)
    made = trained.layers(0)
    wider = {
        "down_proj": type(made[0]["down_proj"])(made[0]["down_proj"].a.repeat(3, 1), torch.randn(64, 12))
    }
    start = (wider, {}, {"down_proj": made[2]["down_proj"]})
    net = adapted(checkpoint, start=start)
    row = pack(random_sequences(3), net.device)
    merged = slice_model(network(checkpoint), order(), WIDE)
    merge_delta(merged, Delta(provenance(WIDE), start))
    with torch.no_grad():
        expected = merged.model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False)
        torch.testing.assert_close(
            net.hidden(row, 0), expected.last_hidden_state[0, row.predicting], rtol=1e-4, atol=1e-4
        )
    assert [pair.rank for pair in net.layers(0)[1].values()] == [4] * 6 + [12]
    # All ranks learn at the same pace: the scale does not depend on them.
    assert len({linear.scaling["default"] for maps in net._maps for linear in maps.values()}) == 1


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
    from pruning.calibration import load_network
    from pruning.recovery.network import AdaptedNetwork
    from tests.pruning.recovery.support import ADAPTER

    checkpoint = open_tiny(tmp_path)
    gradients = []
    for device in ("cpu", "cuda"):
        model = load_network(checkpoint, torch.device(device), torch.float32)
        net = AdaptedNetwork(model, order(), (WIDE, NARROW), ADAPTER)
        stir(net)
        net.hidden(pack(random_sequences(4), net.device), 1).square().sum().backward()
        gradients.append([parameter.grad.cpu() for parameter in net.parameters().values()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)
