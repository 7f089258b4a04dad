"""Recovery of pruned variants from end to end: the dense model's answers, the training, a delta each.

Knows which part does what, what takes how much memory, and what is written down; the parts do the work.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pruning.calibration.answers import Answers
from pruning.calibration.batches import TokenSequence, with_answers
from pruning.calibration.calibration import load_network
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.delta import Delta, DeltaProvenance, Setting
from pruning.errors import DeltaError, NothingGainedError
from pruning.held_out import HELD_OUT_RULE, held_out
from pruning.ranking.ranking import Ranking
from pruning.recovery.dense import DenseSource, TaughtSequence, dense_sequences
from pruning.recovery.memory import TrainingMemory
from pruning.recovery.network import AdaptedNetwork, AdapterSettings
from pruning.recovery.processes import Processes
from pruning.recovery.progress import Progress, ProgressFile, VariantLosses
from pruning.recovery.training import Trainer, TrainingSettings
from pruning.slicing import check_fit

logger = logging.getLogger(__name__)

METHOD = "recovery"
PROGRESS_FILE = "training.safetensors"
MIN_ANSWERS = 10


@dataclass(frozen=True)
class RecoveryVariant:
    """A variant to be recovered: the sparsity asked for, and the widths that follow from it."""

    sparsity: float
    widths: tuple[int, ...]


@dataclass(frozen=True)
class RecoveryData:
    """What is trained on.

    Attributes:
        task: whose prompts they are.
        prompts: user messages.
        answers: the dense model's; those that did not end are left out.
        top: likeliest tokens of the dense model that are kept at each place.
        directory: where these are kept, for later recoveries as well.
    """

    task: str
    prompts: tuple[str, ...]
    answers: Answers
    top: int
    directory: Path


@dataclass(frozen=True)
class RecoverySettings:
    """How variants are recovered.

    Attributes:
        training: its rows are short enough for every process to have one in each step.
        dtype: that the network computes in; the matrices are float32.
        recompute: of activations on the way back; None: where there is no room for them.
        max_memory_bytes: that weights, matrices, activations and logits may take together.
    """

    adapter: AdapterSettings
    training: TrainingSettings
    dtype: torch.dtype
    recompute: bool | None
    max_memory_bytes: int


@dataclass(frozen=True)
class Recovery:
    """What came of it.

    Attributes:
        deltas: one for each variant, in their order.
        before, after: on held-out answers, without a delta and with those written.
        progress: the curves.
        planned_steps: an early stop leaves some out.
        facts: settings, counts and digests, for a report.
    """

    deltas: tuple[Delta, ...]
    before: VariantLosses
    after: VariantLosses
    progress: Progress
    planned_steps: int
    facts: Mapping[str, Any]


def recover(
    checkpoint: Checkpoint,
    ranking: Ranking,
    variants: Sequence[RecoveryVariant],
    data: RecoveryData,
    settings: RecoverySettings,
    work: Path,
    processes: Processes,
    *,
    starts: Sequence[Delta] = (),
    progress: bool,
) -> Recovery:
    """Trains low-rank matrices that bring pruned variants back to the dense model.

    They are trained on the dense model's own greedy answers, to minimise over their tokens

        ce_weight · cross-entropy + KL(dense ‖ variant),

    the latter over the dense model's `top` likeliest tokens and all others as one. The matrices that did best
    on held-out answers win. Several variants share one adapter: each row of training text is read at the
    width of one of them, drawn by chance, and narrower ones use the matrices' first neurons.

    Args:
        variants: by rising sparsity.
        work: a directory for the training's progress, with which one that was interrupted goes on where it
            was, to the same curve. The caller removes it.
        processes: that train together; each calls this with the same arguments, and finds the same.
        starts: a delta that each variant has already, or none. It stays as it is; what is written is its
            matrices and those trained beside them, as one.
        progress: shows bars with the time left, on stderr.

    Raises:
        DeltaError: too few answers, a start of another variant, a loss that is not finite, or progress that
            cannot be kept or is of another run.
        MemoryBoundError: more is needed than allowed.
        NothingGainedError: held-out answers were never nearer to the dense model than at the start.
        ModelError, ProfileError: the checkpoint is damaged; a prompt does not fit; ranking or widths do not.
    """
    architecture = checkpoint.architecture
    for variant in variants:
        check_fit(ranking, variant.widths, architecture.num_layers, architecture.intermediate_size)
    for start, variant in zip(starts, variants, strict=bool(starts)):
        start.check(model=checkpoint.fingerprint, ranking=ranking.digest, widths=variant.widths)
    memory = partial(
        TrainingMemory.of,
        *(checkpoint, variants[0].widths, settings.adapter.rank),
        start_parameters=sum(start.parameters for start in starts),
        dtype=settings.dtype,
    )
    row_tokens, bound = settings.training.row_tokens, settings.max_memory_bytes
    recompute = memory(row_tokens=row_tokens).choose_recompute(settings.recompute, bound)
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, prompt) for prompt in data.prompts]
    ended = _ended(with_answers(prompts, data.answers.token_ids), checkpoint.eos_token_ids)
    source = DenseSource(checkpoint, settings.dtype, tuple(ended), _top(checkpoint, data.top))
    facts = _facts(checkpoint, ranking, variants, source, settings, processes, starts)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    model = load_network(checkpoint, processes.device, settings.dtype)
    taught = dense_sequences(model, source, data.directory, processes, progress=progress)
    training, judging = _dealt(taught)
    longest = max(len(one.sequence.fed) for one in taught)
    if longest > row_tokens:  # one that does not fit into a row is a row of its own
        recompute = memory(row_tokens=longest).choose_recompute(settings.recompute, bound)
    network = AdaptedNetwork(
        model,
        ranking,
        [variant.widths for variant in variants],
        settings.adapter,
        starts=[start.layers for start in starts],
        recompute=recompute,
    )
    file = ProgressFile(work / PROGRESS_FILE, key)
    trainer = Trainer(network, training, judging, settings.training, file, processes)
    done = trainer.run(progress=progress)
    if done.held_out[done.best].step == 0:
        raise NothingGainedError(
            f"nothing is gained: in {len(done.steps)} steps no measurement on the {len(judging)} held-out "
            f"answers was better than the first. Give more prompts ({len(data.prompts)}), or lower "
            f"--learning-rate ({settings.training.learning_rate:g}); remove {work} to begin anew"
        )
    found = [network.layers(place) for place in range(len(variants))]
    network.round()  # as they are written
    after = trainer.held_out_losses()
    before: VariantLosses = done.held_out[0]
    if starts:
        network.forget()
        before = trainer.held_out_losses()
    counts = {
        "prompts": len(prompts),
        "answers": len(taught),
        "trained_answers": len(training),
        "held_out_answers": len(judging),
        "held_out_tokens": sum(len(one.sequence.answer) for one in judging),
        "steps": len(done.steps),
        "processes": processes.count,
    }
    deltas = tuple(
        Delta(
            DeltaProvenance(
                model_name=checkpoint.name,
                model=checkpoint.fingerprint,
                task=data.task,
                ranking=ranking.digest,
                sparsity=variant.sparsity,
                widths=variant.widths,
                method=METHOD,
                settings={
                    **_flat(facts["settings"]),
                    **counts,
                    "data": source.digest,
                    **({"start": starts[place].digest} if starts else {}),
                    "kl_nats_before": before.divergence[place],
                    "kl_nats_after": after.divergence[place],
                },
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            ),
            found[place],
        )
        for place, variant in enumerate(variants)
    )
    return Recovery(
        deltas=deltas,
        before=before,
        after=after,
        progress=done,
        planned_steps=trainer.num_steps,
        facts={**facts, **counts, "recompute": recompute},
    )


def _facts(
    checkpoint: Checkpoint,
    ranking: Ranking,
    variants: Sequence[RecoveryVariant],
    source: DenseSource,
    settings: RecoverySettings,
    processes: Processes,
    starts: Sequence[Delta],
) -> dict[str, Any]:
    """All that decides how the training goes."""
    training = asdict(settings.training)
    del training["save_seconds"]
    return {
        "model": {"name": checkpoint.name, "digest": checkpoint.fingerprint},
        "tokenizer": checkpoint.tokenizer_fingerprint,
        "ranking": ranking.digest,
        "variants": [asdict(variant) for variant in variants],
        "data": source.digest,
        "held_out": HELD_OUT_RULE,
        "starts": [start.digest for start in starts],
        "settings": {
            **asdict(settings.adapter),
            **training,
            "top": source.top,
            "dtype": str(settings.dtype).removeprefix("torch."),
            "device": processes.device.type,
        },
    }


def _flat(settings: Mapping[str, Any]) -> dict[str, Setting]:
    return {name: value for name, value in settings.items() if isinstance(value, str | int | float)}


def _ended(sequences: Sequence[TokenSequence], ends: Collection[int]) -> list[TokenSequence]:
    """Those whose answers ended."""
    ended = [sequence for sequence in sequences if sequence.answer[-1] in ends]
    if len(ended) < len(sequences):
        logger.warning(
            "%d of %d answers did not end and are left out", len(sequences) - len(ended), len(sequences)
        )
    return ended


def _top(checkpoint: Checkpoint, top: int) -> int:
    """Less than all tokens: the others as one are part of the loss."""
    vocabulary = checkpoint.config.vocab_size
    if top >= vocabulary:
        raise DeltaError(
            f"top is {top}, of a vocabulary of {vocabulary:,}: at most {vocabulary - 1:,} make sense"
        )
    return top


def _dealt(taught: Sequence[TaughtSequence]) -> tuple[list[TaughtSequence], list[TaughtSequence]]:
    """To train on, and held out."""
    if len(taught) < MIN_ANSWERS:
        raise DeltaError(
            f"{len(taught)} of the dense model's answers ended; at least {MIN_ANSWERS} are needed: give more "
            "prompts (--num-prompts), or a task whose answers end"
        )
    training = [each for each in taught if not held_out(each.sequence.prompt)]
    judging = [each for each in taught if held_out(each.sequence.prompt)]
    if not judging:
        raise DeltaError(
            f"none of the {len(taught)} answers that ended is one of those held out, one in ten: give more "
            "prompts (--num-prompts)"
        )
    return training, judging
