"""Training-free correction of one variant: low-rank matrices that make up for the neurons left out.

Layer after layer, on the pruned model's own inputs with all layers before already corrected, W_d gets the B A
that brings the residual stream nearest to where it should be. Knows which passes are run over
what; the least squares are least_squares.py's.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pruning.activations import LOGIT_ROWS
from pruning.answers import Answers, own_answers, prompt_token_ids
from pruning.batches import (
    IGNORED_LABEL,
    TokenBatch,
    TokenSequence,
    in_batches,
    pad_batch,
    with_answers,
)
from pruning.calibration import CalibrationData, check_lengths, load_network
from pruning.checkpoint import Checkpoint
from pruning.delta import Delta, DeltaProvenance, LowRank, Setting, load_delta
from pruning.errors import DeltaError
from pruning.files import write_atomically
from pruning.layerwise import LayerInputs, LayerwiseModel
from pruning.least_squares import SecondMoments, choose_ridge, low_rank_ridge, working_bytes
from pruning.ranking import Ranking
from pruning.slicing import check_fit

logger = logging.getLogger(__name__)

METHOD = "compensation"
ANSWERS_FILE, LAYERS_FILE = "answers.json", "layers.safetensors"
FITTED_LAYERS = "fitted_layers"
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
# How much of the error that earlier layers have left a layer is to take back. Half is the best or near it at
# each sparsity and rank that was tried on math-mini (docs/decisions/008-deltas.md).
PULL = 0.5
BATCH_TOKENS = 2048
BATCH_ROWS = 64
# Of ten sequences: one tells how good the whole is, two choose the ridge, the others are fitted.
REPORTED, JUDGED, DEALT = 1, 2, 10

Role = Literal["fitted", "judged", "reported"]


@dataclass(frozen=True)
class CompensationSettings:
    """How a delta is fitted.

    Attributes:
        rank: of B A in every layer.
        dtype: that the model runs in.
        max_memory_bytes: that the model, the residual streams of all sequences and the moments of one layer
            may take together.
    """

    rank: int
    device: str
    dtype: torch.dtype
    max_memory_bytes: int


@dataclass
class _Batch:
    """Sequences of one role, and where they are in the dense, the corrected and the uncorrected model.

    Streams are [sequences, tokens, hidden]; `plain` is kept only where it is reported.
    """

    role: Role
    tokens: TokenBatch
    inputs: LayerInputs
    dense: Tensor
    corrected: Tensor
    plain: Tensor | None


@dataclass(frozen=True, eq=False)
class _Neurons:
    """The MLP of a layer, cut to its width: gate and up [width, hidden], down [hidden, width]."""

    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def of(cls, mlp: Any, kept: Tensor) -> "_Neurons":
        return cls(mlp.gate_proj.weight[kept], mlp.up_proj.weight[kept], mlp.down_proj.weight[:, kept])

    def activations(self, x: Tensor) -> Tensor:
        """h, [..., width]."""
        return F.silu(F.linear(x, self.gate)) * F.linear(x, self.up)


def compensate(
    checkpoint: Checkpoint,
    ranking: Ranking,
    widths: Sequence[int],
    sparsity: float,
    data: CalibrationData,
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
        work: a directory for the answers and the layers fitted so far, with which an interrupted fit goes on
            where it was. The caller removes it.
        progress: shows bars with the time left, on stderr.

    Raises:
        DeltaError: too few prompts, a rank without use, or more memory needed than allowed.
        ModelError, ProfileError: the checkpoint is damaged; a prompt does not fit; ranking or widths do not.
    """
    architecture = checkpoint.architecture
    check_fit(ranking, widths, architecture.num_layers, architecture.intermediate_size)
    _check(settings.rank, widths, architecture.hidden_size, len(data.target))
    provenance = DeltaProvenance(
        model_name=checkpoint.name,
        model=checkpoint.fingerprint,
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
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, prompt) for prompt in data.target]
    check_lengths(checkpoint, prompts, data.max_new_tokens)
    model = load_network(checkpoint, torch.device(settings.device), settings.dtype)
    key = [checkpoint.fingerprint, checkpoint.tokenizer_fingerprint, data.fingerprint, str(settings.dtype)]
    token_ids = _kept_answers(
        work / ANSWERS_FILE, key, lambda: own_answers(model, prompts, data.max_new_tokens, progress=progress)
    )
    sequences = _dealt(prompts, token_ids)
    _check_memory(model, sequences, widths, settings)
    with torch.inference_mode():
        run = _Run(LayerwiseModel(model), ranking, widths, settings.rank)
        return run.fit(sequences, provenance, work, progress=progress)


