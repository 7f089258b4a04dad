"""Each compiled kernel against a float32 computation over ragged shapes."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from server.engine import kernels
from server.engine.kernels.decoder import PackedKV, layer_struct, matrix_struct
from server.engine.kernels.library import BatchStruct, KernelLibrary, ModelStruct, load_library
from server.engine.kernels.packing import PackedLayer, PanelMemory, pack_gate_up, pack_matrix
from server.engine.quantization import (
    QuantizedMatrix,
    Weight,
    linear,
    of_inputs,
    of_outputs,
    quantize,
    rows_of,
)

compiled = pytest.mark.usefixtures("compiled_kernels")  # once for each unit that multiplies

EPS = 1e-6
# bfloat16 has 8 bits: what a kernel rounds on the way (normed rows, queries, weights of the softmax, neurons)
# moves a row of its output by about 2^-9 of the row's size each.
ROUNDING = 0.01
# Where that moves the largest number of a row, all of its integers are rounded anew.
ROUNDING_INT8 = 0.03


@dataclasses.dataclass
class Case:
    """One layer with random weights, float32 beside packed, and a batch's arrays."""

    hidden: int
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    block_size: int = 8
    neurons: int = 16
    window: int = 0
    num_blocks: int = 64
    max_len: int = 1200
    heads_normed: bool = False
    quantized: bool = False

    def __post_init__(self) -> None:
        self.library: KernelLibrary = load_library()
        self.memory = PanelMemory(self.library)
        rand = torch.Generator().manual_seed(0)

        def matrix(outputs: int, inputs: int) -> Weight:
            weight = (torch.randn(outputs, inputs, generator=rand) * inputs**-0.5).bfloat16()
            return quantize(weight) if self.quantized else weight

        columns = self.heads * self.head_dim
        qkv_columns = columns + 2 * self.kv_heads * self.head_dim
        self.qkv, self.output = matrix(qkv_columns, self.hidden), matrix(self.hidden, columns)
        self.gate, self.up = matrix(self.neurons, self.hidden), matrix(self.neurons, self.hidden)
        self.down = matrix(self.hidden, self.neurons)
        self.norm = torch.rand(self.hidden, generator=rand) + 0.5
        self.head_norm = torch.rand(self.head_dim, generator=rand) + 0.5 if self.heads_normed else None
        self.qkv_bias = torch.randn(qkv_columns, generator=rand)
        self.output_bias = torch.randn(self.hidden, generator=rand)
        angles = torch.outer(torch.arange(self.max_len), 0.1 ** torch.arange(self.head_dim // 2))
        self.cos, self.sin = (table.repeat(1, 2).contiguous() for table in (angles.cos(), angles.sin()))

        padded = -(-self.neurons // 16) * 16
        self.layer = PackedLayer(
            input_norm=self.norm,
            qkv=pack_matrix(self.memory, self.qkv),
            qkv_bias=self.qkv_bias,
            q_norm=self.head_norm,
            k_norm=self.head_norm,
            output=pack_matrix(self.memory, self.output),
            output_bias=self.output_bias,
            mlp_norm=self.norm,
            gate_up=pack_gate_up(self.memory, lambda: self.gate, lambda: self.up),
            down=pack_matrix(self.memory, self.down),
            neurons=padded,
        )
        self.kv = PackedKV(self.num_blocks, self.block_size, self.kv_heads, self.head_dim)
        self.model = ModelStruct(
            *(self.hidden, self.heads, self.kv_heads, self.head_dim, self.block_size),
            *(kernels.describe() == kernels.MATRIX, EPS),
            *(self.cos.data_ptr(), self.sin.data_ptr()),
        )
        self.struct = layer_struct(self.layer, self.kv, self.window)

    @property
    def tolerance(self) -> float:
        return ROUNDING_INT8 if self.quantized else ROUNDING

    def workspace(self, num_tokens: int, threads: int) -> torch.Tensor:
        size = self.library.workspace_bytes(self.model, num_tokens, self.layer.neurons, 0, threads)
        return torch.empty(size, dtype=torch.uint8)

    def head(self, x: torch.Tensor, weight: Weight, threads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [rows, outputs] and the likeliest of each row, by two calls; `weight`: [outputs, hidden]."""
        packed = pack_matrix(self.memory, weight)
        workspace = self.workspace(len(x), threads)
        outputs = len(weight.values if isinstance(weight, QuantizedMatrix) else weight)
        logits, likeliest = torch.empty(len(x), outputs), torch.empty(len(x), dtype=torch.int32)
        for function, to in ((self.library.head, logits), (self.library.likeliest, likeliest)):
            function(
                *(self.model, x.data_ptr(), len(x), self.norm.data_ptr(), matrix_struct(packed), outputs),
                *(to.data_ptr(), workspace.data_ptr(), threads),
            )
        return logits, likeliest

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.hidden,), self.norm, EPS)

    def mlp(self, x: torch.Tensor, width: int) -> torch.Tensor:
        x = self.normed(x)
        gate, up = product(x, of_outputs(self.gate, 0, width)), product(x, of_outputs(self.up, 0, width))
        return product(F.silu(gate) * up, of_inputs(self.down, 0, width))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Of one whole request [tokens, hidden] without a cache."""
        qkv = (product(self.normed(x), self.qkv) + self.qkv_bias).unflatten(1, (-1, self.head_dim))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)

        def rotated(x: torch.Tensor) -> torch.Tensor:
            if self.head_norm is not None:
                x = F.rms_norm(x, (self.head_dim,), self.head_norm, EPS)
            left, right = x.chunk(2, -1)
            cos, sin = self.cos[: len(x), None], self.sin[: len(x), None]
            return x * cos + torch.cat((-right, left), -1) * sin

        index = torch.arange(len(x))
        distance = index[:, None] - index
        seen = (distance >= 0) & ((distance < self.window) | (self.window == 0))
        q, k, v = (t.transpose(0, 1)[None] for t in (rotated(q), rotated(k), v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return product(out[0].transpose(0, 1).flatten(1), self.output) + self.output_bias


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = ROUNDING) -> None:
    """Row by row, relative to the row's size."""
    error = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < tolerance, f"row {error.argmax()} is off by {error.max():.3f} of its size"


def product(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """In float32, of rows in bfloat16."""
    x = x.bfloat16().float()
    return linear(x, weight.float() if isinstance(weight, torch.Tensor) else weight)


def rows(count: int, hidden: int) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(count))


@compiled
@pytest.mark.parametrize("quantized", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("hidden", "outputs"), [(16, 1), (64, 320), (192, 1000), (896, 49)])
def test_head(hidden: int, outputs: int, threads: int, quantized: bool) -> None:
    """Norm and a product whose sizes do not fill the panels; and where the largest of it is."""
    case = Case(hidden, quantized=quantized)
    generator = torch.Generator().manual_seed(outputs)
    weight: Weight = (torch.randn(outputs, hidden, generator=generator) * hidden**-0.5).bfloat16()
    if quantized:
        weight = quantize(weight)
    for count in (1, 2, 13, 14, 40):
        x = rows(count, hidden)
        logits, likeliest = case.head(x, weight, threads)
        assert_close(logits, product(case.normed(x), weight), case.tolerance)
        assert torch.equal(likeliest, logits.argmax(-1))


@compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_likeliest_is_the_first_of_equals(threads: int) -> None:
    """Many outputs are equal, and the largest are often twins far from each other, as in any vocabulary."""
    case = Case(32)
    rand = torch.Generator().manual_seed(3)
    for outputs in (5, 70, 1000):
        weight = torch.randn(outputs, 32, generator=rand).bfloat16()
        twins = torch.randint(0, outputs, (outputs,), generator=rand)
        for x in (rows(30, 32), torch.zeros(3, 32), -torch.ones(2, 32)):
            logits, likeliest = case.head(x, weight[twins], threads)
            assert torch.equal(likeliest, logits.argmax(-1))


@compiled
def test_the_likeliest_is_a_token_whatever_the_network_says() -> None:
    case = Case(32)
    for value in (torch.nan, torch.inf, -torch.inf):
        for outputs in (1, 40):
            _, likeliest = case.head(rows(2, 32), torch.full((outputs, 32), value).bfloat16(), 2)
            assert ((likeliest >= 0) & (likeliest < outputs)).all()


@compiled
def test_panels_lie_in_huge_pages_one_behind_the_other() -> None:
    memory = PanelMemory(load_library())
    taken = [memory.take(panels, 448) for panels in (36, 28, 304, 3000, 5)]
    assert [piece.shape for piece in taken] == [(n, 448, 32, 2) for n in (36, 28, 304, 3000, 5)]
    assert taken[0].data_ptr() % (2 << 20) == 0
    assert taken[3].data_ptr() % (2 << 20) == 0  # larger than what was left: it begins a chunk
    for before, after in (taken[:2], taken[1:3], taken[3:]):
        assert before.data_ptr() + before.nbytes == after.data_ptr()
    for number, piece in enumerate(taken):
        assert not piece.any()
        piece.fill_(number)
    assert [piece.unique().tolist() for piece in taken] == [[n] for n in range(5)]


@compiled
@pytest.mark.parametrize("quantized", [False, True], ids=["bfloat16", "int8"])
def test_packed_rows_are_the_rows(quantized: bool) -> None:
    """What embeds tokens where the embedding is the packed head."""
    library = load_library()
    weight: Weight = torch.randn(77, 48).bfloat16()
    if quantized:
        weight = quantize(weight)
    packed = pack_matrix(PanelMemory(library), weight)
    assert packed.panels.shape == ((3, 12, 32, 4) if quantized else (3, 24, 32, 2))
    ids = torch.tensor([0, 76, 31, 32, 32])
    found = torch.empty(5, 48)
    words = packed.panels.shape[1]
    library.unpack_rows(matrix_struct(packed), words, ids.data_ptr(), 5, 48, found.data_ptr(), 1)
    assert torch.equal(found, rows_of(weight, ids).float())


@compiled
@pytest.mark.parametrize("quantized", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("hidden", "neurons"), [(16, 40), (64, 192), (192, 1000), (576, 88)])
def test_nested_mlp(hidden: int, neurons: int, threads: int, quantized: bool) -> None:
    """Rows of one width, of a few, and of one each; each as if it were alone."""
    case = Case(hidden, neurons=neurons, quantized=quantized)
    for widths in (
        [neurons],
        [neurons] * 5,
        [8] * 30,
        [neurons] * 8 + [neurons // 2] * 3 + [neurons // 16 * 8] * 9 + [8] * 2,
        list(range(neurons, 7, -(neurons // 40))),
    ):
        x = rows(len(widths), hidden)
        residual = x.clone()
        per_row = torch.tensor(widths, dtype=torch.int32)
        batch = BatchStruct.of(len(widths), 1, residual=residual, widths=per_row)
        workspace = case.workspace(len(widths), threads)
        # What a row must not read stands there as NaN.
        workspace.view(torch.bfloat16).fill_(torch.nan)
        case.library.mlp_block(case.model, case.struct, batch, workspace.data_ptr(), threads)
        expected = torch.cat([case.mlp(row[None], width) for row, width in zip(x, widths, strict=True)])
        assert_close(residual - x, expected, case.tolerance)


@compiled
@pytest.mark.parametrize("count", [1, 2, 13, 40])
def test_integers_multiply_exactly(count: int) -> None:
    """Rows whose norm is certain to the last bit: no integer is rounded another way, and nothing is off."""
    case = Case(192, neurons=344, quantized=True)
    case.norm.fill_(1)
    x = rows(count, 192).sign()
    residual = x.clone()
    widths = [344] * (count // 2) + [72] * (count - count // 2)
    batch = BatchStruct.of(count, 1, residual=residual, widths=torch.tensor(widths, dtype=torch.int32))
    workspace = case.workspace(count, 2)
    case.library.mlp_block(case.model, case.struct, batch, workspace.data_ptr(), 2)
    expected = torch.cat([case.mlp(row[None], width) for row, width in zip(x, widths, strict=True)])
    assert_close(residual - x, expected, 0.002)


def attend(case: Case, requests: Sequence[torch.Tensor], chunks: Sequence[int], threads: int) -> None:
    """Runs whole requests through the kernel, chunk after chunk of all of them, and compares every row."""
    per_request = -(-case.max_len // case.block_size)
    tables = torch.randperm(case.num_blocks, generator=torch.Generator().manual_seed(7)).int()
    tables = tables[: len(requests) * per_request].view(len(requests), -1)
    for memory in (case.kv.keys, case.kv.values):  # a request must not see what another left behind
        memory.fill_(torch.nan)
    outputs: list[list[torch.Tensor]] = [[] for _ in requests]
    done = [0] * len(requests)
    while any(len(x) > n for x, n in zip(requests, done, strict=True)):
        spans = [
            (r, done[r], min(done[r] + chunks[r], len(x))) for r, x in enumerate(requests) if done[r] < len(x)
        ]
        positions = torch.cat([torch.arange(start, stop) for _, start, stop in spans]).int()
        owners = torch.cat([torch.full((stop - start,), r) for r, start, stop in spans])
        slots = tables[owners, positions // case.block_size] * case.block_size + positions % case.block_size
        starts = torch.tensor([0, *(stop - start for _, start, stop in spans)]).cumsum(0).int()
        table_starts = torch.tensor([r * per_request for r, _, _ in spans], dtype=torch.int32)
        x = torch.cat([requests[r][start:stop] for r, start, stop in spans])
        residual = x.clone()
        batch = BatchStruct.of(
            len(x),
            len(spans),
            residual=residual,
            positions=positions,
            slots=slots,
            starts=starts,
            block_tables=tables,
            table_starts=table_starts,
        )
        workspace = case.workspace(len(x), threads)
        case.library.attention_block(case.model, case.struct, batch, workspace.data_ptr(), threads)
        for (r, _, stop), piece in zip(spans, (residual - x).split(starts.diff().tolist()), strict=True):
            outputs[r].append(piece)
            done[r] = stop
    for whole, pieces in zip(requests, outputs, strict=True):
        assert_close(torch.cat(pieces), case.attention(whole), case.tolerance)


@compiled
@pytest.mark.parametrize("quantized", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 2, "kv_heads": 2, "head_dim": 16, "block_size": 2},
        {"heads": 14, "kv_heads": 2, "head_dim": 64, "block_size": 16},
        {"heads": 4, "kv_heads": 1, "head_dim": 48, "block_size": 24, "heads_normed": True},
        {"heads": 3, "kv_heads": 1, "head_dim": 128, "block_size": 8, "window": 20},
        {"heads": 20, "kv_heads": 1, "head_dim": 32, "block_size": 16, "window": 70},
    ],
    ids=str,
)
def test_ragged_paged_attention(shape: dict, threads: int, quantized: bool) -> None:
    """Chunks and single tokens of several requests in one call, against whole requests without a cache."""
    case = Case(64, max_len=64, num_blocks=4 * 32, quantized=quantized, **shape)
    requests = [rows(count, 64) for count in (1, 12, 40, 61)]
    attend(case, requests, [1, 1, 7, 40], threads)


@compiled
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_long_contexts_are_shared_between_threads(threads: int, window: int) -> None:
    """Several chunks of keys, cut between threads, more of them than there are tiles."""
    case = Case(32, heads=2, kv_heads=1, block_size=16, window=window, num_blocks=160)
    attend(case, [rows(1101, 32), rows(530, 32)], [1099, 529], threads)
