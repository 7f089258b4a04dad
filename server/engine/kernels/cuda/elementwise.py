"""What stands between the matrix products of a layer, each as one Triton kernel.

Rounding is that of the same steps in torch (server/engine/model.py): what torch would keep in the model's
dtype between two steps is rounded to it here too.
"""

import torch
import triton
import triton.language as tl

from server.engine.attention import PagedKV

_NEURONS_PER_PROGRAM = 1024


def add_and_norm(
    hidden: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden + added, and its RMS norm. All [tokens, hidden]; `weight` [hidden]."""
    rows, columns = hidden.shape
    total = hidden if added is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden)
    _add_and_norm[(rows,)](
        hidden, added, weight, total, normed, eps,
        COLUMNS=columns, WIDTH=triton.next_power_of_2(columns), ADDS=added is not None,
    )  # fmt: skip
    return total, normed


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """`x` in float32, as far as `dtype` can tell numbers apart."""
    return x.to(dtype).to(tl.float32)


@triton.jit
def _add_and_norm(
    hidden, added, weight, total, normed, eps, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, ADDS: tl.constexpr
):
    column = tl.arange(0, WIDTH)
    inside = column < COLUMNS
    at = tl.program_id(0).to(tl.int64) * COLUMNS + column
    dtype: tl.constexpr = hidden.dtype.element_ty
    x = tl.load(hidden + at, inside, 0).to(tl.float32)
    if ADDS:
        x = _rounded(x + tl.load(added + at, inside, 0).to(tl.float32), dtype)
        tl.store(total + at, x.to(dtype), inside)
    scale = tl.rsqrt(tl.sum(x * x, 0) / COLUMNS + eps)
    y = _rounded(x * scale, dtype) * tl.load(weight + column, inside, 0).to(tl.float32)
    tl.store(normed + at, y.to(dtype), inside)


def rotate_and_keep(
    qkv: torch.Tensor,
    num_heads: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    rotary: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    slots: torch.Tensor,
    kv: PagedKV,
) -> torch.Tensor:
    """Queries with their positions in them, [tokens, heads, head_dim]; keeps keys and values.

    Args:
        qkv: [tokens, (heads + 2 kv_heads) * head_dim].
        norms: weights of the norms on heads of queries and keys, [head_dim] each.
        rotary: cos and sin, [positions, head_dim] each; both halves of head_dim alike.
        positions, slots: [tokens]; nothing is kept of a token whose slot is negative.
    """
    _, _, kv_heads, head_dim = kv.keys.shape
    tokens = len(qkv)
    queries = torch.empty(tokens, num_heads, head_dim, device=qkv.device, dtype=qkv.dtype)
    q_norm, k_norm = norms or (None, None)
    _rotate_and_keep[(tokens, num_heads + 2 * kv_heads)](
        qkv, q_norm, k_norm, eps, *rotary, positions, slots, queries, kv.keys, kv.values,
        HEADS=num_heads, KV_HEADS=kv_heads, HALF=head_dim // 2,
        WIDTH=triton.next_power_of_2(head_dim // 2), NORMS=norms is not None,
        num_warps=1,
    )  # fmt: skip
    return queries


@triton.jit
def _rotate_and_keep(
    qkv, q_norm, k_norm, eps, cos, sin, positions, slots, queries, keys, values,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    dim: tl.constexpr = 2 * HALF
    dtype: tl.constexpr = qkv.dtype.element_ty
    half = tl.arange(0, WIDTH)
    inside = half < HALF
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head).to(tl.int64) * dim
    left = tl.load(source + half, inside, 0)
    right = tl.load(source + HALF + half, inside, 0)
    slot = tl.load(slots + token).to(tl.int64)
    if head >= HEADS + KV_HEADS:
        if slot >= 0:
            to = values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * dim
            tl.store(to + half, left, inside)
            tl.store(to + HALF + half, right, inside)
    else:
        wide_left, wide_right = left.to(tl.float32), right.to(tl.float32)
        if NORMS:
            scale = tl.rsqrt(
                (tl.sum(wide_left * wide_left, 0) + tl.sum(wide_right * wide_right, 0)) / dim + eps
            )
            is_query = head < HEADS
            for_left = tl.where(
                is_query, tl.load(q_norm + half, inside, 0), tl.load(k_norm + half, inside, 0)
            )
            for_right = tl.where(
                is_query, tl.load(q_norm + HALF + half, inside, 0), tl.load(k_norm + HALF + half, inside, 0)
            )
            wide_left = _rounded(_rounded(wide_left * scale, dtype) * for_left, dtype)
            wide_right = _rounded(_rounded(wide_right * scale, dtype) * for_right, dtype)
        angle = tl.load(positions + token).to(tl.int64) * dim + half
        c, s = tl.load(cos + angle, inside, 0).to(tl.float32), tl.load(sin + angle, inside, 0).to(tl.float32)
        new_left = _rounded(wide_left * c, dtype) - _rounded(wide_right * s, dtype)
        new_right = _rounded(wide_right * c, dtype) + _rounded(wide_left * s, dtype)
        if head < HEADS:
            to = queries + (token * HEADS + head).to(tl.int64) * dim
            tl.store(to + half, new_left.to(dtype), inside)
            tl.store(to + HALF + half, new_right.to(dtype), inside)
        elif slot >= 0:
            to = keys + (slot * KV_HEADS + head - HEADS) * dim
            tl.store(to + half, new_left.to(dtype), inside)
            tl.store(to + HALF + half, new_right.to(dtype), inside)


def gate(gates: torch.Tensor, ups: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """silu(gates) * ups, [tokens, neurons]; zero from `widths` [tokens] on. `gates` is written over."""
    tokens, neurons = gates.shape
    programs = (tokens, triton.cdiv(neurons, _NEURONS_PER_PROGRAM))
    _gate[programs](gates, ups, widths, neurons, BLOCK=_NEURONS_PER_PROGRAM)
    return gates


@triton.jit
def _gate(gates, ups, widths, neurons, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    neuron = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < neurons
    at = token.to(tl.int64) * neurons + neuron
    # Not even read beyond the width: what the token has no neuron for must not become its NaN.
    served = neuron < tl.load(widths + token)
    dtype: tl.constexpr = gates.dtype.element_ty
    x = tl.load(gates + at, inside & served, 0).to(tl.float32)
    h = _rounded(x / (1 + tl.exp(-x)), dtype) * tl.load(ups + at, inside & served, 0).to(tl.float32)
    tl.store(gates + at, h.to(dtype), inside)
