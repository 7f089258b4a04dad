"""What the dense model says to training prompts: its greedy answers, and its likeliest tokens along them.

Kept on disk part by part, so that it is computed once for all recoveries, and an interruption costs a part at
most. Trains nothing.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from pruning.activations import decoder
from pruning.answers import own_answers
from pruning.batches import TokenSequence
from pruning.checkpoint import Checkpoint
from pruning.errors import DeltaError
from pruning.files import write_atomically
from pruning.recovery.loss import LOGIT_ROWS, TopTokens
from pruning.recovery.packing import fill_rows, pack

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PART_PROMPTS = 32
ROW_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class TaughtSequence:
    """A prompt, the dense model's answer, and its likeliest tokens before each of the answer's."""

    sequence: TokenSequence
    dense: TopTokens


@dataclass(frozen=True)
class DenseSource:
    """Which model is asked what, and how much of what it says is kept.

    Attributes:
        prompts: token ids.
        max_new_tokens: of an answer; one that does not end within them is dropped.
        top: likeliest tokens that are kept at each place.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    top: int

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of everything above."""
        return self.digest_of(self.prompts)

    def digest_of(self, prompts: Sequence[Sequence[int]]) -> str:
        """The same, had it only these prompts."""
        model = [self.checkpoint.fingerprint, self.checkpoint.tokenizer_fingerprint, str(self.dtype)]
        record = [*model, prompts, self.max_new_tokens, self.top]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def dense_sequences(
    model: "PreTrainedModel", source: DenseSource, directory: Path, *, progress: bool
) -> list[TaughtSequence]:
    """Every prompt whose answer ended, in the prompts' order.

    Args:
        model: the whole one. Its `generation_config` is set.
        directory: where parts are kept, of any sources.

    Raises:
        DeltaError: a part on disk is damaged, or cannot be written.
    """
    parts = [
        source.prompts[start : start + PART_PROMPTS] for start in range(0, len(source.prompts), PART_PROMPTS)
    ]
    files = [directory / f"{source.digest_of(prompts)}.safetensors" for prompts in parts]
    missing = [part for part, file in enumerate(files) if not file.exists()]
    for part in tqdm(missing, desc="dense answers", unit="part", disable=not (progress and missing)):
        _write(files[part], _ask(model, parts[part], source))
    found = [
        taught
        for prompts, file in zip(parts, files, strict=True)
        for taught in _assemble(prompts, _read(file))
    ]
    dropped = len(source.prompts) - len(found)
    if dropped:
        logger.warning(
            "%d of %d answers did not end within %d tokens and are left out",
            *(dropped, len(source.prompts), source.max_new_tokens),
        )
    return found


def _ask(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], source: DenseSource
) -> dict[str, Tensor]:
    """Answers end to end, how long each is (0: dropped), and the likeliest tokens."""
    eos = source.checkpoint.eos_token_ids
    given = own_answers(model, prompts, source.max_new_tokens, progress=False).token_ids
    answers = [answer if answer[-1] in eos else [] for answer in given]
    sequences = [
        TokenSequence(tuple(prompt), tuple(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer
    ]
    top = [TopTokens(torch.zeros(0, source.top).int(), torch.zeros(0, source.top + 1))]
    lengths = [len(sequence.fed) for sequence in sequences]
    by_sequence: dict[int, TopTokens] = {}
    for row in fill_rows(lengths, range(len(lengths)), ROW_TOKENS):
        likeliest = _likeliest(model, [sequences[index] for index in row], source.top)
        by_sequence.update(zip(row, likeliest, strict=True))
    top += [by_sequence[index] for index in range(len(sequences))]
    return {
        "lengths": torch.tensor([len(answer) for answer in answers]),
        "answers": torch.tensor([token for answer in answers for token in answer], dtype=torch.int64),
        "top_ids": torch.cat([tokens.ids for tokens in top]),
        "top_log_probs": torch.cat([tokens.log_probs for tokens in top]),
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


def _assemble(prompts: Sequence[tuple[int, ...]], part: dict[str, Tensor]) -> list[TaughtSequence]:
    bounds = pairwise(accumulate(part["lengths"].tolist(), initial=0))
    return [
        TaughtSequence(
            TokenSequence(prompt, tuple(part["answers"][start:end].tolist())),
            TopTokens(part["top_ids"][start:end], part["top_log_probs"][start:end]),
        )
        for prompt, (start, end) in zip(prompts, bounds, strict=True)
        if end > start
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
            f"cannot keep the dense model's answers in {file} ({len(content):,} bytes): {error}; make room, "
            "or name another --cache-dir"
        ) from error
