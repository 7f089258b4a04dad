"""Logits to log-probabilities of tokens that are known already: how well a network foretells a given text.

Knows logits and what is wanted of each row; which rows those are is the scheduler's and the requests'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from server.engine.request import Request, TokenLogprobs


@dataclass(frozen=True)
class RowToScore:
    """The logits after one token of a prompt: the next token, and what else is asked about it."""

    token_id: int
    top: int
    candidates: Sequence[int]

    @classmethod
    def of(cls, request: Request, position: int) -> "RowToScore":
        """What `request` wants of the row at `position`, which scores the token after it."""
        scoring = request.scoring
        assert scoring is not None
        target = position + 1
        candidates = scoring.candidates[target - scoring.start] if scoring.candidates else ()
        return cls(request.prompt_token_ids[target], scoring.top, candidates)


def score(logits: torch.Tensor, rows: Sequence[RowToScore]) -> list[TokenLogprobs]:
    """The log-probabilities of each row. `logits`: [rows, vocabulary] float32."""
    if not rows:
        return []
    total = logits.logsumexp(-1, keepdim=True)  # [rows, 1]
    targets = torch.tensor([[row.token_id] for row in rows], device=logits.device)
    logprobs = (logits.gather(1, targets) - total)[:, 0].tolist()
    best = logits.topk(max(row.top for row in rows))
    best_ids, best_logprobs = best.indices.tolist(), (best.values - total).tolist()
    return [
        TokenLogprobs(
            row.token_id,
            logprobs[i],
            tuple(zip(best_ids[i][: row.top], best_logprobs[i][: row.top], strict=True)),
            tuple((logits[i, list(row.candidates)] - total[i]).tolist()) if row.candidates else (),
        )
        for i, row in enumerate(rows)
    ]
