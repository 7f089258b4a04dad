"""Builds a profile: loads the dense model, and measures its neurons along its own answers to prompts.

Knows which passes are run over what; the sums are activations.py's, and the file format is profile.py's.
"""

import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from pruning.calibration.activations import MomentSums, TaylorSums, add_moments, weight_norms
from pruning.calibration.answers import Answers
from pruning.calibration.batches import TokenBatch, TokenSequence, in_batches, pad_batch, with_answers
from pruning.calibration.gradients import add_moments_and_gradients
from pruning.calibration.memory import FLOAT32_BYTES, layer_bytes, logits_bytes, spare_bytes, weight_bytes
from pruning.calibration.profile import Provenance, SelectivityProfile
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.architectures import Architecture
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.errors import ModelError, ProfileError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MEASURED_TOKENS = 1024  # in one pass: activations of a layer are held for the pass back
MEASURED_ROWS = 64
SUMS = 22  # float64 numbers a neuron: ten for target and distractors each, two of Taylor's
FLOAT64_BYTES = 8
MOMENT_COPIES = 4  # float32 copies of h while moments are added: h, |h| or h², h ∂L/∂h, h again
WAY_OUT = "use --dtype bfloat16"


@dataclass(frozen=True)
class CalibrationData:
    """What a model is measured on.

    Attributes:
        target: user messages of the target task.
        distractor: user messages that have nothing to do with it.
        seed: that the prompts were drawn with, and that seeded scores use.
        max_new_tokens: length limit of the model's own answers to the target prompts.
    """

    target: tuple[str, ...]
    distractor: tuple[str, ...]
    seed: int
    max_new_tokens: int

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of everything above."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