class _Run:
    """All sequences on their way through all layers."""

    def __init__(self, model: LayerwiseModel, ranking: Ranking, widths: Sequence[int], rank: int) -> None:
        self._model = model
        self._ranking = ranking
        self._widths = widths
        self._rank = rank

    def fit(
        self,
        sequences: Mapping[Role, Sequence[TokenSequence]],
        provenance: DeltaProvenance,
        work: Path,
        *,
        progress: bool,
    ) -> Delta:
        fitted = _Fitted.load(work, provenance)
        batches = [self._enter(role, group) for role in sequences for group in _padded(sequences[role])]
        with tqdm(
            total=len(self._widths) * len(batches), desc="Compensating", unit="batch", disable=not progress
        ) as bar:
            for layer, width in enumerate(self._widths):
                mlp = self._model.mlps[layer]
                neurons = _Neurons.of(mlp, self._ranking.permutation[layer, :width].to(self._model.device))
                for batch in batches:
                    self._attend(layer, batch)
                if layer == len(fitted.layers):
                    fitted.add(self._fit_layer(layer, mlp, neurons, batches))
                low_rank = fitted.layers[layer].get("down_proj")
                for batch in batches:
                    self._leave(layer, mlp, neurons, low_rank, batch)
                    bar.update()
        found = self._report([batch for batch in batches if batch.role == "reported"])
        counted = sum(int(b.tokens.attention_mask.sum()) for b in batches if b.role != "reported")
        settings: dict[str, Setting] = {**provenance.settings, "tokens": counted, **found}
        return Delta(replace(provenance, settings=settings), tuple(fitted.layers))

    def _enter(self, role: Role, group: Sequence[TokenSequence]) -> _Batch:
        tokens = pad_batch(group, self._model.device)
        stream, inputs = self._model.embed(tokens)
        return _Batch(role, tokens, inputs, stream, stream, stream if role == "reported" else None)

    def _attend(self, layer: int, batch: _Batch) -> None:
        model, inputs = self._model, batch.inputs
        batch.dense = model.attend(layer, batch.dense, inputs)
        batch.corrected = model.attend(layer, batch.corrected, inputs)
        if batch.plain is not None:
            batch.plain = model.attend(layer, batch.plain, inputs)

    def _leave(
        self, layer: int, mlp: Any, neurons: _Neurons, low_rank: LowRank | None, batch: _Batch
    ) -> None:
        def normed(attended: Tensor) -> Tensor:
            return self._model.mlp_input(layer, attended)

        batch.dense = batch.dense + mlp(normed(batch.dense))
        h = neurons.activations(normed(batch.corrected))
        batch.corrected = batch.corrected + F.linear(h, neurons.down)
        if low_rank is not None:
            a, b = low_rank.a.to(h), low_rank.b.to(h)
            batch.corrected = batch.corrected + F.linear(F.linear(h, a), b)
        if batch.plain is not None:
            h = neurons.activations(normed(batch.plain))
            batch.plain = batch.plain + F.linear(h, neurons.down)

    def _fit_layer(
        self, layer: int, mlp: Any, neurons: _Neurons, batches: Sequence[_Batch]
    ) -> LowRank | None:
        outputs, width = neurons.down.shape
        fitted = SecondMoments(width, outputs, self._model.device)
        judged = SecondMoments(width, outputs, self._model.device)
        for batch in batches:
            if batch.role == "reported":
                continue
            present = batch.tokens.attention_mask.bool()
            attended = batch.corrected[present]  # [tokens, hidden]
            x = self._model.mlp_input(layer, attended)
            h = neurons.activations(x)
            missing = self._target(layer, mlp, x, batch, present) - F.linear(h, neurons.down)
            weights = 1 / attended.float().square().mean(dim=1)
            (fitted if batch.role == "fitted" else judged).add(h.float(), missing.float(), weights)
        choice = choose_ridge(fitted, judged, RIDGES, self._rank)
        logger.info(
            "layer %d of %d, %d neurons: ridge %s leaves %.3f of the squared error",
            *(layer + 1, len(self._widths), width, choice.ridge, choice.unexplained),
        )
        if choice.ridge is None:
            return None
        fitted.merge(judged)
        found = low_rank_ridge(fitted, choice.ridge, self._rank)
        return LowRank(found.a.bfloat16().cpu(), found.b.bfloat16().cpu())

    def _target(self, layer: int, mlp: Any, x: Tensor, batch: _Batch, present: Tensor) -> Tensor:
        """What the corrected model's MLP should add to its stream, [tokens, hidden]."""
        dense = batch.dense[present]
        back = dense + mlp(self._model.mlp_input(layer, dense)) - batch.corrected[present]
        return cast("Tensor", (1 - PULL) * mlp(x) + PULL * back)

    def _report(self, batches: Sequence[_Batch]) -> dict[str, Setting]:
        """The divergence from the dense model on answers that nothing was fitted on."""
        before = after = 0.0
        tokens = 0
        for batch in batches:
            assert batch.plain is not None
            predicting = batch.tokens.labels != IGNORED_LABEL
            streams = [stream[predicting] for stream in (batch.dense, batch.plain, batch.corrected)]
            tokens += len(streams[0])
            for rows in zip(*(torch.split(stream, LOGIT_ROWS) for stream in streams), strict=True):
                dense, plain, corrected = (F.log_softmax(self._model.logits(row), dim=-1) for row in rows)
                before += float(F.kl_div(plain, dense, reduction="sum", log_target=True))
                after += float(F.kl_div(corrected, dense, reduction="sum", log_target=True))
        return {
            "reported_tokens": tokens,
            "kl_nats_before": before / tokens,
            "kl_nats_after": after / tokens,
        }


