"""`python -m bench.kernels`: the compiled kernels against torch and against what the machine can do.

One process, both alternating, so that a machine whose memory is slow for a while is slow for both. Each
operation runs over copies of its weights that together exceed the caches: in a step every layer's weights
come from memory. Reports medians: seconds, the share of the machine's limit, and times torch's speed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from bench.environment import provenance
from bench.limits import multiply_speed, read_speed
from server.engine.kernels.decoder import PackedKV, layer_struct
from server.engine.kernels.library import BatchStruct, ModelStruct, load_library, num_threads
from server.engine.kernels.packing import PackedLayer, PanelMemory, pack_gate_up, pack_matrix
from server.engine.nested_mlp import NestedMLP, neuron_blocks

# The shapes of Qwen2.5-Coder-0.5B.
HIDDEN, NEURONS, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 896, 4864, 14, 2, 64, 16
COPIES = 12  # of a layer: 300 MB
SPARSITIES = (0, 0.1, 0.2, 0.35)
LIBRARY = load_library()


class Work(NamedTuple):
    """One operation in both ways; each function takes the number of the copy it uses."""

    name: str
    num_bytes: int  # weights and KV that it reads
    num_flops: int
    ours: Callable[[int], object]
    torchs: Callable[[int], object]


class Layers:
    """Copies of one random layer, packed and as torch takes them."""

    def __init__(self, num_blocks: int) -> None:
        columns = HEADS * HEAD_DIM
        qkv_columns = columns + 2 * KV_HEADS * HEAD_DIM
        self.plain = [
            (_matrix(NEURONS, HIDDEN), _matrix(NEURONS, HIDDEN), _matrix(NEURONS, HIDDEN))
            for _ in range(COPIES)
        ]
        self.qkv = [_matrix(qkv_columns, HIDDEN) for _ in range(COPIES)]
        self.output = [_matrix(HIDDEN, columns) for _ in range(COPIES)]
        ones = torch.ones(HIDDEN)
        memory = PanelMemory(LIBRARY)
        self.packed = [
            PackedLayer(
                input_norm=ones,
                qkv=pack_matrix(memory, qkv),
                qkv_bias=None,
                q_norm=None,
                k_norm=None,
                output=pack_matrix(memory, output),
                output_bias=None,
                mlp_norm=ones,
                gate_up=pack_gate_up(memory, partial(_same, gate), partial(_same, up)),
                down=pack_matrix(memory, down.T),
                neurons=NEURONS,
            )
            for (gate, up, down), qkv, output in zip(self.plain, self.qkv, self.output, strict=True)
        ]
        self.kv = [PackedKV(num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM) for _ in range(COPIES)]
        self.structs = [layer_struct(layer, kv, None) for layer, kv in zip(self.packed, self.kv, strict=True)]
        max_len = num_blocks * BLOCK_SIZE
        self.cos, self.sin = torch.ones(max_len, HEAD_DIM), torch.zeros(max_len, HEAD_DIM)
        self.model = ModelStruct(
            *(HIDDEN, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, LIBRARY.matrix_unit(), 1e-6),
            *(self.cos.data_ptr(), self.sin.data_ptr()),
        )

    def mlp(self, name: str, widths: Sequence[int]) -> Work:
        """The gated MLP for rows of these widths, widest first. torch: as NestedMLP computes them."""
        count, neurons = len(widths), sum(widths)
        rows = torch.tensor(widths, dtype=torch.int32)
        residual = torch.randn(count, HIDDEN)
        x = residual.bfloat16()
        batch = BatchStruct.of(count, 1, residual=residual, widths=rows)
        workspace = self._workspace(count)
        ends = [i + 1 for i in range(count) if i + 1 == count or widths[i + 1] != widths[i]]
        blocks = neuron_blocks([widths[end - 1] for end in ends], ends)
        nested = [NestedMLP(gate, up, down.T, F.silu) for gate, up, down in self.plain]

        def ours(copy: int) -> None:
            LIBRARY.mlp_block(self.model, self.structs[copy], batch, workspace.data_ptr(), num_threads())
            residual.copy_(x)  # or it would grow from call to call

        num_bytes = 6 * HIDDEN * max(widths)
        return Work(name, num_bytes, 6 * HIDDEN * neurons, ours, lambda copy: nested[copy](x, blocks))

    def attention(self, name: str, lengths: Sequence[int], new_tokens: int) -> Work:
        """Projections and attention of requests of these lengths with so many new tokens each.

        torch: the projections, and scaled_dot_product_attention over keys and values that stand ready.
        """
        count = len(lengths) * new_tokens
        blocks = [-(-length // BLOCK_SIZE) for length in lengths]
        starts = torch.arange(0, count + 1, new_tokens, dtype=torch.int32)
        tables = torch.randperm(sum(blocks)).int()
        table_starts = torch.tensor([0, *blocks[:-1]]).cumsum(0).int()
        positions = torch.cat([torch.arange(n - new_tokens, n) for n in lengths]).int()
        owners = torch.arange(len(lengths)).repeat_interleave(new_tokens)
        slots = tables[table_starts[owners] + positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        residual = torch.randn(count, HIDDEN)
        x = residual.bfloat16()
        batch = BatchStruct.of(
            count,
            len(lengths),
            residual=residual,
            positions=positions,
            slots=slots,
            starts=starts,
            block_tables=tables,
            table_starts=table_starts,
        )
        workspace = self._workspace(count)
        cached = [torch.randn(1, KV_HEADS, n, HEAD_DIM, dtype=torch.bfloat16) for n in lengths]
        masks = [torch.ones(new_tokens, n, dtype=torch.bool).tril(n - new_tokens) for n in lengths]

        def ours(copy: int) -> None:
            LIBRARY.attention_block(
                self.model, self.structs[copy], batch, workspace.data_ptr(), num_threads()
            )
            residual.copy_(x)

        def torchs(copy: int) -> torch.Tensor:
            query = torch.unflatten(F.linear(x, self.qkv[copy])[:, : HEADS * HEAD_DIM], 1, (HEADS, -1))
            outputs = [
                F.scaled_dot_product_attention(
                    q.transpose(0, 1)[None], kv, kv, attn_mask=mask, enable_gqa=True
                )
                for q, kv, mask in zip(torch.split(query, new_tokens), cached, masks, strict=True)
            ]
            rows = torch.cat([output[0].transpose(0, 1).flatten(1) for output in outputs])
            return F.linear(rows, self.output[copy])

        seen = sum(sum(range(n - new_tokens + 1, n + 1)) for n in lengths)
        projections = self.qkv[0].numel() + self.output[0].numel()
        return Work(
            name,
            2 * projections + 4 * sum(lengths) * KV_HEADS * HEAD_DIM,
            2 * projections * count + 4 * seen * HEADS * HEAD_DIM,
            ours,
            torchs,
        )

    def _workspace(self, num_tokens: int) -> torch.Tensor:
        size = LIBRARY.workspace_bytes(self.model, num_tokens, NEURONS, 0, num_threads())
        return torch.empty(size, dtype=torch.uint8)


def measure(works: Sequence[Work], rounds: int) -> list[dict[str, Any]]:
    """Medians over `rounds`; in each, every operation runs once per copy, ours and torch's in turn."""
    seconds: dict[tuple[str, str], list[float]] = {}
    limits: dict[str, list[float]] = {"bytes_per_second": [], "flops_per_second": []}
    for _ in range(rounds):
        limits["bytes_per_second"].append(read_speed())
        limits["flops_per_second"].append(multiply_speed())
        for work in works:
            for kind, function in (("ours", work.ours), ("torch", work.torchs)):
                start = time.perf_counter()
                for copy in range(COPIES):
                    function(copy)
                seconds.setdefault((work.name, kind), []).append((time.perf_counter() - start) / COPIES)
    bandwidth, speed = (max(values) for values in limits.values())
    results = []
    for work in works:
        ours, torchs = seconds[work.name, "ours"], seconds[work.name, "torch"]
        median = statistics.median(ours)
        results.append(
            {
                "name": work.name,
                "seconds": median,
                "spread": [min(ours), max(ours)],
                "bytes_per_second": work.num_bytes / median,
                "flops_per_second": work.num_flops / median,
                "share_of_limit": max(work.num_bytes / bandwidth, work.num_flops / speed) / median,
                "times_torch": statistics.median(t / o for t, o in zip(torchs, ours, strict=True)),
            }
        )
    return [{"limits": limits}, *results]


