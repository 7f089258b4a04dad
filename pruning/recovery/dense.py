"""What the dense model holds likely along its own answers to training prompts.

Kept on disk part by part, so that it is computed once for all recoveries, and an interruption costs a part at
most. Trains nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from pruning.calibration.activations import decoder
from pruning.calibration.batches import TokenSequence
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.errors import DeltaError
from pruning.files import write_atomically
from pruning.recovery.loss import LOGIT_ROWS, TopTokens
from pruning.recovery.packing import fill_rows, pack
from pruning.recovery.processes import Processes

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

PART_SEQUENCES = 32
ROW_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class TaughtSequence:
    """A prompt, the dense model's answer, and its likeliest tokens before each of the answer's."""

    sequence: TokenSequence
    dense: TopTokens


@dataclass(frozen=True)
class DenseSource:
    """Which model is read along what, and how much of what it holds likely is kept.

    Attributes:
        sequences: prompts with the model's own answers.
        top: likeliest tokens that are kept at each place.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype
    sequences: tuple[TokenSequence, ...]
    top: int

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of everything above."""
        return self.digest_of(self.sequences)

    def digest_of(self, sequences: Sequence[TokenSequence]) -> str:
        """The same, had it only these sequences."""
        model = [self.checkpoint.fingerprint, self.checkpoint.tokenizer_fingerprint, str(self.dtype)]
        read = [[sequence.prompt, sequence.answer] for sequence in sequences]
        return hashlib.sha256(json.dumps([*model, read, self.top]).encode()).hexdigest()


def dense_sequences(
    model: "PreTrainedModel", source: DenseSource, directory: Path, processes: Processes, *, progress: bool
) -> list[TaughtSequence]:
    """Every sequence with the likeliest tokens along its answer.

    Args:
        model: the whole one.
        directory: where parts are kept, of any sources; the same one for all processes.
        processes: they share the work.

    Raises:
        DeltaError: a part on disk is damaged, or cannot be written.
    """
    starts = range(0, len(source.sequences), PART_SEQUENCES)
    parts = [source.sequences[start : start + PART_SEQUENCES] for start in starts]
    files = [directory / f"{source.digest_of(part)}.safetensors" for part in parts]
    # Dealt by their numbers: what is there already changes while others write.
    missing = [part for part in processes.share(range(len(files))) if not files[part].exists()]
    for part in tqdm(missing, desc="dense probabilities", unit="part", disable=not (progress and missing)):
        _write(files[part], _read_along(model, parts[part], source.top))
    processes.wait()
    return [
        taught for part, file in zip(parts, files, strict=True) for taught in _assemble(part, _read(file))
    ]


def _read_along(model: "PreTrainedModel", sequences: Sequence[TokenSequence], top: int) -> dict[str, Tensor]:
    """The likeliest tokens along all answers, end to end."""
    lengths = [len(sequence.fed) for sequence in sequences]
    found: dict[int, TopTokens] = {}
    for row in fill_rows(lengths, range(len(lengths)), ROW_TOKENS):
        likeliest = _likeliest(model, [sequences[index] for index in row], top)
        found.update(zip(row, likeliest, strict=True))
    in_order = [found[index] for index in range(len(sequences))]
    return {
        "top_ids": torch.cat([tokens.ids for tokens in in_order]),
        "top_log_probs": torch.cat([tokens.log_probs for tokens in in_order]),
    }


@torch.no_grad()
def _likeliest(model: "PreTrainedModel", sequences: Sequence[TokenSequence], k: int) -> list[TopTokens]:
    row = pack(sequences, model.device)
    hidden = decoder(model)(
        input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False
    ).last_hidden_state[0, row.predicting]
    head = cast("Any", model).lm_head
    found = [TopTokens.of(head(rows), k) for rows in torch.split(hidden, LOGIT_ROWS)]
    lengths = [len(sequence.answer) for sequence in sequences]
    ids = torch.split(torch.cat([tokens.ids for tokens in found]).cpu(), lengths)
    log_probs = torch.split(torch.cat([tokens.log_probs for tokens in found]).cpu(), lengths)
    return [TopTokens(*pair) for pair in zip(ids, log_probs, strict=True)]


def _assemble(sequences: Sequence[TokenSequence], part: dict[str, Tensor]) -> list[TaughtSequence]:
    lengths = [len(sequence.answer) for sequence in sequences]
    ids, log_probs = torch.split(part["top_ids"], lengths), torch.split(part["top_log_probs"], lengths)
    return [
        TaughtSequence(sequence, TopTokens(*pair))
        for sequence, *pair in zip(sequences, ids, log_probs, strict=True)
    ]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DeltaError(f"{file} is damaged ({error}); remove it, and it is made again") from error


def _write(file: Path, part: dict[str, Tensor]) -> None:
    content = save(part)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    except OSError as error:
        raise DeltaError(
            f"cannot keep what the dense model holds likely in {file} ({len(content):,} bytes): {error}; "
            "make room, or name another --cache-dir"
        ) from error
