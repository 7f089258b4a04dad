"""Logits to tokens: penalties, temperature, truncation, one random number a token; for a whole batch.

A request's randomness is its own generator, drawn from once per token, so a seeded request gives the same
text whoever shares its batch. Temperature 0 takes the likeliest token, the lowest id on a tie.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from server.engine.request import Request, SamplingParams, TokenLogprobs

_TINY = torch.finfo(torch.float32).tiny
_FIRST_CANDIDATES = 128  # of a truncated distribution; doubled until they hold all that is kept


class SampledToken(NamedTuple):
    """A chosen token, with log-probabilities where the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
    """The next token of each request. `logits`: [requests, vocabulary] float32; changed in place."""
    if not requests:
        return []
    reported = _logprobs(logits, requests)
    for row, request in zip(logits, requests, strict=True):
        _apply_penalties(row, request)
    token_ids = logits.argmax(dim=-1)
    random_rows = [i for i, request in enumerate(requests) if request.sampling.temperature > 0]
    if random_rows:
        chosen = _sample_randomly(logits[random_rows], [requests[i] for i in random_rows])
        token_ids[random_rows] = chosen
    return [
        SampledToken(token_id, _with_chosen(reported.get(i), token_id))
        for i, token_id in enumerate(token_ids.tolist())
    ]


def _apply_penalties(row: torch.Tensor, request: Request) -> None:
    """Changes `row` [vocabulary] by what the request has seen and said so far."""
    sampling = request.sampling
    if sampling.repetition_penalty != 1:  # Keskar et al. 2019 (arXiv 1909.05858), over prompt and output
        seen = torch.unique(torch.tensor(request.slice_tokens(0, request.num_tokens), device=row.device))
        values = row[seen]
        penalty = sampling.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and request.output_token_ids:
        output = torch.tensor(request.output_token_ids, device=row.device)
        said, counts = torch.unique(output, return_counts=True)
        row[said] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias), device=row.device)
        row[biased] += torch.tensor(list(sampling.logit_bias.values()), device=row.device)


def _sample_randomly(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """One token a row, by inverting the cumulative distribution at a number the request's generator draws."""
    params = [request.sampling for request in requests]
    device = logits.device
    # In float32 the smallest would be 0, which divides nothing.
    temperature = torch.tensor([p.temperature for p in params], device=device).clamp_min(_TINY)
    draws = torch.tensor([r.rng.random() for r in requests], dtype=torch.float64, device=device)
    # The largest logit is taken off first: a small temperature must not overflow.
    probs = ((logits - logits.amax(-1, keepdim=True)) / temperature[:, None]).softmax(-1)
    token_ids = torch.empty(len(params), dtype=torch.long, device=device)
    truncated = torch.tensor([_truncates(p) for p in params], device=device)
    if not truncated.all():
        token_ids[~truncated] = _invert(probs[~truncated], draws[~truncated])
    if truncated.any():
        kept, candidates = _truncate(probs[truncated], [p for p in params if _truncates(p)])
        columns = _invert(kept, draws[truncated])
        token_ids[truncated] = candidates.gather(1, columns[:, None])[:, 0]
    return token_ids


def _truncates(sampling: SamplingParams) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _truncate(probs: torch.Tensor, params: Sequence[SamplingParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """top_k, then top_p of what is left (arXiv 1904.09751), then min_p (arXiv 2407.01082).

    Args:
        probs: [rows, vocabulary].

    Returns:
        Probabilities of the likeliest tokens, those dropped at 0, and their ids: [rows, candidates] each.
        The likeliest is always kept.
    """
    device, vocabulary = probs.device, probs.shape[1]
    top_k = torch.tensor([min(p.top_k or vocabulary, vocabulary) for p in params], device=device)[:, None]
    top_p = torch.tensor([p.top_p for p in params], device=device)[:, None]
    min_p = torch.tensor([p.min_p for p in params], device=device)[:, None]
    # Sorting a whole vocabulary costs more than all the rest; mostly a few candidates hold what is kept.
    count = min(max([_FIRST_CANDIDATES, *(p.top_k for p in params)]), vocabulary)
    while True:
        values, ids = probs.topk(count)  # likeliest first
        within_k = torch.arange(count, device=device) < top_k
        values = values * within_k
        total = values.sum(-1, keepdim=True).where(top_k < vocabulary, 1.0)  # of all that top_k keeps
        before = (values.cumsum(-1) - values) / total
        kept = within_k & (before < top_p) & (values >= min_p * values[:, :1])
        kept[:, 0] = True
        if count == vocabulary or not kept[:, -1].any():
            return values * kept, ids
        count = min(2 * count, vocabulary)


def _invert(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The column where each row's running sum passes `draws` [rows] of its total. Never one of weight 0."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    columns = torch.searchsorted(cumulative, draws[:, None] * total, right=True)
    last = (weights > 0).cumsum(-1).argmax(-1, keepdim=True)  # rounding may carry a draw to the very end
    return torch.minimum(columns, last)[:, 0]


def _logprobs(logits: torch.Tensor, requests: Sequence[Request]) -> dict[int, tuple[torch.Tensor, int]]:
    """Row → its log-probabilities [vocabulary] and how many alternatives to report."""
    wanted: dict[int, int] = {}
    for row, request in enumerate(requests):
        asked = (request.sampling.logprobs, request.sampling.recorded_logprobs)
        if asked != (None, None):
            wanted[row] = max(count for count in asked if count is not None)
    if not wanted:
        return {}
    values = logits[list(wanted)].log_softmax(-1)
    return {row: (values[n], top) for n, (row, top) in enumerate(wanted.items())}


def _with_chosen(reported: tuple[torch.Tensor, int] | None, token_id: int) -> TokenLogprobs | None:
    if reported is None:
        return None
    values, top = reported
    best = values.topk(top)
    alternatives = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprobs(token_id, values[token_id].item(), alternatives)
