"""Random deltas for tiny checkpoints."""

from collections.abc import Sequence

import torch

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.delta import PROJECTIONS, Delta, DeltaProvenance, LowRank, Projection
from pruning.ranking.ranking import Ranking


def random_delta(
    checkpoint: Checkpoint,
    ranking: Ranking,
    widths: Sequence[int],
    *,
    projections: Sequence[Projection] = PROJECTIONS,
    rank: int = 5,
    seed: int = 0,
    size: float = 0.5,
    sparsity: float = 0.3,
) -> Delta:
    """As large as the weights times `size`, so that nobody can overlook it. Ranks differ between layers."""
    config = checkpoint.config
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).bfloat16()

    def low_rank(outputs: int, inputs: int, rank: int) -> LowRank:
        return LowRank(matrix(rank, inputs) * inputs**-0.5, matrix(outputs, rank) * (size * rank**-0.5))

    def layer(width: int, rank: int) -> dict[Projection, LowRank]:
        shapes: dict[Projection, tuple[int, int]] = {
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (width, hidden),
            "up_proj": (width, hidden),
            "down_proj": (hidden, width),
        }
        return {name: low_rank(*shapes[name], rank) for name in projections}

    provenance = DeltaProvenance(
        model_name=checkpoint.name,
        model=checkpoint.fingerprint,
        task="counting",
        ranking=ranking.digest,
        sparsity=sparsity,
        widths=tuple(widths),
        method="random",
        settings={"seed": seed, "size": size},
        created="2026-01-01T00:00:00+00:00",
    )
    return Delta(provenance, tuple(layer(width, rank + 7 * i) for i, width in enumerate(widths)))
