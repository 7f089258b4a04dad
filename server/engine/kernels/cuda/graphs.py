"""Steps of few tokens as CUDA graphs."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning.garbage import no_garbage_collection
from server.engine.batch import Batch
from server.engine.kernels.cuda.inputs import StepInputs, items_of

_MAX_TOKENS = 256  # beyond, the weights are read faster than all rows are multiplied with all of them
_MAX_GRAPHS = 256  # each takes the memory of its kernels' arguments; the one that was used longest ago goes

Step = Callable[[StepInputs, Sequence[int]], torch.Tensor]


class GraphedSteps:
    """Runs a step by its graph, and makes the graph where there is none yet.

    Args:
        step: computes what its inputs hold, [tokens, hidden], with as many neurons per layer as said.
        num_layers, max_blocks: of the model, and of one request.
        max_tokens: of a step, at most.
        device: where it is no CUDA device, steps are computed without graphs.
    """

    def __init__(
        self, step: Step, num_layers: int, max_tokens: int, max_blocks: int, device: torch.device
    ) -> None:
        self._step = step
        self._device = device
        self._num_layers = num_layers
        self._max_blocks = max_blocks
        self._sizes = graph_sizes(min(max_tokens, _MAX_TOKENS))
        self._inputs: dict[int, StepInputs] = {}
        self._graphs: OrderedDict[tuple[int, tuple[int, ...]], tuple[torch.cuda.CUDAGraph, torch.Tensor]]
        self._graphs = OrderedDict()
        self._pool: Any = None  # their memory: no two run at once

    def can_hold(self, batch: Batch) -> bool:
        """Whether there is or may be a graph for it."""
        return not batch.deltas and len(batch.token_ids) <= self._sizes[-1]

    def run(self, batch: Batch) -> torch.Tensor:
        """[tokens, hidden], good until the next call."""
        count = len(batch.token_ids)
        size = next(size for size in self._sizes if size >= count)
        if size not in self._inputs:
            self._inputs[size] = StepInputs(
                self._num_layers, size, size, self._max_blocks, size, self._device
            )
        inputs = self._inputs[size]
        inputs.write(batch, items_of(batch.spans, 1))
        widest = tuple(blocks[-1].stop for blocks in batch.neuron_blocks)
        return self._result(inputs, size, widest)[:count]

    def _result(self, inputs: StepInputs, size: int, widest: tuple[int, ...]) -> torch.Tensor:
        if self._device.type != "cuda":
            return self._step(inputs, widest)
        key = size, widest
        if key in self._graphs:
            self._graphs.move_to_end(key)
            graph, result = self._graphs[key]
            graph.replay()
            return result
        # Computed once without: kernels are compiled now, and what capturing records is not run.
        result = self._step(inputs, widest)
        self._graphs[key] = self._captured(inputs, widest)
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return result

    def _captured(
        self, inputs: StepInputs, widest: tuple[int, ...]
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Garbage may be another engine, and giving its graphs back is an error while one is captured. Other
        # threads load deltas meanwhile.
        with (
            no_garbage_collection(),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = self._step(inputs, widest)
        self._pool = graph.pool()
        return graph, result


def graph_sizes(max_tokens: int) -> list[int]:
    """Numbers of tokens that graphs are made for, up to one that holds `max_tokens`: few, and none far above
    the next."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < max_tokens:
        sizes.append(sizes[-1] + max(8, 1 << (sizes[-1].bit_length() - 2)))
    return sizes
