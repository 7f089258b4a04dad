"""The Triton kernels against torch: on a GPU where there is one, else in Triton's interpreter.

Triton comes with torch for CUDA. Beside torch for CPUs `pip install triton`, and set TRITON_INTERPRET=1.
"""

import os

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device; TRITON_INTERPRET=1 does without", allow_module_level=True)

from server.engine import engine as engine_module
from server.engine.attention import AttentionSpan, PagedKV
from server.engine.kernels import GRAPHS, KernelChoice
from server.engine.kernels.cuda.attention import attend
from server.engine.kernels.cuda.elementwise import add_and_norm, gate, rotate_and_keep
from server.engine.kernels.cuda.inputs import StepInputs, items_of
from server.engine.model import _rms_norm, _rotate
from tests.server.engine.support import generate, logit_gap, prompt

BLOCK_SIZE, HEADS, KV_HEADS = 4, 6, 2
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
if DEVICE == "cuda":
    TOLERANCE[torch.bfloat16] = 2e-2  # to which the interpreter does not round as a GPU does

dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def paged(dtype: torch.dtype, head_dim: int, num_blocks: int) -> PagedKV:
    kv = PagedKV(num_blocks, BLOCK_SIZE, KV_HEADS, head_dim, torch.device(DEVICE), dtype)
    kv.keys.copy_(random(*kv.keys.shape, seed=1))
    kv.values.copy_(random(*kv.values.shape, seed=2))
    return kv


@dtypes
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("head_dim", [16, 24])
@pytest.mark.parametrize("per_program", [1, 16])
def test_attention(dtype: torch.dtype, window: int | None, head_dim: int, per_program: int) -> None:
    """Requests of several lengths, one of them longer than a program takes keys at once."""
    kv = paged(dtype, head_dim, num_blocks=60)
    lengths, news = [1, 9, 150], [1, 3, 2]
    blocks = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
    spans, start = [], 0
    for length, new in zip(lengths, news, strict=True):
        table = [blocks.pop() for _ in range(-(-length // BLOCK_SIZE))]
        spans.append(AttentionSpan(start, start + new, length - new, table))
        start += new
    items = items_of(spans, per_program)
    inputs = StepInputs(1, start, len(spans), 40, len(items), torch.device(DEVICE))
    for table, span in zip(inputs.tables, spans, strict=True):
        table[: len(span.block_table)] = ints(span.block_table)
    inputs._items.copy_(torch.tensor(items, dtype=torch.int32))
    positions = ints([span.first_position + i for span in spans for i in range(span.stop - span.start)])
    queries = random(start, HEADS, head_dim, dtype=dtype)
    output = torch.full_like(queries, float("nan"))
    work = inputs.queries(0, len(items), per_program, BLOCK_SIZE)
    attend(queries, positions, work, kv, window, output)
    for span in spans:
        keys, values = kv.read(torch.tensor([span.block_table], device=DEVICE))
        place = torch.arange(keys.shape[2], device=DEVICE)
        own = positions[span.start : span.stop, None]
        seen = (place <= own) & (place > own - (window or 10_000))
        expected = F.scaled_dot_product_attention(
            queries[span.start : span.stop].transpose(0, 1)[None].float(),
            keys.float(),
            values.float(),
            attn_mask=seen,
            enable_gqa=True,
        )
        torch.testing.assert_close(
            output[span.start : span.stop].float(),
            expected[0].transpose(0, 1),
            atol=TOLERANCE[dtype],
            rtol=TOLERANCE[dtype],
        )


@dtypes
def test_add_and_norm(dtype: torch.dtype) -> None:
    hidden, added, weight = (
        random(*shape, dtype=dtype, seed=n) for n, shape in enumerate([(3, 40), (3, 40), (40,)])
    )
    total, normed = add_and_norm(hidden, added, weight, 1e-6)
    torch.testing.assert_close(total, hidden + added)
    torch.testing.assert_close(normed, _rms_norm(hidden + added, weight, 1e-6))
    total, normed = add_and_norm(hidden, None, weight, 1e-6)
    torch.testing.assert_close(total, hidden)
    torch.testing.assert_close(normed, _rms_norm(hidden, weight, 1e-6))


@dtypes
@pytest.mark.parametrize("has_norms", [False, True])
def test_rotate_and_keep(dtype: torch.dtype, has_norms: bool) -> None:
    head_dim, tokens = 24, 3
    kv = paged(dtype, head_dim, num_blocks=3)
    before = kv.keys.clone(), kv.values.clone()
    qkv = random(tokens, (HEADS + 2 * KV_HEADS) * head_dim, dtype=dtype)
    norms = (
        (random(head_dim, dtype=dtype, seed=5), random(head_dim, dtype=dtype, seed=6)) if has_norms else None
    )
    angles = random(20, head_dim // 2, seed=7)
    rotary = tuple(f(torch.cat((angles, angles), 1)).to(dtype) for f in (torch.cos, torch.sin))
    positions, slots = [4, 0, 19], [7, -1, 2]
    queries = rotate_and_keep(qkv, HEADS, norms, 1e-6, rotary, ints(positions), ints(slots), kv)
    heads = qkv.view(tokens, -1, head_dim)
    query, key, value = torch.split(heads, [HEADS, KV_HEADS, KV_HEADS], dim=1)
    if norms is not None:
        query, key = _rms_norm(query, norms[0], 1e-6), _rms_norm(key, norms[1], 1e-6)
    cos, sin = (table[positions, None] for table in rotary)
    torch.testing.assert_close(queries, _rotate(query, cos, sin))
    for expected, new in zip(before, (_rotate(key, cos, sin), value), strict=True):
        flat = expected.flatten(0, 1)
        for token, slot in enumerate(slots):
            if slot >= 0:
                flat[slot] = new[token]
    torch.testing.assert_close((kv.keys, kv.values), before)


@dtypes
def test_gate(dtype: torch.dtype) -> None:
    gates, ups = random(3, 1100, dtype=dtype), random(3, 1100, dtype=dtype, seed=1)
    expected = F.silu(gates) * ups
    gates[0, 500:] = ups[0, 500:] = float("nan")  # beyond the width nothing is looked at
    widths = [500, 1100, 0]
    for row, width in zip(expected, widths, strict=True):
        row[width:] = 0
    torch.testing.assert_close(gate(gates, ups, ints(widths)), expected)


@pytest.mark.skipif(DEVICE == "cuda", reason="tests marked gpu do this with graphs")
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_a_mixed_batch_is_computed_as_torch_does(load, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in chunks beside decoding, then both decoding, of two widths."""
    monkeypatch.setattr(engine_module, "choose_kernels", lambda *_: KernelChoice(None, GRAPHS))
    loaded = load(family)
    engine = loaded.engine(max_num_seqs=2, max_num_batched_tokens=20)
    asked = [(prompt(1, 5), loaded.dense), (prompt(2, 30), loaded.variant((64, 96, 32)))]
    for (token_ids, variant), output in zip(asked, generate(engine, asked), strict=True):
        assert logit_gap(loaded.reference(variant), token_ids, output) <= 1e-3
