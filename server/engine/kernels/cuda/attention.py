"""Causal attention over paged keys and values as Triton kernels; one launch for all requests of a kind.

A program computes some queries of one request that follow one another, for all heads that share a KV head,
over a part of the keys: softmax piece by piece (Milakov and Gimelshein 2018, arXiv 1805.02867), parts put
together by a second kernel (Flash-Decoding: Dao et al. 2023). It reads KV where it lies, through the
request's block table, and no further than the request's own length.
"""

import torch
import triton
import triton.language as tl

from server.engine.attention import PagedKV
from server.engine.kernels.cuda.inputs import Queries

_KEYS_PER_PIECE = 64
_PROGRAMS_WANTED = 256  # enough for every multiprocessor of a large GPU
_MAX_PARTS = 16


def attend(
    queries: torch.Tensor,
    positions: torch.Tensor,
    work: Queries,
    kv: PagedKV,
    window: int | None,
    output: torch.Tensor,
) -> None:
    """Writes the tokens of `work` into `output`, [tokens, heads, head_dim] as `queries`.

    Args:
        positions: [tokens] int32.
        window: how many tokens a token sees, itself included; None for all before it.
    """
    _, num_heads, head_dim = queries.shape
    _, block_size, kv_heads, _ = kv.keys.shape
    programs, group = len(work.items), num_heads // kv_heads
    parts = _num_parts(programs * kv_heads, work.max_keys)
    is_exact = queries.dtype == torch.float32  # which takes room for three products of every two numbers
    rows = max(16, triton.next_power_of_2(work.per_program * group))
    if parts == 1:
        sums = peaks = output
    else:
        sums = torch.empty(parts, *queries.shape, device=queries.device, dtype=torch.float32)
        peaks = torch.empty(parts, *queries.shape[:2], 2, device=queries.device, dtype=torch.float32)
    _attend[(programs, kv_heads, parts)](
        queries, kv.keys, kv.values, positions, work.items, work.tables, work.tables.shape[1], output,
        sums, peaks, queries.shape[0] * num_heads, head_dim**-0.5, window or 0,
        GROUP=group, ROWS=rows, KV_HEADS=kv_heads, DIM=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)), BLOCK_SIZE=block_size,
        PIECE=_KEYS_PER_PIECE // 4 if is_exact else _KEYS_PER_PIECE, PARTS=parts, EXACT=is_exact,
        num_warps=8 if rows > 64 else 4,
    )  # fmt: skip
    if parts > 1:
        _combine[(programs, num_heads)](
            sums, peaks, work.items, output, queries.shape[0] * num_heads,
            HEADS=num_heads, DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim),
            PARTS=parts, num_warps=1,
        )  # fmt: skip


def _num_parts(programs: int, max_keys: int) -> int:
    """Into how many parts each request's keys are cut: a power of two."""
    wanted = min(_MAX_PARTS, triton.cdiv(_PROGRAMS_WANTED, programs), triton.cdiv(max_keys, _KEYS_PER_PIECE))
    return 1 << (max(1, int(wanted)).bit_length() - 1)


@triton.jit
def _attend(
    queries, keys, values, positions, items, tables, table_length, output, sums, peaks, part_heads, scale,
    window, GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, PIECE: tl.constexpr,
    PARTS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    item, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(items + 3 * item)
    count = tl.load(items + 3 * item + 1)
    table = tables + tl.load(items + 3 * item + 2).to(tl.int64) * table_length

    row = tl.arange(0, ROWS)  # a row is a query of one head
    query = row // GROUP
    real = query < count
    token = tl.where(real, first + query, first)
    dim = tl.arange(0, WIDTH)
    head = (token * KV_HEADS + kv_head) * GROUP + row % GROUP  # [ROWS], of all heads of all tokens
    inside = real[:, None] & (dim < DIM)[None, :]
    at = head.to(tl.int64)[:, None] * DIM + dim[None, :]
    q = tl.load(queries + at, inside, 0)
    position = tl.load(positions + token)

    # The keys that any of these queries sees, and this program's part of them, in whole pieces.
    stop = tl.load(positions + first) + count
    start = 0
    if window > 0:
        start = tl.maximum(0, tl.load(positions + first) + 1 - window)
    per_part = tl.cdiv(tl.cdiv(stop - start, PIECE), PARTS) * PIECE
    start = start + part * per_part
    stop = tl.minimum(stop, start + per_part)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, WIDTH], tl.float32)
    for piece in range(start, stop, PIECE):
        key = piece + tl.arange(0, PIECE)
        block = tl.load(table + key // BLOCK_SIZE, key < stop, 0).to(tl.int64)
        kv_at = ((block * BLOCK_SIZE + key % BLOCK_SIZE) * KV_HEADS + kv_head)[:, None] * DIM + dim[None, :]
        kv_inside = (key < stop)[:, None] & (dim < DIM)[None, :]
        k = tl.load(keys + kv_at, kv_inside, 0)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        seen = (key[None, :] <= position[:, None]) & (key < stop)[None, :]
        if window > 0:
            seen = seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A query may see none of the keys so far: its peak is -inf, and so would be what is taken off.
        taken = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        kept = tl.exp(peak - taken)
        weights = tl.exp(scores - taken[:, None])
        total = total * kept + tl.sum(weights, 1)
        v = tl.load(values + kv_at, kv_inside, 0)
        weighted = weighted * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
        peak = new_peak
    if PARTS == 1:
        tl.store(output + at, (weighted / total[:, None]).to(output.dtype.element_ty), inside)
    else:
        own = part.to(tl.int64) * part_heads
        tl.store(sums + own * DIM + at, weighted, inside)
        tl.store(peaks + 2 * (own + head), peak, real)
        tl.store(peaks + 2 * (own + head) + 1, total, real)


@triton.jit
def _combine(
    sums, peaks, items, output, part_heads,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(items + 3 * item)
    count = tl.load(items + 3 * item + 1)
    part = tl.arange(0, PARTS).to(tl.int64)
    dim = tl.arange(0, WIDTH)
    for query in range(0, count):
        own = ((first + query) * HEADS + head).to(tl.int64)
        peak = tl.load(peaks + 2 * (part * part_heads + own))
        total = tl.load(peaks + 2 * (part * part_heads + own) + 1)
        weight = tl.exp(peak - tl.max(peak, 0))
        at = (part * part_heads + own)[:, None] * DIM + dim[None, :]
        weighted = tl.load(sums + at, (dim < DIM)[None, :], 0)
        result = tl.sum(weighted * weight[:, None], 0) / tl.sum(total * weight, 0)
        tl.store(output + own * DIM + dim, result.to(output.dtype.element_ty), dim < DIM)
