"""Training-free correction of one variant: low-rank matrices that make up for the neurons left out.

Layer after layer, on the pruned model's own inputs with all layers before already corrected, W_d gets the B A
that brings the residual stream nearest to where it should be. Knows what is fitted on what, and in how much
memory; the way through the layers is layer_fit.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pruning.calibration.answers import Answers
from pruning.calibration.batches import TokenSequence, in_batches, pad_batch, with_answers
from pruning.calibration.calibration import CalibrationData, check_lengths, load_network
from pruning.calibration.layerwise import LayerwiseModel
from pruning.calibration.memory import FLOAT32_BYTES, logits_bytes, spare_bytes, weight_bytes
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.compensation.layer_fit import PULL, LayerFit, Role, RoleBatch
from pruning.compensation.least_squares import working_bytes
from pruning.compensation.streams import StreamStore
from pruning.compensation.unfinished import load_unfinished
from pruning.delta import Delta, DeltaProvenance, Setting
from pruning.errors import DeltaError
from pruning.held_out import held_out, part
from pruning.ranking.ranking import Ranking
from pruning.slicing import check_fit

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

METHOD = "compensation"
STREAMS_DIRECTORY = "streams"
BATCH_TOKENS = 2048
BATCH_ROWS = 64
JUDGED = (1, 2)  # parts of the prompts that choose the ridge; the one held out is reported on


@dataclass(frozen=True)
class CompensationSettings:
    """How a delta is fitted.

    Attributes:
        rank: of B A in every layer.
        dtype: that the model runs in.
        max_memory_bytes: that the model, the moments of one layer and residual streams may take together.
            Streams beyond it lie on disk between the layers; the delta is the same.
    """

    rank: int
    device: str
    dtype: torch.dtype
    max_memory_bytes: int


def compensate(
    checkpoint: Checkpoint,
    ranking: Ranking,
    widths: Sequence[int],
    sparsity: float,
    task_name: str,
    data: CalibrationData,
    answers: Answers,
    settings: CompensationSettings,
    work: Path,
    *,
    progress: bool,
) -> Delta:
    """Fits a delta of W_d for one width, from the dense model's own answers to `data.target`.

    In layer l let x be the input of the MLP in the pruned model whose earlier layers are corrected, and h the
    neurons it keeps. The fit minimises over the tokens of prompts and answers

        E[w ‖t - (W_d[:, :k] + B A) h‖²] + λ ‖B A‖²,    w = 1 / (mean square of the residual stream).

    The target t lies between what the dense MLP makes of the same x, which repairs this layer alone, and what
    leads back to the dense model's residual stream, which repairs earlier layers too but is harder to predict
    (`PULL`). A norm follows, so an error counts by its share of the stream: hence w. λ is chosen in each
    layer on sequences that are not fitted; then all are. Where none helps there, it gets no matrices.

    Args:
        sparsity: that `widths` follow from, as it was asked for.
        task_name: whose prompts they are.
        answers: the dense model's, to `data.target`.
        work: a directory for the layers fitted so far and streams for which there is no memory.
            With it an interrupted fit goes on where it was. The caller removes it.
        progress: shows bars with the time left, on stderr.

    Raises:
        DeltaError: too few prompts, a rank without use, or a disk that is full.
        MemoryBoundError: more memory is needed at the least than allowed.
        ModelError, ProfileError: the checkpoint is damaged; a prompt does not fit; ranking or widths do not.
    """
    architecture = checkpoint.architecture
    check_fit(ranking, widths, architecture.num_layers, architecture.intermediate_size)
    _check_rank(settings.rank, widths, architecture.hidden_size)
    provenance = DeltaProvenance(
        model_name=checkpoint.name,
        model=checkpoint.fingerprint,
        task=task_name,
        ranking=ranking.digest,
        sparsity=sparsity,
        widths=tuple(widths),
        method=METHOD,
        settings={
            "rank": settings.rank,
            "dtype": str(settings.dtype).removeprefix("torch."),
            "prompts": len(data.target),
            "seed": data.seed,
            "pull": PULL,
            "data": data.fingerprint,
            "answers": answers.digest,
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, prompt) for prompt in data.target]
    check_lengths(checkpoint, prompts, data.max_new_tokens)
    dealt = _roles(with_answers(prompts, answers.token_ids))
    model = load_network(checkpoint, torch.device(settings.device), settings.dtype)
    batches = _dealt(dealt, model.device)
    store = StreamStore(
        work / STREAMS_DIRECTORY, _memory_for_streams(model, batches, widths, settings), model.device
    )
    fit = load_unfinished(work, provenance)
    run = LayerFit(LayerwiseModel(model), ranking, widths, settings.rank, batches, store)
    divergence = run.run(fit, progress=progress)
    found: dict[str, Setting] = {
        **provenance.settings,
        "tokens": sum(int(b.tokens.attention_mask.sum()) for b in batches if b.role != "reported"),
        "reported_tokens": divergence.tokens,
        "kl_nats_before": divergence.before,
        "kl_nats_after": divergence.after,
    }
    return Delta(replace(provenance, settings=found), fit.layers)


def _roles(sequences: Sequence[TokenSequence]) -> dict[Role, list[TokenSequence]]:
    """What each is for. Raises DeltaError where there is none for one of the three."""
    roles: dict[Role, list[TokenSequence]] = {"fitted": [], "judged": [], "reported": []}
    for sequence in sequences:
        roles[_role(sequence.prompt)].append(sequence)
    if not all(roles.values()):
        raise DeltaError(
            f"{len(sequences)} prompts are too few: what each says decides if it is fitted, or held out to "
            f"choose by or to report on, and {', '.join(role for role in roles if not roles[role])} is none: "
            "give more (--num-prompts)"
        )
    return roles


def _role(prompt: Sequence[int]) -> Role:
    return "reported" if held_out(prompt) else "judged" if part(prompt) in JUDGED else "fitted"


def _dealt(roles: dict[Role, list[TokenSequence]], device: torch.device) -> list[RoleBatch]:
    """Batches of sequences of like length, each of one role."""
    return [
        RoleBatch(role, pad_batch(group, device))
        for role, sequences in roles.items()
        for group in in_batches(sequences, BATCH_TOKENS, BATCH_ROWS)
    ]


def _check_rank(rank: int, widths: Sequence[int], hidden: int) -> None:
    most = min(hidden, *widths)
    if not 1 <= rank <= most:
        raise DeltaError(f"the rank is {rank}; matrices of this variant have ranks from 1 to {most}")


def _memory_for_streams(
    model: "PreTrainedModel",
    batches: Sequence[RoleBatch],
    widths: Sequence[int],
    settings: CompensationSettings,
) -> int:
    """Bytes that the bound leaves for streams that wait; one batch is always in hand."""
    config, itemsize = model.config, settings.dtype.itemsize
    tokens = max(batch.tokens.input_ids.numel() for batch in batches)
    # Three streams before a layer and after it; what attention and the MLP make of one.
    batch = tokens * ((6 + 8) * config.hidden_size + 3 * config.intermediate_size) * itemsize
    moving = tokens * 3 * max(widths) * FLOAT32_BYTES
    # The neurons of a layer, and those of the one before.
    sliced = 2 * 3 * config.hidden_size * max(widths) * itemsize
    parts = {
        "the model": weight_bytes(model),
        "a layer's second moments": working_bytes(max(widths), config.hidden_size),
        "a batch on its way": batch + moving + sliced,
        "its logits": logits_bytes(model, copies=6),
    }
    return spare_bytes("the fit", parts, settings.max_memory_bytes, "use --dtype bfloat16")
