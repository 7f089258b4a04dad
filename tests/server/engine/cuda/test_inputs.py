"""What a step's kernels are told of its batch, on the CPU: nothing here needs a GPU or Triton."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from server.engine.attention import AttentionSpan
from server.engine.batch import Batch
from server.engine.kernels.cuda.graphs import GraphedSteps, graph_sizes
from server.engine.kernels.cuda.inputs import StepInputs, inputs_of, items_of
from server.engine.nested_mlp import NeuronBlock

CPU = torch.device("cpu")
WIDE, NARROW = 6, 4


def batch_of(*lengths: int, wide: int = 0) -> Batch:
    """Requests of so many new tokens each, of which the first `wide` tokens are of the wide variant.

    Token i is numbered i, stands at position 10 + i and is kept in slot 100 + i; request r has blocks
    10 r and 10 r + 1.
    """
    count, spans = 0, []
    for request, length in enumerate(lengths):
        spans.append(AttentionSpan(count, count + length, 10 + count, [10 * request, 10 * request + 1]))
        count += length
    blocks = [NeuronBlock(0, NARROW, count), *([NeuronBlock(NARROW, WIDE, wide)] if wide else [])]
    numbers = torch.arange(count)
    return Batch(numbers, numbers + 10, numbers + 100, spans, [blocks, blocks], range(count))


def test_requests_are_cut_into_items() -> None:
    spans = batch_of(1, 40, 2).spans
    assert items_of(spans, 16) == [(0, 1, 0), (1, 16, 1), (17, 16, 1), (33, 8, 1), (41, 2, 2)]
    assert items_of(spans, 1) == [(t, 1, 0 if t < 1 else 1 if t < 41 else 2) for t in range(43)]


def test_lone_tokens_and_chunks_are_computed_apart() -> None:
    inputs, [alone, chunks] = inputs_of(batch_of(1, 40, 1, 17, wide=41), 2, 16, CPU)
    assert alone.per_program == 1
    # A chunk of 16 and one token leaves that one alone.
    assert alone.items.tolist() == [[0, 1, 0], [41, 1, 2], [58, 1, 3]]
    assert chunks.items.tolist() == [[1, 16, 1], [17, 16, 1], [33, 8, 1], [42, 16, 3]]
    assert chunks.tables.tolist() == [[0, 1], [10, 11], [20, 21], [30, 31]]
    assert chunks.max_keys == 32
    assert inputs.token_ids.tolist() == list(range(59))
    assert inputs.positions.tolist() == list(range(10, 69))
    assert inputs.slots.tolist() == list(range(100, 159))
    assert inputs.widths.tolist() == [[WIDE] * 41 + [NARROW] * 18] * 2


def test_only_chunks_is_one_kind_of_programs() -> None:
    _, [work] = inputs_of(batch_of(16), 2, 16, CPU)
    assert work.items.tolist() == [[0, 16, 0]]


def test_room_that_a_batch_leaves_is_kept_nowhere() -> None:
    """Also where a larger batch stood before."""
    inputs = StepInputs(2, 4, 4, 3, 4, CPU)
    for batch in (batch_of(1, 1, 1, 1, wide=4), batch_of(1, 1, wide=1)):
        inputs.write(batch, items_of(batch.spans, 1))
    assert inputs.slots.tolist() == [100, 101, -1, -1]
    assert inputs.positions.tolist() == [10, 11, 0, 0]
    assert inputs.widths.tolist() == [[WIDE, NARROW, 0, 0]] * 2
    assert inputs.tables[:2].tolist() == [[0, 1, 0], [10, 11, 0]]
    # Every row is some program's, so that none is left with what was in memory.
    assert inputs.queries(0, 4, 1, 16).items.tolist() == [[0, 1, 0], [1, 1, 1], [2, 1, 0], [3, 1, 0]]


class Steps(GraphedSteps):
    """Records what is computed, as (tokens there is room for, widest variant)."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__(self._record, num_layers=2, max_tokens=max_tokens, max_blocks=2, device=CPU)
        self.seen: list[tuple[int, Sequence[int]]] = []

    def _record(self, inputs: StepInputs, widest: Sequence[int]) -> torch.Tensor:
        self.seen.append((len(inputs.token_ids), widest))
        return inputs.positions[:, None].clone()


def test_a_step_is_computed_with_room_of_the_next_size() -> None:
    steps = Steps(max_tokens=20)
    assert steps.run(batch_of(1, 1, 1, wide=1)).tolist() == [[10], [11], [12]]
    assert steps.run(batch_of(5, 4)).flatten().tolist() == list(range(10, 19))
    assert steps.seen == [(4, (WIDE, WIDE)), (16, (NARROW, NARROW))]


def test_what_graphs_hold() -> None:
    steps = Steps(max_tokens=20)
    assert steps.can_hold(batch_of(*[1] * 24))  # as much as the last size
    assert not steps.can_hold(batch_of(*[1] * 25))
    assert steps.can_hold(batch_of(3, 1))  # guesses, or a short prompt: a token is a token


@pytest.mark.parametrize("most", [1, 8, 9, 64, 100, 256])
def test_sizes_reach_the_largest_step_without_long_jumps(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes[-1] >= most
    assert sizes == sorted(set(sizes))
    assert all(after <= max(2 * before, before + 8) for before, after in pairwise(sizes))
    assert len(sizes) <= 13