def _matrix(outputs: int, inputs: int) -> torch.Tensor:
    return torch.normal(0.0, inputs**-0.5, (outputs, inputs)).bfloat16()


def _same(matrix: torch.Tensor) -> torch.Tensor:
    return matrix


def _width(sparsity: float) -> int:
    return round(NEURONS * (1 - sparsity) / 64) * 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each (default: %(default)s)")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    torch.manual_seed(0)
    layers = Layers(num_blocks=32 * 1024 // BLOCK_SIZE)
    mixed = [_width(s) for s in SPARSITIES for _ in range(8)]
    works = [layers.mlp(f"mlp, {n} rows", [NEURONS] * n) for n in (1, 2, 4, 8, 16, 32, 128, 512)]
    works += [
        layers.mlp("mlp, 1 row at sparsity 0.35", [_width(0.35)]),
        layers.mlp("mlp, 32 rows of 4 widths", mixed),
        layers.attention("attention, 1 x 1 after 128", [128], 1),
        layers.attention("attention, 1 x 1 after 4096", [4096], 1),
        layers.attention("attention, 32 x 1 after 256", [256] * 32, 1),
        layers.attention("attention, 32 x 1 after 1024", [1024] * 32, 1),
        layers.attention("attention, 1 x 512 after 512", [1024], 512),
    ]
    with torch.inference_mode():
        results = measure([work for work in works if args.only in work.name], args.rounds)
    for result in results[1:]:
        print(
            f"{result['name']:<30} {1e3 * result['seconds']:8.3f} ms"
            f" {result['bytes_per_second'] / 1e9:7.1f} GB/s {result['flops_per_second'] / 1e9:7.0f} GFLOP/s"
            f" {result['share_of_limit']:6.2f} of the limit {result['times_torch']:6.2f} x torch"
        )
    document = {**provenance(), "threads": num_threads(), "limits": results[0]["limits"], "work": results[1:]}
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