class _Fitted:
    """The layers fitted so far, on disk as an unfinished delta."""

    def __init__(self, file: Path, provenance: DeltaProvenance, layers: list[Mapping[Any, LowRank]]) -> None:
        self.layers = layers
        self._file = file
        self._provenance = provenance

    @classmethod
    def load(cls, work: Path, provenance: DeltaProvenance) -> "_Fitted":
        file = work / LAYERS_FILE
        if not file.exists():
            return cls(file, provenance, [])
        found = load_delta(file)
        settings = dict(found.provenance.settings)
        count = int(settings.pop(FITTED_LAYERS))
        if replace(found.provenance, settings=settings, created=provenance.created) != provenance:
            raise DeltaError(
                f"{work} holds an unfinished fit with other settings, or of another model: remove it to "
                "begin anew, or run with those settings to go on"
            )
        logger.info("going on after layer %d, where an earlier run was interrupted", count)
        return cls(file, provenance, list(found.layers[:count]))

    def add(self, low_rank: LowRank | None) -> None:
        """The next layer's; None where it gets none."""
        self.layers.append({} if low_rank is None else {"down_proj": low_rank})
        settings = {**self._provenance.settings, FITTED_LAYERS: len(self.layers)}
        missing = len(self._provenance.widths) - len(self.layers)
        layers = (*self.layers, *({} for _ in range(missing)))
        Delta(replace(self._provenance, settings=settings), layers).save(self._file)


def _kept_answers(file: Path, key: Sequence[str], measure: Callable[[], Answers]) -> list[list[int]]:
    """Those kept in `file` under `key`, else given now and kept."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known.get("of") != key:
        known = {"of": key, "token_ids": measure().token_ids}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(known).encode())
    return cast("list[list[int]]", known["token_ids"])


def _dealt(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> dict[Role, list[TokenSequence]]:
    dealt: dict[Role, list[TokenSequence]] = {"fitted": [], "judged": [], "reported": []}
    for index, sequence in enumerate(with_answers(prompts, answers)):
        place = index % DEALT
        role: Role = "reported" if place < REPORTED else "judged" if place < REPORTED + JUDGED else "fitted"
        dealt[role].append(sequence)
    return dealt


def _padded(sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    return in_batches(sequences, BATCH_TOKENS, BATCH_ROWS)


def _check(rank: int, widths: Sequence[int], hidden: int, num_prompts: int) -> None:
    most = min(hidden, *widths)
    if not 1 <= rank <= most:
        raise DeltaError(f"the rank is {rank}; matrices of this variant have ranks from 1 to {most}")
    if num_prompts < DEALT:
        raise DeltaError(
            f"there are {num_prompts} prompts; at least {DEALT} are needed, for some are held out to choose "
            "by and to report on: give more (--num-prompts)"
        )


def _check_memory(
    model: Any,
    sequences: Mapping[Role, Sequence[TokenSequence]],
    widths: Sequence[int],
    settings: CompensationSettings,
) -> None:
    hidden = model.config.hidden_size
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = working_bytes(max(widths), hidden)
    tokens = sum(
        len(group) * len(group[0].fed) * (3 if role == "reported" else 2)
        for role, members in sequences.items()
        for group in _padded(members)
    )
    streams = tokens * hidden * settings.dtype.itemsize
    needed = weights + moments + streams
    if needed > settings.max_memory_bytes:
        gib = 2**30
        raise DeltaError(
            f"the fit would take {needed / gib:.2f} GiB: the model {weights / gib:.2f}, a layer's second "
            f"moments {moments / gib:.2f}, the answers' residual streams {streams / gib:.2f}; --max-memory "
            f"allows {settings.max_memory_bytes / gib:.2f}: raise it, or lower --num-prompts"
        )
