"""Blocks of neurons against tokens, and the sum of the blocks against whole MLPs."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from server.engine.nested_mlp import NestedMLP, neuron_blocks

GROUPS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=6)


@given(GROUPS)
def test_each_token_meets_each_of_its_neurons_once(groups: list[tuple[int, int]]) -> None:
    groups.sort(reverse=True)
    widths = [width for width, _ in groups]
    ends = [sum(count for _, count in groups[: i + 1]) for i in range(len(groups))]
    met = torch.zeros(ends[-1], 40, dtype=torch.long)
    blocks = neuron_blocks(widths, ends)
    for start, stop, num_tokens in blocks:
        met[:num_tokens, start:stop] += 1
    expected = torch.zeros_like(met)
    for (width, _), start, end in zip(groups, [0, *ends], ends, strict=False):
        expected[start:end, :width] = 1
    assert torch.equal(met, expected)
    assert len(blocks) == len(set(widths))


@given(GROUPS)
def test_mixed_widths_are_the_single_widths(groups: list[tuple[int, int]]) -> None:
    groups.sort(reverse=True)
    generator = torch.Generator().manual_seed(0)
    gate, up, down = torch.randn(3, 40, 16, generator=generator, dtype=torch.float64)
    mlp = NestedMLP(gate, up, down.T, F.silu)
    ends = [sum(count for _, count in groups[: i + 1]) for i in range(len(groups))]
    x = torch.randn(ends[-1], 16, generator=generator, dtype=torch.float64)
    y = mlp(x, neuron_blocks([width for width, _ in groups], ends))
    for (width, _), start, end in zip(groups, [0, *ends], ends, strict=False):
        rows = x[start:end]
        expected = (F.silu(rows @ gate[:width].T) * (rows @ up[:width].T)) @ down[:width]
        torch.testing.assert_close(y[start:end], expected, rtol=1e-5, atol=1e-5)  # sums go through float32