def build_profile(
    checkpoint: Checkpoint,
    task_name: str,
    data: CalibrationData,
    answers: Answers,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    progress: bool,
    max_memory_bytes: int | None = None,
) -> SelectivityProfile:
    """Loads the model and measures it in one pass over all sequences.

    Args:
        answers: the model's own to the target prompts.
        progress: shows a bar with the time left, on stderr.
        max_memory_bytes: that weights and what is computed may take; None: as much as it likes. The profile
            is the same.

    Raises:
        ModelError: the checkpoint is incomplete or has no tokenizer.
        ProfileError: no prompts, prompts that do not fit the context, or activations that are not finite.
        MemoryBoundError: more memory is needed at the least than allowed.
    """
    if not data.distractor:
        raise ProfileError("there are no distractor prompts: a profile needs at least one")
    calibration = start_calibration(
        checkpoint,
        task_name,
        data,
        answers,
        device=device,
        dtype=dtype,
        max_memory_bytes=max_memory_bytes,
    )
    return calibration.measure(progress=progress)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A model in memory, and what it is measured on. Made by `start_calibration`.

    Attributes:
        targets: prompts with the whole model's own answers.
        distractors: prompts alone.
        max_memory_bytes: as in `build_profile`.
        held_bytes: part of it that is taken already, beside the model.
    """

    model: "PreTrainedModel"
    architecture: Architecture
    targets: tuple[TokenSequence, ...]
    distractors: tuple[TokenSequence, ...]
    provenance: Provenance
    max_memory_bytes: int | None = None
    held_bytes: int = 0

    def measure(self, *, progress: bool, description: str = "activations") -> SelectivityProfile:
        """The model as it is now: target sequences forward and back, distractors forward.

        Sums are deterministic for a given machine, dtype and versions. Raises ProfileError, MemoryBoundError.
        """
        shape = (self.architecture.num_layers, self.architecture.intermediate_size)
        layers_at_once = self.layers_at_once
        target_sums, distractor_sums, taylor = MomentSums(*shape), MomentSums(*shape), TaylorSums(*shape)
        total = len(self.targets) + len(self.distractors)
        with tqdm(total=total, desc=description, unit="sequence", disable=not progress) as bar:
            for batch in _batches(self.targets, self.model.device):
                add_moments_and_gradients(
                    self.model, batch, target_sums, taylor, layers_at_once=layers_at_once
                )
                bar.update(len(batch.input_ids))
            for batch in _batches(self.distractors, self.model.device):
                add_moments(self.model, batch, distractor_sums)
                bar.update(len(batch.input_ids))
        squares = (target_sums.prompt, target_sums.answer, distractor_sums.prompt)
        _check_finite(sum((moments.sq_sum for moments in squares), start=taylor.sq_sum), self.provenance)
        gate_norm, up_norm, down_norm = weight_norms(self.model)
        return SelectivityProfile(
            provenance=self.provenance,
            target_prompt=target_sums.prompt,
            target_answer=target_sums.answer,
            distractor_prompt=distractor_sums.prompt,
            target_per_prompt=target_sums.per_prompt,
            target_per_answer=target_sums.per_answer,
            distractor_per_prompt=distractor_sums.per_prompt,
            taylor_abs_sum=taylor.abs_sum,
            taylor_sq_sum=taylor.sq_sum,
            gate_norm=gate_norm,
            up_norm=up_norm,
            down_norm=down_norm,
        )

    @property
    def layers_at_once(self) -> int:
        """Layers whose activations the bound has room for between the pass forward and the pass back.

        Raises MemoryBoundError where that is none.
        """
        num_layers, num_neurons = self.architecture.num_layers, self.architecture.intermediate_size
        if self.max_memory_bytes is None:
            return num_layers
        groups = [
            group
            for sequences in (self.targets, self.distractors)
            for group in in_batches(sequences, MEASURED_TOKENS, MEASURED_ROWS)
        ]
        largest = pad_batch(max(groups, key=lambda group: len(group) * len(group[0].fed)), self.model.device)
        streams = num_layers * self.architecture.hidden_size * self.model.dtype.itemsize
        of_a_layer = layer_bytes(self.model, largest)
        parts = {
            "the model": weight_bytes(self.model),
            **({"what is held beside it": self.held_bytes} if self.held_bytes else {}),
            "the sums": SUMS * num_layers * num_neurons * FLOAT64_BYTES,
            "a batch's residual streams": largest.input_ids.numel() * streams,
            "its activations in one layer": of_a_layer,
            "what is made of them": largest.input_ids.numel() * num_neurons * MOMENT_COPIES * FLOAT32_BYTES,
            "its logits": logits_bytes(self.model, copies=4),
        }
        spare = spare_bytes("measuring the neurons", parts, self.max_memory_bytes, WAY_OUT)
        return min(num_layers, 1 + spare // of_a_layer)


def start_calibration(
    checkpoint: Checkpoint,
    task_name: str,
    data: CalibrationData,
    answers: Answers,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    max_memory_bytes: int | None = None,
) -> Calibration:
    """Loads the model to be measured along its own answers to the target prompts.

    Raises:
        ModelError, ProfileError: as `build_profile`.
    """
    if not data.target:
        raise ProfileError("there are no target prompts: neurons are measured on at least one")
    fingerprint = checkpoint.fingerprint  # first: it finds damaged files, and names them
    tokenizer = checkpoint.tokenizer()
    targets = [prompt_token_ids(tokenizer, prompt) for prompt in data.target]
    distractors = [prompt_token_ids(tokenizer, prompt) for prompt in data.distractor]
    check_lengths(checkpoint, targets, data.max_new_tokens)
    check_lengths(checkpoint, distractors, 0)

    model = load_network(checkpoint, torch.device(device), dtype)
    if answers.unfinished:
        logger.warning(
            "%d of %d answers did not end within %d tokens; they are measured as far as they go",
            answers.unfinished,
            len(targets),
            data.max_new_tokens,
        )
    provenance = Provenance(
        model_name=checkpoint.name,
        model=fingerprint,
        tokenizer=checkpoint.tokenizer_fingerprint,
        data=data.fingerprint,
        task=task_name,
        seed=data.seed,
        dtype=str(dtype).removeprefix("torch."),
        max_new_tokens=data.max_new_tokens,
        unfinished_answers=answers.unfinished,
        ends=sorted(checkpoint.eos_token_ids),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    return Calibration(
        model=model,
        architecture=checkpoint.architecture,
        targets=tuple(with_answers(targets, answers.token_ids)),
        distractors=tuple(TokenSequence(tuple(prompt)) for prompt in distractors),
        provenance=provenance,
        max_memory_bytes=max_memory_bytes,
    )


def load_network(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
    """The whole model, to be measured, not trained. Raises ModelError where tensors are missing."""
    # Here, because it takes a second and 80 MB, and a server that finds its profile measures nothing.
    from transformers import AutoModelForCausalLM

    model, loading = cast("Any", AutoModelForCausalLM).from_pretrained(
        checkpoint.path,
        dtype=dtype,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if loading["missing_keys"]:  # transformers would go on with random values in their place
        raise ModelError(
            f"{checkpoint.path} has no tensors {', '.join(sorted(loading['missing_keys']))}; "
            f"the checkpoint is incomplete, get it again"
        )
    return cast("PreTrainedModel", model.to(device).eval().requires_grad_(False))


def _batches(sequences: Sequence[TokenSequence], device: torch.device) -> Iterator[TokenBatch]:
    for members in in_batches(sequences, MEASURED_TOKENS, MEASURED_ROWS):
        yield pad_batch(members, device)


def check_lengths(checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    context = checkpoint.config.max_position_embeddings
    longest = max((len(prompt) for prompt in prompts), default=0)
    if not all(prompts):
        raise ProfileError("a calibration prompt has no tokens; leave empty prompts out")
    if longest + new_tokens > context:
        raise ProfileError(
            f"a calibration prompt has {longest:,} tokens and its answer may have {new_tokens:,}; "
            f"{checkpoint.name} takes {context:,} together: use shorter prompts or a smaller max_new_tokens"
        )


def _check_finite(sums: Tensor, provenance: Provenance) -> None:
    if not bool(torch.isfinite(sums).all()):
        raise ProfileError(
            f"activations of {provenance.model_name} or their gradients are not finite in "
            f"{provenance.dtype}; measure in bfloat16 or float32"
        )
